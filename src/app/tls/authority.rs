//! The development authority: made on the first start, kept in DATA/gateway, signs our own leaves.
//!
//! Only the authority is kept; a leaf lives in memory, is made by every start, and again when it
//! has [`RENEW_DAYS`] left. The files lie flat in DATA/gateway because the warden hands that
//! directory's files, not its subdirectories, to the gateway's user of the day.

use std::{fs, io, net::Ipv4Addr, path::Path};

use jiff::{SignedDuration, Timestamp, tz::Offset};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, date_time_ymd,
};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};

use super::TlsError;
use crate::app::server::write_private;

/// The authority's certificate in DATA/gateway.
pub const CERTIFICATE: &str = "tls-ca.pem";
/// The authority's key in DATA/gateway, 0600.
const KEY: &str = "tls-ca.key";
/// Long enough that nobody has to trust a new one soon.
const AUTHORITY_DAYS: i64 = 3650;
/// An authority with fewer days left is replaced at the start.
const AUTHORITY_SPARE_DAYS: i64 = 180;
/// Below what any client limits (macOS: 825).
const LEAF_DAYS: i64 = 90;
/// A leaf with fewer days left is replaced.
const RENEW_DAYS: i64 = 30;

/// Signs certificates for the server's own names.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    names: Vec<String>,
}

// === impl Authority ===

impl Authority {
    /// Reads the authority of the directory, or makes one where there is none yet.
    pub fn open(dir: &Path, domain: &str, now: Timestamp) -> Result<Self, TlsError> {
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        let names = names(domain);
        let text = match fs::read_to_string(&certificate) {
            Ok(text) => text,
            // A key without a certificate is what an interrupted first start leaves: nobody trusts it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::make(dir, names, now),
            Err(error) => return Err(TlsError::file(&certificate, error)),
        };
        let damaged = |path: &Path, what: &dyn std::fmt::Display| {
            TlsError::content(
                path,
                format!(
                    "damaged ({what}): put it back, or remove {} to make a new authority, which clients must \
                     then trust anew",
                    certificate.display()
                ),
            )
        };
        let pair = fs::read_to_string(&key).map_err(|error| damaged(&key, &error))?;
        let pair = KeyPair::from_pem(&pair).map_err(|error| damaged(&key, &error))?;
        let der =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| damaged(&certificate, &error))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| damaged(&certificate, &error))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(damaged(&key, &"not this certificate's key"));
        }
        if parsed.validity().not_after.timestamp() < after(now, AUTHORITY_SPARE_DAYS).as_second() {
            tracing::warn!(
                "the development authority is about to expire: a new one is made; trust it with `firkin ca`"
            );
            return Self::make(dir, names, now);
        }
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, pair)?, names })
    }

    fn make(dir: &Path, names: Vec<String>, now: Timestamp) -> Result<Self, TlsError> {
        let pair = KeyPair::generate()?;
        // Authorities of several servers must have several names: clients look issuers up by name.
        let name = hex::encode(&Sha256::digest(pair.subject_public_key_info())[..4]);
        let mut params = params(&format!("firkin development CA {name}"), now, AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&pair)?;
        for (file, text) in [(KEY, pair.serialize_pem()), (CERTIFICATE, certificate.pem())] {
            let path = dir.join(file);
            write_private(&path, text.as_bytes()).map_err(|error| TlsError::file(&path, error))?;
        }
        Ok(Self { issuer: Issuer::new(params, pair), names })
    }

    /// A new certificate for the server's names, and when to ask for the next.
    pub(super) fn leaf(&self, now: Timestamp) -> Result<(CertifiedKey, Timestamp), TlsError> {
        let pair = KeyPair::generate()?;
        let mut params = params(&self.names[0], now, LEAF_DAYS);
        params.subject_alt_names = CertificateParams::new(self.names.clone())?.subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let leaf = CertifiedKey::from_der(vec![certificate.der().clone()], key, &ring::default_provider())?;
        Ok((leaf, after(now, LEAF_DAYS - RENEW_DAYS)))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The domain, everything below it, and what the machine itself says.
fn names(domain: &str) -> Vec<String> {
    let host = domain.split_once(':').map_or(domain, |(host, _)| host);
    let mut names = vec![host.to_owned()];
    if host.parse::<Ipv4Addr>().is_err() {
        names.push(format!("*.{host}"));
    }
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names
}

/// Valid from yesterday, because clocks differ, for so many days.
fn params(name: &str, now: Timestamp, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let date = |at: Timestamp| {
        let date = Offset::UTC.to_datetime(at).date();
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = date(after(now, -1));
    params.not_after = date(after(now, days));
    params
}

fn after(now: Timestamp, days: i64) -> Timestamp {
    now.saturating_add(SignedDuration::from_hours(24 * days)).unwrap_or(now)
}

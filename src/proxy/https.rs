//! TLS towards user ports that speak it inside (`httpsPorts`): spoken, not trusted.
//!
//! The link already leads into the right machine and nowhere else, so a certificate has nothing to
//! prove: none is looked at, as E2B looks at none, and whatever users sign for themselves will do.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::error::Cause;
use crate::runtime::link::LinkStream;

/// Shakes hands with servers inside. Cheap to clone; what it needs is made when it is first needed.
#[derive(Clone, Default)]
pub(super) struct Https {
    connector: Arc<OnceLock<TlsConnector>>,
}

/// A stream whose peer may end it without saying so in TLS: many servers do, and the length of a body
/// that matters stands in HTTP.
struct Inside(TlsStream<LinkStream>);

/// Takes any certificate.
#[derive(Debug)]
struct Anyone {
    schemes: Vec<SignatureScheme>,
}

// === impl Https ===

impl Https {
    /// Goes on with this stream in TLS.
    pub(super) async fn wrap(&self, stream: LinkStream) -> Result<LinkStream, Cause> {
        let connector = if let Some(connector) = self.connector.get() {
            connector
        } else {
            let made = connector()?;
            self.connector.get_or_init(|| made)
        };
        // An address is never sent as a server name: the server shows its only certificate.
        let inside = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        Ok(Box::new(Inside(connector.connect(inside, stream).await?)))
    }
}

impl std::fmt::Debug for Https {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Https").finish_non_exhaustive()
    }
}

/// TLS 1.2 and 1.3 with HTTP/1.1 inside; fails only where this build has no ciphers.
fn connector() -> Result<TlsConnector, Error> {
    let provider = ring::default_provider();
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone { schemes }))
        .with_no_client_auth();
    // Every sandbox is the same address: no session of one may be offered to another.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

// === impl Inside ===

impl AsyncRead for Inside {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll_read(cx, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            read => read,
        })
    }
}

impl AsyncWrite for Inside {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// === impl Anyone ===

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    // A signature by somebody who may be anybody says nothing, and checking it would refuse old kinds
    // of certificates.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

//! Which server is meant, the key for it, and whose certificates are believed.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use clap::Args;
use http::{HeaderValue, Uri, uri::Scheme};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use crate::{
    cli::ca,
    config::{Config, ConfigError},
};

/// Flags that name the server.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    #[arg(long, global = true, value_name = "URL", help = "The server's API [env: E2B_API_URL]")]
    api_url: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "NAME[:PORT]",
        help = "The server's domain: its API is at https://api.NAME [env: E2B_DOMAIN]"
    )]
    domain: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        help = "An API key; other users of this machine see flags, not variables [env: E2B_API_KEY]"
    )]
    api_key: Option<String>,
    /// Believe the authorities in this PEM file, besides those of the system
    #[arg(long, global = true, value_name = "FILE", env = "FIRKIN_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// A server, fully described.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// Its address: scheme and authority.
    pub(super) url: Uri,
    pub(super) host: String,
    pub(super) port: u16,
    /// What stands before every path; empty or begins with `/`.
    pub(super) prefix: String,
    pub(super) key: HeaderValue,
    /// How to speak TLS with it; none: plain HTTP.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

// === impl ServerArgs ===

impl ServerArgs {
    /// The server that flags, else environment, else this machine's configuration mean.
    pub(super) fn resolve(
        self,
        environment: impl Fn(&str) -> Option<String>,
        config: impl FnOnce() -> Result<Config, ConfigError>,
    ) -> anyhow::Result<Server> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let by_domain = |domain: String| format!("https://api.{domain}");
        let url = self
            .api_url
            .or_else(|| self.domain.map(by_domain))
            .or_else(|| variable("E2B_API_URL"))
            .or_else(|| variable("E2B_DOMAIN").map(by_domain));
        let url = match url {
            Some(url) => url,
            None => local(&config()?)?,
        };
        let key = self.api_key.or_else(|| variable("E2B_API_KEY")).context(
            "no API key: export E2B_API_KEY=..., or give --api-key; `sudo firkin key create` makes one",
        )?;
        let mut key = HeaderValue::from_str(&key).context("the API key has characters that no key has")?;
        key.set_sensitive(true);
        let (url, host, port, prefix) = split(&url)?;
        let secure = url.scheme() == Some(&Scheme::HTTPS);
        let tls = secure.then(|| trust(self.ca_file, variable("SSL_CERT_FILE").map(PathBuf::from)));
        Ok(Server { url, host, port, prefix, key, tls: tls.transpose()? })
    }
}

/// The address of this machine's own server.
fn local(config: &Config) -> anyhow::Result<String> {
    let mut address = config.network.listen;
    if address.port() == 0 {
        bail!("which server? export E2B_API_URL=..., as `firkin serve` prints it, or give --api-url");
    }
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    Ok(format!("http://{address}"))
}

fn split(text: &str) -> anyhow::Result<(Uri, String, u16, String)> {
    let wrong = || format!("{text:?} is no address of a server: want http://HOST:PORT or https://HOST");
    let uri: Uri = text.parse().with_context(wrong)?;
    let default = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => 80,
        Some(scheme) if *scheme == Scheme::HTTPS => 443,
        _ => bail!(wrong()),
    };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if host.is_empty() || !plain || uri.query().is_some() {
        bail!(wrong());
    }
    let port = uri.port_u16().unwrap_or(default);
    let prefix = uri.path().trim_end_matches('/').to_owned();
    Ok((uri, host, port, prefix))
}

/// Believes the authorities of the variable's file, else of the system, and of the flag's file.
fn trust(extra: Option<PathBuf>, instead: Option<PathBuf>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match instead {
        Some(path) => add(&mut roots, &path).context("SSL_CERT_FILE")?,
        None => {
            if let Some(path) = ca::BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()) {
                add(&mut roots, &path)?;
            }
        }
    }
    if let Some(path) = extra {
        add(&mut roots, &path).context("--ca-file")?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn add(roots: &mut RootCertStore, path: &std::path::Path) -> anyhow::Result<()> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.with_context(|| format!("{} is not PEM", path.display()))?;
    // A system's list may hold a few that are too old to be understood.
    let (good, _) = roots.add_parsable_certificates(certificates);
    if good == 0 {
        bail!("{} holds no certificate", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(listen: &str) -> Result<Config, ConfigError> {
        Config::load(&Sources::new([("listen".to_owned(), listen.to_owned())], []))
    }

    fn resolve(args: ServerArgs, environment: &[(&str, &str)]) -> anyhow::Result<Server> {
        let find = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        args.resolve(find, || config("0.0.0.0:3000"))
    }

    #[test]
    fn flags_win_over_variables_over_this_machines_server() {
        let key = ("E2B_API_KEY", "e2b_0");
        let both = [key, ("E2B_API_URL", "http://a:1/"), ("E2B_DOMAIN", "b:2")];
        let address = |args, environment: &[_]| {
            let Server { host, port, tls, .. } = resolve(args, environment).unwrap();
            (host, port, tls.is_some())
        };
        assert_eq!(address(ServerArgs::default(), &[key]), ("127.0.0.1".to_owned(), 3000, false));
        assert_eq!(address(ServerArgs::default(), &both[..]), ("a".to_owned(), 1, false));
        let by_domain = [both[0], both[2]];
        assert_eq!(address(ServerArgs::default(), &by_domain), ("api.b".to_owned(), 2, true));
        let args = ServerArgs { domain: Some("c".to_owned()), ..ServerArgs::default() };
        assert_eq!(address(args, &both), ("api.c".to_owned(), 443, true));
        let args = ServerArgs { api_url: Some("http://[::1]:4/x".to_owned()), ..ServerArgs::default() };
        assert_eq!(address(args, &both), ("::1".to_owned(), 4, false));
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let error = resolve(ServerArgs::default(), &[("E2B_API_KEY", "")]).unwrap_err().to_string();
        assert!(error.contains("E2B_API_KEY") && error.contains("firkin key create"), "{error}");
        let error = ServerArgs::default().resolve(|_| None, || config("127.0.0.1:0")).unwrap_err();
        assert!(error.to_string().contains("E2B_API_URL"), "{error}");
        for bad in ["", "127.0.0.1:3000", "ftp://a", "http://", "http://a?b", "http://u@a"] {
            let args = ServerArgs { api_url: Some(bad.to_owned()), ..ServerArgs::default() };
            let error = resolve(args, &[("E2B_API_KEY", "k")]).unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("empty.pem");
        fs::write(&path, "nothing").unwrap();
        let error = format!("{:#}", trust(None, Some(path)).unwrap_err());
        assert!(error.contains("SSL_CERT_FILE") && error.contains("empty.pem"), "{error}");
        let error = format!("{:#}", trust(Some("/nowhere".into()), None).unwrap_err());
        assert!(error.contains("--ca-file"), "{error}");
    }
}

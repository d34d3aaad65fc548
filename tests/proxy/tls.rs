//! TLS and plain HTTP on one port: by the first byte, with both versions of HTTP, bounded in time; and
//! TLS towards ports that speak it inside.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use firkin::proxy::tls::{Acceptor, Certificates};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::rig::{DOMAIN, Rig, host, read_until, within};

/// A certificate for this domain, and what a client must trust.
fn certificate() -> (CertifiedKey, CertificateDer<'static>) {
    let names = [DOMAIN.to_owned(), format!("*.{DOMAIN}")];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let der = made.cert.der().clone();
    (CertifiedKey::from_der(vec![der.clone()], key, &ring::default_provider()).unwrap(), der)
}

async fn rig(certificates: &Arc<Certificates>) -> Rig {
    Rig::with(|settings| {
        settings.head_timeout = Duration::from_millis(300);
        settings.tls = Some(Acceptor::new(Arc::clone(certificates)).unwrap());
    })
    .await
}

async fn connect(
    rig: &Rig,
    trusted: &CertificateDer<'static>,
    name: &str,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within(TlsConnector::from(Arc::new(config)).connect(name, rig.connect().await)).await
}

#[tokio::test]
async fn one_port_speaks_plain_and_tls_with_both_versions_of_http() {
    let (key, trusted) = certificate();
    let rig = rig(&Arc::new(Certificates::new(key))).await;
    let id = rig.sandbox().await;
    rig.tell(8000);
    let name = host(8000, id);
    assert_eq!(rig.get(&name, "/", &[]).await.status, 200, "plain");

    let mut stream = connect(&rig, &trusted, &name, &["http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, "200 OK").await;

    let stream = connect(&rig, &trusted, &name, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    for (authority, status) in [(name.as_str(), 200), (&format!("api.{DOMAIN}"), 200)] {
        let uri = format!("https://{authority}/health");
        let request = http::Request::get(uri).body(axum::body::Body::empty()).unwrap();
        assert_eq!(within(client.send_request(request)).await.unwrap().status(), status, "{authority}");
    }
    connection.abort();
}

#[tokio::test]
async fn a_slow_handshake_is_cut_and_a_silent_connection_is_kept() {
    let (key, trusted) = certificate();
    let rig = rig(&Arc::new(Certificates::new(key))).await;
    let begin = Instant::now();
    let mut slow = rig.connect().await;
    let mut silent = rig.connect().await;
    // The header of a record that never comes.
    slow.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    assert!(matches!(within(slow.read(&mut [0; 64])).await, Ok(0) | Err(_)));
    assert!(begin.elapsed() < Duration::from_secs(3));
    silent.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut silent, "the routes").await;

    // A head in TLS has as much time as a plain one, and a handshaken connection may idle.
    let mut idle = connect(&rig, &trusted, DOMAIN, &[]).await.unwrap();
    let mut slow = connect(&rig, &trusted, DOMAIN, &[]).await.unwrap();
    slow.write_all(b"GET /health HT").await.unwrap();
    assert!(matches!(within(slow.read(&mut [0; 64])).await, Ok(0) | Err(_)));
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut idle, "the routes").await;
}

#[tokio::test]
async fn a_replaced_certificate_is_what_new_connections_get() {
    let (first, trusts_first) = certificate();
    let (second, trusts_second) = certificate();
    let certificates = Arc::new(Certificates::new(first));
    let rig = rig(&certificates).await;
    let mut old = connect(&rig, &trusts_first, DOMAIN, &[]).await.unwrap();
    assert!(connect(&rig, &trusts_second, DOMAIN, &[]).await.is_err());
    certificates.replace(second);
    assert!(connect(&rig, &trusts_second, DOMAIN, &[]).await.is_ok());
    assert!(connect(&rig, &trusts_first, DOMAIN, &[]).await.is_err());
    old.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut old, "the routes").await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_clients_that_said_nothing() {
    let (key, _) = certificate();
    let rig = rig(&Arc::new(Certificates::new(key))).await;
    let mut silent = rig.connect().await;
    assert_eq!(rig.get("localhost", "/health", &[]).await.status, 200);
    rig.shutdown.cancel();
    assert!(matches!(within(silent.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    within(rig.serving).await.unwrap();
}

#[tokio::test]
async fn ports_that_speak_tls_inside_are_spoken_to_in_tls_by_any_certificate() {
    let (key, _) = certificate();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificates::new(key)));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let rig = Rig::start().await;
    rig.listen(8443, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            read_until(&mut stream, "\r\n\r\n").await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ninside").await;
            // No length, and no farewell in TLS: the end of the stream is the end of the body.
            let _ = stream.flush().await;
            let _ = stream.get_mut().0.shutdown().await;
        }
    });
    rig.tell(8000);
    let id = rig.sandbox().await;
    rig.change(id, |target| target.https_ports = Arc::from([8443, 8000]));
    let answer = rig.get(&host(8443, id), "/", &[]).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "6\r\ninside\r\n0\r\n\r\n"), "whole, in chunks");

    // Who does not speak it, though it was said to, is as good as a closed port.
    let answer = rig.get(&host(8000, id), "/", &[]).await;
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("port is not open"), "{answer:?}");
    rig.change(id, |target| target.https_ports = Arc::from([443]));
    assert_eq!(rig.get(&host(8000, id), "/", &[]).await.status, 200);

    // Envd's port is not the user's: listed or not, it is spoken to as ever.
    rig.tell(49_983);
    rig.change(id, |target| target.https_ports = Arc::from([49_983]));
    assert_eq!(rig.get(&host(49_983, id), "/", &[]).await.status, 200);
}

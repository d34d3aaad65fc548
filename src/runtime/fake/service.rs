//! What listens in a fake machine: a small envd, an HTTP server that tells what it was asked, an echo.

use std::{convert::Infallible, fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, UPGRADE},
};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::machine::Body;
use crate::runtime::link::LinkStream;

/// Serves one connection of a port.
pub type Handler = Arc<dyn Fn(LinkStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

type Reply = Response<BoxBody<Bytes, hyper::Error>>;

/// What answers on a port.
#[derive(Clone)]
pub enum Service {
    /// `GET /health` 204; `GET /envs` (wants the access token where there is one); `POST /echo`.
    Envd,
    /// Tells in JSON what it was asked (`method`, `uri`, `headers`, `body`); `/echo` streams the
    /// body back as it comes; a request to upgrade gets 101, then its own bytes back.
    Http,
    /// Every byte comes back; the end of what comes in ends what goes out.
    Echo,
    /// Whatever a test wants.
    Custom(Handler),
}

// === impl Service ===

impl Service {
    pub(super) async fn run(self, body: &Arc<Body>, stream: LinkStream) {
        match self {
            Self::Envd => serve_http(stream, Arc::clone(body), envd).await,
            Self::Http => serve_http(stream, Arc::clone(body), tell).await,
            Self::Echo => echo(body, stream).await,
            Self::Custom(handler) => handler(stream).await,
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Envd => "Envd",
            Self::Http => "Http",
            Self::Echo => "Echo",
            Self::Custom(_) => "Custom",
        })
    }
}

async fn echo(body: &Body, mut stream: LinkStream) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read) = stream.read(&mut buffer).await else { return };
        body.thawed().await;
        if read == 0 {
            let _ = stream.shutdown().await;
            return;
        }
        if stream.write_all(&buffer[..read]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

async fn serve_http<F, R>(stream: LinkStream, body: Arc<Body>, handler: F)
where
    F: Fn(Arc<Body>, Request<Incoming>) -> R + Copy + Send,
    R: Future<Output = Reply> + Send,
{
    let service = service_fn(move |request| {
        let body = Arc::clone(&body);
        async move {
            body.thawed().await;
            Ok::<_, Infallible>(handler(body, request).await)
        }
    });
    let connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // A client that breaks off is no failure of the server.
    let _ = connection.await;
}

async fn envd(body: Arc<Body>, request: Request<Incoming>) -> Reply {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => status(StatusCode::NO_CONTENT),
        (&Method::GET, "/envs") => {
            let init = body.guest.view().init;
            let wanted = init.as_ref().and_then(|init| init.access_token.clone());
            let given = request.headers().get("x-access-token").and_then(|value| value.to_str().ok());
            if wanted.is_some() && wanted.as_deref() != given {
                return status(StatusCode::UNAUTHORIZED);
            }
            json(&serde_json::json!(init.map(|init| init.env_vars).unwrap_or_default()))
        }
        (&Method::POST, "/echo") => Response::new(request.into_body().boxed()),
        _ => status(StatusCode::NOT_FOUND),
    }
}

async fn tell(_body: Arc<Body>, mut request: Request<Incoming>) -> Reply {
    if let Some(protocol) = request.headers().get(UPGRADE).cloned() {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
        let mut reply = status(StatusCode::SWITCHING_PROTOCOLS);
        reply.headers_mut().insert(UPGRADE, protocol);
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        return reply;
    }
    if request.uri().path() == "/echo" {
        return Response::new(request.into_body().boxed());
    }
    let headers: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let (method, uri) = (request.method().to_string(), request.uri().to_string());
    let body = match request.into_body().collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => return status(StatusCode::BAD_REQUEST),
    };
    json(&serde_json::json!({ "method": method, "uri": uri, "headers": headers, "body": body }))
}

fn status(code: StatusCode) -> Reply {
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = code;
    reply
}

fn json(value: &serde_json::Value) -> Reply {
    let mut reply = Response::new(full(Bytes::from(value.to_string())));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn full(bytes: Bytes) -> BoxBody<Bytes, hyper::Error> {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

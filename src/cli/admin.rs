//! The admin socket's client: one request over the unix socket in the data directory.

use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::config::Config;

/// Sends one request and reads its JSON answer; `()` for answers without a body.
pub(super) fn request<T: DeserializeOwned>(
    config: &Config,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(exchange(&config.storage.data_dir, method, path, body))
}

async fn exchange<T: DeserializeOwned>(
    data_dir: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<T> {
    let socket = data_dir.join("gateway/admin.sock");
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!(
            "no server answers at {}: start `firkin serve`, or name its --data-dir (and be root)",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "firkin")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        let parsed: Option<serde_json::Value> = serde_json::from_slice(&answer).ok();
        let message = parsed.as_ref().and_then(|body| body["message"].as_str());
        bail!("{}", message.map_or_else(|| format!("the server answered {status}"), str::to_owned));
    }
    let answer = if answer.is_empty() { b"null".as_slice() } else { &answer };
    serde_json::from_slice(answer).context("the server's answer is not what this version understands")
}

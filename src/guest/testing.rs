//! envd in process, for tests.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::{process::Processes, serve, state::Guest};
use crate::wire::control::Init;

/// No step of a test takes longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A guest with this access token, working as root.
pub(crate) fn guest(token: Option<&str>) -> Guest {
    let guest = Guest::default();
    guest.introduce(Init {
        sandbox_id: "i0123456789abcdefghij".parse().unwrap(),
        template_id: "base".to_owned(),
        env_vars: BTreeMap::new(),
        access_token: token.map(str::to_owned),
        default_user: "root".to_owned(),
        default_workdir: None,
        now_unix_ns: 0,
        disk_bytes: 0,
        entropy: String::new(),
        freshness: None,
    });
    guest
}

/// All of envd.
pub(crate) fn app(token: Option<&str>) -> Router {
    serve::router(guest(token), Processes::without_spawner())
}

/// What an SDK puts in `Authorization` for a user.
pub(crate) fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

/// Uploads one file as an SDK does.
pub(crate) async fn upload(app: &Router, path: &str, contents: &str) -> Response<Body> {
    let request = Request::post(format!("/files?username=root&path={path}"))
        .header("content-type", "application/octet-stream")
        .body(Body::from(contents.to_owned()))
        .unwrap();
    app.clone().oneshot(request).await.unwrap()
}

/// Fetches a JSON answer.
pub(crate) async fn get(path: &str) -> (StatusCode, serde_json::Value) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app(None).oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

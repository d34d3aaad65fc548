//! The control plane in process: the real router, registry and SQLite store over the fake engine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod admission;
mod auth;
mod bad_input;
mod document;
mod endpoints;
mod freshness;
mod idempotency;
mod inside;
mod inspection;
mod lists;
mod network;
mod observed;
mod sandboxes;
mod streams;
mod templates;
mod timeouts;

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use firkin::{
    id::{BuildId, OsEntropy},
    routes::{
        self, AppState, Settings, Streams,
        admin::{NewTemplate, register_template},
        keyring::KeyRing,
    },
    runtime::{
        fake::{FakeEngine, HeldClock},
        registry::{Limits, Registry, TokenKey},
    },
    sandbox::Resources,
    store::{Store, Team, sqlite::SqliteStore},
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

/// A control plane with two teams, each with a key, and the global template `base`.
pub(crate) struct Plane {
    pub(crate) state: AppState,
    pub(crate) engine: FakeEngine,
    pub(crate) clock: Arc<HeldClock>,
    pub(crate) team: Team,
    pub(crate) key: String,
    pub(crate) other_team: Team,
    pub(crate) other_key: String,
    _directory: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Plane {
    pub(crate) async fn new() -> Self {
        Self::with_max(None).await
    }

    pub(crate) async fn with_max(max: Option<Duration>) -> Self {
        Self::with_limits(Limits { max_length: max, concurrent_boots: 8, ..Limits::default() }).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let max = limits.max_length;
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&directory.path().join("db")).unwrap());
        let (engine, clock) = (FakeEngine::new(), Arc::new(HeldClock::default()));
        let entropy = Arc::new(OsEntropy);
        let registry = Registry::new(
            Arc::new(engine.clone()),
            Arc::clone(&store),
            clock.clone(),
            entropy.clone(),
            TokenKey::new([7; 32]),
            limits,
        );
        registry.recover().await.unwrap();
        let keys = KeyRing::load(Arc::clone(&store), clock.clone(), entropy.clone()).await.unwrap();
        let team = keys.add_team("ours", "Ours").await.unwrap();
        clock.jump(jiff::SignedDuration::from_secs(1));
        let other_team = keys.add_team("theirs", "Theirs").await.unwrap();
        let key = keys.issue(team.id, "test").await.unwrap().secret;
        let other_key = keys.issue(other_team.id, "test").await.unwrap().secret;
        let settings = Settings {
            domain: "firkin.test:3000".into(),
            max_timeout: max,
            default_resources: Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 },
            allowed_origins: ["https://ide.example.com".to_owned()].into(),
        };
        let streams = Streams::new(&*entropy);
        let state = AppState { registry, store, keys, clock: clock.clone(), entropy, streams, settings };
        let plane = Self { state, engine, clock, team, key, other_team, other_key, _directory: directory };
        plane.template("base", None).await;
        plane
    }

    /// Registers a template under a name, everybody's or a team's.
    pub(crate) async fn template(&self, name: &str, team: Option<&str>) -> String {
        let new = NewTemplate {
            name: name.to_owned(),
            aliases: Vec::new(),
            team: team.map(str::to_owned),
            build: BuildId::generate(&OsEntropy),
            resources: None,
            fingerprint: None,
        };
        // What is made later is newer: lists are in order of time.
        self.clock.jump(jiff::SignedDuration::from_secs(1));
        register_template(&self.state, new).await.unwrap().template.to_string()
    }

    /// A request with the team's key and, where there is one, a JSON body.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_with(&self.key, method, path, body).await
    }

    /// The same with another key.
    pub(crate) async fn call_with(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let request = request(method, path).header("x-api-key", key);
        self.send(match body {
            Some(body) => {
                request.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap()
            }
            None => request.body(Body::empty()).unwrap(),
        })
        .await
    }

    /// Any request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        answer(routes::router(self.state.clone()), request).await
    }

    /// A new sandbox of `base`.
    pub(crate) async fn sandbox(&self) -> String {
        let made = self.call("POST", "/v2/sandboxes", Some(serde_json::json!({"templateID": "base"}))).await;
        assert_eq!(made.status, 201, "{made:?}");
        made.body["sandboxID"].as_str().unwrap().to_owned()
    }
}

impl Answer {
    /// Asserts that this is an error of E2B's shape, and gives its message.
    pub(crate) fn error(&self, status: u16) -> &str {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json");
        assert_eq!(self.body["code"], status, "{self:?}");
        self.body["message"].as_str().unwrap()
    }
}

pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method.parse::<Method>().unwrap()).uri(path)
}

pub(crate) async fn answer(router: axum::Router, request: Request<Body>) -> Answer {
    let response =
        tokio::time::timeout(Duration::from_secs(20), router.oneshot(request)).await.unwrap().unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Polls until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..400 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what} did not come");
}

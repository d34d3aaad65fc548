//! An envd that tells a test what it is asked, and answers when the test says so.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use firkin::runtime::fake::Handler;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, watch};

use super::within;

/// The envd of every machine of a test. Cheap to clone.
#[derive(Clone)]
pub(super) struct Envd(Arc<Shared>);

struct Shared {
    pids: AtomicU32,
    streams: mpsc::UnboundedSender<(String, Process)>,
    opened: Mutex<mpsc::UnboundedReceiver<(String, Process)>>,
    calls: mpsc::UnboundedSender<(String, Value)>,
    called: Mutex<mpsc::UnboundedReceiver<(String, Value)>>,
    /// Whether processes take input.
    takes: watch::Sender<bool>,
}

/// One streaming call, in the test's hands. Dropping it ends the answer without its end.
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) asked: Value,
    answer: mpsc::Sender<Bytes>,
}

impl Default for Envd {
    fn default() -> Self {
        let (streams, opened) = mpsc::unbounded_channel();
        let (calls, called) = mpsc::unbounded_channel();
        Self(Arc::new(Shared {
            pids: AtomicU32::new(100),
            streams,
            opened: Mutex::new(opened),
            calls,
            called: Mutex::new(called),
            takes: watch::Sender::new(true),
        }))
    }
}

impl Envd {
    pub(super) fn handler(&self) -> Handler {
        let envd = self.clone();
        Arc::new(move |link| {
            let envd = envd.clone();
            Box::pin(async move {
                let service = service_fn(move |request| {
                    let envd = envd.clone();
                    async move { Ok::<_, Infallible>(envd.answer(request).await) }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(link), service).await;
            })
        })
    }

    /// The next streaming call, which is to this procedure; it has told its start.
    pub(super) async fn opened(&self, procedure: &str) -> Process {
        let (asked, process) = within(async { self.0.opened.lock().await.recv().await }).await.unwrap();
        assert_eq!(asked, procedure);
        process
    }

    /// The next other call: procedure and request.
    pub(super) async fn called(&self) -> (String, Value) {
        within(async { self.0.called.lock().await.recv().await }).await.unwrap()
    }

    /// The input that comes next, as text.
    pub(super) async fn input(&self) -> String {
        let (procedure, request) = self.called().await;
        assert_eq!(procedure, "process.Process/SendInput");
        let data = request["input"]["stdin"].as_str().or(request["input"]["pty"].as_str()).unwrap();
        plain(data)
    }

    /// Whether processes take their input from now on.
    pub(super) fn takes(&self, takes: bool) {
        self.0.takes.send_replace(takes);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let procedure = request.uri().path().trim_start_matches('/').to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if !["process.Process/Start", "process.Process/Connect", "filesystem.Filesystem/WatchDir"]
            .contains(&procedure.as_str())
        {
            let asked = serde_json::from_slice(&body).unwrap();
            let input = procedure.ends_with("SendInput");
            self.0.calls.send((procedure, asked)).unwrap();
            if input {
                let _ = self.0.takes.subscribe().wait_for(|takes| *takes).await;
            }
            return Response::new(Full::new(Bytes::from_static(b"{}")).boxed());
        }
        let asked: Value = serde_json::from_slice(&body[5..]).unwrap();
        let known = asked["process"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let pid = known.unwrap_or_else(|| self.0.pids.fetch_add(1, Ordering::Relaxed));
        let (answer, frames) = mpsc::channel(1);
        let process = Process { pid, asked, answer };
        let start = if procedure.ends_with("WatchDir") {
            json!({ "start": {} })
        } else {
            json!({ "event": { "start": { "pid": pid } } })
        };
        process.say(0, &start).await;
        self.0.streams.send((procedure, process)).ok().unwrap();
        let body = stream::unfold(frames, |mut frames| async move {
            frames.recv().await.map(|bytes| (Ok(Frame::data(bytes)), frames))
        });
        Response::builder()
            .header("content-type", "application/connect+json")
            .body(StreamBody::new(body).boxed())
            .unwrap()
    }
}

impl Process {
    /// Sends an envelope. False: nobody reads the answer any more.
    async fn say(&self, flags: u8, message: &Value) -> bool {
        let text = message.to_string();
        let mut bytes = vec![flags];
        bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
        self.answer.send(bytes.into()).await.is_ok()
    }

    /// Output of the process. False: nobody reads it any more.
    pub(super) async fn stdout(&self, text: &str) -> bool {
        self.say(0, &json!({ "event": { "data": { "stdout": coded(text) } } })).await
    }

    pub(super) async fn file(&self, name: &str) {
        self.say(0, &json!({ "filesystem": { "type": "EVENT_TYPE_CREATE", "name": name } })).await;
    }

    /// The process has ended.
    pub(super) async fn exit(self) {
        let end =
            json!({ "exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3" });
        self.say(0, &json!({ "event": { "end": end } })).await;
        self.say(2, &json!({})).await;
    }

    /// The stream ends in an error.
    pub(super) async fn fail(self, code: &str, message: &str) {
        self.say(2, &json!({ "error": { "code": code, "message": message } })).await;
    }

    /// Resolves when nobody reads the stream any more.
    pub(super) async fn abandoned(&self) {
        within(self.answer.closed()).await;
    }
}

/// In base64.
pub(super) fn coded(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn plain(data: &str) -> String {
    use base64::Engine as _;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap()
}

//! Each row of contract/sandbox section 4, over HTTP as an SDK speaks it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::guest::testing::{self, LIMIT};

struct Rig {
    app: axum::Router,
    dir: tempfile::TempDir,
    agent: &'static str,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { app: testing::app(None), dir, agent: "connectrpc/0.6" }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn request(&self, method: &str, kind: &str, body: Vec<u8>) -> Request<Body> {
        Request::post(format!("/filesystem.Filesystem/{method}"))
            .header("content-type", kind)
            .header("user-agent", self.agent)
            .header("authorization", testing::basic("root"))
            .body(Body::from(body))
            .unwrap()
    }

    async fn call(&self, method: &str, message: Value) -> Result<Value, (String, String)> {
        let request = self.request(method, "application/json", message.to_string().into_bytes());
        let response = tokio::time::timeout(LIMIT, self.app.clone().oneshot(request)).await.unwrap().unwrap();
        let legacy = response.headers().contains_key("x-e2b-legacy-sdk");
        assert_eq!(legacy && response.status() == StatusCode::OK, self.agent == LEGACY_AGENT);
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let code = body["code"].as_str().unwrap().to_owned();
        let wanted = match &*code {
            "invalid_argument" | "failed_precondition" => 400,
            "not_found" => 404,
            "already_exists" => 409,
            _ => 500,
        };
        assert_eq!(status.as_u16(), wanted);
        Err((code, body["message"].as_str().unwrap_or_default().to_owned()))
    }

    async fn code(&self, method: &str, message: Value) -> String {
        self.call(method, message).await.unwrap_err().0
    }

    /// Opens a watch stream; its first frame has arrived.
    async fn watch(&self, message: Value) -> Frames {
        let text = message.to_string().into_bytes();
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        body.extend_from_slice(&text);
        let request = self.request("WatchDir", "application/connect+json", body);
        let response = tokio::time::timeout(LIMIT, self.app.clone().oneshot(request)).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK, "errors of streams are frames");
        Frames { body: response.into_body(), held: Vec::new() }
    }
}

struct Frames {
    body: Body,
    held: Vec<u8>,
}

impl Frames {
    /// The next frame's flags and message.
    async fn next(&mut self) -> (u8, Value) {
        loop {
            if let Some(head) = self.held.get(..5) {
                let length = u32::from_be_bytes(head[1..5].try_into().unwrap()) as usize;
                if self.held.len() >= 5 + length {
                    let frame: Vec<u8> = self.held.drain(..5 + length).collect();
                    return (frame[0], serde_json::from_slice(&frame[5..]).unwrap());
                }
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.unwrap().unwrap().unwrap();
            self.held.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    async fn event(&mut self) -> (String, String) {
        let (flags, message) = self.next().await;
        assert_eq!(flags, 0, "{message}");
        let event = &message["event"].get("filesystem").unwrap_or(&message["filesystem"]);
        (event["type"].as_str().unwrap().to_owned(), event["name"].as_str().unwrap().to_owned())
    }

    async fn events(&mut self, count: usize) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.event().await);
        }
        events
    }
}

fn told(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(kind, name)| (format!("EVENT_TYPE_{kind}"), (*name).to_owned())).collect()
}

#[tokio::test]
async fn stat_describes_files_links_and_metadata() {
    let rig = Rig::new();
    let file = rig.path("file");
    fs::write(&file, "12345").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(&file, "user.e2b.purpose", b"test", rustix::fs::XattrFlags::empty()).unwrap();
    let entry = rig.call("Stat", json!({ "path": file })).await.unwrap()["entry"].clone();
    assert_eq!(entry["name"], "file");
    assert_eq!(entry["type"], "FILE_TYPE_FILE");
    assert_eq!(entry["size"], "5", "64-bit numbers are texts");
    assert_eq!(entry["mode"], 0o640);
    assert_eq!(entry["permissions"], "-rw-r-----");
    assert_eq!((entry["owner"].clone(), entry["group"].clone()), (json!("root"), json!("root")));
    assert_eq!(entry["metadata"], json!({ "purpose": "test" }));
    assert!(entry["modifiedTime"].as_str().unwrap().ends_with('Z'));
    assert!(entry.get("symlinkTarget").is_none() && entry.get("isSymlink").is_none());

    symlink("file", rig.path("link")).unwrap();
    let link = rig.call("Stat", json!({ "path": rig.path("link") })).await.unwrap()["entry"].clone();
    assert_eq!(link["type"], "FILE_TYPE_FILE");
    assert_eq!(link["mode"], 0o640);
    assert_eq!(link["permissions"], "Lrwxrwxrwx");
    assert_eq!(link["symlinkTarget"], json!(fs::canonicalize(&file).unwrap()));
    assert_eq!(link["isSymlink"], true);

    symlink("nowhere", rig.path("broken")).unwrap();
    let broken = rig.call("Stat", json!({ "path": rig.path("broken") })).await.unwrap()["entry"].clone();
    assert!(broken.get("type").is_none() && broken.get("mode").is_none());
    assert_eq!(broken["symlinkTarget"], json!(rig.path("broken")));

    let odd =
        format!("{}/../{}", rig.dir.path().display(), rig.dir.path().file_name().unwrap().to_str().unwrap());
    let entry = rig.call("Stat", json!({ "path": odd })).await.unwrap()["entry"].clone();
    assert_eq!(entry["path"], json!(odd), "absolute paths are echoed as they came");

    let (code, text) = rig.call("Stat", json!({ "path": rig.path("none") })).await.unwrap_err();
    assert_eq!(code, "not_found");
    assert!(text.starts_with("file not found: lstat /"), "{text}");
    assert_eq!(rig.code("Stat", json!({ "path": format!("{file}/x") })).await, "internal");
    assert_eq!(rig.code("Stat", json!({ "path": "~other/x" })).await, "invalid_argument");
}

#[tokio::test]
async fn make_dir_makes_parents_once() {
    let rig = Rig::new();
    let deep = rig.path("a/b/c");
    let made = rig.call("MakeDir", json!({ "path": deep })).await.unwrap();
    assert_eq!(made["entry"]["type"], "FILE_TYPE_DIRECTORY");
    assert_eq!(fs::metadata(&deep).unwrap().mode() & 0o777, 0o755);
    let (code, text) = rig.call("MakeDir", json!({ "path": deep })).await.unwrap_err();
    assert_eq!((&*code, text), ("already_exists", format!("directory already exists: {deep}")));
    fs::write(rig.path("file"), "").unwrap();
    assert_eq!(rig.code("MakeDir", json!({ "path": rig.path("file") })).await, "invalid_argument");
    assert_eq!(rig.code("MakeDir", json!({ "path": rig.path("file/x") })).await, "internal");
    symlink("nowhere", rig.path("broken")).unwrap();
    assert_eq!(rig.code("MakeDir", json!({ "path": rig.path("broken") })).await, "internal");
}

#[test]
fn only_new_directories_change_hands() {
    let dir = tempfile::tempdir().unwrap();
    change::ensure_dirs(&dir.path().join("a/b"), Owner { uid: 1234, gid: 2345 }).unwrap();
    for (name, owner) in [("", (0, 0)), ("a", (1234, 2345)), ("a/b", (1234, 2345))] {
        let found = fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), owner, "{name}");
    }
}

#[tokio::test]
async fn move_replaces_files_only() {
    let rig = Rig::new();
    fs::write(rig.path("a"), "new").unwrap();
    fs::write(rig.path("b"), "old").unwrap();
    let moved =
        rig.call("Move", json!({ "source": rig.path("a"), "destination": rig.path("b") })).await.unwrap();
    assert_eq!(moved["entry"]["name"], "b");
    assert_eq!(fs::read_to_string(rig.path("b")).unwrap(), "new");
    rig.call("Move", json!({ "source": rig.path("b"), "destination": rig.path("new/dir/c") })).await.unwrap();
    assert_eq!(fs::read_to_string(rig.path("new/dir/c")).unwrap(), "new");
    let (code, text) =
        rig.call("Move", json!({ "source": rig.path("b"), "destination": rig.path("d") })).await.unwrap_err();
    assert_eq!(code, "not_found");
    assert!(text.starts_with("source file not found: "), "{text}");
    let over = json!({ "source": rig.path("new/dir/c"), "destination": rig.path("new") });
    assert_eq!(rig.code("Move", over).await, "internal");
    fs::create_dir(rig.path("empty")).unwrap();
    let over = json!({ "source": rig.path("empty"), "destination": rig.path("new") });
    assert_eq!(rig.code("Move", over).await, "internal");
}

#[tokio::test]
async fn remove_takes_trees_and_nothing() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("a/b")).unwrap();
    fs::write(rig.path("a/b/c"), "").unwrap();
    fs::create_dir(rig.path("kept")).unwrap();
    symlink(rig.path("kept"), rig.path("link")).unwrap();
    for name in ["a", "a", "link", "never/was"] {
        assert_eq!(rig.call("Remove", json!({ "path": rig.path(name) })).await, Ok(json!({})), "{name}");
    }
    assert!(!Path::new(&rig.path("a")).exists() && Path::new(&rig.path("kept")).exists());
    assert_eq!(rig.code("Remove", json!({ "path": "/proc/self/status" })).await, "internal");
}

#[tokio::test]
async fn list_walks_in_order_and_depth() {
    let rig = Rig::new();
    for name in ["root/subdir1/subdir1_1/deep", "root/subdir2"] {
        fs::create_dir_all(rig.path(name)).unwrap();
    }
    for name in ["root/file1.txt", "root/subdir1/file2.txt"] {
        fs::write(rig.path(name), "").unwrap();
    }
    symlink("subdir1", rig.path("root/z-link")).unwrap();
    symlink("root", rig.path("alias")).unwrap();
    let names = |listed: &Value, base: &str| -> Vec<String> {
        let entries = listed["entries"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| {
                entry["path"].as_str().unwrap().strip_prefix(base).unwrap().trim_start_matches('/').to_owned()
            })
            .collect()
    };
    for (root, depth, wanted) in [
        ("root", 0, &["file1.txt", "subdir1", "subdir2", "z-link"][..]),
        ("alias", 1, &["file1.txt", "subdir1", "subdir2", "z-link"]),
        ("root", 2, &["file1.txt", "subdir1", "subdir1/file2.txt", "subdir1/subdir1_1", "subdir2", "z-link"]),
        (
            "root",
            9,
            &[
                "file1.txt",
                "subdir1",
                "subdir1/file2.txt",
                "subdir1/subdir1_1",
                "subdir1/subdir1_1/deep",
                "subdir2",
                "z-link",
            ],
        ),
    ] {
        let listed = rig.call("ListDir", json!({ "path": rig.path(root), "depth": depth })).await.unwrap();
        assert_eq!(names(&listed, &rig.path(root)), wanted, "{root} {depth}");
    }
    assert_eq!(rig.code("ListDir", json!({ "path": rig.path("none") })).await, "not_found");
    let (code, text) = rig.call("ListDir", json!({ "path": rig.path("root/file1.txt") })).await.unwrap_err();
    assert_eq!(
        (&*code, text),
        ("invalid_argument", format!("path is not a directory: {}", rig.path("root/file1.txt")))
    );
    symlink("loop", rig.path("loop")).unwrap();
    assert_eq!(rig.code("ListDir", json!({ "path": rig.path("loop") })).await, "failed_precondition");
    assert_eq!(rig.code("ListDir", json!({ "path": rig.path("root/file1.txt/x") })).await, "internal");
}

#[tokio::test]
async fn the_first_sdks_get_three_fields() {
    let mut rig = Rig::new();
    rig.agent = LEGACY_AGENT;
    fs::write(rig.path("f"), "x").unwrap();
    let entry = rig.call("Stat", json!({ "path": rig.path("f") })).await.unwrap()["entry"].clone();
    assert_eq!(entry, json!({ "name": "f", "type": "FILE_TYPE_FILE", "path": rig.path("f") }));
}

#[tokio::test]
async fn one_new_file_is_exactly_three_events() {
    for recursive in [false, true] {
        let rig = Rig::new();
        let mut frames = rig.watch(json!({ "path": rig.path(""), "recursive": recursive })).await;
        let (_, start) = frames.next().await;
        assert_eq!(start, json!({ "start": {} }));
        for name in ["first", "second"] {
            let response = testing::upload(&rig.app, &rig.path(name), "small").await;
            assert_eq!(response.status(), StatusCode::OK);
        }
        let wanted = ["first", "second"].map(|name| [("CREATE", name), ("CHMOD", name), ("WRITE", name)]);
        assert_eq!(frames.events(6).await, told(wanted.as_flattened()));
    }
}

#[tokio::test]
async fn a_stream_tells_moves_removals_and_entries() {
    let rig = Rig::new();
    fs::create_dir(rig.path("watched")).unwrap();
    let message = json!({ "path": rig.path("watched"), "includeEntry": true });
    let mut frames = rig.watch(message).await;
    frames.next().await;
    fs::write(rig.path("outside"), "123").unwrap();
    fs::rename(rig.path("outside"), rig.path("watched/in")).unwrap();
    let (_, message) = frames.next().await;
    assert_eq!(message["filesystem"]["type"], "EVENT_TYPE_CREATE");
    assert_eq!(message["filesystem"]["entry"]["size"], "3");
    fs::rename(rig.path("watched/in"), rig.path("watched/on")).unwrap();
    fs::rename(rig.path("watched/on"), rig.path("outside")).unwrap();
    chown(rig.path("watched"), Some(0), Some(0)).unwrap();
    fs::remove_dir(rig.path("watched")).unwrap();
    let wanted = [("RENAME", "in"), ("CREATE", "on"), ("RENAME", "on"), ("CHMOD", "."), ("REMOVE", ".")];
    assert_eq!(frames.events(5).await, told(&wanted));
}

#[tokio::test]
async fn a_recursive_watch_follows_the_tree() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("w/old/deep")).unwrap();
    fs::create_dir_all(rig.path("grown/leaf")).unwrap();
    let mut frames = rig.watch(json!({ "path": rig.path("w"), "recursive": true })).await;
    frames.next().await;
    fs::write(rig.path("w/old/deep/f"), "").unwrap();
    assert_eq!(frames.events(1).await, told(&[("CREATE", "old/deep/f")]));
    // A tree that comes with contents is told of, then watched.
    fs::write(rig.path("grown/leaf/a"), "").unwrap();
    fs::rename(rig.path("grown"), rig.path("w/grown")).unwrap();
    assert_eq!(
        frames.events(3).await,
        told(&[("CREATE", "grown"), ("CREATE", "grown/leaf"), ("CREATE", "grown/leaf/a")])
    );
    fs::write(rig.path("w/grown/leaf/b"), "").unwrap();
    assert_eq!(frames.events(1).await, told(&[("CREATE", "grown/leaf/b")]));
    // Renamed within: the new name from then on.
    fs::rename(rig.path("w/old"), rig.path("w/new")).unwrap();
    let moved = [("RENAME", "old"), ("CREATE", "new"), ("CREATE", "new/deep"), ("CREATE", "new/deep/f")];
    assert_eq!(frames.events(4).await, told(&moved));
    fs::remove_file(rig.path("w/new/deep/f")).unwrap();
    assert_eq!(frames.events(1).await, told(&[("REMOVE", "new/deep/f")]));
    // Taken away: silent from then on; a removed directory is told of once.
    fs::rename(rig.path("w/grown"), rig.path("gone")).unwrap();
    assert_eq!(frames.events(1).await, told(&[("RENAME", "grown")]));
    fs::write(rig.path("gone/leaf/c"), "").unwrap();
    fs::remove_dir(rig.path("w/new/deep")).unwrap();
    assert_eq!(frames.events(1).await, told(&[("REMOVE", "new/deep")]));
}

#[tokio::test]
async fn watches_refuse_what_is_no_directory() {
    let rig = Rig::new();
    fs::write(rig.path("file"), "").unwrap();
    for (name, code) in [("none", "not_found"), ("file", "invalid_argument"), ("file/x", "internal")] {
        let (flags, end) = rig.watch(json!({ "path": rig.path(name) })).await.next().await;
        assert_eq!((flags, end["error"]["code"].as_str().unwrap()), (2, code));
        assert_eq!(rig.code("CreateWatcher", json!({ "path": rig.path(name) })).await, code);
    }
    let mut frames = rig.watch(json!({ "path": rig.path("") })).await;
    assert_eq!(frames.next().await, (0, json!({ "start": {} })));
}

#[tokio::test]
async fn polling_sees_all_that_was_before_it() {
    let rig = Rig::new();
    let made = rig.call("CreateWatcher", json!({ "path": rig.path("") })).await.unwrap();
    let id = made["watcherId"].as_str().unwrap().to_owned();
    assert!(id.len() == 21 && id.starts_with('w'));
    let poll = json!({ "watcherId": id });
    assert_eq!(rig.call("GetWatcherEvents", poll.clone()).await, Ok(json!({})));
    testing::upload(&rig.app, &rig.path("f"), "x").await;
    let events = rig.call("GetWatcherEvents", poll.clone()).await.unwrap();
    let kinds: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["EVENT_TYPE_CREATE", "EVENT_TYPE_CHMOD", "EVENT_TYPE_WRITE"]);
    assert_eq!(rig.call("GetWatcherEvents", poll.clone()).await, Ok(json!({})), "told once");
    assert_eq!(rig.call("RemoveWatcher", poll.clone()).await, Ok(json!({})));
    for method in ["GetWatcherEvents", "RemoveWatcher"] {
        let (code, text) = rig.call(method, poll.clone()).await.unwrap_err();
        assert_eq!((&*code, text), ("not_found", format!("watcher with id {id} not found")));
    }
}

#[tokio::test]
async fn keepalives_fill_silence() {
    let rig = Rig::new();
    let mut request = rig.request("WatchDir", "application/connect+json", Vec::new());
    let text = json!({ "path": rig.path("") }).to_string();
    let mut body = vec![0, 0, 0, 0, u8::try_from(text.len()).unwrap()];
    body.extend_from_slice(text.as_bytes());
    *request.body_mut() = Body::from(body);
    request.headers_mut().insert("keepalive-ping-interval", "1".parse().unwrap());
    let response = rig.app.clone().oneshot(request).await.unwrap();
    let mut frames = Frames { body: response.into_body(), held: Vec::new() };
    assert_eq!(frames.next().await.1, json!({ "start": {} }));
    assert_eq!(frames.next().await.1, json!({ "keepalive": {} }));
}

#[tokio::test]
async fn a_lost_event_ends_the_watch() {
    let rig = Rig::new();
    let guest = testing::guest(None);
    let service = FilesystemService::new(guest);
    let wish =
        watching::Wish { path: rig.dir.path().into(), recursive: false, entries: false, network: false };
    let subscription = service.subscribe(wish).await.unwrap();
    // More than the kernel keeps, while nobody reads: this thread is the pump's too.
    let limit: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    for number in 0..=limit {
        fs::write(rig.path(&number.to_string()), "").unwrap();
    }
    let mut stream = Box::pin(watching::stream(subscription, Duration::from_secs(90), None));
    assert!(stream.next().await.unwrap().is_ok());
    let error = loop {
        match tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(stream.next().await.is_none());
}

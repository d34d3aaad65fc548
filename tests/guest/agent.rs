//! A running guest and a small Connect client for it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// No single answer takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// A guest; ended, with its processes, when dropped.
pub(crate) struct Agent {
    process: Child,
    dir: tempfile::TempDir,
}

/// One HTTP answer whose body is still to be read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    body: BufReader<UnixStream>,
    chunked: bool,
    length: usize,
}

/// The frames of one stream: its messages, and the end frame as `{"end":...}`.
pub(crate) struct Frames {
    answer: Answer,
    buffer: Vec<u8>,
}

impl Agent {
    /// A guest that has its identity.
    pub(crate) fn start() -> Self {
        let agent = Self::unknown();
        let mut control = agent.control();
        assert_eq!(exchange(&mut control, &init(None)), json!({"type": "done", "seq": 1, "error": null}));
        agent
    }

    /// A guest before its first Init.
    pub(crate) fn unknown() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_firkin-guest"))
            .arg("--listen")
            .arg(dir.path().join("link"))
            .spawn()
            .unwrap();
        let agent = Self { process, dir };
        let patience = Instant::now() + LIMIT;
        while UnixStream::connect(agent.socket()).is_err() {
            assert!(Instant::now() < patience, "the guest listens in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("link")
    }

    /// A stream with its handshake line sent, and the guest's line.
    pub(crate) fn open(&self, hello: &str) -> (UnixStream, String) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(hello.as_bytes()).unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        (stream, String::from_utf8(line).unwrap())
    }

    pub(crate) fn control(&self) -> UnixStream {
        let (stream, line) = self.open(&format!("CONTROL 1 {}\n", "ab".repeat(16)));
        assert_eq!(line, "OK 1");
        stream
    }

    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (mut stream, line) = self.open("CONNECT 49983\n");
        assert_eq!(line, "OK");
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        Answer::read(stream)
    }

    /// A unary call of `process.Process`: status and JSON body.
    pub(crate) fn call(&self, method: &str, message: &Value) -> (u16, Value) {
        let path = format!("/process.Process/{method}");
        let headers = [("content-type", "application/json"), ("content-encoding", "identity")];
        let answer = self.request("POST", &path, &headers, message.to_string().as_bytes());
        let status = answer.status;
        (status, serde_json::from_slice(&answer.text()).unwrap())
    }

    /// A streaming call of `process.Process`, as the SDKs send it.
    pub(crate) fn stream(&self, method: &str, message: &Value, headers: &[(&str, &str)]) -> Frames {
        self.stream_of(method, std::slice::from_ref(message), headers)
    }

    /// The same with any number of messages.
    pub(crate) fn stream_of(&self, method: &str, messages: &[Value], headers: &[(&str, &str)]) -> Frames {
        let mut framed = Vec::new();
        for message in messages {
            let body = message.to_string().into_bytes();
            framed.push(0);
            framed.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            framed.extend(body);
        }
        let mut all =
            vec![("content-type", "application/connect+json"), ("connect-content-encoding", "identity")];
        all.extend(headers);
        let answer = self.request("POST", &format!("/process.Process/{method}"), &all, &framed);
        assert_eq!(answer.status, 200, "streams answer 200 whatever happens");
        Frames { answer, buffer: Vec::new() }
    }

    /// A shell command without standard input, to its end.
    pub(crate) fn shell(&self, script: &str, headers: &[(&str, &str)]) -> Vec<Value> {
        self.stream("Start", &shell(script), headers).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its spawner dies with it, and what the tests started ends by itself or by a signal.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Answer {
    fn read(stream: UnixStream) -> Self {
        let mut body = BufReader::new(stream);
        let mut line = String::new();
        body.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Self { status, body, chunked: false, length: 0 };
        loop {
            line.clear();
            answer.body.read_line(&mut line).unwrap();
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                return answer;
            }
            answer.chunked |= header == "transfer-encoding: chunked";
            if let Some(length) = header.strip_prefix("content-length: ") {
                answer.length = length.parse().unwrap();
            }
        }
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut length = std::mem::take(&mut self.length);
        if self.chunked {
            let mut line = String::new();
            self.body.read_line(&mut line).unwrap();
            length = usize::from_str_radix(line.trim(), 16).ok()?;
        }
        let mut bytes = vec![0; length];
        self.body.read_exact(&mut bytes).unwrap();
        if self.chunked {
            self.body.read_exact(&mut [0; 2]).unwrap();
        }
        (length > 0).then_some(bytes)
    }

    pub(crate) fn text(mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.chunk()).flatten().collect()
    }
}

impl Iterator for Frames {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((header, rest)) = self.buffer.split_at_checked(5) {
                let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
                if let Some(body) = rest.get(..length) {
                    let value: Value = serde_json::from_slice(body).unwrap();
                    let value = if header[0] == 2 { json!({ "end": value }) } else { value["event"].clone() };
                    self.buffer.drain(..5 + length);
                    return Some(value);
                }
            }
            let more = self.answer.chunk()?;
            self.buffer.extend(more);
        }
    }
}

/// One control message and its answer; what the guest says by itself in between is passed over.
pub(crate) fn exchange(control: &mut UnixStream, message: &Value) -> Value {
    let body = message.to_string().into_bytes();
    control.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    control.write_all(&body).unwrap();
    hear(control, |message| message["type"] == "done")
}

/// The next control message that is wanted; others are passed over.
pub(crate) fn hear(control: &mut UnixStream, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let mut length = [0; 4];
        control.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        control.read_exact(&mut body).unwrap();
        let message: Value = serde_json::from_slice(&body).unwrap();
        if wanted(&message) {
            return message;
        }
    }
}

/// An Init for root, with or without an access token.
pub(crate) fn init(token: Option<&str>) -> Value {
    json!({"type": "init", "seq": 1, "init": {
        "sandbox_id": "i0123456789abcdefghij", "template_id": "base", "env_vars": {"FOO": "bar"},
        "access_token": token, "default_user": "root", "default_workdir": null, "now_unix_ns": 0, "entropy": "AAAA",
    }})
}

pub(crate) fn shell(script: &str) -> Value {
    json!({"process": {"cmd": "/bin/sh", "args": ["-c", script]}, "stdin": false})
}

/// All output of one kind among these events.
pub(crate) fn output(events: &[Value], kind: &str) -> String {
    let bytes: Vec<u8> = events
        .iter()
        .filter_map(|event| event["data"][kind].as_str())
        .flat_map(|text| STANDARD.decode(text).unwrap())
        .collect();
    String::from_utf8(bytes).unwrap()
}

/// The pid of a stream's first event.
pub(crate) fn started(frames: &mut Frames) -> u64 {
    frames.next().unwrap()["start"]["pid"].as_u64().expect("the first event is start")
}

/// The process's end: the event before the stream's empty end frame.
pub(crate) fn ended(events: &[Value]) -> &Value {
    assert_eq!(events.last(), Some(&json!({"end": {}})));
    &events[events.len() - 2]["end"]
}

/// The error that a stream ended with.
pub(crate) fn failure(events: &[Value]) -> (&str, &str) {
    let error = &events.last().unwrap()["end"]["error"];
    (error["code"].as_str().unwrap(), error["message"].as_str().unwrap())
}

pub(crate) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

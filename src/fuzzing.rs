//! What `fuzz/` drives: a function a format, each on the very parsers of the product, each with
//! properties that must hold of every input. A broken one panics.
//!
//! The functions live beside what they call; here they only get a runtime and a name. The corpus
//! in `fuzz/corpus` is replayed through them by the ordinary tests.

use std::future::Future;

use crate::{guest, proxy, routes, runtime, warden};

/// A target: takes any bytes, returns, or panics where a property does not hold.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its program and of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("connect_envelopes", connect_envelopes),
    ("rpc_messages", rpc_messages),
    ("json_bodies", json_bodies),
    ("multipart", multipart),
    ("file_headers", file_headers),
    ("signatures_paths", signatures_paths),
    ("host_routing", host_routing),
    ("link", link),
    ("control", control),
    ("guest_answers", guest_answers),
    ("warden", warden),
];

/// A request to the process service, through all of envd's layers.
pub fn connect_envelopes(data: &[u8]) {
    block_on(guest::fuzzing::envelopes(data));
}

/// An RPC message, as JSON and as protobuf.
pub fn rpc_messages(data: &[u8]) {
    guest::fuzzing::message(data);
}

/// A body, query or path of the control plane.
pub fn json_bodies(data: &[u8]) {
    routes::fuzzing::request(data);
}

/// An upload's form.
pub fn multipart(data: &[u8]) {
    block_on(guest::transfer::fuzzing::form(data));
}

/// The headers that `/files` reads.
pub fn file_headers(data: &[u8]) {
    guest::transfer::fuzzing::headers(data);
}

/// The query of `/files`, its signature, and the path in it.
pub fn signatures_paths(data: &[u8]) {
    guest::fuzzing::signed_path(data);
}

/// The head of a request to the gateway: whose it is, and what of it crosses.
pub fn host_routing(data: &[u8]) {
    proxy::fuzzing::head(data);
}

/// The first line of a stream, as all its readers take it.
pub fn link(data: &[u8]) {
    let read = block_on(runtime::fuzzing::line(data));
    let guest = block_on(guest::fuzzing::line(data));
    assert_eq!(read, guest, "gateway and guest read the same line");
}

/// The control stream, at both ends.
pub fn control(data: &[u8]) {
    block_on(runtime::fuzzing::conversation(data));
    guest::fuzzing::control(data);
}

/// What a guest answers to the gateway's own calls.
pub fn guest_answers(data: &[u8]) {
    block_on(runtime::fuzzing::answers(data));
}

/// Packets of the warden's socket, at both ends.
pub fn warden(data: &[u8]) {
    warden::fuzzing::packet(data);
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = runtime();
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}

#[expect(clippy::expect_used, reason = "a target ends by a panic")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_target_holds_on_its_corpus() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let (mut bytes, mut broken) = (0, Vec::new());
        for (name, target) in TARGETS {
            let mut files = 0;
            for entry in fs::read_dir(root.join(name)).expect("a corpus") {
                let path = entry.expect("an entry").path();
                let data = fs::read(&path).expect("a file");
                bytes += data.len();
                files += 1;
                if std::panic::catch_unwind(|| target(&data)).is_err() {
                    broken.push(path);
                }
            }
            assert!(files > 2, "the corpus of {name} is nearly empty");
        }
        assert!(broken.is_empty(), "properties do not hold on {broken:#?}");
        assert!(bytes < 300 << 10, "the corpus has {bytes} bytes: keep it short");
    }

    #[test]
    fn every_target_has_a_program_and_every_program_a_target() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the workspace");
        let mut programs: Vec<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\""))
            .collect();
        programs.sort_unstable();
        let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert_eq!(programs, names);
        for name in names {
            let program = fs::read_to_string(root.join(format!("targets/{name}.rs"))).expect("a program");
            assert!(program.contains(&format!("firkin::fuzzing::{name},")), "{name} runs its own target");
        }
    }
}

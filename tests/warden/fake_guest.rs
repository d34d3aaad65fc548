//! A guest for the tests of its host side: compiled on its own, statically, by `server.rs`.
//!
//! It speaks the link's handshake and answers every control message. What follows `CONNECT 49983`
//! is lines: `exit` ends it, `id` tells who it is, `echo ADDRESS` makes something listen there that
//! sends every byte back; `write`, `read`, `remove`, `rename`, `mkdir` and `view` are of files.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener},
    os::{
        fd::FromRawFd,
        unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    sync::Mutex,
    thread,
};

/// The attachment that counts.
static CONTROL: Mutex<Option<UnixStream>> = Mutex::new(None);

fn main() {
    // SAFETY: the boot contract: descriptor 3 is the link's listening socket.
    let link = unsafe { UnixListener::from_raw_fd(3) };
    for stream in link.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

fn serve(mut stream: UnixStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
        ["CONTROL", "1", _] => {
            let newest = stream.try_clone().ok()?;
            if let Some(earlier) = CONTROL.lock().ok()?.replace(newest) {
                let _ = earlier.shutdown(Shutdown::Both);
            }
            stream.write_all(b"OK 1\n").ok()?;
            control(reader, stream)
        }
        ["CONNECT", "49983"] => {
            stream.write_all(b"OK\n").ok()?;
            commands(reader, stream)
        }
        _ => stream.write_all(b"ERR closed\n").ok(),
    }
}

fn control(mut reader: BufReader<UnixStream>, mut stream: UnixStream) -> Option<()> {
    loop {
        let mut length = [0; 4];
        reader.read_exact(&mut length).ok()?;
        let mut json = vec![0; u32::from_be_bytes(length) as usize];
        reader.read_exact(&mut json).ok()?;
        let json = String::from_utf8(json).ok()?;
        let seq: String = json.split_once("\"seq\":")?.1.chars().take_while(char::is_ascii_digit).collect();
        let answer = format!(r#"{{"type":"done","seq":{seq},"error":null}}"#);
        stream.write_all(&u32::try_from(answer.len()).ok()?.to_be_bytes()).ok()?;
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

fn commands(mut reader: BufReader<UnixStream>, mut stream: UnixStream) -> Option<()> {
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 0 {
        let answer = match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
            ["exit"] => std::process::exit(0),
            ["id"] => identity(),
            ["echo", address] => match TcpListener::bind(address) {
                Ok(listener) => {
                    thread::spawn(move || echo(&listener));
                    "listening".to_owned()
                }
                Err(error) => error.to_string(),
            },
            ["write", path, text] => done(fs::write(path, text)),
            ["mkdir", path] => done(fs::create_dir_all(path)),
            ["link", from, to] => done(fs::hard_link(from, to)),
            ["remove", path] => done(fs::remove_file(path).or_else(|_| fs::remove_dir_all(path))),
            ["rename", from, to] => done(fs::rename(from, to)),
            ["read", path] => match fs::read_to_string(path) {
                Ok(text) => format!("text {text}"),
                Err(error) => error.to_string(),
            },
            ["view", top] => {
                let mut lines = Vec::new();
                view(std::path::Path::new(top), &mut lines);
                lines.sort();
                lines.join("|")
            }
            _ => "what?".to_owned(),
        };
        writeln!(stream, "{answer}").ok()?;
        line.clear();
    }
    Some(())
}

fn done(outcome: io::Result<()>) -> String {
    outcome.map_or_else(|error| error.to_string(), |()| "done".to_owned())
}

/// Everything below a directory, one text each.
fn view(path: &std::path::Path, lines: &mut Vec<String>) {
    let Ok(stat) = fs::symlink_metadata(path) else { return };
    let text = if stat.is_file() { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let links = if stat.is_dir() { 0 } else { stat.nlink() };
    let modified = (stat.mtime(), stat.mtime_nsec());
    let owner = (stat.uid(), stat.gid());
    lines.push(format!("{} {:o} {owner:?} {links} {modified:?} {text}", path.display(), stat.mode()));
    if stat.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            view(&entry.path(), lines);
        }
    }
}

fn identity() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
    let uid = uid.split_whitespace().nth(1).unwrap_or_default();
    format!("{} {uid} {}", name.trim(), std::process::id())
}

fn echo(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let _ = io::copy(&mut &stream, &mut &stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
}

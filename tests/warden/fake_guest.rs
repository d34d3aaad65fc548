//! A guest for the tests of its host side: compiled on its own, statically, by `server.rs`.
//!
//! It speaks the link's handshake; what follows `CONNECT 49983` is one line: `exit` ends it, `id`
//! tells who it is, `eat` allocates 64 MiB, anything else comes back. Port 8000 of 127.0.0.1 and port
//! 8001 of ::1 echo.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::{
        fd::FromRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    thread,
};

fn main() {
    for address in ["127.0.0.1:8000", "[::1]:8001"] {
        let listener = TcpListener::bind(address).expect("loopback is up");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
    }
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
        ["CONTROL", "1", _] => stream.write_all(b"OK 1\n").ok()?,
        ["CONNECT", "49983"] => stream.write_all(b"OK\n").ok()?,
        _ => return stream.write_all(b"ERR closed\n").ok(),
    }
    line.clear();
    while reader.read_line(&mut line).ok()? > 0 {
        match line.trim_end() {
            "exit" => std::process::exit(0),
            "id" => {
                let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
                let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
                let uid = uid.split_whitespace().nth(1).unwrap_or_default();
                writeln!(stream, "{} {uid} {}", name.trim(), std::process::id()).ok()?;
            }
            other => writeln!(stream, "{other}").ok()?,
        }
        line.clear();
    }
    Some(())
}

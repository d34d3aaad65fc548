//! The log in a file and in bounded room: `--log-file`.
//!
//! ```text
//!   gateway, warden, workers: stderr --pipe--> a process of its own --> FILE, FILE.1, ... FILE.n
//! ```
//! A process of its own, because the gateway may not write where root's logs are, and because a full
//! disk must not stop anybody: what cannot be written is dropped, and the pipe is read on. It ends when
//! the last of the others has.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::Signal,
};

use crate::{
    config::LogFile,
    warden::{close_others, fork_into, ignore},
};

/// Bytes on the way.
const PIPE: i32 = 1 << 20;
/// Bytes read at a time; a longer line is cut in two.
const CHUNK: usize = 64 << 10;

/// A log file with its older ones.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    /// Bytes of one file.
    most: u64,
    /// Files, the present one included.
    count: u32,
    file: Option<File>,
    written: u64,
}

/// What is said on stderr goes into the file. Dropping this gives the old stderr back.
#[derive(Debug)]
pub(super) struct Diverted {
    stderr: OwnedFd,
}

// === impl Diverted ===

impl Diverted {
    /// Starts the process that writes the file. Called as root, with one thread.
    pub(super) fn start(log: &LogFile) -> io::Result<Self> {
        let mut file = Rotating::open(log)?;
        let (reader, writer) = io::pipe()?;
        // A disk that is slow for a moment holds nobody up; less is no failure.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE));
        let reader = OwnedFd::from(reader);
        fork_into(move || {
            // A Ctrl-C is for the server; its last words are still to come.
            let ignored = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().try_for_each(ignore);
            let kept = file.file.as_ref().map(|file| file.as_fd());
            let alone = close_others(&[Some(reader.as_fd()), kept].into_iter().flatten().collect::<Vec<_>>());
            if ignored.and(alone).is_err() || quiet().is_err() {
                return 1;
            }
            file.take(File::from(reader));
            0
        })?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stderr(&writer)?;
        Ok(Self { stderr })
    }
}

impl Drop for Diverted {
    fn drop(&mut self) {
        // Whoever started the server is to see why it failed.
        let _ = nix::unistd::dup2_stderr(&self.stderr);
    }
}

/// Whoever waits for the end of the server's own streams must not wait for this process.
fn quiet() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(nix::unistd::dup2_stderr(&null)?)
}

// === impl Rotating ===

impl Rotating {
    fn open(log: &LogFile) -> io::Result<Self> {
        let (file, written) = append(&log.path)?;
        let (path, count) = (log.path.clone(), log.count);
        Ok(Self { path, most: u64::from(log.mb) << 20, count, file: Some(file), written })
    }

    /// Until everybody else has ended.
    fn take(&mut self, mut from: impl Read) {
        let mut buffer = vec![0; CHUNK];
        let mut filled = 0;
        loop {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => return self.write(&buffer[..filled]),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            // Whole lines, so that none is in two files.
            let whole = match buffer[..filled].iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if filled == buffer.len() => filled,
                None => continue,
            };
            self.write(&buffer[..whole]);
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }

    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.written > 0 && self.written + length > self.most {
            self.rotate();
        }
        if self.file.is_none() {
            (self.file, self.written) =
                append(&self.path).map_or((None, 0), |(file, length)| (Some(file), length));
        }
        if let Some(file) = &mut self.file {
            // A full disk drops lines; it must not hold up those who say them.
            let _ = file.write_all(lines);
            self.written += length;
        }
    }

    /// The present file becomes the first of the older ones; the last of them goes.
    fn rotate(&mut self) {
        self.file = None;
        for number in (1..self.count).rev() {
            let from = if number == 1 { self.path.clone() } else { self.older(number - 1) };
            // One that is not there has nothing to be moved.
            let _ = fs::rename(from, self.older(number));
        }
        if self.count == 1 || fs::metadata(&self.path).is_ok() {
            // Nothing older is kept, or it cannot be moved: the bound holds all the same.
            let _ = OpenOptions::new().write(true).truncate(true).open(&self.path);
        }
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Opens for appending, only for the owner to read; its length beside it.
fn append(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, count: u32) -> Rotating {
        let path = dir.join("firkin.log");
        let mut rotating = Rotating::open(&LogFile { path, mb: 1, count }).unwrap();
        rotating.most = 100;
        rotating
    }

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap_or_default()
    }

    #[test]
    fn files_are_bounded_in_size_and_number_and_no_line_is_in_two() {
        let dir = tempfile::tempdir().unwrap();
        let text = "line 0001\n".repeat(100);
        log(dir.path(), 3).take(text.as_bytes());
        // All of it came as one piece: larger than a file may be, and in one all the same.
        assert_eq!(read(dir.path(), "firkin.log"), text);
        let mut log = log(dir.path(), 3);
        for number in 0..100 {
            log.write(format!("line {number:04}\n").as_bytes());
        }
        let names = ["firkin.log", "firkin.log.1", "firkin.log.2"];
        let files = names.map(|name| read(dir.path(), name));
        for file in &files {
            assert!(file.len() <= 100 && file.ends_with('\n') && file.starts_with("line "), "{file:?}");
        }
        assert!(files[0].ends_with("line 0099\n"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_log_goes_on_where_it_ended_and_one_file_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), 1).write(b"first\n");
        let mut second = log(dir.path(), 1);
        second.write(b"second\n");
        assert_eq!(read(dir.path(), "firkin.log"), "first\nsecond\n");
        second.write(&[b'x'; 95]);
        assert_eq!(read(dir.path(), "firkin.log").len(), 95);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn long_lines_are_cut_and_the_end_without_a_newline_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let text = [vec![b'a'; 3 * CHUNK], b"\nend".to_vec()].concat();
        log(dir.path(), 50).take(&text[..]);
        let size: u64 =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(size, text.len() as u64);
        assert!(read(dir.path(), "firkin.log").ends_with("end"));
    }

    #[test]
    fn a_link_in_place_of_the_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("firkin.log")).unwrap();
        let file = LogFile { path: dir.path().join("firkin.log"), mb: 1, count: 2 };
        assert!(Rotating::open(&file).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}

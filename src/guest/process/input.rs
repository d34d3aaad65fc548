//! The way into a process: its standard input, or the keyboard side of its terminal.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use nix::unistd::write;
use tokio::{io::unix::AsyncFd, sync::Mutex as AsyncMutex};

use crate::guest::{
    failure,
    pty::{self, Size},
};

/// Why input was not taken; the texts are envd's (contract/sandbox 3).
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// There is no pipe: it was not asked for, or closed, or the process has a terminal.
    #[error("error writing to stdin: stdin not enabled or closed")]
    NoStdin,
    /// The process has no terminal.
    #[error("error writing to tty: tty not assigned to process")]
    NoTty,
    /// The process has no terminal to resize.
    #[error("error resizing tty: tty not assigned to process")]
    NoTtyToResize,
    /// The kernel refused the size.
    #[error("error resizing tty: {text}", text = failure::text(.0))]
    Resize(io::Error),
    /// A terminal's input cannot be closed on its own.
    #[error("error closing stdin: cannot close stdin for PTY process - send Ctrl+D (0x04) instead")]
    CloseTty,
    /// The process no longer reads.
    #[error("error writing to {0}: {text}", text = failure::text(.1))]
    Write(&'static str, io::Error),
}

/// Where input goes. Without a writer: `/dev/null`, or closed.
#[derive(Debug)]
pub(crate) struct Input {
    tty: bool,
    writer: Mutex<Option<Arc<Writer>>>,
}

/// One descriptor that several calls may write to: whole inputs do not mix.
#[derive(Debug)]
pub(crate) struct Writer {
    fd: Arc<AsyncFd<OwnedFd>>,
    turn: AsyncMutex<()>,
}

// === impl Input ===

impl Input {
    /// A process whose standard input is this pipe, or `/dev/null`.
    pub(super) fn pipe(fd: Option<Arc<AsyncFd<OwnedFd>>>) -> Self {
        Self { tty: false, writer: Mutex::new(fd.map(Writer::new)) }
    }

    /// A process with this terminal.
    pub(super) fn tty(fd: Arc<AsyncFd<OwnedFd>>) -> Self {
        Self { tty: true, writer: Mutex::new(Some(Writer::new(fd))) }
    }

    /// Writes all of it to the pipe; waits while the process does not read.
    pub(crate) async fn write_stdin(&self, bytes: &[u8]) -> Result<(), InputError> {
        let writer = self.writer(false).ok_or(InputError::NoStdin)?;
        writer.write_all(bytes).await.map_err(|error| InputError::Write("stdin", error))
    }

    /// Writes all of it to the terminal.
    pub(crate) async fn write_tty(&self, bytes: &[u8]) -> Result<(), InputError> {
        let writer = self.writer(true).ok_or(InputError::NoTty)?;
        writer.write_all(bytes).await.map_err(|error| InputError::Write("tty", error))
    }

    /// Gives the terminal a new size.
    pub(crate) fn resize(&self, size: Size) -> Result<(), InputError> {
        let writer = self.writer(true).ok_or(InputError::NoTtyToResize)?;
        pty::resize(writer.fd.get_ref(), size).map_err(InputError::Resize)
    }

    /// Closes the pipe, once writes under way are done. Closing twice is fine.
    pub(crate) fn close(&self) -> Result<(), InputError> {
        if self.tty {
            return Err(InputError::CloseTty);
        }
        self.release();
        Ok(())
    }

    /// Lets go of the descriptor: the process has ended.
    pub(super) fn release(&self) {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn writer(&self, tty: bool) -> Option<Arc<Writer>> {
        if self.tty != tty {
            return None;
        }
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Writer ===

impl Writer {
    fn new(fd: Arc<AsyncFd<OwnedFd>>) -> Arc<Self> {
        Arc::new(Self { fd, turn: AsyncMutex::new(()) })
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        // Held over the await on purpose: it is the queue of writers, and guards nothing else.
        let _turn = self.turn.lock().await;
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| write(fd.get_ref(), bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

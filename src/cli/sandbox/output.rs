//! Where a process's output goes: a thread writes it, so that a pipe that nobody empties stops
//! neither signals nor the connection. What waits is bounded; beyond it the sender waits.

use std::{
    io::{self, Write as _},
    sync::Arc,
    thread,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// The most bytes that wait for this program's own reader. A reader may stop for as long as it
/// likes before there are so many; later the server ends the connection.
const WAITING: usize = 64 << 20;

/// The hold on the thread.
#[derive(Debug)]
pub(super) struct Output {
    queue: mpsc::UnboundedSender<Piece>,
    room: Arc<Semaphore>,
}

/// Resolves when everything is written, or when nothing more can be.
pub(super) type Written = oneshot::Receiver<io::Result<()>>;

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
}

struct Piece {
    channel: Channel,
    data: Vec<u8>,
    /// Its share of what may wait.
    _room: OwnedSemaphorePermit,
}

// === impl Output ===

impl Output {
    /// Starts the thread. It ends when this is dropped and everything is written.
    pub(super) fn start() -> (Self, Written) {
        let (queue, pieces) = mpsc::unbounded_channel();
        let (done, written) = oneshot::channel();
        thread::spawn(move || {
            let _ = done.send(write(pieces));
        });
        (Self { queue, room: Arc::new(Semaphore::new(WAITING)) }, written)
    }

    /// Puts data in its place; waits while too much is there.
    pub(super) async fn put(&self, channel: Channel, data: Vec<u8>) {
        let size = u32::try_from(data.len().clamp(1, WAITING)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(size).await else { return };
        // The thread tells by itself why it ended.
        let _ = self.queue.send(Piece { channel, data, _room: room });
    }
}

fn write(mut pieces: mpsc::UnboundedReceiver<Piece>) -> io::Result<()> {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    while let Some(Piece { channel, data, .. }) = pieces.blocking_recv() {
        match channel {
            Channel::Stdout => {
                out.write_all(&data)?;
                out.flush()?;
            }
            // Output goes on when nobody reads the errors.
            Channel::Stderr => {
                let _ = err.write_all(&data);
            }
        }
    }
    Ok(())
}

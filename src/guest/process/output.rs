//! A process's output on its way to whoever listens.
//!
//! Each stream (stdout, stderr or the terminal) has one pump task. A read becomes one chunk; the
//! chunk goes to every subscriber before the next read, so that a slow subscriber holds the
//! process back instead of filling memory, and nothing is kept for subscribers to come. Without
//! subscribers output is read and dropped: a process never blocks because nobody listens.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
};

use crate::{guest::reap::Exit, wire::rpc::process::process_event::EndEvent};

/// Chunks that may wait for one subscriber.
const SUBSCRIBER_CHUNKS: usize = 16;
/// The largest read of a pipe, and so the largest event (contract/sandbox 3).
pub(super) const PIPE_CHUNK: usize = 32 << 10;
/// The largest read of a terminal.
pub(super) const TTY_CHUNK: usize = 16 << 10;
/// What is still taken from a pipe that others hold open after the process was told to end.
const LAST_CHUNKS: usize = 64;

/// Where a chunk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal, which mixes both.
    Pty,
}

/// What a subscriber is sent.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// Output.
    Data(Source, Bytes),
    /// The last one.
    End(EndEvent),
}

/// The subscribers of one process.
#[derive(Debug, Default)]
pub(crate) struct Audience(Mutex<Seats>);

#[derive(Debug, Default)]
struct Seats {
    subscribers: Vec<mpsc::Sender<Message>>,
    end: Option<EndEvent>,
}

// === impl Audience ===

impl Audience {
    /// From now on everything; only the end, when that has come.
    pub(crate) fn subscribe(&self) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(SUBSCRIBER_CHUNKS);
        let mut seats = self.seats();
        if let Some(end) = &seats.end {
            // A new channel has room.
            let _ = sender.try_send(Message::End(end.clone()));
        } else {
            seats.subscribers.push(sender);
        }
        receiver
    }

    /// Gives a message to everyone, as slowly as the slowest takes it.
    async fn tell(&self, message: Message) {
        let subscribers = {
            let mut seats = self.seats();
            seats.subscribers.retain(|subscriber| !subscriber.is_closed());
            seats.subscribers.clone()
        };
        for subscriber in subscribers {
            // One that hung up meanwhile is dropped at the next message.
            let _ = subscriber.send(message.clone()).await;
        }
    }

    /// Tells the end, once; later subscribers get it at once.
    pub(super) async fn close(&self, end: EndEvent) {
        let subscribers = {
            let mut seats = self.seats();
            seats.end = Some(end.clone());
            std::mem::take(&mut seats.subscribers)
        };
        for subscriber in subscribers {
            let _ = subscriber.send(Message::End(end.clone())).await;
        }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the pump may still wait for output.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Set when the process was collected.
    pub(super) exit: watch::Receiver<Option<Exit>>,
    /// Set when a client sent a signal: then the process's end is the output's end.
    pub(super) signalled: watch::Receiver<bool>,
}

impl Patience {
    /// Resolves when the process has ended after a client's signal, whatever its children hold.
    async fn over(&mut self) {
        // An error means that the sender is gone with the process.
        let _ = self.signalled.wait_for(|signalled| *signalled).await;
        let _ = self.exit.wait_for(Option::is_some).await;
    }
}

/// Reads until every writer has closed, or patience is over.
pub(super) async fn pump<F: AsRawFd + AsFd>(
    fd: Arc<AsyncFd<F>>,
    source: Source,
    audience: Arc<Audience>,
    mut patience: Patience,
) {
    let chunk = if source == Source::Pty { TTY_CHUNK } else { PIPE_CHUNK };
    loop {
        tokio::select! {
            biased;
            read = next(&fd, chunk) => match read {
                Some(bytes) => audience.tell(Message::Data(source, bytes)).await,
                None => return,
            },
            () = patience.over() => break,
        }
    }
    for _ in 0..LAST_CHUNKS {
        match read_chunk(fd.get_ref(), chunk) {
            Ok(bytes) if !bytes.is_empty() => audience.tell(Message::Data(source, bytes)).await,
            _ => return,
        }
    }
}

/// None: the end. A terminal's end is an I/O error.
async fn next<F: AsRawFd + AsFd>(fd: &AsyncFd<F>, chunk: usize) -> Option<Bytes> {
    loop {
        let mut ready = fd.readable().await.ok()?;
        match ready.try_io(|inner| read_chunk(inner.get_ref(), chunk)) {
            Ok(Ok(bytes)) => return (!bytes.is_empty()).then_some(bytes),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => return None,
            Err(_would_block) => {}
        }
    }
}

/// Allocates once there is something to read: a waiting process needs no buffer.
fn read_chunk(fd: &impl AsFd, chunk: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(chunk);
    let length = rustix::io::read(fd, spare_capacity(&mut buffer))?;
    if length < chunk / 2 {
        // What waits for a slow subscriber takes no more than it must.
        return Ok(Bytes::copy_from_slice(&buffer));
    }
    Ok(buffer.into())
}

//! Sockets in one machine's network namespace: asked of the warden, a few kept where they go fast.
//!
//! Only the warden makes them, and each question costs a turn of it. A port that is asked now and then
//! gets one socket a question. Where questions follow each other closely a small stock is asked for,
//! refilled before it is empty, and given up when nobody took from it for a moment, so that a machine
//! at rest keeps none. The stock goes with its link, too.

use std::{
    io,
    net::TcpStream,
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::TcpSocket,
    time::{Instant, sleep},
};

use super::client::{ClientError, WardenClient};
use crate::{
    id::SandboxId,
    wire::warden::{Call, MAX_SOCKETS},
};

/// Questions closer than this are answered with a stock.
const CLOSE: Duration = Duration::from_millis(250);
/// How long a stock may stand untouched.
const IDLE: Duration = Duration::from_secs(1);
/// A stock this low is refilled.
const LOW: usize = MAX_SOCKETS / 2;

/// The sockets of one machine.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: Arc<Shelf>,
    v6: Arc<Shelf>,
}

/// Those of one family: at most [`MAX_SOCKETS`] and what stood there when it was refilled.
#[derive(Debug)]
struct Shelf {
    sandbox: SandboxId,
    client: WardenClient,
    v6: bool,
    stock: Mutex<Stock>,
    /// One question at a time; the others wait for what it brings.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    /// The last time that somebody wanted one.
    wanted: Option<Instant>,
    refilling: bool,
    watched: bool,
}

// === impl Sockets ===

impl Sockets {
    pub(super) fn new(sandbox: SandboxId, client: &WardenClient) -> Self {
        let shelf = |v6| {
            let (client, stock) = (client.clone(), Mutex::default());
            Arc::new(Shelf { sandbox, client, v6, stock, asking: tokio::sync::Mutex::default() })
        };
        Self { v4: shelf(false), v6: shelf(true) }
    }

    /// One that nobody has used. Cancel-safe.
    pub(super) async fn take(&self, v6: bool) -> io::Result<TcpSocket> {
        let ready = if v6 { &self.v6 } else { &self.v4 };
        let socket = ready.take().await?;
        Ok(TcpSocket::from_std_stream(TcpStream::from(socket)))
    }
}

// === impl Shelf ===

impl Shelf {
    async fn take(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let (ready, close) = self.pick();
        if let Some(socket) = ready {
            return Ok(socket);
        }
        let _turn = self.asking.lock().await;
        // Whoever had the turn before may have brought some.
        if let (Some(socket), _) = self.pick() {
            return Ok(socket);
        }
        let mut sockets = self.ask(if close { MAX_SOCKETS } else { 1 }).await?;
        let socket = sockets.pop().ok_or_else(|| io::Error::other("the helper sent no socket"))?;
        self.keep(sockets);
        Ok(socket)
    }

    /// One of the stock, and whether the last who wanted one came just now.
    fn pick(self: &Arc<Self>) -> (Option<OwnedFd>, bool) {
        let mut stock = self.stock.lock();
        let now = Instant::now();
        let close = stock.wanted.replace(now).is_some_and(|last| now.duration_since(last) < CLOSE);
        let socket = stock.sockets.pop();
        if socket.is_some() && close && stock.sockets.len() <= LOW && !stock.refilling {
            stock.refilling = true;
            tokio::spawn(refill(Arc::downgrade(self)));
        }
        (socket, close)
    }

    /// Puts sockets to the stock, and somebody there who looks after it.
    fn keep(self: &Arc<Self>, sockets: Vec<OwnedFd>) {
        let mut stock = self.stock.lock();
        stock.sockets.extend(sockets);
        if !stock.sockets.is_empty() && !stock.watched {
            stock.watched = true;
            tokio::spawn(give_up(Arc::downgrade(self)));
        }
    }

    async fn ask(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        match self.client.call(Call::PortSockets { sandbox: self.sandbox, v6: self.v6, count }).await {
            Ok((_, sockets)) => Ok(sockets),
            Err(error @ ClientError::Closed) => Err(io::Error::new(io::ErrorKind::BrokenPipe, error)),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// Whoever fails here leaves it to the next who wants one, who then hears why.
async fn refill(shelf: Weak<Shelf>) {
    let Some(shelf) = shelf.upgrade() else { return };
    let _turn = shelf.asking.lock().await;
    let brought = shelf.ask(MAX_SOCKETS).await.unwrap_or_default();
    shelf.keep(brought);
    shelf.stock.lock().refilling = false;
}

/// Looks after a stock until it is gone.
async fn give_up(shelf: Weak<Shelf>) {
    loop {
        sleep(IDLE).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let mut stock = shelf.stock.lock();
        if stock.wanted.is_none_or(|last| last.elapsed() >= IDLE) {
            stock.sockets = Vec::new();
        }
        if stock.sockets.is_empty() {
            stock.watched = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        mem::MaybeUninit,
        os::fd::{AsFd, BorrowedFd},
    };

    use rustix::net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType,
    };

    use super::*;
    use crate::{
        id::OsEntropy,
        wire::warden::{FromWarden, Reply, Request},
    };

    /// Answers until the gateway's end is closed; how many sockets each question was for.
    fn answer_all(socket: &OwnedFd) -> Vec<usize> {
        let (mut counts, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
            if length == 0 {
                return counts;
            }
            let request: Request = serde_json::from_slice(&buffer[..length]).unwrap();
            let Call::PortSockets { count, .. } = request.call else { panic!("another call") };
            let made: Vec<OwnedFd> = (0..count)
                .map(|_| rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap())
                .collect();
            let made: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&made)));
            let packet =
                serde_json::to_vec(&FromWarden::Answer { seq: request.seq, reply: Reply::Done }).unwrap();
            rustix::net::sendmsg(socket, &[IoSlice::new(&packet)], &mut control, SendFlags::empty()).unwrap();
            counts.push(count);
        }
    }

    fn sockets() -> (Sockets, tokio::task::JoinHandle<Vec<usize>>) {
        let pair =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (gateway, warden) = pair.unwrap();
        let answered = tokio::task::spawn_blocking(move || answer_all(&warden));
        (Sockets::new(SandboxId::generate(&OsEntropy), &WardenClient::new(gateway).unwrap()), answered)
    }

    #[tokio::test]
    async fn a_port_that_is_asked_now_and_then_keeps_no_socket() {
        let (sockets, answered) = sockets();
        sockets.take(false).await.unwrap();
        sleep(CLOSE + Duration::from_millis(50)).await;
        sockets.take(false).await.unwrap();
        sockets.take(true).await.unwrap();
        assert!(sockets.v4.stock.lock().sockets.is_empty());
        drop(sockets);
        assert_eq!(answered.await.unwrap(), [1, 1, 1]);
    }

    #[tokio::test]
    async fn a_busy_port_is_served_from_a_stock_that_is_given_up_afterwards() {
        let (sockets, answered) = sockets();
        for _ in 0..5 * MAX_SOCKETS {
            sockets.take(false).await.unwrap();
            assert!(sockets.v4.stock.lock().sockets.len() <= MAX_SOCKETS + LOW);
        }
        let deadline = Instant::now() + 10 * IDLE;
        while sockets.v4.stock.lock().watched || sockets.v4.stock.lock().refilling {
            assert!(Instant::now() < deadline, "the stock stands untouched and is kept");
            sleep(Duration::from_millis(10)).await;
        }
        assert!(sockets.v4.stock.lock().sockets.is_empty());
        drop(sockets);
        let questions = answered.await.unwrap();
        assert_eq!(questions[0], 1);
        assert!(questions[1..].iter().all(|count| *count == MAX_SOCKETS), "{questions:?}");
        assert!(questions.len() <= 8, "{questions:?}");
    }

    #[tokio::test]
    async fn those_who_come_together_share_a_question() {
        let (sockets, answered) = sockets();
        let taken = futures_util::future::join_all((0..MAX_SOCKETS).map(|_| sockets.take(false))).await;
        assert!(taken.iter().all(Result::is_ok));
        drop(sockets);
        assert!(answered.await.unwrap().len() <= 3);
    }
}

//! The gateway's side of the warden's socket: one answer for every call, events for who listens.
//!
//! One task reads; calls write by themselves (a packet goes out whole or not at all) and wait for
//! their answer under their number. When the socket ends, every waiting call and every later one
//! hears `Closed`, once and for all.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags};
use tokio::{
    io::Interest,
    net::UnixDatagram,
    sync::{broadcast, mpsc, oneshot},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    failpoint::{self, Step},
    id::{BuildId, SandboxId},
    wire::warden::{
        Call, Cause, Event, FromWarden, ImageInfo, ImageUse, MAX_PACKET, MAX_SOCKETS, MachineInfo,
        ProbeResult, Reply, Request,
    },
};

/// Events that a slow listener may fall behind.
const EVENTS: usize = 4096;

/// Speaks to the warden. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WardenClient {
    shared: Arc<Shared>,
    /// The reader ends with the last client, and the socket with it.
    reader: Arc<DropGuard>,
}

/// The same, without keeping the socket open.
#[derive(Debug)]
pub(super) struct WeakClient {
    shared: Weak<Shared>,
    reader: Weak<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    /// A packet socket; tokio has no type of that name, and to it they behave alike.
    socket: UnixDatagram,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiter>>,
    events: broadcast::Sender<Event>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<(Reply, Vec<OwnedFd>)>,
    /// Hears what comes before the answer.
    told: Option<mpsc::UnboundedSender<Event>>,
}

/// A call under way: forgotten when dropped.
struct Ticket<'a> {
    shared: &'a Shared,
    seq: u64,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The warden is gone: nothing can be made or ended any more, and the server must stop.
    #[error("the privileged helper has ended; restart the server, its sandboxes are still there")]
    Closed,
    /// The warden refused, or the host could not do it.
    #[error("{reason}")]
    Refused {
        /// For the log.
        reason: String,
        /// What kind of refusal it is.
        cause: Cause,
    },
    /// The answer was not one of this call's.
    #[error("the privileged helper gave an answer of another kind")]
    Unexpected,
}

/// The step that a call is.
fn step(call: &Call) -> Option<Step> {
    match call {
        Call::CreateMachine(_) => Some(Step::CreateSent),
        Call::StopMachine { .. } => Some(Step::StopSent),
        Call::Freeze { .. } => Some(Step::FreezeSent),
        Call::Thaw { .. } => Some(Step::ThawSent),
        Call::Seal { .. } => Some(Step::SealSent),
        _ => None,
    }
}

// === impl WardenClient ===

impl WardenClient {
    /// Takes the gateway's end of the socket. Needs a runtime around it.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            socket: UnixDatagram::from_std(socket)?,
            next: AtomicU64::new(1),
            waiting: Mutex::new(HashMap::new()),
            events: broadcast::channel(EVENTS).0,
            closed: CancellationToken::new(),
        });
        let reader = CancellationToken::new();
        tokio::spawn(read(Arc::clone(&shared), reader.clone()));
        Ok(Self { shared, reader: Arc::new(reader.drop_guard()) })
    }

    pub(super) fn downgrade(&self) -> WeakClient {
        WeakClient { shared: Arc::downgrade(&self.shared), reader: Arc::downgrade(&self.reader) }
    }

    /// Sends one call and waits for its answer and the descriptors that came with it. A dropped
    /// future forgets the answer; it does not undo the call.
    pub async fn call(&self, call: Call) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.ask(call, None).await
    }

    async fn ask(
        &self,
        call: Call,
        told: Option<mpsc::UnboundedSender<Event>>,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let shared = &*self.shared;
        let seq = shared.next.fetch_add(1, Ordering::Relaxed);
        let step = step(&call);
        let packet = serde_json::to_vec(&Request { seq, call }).map_err(|_| ClientError::Unexpected)?;
        let (answer, answered) = oneshot::channel();
        shared.waiting.lock().insert(seq, Waiter { answer, told });
        let _ticket = Ticket { shared, seq };
        // Looked at after the insertion: the reader empties the table after it says closed.
        if shared.closed.is_cancelled() || shared.write(&packet).await.is_err() {
            return Err(ClientError::Closed);
        }
        if let Some(step) = step {
            failpoint::reach(step);
        }
        match answered.await {
            Ok((Reply::Refused { reason, cause }, _)) => Err(ClientError::Refused { reason, cause }),
            Ok(answer) => Ok(answer),
            Err(_) => Err(ClientError::Closed),
        }
    }

    /// Builds the `base` template if it must be; `progress` hears what is being done.
    pub async fn ensure_base(&self, progress: impl Fn(&str) + Send) -> Result<ImageInfo, ClientError> {
        let (sender, mut lines) = mpsc::unbounded_channel();
        let work = self.ask(Call::EnsureBase, Some(sender));
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(Event::Progress { text, .. }) = lines.recv() => progress(&text),
                answer = &mut work => return image(answer?.0),
            }
        }
    }

    /// Makes an image of a sandbox's disk; `copied` hears when that may change again.
    pub async fn seal(
        &self,
        sandbox: SandboxId,
        build: BuildId,
        copied: oneshot::Sender<()>,
    ) -> Result<ImageInfo, ClientError> {
        let (sender, mut told) = mpsc::unbounded_channel();
        let work = self.ask(Call::Seal { sandbox, build }, Some(sender));
        tokio::pin!(work);
        let mut copied = Some(copied);
        loop {
            tokio::select! {
                biased;
                Some(Event::Copied { .. }) = told.recv() => {
                    if let Some(copied) = copied.take() {
                        let _ = copied.send(());
                    }
                }
                answer = &mut work => return image(answer?.0),
            }
        }
    }

    /// Whether an imported build is complete and fit for use.
    pub async fn check_image(&self, build: BuildId) -> Result<ImageInfo, ClientError> {
        image(self.call(Call::CheckImage { build }).await?.0)
    }

    /// What this host offers.
    pub async fn probe(&self) -> Result<Vec<ProbeResult>, ClientError> {
        match self.call(Call::Probe).await?.0 {
            Reply::Probes { probes } => Ok(probes),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Every live machine of this instance.
    pub async fn machines(&self) -> Result<Vec<MachineInfo>, ClientError> {
        let mut all: Vec<MachineInfo> = Vec::new();
        loop {
            let after = all.last().map(|machine| machine.sandbox);
            match self.call(Call::ListMachines { after }).await?.0 {
                Reply::Machines { machines } if machines.is_empty() => return Ok(all),
                Reply::Machines { machines } => all.extend(machines),
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// Every image of this instance.
    pub async fn images(&self) -> Result<Vec<ImageUse>, ClientError> {
        let mut all: Vec<ImageUse> = Vec::new();
        loop {
            let after = all.last().map(|image| image.build);
            match self.call(Call::ListImages { after }).await?.0 {
                Reply::Images { images } if images.is_empty() => return Ok(all),
                Reply::Images { images } => all.extend(images),
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// Every sandbox of this instance that has a disk and no machine.
    pub async fn kept(&self) -> Result<Vec<SandboxId>, ClientError> {
        let mut all: Vec<SandboxId> = Vec::new();
        loop {
            match self.call(Call::ListKept { after: all.last().copied() }).await?.0 {
                Reply::Kept { sandboxes } if sandboxes.is_empty() => return Ok(all),
                Reply::Kept { sandboxes } => all.extend(sandboxes),
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// The machine of a sandbox, if it is alive.
    pub async fn machine(&self, sandbox: SandboxId) -> Result<Option<MachineInfo>, ClientError> {
        match self.call(Call::FindMachine { sandbox }).await?.0 {
            Reply::Machines { machines } => Ok(machines.into_iter().next()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Ends the warden, and all machines first when asked to.
    pub async fn shutdown(&self, stop_machines: bool) -> Result<(), ClientError> {
        match self.call(Call::Shutdown { stop_machines }).await {
            // It may be gone before its answer is read: that is what was asked for.
            Ok(_) | Err(ClientError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What happens without having been asked for. A listener that lags misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Resolves when the warden is gone.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }
}

fn image(reply: Reply) -> Result<ImageInfo, ClientError> {
    match reply {
        Reply::Image(info) => Ok(info),
        _ => Err(ClientError::Unexpected),
    }
}

// === impl WeakClient ===

impl WeakClient {
    pub(super) fn upgrade(&self) -> Option<WardenClient> {
        Some(WardenClient { shared: self.shared.upgrade()?, reader: self.reader.upgrade()? })
    }
}

// === impl Shared ===

impl Shared {
    async fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, || {
                let mut none = SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.socket, &[IoSlice::new(packet)], &mut none, SendFlags::NOSIGNAL)?;
                Ok(())
            })
            .await
    }

    fn take(&self, packet: FromWarden, descriptors: Vec<OwnedFd>) {
        match packet {
            FromWarden::Answer { seq, reply } => {
                if let Some(waiter) = self.waiting.lock().remove(&seq) {
                    // Nobody waits any more: the descriptors close here.
                    let _ = waiter.answer.send((reply, descriptors));
                } else if seq == 0 {
                    tracing::warn!(?reply, "the helper could not read a packet");
                }
            }
            FromWarden::Event(event) => match &event {
                Event::Progress { seq, .. } | Event::Copied { seq } => {
                    if let Some(Waiter { told: Some(told), .. }) = self.waiting.lock().get(seq) {
                        let _ = told.send(event);
                    }
                }
                Event::MachineExited { .. } => drop(self.events.send(event)),
            },
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().remove(&self.seq);
    }
}

async fn read(shared: Arc<Shared>, stop: CancellationToken) {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let packet = tokio::select! {
            () = stop.cancelled() => break,
            packet = shared.socket.async_io(Interest::READABLE, || receive(&shared.socket, &mut buffer)) => packet,
        };
        match packet {
            Ok(Some((packet, descriptors))) => shared.take(packet, descriptors),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "the helper's socket broke");
                break;
            }
        }
    }
    shared.closed.cancel();
    shared.waiting.lock().clear();
}

/// `None`: the warden is gone.
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<Option<(FromWarden, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let packet = serde_json::from_slice(&buffer[..message.bytes])?;
    Ok(Some((packet, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap()
    }

    fn answer(socket: &OwnedFd, packet: &FromWarden) {
        rustix::net::send(socket, &serde_json::to_vec(packet).unwrap(), SendFlags::empty()).unwrap();
    }

    fn asked(socket: &OwnedFd) -> Request {
        let mut buffer = [0; 4096];
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..length]).unwrap()
    }

    #[tokio::test]
    async fn answers_find_their_calls_in_any_order() {
        let (gateway, warden) = pair();
        let client = WardenClient::new(gateway).unwrap();
        let other = tokio::task::spawn_blocking(move || {
            for request in [asked(&warden), asked(&warden)].into_iter().rev() {
                let reply = match request.call {
                    Call::Probe => Reply::Refused { reason: "no".to_owned(), cause: Cause::Invalid },
                    _ => Reply::Done,
                };
                answer(&warden, &FromWarden::Answer { seq: request.seq, reply });
            }
            warden
        });
        let (first, second) = tokio::join!(client.call(Call::Probe), client.call(Call::EnsureBase));
        assert!(matches!(first, Err(ClientError::Refused { cause: Cause::Invalid, .. })));
        assert_eq!(second.unwrap().0, Reply::Done);
        drop(other.await.unwrap());
    }

    #[tokio::test]
    async fn every_call_hears_that_the_warden_is_gone() {
        let (gateway, warden) = pair();
        let client = WardenClient::new(gateway).unwrap();
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.call(Call::Probe).await }
        });
        let warden = tokio::task::spawn_blocking(move || {
            asked(&warden);
            warden
        });
        drop(warden.await.unwrap());
        assert!(matches!(waiting.await.unwrap(), Err(ClientError::Closed)));
        client.closed().await;
        assert!(matches!(client.call(Call::Probe).await, Err(ClientError::Closed)));
        assert!(client.shared.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn the_last_client_closes_the_socket() {
        let (gateway, warden) = pair();
        let client = WardenClient::new(gateway).unwrap();
        let weak = client.downgrade();
        assert!(weak.upgrade().is_some());
        drop(client);
        let ended = tokio::task::spawn_blocking(move || {
            rustix::net::recv(&warden, &mut [0; 16][..], RecvFlags::empty()).unwrap().0
        });
        let length = tokio::time::timeout(std::time::Duration::from_secs(5), ended).await;
        assert_eq!(length.unwrap().unwrap(), 0);
        assert!(weak.upgrade().is_none());
    }
}

//! Packets to and from the gateway: read with suspicion, written without ever blocking.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    },
};
use serde::Deserialize;

use crate::wire::warden::{Cause, FromWarden, MAX_PACKET, MAX_SOCKETS, Reply, Request};

/// Answers that may wait for the gateway to read; above that no further request is read.
const BACKLOG: usize = 1024;

/// The warden's end of the socket.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Vec<u8>,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A request.
    Request(Request),
    /// A packet that is none; what its answer must carry.
    Malformed {
        /// The packet's own number if it has one, else 0.
        seq: u64,
        /// What is wrong.
        reason: String,
    },
    /// Nothing now.
    Nothing,
    /// The gateway is gone.
    Closed,
}

// === impl Wire ===

impl Wire {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::new(), buffer: vec![0; MAX_PACKET + 1] }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the gateway reads too slowly to be given more to read.
    pub(crate) fn congested(&self) -> bool {
        self.waiting.len() >= BACKLOG
    }

    /// Whether answers wait for the socket to become writable.
    pub(crate) fn pending(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads one packet. Descriptors beside it are closed by the kernel: no call takes any.
    pub(crate) fn receive(&mut self) -> Received {
        let mut control = RecvAncillaryBuffer::default();
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        match rustix::net::recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::DONTWAIT) {
            Ok(message) if message.bytes == 0 => Received::Closed,
            Ok(message) => {
                let whole = !message.flags.contains(ReturnFlags::TRUNC) && message.bytes <= MAX_PACKET;
                if whole {
                    parse(&self.buffer[..message.bytes])
                } else {
                    Received::Malformed { seq: 0, reason: format!("a packet over {MAX_PACKET} bytes") }
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    /// Sends a packet, now or when the gateway has read what waits before it.
    pub(crate) fn send(&mut self, packet: &FromWarden, descriptors: Vec<OwnedFd>) {
        let Ok(bytes) = serde_json::to_vec(packet) else { return };
        if bytes.len() > MAX_PACKET
            && let FromWarden::Answer { seq, .. } = packet
        {
            let reason = "the answer does not fit a packet".to_owned();
            self.send(
                &FromWarden::Answer { seq: *seq, reply: Reply::Refused { reason, cause: Cause::Host } },
                Vec::new(),
            );
            return;
        }
        self.waiting.push_back((bytes, descriptors));
        self.flush();
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) {
        while let Some((bytes, descriptors)) = self.waiting.front() {
            match transmit(&self.socket, bytes, descriptors) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                // A gateway that is gone needs no answers; the next read reports it.
                Ok(()) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
    }
}

fn transmit(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop)
}

pub(super) fn parse(bytes: &[u8]) -> Received {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    match serde_json::from_slice::<Request>(bytes) {
        Ok(request) => Received::Request(request),
        Err(error) => Received::Malformed {
            seq: serde_json::from_slice::<Numbered>(bytes).map_or(0, |numbered| numbered.seq),
            reason: error.to_string(),
        },
    }
}

/// A connected pair of packet sockets; the first is the gateway's.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::warden::Call;

    const GOOD: &str =
        r#"{"seq":7,"call":{"call":"stop_machine","sandbox":"i0123456789abcdefghij","keep_disk":false}}"#;

    fn sent(bytes: &[u8]) -> Received {
        let (gateway, warden) = pair().unwrap();
        rustix::net::send(&gateway, bytes, SendFlags::empty()).unwrap();
        Wire::new(warden).receive()
    }

    #[test]
    fn a_good_packet_is_read_and_its_bent_twins_are_not() {
        assert!(matches!(sent(GOOD.as_bytes()), Received::Request(Request { seq: 7, .. })));
        for (from, to) in [
            ("i0123456789abcdefghij", "../../etc/passwd/aaaa"),
            ("i0123456789abcdefghij", "i0123456789abcdefghi\\u0000"),
            ("\"keep_disk\":false", "\"keep_disk\":0"),
            ("\"keep_disk\":false", "\"keep_disk\":false,\"path\":\"/\""),
            ("stop_machine", "mount"),
        ] {
            let bent = GOOD.replace(from, to);
            assert_ne!(bent, GOOD);
            assert!(matches!(sent(bent.as_bytes()), Received::Malformed { seq: 7, .. }), "{bent}");
        }
        assert!(matches!(sent(b"\xff\xfe"), Received::Malformed { seq: 0, .. }));
    }

    #[test]
    fn an_oversized_packet_is_refused_whole() {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes.resize(MAX_PACKET, b' ');
        assert!(matches!(sent(&bytes), Received::Request(_)));
        bytes.resize(MAX_PACKET + 1, b' ');
        assert!(matches!(sent(&bytes), Received::Malformed { seq: 0, .. }));
    }

    #[test]
    fn a_closed_gateway_is_noticed() {
        let (gateway, warden) = pair().unwrap();
        let mut wire = Wire::new(warden);
        assert_eq!(wire.receive(), Received::Nothing);
        drop(gateway);
        assert_eq!(wire.receive(), Received::Closed);
    }

    #[test]
    fn a_gateway_that_does_not_read_is_given_no_more() {
        let (gateway, warden) = pair().unwrap();
        let mut wire = Wire::new(warden);
        let packet = |seq| FromWarden::Answer { seq, reply: Reply::Done };
        let mut sent = 0;
        while !wire.congested() {
            wire.send(&packet(sent), Vec::new());
            sent += 1;
            assert!(sent < 100_000);
        }
        let mut buffer = [0; 512];
        for expected in 0..sent {
            let (length, _) = rustix::net::recv(&gateway, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
            assert_eq!(serde_json::from_slice::<FromWarden>(&buffer[..length]).unwrap(), packet(expected));
            wire.flush();
        }
        assert!(!wire.pending());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_packet_never_becomes_another_call(at in 0..GOOD.len(), byte in any::<u8>()) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if let Received::Request(request) = parse(&bytes) {
                let is_stop = matches!(request.call, Call::StopMachine { .. });
                prop_assert!(is_stop);
            }
        }
    }
}

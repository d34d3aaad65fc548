//! Properties of the warden's packets: what is read prints as it was read, and nothing is read
//! that has more to it than a request.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use rustix::net::{RecvFlags, SendFlags};

use super::packet::{Received, Wire, pair, parse};
use crate::wire::warden::{Cause, FromWarden, MAX_PACKET, Reply};

/// One packet. A first byte of `*` repeats the rest over the limit.
pub(crate) fn packet(data: &[u8]) {
    let long;
    let data = match data.strip_prefix(b"*") {
        Some(rest) if !rest.is_empty() => {
            long = rest.repeat(MAX_PACKET / rest.len() + 1);
            &long
        }
        _ => data,
    };
    let (gateway, warden) = pair().unwrap();
    let mut wire = Wire::new(warden);
    if data.is_empty() {
        return;
    }
    if rustix::net::send(&gateway, data, SendFlags::DONTWAIT).is_err() {
        return;
    }
    let received = wire.receive();
    if data.len() > MAX_PACKET {
        assert!(matches!(received, Received::Malformed { seq: 0, .. }), "a long packet is refused whole");
    } else {
        assert_eq!(received, parse(data));
    }
    match received {
        Received::Request(request) => {
            let json = serde_json::to_vec(&request).unwrap();
            assert!(matches!(parse(&json), Received::Request(again) if again == request));
            assert!(
                matches!(parse(&[data, b"}"].concat()), Received::Malformed { .. }),
                "nothing may follow"
            );
        }
        Received::Malformed { seq, reason } => answer(&gateway, &mut wire, seq, reason),
        other => panic!("{other:?}"),
    }
    // The other direction: what the gateway reads of the warden.
    if let Ok(packet) = serde_json::from_slice::<FromWarden>(data) {
        let json = serde_json::to_vec(&packet).unwrap();
        assert_eq!(serde_json::from_slice::<FromWarden>(&json).unwrap(), packet);
        assert!(serde_json::from_slice::<FromWarden>(&[&json[..], b"0"].concat()).is_err());
    }
}

/// Whatever the refusal quotes, its packet fits and says so much.
fn answer(gateway: &impl std::os::fd::AsFd, wire: &mut Wire, seq: u64, reason: String) {
    let reply = Reply::Refused { reason, cause: Cause::Invalid };
    wire.send(&FromWarden::Answer { seq, reply }, Vec::new());
    let mut buffer = vec![0; MAX_PACKET + 1];
    let (length, _) = rustix::net::recv(gateway, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
    assert!(length <= MAX_PACKET);
    let read: FromWarden = serde_json::from_slice(&buffer[..length]).unwrap();
    assert!(
        matches!(read, FromWarden::Answer { seq: answered, reply: Reply::Refused { .. } } if answered == seq)
    );
}

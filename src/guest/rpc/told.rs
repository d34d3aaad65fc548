//! What a stream sends: output is encoded straight from its bytes, and copied once on the way.
//!
//! The message types would copy a chunk four times: into the message, into base64 text, into JSON
//! text, which is searched for what must be escaped, and into the frame.

use std::sync::LazyLock;

use base64::{
    Engine as _,
    engine::{Simd, general_purpose::PAD},
};
use buffa::Message;
use bytes::{BufMut as _, Bytes, BytesMut};
use connectrpc::{CodecFormat, ConnectError, Encodable, EncodedBody, JsonSerialize};

use crate::{
    guest::process::Source,
    wire::rpc::process::{
        __buffa::oneof::process_event::data_event::Output, ConnectResponse, ProcessEvent, StartResponse,
        process_event::DataEvent,
    },
};

/// A tag of a field whose value has a length.
const LENGTH_DELIMITED: u8 = 2;
/// `StartResponse.event`, and `ConnectResponse.event`.
const EVENT: u8 = 1;
/// `ProcessEvent.data`.
const DATA: u8 = 2;
/// Three tags and lengths.
const MAX_HEAD: usize = 3 * (1 + 5);

/// One message of Start or Connect.
#[derive(Debug)]
pub(super) enum Told {
    /// Start, keepalive or end.
    Event(ProcessEvent),
    /// Output; never empty.
    Output(Source, Bytes),
}

// === impl Told ===

impl Told {
    /// The message, made from its parts; the two responses are alike but for their names.
    fn body<M: Message + JsonSerialize>(
        &self,
        codec: CodecFormat,
        response: impl FnOnce(ProcessEvent) -> M,
    ) -> Result<EncodedBody, ConnectError> {
        match (self, codec) {
            (Self::Output(source, bytes), CodecFormat::Proto) => {
                Ok(EncodedBody::from_segments(vec![proto_head(*source, bytes.len()), bytes.clone()]))
            }
            (Self::Output(source, bytes), CodecFormat::Json) => Ok(json(*source, bytes).into()),
            _ => response(self.event()).encode_segments(codec),
        }
    }

    fn event(&self) -> ProcessEvent {
        let (source, bytes) = match self {
            Self::Event(event) => return event.clone(),
            Self::Output(source, bytes) => (source, bytes.to_vec()),
        };
        let output = match source {
            Source::Stdout => Output::Stdout(bytes),
            Source::Stderr => Output::Stderr(bytes),
            Source::Pty => Output::Pty(bytes),
        };
        let data = DataEvent { output: Some(output), ..DataEvent::default() };
        ProcessEvent { event: Some(data.into()), ..ProcessEvent::default() }
    }
}

impl Encodable<StartResponse> for Told {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        Encodable::<StartResponse>::encode_segments(self, codec).map(EncodedBody::into_contiguous)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        self.body(codec, |event| StartResponse { event: event.into(), ..StartResponse::default() })
    }
}

impl Encodable<ConnectResponse> for Told {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        Encodable::<ConnectResponse>::encode_segments(self, codec).map(EncodedBody::into_contiguous)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        self.body(codec, |event| ConnectResponse { event: event.into(), ..ConnectResponse::default() })
    }
}

/// Everything before the bytes themselves.
fn proto_head(source: Source, length: usize) -> Bytes {
    let field = match source {
        Source::Stdout => 1,
        Source::Stderr => 2,
        Source::Pty => 3,
    };
    let data = 1 + varint_length(length) + length;
    let event = 1 + varint_length(data) + data;
    let mut head = BytesMut::with_capacity(MAX_HEAD);
    for (field, length) in [(EVENT, event), (DATA, data), (field, length)] {
        head.put_u8(field << 3 | LENGTH_DELIMITED);
        put_varint(&mut head, length);
    }
    head.freeze()
}

fn put_varint(into: &mut BytesMut, mut value: usize) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return into.put_u8(low & 0x7f);
        }
        into.put_u8(low | 0x80);
    }
}

fn varint_length(value: usize) -> usize {
    // One byte for each seven bits, and one for zero.
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn json(source: Source, bytes: &[u8]) -> Bytes {
    /// With what this processor has for it.
    static BASE64: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));
    let name: &[u8] = match source {
        Source::Stdout => b"stdout",
        Source::Stderr => b"stderr",
        Source::Pty => b"pty",
    };
    let (head, tail): ([&[u8]; 3], &[u8]) = ([br#"{"event":{"data":{""#, name, br#"":""#], br#""}}}"#);
    let text = bytes.len().div_ceil(3) * 4;
    let length = head.iter().map(|part| part.len()).sum::<usize>() + text + tail.len();
    let mut json = BytesMut::with_capacity(length);
    for part in head {
        json.put_slice(part);
    }
    let begin = json.len();
    json.put_bytes(0, text);
    // The place is as long as the text.
    let _ = BASE64.encode_slice(bytes, &mut json[begin..]);
    json.put_slice(tail);
    json.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rpc::process::process_event::KeepAlive;

    fn start(event: ProcessEvent, codec: CodecFormat) -> Bytes {
        let message = StartResponse { event: event.into(), ..StartResponse::default() };
        Encodable::<StartResponse>::encode(&message, codec).unwrap()
    }

    fn connect(event: ProcessEvent, codec: CodecFormat) -> Bytes {
        let message = ConnectResponse { event: event.into(), ..ConnectResponse::default() };
        Encodable::<ConnectResponse>::encode(&message, codec).unwrap()
    }

    #[test]
    fn output_is_encoded_as_its_messages_are() {
        for length in [1, 2, 3, 100, 125, 127, 128, 16_300, 16_384, 32_768] {
            let bytes: Bytes = (0..length).map(|place| u8::try_from(place * 7 % 256).unwrap()).collect();
            for source in [Source::Stdout, Source::Stderr, Source::Pty] {
                let told = Told::Output(source, bytes.clone());
                for codec in [CodecFormat::Proto, CodecFormat::Json] {
                    let found = Encodable::<StartResponse>::encode(&told, codec).unwrap();
                    assert_eq!(found, start(told.event(), codec), "{length} {source:?}");
                    let found = Encodable::<ConnectResponse>::encode(&told, codec).unwrap();
                    assert_eq!(found, connect(told.event(), codec), "{length} {source:?}");
                }
            }
        }
    }

    #[test]
    fn other_events_are_encoded_as_their_messages_are() {
        let event = ProcessEvent { event: Some(KeepAlive::default().into()), ..ProcessEvent::default() };
        for codec in [CodecFormat::Proto, CodecFormat::Json] {
            let found = Encodable::<StartResponse>::encode(&Told::Event(event.clone()), codec).unwrap();
            assert_eq!(found, start(event.clone(), codec));
        }
    }
}

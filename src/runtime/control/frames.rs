//! The frames of a control stream: a length in four bytes, then so many bytes.

use std::io;

use bytes::BytesMut;
use tokio_util::codec::{Decoder, LengthDelimitedCodec};

use crate::wire::control::MAX_MESSAGE;

/// Reads frames; the stream may end only between two of them.
#[derive(Debug)]
pub(super) struct Frames {
    codec: LengthDelimitedCodec,
    /// A length was read, and its bytes have not come. The library takes an end there for a good one.
    within: bool,
}

// === impl Frames ===

impl Frames {
    pub(super) fn new() -> Self {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_MESSAGE as usize).new_codec();
        Self { codec, within: false }
    }
}

impl Decoder for Frames {
    type Item = BytesMut;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        let before = bytes.len();
        let frame = self.codec.decode(bytes)?;
        self.within = frame.is_none() && (self.within || bytes.len() < before);
        Ok(frame)
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        match self.decode(bytes)? {
            None if self.within || !bytes.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            frame => Ok(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a stream of these bytes may end.
    fn ends_well(bytes: &[u8]) -> bool {
        let (mut frames, mut bytes) = (Frames::new(), BytesMut::from(bytes));
        while frames.decode(&mut bytes).unwrap().is_some() {}
        frames.decode_eof(&mut bytes).is_ok()
    }

    #[test]
    fn a_stream_ends_between_frames_only() {
        let whole = b"\0\0\0\x02ab\0\0\0\x01c";
        for length in 0..=whole.len() {
            assert_eq!(ends_well(&whole[..length]), [0, 6, 11].contains(&length), "{length}");
        }
    }
}

//! A response body whose short pieces travel with what follows them.
//!
//! The RPC library sends the five bytes before a large message as a piece of their own. Each piece
//! is a chunk of HTTP and a step of its own for everyone on the way; joined, nothing is copied and
//! a message is one chunk.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Buf as _, Bytes, buf::Chain};
use http_body::{Frame, SizeHint};

/// Pieces up to this many bytes wait for what is there already behind them.
const SHORT: usize = 64;

/// The body, its pieces two by two where the first is short.
#[derive(Debug)]
pub(super) struct Joined {
    body: Body,
    /// What came behind a short piece and is no piece itself.
    next: Option<Next>,
}

type Next = Option<Result<Frame<Bytes>, axum::Error>>;

// === impl Joined ===

impl Joined {
    pub(super) fn new(body: Body) -> Self {
        Self { body, next: None }
    }
}

impl http_body::Body for Joined {
    type Data = Chain<Bytes, Bytes>;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = match self.next.take() {
            Some(next) => next,
            None => ready!(Pin::new(&mut self.body).poll_frame(cx)),
        };
        let short = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.len() <= SHORT => data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(Bytes::new().chain(data))))),
                Err(frame) => return Poll::Ready(Some(Ok(frame.map_data(|data| Bytes::new().chain(data))))),
            },
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        // A body that has said all must not be asked again.
        let behind = if self.body.is_end_stream() {
            Bytes::new()
        } else {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => Bytes::new(),
                Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_else(|trailers| {
                    self.next = Some(Some(Ok(trailers)));
                    Bytes::new()
                }),
                Poll::Ready(other) => {
                    self.next = Some(other);
                    Bytes::new()
                }
            }
        };
        Poll::Ready(Some(Ok(Frame::data(short.chain(behind)))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.as_ref().map_or_else(|| self.body.is_end_stream(), Option::is_none)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    type Piece = Result<Frame<Bytes>, std::io::Error>;

    async fn pieces(pieces: Vec<Piece>) -> Vec<Result<String, String>> {
        let mut joined = Joined::new(Body::new(StreamBody::new(stream::iter(pieces))));
        let mut found = Vec::new();
        while let Some(frame) = joined.frame().await {
            found.push(match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(mut data) => {
                        let bytes = data.copy_to_bytes(data.remaining());
                        Ok(format!("{} {}", bytes.len(), char::from(bytes[0])))
                    }
                    Err(frame) => Ok(format!("{} trailers", frame.into_trailers().unwrap().len())),
                },
                Err(error) => Err(error.to_string()),
            });
        }
        found
    }

    fn piece(letter: &str, length: usize) -> Frame<Bytes> {
        Frame::data(letter.repeat(length).into())
    }

    #[tokio::test]
    async fn a_short_piece_travels_with_the_next_one() {
        let found = pieces(
            [("a", 5), ("b", 100), ("c", 100), ("d", 5)]
                .map(|(letter, length)| Ok(piece(letter, length)))
                .into(),
        )
        .await;
        assert_eq!(found, ["105 a", "100 c", "5 d"].map(|text| Ok(text.to_owned())));
    }

    #[tokio::test]
    async fn trailers_and_errors_stay_behind_what_came_before_them() {
        let found = pieces(vec![Ok(piece("a", 5)), Ok(Frame::trailers(http::HeaderMap::new()))]).await;
        assert_eq!(found, ["5 a", "0 trailers"].map(|text| Ok(text.to_owned())));
        let found = pieces(vec![Ok(piece("a", 5)), Err(std::io::Error::other("broken"))]).await;
        assert_eq!(found, [Ok("5 a".to_owned()), Err("broken".to_owned())]);
    }
}

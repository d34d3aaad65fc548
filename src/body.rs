//! Request bodies that can be taken back from their reader, to read what an answer left of them.
//!
//! An answer to a body that was not read to its end closes the connection, and a client that is
//! still writing then meets a broken pipe before it reads the answer. Refusals are the common
//! case: they answer from the headers alone. So whoever answers lends the body to the handler and
//! afterwards reads on, within bounds.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;

/// How much is read of what was left, in bytes.
const MOST: usize = 1 << 20;
/// How long that may take to come.
const PATIENCE: Duration = Duration::from_millis(250);

/// A body in its reader's hands.
#[derive(Debug)]
pub struct Lent<B>(Arc<Mutex<B>>);

/// The way back to a body that was lent.
#[derive(Debug)]
pub struct Loan<B>(Arc<Mutex<B>>);

/// Lends a body.
pub fn lend<B>(body: B) -> (Lent<B>, Loan<B>) {
    let shared = Arc::new(Mutex::new(body));
    (Lent(Arc::clone(&shared)), Loan(shared))
}

// === impl Lent ===

impl<B: Body + Unpin> Body for Lent<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        // Never contended: the lender waits until the reader has let go.
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

// === impl Loan ===

impl<B: Body + Unpin> Loan<B> {
    /// Reads what the reader left; nothing when somebody still reads. What has not come within
    /// the bounds closes the connection, as it would have anyway.
    pub async fn read_out(self) {
        let Some(body) = Arc::into_inner(self.0) else { return };
        let body = body.into_inner().unwrap_or_else(PoisonError::into_inner);
        let _ = tokio::time::timeout(PATIENCE, discard(body)).await;
    }
}

async fn discard<B: Body + Unpin>(mut body: B) {
    let mut read = 0;
    while read < MOST {
        let Some(Ok(frame)) = body.frame().await else { return };
        read += frame.data_ref().map_or(0, bytes::Buf::remaining);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body_util::StreamBody;

    use super::*;

    /// A body of four pieces that counts how many were taken.
    fn counted(taken: &Arc<AtomicUsize>) -> impl Body<Data = Bytes, Error = std::io::Error> + Unpin {
        let taken = Arc::clone(taken);
        StreamBody::new(futures_util::stream::iter(0..4).map(move |_| {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok(Frame::data(Bytes::from_static(b"piece")))
        }))
    }

    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn what_a_reader_left_is_read() {
        let taken = Arc::default();
        let (mut lent, loan) = lend(counted(&taken));
        lent.frame().await.unwrap().unwrap();
        assert_eq!(taken.load(Ordering::Relaxed), 1);
        drop(lent);
        loan.read_out().await;
        assert_eq!(taken.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn what_somebody_still_reads_is_left_to_them() {
        let taken = Arc::default();
        let (mut lent, loan) = lend(counted(&taken));
        loan.read_out().await;
        assert_eq!(taken.load(Ordering::Relaxed), 0);
        assert!(lent.frame().await.is_some());
    }
}

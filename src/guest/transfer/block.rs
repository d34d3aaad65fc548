//! Contents in blocks: read-ahead and write-behind of one block each, on the blocking pool.

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes of one block.
pub(super) const SIZE: usize = 256 * 1024;
/// Pieces of a body that one block is written from; more are joined first.
const MAX_PIECES: usize = 128;

/// One block of a file on its way out.
#[derive(Debug)]
pub(super) struct Block {
    /// Never empty, unless nothing follows.
    pub(super) bytes: Bytes,
    /// Whether another one follows.
    pub(super) more: bool,
}

/// Calls `next` on the blocking pool, always one block ahead of the reader.
pub(super) fn read_ahead<F>(next: F) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static
where
    F: FnMut() -> io::Result<Block> + Send + 'static,
{
    stream::unfold(Some(call(next)), |ahead| async move {
        let Ok((next, block)) = ahead?.await else {
            return Some((Err(io::Error::other("read was aborted")), None));
        };
        match block {
            // An empty frame must never be sent: clients count them.
            Ok(Block { bytes, more: false }) if bytes.is_empty() => None,
            Ok(Block { bytes, more }) => Some((Ok(bytes), more.then(|| call(next)))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

type Ahead<F> = JoinHandle<(F, io::Result<Block>)>;

fn call<F>(mut next: F) -> Ahead<F>
where
    F: FnMut() -> io::Result<Block> + Send + 'static,
{
    spawn_blocking(move || {
        let block = next();
        (next, block)
    })
}

/// Pieces of a body, gathered until they are worth a write.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pieces: Vec<Bytes>,
    length: usize,
}

/// Writes blocks behind the sender's back, at most one at a time.
#[derive(Debug)]
pub(super) struct Writer {
    file: Arc<File>,
    behind: Option<JoinHandle<io::Result<()>>>,
}

// === impl Gathered ===

impl Gathered {
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        if self.pieces.len() == MAX_PIECES {
            let mut joined = BytesMut::with_capacity(self.length.max(SIZE));
            self.pieces.drain(..).for_each(|piece| joined.extend_from_slice(&piece));
            self.pieces.push(joined.freeze());
        }
        self.length += piece.len();
        self.pieces.push(piece);
    }

    /// Whether a write is due.
    /// In bytes.
    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    pub(super) fn is_block(&self) -> bool {
        self.length >= SIZE
    }

    /// Writes everything, in one call where the kernel takes it.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = self.pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match (&mut &*file).write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(file: File) -> Self {
        Self { file: Arc::new(file), behind: None }
    }

    /// Starts writing a block once the one before is written; tells of that one's failure.
    pub(super) async fn write(&mut self, block: Gathered) -> io::Result<()> {
        self.settle().await?;
        let file = Arc::clone(&self.file);
        self.behind = Some(spawn_blocking(move || block.write(&file)));
        Ok(())
    }

    /// Waits until everything is written.
    pub(super) async fn settle(&mut self) -> io::Result<()> {
        match self.behind.take() {
            Some(behind) => behind.await.unwrap_or_else(|_| Err(io::Error::other("write was aborted"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn blocks_arrive_in_order_and_end() {
        let mut left = 3;
        let stream = read_ahead(move || {
            left -= 1;
            Ok(Block { bytes: Bytes::from(vec![left; 2]), more: left > 0 })
        });
        let all: Vec<Bytes> = stream.map(Result::unwrap).collect().await;
        assert_eq!(all, [vec![2, 2], vec![1, 1], vec![0, 0]]);
    }

    #[tokio::test]
    async fn many_pieces_are_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut writer = Writer::new(File::create(&path).unwrap());
        let mut wanted = Vec::new();
        for round in 0..3_u8 {
            let mut gathered = Gathered::default();
            for piece in 0..200_u8 {
                gathered.push(Bytes::from(vec![piece ^ round; 7]));
                wanted.extend_from_slice(&[piece ^ round; 7]);
            }
            writer.write(gathered).await.unwrap();
        }
        writer.settle().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), wanted);
    }
}

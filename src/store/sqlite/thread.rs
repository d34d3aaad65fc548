//! A connection on its own thread, fed by a bounded queue of jobs; for writers, group commit.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::MAX_BATCH;
use crate::store::StoreError;

/// How many jobs may wait; callers beyond that wait for a place.
const QUEUE: usize = 1024;

/// What a commit must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Durability {
    /// The death of this process.
    Process,
    /// A power failure too.
    Host,
}

/// Runs in the transaction; what it returns runs when the fate of the transaction is known.
type Work = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Job {
    durability: Durability,
    work: Work,
}

/// The queue of one connection.
pub(super) struct Lane {
    jobs: mpsc::Sender<Job>,
    commits: Arc<AtomicU64>,
}

// === impl Lane ===

impl Lane {
    /// A lane whose jobs share transactions.
    pub(super) fn writer(name: &str, connection: Connection) -> Result<Self, StoreError> {
        Self::start(name, move |jobs, commits| write(&connection, jobs, commits))
    }

    /// A lane without transactions.
    pub(super) fn reader(name: &str, connection: Connection) -> Result<Self, StoreError> {
        Self::start(name, move |mut jobs, _| {
            while let Some(job) = jobs.blocking_recv() {
                (job.work)(Ok(&connection))(Ok(()));
            }
        })
    }

    fn start(
        name: &str,
        body: impl FnOnce(mpsc::Receiver<Job>, &AtomicU64) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let commits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commits);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(queue, &counter))
            .map_err(|error| StoreError::Backend(format!("no thread: {error}")))?;
        Ok(Self { jobs, commits })
    }

    /// Runs a job and waits until it is committed. A job that fails leaves nothing behind.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let done = connection.and_then(|connection| in_savepoint(connection, job));
            Box::new(move |committed| {
                // Nobody waits any more: fine, the work is done all the same.
                let _ = reply.send(done.and_then(|done| committed.map(|()| done)));
            })
        });
        let gone = || StoreError::Backend("its thread has ended".to_owned());
        self.jobs.send(Job { durability, work }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Lane {
    /// How many jobs wait in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    /// How many transactions there were.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lane")
            .field("waiting", &self.waiting())
            .field("commits", &self.commits())
            .finish()
    }
}

fn write(connection: &Connection, mut jobs: mpsc::Receiver<Job>, commits: &AtomicU64) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        commits.fetch_add(1, Ordering::Relaxed);
        commit(connection, batch);
    }
}

fn commit(connection: &Connection, batch: Vec<Job>) {
    let durability = batch.iter().map(|job| job.durability).max().unwrap_or(Durability::Process);
    if let Err(error) = begin(connection, durability) {
        let error = StoreError::from(error);
        for job in batch {
            (job.work)(Err(error.clone()))(Ok(()));
        }
        return;
    }
    let given_up =
        || StoreError::Backend("the transaction was given up for another write's failure".to_owned());
    let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
    for job in batch {
        // SQLite gives up a whole transaction where the disk fails it; what came after would stand alone.
        let standing = if connection.is_autocommit() { Err(given_up()) } else { Ok(connection) };
        answers.push((job.work)(standing));
    }
    let outcome = if connection.is_autocommit() {
        Err(given_up())
    } else {
        connection.execute_batch("COMMIT").map_err(StoreError::from)
    };
    if outcome.is_err() && !connection.is_autocommit() {
        // A failed rollback leaves a transaction that the next BEGIN reports.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for answer in answers {
        answer(outcome.clone());
    }
}

fn begin(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let level = if durability == Durability::Host { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", level)?;
    connection.execute_batch("BEGIN IMMEDIATE")
}

/// A job that fails is undone alone; its neighbours in the batch stay. For a reader the savepoint
/// is the one snapshot that its statements see.
fn in_savepoint<T>(
    connection: &Connection,
    job: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT job")?;
    match job(connection) {
        Ok(done) => {
            connection.execute_batch("RELEASE job")?;
            Ok(done)
        }
        Err(error) => {
            // There is none any more where the whole transaction was given up.
            let _ = connection.execute_batch("ROLLBACK TO job; RELEASE job");
            Err(error)
        }
    }
}

//! Puts one uploaded file in place: in the file itself, not by rename, so that whoever watches
//! sees exactly creation, ownership, contents (contract/sandbox 4, "exact event counts").

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, chown, fchown},
    path::PathBuf,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::{
    block::{Gathered, Writer},
    blocking,
    problem::Problem,
};
use crate::guest::{
    disk::Disk,
    entry::{UserMetadata, metadata},
    failure::{self, is_full, is_missing},
    filesystem::change::{Owner, ensure_dirs},
    state::Guest,
};

/// Where an upload goes.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) owner: Owner,
    /// The file's whole metadata from now on.
    pub(super) metadata: UserMetadata,
    /// What the request's `Content-Length` announced, for the message when the disk is full.
    pub(super) announced: Option<u64>,
    /// Whose disk it goes to.
    pub(super) guest: Guest,
}

/// Writes `body` to the target. A failure leaves what was written so far.
pub(super) async fn save<S, E>(target: &Target, body: &mut S) -> Result<(), Problem>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    // Nothing is touched before the first block is here: a small file takes one trip.
    let mut gathered = Gathered::default();
    let mut ended = fill(&mut gathered, body).await?;
    let job = target.clone();
    let file = blocking(move || {
        job.check_room()?;
        let file = job.open()?;
        let counts = Disk::holds(&file);
        job.take(counts, &gathered)?;
        gathered.write(&file).map_err(|error| job.write_failed(&error))?;
        Ok((file, counts))
    })
    .await?;
    if ended {
        return Ok(());
    }
    let (file, counts) = file;
    let mut writer = Writer::new(file);
    while !ended {
        let mut gathered = Gathered::default();
        ended = fill(&mut gathered, body).await?;
        target.take(counts, &gathered)?;
        writer.write(gathered).await.map_err(|error| target.write_failed(&error))?;
    }
    writer.settle().await.map_err(|error| target.write_failed(&error))
}

/// Gathers a block; true at the body's end.
async fn fill<S, E>(gathered: &mut Gathered, body: &mut S) -> Result<bool, Problem>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    while !gathered.is_block() {
        match body.next().await {
            Some(Ok(piece)) => gathered.push(piece),
            Some(Err(error)) => return Err(Problem::internal(format!("error writing file: {error}"))),
            None => return Ok(true),
        }
    }
    Ok(false)
}

// === impl Target ===

impl Target {
    /// Opens the file for writing, with parents and owner as they must be. Blocking.
    fn open(&self) -> Result<File, Problem> {
        if let Some(parent) = self.path.parent() {
            ensure_dirs(parent, self.owner)
                .map_err(|text| Problem::internal(format!("error ensuring directories: {text}")))?;
        }
        let exists = match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => {
                return Err(Problem::bad_request(format!("path is a directory: {}", self.path.display())));
            }
            Ok(_) => true,
            Err(error) if is_missing(&error) => false,
            Err(error) => return Err(self.failed("error getting file info: stat", &error)),
        };
        let Owner { uid, gid } = self.owner;
        if exists {
            chown(&self.path, Some(uid), Some(gid))
                .map_err(|error| self.failed("error changing file ownership: chown", &error))?;
        }
        // A pipe without a reader must not hold the thread.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(|error| {
                if is_full(&error) {
                    Problem::full(format!("not enough inodes available: {}", failure::text(&error)))
                } else {
                    self.failed("error opening file: open", &error)
                }
            })?;
        if !exists {
            fchown(&file, Some(uid), Some(gid))
                .map_err(|error| self.failed("error changing file ownership: chown", &error))?;
        }
        metadata::replace(&file, &self.metadata).map_err(|error| {
            if is_full(&error) || error.raw_os_error() == Some(libc::E2BIG) {
                Problem::full("not enough space for metadata available")
            } else {
                self.failed("error writing metadata: setxattr", &error)
            }
        })?;
        Ok(file)
    }

    /// Refuses, with nothing touched, what cannot have room even in the place of what is there. Blocking.
    fn check_room(&self) -> Result<(), Problem> {
        let Some(announced) = self.announced else { return Ok(()) };
        if self.guest.disk().has_room(announced) {
            return Ok(());
        }
        // Not on the disk, or as large already: it is counted when it is written.
        let there = fs::metadata(&self.path).map_or(0, |found| found.len());
        let place = self.path.ancestors().find_map(|place| File::open(place).ok());
        let elsewhere = place.is_some_and(|place| !Disk::holds(&place));
        if elsewhere || self.guest.disk().has_room(announced.saturating_sub(there)) {
            return Ok(());
        }
        Err(self.full())
    }

    /// Counts a block that is about to be written.
    fn take(&self, counts: bool, gathered: &Gathered) -> Result<(), Problem> {
        if counts && !self.guest.disk().take(gathered.length()) { Err(self.full()) } else { Ok(()) }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Problem {
        Problem::internal(failure::describe(what, &self.path, error))
    }

    fn write_failed(&self, error: &io::Error) -> Problem {
        if !is_full(error) {
            return self.failed("error writing file: write", error);
        }
        self.full()
    }

    fn full(&self) -> Problem {
        Problem::full(match self.announced {
            Some(length) if length > 0 => {
                format!("attempted to write {length} bytes: not enough disk space available")
            }
            _ => "not enough disk space available".to_owned(),
        })
    }
}

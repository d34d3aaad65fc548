//! The store in one SQLite file.
//!
//! ```text
//!   callers --job--> [bounded queue] --> writer thread: one transaction a batch, then the answers
//!           --job--> [bounded queue] --> reader thread: its own connection, sees what is committed
//! ```
//! Both threads are owned by [`SqliteStore`]: dropping it lets them finish what is queued and end.
//! A caller that goes away does not take its write back: once queued, it is done.
//!
//! **Group commit.** The writer takes all that is queued (up to `MAX_BATCH`) into one
//! transaction, each job in its own savepoint, so that a hundred creates at once pay for a few
//! commits and one job's failure undoes only that job. Answers go out after the commit.
//!
//! **Durability.** The journal is a WAL with `synchronous=NORMAL`: a commit survives the death of
//! the process, which is what re-attachment to running sandboxes needs. What NORMAL may lose is
//! the last commits before a power failure, and that ends every machine those records speak of.
//! What outlives machines (teams, keys, templates, paused sandboxes) is committed with `FULL`.

mod reads;
mod schema;
mod thread;
mod writes;

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::Connection;

use self::thread::{Durability, Lane};
use crate::{
    id::{BuildId, KeyId, SandboxId, TeamId, TemplateId},
    sandbox::{SandboxRecord, SandboxState},
    store::{
        ApiKey, Build, Idempotency, SandboxFilter, Snapshot, SnapshotFilter, Standing, Store, StoreError,
        Tag, Team, Template,
    },
};

/// The most writes that share a commit.
const MAX_BATCH: usize = 256;

/// Records in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Lane,
    reader: Lane,
    /// Counts the openings of this file: whoever holds an idempotency key of another opening is gone.
    opening: i64,
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens or makes the file, brings it to the newest schema, and starts its two threads.
    /// Blocks for as long as the disk needs; called once at start.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut writer = connect(path)?;
        schema::migrate(&mut writer)?;
        let opening = writes::next_opening(&writer)?;
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Self {
            writer: Lane::writer("store-writer", writer)?,
            reader: Lane::reader("store-reader", reader)?,
            opening,
        })
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

#[async_trait]
impl Store for SqliteStore {
    async fn add_team(&self, team: Team) -> Result<(), StoreError> {
        self.writer.run(Durability::Host, move |db| writes::add_team(db, &team)).await
    }

    async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        self.reader.run(Durability::Process, reads::teams).await
    }

    async fn set_standing(&self, id: TeamId, standing: Standing) -> Result<(), StoreError> {
        self.writer.run(Durability::Host, move |db| writes::set_standing(db, id, &standing)).await
    }

    async fn add_key(&self, key: ApiKey) -> Result<(), StoreError> {
        self.writer.run(Durability::Host, move |db| writes::add_key(db, &key)).await
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        self.reader.run(Durability::Process, reads::keys).await
    }

    async fn remove_key(&self, id: KeyId) -> Result<(), StoreError> {
        self.writer.run(Durability::Host, move |db| writes::remove_key(db, id)).await
    }

    async fn touch_key(&self, id: KeyId, at: Timestamp) -> Result<(), StoreError> {
        self.writer.run(Durability::Process, move |db| writes::touch_key(db, id, at)).await
    }

    async fn put_template(&self, template: Template) -> Result<(), StoreError> {
        self.writer.run(Durability::Host, move |db| writes::put_template(db, &template)).await
    }

    async fn add_build(&self, build: Build) -> Result<(), StoreError> {
        self.writer.run(Durability::Host, move |db| writes::add_build(db, &build)).await
    }

    async fn add_snapshot(
        &self,
        template: Template,
        build: Build,
        tag: &str,
        sandbox: SandboxId,
    ) -> Result<(), StoreError> {
        let tag = tag.to_owned();
        let add = move |db: &Connection| writes::add_snapshot(db, &template, &build, &tag, sandbox);
        self.writer.run(Durability::Host, add).await
    }

    async fn snapshots(&self, filter: SnapshotFilter) -> Result<Vec<Snapshot>, StoreError> {
        self.reader.run(Durability::Process, move |db| reads::snapshots(db, &filter)).await
    }

    async fn tags(&self, template: &TemplateId) -> Result<Vec<Tag>, StoreError> {
        let id = template.clone();
        self.reader.run(Durability::Process, move |db| reads::tags(db, &id)).await
    }

    async fn assign_tags(
        &self,
        template: &TemplateId,
        tags: Vec<String>,
        build: BuildId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let id = template.clone();
        self.writer.run(Durability::Host, move |db| writes::assign_tags(db, &id, &tags, build, at)).await
    }

    async fn remove_tags(&self, template: &TemplateId, tags: Vec<String>) -> Result<(), StoreError> {
        let id = template.clone();
        self.writer.run(Durability::Host, move |db| writes::remove_tags(db, &id, &tags)).await
    }

    async fn template_builds(&self, template: &TemplateId) -> Result<Vec<Build>, StoreError> {
        let id = template.clone();
        self.reader.run(Durability::Process, move |db| reads::template_builds(db, &id)).await
    }

    async fn tagged_build(&self, template: &TemplateId, tag: &str) -> Result<Option<Build>, StoreError> {
        let (template, tag) = (template.clone(), tag.to_owned());
        self.reader.run(Durability::Process, move |db| reads::tagged_build(db, &template, &tag)).await
    }

    async fn remove_template(&self, id: &TemplateId, tag: Option<&str>) -> Result<(), StoreError> {
        let (id, tag) = (id.clone(), tag.map(str::to_owned));
        let remove = move |db: &Connection| writes::remove_template(db, &id, tag.as_deref());
        self.writer.run(Durability::Host, remove).await
    }

    async fn drop_superseded(&self, before: Timestamp) -> Result<usize, StoreError> {
        let drop = move |db: &Connection| writes::drop_superseded(db, before);
        self.writer.run(Durability::Host, drop).await
    }

    async fn builds(&self) -> Result<Vec<BuildId>, StoreError> {
        self.reader.run(Durability::Process, reads::builds).await
    }

    async fn templates(&self, team: TeamId) -> Result<Vec<Template>, StoreError> {
        self.reader.run(Durability::Process, move |db| reads::templates(db, team)).await
    }

    async fn template(&self, id: &TemplateId) -> Result<Option<Template>, StoreError> {
        let id = id.clone();
        self.reader.run(Durability::Process, move |db| reads::template(db, &id)).await
    }

    async fn resolve_template(
        &self,
        team: TeamId,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Template>, StoreError> {
        let (namespace, name) = (namespace.map(str::to_owned), name.to_owned());
        let resolve = move |db: &Connection| reads::resolve_template(db, team, namespace.as_deref(), &name);
        self.reader.run(Durability::Process, resolve).await
    }

    async fn count_spawn(&self, id: &TemplateId, at: Timestamp) -> Result<(), StoreError> {
        let id = id.clone();
        self.writer.run(Durability::Process, move |db| writes::count_spawn(db, &id, at)).await
    }

    async fn put_sandbox(&self, record: SandboxRecord) -> Result<(), StoreError> {
        let durability = match record.state {
            SandboxState::Paused => Durability::Host,
            _ => Durability::Process,
        };
        self.writer.run(durability, move |db| writes::put_sandbox(db, &record)).await
    }

    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StoreError> {
        self.writer.run(Durability::Process, move |db| writes::remove_sandbox(db, id)).await
    }

    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        self.reader.run(Durability::Process, move |db| reads::sandbox(db, id)).await
    }

    async fn sandboxes(&self, filter: SandboxFilter) -> Result<Vec<SandboxRecord>, StoreError> {
        self.reader.run(Durability::Process, move |db| reads::sandboxes(db, &filter)).await
    }

    async fn count_sandboxes(&self, filter: SandboxFilter) -> Result<u64, StoreError> {
        self.reader.run(Durability::Process, move |db| reads::count_sandboxes(db, &filter)).await
    }

    async fn begin_idempotent(
        &self,
        team: TeamId,
        key: &str,
        fingerprint: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Idempotency, StoreError> {
        let (key, fingerprint, opening) = (key.to_owned(), fingerprint.to_owned(), self.opening);
        let begin =
            move |db: &Connection| writes::begin_idempotent(db, team, &key, &fingerprint, opening, now, ttl);
        self.writer.run(Durability::Process, begin).await
    }

    async fn finish_idempotent(
        &self,
        team: TeamId,
        key: &str,
        status: u16,
        body: &str,
    ) -> Result<(), StoreError> {
        let (key, body) = (key.to_owned(), body.to_owned());
        self.writer
            .run(Durability::Process, move |db| writes::finish_idempotent(db, team, &key, status, &body))
            .await
    }

    async fn release_idempotent(&self, team: TeamId, key: &str) -> Result<(), StoreError> {
        let key = key.to_owned();
        self.writer.run(Durability::Process, move |db| writes::release_idempotent(db, team, &key)).await
    }
}

// === impl StoreError ===

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Backend(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;

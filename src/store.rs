//! The store contract: what must survive a restart, as small records.
//!
//! One writer thread behind the implementation puts writes in order; each method is atomic and,
//! when it returns, durable. No caller on the data path uses the store. Implementations are
//! compared by one contract test.

#[cfg(test)]
mod contract;
pub mod memory;
pub mod sqlite;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    id::{BuildId, KeyId, SandboxId, TeamId, TemplateId},
    sandbox::{Resources, SandboxRecord, SandboxState},
};

/// The tag that a name without one means.
pub const DEFAULT_TAG: &str = "default";

/// An owner of keys, templates and sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Its namespace in template names: `^[a-z0-9-_]+$`, unique.
    pub slug: String,
    /// For people.
    pub name: String,
    /// What it may do.
    pub standing: Standing,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a team may do (contract/control-plane 1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Everything.
    #[default]
    Good,
    /// Read and delete only, for this reason.
    Blocked(String),
    /// Nothing.
    Banned,
}

/// An API key as stored: never the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Whose key.
    pub team: TeamId,
    /// For people.
    pub name: String,
    /// SHA-256 of the key's twenty raw bytes, in hex.
    pub hash: String,
    /// The first two and last four hex digits, for lists.
    pub mask: (String, String),
    /// When it was made.
    pub created_at: Timestamp,
    /// When a request last used it, to the minute.
    pub last_used: Option<Timestamp>,
}

/// A template: a name for builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// Whose template; none: everybody's (`base`).
    pub team: Option<TeamId>,
    /// Visible to other teams.
    pub public: bool,
    /// Names without namespace; bare names of a template without a team are global.
    pub aliases: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its newest build was assigned.
    pub updated_at: Timestamp,
    /// When a sandbox was last made from it.
    pub last_spawned_at: Option<Timestamp>,
    /// How many sandboxes were made from it.
    pub spawn_count: u64,
    /// What its default tag points to.
    pub build: Option<Build>,
}

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Its id, also the name of its image.
    pub id: BuildId,
    /// The template.
    pub template: TemplateId,
    /// The size of its sandboxes.
    pub resources: Resources,
    /// For `base`: the fingerprint of the host's packages.
    pub fingerprint: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A tag of a template: a name for one of its builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub name: String,
    /// What it points to.
    pub build: BuildId,
    /// Since when.
    pub assigned_at: Timestamp,
}

/// A snapshot: a tag of a template that was made of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The template's name, if it has one.
    pub alias: Option<String>,
    /// The tag; one template may have several.
    pub tag: String,
    /// What the tag points to.
    pub build: Build,
    /// The sandbox that it was made of.
    pub sandbox: SandboxId,
}

/// Which snapshots a list wants, newest first (contract/control-plane 2.9).
#[derive(Debug, Clone)]
pub struct SnapshotFilter {
    /// Whose.
    pub team: TeamId,
    /// Only those made of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only this template's.
    pub template: Option<TemplateId>,
    /// Only of this tag.
    pub tag: Option<String>,
    /// Strictly behind this (creation, build) in the order of the list.
    pub after: Option<(Timestamp, BuildId)>,
    /// At most so many.
    pub limit: u32,
}

/// Which sandboxes a list wants (contract/control-plane 2.2).
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// Whose; always set by callers that answer a team.
    pub team: Option<TeamId>,
    /// Any of these states; empty: running and paused.
    pub states: Vec<SandboxState>,
    /// All of these labels, exactly.
    pub metadata: Vec<(String, String)>,
    /// Started at or after.
    pub started_after: Option<Timestamp>,
    /// Only of this template.
    pub template: Option<TemplateId>,
    /// Oldest first instead of newest first.
    pub ascending: bool,
    /// Strictly behind this (start, id) in the order of the list.
    pub after: Option<(Timestamp, SandboxId)>,
    /// At most so many; none: all.
    pub limit: Option<u32>,
}

/// A stored answer to a create with an `Idempotency-Key` (contract/control-plane 1.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idempotency {
    /// The key is new and now held by the caller.
    Mine,
    /// The same request was answered: repeat it.
    Answered {
        /// HTTP status.
        status: u16,
        /// JSON body.
        body: String,
    },
    /// The same request is still running.
    InProgress,
    /// The key was used for another request.
    Mismatch,
    /// The gateway that held the key died before it answered.
    OutcomeUnknown,
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A unique name is taken.
    #[error("{0} is already used")]
    Conflict(String),
    /// The record does not exist.
    #[error("no such record")]
    Missing,
    /// Sandboxes stand on what was to be removed.
    #[error("sandboxes use it")]
    InUse,
    /// The disk under it is full; nothing was written.
    #[error("store: the disk is full")]
    Full,
    /// The store itself failed.
    #[error("store: {0}")]
    Backend(String),
}

/// Durable records.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Adds a team; `Conflict` when the slug is taken.
    async fn add_team(&self, team: Team) -> Result<(), StoreError>;
    /// All teams, oldest first.
    async fn teams(&self) -> Result<Vec<Team>, StoreError>;
    /// Changes what a team may do; `Missing` when there is none.
    async fn set_standing(&self, id: TeamId, standing: Standing) -> Result<(), StoreError>;

    /// Adds a key of an existing team.
    async fn add_key(&self, key: ApiKey) -> Result<(), StoreError>;
    /// All keys, oldest first.
    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;
    /// Removes a key; `Missing` when there is none.
    async fn remove_key(&self, id: KeyId) -> Result<(), StoreError>;
    /// Notes that a key was used.
    async fn touch_key(&self, id: KeyId, at: Timestamp) -> Result<(), StoreError>;

    /// Adds a template or replaces the one of the same id; `Conflict` when an alias is taken.
    async fn put_template(&self, template: Template) -> Result<(), StoreError>;
    /// Adds a build, or replaces the template's own of the same id, and makes it what the default
    /// tag points to; `Conflict` when the id is another template's.
    async fn add_build(&self, build: Build) -> Result<(), StoreError>;
    /// Adds a snapshot: its template, if that is new, its build, and the tag that points to it;
    /// `Conflict` when the template is there and no snapshot's, or the name is taken.
    async fn add_snapshot(
        &self,
        template: Template,
        build: Build,
        tag: &str,
        sandbox: SandboxId,
    ) -> Result<(), StoreError>;
    /// Snapshots by filter, newest first.
    async fn snapshots(&self, filter: SnapshotFilter) -> Result<Vec<Snapshot>, StoreError>;
    /// The tags of a template, by name; the default one is there when the template has a build.
    async fn tags(&self, template: &TemplateId) -> Result<Vec<Tag>, StoreError>;
    /// Makes tags of a template point to one of its builds; `Missing` when it has no such build.
    async fn assign_tags(
        &self,
        template: &TemplateId,
        tags: Vec<String>,
        build: BuildId,
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// Takes tags off a template, but never the default one; those that it has not are passed over.
    async fn remove_tags(&self, template: &TemplateId, tags: Vec<String>) -> Result<(), StoreError>;
    /// The builds of a template, newest first.
    async fn template_builds(&self, template: &TemplateId) -> Result<Vec<Build>, StoreError>;
    /// What a tag of a template points to.
    async fn tagged_build(&self, template: &TemplateId, tag: &str) -> Result<Option<Build>, StoreError>;
    /// Removes a template with its builds, or one tag of it with its build (the last tag takes the
    /// template along). `InUse` when a sandbox was made from it; `Missing` when it is not there.
    async fn remove_template(&self, id: &TemplateId, tag: Option<&str>) -> Result<(), StoreError>;
    /// Forgets the builds of templates that are no snapshots which neither a tag nor a sandbox has
    /// any more, of templates whose newest build was assigned before this time. Says how many.
    async fn drop_superseded(&self, before: Timestamp) -> Result<usize, StoreError>;
    /// Every build there is.
    async fn builds(&self) -> Result<Vec<BuildId>, StoreError>;
    /// Every template visible to the team: its own, public ones and global ones, oldest first. Those
    /// of snapshots are not among them.
    async fn templates(&self, team: TeamId) -> Result<Vec<Template>, StoreError>;
    /// Any template by id.
    async fn template(&self, id: &TemplateId) -> Result<Option<Template>, StoreError>;
    /// Resolves a name: namespace `slug` or none, then alias, then id (contract/control-plane 4).
    /// Visibility is the caller's business.
    async fn resolve_template(
        &self,
        team: TeamId,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Template>, StoreError>;
    /// Counts one more sandbox of a template.
    async fn count_spawn(&self, id: &TemplateId, at: Timestamp) -> Result<(), StoreError>;

    /// Adds a sandbox or replaces the record of the same id.
    async fn put_sandbox(&self, record: SandboxRecord) -> Result<(), StoreError>;
    /// Removes a sandbox; no error when there is none.
    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StoreError>;
    /// One sandbox, in any state.
    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError>;
    /// Sandboxes by filter, in its order.
    async fn sandboxes(&self, filter: SandboxFilter) -> Result<Vec<SandboxRecord>, StoreError>;
    /// How many there are by filter, paging ignored.
    async fn count_sandboxes(&self, filter: SandboxFilter) -> Result<u64, StoreError>;

    /// Takes an idempotency key, or says what became of it. `fingerprint` is of the parsed body.
    async fn begin_idempotent(
        &self,
        team: TeamId,
        key: &str,
        fingerprint: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Idempotency, StoreError>;
    /// Keeps the answer for a key taken with [`Idempotency::Mine`].
    async fn finish_idempotent(
        &self,
        team: TeamId,
        key: &str,
        status: u16,
        body: &str,
    ) -> Result<(), StoreError>;
    /// Gives a key taken with [`Idempotency::Mine`] back: nothing was done under it.
    async fn release_idempotent(&self, team: TeamId, key: &str) -> Result<(), StoreError>;
}

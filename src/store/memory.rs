//! The store in memory, for tests: the same promises but for durability.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::{
    ApiKey, Build, DEFAULT_TAG, Idempotency, SandboxFilter, Snapshot, SnapshotFilter, Standing, Store,
    StoreError, Tag, Team, Template,
};
use crate::{
    id::{BuildId, KeyId, SandboxId, TeamId, TemplateId},
    sandbox::{SandboxRecord, SandboxState},
};

/// Records that end with the process.
#[derive(Default)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    teams: Vec<Team>,
    keys: Vec<ApiKey>,
    templates: Vec<Template>,
    builds: HashMap<BuildId, Build>,
    /// What the tags of snapshots point to.
    tags: BTreeMap<(TemplateId, String), BuildId>,
    /// Since when they do.
    assigned: HashMap<(TemplateId, String), Timestamp>,
    /// The sandboxes that builds were made of.
    snapshots: HashMap<BuildId, SandboxId>,
    sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    idempotency: HashMap<(TeamId, String), Held>,
    failing: Option<StoreError>,
}

struct Held {
    fingerprint: String,
    until: Timestamp,
    answer: Option<(u16, String)>,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every write of a sandbox fail so, until `None` is given.
    pub fn fail_sandbox_writes(&self, error: Option<StoreError>) {
        self.tables.lock().failing = error;
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MemoryStore")
    }
}

impl Tables {
    fn writable(&self) -> Result<(), StoreError> {
        self.failing.clone().map_or(Ok(()), Err)
    }

    /// Whether a template was made of sandboxes.
    fn is_snapshot(&self, id: &TemplateId) -> bool {
        self.snapshots.keys().any(|build| self.builds.get(build).is_some_and(|build| build.template == *id))
    }

    /// A build that no tag points to any more is nobody's.
    fn drop_untagged(&mut self, build: BuildId) {
        let tagged = self.tags.values().any(|other| *other == build);
        let default =
            self.templates.iter().any(|template| template.build.as_ref().is_some_and(|b| b.id == build));
        if !tagged && !default {
            self.builds.remove(&build);
            self.snapshots.remove(&build);
        }
    }

    /// Names are unique among a team's templates, or among those without a team.
    fn alias_taken(&self, template: &Template) -> Option<String> {
        self.templates
            .iter()
            .filter(|other| other.id != template.id && other.team == template.team)
            .flat_map(|other| &other.aliases)
            .find(|alias| template.aliases.contains(alias))
            .or_else(|| {
                // An alias that reads like the id of a template would hide that template.
                let hides = |alias: &&String| self.templates.iter().any(|other| other.id.as_str() == **alias);
                template.aliases.iter().find(hides)
            })
            .cloned()
    }
}

fn matches(filter: &SandboxFilter, record: &SandboxRecord) -> bool {
    let state = if filter.states.is_empty() {
        matches!(record.state, SandboxState::Running | SandboxState::Paused)
    } else {
        filter.states.contains(&record.state)
    };
    state
        && filter.team.is_none_or(|team| record.spec.team == team)
        && filter.metadata.iter().all(|(key, value)| record.spec.metadata.get(key) == Some(value))
        && filter.started_after.is_none_or(|after| record.started_at >= after)
        && filter.template.as_ref().is_none_or(|template| &record.spec.template == template)
}

#[async_trait]
impl Store for MemoryStore {
    async fn add_team(&self, team: Team) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        if tables.teams.iter().any(|other| other.slug == team.slug || other.id == team.id) {
            return Err(StoreError::Conflict(team.slug));
        }
        tables.teams.push(team);
        Ok(())
    }

    async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        let mut teams = self.tables.lock().teams.clone();
        teams.sort_by_key(|team| (team.created_at, team.id));
        Ok(teams)
    }

    async fn set_standing(&self, id: TeamId, standing: Standing) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let team = tables.teams.iter_mut().find(|team| team.id == id).ok_or(StoreError::Missing)?;
        team.standing = standing;
        Ok(())
    }

    async fn add_key(&self, key: ApiKey) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        if !tables.teams.iter().any(|team| team.id == key.team) {
            return Err(StoreError::Missing);
        }
        if tables.keys.iter().any(|other| other.id == key.id || other.hash == key.hash) {
            return Err(StoreError::Conflict("the key".to_owned()));
        }
        tables.keys.push(key);
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let mut keys = self.tables.lock().keys.clone();
        keys.sort_by_key(|key| (key.created_at, key.id));
        Ok(keys)
    }

    async fn remove_key(&self, id: KeyId) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let at = tables.keys.iter().position(|key| key.id == id).ok_or(StoreError::Missing)?;
        tables.keys.remove(at);
        Ok(())
    }

    async fn touch_key(&self, id: KeyId, at: Timestamp) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let key = tables.keys.iter_mut().find(|key| key.id == id).ok_or(StoreError::Missing)?;
        key.last_used = key.last_used.max(Some(at));
        Ok(())
    }

    async fn put_template(&self, template: Template) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        if let Some(alias) = tables.alias_taken(&template) {
            return Err(StoreError::Conflict(alias));
        }
        // The build and the counters of an existing template have their own calls.
        if let Some(known) = tables.templates.iter_mut().find(|other| other.id == template.id) {
            known.team = template.team;
            known.public = template.public;
            known.aliases = template.aliases;
            known.updated_at = template.updated_at;
        } else {
            tables.templates.push(Template { build: None, ..template });
        }
        Ok(())
    }

    async fn add_build(&self, build: Build) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        if tables.builds.get(&build.id).is_some_and(|known| known.template != build.template) {
            return Err(StoreError::Conflict(build.id.to_string()));
        }
        let template = tables
            .templates
            .iter_mut()
            .find(|template| template.id == build.template)
            .ok_or(StoreError::Missing)?;
        template.updated_at = build.created_at;
        template.build = Some(build.clone());
        tables.builds.insert(build.id, build);
        Ok(())
    }

    async fn add_snapshot(
        &self,
        template: Template,
        build: Build,
        tag: &str,
        sandbox: SandboxId,
    ) -> Result<(), StoreError> {
        let (id, build_id) = (template.id.clone(), build.id);
        let before = {
            let tables = self.tables.lock();
            let known = tables.templates.iter().find(|other| other.id == id);
            let snapshot = tables.is_snapshot(&id);
            if known.is_some() && !snapshot {
                return Err(StoreError::Conflict(template.aliases.join(", ")));
            }
            known.map(|known| known.build.clone())
        };
        if before.is_none() {
            self.put_template(template).await?;
        }
        self.add_build(build).await?;
        let mut tables = self.tables.lock();
        if tag != DEFAULT_TAG
            && let Some(known) = tables.templates.iter_mut().find(|other| other.id == id)
        {
            known.build = before.flatten();
        }
        tables.snapshots.insert(build_id, sandbox);
        let created = tables.builds.get(&build_id).map(|build| build.created_at);
        tables.assigned.extend(created.map(|created| ((id.clone(), tag.to_owned()), created)));
        if let Some(former) = tables.tags.insert((id, tag.to_owned()), build_id) {
            tables.drop_untagged(former);
        }
        Ok(())
    }

    async fn snapshots(&self, filter: SnapshotFilter) -> Result<Vec<Snapshot>, StoreError> {
        let tables = self.tables.lock();
        let mut found: Vec<Snapshot> = tables
            .tags
            .iter()
            .filter_map(|((id, tag), build)| {
                let template = tables.templates.iter().find(|template| template.id == *id)?;
                let build = tables.builds.get(build)?.clone();
                let sandbox = *tables.snapshots.get(&build.id)?;
                let wanted = template.team == Some(filter.team)
                    && filter.sandbox.is_none_or(|wanted| wanted == sandbox)
                    && filter.template.as_ref().is_none_or(|wanted| wanted == id)
                    && filter.tag.as_ref().is_none_or(|wanted| wanted == tag)
                    && filter.after.is_none_or(|(created, after)| {
                        build.created_at < created || build.created_at == created && build.id > after
                    });
                let alias = template.aliases.first().cloned();
                wanted.then(|| Snapshot { alias, tag: tag.clone(), build, sandbox })
            })
            .collect();
        found.sort_by(|a, b| b.build.created_at.cmp(&a.build.created_at).then(a.build.id.cmp(&b.build.id)));
        found.truncate(filter.limit as usize);
        Ok(found)
    }

    async fn tags(&self, template: &TemplateId) -> Result<Vec<Tag>, StoreError> {
        let tables = self.tables.lock();
        let mut tags: Vec<Tag> = tables
            .tags
            .iter()
            .filter(|((tagged, _), _)| tagged == template)
            .map(|(key, build)| Tag {
                name: key.1.clone(),
                build: *build,
                assigned_at: tables.assigned.get(key).copied().unwrap_or_default(),
            })
            .collect();
        let known = tables.templates.iter().find(|other| other.id == *template);
        if let Some((known, build)) = known.and_then(|known| Some((known, known.build.as_ref()?)))
            && !tags.iter().any(|tag| tag.name == DEFAULT_TAG)
        {
            let name = DEFAULT_TAG.to_owned();
            tags.push(Tag { name, build: build.id, assigned_at: known.updated_at });
        }
        tags.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tags)
    }

    async fn assign_tags(
        &self,
        template: &TemplateId,
        tags: Vec<String>,
        build: BuildId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let build = tables.builds.get(&build).filter(|build| build.template == *template).cloned();
        let build = build.ok_or(StoreError::Missing)?;
        let snapshot = tables.is_snapshot(template);
        for tag in tags {
            if tag == DEFAULT_TAG {
                if let Some(known) = tables.templates.iter_mut().find(|other| other.id == *template) {
                    known.build = Some(build.clone());
                    known.updated_at = at;
                }
                if !snapshot {
                    continue;
                }
            }
            let key = (template.clone(), tag);
            tables.assigned.insert(key.clone(), at);
            if let Some(former) = tables.tags.insert(key, build.id).filter(|_| snapshot) {
                tables.drop_untagged(former);
            }
        }
        Ok(())
    }

    async fn remove_tags(&self, template: &TemplateId, tags: Vec<String>) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        if !tables.templates.iter().any(|other| other.id == *template) {
            return Err(StoreError::Missing);
        }
        let snapshot = tables.is_snapshot(template);
        for tag in tags.into_iter().filter(|tag| tag != DEFAULT_TAG) {
            let key = (template.clone(), tag);
            if let Some(former) = tables.tags.remove(&key).filter(|_| snapshot) {
                tables.drop_untagged(former);
            }
        }
        Ok(())
    }

    async fn template_builds(&self, template: &TemplateId) -> Result<Vec<Build>, StoreError> {
        let tables = self.tables.lock();
        let mut builds: Vec<Build> =
            tables.builds.values().filter(|build| build.template == *template).cloned().collect();
        builds.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(a.id.cmp(&b.id)));
        Ok(builds)
    }

    async fn tagged_build(&self, template: &TemplateId, tag: &str) -> Result<Option<Build>, StoreError> {
        let tables = self.tables.lock();
        if tag == DEFAULT_TAG {
            let found = tables.templates.iter().find(|other| other.id == *template);
            return Ok(found.and_then(|template| template.build.clone()));
        }
        let build = tables.tags.get(&(template.clone(), tag.to_owned()));
        Ok(build.and_then(|build| tables.builds.get(build)).cloned())
    }

    async fn remove_template(&self, id: &TemplateId, tag: Option<&str>) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let users = |tables: &Tables, build: Option<BuildId>| {
            tables.sandboxes.values().any(|record| {
                record.state != SandboxState::Killing
                    && record.spec.template == *id
                    && build.is_none_or(|build| record.spec.build == build)
            })
        };
        if let Some(tag) = tag {
            let key = (id.clone(), tag.to_owned());
            if let Some(build) = tables.tags.get(&key).copied() {
                if tables.tags.keys().any(|(tagged, other)| tagged == id && other != tag) {
                    if users(&tables, Some(build)) {
                        return Err(StoreError::InUse);
                    }
                    tables.tags.remove(&key);
                    if let Some(template) = tables.templates.iter_mut().find(|other| other.id == *id)
                        && template.build.as_ref().is_some_and(|default| default.id == build)
                    {
                        template.build = None;
                    }
                    tables.drop_untagged(build);
                    return Ok(());
                }
            } else if tag != DEFAULT_TAG {
                return Err(StoreError::Missing);
            }
        }
        if users(&tables, None) {
            return Err(StoreError::InUse);
        }
        let at = tables.templates.iter().position(|other| other.id == *id).ok_or(StoreError::Missing)?;
        tables.templates.remove(at);
        tables.tags.retain(|(tagged, _), _| tagged != id);
        tables.builds.retain(|_, build| build.template != *id);
        Ok(())
    }

    async fn drop_superseded(&self, before: Timestamp) -> Result<usize, StoreError> {
        let mut tables = self.tables.lock();
        let superseded: Vec<BuildId> = tables
            .builds
            .values()
            .filter(|build| {
                let template = tables.templates.iter().find(|template| template.id == build.template);
                template.is_some_and(|template| {
                    template.updated_at < before
                        && template.build.as_ref().is_some_and(|default| default.id != build.id)
                })
            })
            .filter(|build| !tables.is_snapshot(&build.template))
            .map(|build| build.id)
            .filter(|build| !tables.tags.values().any(|tagged| tagged == build))
            .filter(|build| !tables.sandboxes.values().any(|record| record.spec.build == *build))
            .collect();
        tables.builds.retain(|id, _| !superseded.contains(id));
        Ok(superseded.len())
    }

    async fn builds(&self) -> Result<Vec<BuildId>, StoreError> {
        Ok(self.tables.lock().builds.keys().copied().collect())
    }

    async fn templates(&self, team: TeamId) -> Result<Vec<Template>, StoreError> {
        let tables = self.tables.lock();
        let mut templates: Vec<Template> = tables
            .templates
            .iter()
            .filter(|template| template.public || template.team.is_none_or(|owner| owner == team))
            .filter(|template| !tables.is_snapshot(&template.id))
            .cloned()
            .collect();
        templates.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(templates)
    }

    async fn template(&self, id: &TemplateId) -> Result<Option<Template>, StoreError> {
        Ok(self.tables.lock().templates.iter().find(|template| &template.id == id).cloned())
    }

    async fn resolve_template(
        &self,
        team: TeamId,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Template>, StoreError> {
        let tables = self.tables.lock();
        let named = |owner: Option<TeamId>| {
            tables
                .templates
                .iter()
                .find(|template| template.team == owner && template.aliases.iter().any(|alias| alias == name))
        };
        let found = if let Some(slug) = namespace {
            let owner = tables.teams.iter().find(|team| team.slug == slug).map(|team| team.id);
            owner.and_then(|owner| named(Some(owner)))
        } else {
            named(Some(team))
                .or_else(|| named(None))
                .or_else(|| tables.templates.iter().find(|template| template.id.as_str() == name))
        };
        Ok(found.cloned())
    }

    async fn count_spawn(&self, id: &TemplateId, at: Timestamp) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let template =
            tables.templates.iter_mut().find(|template| &template.id == id).ok_or(StoreError::Missing)?;
        template.spawn_count += 1;
        template.last_spawned_at = template.last_spawned_at.max(Some(at));
        Ok(())
    }

    async fn put_sandbox(&self, record: SandboxRecord) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        tables.writable()?;
        tables.sandboxes.insert(record.id, record);
        Ok(())
    }

    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        tables.writable()?;
        tables.sandboxes.remove(&id);
        Ok(())
    }

    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        Ok(self.tables.lock().sandboxes.get(&id).cloned())
    }

    async fn sandboxes(&self, filter: SandboxFilter) -> Result<Vec<SandboxRecord>, StoreError> {
        let mut found: Vec<SandboxRecord> = self
            .tables
            .lock()
            .sandboxes
            .values()
            .filter(|record| matches(&filter, record))
            .cloned()
            .collect();
        // Newest or oldest first; ties by id either way, as the tokens of pages have it.
        found.sort_by(|a, b| {
            let by_start = a.started_at.cmp(&b.started_at);
            let by_start = if filter.ascending { by_start } else { by_start.reverse() };
            by_start.then(a.id.cmp(&b.id))
        });
        if let Some((start, id)) = filter.after {
            found.retain(|record| match record.started_at.cmp(&start) {
                Ordering::Equal => record.id > id,
                Ordering::Greater => filter.ascending,
                Ordering::Less => !filter.ascending,
            });
        }
        found.truncate(filter.limit.map_or(usize::MAX, |limit| limit as usize));
        Ok(found)
    }

    async fn count_sandboxes(&self, filter: SandboxFilter) -> Result<u64, StoreError> {
        Ok(self.tables.lock().sandboxes.values().filter(|record| matches(&filter, record)).count() as u64)
    }

    async fn begin_idempotent(
        &self,
        team: TeamId,
        key: &str,
        fingerprint: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Idempotency, StoreError> {
        let mut tables = self.tables.lock();
        tables.idempotency.retain(|_, held| held.until > now);
        let until = SignedDuration::try_from(ttl)
            .ok()
            .and_then(|ttl| now.checked_add(ttl).ok())
            .unwrap_or(Timestamp::MAX);
        Ok(match tables.idempotency.get(&(team, key.to_owned())) {
            Some(held) if held.fingerprint != fingerprint => Idempotency::Mismatch,
            Some(Held { answer: Some((status, body)), .. }) => {
                Idempotency::Answered { status: *status, body: body.clone() }
            }
            Some(_) => Idempotency::InProgress,
            None => {
                let held = Held { fingerprint: fingerprint.to_owned(), until, answer: None };
                tables.idempotency.insert((team, key.to_owned()), held);
                Idempotency::Mine
            }
        })
    }

    async fn finish_idempotent(
        &self,
        team: TeamId,
        key: &str,
        status: u16,
        body: &str,
    ) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        let held = tables.idempotency.get_mut(&(team, key.to_owned())).ok_or(StoreError::Missing)?;
        held.answer = Some((status, body.to_owned()));
        Ok(())
    }

    async fn release_idempotent(&self, team: TeamId, key: &str) -> Result<(), StoreError> {
        self.tables.lock().idempotency.remove(&(team, key.to_owned())).map(drop).ok_or(StoreError::Missing)
    }
}

//! Queries, and how rows become records.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, types::Type};
use serde::de::DeserializeOwned;

use crate::{
    id::{BuildId, SandboxId, TeamId, TemplateId},
    sandbox::{Resources, SandboxRecord, SandboxState},
    store::{
        ApiKey, Build, DEFAULT_TAG, SandboxFilter, Snapshot, SnapshotFilter, StoreError, Tag, Team, Template,
    },
};

const TEMPLATE: &str = "
    SELECT t.id, t.team, t.public, t.created_us, t.updated_us, t.last_spawned_us, t.spawn_count,
           b.id, b.cpu_count, b.memory_mb, b.disk_mb, b.fingerprint, b.created_us,
           (SELECT json_group_array(alias) FROM
               (SELECT alias FROM aliases WHERE template = t.id ORDER BY position))
    FROM templates t LEFT JOIN builds b ON b.id = t.build";

const SANDBOX: &str =
    "SELECT id, spec, state, generation, started_us, end_us, machine, freshness, unresponsive
     FROM sandboxes";

pub(super) fn teams(db: &Connection) -> Result<Vec<Team>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT id, slug, name, standing, created_us FROM teams ORDER BY created_us, id")?;
    let rows = query.query_map([], |row| {
        Ok(Team {
            id: parsed(row, 0)?,
            slug: row.get(1)?,
            name: row.get(2)?,
            standing: json(row, 3)?,
            created_at: time(row, 4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn keys(db: &Connection) -> Result<Vec<ApiKey>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT id, team, name, hash, mask_head, mask_tail, created_us, last_used_us
         FROM api_keys ORDER BY created_us, id",
    )?;
    let rows = query.query_map([], |row| {
        Ok(ApiKey {
            id: parsed(row, 0)?,
            team: parsed(row, 1)?,
            name: row.get(2)?,
            hash: row.get(3)?,
            mask: (row.get(4)?, row.get(5)?),
            created_at: time(row, 6)?,
            last_used: maybe_time(row, 7)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn templates(db: &Connection, team: TeamId) -> Result<Vec<Template>, StoreError> {
    let sql = format!(
        "{TEMPLATE} WHERE (t.team IS NULL OR t.team = ?1 OR t.public) AND NOT t.snapshot ORDER BY t.created_us, t.id"
    );
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map([team.to_string()], template_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn template(db: &Connection, id: &TemplateId) -> Result<Option<Template>, StoreError> {
    let sql = format!("{TEMPLATE} WHERE t.id = ?1");
    Ok(db.prepare_cached(&sql)?.query_row([id.as_str()], template_of).optional()?)
}

/// `namespace/name`: exactly that. A bare name: the team's own, then a global one, then an id.
pub(super) fn resolve_template(
    db: &Connection,
    team: TeamId,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<Template>, StoreError> {
    if let Some(slug) = namespace {
        let sql = format!(
            "{TEMPLATE} JOIN aliases a ON a.template = t.id JOIN teams n ON n.id = a.namespace
             WHERE n.slug = ?1 AND a.alias = ?2"
        );
        return Ok(db.prepare_cached(&sql)?.query_row([slug, name], template_of).optional()?);
    }
    let sql =
        format!("{TEMPLATE} JOIN aliases a ON a.template = t.id WHERE a.namespace = ?1 AND a.alias = ?2");
    for namespace in [team.to_string(), String::new()] {
        let found = db.prepare_cached(&sql)?.query_row([namespace.as_str(), name], template_of).optional()?;
        if found.is_some() {
            return Ok(found);
        }
    }
    match name.parse() {
        Ok(id) => template(db, &id),
        Err(_) => Ok(None),
    }
}

pub(super) fn tagged_build(
    db: &Connection,
    template: &TemplateId,
    tag: &str,
) -> Result<Option<Build>, StoreError> {
    if tag == DEFAULT_TAG {
        return Ok(self::template(db, template)?.and_then(|template| template.build));
    }
    let mut query = db.prepare_cached(
        "SELECT b.id, b.template, b.cpu_count, b.memory_mb, b.disk_mb, b.fingerprint, b.created_us
         FROM tags t JOIN builds b ON b.id = t.build WHERE t.template = ?1 AND t.tag = ?2",
    )?;
    Ok(query.query_row([template.as_str(), tag], build_of).optional()?)
}

pub(super) fn tags(db: &Connection, template: &TemplateId) -> Result<Vec<Tag>, StoreError> {
    // The default tag of a template that is no snapshot is its build, without a row of its own.
    let mut query = db.prepare_cached(
        "SELECT tag, build, assigned_us FROM tags WHERE template = ?1
         UNION ALL
         SELECT ?2, build, updated_us FROM templates WHERE id = ?1 AND build IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM tags WHERE template = ?1 AND tag = ?2)
         ORDER BY 1",
    )?;
    let rows = query.query_map([template.as_str(), DEFAULT_TAG], |row| {
        Ok(Tag { name: row.get(0)?, build: parsed(row, 1)?, assigned_at: time(row, 2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn template_builds(db: &Connection, template: &TemplateId) -> Result<Vec<Build>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT id, template, cpu_count, memory_mb, disk_mb, fingerprint, created_us
         FROM builds WHERE template = ?1 ORDER BY created_us DESC, id ASC",
    )?;
    let rows = query.query_map([template.as_str()], build_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn snapshots(db: &Connection, filter: &SnapshotFilter) -> Result<Vec<Snapshot>, StoreError> {
    let mut condition = Condition::new();
    let team = condition.bind(filter.team.to_string());
    condition.require(&format!("t.team = {team}"));
    if let Some(sandbox) = filter.sandbox {
        let sandbox = condition.bind(sandbox.to_string());
        condition.require(&format!("s.sandbox = {sandbox}"));
    }
    if let Some(template) = &filter.template {
        let template = condition.bind(template.to_string());
        condition.require(&format!("t.id = {template}"));
    }
    if let Some(tag) = &filter.tag {
        let tag = condition.bind(tag.clone());
        condition.require(&format!("g.tag = {tag}"));
    }
    if let Some((created, build)) = filter.after {
        let created = condition.bind(created.as_microsecond());
        let build = condition.bind(build.to_string());
        condition
            .require(&format!("(b.created_us < {created} OR (b.created_us = {created} AND b.id > {build}))"));
    }
    let sql = format!(
        "SELECT b.id, b.template, b.cpu_count, b.memory_mb, b.disk_mb, b.fingerprint, b.created_us,
                g.tag, s.sandbox,
                (SELECT alias FROM aliases WHERE template = t.id ORDER BY position LIMIT 1)
         FROM snapshots s JOIN builds b ON b.id = s.build JOIN tags g ON g.build = b.id
             JOIN templates t ON t.id = b.template{}
         ORDER BY b.created_us DESC, b.id ASC LIMIT {}",
        condition.sql, filter.limit
    );
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map(condition.values().as_slice(), |row| {
        Ok(Snapshot { build: build_of(row)?, tag: row.get(7)?, sandbox: parsed(row, 8)?, alias: row.get(9)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn builds(db: &Connection) -> Result<Vec<BuildId>, StoreError> {
    let mut query = db.prepare_cached("SELECT id FROM builds")?;
    let rows = query.query_map([], |row| parsed(row, 0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn build_of(row: &Row<'_>) -> rusqlite::Result<Build> {
    Ok(Build {
        id: parsed(row, 0)?,
        template: parsed(row, 1)?,
        resources: Resources { cpu_count: row.get(2)?, memory_mb: row.get(3)?, disk_mb: row.get(4)? },
        fingerprint: row.get(5)?,
        created_at: time(row, 6)?,
    })
}

fn template_of(row: &Row<'_>) -> rusqlite::Result<Template> {
    let id: TemplateId = parsed(row, 0)?;
    let build = match row.get::<_, Option<String>>(7)? {
        None => None,
        Some(_) => Some(Build {
            id: parsed(row, 7)?,
            template: id.clone(),
            resources: Resources { cpu_count: row.get(8)?, memory_mb: row.get(9)?, disk_mb: row.get(10)? },
            fingerprint: row.get(11)?,
            created_at: time(row, 12)?,
        }),
    };
    Ok(Template {
        id,
        team: row.get::<_, Option<String>>(1)?.map(|_| parsed(row, 1)).transpose()?,
        public: row.get(2)?,
        aliases: json(row, 13)?,
        created_at: time(row, 3)?,
        updated_at: time(row, 4)?,
        last_spawned_at: maybe_time(row, 5)?,
        spawn_count: row.get(6)?,
        build,
    })
}

pub(super) fn sandbox(db: &Connection, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
    let sql = format!("{SANDBOX} WHERE id = ?1");
    Ok(db.prepare_cached(&sql)?.query_row([id.as_str()], sandbox_of).optional()?)
}

pub(super) fn sandboxes(db: &Connection, filter: &SandboxFilter) -> Result<Vec<SandboxRecord>, StoreError> {
    let mut condition = Condition::of(filter)?;
    let (order, behind) = if filter.ascending { ("ASC", '>') } else { ("DESC", '<') };
    if let Some((start, id)) = filter.after {
        let start = condition.bind(start.as_microsecond());
        let id = condition.bind(id.to_string());
        condition.require(&format!("(started_us {behind} {start} OR (started_us = {start} AND id > {id}))"));
    }
    let limit = filter.limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
    let sql = format!("{SANDBOX}{} ORDER BY started_us {order}, id ASC{limit}", condition.sql);
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map(condition.values().as_slice(), sandbox_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn count_sandboxes(db: &Connection, filter: &SandboxFilter) -> Result<u64, StoreError> {
    let condition = Condition::of(filter)?;
    let sql = format!("SELECT count(*) FROM sandboxes{}", condition.sql);
    Ok(db.prepare_cached(&sql)?.query_row(condition.values().as_slice(), |row| row.get(0))?)
}

fn sandbox_of(row: &Row<'_>) -> rusqlite::Result<SandboxRecord> {
    Ok(SandboxRecord {
        id: parsed(row, 0)?,
        spec: json(row, 1)?,
        state: state_of(row, 2)?,
        generation: row.get(3)?,
        started_at: time(row, 4)?,
        end_at: time(row, 5)?,
        machine: row.get::<_, Option<String>>(6)?.map(|_| json(row, 6)).transpose()?,
        unresponsive: row.get(8)?,
        freshness: row.get::<_, Option<String>>(7)?.map(|_| json(row, 7)).transpose()?,
    })
}

/// A WHERE clause with its values.
struct Condition {
    sql: String,
    values: Vec<Box<dyn ToSql>>,
}

// === impl Condition ===

impl Condition {
    fn new() -> Self {
        Self { sql: String::new(), values: Vec::new() }
    }

    /// All of the filter but its paging.
    fn of(filter: &SandboxFilter) -> Result<Self, StoreError> {
        let mut condition = Self::new();
        if let Some(team) = filter.team {
            let team = condition.bind(team.to_string());
            condition.require(&format!("team = {team}"));
        }
        let states = if filter.states.is_empty() {
            &[SandboxState::Running, SandboxState::Paused][..]
        } else {
            &filter.states
        };
        let states: Vec<String> = states.iter().map(|state| format!("'{}'", state_text(*state))).collect();
        condition.require(&format!("state IN ({})", states.join(", ")));
        if let Some(start) = filter.started_after {
            let start = condition.bind(start.as_microsecond());
            condition.require(&format!("started_us >= {start}"));
        }
        if let Some(template) = &filter.template {
            let template = condition.bind(template.to_string());
            condition.require(&format!("template = {template}"));
        }
        for (key, value) in &filter.metadata {
            let (key, value) = (condition.bind(key.clone()), condition.bind(value.clone()));
            condition.require(&format!(
                "EXISTS (SELECT 1 FROM json_each(spec, '$.metadata') WHERE key = {key} AND value = {value})"
            ));
        }
        // SQLite's own bound on parameters; a longer filter cannot be meant seriously.
        if condition.values.len() > 30_000 {
            return Err(StoreError::Backend("the filter has too many labels".to_owned()));
        }
        Ok(condition)
    }

    fn bind(&mut self, value: impl ToSql + 'static) -> String {
        self.values.push(Box::new(value));
        format!("?{}", self.values.len())
    }

    fn require(&mut self, term: &str) {
        self.sql.push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        self.sql.push_str(term);
    }

    fn values(&self) -> Vec<&dyn ToSql> {
        self.values.iter().map(|value| &**value).collect()
    }
}

/// How a state is written in its column.
pub(super) fn state_text(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "creating",
        SandboxState::Running => "running",
        SandboxState::Paused => "paused",
        SandboxState::Killing => "killing",
    }
}

fn state_of(row: &Row<'_>, column: usize) -> rusqlite::Result<SandboxState> {
    let text: String = row.get(column)?;
    let states = [SandboxState::Creating, SandboxState::Running, SandboxState::Paused, SandboxState::Killing];
    let found = states.into_iter().find(|state| state_text(*state) == text);
    found.ok_or_else(|| unreadable(column, format!("no state is called {text:?}")))
}

fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error: T::Err| unreadable(column, error.to_string()))
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, error.to_string()))
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_microsecond(row.get(column)?).map_err(|error| unreadable(column, error.to_string()))
}

fn maybe_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(column)?.map(|_| time(row, column)).transpose()
}

fn unreadable(column: usize, reason: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, reason.into())
}

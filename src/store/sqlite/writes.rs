//! Changes, each run in a savepoint of the writer's transaction.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};

use super::reads::state_text;
use crate::{
    id::{BuildId, KeyId, SandboxId, TeamId, TemplateId},
    sandbox::SandboxRecord,
    store::{ApiKey, Build, DEFAULT_TAG, Idempotency, Standing, StoreError, Team, Template},
};

/// Counts this opening of the file.
pub(super) fn next_opening(db: &Connection) -> Result<i64, StoreError> {
    db.execute("INSERT INTO openings DEFAULT VALUES", [])?;
    let number = db.last_insert_rowid();
    db.execute("DELETE FROM openings WHERE number < ?1", [number])?;
    Ok(number)
}

pub(super) fn add_team(db: &Connection, team: &Team) -> Result<(), StoreError> {
    let added = db
        .prepare_cached(
            "INSERT INTO teams (id, slug, name, standing, created_us) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            team.id.to_string(),
            team.slug,
            team.name,
            text_of(&team.standing)?,
            team.created_at.as_microsecond()
        ]);
    unique(added, &team.slug)
}

pub(super) fn set_standing(db: &Connection, id: TeamId, standing: &Standing) -> Result<(), StoreError> {
    one(db.execute(
        "UPDATE teams SET standing = ?2 WHERE id = ?1",
        params![id.to_string(), text_of(standing)?],
    )?)
}

pub(super) fn add_key(db: &Connection, key: &ApiKey) -> Result<(), StoreError> {
    let added = db
        .prepare_cached(
            "INSERT INTO api_keys (id, team, name, hash, mask_head, mask_tail, created_us, last_used_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            key.id.to_string(),
            key.team.to_string(),
            key.name,
            key.hash,
            key.mask.0,
            key.mask.1,
            key.created_at.as_microsecond(),
            key.last_used.map(Timestamp::as_microsecond)
        ]);
    unique(added, "the key")
}

pub(super) fn remove_key(db: &Connection, id: KeyId) -> Result<(), StoreError> {
    one(db.execute("DELETE FROM api_keys WHERE id = ?1", [id.to_string()])?)
}

pub(super) fn touch_key(db: &Connection, id: KeyId, at: Timestamp) -> Result<(), StoreError> {
    one(db.execute(
        "UPDATE api_keys SET last_used_us = max(coalesce(last_used_us, ?2), ?2) WHERE id = ?1",
        params![id.to_string(), at.as_microsecond()],
    )?)
}

/// The build and the counters of an existing template are not touched: they have their own calls.
pub(super) fn put_template(db: &Connection, template: &Template) -> Result<(), StoreError> {
    let id = template.id.as_str();
    let namespace = template.team.map(|team| team.to_string());
    db.prepare_cached(
        "INSERT INTO templates (id, team, public, created_us, updated_us, last_spawned_us, spawn_count)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET team = ?2, public = ?3, updated_us = ?5",
    )?
    .execute(params![
        id,
        namespace,
        template.public,
        template.created_at.as_microsecond(),
        template.updated_at.as_microsecond(),
        template.last_spawned_at.map(Timestamp::as_microsecond),
        template.spawn_count
    ])?;
    db.execute("DELETE FROM aliases WHERE template = ?1", [id])?;
    let mut claim = db.prepare_cached(
        "INSERT INTO aliases (namespace, alias, template, position)
         SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM templates WHERE id = ?2)",
    )?;
    for (position, alias) in template.aliases.iter().enumerate() {
        let claimed = claim.execute(params![namespace.as_deref().unwrap_or_default(), alias, id, position]);
        // An alias that reads like the id of a template would hide that template.
        if matches!(claimed, Ok(0)) {
            return Err(StoreError::Conflict(alias.clone()));
        }
        unique(claimed, alias)?;
    }
    Ok(())
}

pub(super) fn add_build(db: &Connection, build: &Build) -> Result<(), StoreError> {
    let (id, template) = (build.id.to_string(), build.template.as_str());
    let known: Option<i64> =
        db.query_row("SELECT 1 FROM templates WHERE id = ?1", [template], |row| row.get(0)).optional()?;
    known.ok_or(StoreError::Missing)?;
    let added = db
        .prepare_cached(
            "INSERT INTO builds (id, template, cpu_count, memory_mb, disk_mb, fingerprint, created_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET cpu_count = excluded.cpu_count, memory_mb = excluded.memory_mb,
                 disk_mb = excluded.disk_mb, fingerprint = excluded.fingerprint, created_us = excluded.created_us
             WHERE template = excluded.template",
        )?
        .execute(params![
            id,
            template,
            build.resources.cpu_count,
            build.resources.memory_mb,
            build.resources.disk_mb,
            build.fingerprint,
            build.created_at.as_microsecond()
        ])?;
    if added == 0 {
        return Err(StoreError::Conflict(id));
    }
    db.execute(
        "UPDATE templates SET build = ?1, updated_us = ?3 WHERE id = ?2",
        params![id, template, build.created_at.as_microsecond()],
    )?;
    Ok(())
}

pub(super) fn add_snapshot(
    db: &Connection,
    template: &Template,
    build: &Build,
    tag: &str,
    sandbox: SandboxId,
) -> Result<(), StoreError> {
    let id = template.id.as_str();
    let known: Option<bool> =
        db.query_row("SELECT snapshot FROM templates WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    match known {
        Some(true) => {}
        Some(false) => return Err(StoreError::Conflict(template.aliases.join(", "))),
        None => put_template(db, template)?,
    }
    let before: Option<String> =
        db.query_row("SELECT build FROM templates WHERE id = ?1", [id], |row| row.get(0))?;
    add_build(db, build)?;
    let now = build.id.to_string();
    let default = if tag == DEFAULT_TAG { Some(now.as_str()) } else { before.as_deref() };
    db.execute("UPDATE templates SET snapshot = 1, build = ?2 WHERE id = ?1", params![id, default])?;
    db.execute("INSERT INTO snapshots (build, sandbox) VALUES (?1, ?2)", params![now, sandbox.to_string()])?;
    let former: Option<String> = db
        .query_row("SELECT build FROM tags WHERE template = ?1 AND tag = ?2", [id, tag], |row| row.get(0))
        .optional()?;
    db.execute(
        "INSERT OR REPLACE INTO tags (template, tag, build, assigned_us) VALUES (?1, ?2, ?3, ?4)",
        params![id, tag, now, build.created_at.as_microsecond()],
    )?;
    former.map_or(Ok(()), |former| drop_untagged(db, &former))
}

pub(super) fn assign_tags(
    db: &Connection,
    template: &TemplateId,
    tags: &[String],
    build: BuildId,
    at: Timestamp,
) -> Result<(), StoreError> {
    let (id, build, at) = (template.as_str(), build.to_string(), at.as_microsecond());
    let snapshot: Option<bool> = db
        .query_row(
            "SELECT t.snapshot FROM builds b JOIN templates t ON t.id = b.template WHERE b.id = ?1 AND t.id = ?2",
            [&build, id],
            |row| row.get(0),
        )
        .optional()?;
    let snapshot = snapshot.ok_or(StoreError::Missing)?;
    for tag in tags {
        if tag == DEFAULT_TAG {
            db.execute(
                "UPDATE templates SET build = ?2, updated_us = ?3 WHERE id = ?1",
                params![id, build, at],
            )?;
            if !snapshot {
                continue;
            }
        }
        let former: Option<String> = db
            .query_row("SELECT build FROM tags WHERE template = ?1 AND tag = ?2", [id, tag], |row| row.get(0))
            .optional()?;
        db.execute(
            "INSERT OR REPLACE INTO tags (template, tag, build, assigned_us) VALUES (?1, ?2, ?3, ?4)",
            params![id, tag, build, at],
        )?;
        if let Some(former) = former.filter(|_| snapshot) {
            drop_untagged(db, &former)?;
        }
    }
    Ok(())
}

pub(super) fn remove_tags(db: &Connection, template: &TemplateId, tags: &[String]) -> Result<(), StoreError> {
    let id = template.as_str();
    let snapshot: Option<bool> =
        db.query_row("SELECT snapshot FROM templates WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    let snapshot = snapshot.ok_or(StoreError::Missing)?;
    for tag in tags.iter().filter(|tag| *tag != DEFAULT_TAG) {
        let former: Option<String> = db
            .query_row("SELECT build FROM tags WHERE template = ?1 AND tag = ?2", [id, tag], |row| row.get(0))
            .optional()?;
        let Some(former) = former else { continue };
        db.execute("DELETE FROM tags WHERE template = ?1 AND tag = ?2", [id, tag])?;
        if snapshot {
            drop_untagged(db, &former)?;
        }
    }
    Ok(())
}

/// A build that no tag points to any more is nobody's.
fn drop_untagged(db: &Connection, build: &str) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM builds WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM tags WHERE build = ?1)
             AND NOT EXISTS (SELECT 1 FROM templates WHERE build = ?1)",
        [build],
    )?;
    Ok(())
}

pub(super) fn drop_superseded(db: &Connection, before: Timestamp) -> Result<usize, StoreError> {
    let mut drop = db.prepare_cached(
        "DELETE FROM builds WHERE id IN (
             SELECT b.id FROM builds b JOIN templates t ON t.id = b.template
             WHERE NOT t.snapshot AND t.updated_us < ?1 AND t.build IS NOT NULL AND t.build <> b.id)
         AND NOT EXISTS (SELECT 1 FROM tags WHERE build = builds.id)
         AND NOT EXISTS (SELECT 1 FROM templates WHERE build = builds.id)
         AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE json_extract(spec, '$.build') = builds.id)",
    )?;
    Ok(drop.execute([before.as_microsecond()])?)
}

pub(super) fn remove_template(db: &Connection, id: &TemplateId, tag: Option<&str>) -> Result<(), StoreError> {
    let id = id.as_str();
    if let Some(tag) = tag {
        let build: Option<String> = db
            .query_row("SELECT build FROM tags WHERE template = ?1 AND tag = ?2", [id, tag], |row| row.get(0))
            .optional()?;
        if let Some(build) = build {
            let others: i64 = db.query_row(
                "SELECT count(*) FROM tags WHERE template = ?1 AND tag <> ?2",
                [id, tag],
                |row| row.get(0),
            )?;
            if others > 0 {
                let users: i64 = db.query_row(
                    "SELECT count(*) FROM sandboxes WHERE template = ?1 AND json_extract(spec, '$.build') = ?2
                         AND state <> 'killing'",
                    [id, &build],
                    |row| row.get(0),
                )?;
                if users > 0 {
                    return Err(StoreError::InUse);
                }
                db.execute("DELETE FROM tags WHERE template = ?1 AND tag = ?2", [id, tag])?;
                db.execute("UPDATE templates SET build = NULL WHERE id = ?1 AND build = ?2", [id, &build])?;
                return drop_untagged(db, &build);
            }
        } else if tag != DEFAULT_TAG {
            return Err(StoreError::Missing);
        }
    }
    let users: i64 = db.query_row(
        "SELECT count(*) FROM sandboxes WHERE template = ?1 AND state <> 'killing'",
        [id],
        |row| row.get(0),
    )?;
    if users > 0 {
        return Err(StoreError::InUse);
    }
    db.execute("UPDATE templates SET build = NULL WHERE id = ?1", [id])?;
    one(db.execute("DELETE FROM templates WHERE id = ?1", [id])?)
}

pub(super) fn count_spawn(db: &Connection, id: &TemplateId, at: Timestamp) -> Result<(), StoreError> {
    let mut count = db.prepare_cached(
        "UPDATE templates SET spawn_count = spawn_count + 1, last_spawned_us = max(coalesce(last_spawned_us, ?2), ?2)
         WHERE id = ?1",
    )?;
    one(count.execute(params![id.as_str(), at.as_microsecond()])?)
}

pub(super) fn put_sandbox(db: &Connection, record: &SandboxRecord) -> Result<(), StoreError> {
    let machine = record.machine.as_ref().map(text_of).transpose()?;
    let freshness = record.freshness.as_ref().map(text_of).transpose()?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO sandboxes
             (id, team, template, state, generation, started_us, end_us, spec, machine, freshness,
              unresponsive)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        record.id.as_str(),
        record.spec.team.to_string(),
        record.spec.template.as_str(),
        state_text(record.state),
        record.generation,
        record.started_at.as_microsecond(),
        record.end_at.as_microsecond(),
        text_of(&record.spec)?,
        machine,
        freshness,
        record.unresponsive
    ])?;
    Ok(())
}

pub(super) fn remove_sandbox(db: &Connection, id: SandboxId) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM sandboxes WHERE id = ?1")?.execute([id.as_str()])?;
    Ok(())
}

pub(super) fn begin_idempotent(
    db: &Connection,
    team: TeamId,
    key: &str,
    fingerprint: &str,
    opening: i64,
    now: Timestamp,
    ttl: Duration,
) -> Result<Idempotency, StoreError> {
    let (team, now) = (team.to_string(), now.as_microsecond());
    // Old keys go whenever a new one comes, so the table holds one lifetime of keys.
    db.prepare_cached("DELETE FROM idempotency WHERE expires_us <= ?1")?.execute([now])?;
    let held = db
        .prepare_cached(
            "SELECT fingerprint, opening, status, body FROM idempotency WHERE team = ?1 AND key = ?2",
        )?
        .query_row([team.as_str(), key], |row| {
            let answer = row.get::<_, Option<u16>>(2)?.zip(row.get::<_, Option<String>>(3)?);
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, answer))
        })
        .optional()?;
    Ok(match held {
        Some((of, _, _)) if of != fingerprint => Idempotency::Mismatch,
        Some((_, _, Some((status, body)))) => Idempotency::Answered { status, body },
        Some((_, holder, None)) if holder == opening => Idempotency::InProgress,
        Some(_) => Idempotency::OutcomeUnknown,
        None => {
            let expires = now.saturating_add(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX));
            db.prepare_cached(
                "INSERT INTO idempotency (team, key, fingerprint, opening, expires_us) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![team, key, fingerprint, opening, expires])?;
            Idempotency::Mine
        }
    })
}

pub(super) fn finish_idempotent(
    db: &Connection,
    team: TeamId,
    key: &str,
    status: u16,
    body: &str,
) -> Result<(), StoreError> {
    let mut finish = db.prepare_cached(
        "UPDATE idempotency SET status = ?3, body = ?4 WHERE team = ?1 AND key = ?2 AND status IS NULL",
    )?;
    one(finish.execute(params![team.to_string(), key, status, body])?)
}

pub(super) fn release_idempotent(db: &Connection, team: TeamId, key: &str) -> Result<(), StoreError> {
    let mut release =
        db.prepare_cached("DELETE FROM idempotency WHERE team = ?1 AND key = ?2 AND status IS NULL")?;
    one(release.execute(params![team.to_string(), key])?)
}

fn text_of<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Backend(error.to_string()))
}

fn one(changed: usize) -> Result<(), StoreError> {
    if changed == 0 { Err(StoreError::Missing) } else { Ok(()) }
}

/// Makes violated constraints what callers know: a taken name, or an owner that is not there.
fn unique(outcome: rusqlite::Result<usize>, name: &str) -> Result<(), StoreError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(rusqlite::Error::SqliteFailure(error, _))
            if error.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY =>
        {
            Err(StoreError::Missing)
        }
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Err(StoreError::Conflict(name.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

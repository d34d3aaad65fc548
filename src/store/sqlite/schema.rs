//! The tables, as numbered migrations: a released one is never edited, only followed by another.
//!
//! Times are whole microseconds since 1970; identifiers are text; what no query looks into is JSON.

use rusqlite::Connection;

use crate::store::StoreError;

/// Migration 1 stands first.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE openings (
        number INTEGER PRIMARY KEY AUTOINCREMENT
    ) STRICT;
    CREATE TABLE teams (
        id TEXT PRIMARY KEY,
        slug TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        standing TEXT NOT NULL,
        created_us INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE api_keys (
        id TEXT PRIMARY KEY,
        team TEXT NOT NULL REFERENCES teams (id),
        name TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE,
        mask_head TEXT NOT NULL,
        mask_tail TEXT NOT NULL,
        created_us INTEGER NOT NULL,
        last_used_us INTEGER
    ) STRICT;
    CREATE TABLE templates (
        id TEXT PRIMARY KEY,
        team TEXT REFERENCES teams (id),
        public INTEGER NOT NULL,
        created_us INTEGER NOT NULL,
        updated_us INTEGER NOT NULL,
        last_spawned_us INTEGER,
        spawn_count INTEGER NOT NULL DEFAULT 0,
        build TEXT REFERENCES builds (id)
    ) STRICT;
    -- The namespace is the team's id, or empty for global names.
    CREATE TABLE aliases (
        namespace TEXT NOT NULL,
        alias TEXT NOT NULL,
        template TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        PRIMARY KEY (namespace, alias)
    ) STRICT;
    CREATE INDEX aliases_by_template ON aliases (template, position);
    CREATE TABLE builds (
        id TEXT PRIMARY KEY,
        template TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
        cpu_count INTEGER NOT NULL,
        memory_mb INTEGER NOT NULL,
        disk_mb INTEGER NOT NULL,
        fingerprint TEXT,
        created_us INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        team TEXT NOT NULL,
        template TEXT NOT NULL,
        state TEXT NOT NULL,
        generation INTEGER NOT NULL,
        started_us INTEGER NOT NULL,
        end_us INTEGER NOT NULL,
        spec TEXT NOT NULL,
        machine TEXT
    ) STRICT;
    CREATE INDEX sandboxes_by_start ON sandboxes (team, started_us, id);
    CREATE TABLE idempotency (
        team TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        opening INTEGER NOT NULL,
        status INTEGER,
        body TEXT,
        expires_us INTEGER NOT NULL,
        PRIMARY KEY (team, key)
    ) STRICT;
    CREATE INDEX idempotency_by_expiry ON idempotency (expires_us);
",
    "
    ALTER TABLE templates ADD COLUMN snapshot INTEGER NOT NULL DEFAULT 0;
    -- What tags point to; the default tag of a template that is no snapshot is its build.
    CREATE TABLE tags (
        template TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
        tag TEXT NOT NULL,
        build TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
        PRIMARY KEY (template, tag)
    ) STRICT;
    CREATE INDEX tags_by_build ON tags (build);
    -- The sandboxes that builds were made of.
    CREATE TABLE snapshots (
        build TEXT PRIMARY KEY REFERENCES builds (id) ON DELETE CASCADE,
        sandbox TEXT NOT NULL
    ) STRICT;
    CREATE INDEX builds_by_template ON builds (template);
    CREATE INDEX sandboxes_by_template ON sandboxes (template);
",
    "
    ALTER TABLE tags ADD COLUMN assigned_us INTEGER NOT NULL DEFAULT 0;
    UPDATE tags SET assigned_us = (SELECT created_us FROM builds WHERE id = tags.build);
",
    "
    ALTER TABLE sandboxes ADD COLUMN freshness TEXT;
    ALTER TABLE sandboxes ADD COLUMN unresponsive INTEGER NOT NULL DEFAULT 0;
",
];

/// Brings the file to the newest schema, each step in its own transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    connection.execute_batch("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY) STRICT")?;
    let done: usize =
        connection.query_row("SELECT coalesce(max(number), 0) FROM migrations", [], |row| row.get(0))?;
    if done > MIGRATIONS.len() {
        return Err(StoreError::Backend(format!(
            "the data directory was written by a newer firkin (schema {done}, this one knows {}): run that version",
            MIGRATIONS.len()
        )));
    }
    for (number, step) in MIGRATIONS.iter().enumerate().skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.execute("INSERT INTO migrations (number) VALUES (?1)", [number + 1])?;
        transaction.commit()?;
    }
    Ok(())
}

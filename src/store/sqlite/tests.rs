//! What is SQLite's own part of the store's promises: the file, its threads, shared commits.

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;

use super::*;
use crate::{
    id::OsEntropy,
    store::contract::{at, key, sandbox, team, template},
};

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("firkin.db");
    (directory, path)
}

#[tokio::test]
async fn records_outlive_the_process() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let ours = team(&store, "ours").await;
    let made = key(ours.id);
    store.add_key(made.clone()).await.unwrap();
    let record = sandbox(ours.id, 0, SandboxState::Paused);
    store.put_sandbox(record.clone()).await.unwrap();
    drop(store);

    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.teams().await.unwrap(), [ours]);
    assert_eq!(store.keys().await.unwrap(), [made]);
    assert_eq!(store.sandbox(record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn an_unfinished_key_of_an_earlier_process_has_an_unknown_outcome() {
    let (_directory, path) = place();
    let (ours, ttl) = (TeamId::generate(&OsEntropy), Duration::from_mins(1));
    let store = SqliteStore::open(&path).unwrap();
    for key in ["done", "cut"] {
        assert_eq!(store.begin_idempotent(ours, key, "f", at(0), ttl).await.unwrap(), Idempotency::Mine);
    }
    store.finish_idempotent(ours, "done", 201, "{}").await.unwrap();
    drop(store);

    let store = SqliteStore::open(&path).unwrap();
    let answered = Idempotency::Answered { status: 201, body: "{}".to_owned() };
    assert_eq!(store.begin_idempotent(ours, "done", "f", at(1), ttl).await.unwrap(), answered);
    assert_eq!(
        store.begin_idempotent(ours, "cut", "f", at(1), ttl).await.unwrap(),
        Idempotency::OutcomeUnknown
    );
}

#[tokio::test]
async fn a_newer_file_is_refused_with_what_to_do() {
    let (_directory, path) = place();
    drop(SqliteStore::open(&path).unwrap());
    let newer = Connection::open(&path).unwrap();
    newer.execute("INSERT INTO migrations (number) VALUES (1000)", []).unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("newer firkin") && error.contains("run that version"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_leaves_its_neighbours_in_the_batch() {
    let (_directory, path) = place();
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let ours = team(&*store, "ours").await;
    let writes: Vec<_> = (0..100)
        .map(|n| {
            let (store, alias) = (Arc::clone(&store), format!("name-{}", n / 2));
            let template = template(Some(ours.id), &[alias.as_str()]);
            tokio::spawn(async move { store.put_template(template).await.is_ok() })
        })
        .collect();
    let mut done = 0;
    for write in writes {
        done += usize::from(write.await.unwrap());
    }
    assert_eq!(done, 50, "of each two that want a name, one gets it");
    assert_eq!(store.templates(ours.id).await.unwrap().len(), 50);
}

#[tokio::test]
async fn a_full_disk_is_told_as_one_and_costs_only_the_write_that_had_no_room() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (ours, kept) =
        (TeamId::generate(&OsEntropy), sandbox(TeamId::generate(&OsEntropy), 0, SandboxState::Paused));
    store.put_sandbox(kept.clone()).await.unwrap();
    let pages = |most: Option<i64>| {
        store.writer.run(Durability::Process, move |db| {
            let now: i64 = db.pragma_query_value(None, "page_count", |row| row.get(0))?;
            Ok(db.pragma_update(None, "max_page_count", most.unwrap_or(now))?)
        })
    };
    pages(None).await.unwrap();
    let mut refused = None;
    for _ in 0..1000 {
        let record = sandbox(ours, 0, SandboxState::Running);
        if let Err(error) = store.put_sandbox(record.clone()).await {
            refused = Some((record, error));
            break;
        }
    }
    let (record, error) = refused.unwrap();
    assert_eq!(error, StoreError::Full);
    assert_eq!(store.sandbox(record.id).await.unwrap(), None, "nothing of it is written");
    assert_eq!(store.sandbox(kept.id).await.unwrap(), Some(kept));
    pages(Some(1_000_000)).await.unwrap();
    store.put_sandbox(record.clone()).await.unwrap();
    assert_eq!(store.sandbox(record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_take_its_write_back() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let record = sandbox(TeamId::generate(&OsEntropy), 0, SandboxState::Running);
    let mut write = Box::pin(store.put_sandbox(record.clone()));
    // One poll queues the job; the answer is not waited for.
    let _ = futures_util::poll!(&mut write);
    drop(write);
    // The writer works in order, so what comes after sees what came before.
    store.remove_sandbox(SandboxId::generate(&OsEntropy)).await.unwrap();
    assert_eq!(store.sandbox(record.id).await.unwrap(), Some(record));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_at_once_share_commits() {
    let (_directory, path) = place();
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    // A job that holds the writer up lets the queue fill, so that one batch takes all of it.
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let holder = Arc::clone(&store);
    let held = tokio::spawn(async move {
        let hold = move |_: &Connection| {
            let _ = started.send(());
            let _ = released.recv_timeout(Duration::from_secs(20));
            Ok(())
        };
        holder.writer.run(Durability::Process, hold).await
    });
    has_started.await.unwrap();
    let ours = TeamId::generate(&OsEntropy);
    let mut writes: Vec<_> =
        (0..100).map(|n| Box::pin(store.put_sandbox(sandbox(ours, n, SandboxState::Running)))).collect();
    for write in &mut writes {
        assert!(futures_util::poll!(write).is_pending(), "the writer is held up");
    }
    let before = store.writer.commits();
    release.send(()).unwrap();
    held.await.unwrap().unwrap();
    for write in writes {
        write.await.unwrap();
    }
    assert_eq!(store.writer.commits() - before, 1, "a hundred writes, one commit");
    assert_eq!(store.count_sandboxes(SandboxFilter::default()).await.unwrap(), 100);
}

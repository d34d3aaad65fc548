//! The store's contract as tests, the same for every implementation.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::{
    ApiKey, Build, Idempotency, SandboxFilter, SnapshotFilter, Standing, Store, StoreError, Team, Template,
    memory::MemoryStore, sqlite::SqliteStore,
};
use crate::{
    id::{BuildId, KeyId, OsEntropy, SandboxId, TeamId, TemplateId},
    sandbox::{
        Lifecycle, Resources, SandboxRecord, SandboxSpec, SandboxState,
        freshness::{Freshness, Phase},
    },
};

pub(super) const RESOURCES: Resources = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 };

/// Whole microseconds: what the store keeps.
pub(super) fn at(microsecond: i64) -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_000_000 + microsecond).unwrap()
}

pub(super) async fn team(store: &dyn Store, slug: &str) -> Team {
    let team = Team {
        id: TeamId::generate(&OsEntropy),
        slug: slug.to_owned(),
        name: slug.to_uppercase(),
        standing: Standing::Good,
        created_at: at(0),
    };
    store.add_team(team.clone()).await.unwrap();
    team
}

pub(super) fn key(team: TeamId) -> ApiKey {
    let id = KeyId::generate(&OsEntropy);
    ApiKey {
        id,
        team,
        name: "a key".to_owned(),
        hash: id.0.simple().to_string().repeat(2),
        mask: ("ab".to_owned(), "cdef".to_owned()),
        created_at: at(1),
        last_used: None,
    }
}

pub(super) fn template(team: Option<TeamId>, aliases: &[&str]) -> Template {
    Template {
        id: TemplateId::generate(&OsEntropy),
        team,
        public: false,
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        created_at: at(2),
        updated_at: at(2),
        last_spawned_at: None,
        spawn_count: 0,
        build: None,
    }
}

pub(super) fn sandbox(team: TeamId, start: i64, state: SandboxState) -> SandboxRecord {
    SandboxRecord {
        id: SandboxId::generate(&OsEntropy),
        spec: SandboxSpec {
            team,
            template: "abcdefghij0123456789".parse().unwrap(),
            alias: None,
            build: BuildId::generate(&OsEntropy),
            resources: RESOURCES,
            timeout_s: 300,
            lifecycle: Lifecycle::default(),
            metadata: BTreeMap::from([("k 1".to_owned(), "v=1".to_owned())]),
            env_vars: BTreeMap::new(),
            secure: true,
            allow_internet_access: None,
            network: None,
        },
        state,
        generation: 1,
        started_at: at(start),
        end_at: at(start + 300_000_000),
        machine: Some(serde_json::json!({"pid": 7})),
        unresponsive: true,
        freshness: Some(Freshness {
            branch: "main".to_owned(),
            target: "origin/main".to_owned(),
            checkout: Some("/srv/repo".to_owned()),
            gates_processes: true,
            phase: Phase::Failed,
            reason: Some("no route".to_owned()),
        }),
    }
}

async fn teams_and_keys(store: &dyn Store) {
    let ours = team(store, "ours").await;
    let twin = Team { id: TeamId::generate(&OsEntropy), ..ours.clone() };
    assert!(matches!(store.add_team(twin).await, Err(StoreError::Conflict(slug)) if slug == "ours"));
    assert_eq!(store.teams().await.unwrap(), std::slice::from_ref(&ours));
    store.set_standing(ours.id, Standing::Blocked("unpaid".to_owned())).await.unwrap();
    assert_eq!(store.teams().await.unwrap()[0].standing, Standing::Blocked("unpaid".to_owned()));

    let made = key(ours.id);
    store.add_key(made.clone()).await.unwrap();
    assert!(matches!(store.add_key(made.clone()).await, Err(StoreError::Conflict(_))));
    let orphan = key(TeamId::generate(&OsEntropy));
    assert!(matches!(store.add_key(orphan).await, Err(StoreError::Missing)));
    store.touch_key(made.id, at(9)).await.unwrap();
    store.touch_key(made.id, at(8)).await.unwrap();
    assert_eq!(store.keys().await.unwrap(), [ApiKey { last_used: Some(at(9)), ..made.clone() }]);
    store.remove_key(made.id).await.unwrap();
    assert!(matches!(store.remove_key(made.id).await, Err(StoreError::Missing)));
    assert_eq!(store.keys().await.unwrap(), []);
}

async fn templates_and_names(store: &dyn Store) {
    let (ours, theirs) = (team(store, "ours").await, team(store, "theirs").await);
    let global = template(None, &["base", "code-interpreter-v1"]);
    let own = template(Some(ours.id), &["base"]);
    let foreign = template(Some(theirs.id), &["secret"]);
    for template in [&global, &own, &foreign] {
        store.put_template(template.clone()).await.unwrap();
    }
    let found = async |team: &Team, namespace: Option<&str>, name: &str| {
        store.resolve_template(team.id, namespace, name).await.unwrap().map(|template| template.id)
    };
    assert_eq!(found(&ours, None, "base").await, Some(own.id.clone()), "the team's own name comes first");
    assert_eq!(found(&theirs, None, "base").await, Some(global.id.clone()));
    assert_eq!(found(&ours, Some("ours"), "base").await, Some(own.id.clone()));
    assert_eq!(found(&ours, Some("theirs"), "secret").await, Some(foreign.id.clone()));
    assert_eq!(found(&ours, None, "secret").await, None);
    assert_eq!(found(&ours, None, own.id.as_str()).await, Some(own.id.clone()));
    assert_eq!(found(&ours, Some("ours"), own.id.as_str()).await, None, "ids have no namespace");

    let taken = template(Some(ours.id), &["free", "base"]);
    assert!(
        matches!(store.put_template(taken.clone()).await, Err(StoreError::Conflict(alias)) if alias == "base")
    );
    assert_eq!(store.template(&taken.id).await.unwrap(), None, "nothing of a refused template is left");
    assert_eq!(found(&ours, None, "free").await, None);
    let hiding = template(Some(ours.id), &[global.id.as_str()]);
    assert!(matches!(store.put_template(hiding).await, Err(StoreError::Conflict(_))));

    let visible: Vec<_> =
        store.templates(ours.id).await.unwrap().into_iter().map(|template| template.id).collect();
    assert!(visible.contains(&own.id) && visible.contains(&global.id) && !visible.contains(&foreign.id));

    let build = Build {
        id: BuildId::generate(&OsEntropy),
        template: own.id.clone(),
        resources: RESOURCES,
        fingerprint: Some("f".to_owned()),
        created_at: at(5),
    };
    store.add_build(build.clone()).await.unwrap();
    let lost = Build {
        id: BuildId::generate(&OsEntropy),
        template: TemplateId::generate(&OsEntropy),
        ..build.clone()
    };
    assert!(matches!(store.add_build(lost).await, Err(StoreError::Missing)));
    let stolen = Build { template: global.id.clone(), ..build.clone() };
    assert!(matches!(store.add_build(stolen).await, Err(StoreError::Conflict(_))));
    let newer = Build { id: BuildId::generate(&OsEntropy), created_at: at(6), ..build.clone() };
    store.add_build(newer.clone()).await.unwrap();
    assert_eq!(store.template(&own.id).await.unwrap().unwrap().build, Some(newer));
    store.add_build(build.clone()).await.unwrap();
    assert_eq!(
        store.template(&own.id).await.unwrap().unwrap().build,
        Some(build.clone()),
        "back to an older one"
    );
    store.count_spawn(&own.id, at(7)).await.unwrap();
    store.put_template(Template { public: true, ..own.clone() }).await.unwrap();
    let kept = store.template(&own.id).await.unwrap().unwrap();
    assert_eq!((kept.build, kept.spawn_count, kept.last_spawned_at), (Some(build), 1, Some(at(7))));
    assert!(kept.public, "a replaced template keeps its build and its counters");
}

async fn snapshots_and_tags(store: &dyn Store) {
    let ours = team(store, "ours").await;
    let from = sandbox(ours.id, 1, SandboxState::Running);
    let made = |template: &Template, created: i64| Build {
        id: BuildId::generate(&OsEntropy),
        template: template.id.clone(),
        resources: RESOURCES,
        fingerprint: None,
        created_at: at(created),
    };
    let ordinary = template(Some(ours.id), &["plain"]);
    store.put_template(ordinary.clone()).await.unwrap();
    let refused = store.add_snapshot(ordinary.clone(), made(&ordinary, 1), "default", from.id).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "an ordinary template is not overwritten");

    let named = template(Some(ours.id), &["snap"]);
    let (first, second, tagged) = (made(&named, 10), made(&named, 20), made(&named, 30));
    store.add_snapshot(named.clone(), first.clone(), "default", from.id).await.unwrap();
    assert_eq!(store.tagged_build(&named.id, "default").await.unwrap(), Some(first.clone()));
    store.add_snapshot(named.clone(), second.clone(), "default", from.id).await.unwrap();
    assert!(!store.builds().await.unwrap().contains(&first.id), "what no tag points to is gone");
    store.add_snapshot(named.clone(), tagged.clone(), "v1", from.id).await.unwrap();
    assert_eq!(store.tagged_build(&named.id, "default").await.unwrap(), Some(second.clone()));
    assert_eq!(store.tagged_build(&named.id, "v1").await.unwrap(), Some(tagged.clone()));
    assert_eq!(store.tagged_build(&named.id, "v2").await.unwrap(), None);
    let unnamed = template(Some(ours.id), &[]);
    let other = made(&unnamed, 40);
    let elsewhere = SandboxId::generate(&OsEntropy);
    store.add_snapshot(unnamed.clone(), other.clone(), "default", elsewhere).await.unwrap();
    let visible = store.templates(ours.id).await.unwrap();
    assert!(visible.iter().map(|template| &template.id).eq([&ordinary.id]));
    assert!(store.resolve_template(ours.id, Some("ours"), "snap").await.unwrap().is_some());

    let all =
        SnapshotFilter { team: ours.id, sandbox: None, template: None, tag: None, after: None, limit: 9 };
    let listed = async |filter: SnapshotFilter| -> Vec<BuildId> {
        store.snapshots(filter).await.unwrap().into_iter().map(|snapshot| snapshot.build.id).collect()
    };
    assert_eq!(listed(all.clone()).await, [other.id, tagged.id, second.id]);
    assert_eq!(listed(SnapshotFilter { sandbox: Some(elsewhere), ..all.clone() }).await, [other.id]);
    let own = SnapshotFilter { template: Some(named.id.clone()), ..all.clone() };
    assert_eq!(listed(SnapshotFilter { tag: Some("v1".to_owned()), ..own }).await, [tagged.id]);
    let page = SnapshotFilter { limit: 1, after: Some((other.created_at, other.id)), ..all.clone() };
    assert_eq!(listed(page).await, [tagged.id]);
    let found = store.snapshots(all.clone()).await.unwrap();
    assert_eq!(
        (found[1].alias.as_deref(), found[1].tag.as_str(), found[1].sandbox),
        (Some("snap"), "v1", from.id)
    );
    assert_eq!(listed(SnapshotFilter { team: TeamId::generate(&OsEntropy), ..all.clone() }).await, []);

    let mut user = sandbox(ours.id, 2, SandboxState::Paused);
    user.spec.template = named.id.clone();
    user.spec.build = tagged.id;
    store.put_sandbox(user.clone()).await.unwrap();
    for tag in [None, Some("v1")] {
        assert!(matches!(store.remove_template(&named.id, tag).await, Err(StoreError::InUse)));
    }
    assert!(matches!(store.remove_template(&named.id, Some("v2")).await, Err(StoreError::Missing)));
    store.remove_template(&named.id, Some("default")).await.unwrap();
    assert_eq!(store.tagged_build(&named.id, "default").await.unwrap(), None);
    store.remove_sandbox(user.id).await.unwrap();
    store.remove_template(&named.id, Some("v1")).await.unwrap();
    assert_eq!(store.template(&named.id).await.unwrap(), None, "the last tag takes the template along");
    store.remove_template(&unnamed.id, None).await.unwrap();
    assert!(matches!(store.remove_template(&unnamed.id, None).await, Err(StoreError::Missing)));
    assert_eq!(store.builds().await.unwrap(), []);
    assert_eq!(listed(all).await, []);
}

async fn tags_of_templates(store: &dyn Store) {
    let ours = team(store, "ours").await;
    let plain = template(Some(ours.id), &["plain"]);
    store.put_template(plain.clone()).await.unwrap();
    let made = |template: &Template, created: i64| Build {
        id: BuildId::generate(&OsEntropy),
        template: template.id.clone(),
        resources: RESOURCES,
        fingerprint: None,
        created_at: at(created),
    };
    let (old, new) = (made(&plain, 10), made(&plain, 20));
    let shown = async |template: &Template| {
        let tags = store.tags(&template.id).await.unwrap();
        tags.into_iter().map(|tag| (tag.name, tag.build, tag.assigned_at)).collect::<Vec<_>>()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(shown(&plain).await, []);
    store.add_build(old.clone()).await.unwrap();
    store.add_build(new.clone()).await.unwrap();
    assert_eq!(shown(&plain).await, [("default".to_owned(), new.id, at(20))]);
    assert_eq!(store.template_builds(&plain.id).await.unwrap(), [new.clone(), old.clone()]);

    store.assign_tags(&plain.id, names(&["v1", "a"]), old.id, at(30)).await.unwrap();
    store.assign_tags(&plain.id, names(&["a"]), new.id, at(31)).await.unwrap();
    assert_eq!(store.tagged_build(&plain.id, "v1").await.unwrap(), Some(old.clone()));
    store.assign_tags(&plain.id, names(&["default"]), old.id, at(32)).await.unwrap();
    assert_eq!(
        shown(&plain).await,
        [
            ("a".to_owned(), new.id, at(31)),
            ("default".to_owned(), old.id, at(32)),
            ("v1".to_owned(), old.id, at(30))
        ]
    );
    assert_eq!(store.template(&plain.id).await.unwrap().unwrap().build, Some(old.clone()));
    assert!(!store.templates(ours.id).await.unwrap().is_empty(), "tags make no snapshot of a template");
    let foreign = template(Some(ours.id), &["foreign"]);
    store.put_template(foreign.clone()).await.unwrap();
    let refused = store.assign_tags(&foreign.id, names(&["x"]), old.id, at(33)).await;
    assert!(matches!(refused, Err(StoreError::Missing)), "another template's build");

    store.remove_tags(&plain.id, names(&["a", "nope", "default"])).await.unwrap();
    assert_eq!(store.tagged_build(&plain.id, "a").await.unwrap(), None);
    assert_eq!(shown(&plain).await.len(), 2, "the default tag stays");
    assert_eq!(store.template_builds(&plain.id).await.unwrap().len(), 2, "its builds stay");
    let lost = store.remove_tags(&TemplateId::generate(&OsEntropy), names(&["a"])).await;
    assert!(matches!(lost, Err(StoreError::Missing)));

    let snap = template(Some(ours.id), &["snap"]);
    let from = SandboxId::generate(&OsEntropy);
    let (first, second) = (made(&snap, 40), made(&snap, 50));
    store.add_snapshot(snap.clone(), first.clone(), "default", from).await.unwrap();
    store.add_snapshot(snap.clone(), second.clone(), "v2", from).await.unwrap();
    assert_eq!(shown(&snap).await[0], ("default".to_owned(), first.id, at(40)));
    store.assign_tags(&snap.id, names(&["default"]), second.id, at(60)).await.unwrap();
    assert_eq!(store.tagged_build(&snap.id, "default").await.unwrap(), Some(second.clone()));
    assert!(!store.builds().await.unwrap().contains(&first.id), "a snapshot without a tag is gone");
    store.remove_tags(&snap.id, names(&["v2"])).await.unwrap();
    assert_eq!(shown(&snap).await, [("default".to_owned(), second.id, at(60))]);
}

async fn superseded_builds(store: &dyn Store) {
    let team = team(store, "superseded").await;
    let made = template(Some(team.id), &["often-built"]);
    store.put_template(made.clone()).await.unwrap();
    let build = |number: i64| Build {
        id: BuildId::generate(&OsEntropy),
        template: made.id.clone(),
        resources: RESOURCES,
        fingerprint: None,
        created_at: at(number),
    };
    let (used, tagged, plain, newest) = (build(10), build(11), build(12), build(13));
    for one in [&used, &tagged, &plain, &newest] {
        store.add_build(one.clone()).await.unwrap();
    }
    store.assign_tags(&made.id, vec!["kept".to_owned()], tagged.id, at(13)).await.unwrap();
    let mut record = sandbox(team.id, 1, SandboxState::Paused);
    record.spec.template = made.id.clone();
    record.spec.build = used.id;
    store.put_sandbox(record.clone()).await.unwrap();
    let builds = async || {
        let builds = store.template_builds(&made.id).await.unwrap();
        builds.into_iter().map(|build| build.id).collect::<Vec<_>>()
    };
    assert_eq!(store.drop_superseded(at(13)).await.unwrap(), 0, "it was assigned just now");
    assert_eq!(store.drop_superseded(at(14)).await.unwrap(), 1);
    assert_eq!(builds().await, [newest.id, tagged.id, used.id]);
    store.remove_sandbox(record.id).await.unwrap();
    assert_eq!(store.drop_superseded(at(14)).await.unwrap(), 1);
    assert_eq!(builds().await, [newest.id, tagged.id]);
    store.remove_template(&made.id, None).await.unwrap();
}

async fn sandboxes_in_order(store: &dyn Store) {
    let ours = TeamId::generate(&OsEntropy);
    let mut records: Vec<_> = (0..4).map(|n| sandbox(ours, n / 2, SandboxState::Running)).collect();
    records[3].state = SandboxState::Paused;
    records[0].spec.metadata.insert("more".to_owned(), String::new());
    for record in &records {
        store.put_sandbox(record.clone()).await.unwrap();
    }
    store.put_sandbox(sandbox(ours, 9, SandboxState::Creating)).await.unwrap();
    store.put_sandbox(sandbox(TeamId::generate(&OsEntropy), 9, SandboxState::Running)).await.unwrap();
    assert_eq!(store.sandbox(records[0].id).await.unwrap().as_ref(), Some(&records[0]));

    let all = SandboxFilter { team: Some(ours), ..SandboxFilter::default() };
    let listed = async |filter: SandboxFilter| -> Vec<SandboxId> {
        store.sandboxes(filter).await.unwrap().into_iter().map(|record| record.id).collect()
    };
    // Newest or oldest first, but ties always by id.
    let order = |ascending: bool| {
        let mut sorted: Vec<_> = records.iter().collect();
        sorted.sort_by_key(|record| record.id);
        sorted.sort_by_key(|record| {
            let start = record.started_at.as_microsecond();
            if ascending { start } else { -start }
        });
        sorted.into_iter().map(|record| record.id).collect::<Vec<_>>()
    };
    for ascending in [false, true] {
        let filter = SandboxFilter { ascending, ..all.clone() };
        assert_eq!(listed(filter.clone()).await, order(ascending));
        let mut paged = Vec::new();
        let mut after = None;
        loop {
            let page = SandboxFilter { after, limit: Some(1), ..filter.clone() };
            let Some(record) = store.sandboxes(page).await.unwrap().pop() else { break };
            after = Some((record.started_at, record.id));
            paged.push(record.id);
            assert!(paged.len() <= records.len(), "paging repeats items");
        }
        assert_eq!(paged, order(ascending));
    }
    let count = async |filter: SandboxFilter| store.count_sandboxes(filter).await.unwrap();
    assert_eq!(count(SandboxFilter { limit: Some(1), ..all.clone() }).await, 4);
    assert_eq!(count(SandboxFilter { states: vec![SandboxState::Paused], ..all.clone() }).await, 1);
    assert_eq!(count(SandboxFilter { started_after: Some(at(1)), ..all.clone() }).await, 2);
    let labels = |pairs: &[(&str, &str)]| SandboxFilter {
        metadata: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..all.clone()
    };
    assert_eq!(count(labels(&[("k 1", "v=1")])).await, 4);
    assert_eq!(count(labels(&[("k 1", "v=1"), ("more", "")])).await, 1);
    assert_eq!(count(labels(&[("k 1", "v")])).await, 0);
    let other = TemplateId::generate(&OsEntropy);
    assert_eq!(count(SandboxFilter { template: Some(other), ..all.clone() }).await, 0);

    store.remove_sandbox(records[0].id).await.unwrap();
    store.remove_sandbox(records[0].id).await.unwrap();
    assert_eq!(store.sandbox(records[0].id).await.unwrap(), None);
}

async fn idempotency_keys(store: &dyn Store) {
    let (ours, ttl) = (TeamId::generate(&OsEntropy), Duration::from_secs(1));
    let begin = async |key: &str, print: &str, now: i64| {
        store.begin_idempotent(ours, key, print, at(now), ttl).await.unwrap()
    };
    assert_eq!(begin("a", "one", 0).await, Idempotency::Mine);
    assert_eq!(begin("b", "one", 0).await, Idempotency::Mine, "keys are apart");
    let foreign = TeamId::generate(&OsEntropy);
    assert_eq!(store.begin_idempotent(foreign, "a", "two", at(0), ttl).await.unwrap(), Idempotency::Mine);
    assert_eq!(begin("a", "one", 0).await, Idempotency::InProgress);
    assert_eq!(begin("a", "two", 0).await, Idempotency::Mismatch);
    store.finish_idempotent(ours, "a", 201, "{}").await.unwrap();
    let answered = Idempotency::Answered { status: 201, body: "{}".to_owned() };
    assert_eq!(begin("a", "one", 999_999).await, answered);
    assert_eq!(begin("a", "two", 999_999).await, Idempotency::Mismatch);
    assert_eq!(begin("a", "two", 1_000_000).await, Idempotency::Mine, "the key is free again");
    store.release_idempotent(ours, "a").await.unwrap();
    assert_eq!(store.release_idempotent(ours, "a").await, Err(StoreError::Missing));
    assert_eq!(begin("a", "three", 1_000_001).await, Idempotency::Mine, "given back");
}

macro_rules! every_store {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                let directory = tempfile::tempdir().unwrap();
                super::$name(&super::SqliteStore::open(&directory.path().join("db")).unwrap()).await;
            })*
        }
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::MemoryStore::new()).await;
            })*
        }
    };
}

every_store! {
    teams_and_keys
    templates_and_names
    snapshots_and_tags
    tags_of_templates
    superseded_builds
    sandboxes_in_order
    idempotency_keys
}

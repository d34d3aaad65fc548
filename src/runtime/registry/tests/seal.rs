//! Images of running sandboxes: made, held, owned, collected, and cut short.

use super::*;
use crate::store::{Build, Template};

impl Stage {
    async fn images(&self) -> Vec<BuildId> {
        self.engine.images().await.unwrap().into_iter().map(|image| image.build).collect()
    }

    async fn collected(&self, left: &[BuildId]) {
        timeout(LONG, async {
            while self.images().await != left {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("what nobody owns is removed");
    }

    /// Makes a build the property of a template.
    async fn own(&self, build: BuildId, sandbox: SandboxId) -> TemplateId {
        let (id, now) = (TemplateId::generate(&OsEntropy), self.clock.now());
        let template = Template {
            id: id.clone(),
            team: Some(self.team),
            public: false,
            aliases: vec![],
            created_at: now,
            updated_at: now,
            last_spawned_at: None,
            spawn_count: 0,
            build: None,
        };
        let resources = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 };
        let build = Build { id: build, template: id.clone(), resources, fingerprint: None, created_at: now };
        self.store.add_snapshot(template, build, "default", sandbox).await.unwrap();
        id
    }
}

#[tokio::test]
async fn a_sandbox_goes_on_after_an_image_was_made_of_it() {
    let stage = Stage::new();
    stage.engine.listen(8000, Service::Echo);
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let before = registry.target(&id).unwrap();
    let sealed = registry.seal(stage.team, id).await.unwrap();
    assert_eq!(stage.images().await, [sealed.build]);
    assert!(!stage.engine.frozen(id) && !before.ended.is_cancelled(), "no stream was cut");
    assert_eq!(echo(&before, 8000).await, b"hello");
    // Nobody owns it yet, but somebody holds it.
    registry.collect_images();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(stage.images().await, [sealed.build]);
    let template = stage.own(sealed.build, id).await;
    let (build, of) = (sealed.build, sealed.record.spec.build);
    assert_ne!(build, of);
    drop(sealed);
    registry.collect_images();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(stage.images().await, [build]);
    // A sandbox on it, and an image on top of that.
    let child = registry.create(SandboxSpec { build, ..stage.spec() }).await.unwrap().record.id;
    let grandchild = registry.seal(stage.team, child).await.unwrap();
    stage.store.remove_template(&template, None).await.unwrap();
    registry.kill(stage.team, child).await.unwrap();
    registry.collect_images();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(stage.images().await.contains(&build), "what lies on it is held");
    drop(grandchild);
    stage.collected(&[]).await;
}

#[tokio::test]
async fn an_image_that_fails_leaves_a_running_sandbox_and_nothing_else() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    stage.engine.faults(|faults| faults.seal_failures = 1);
    assert!(registry.seal(stage.team, id).await.is_err());
    assert!(registry.target(&id).is_ok() && !stage.engine.frozen(id));
    assert_eq!(stage.images().await, []);
    registry.pause(stage.team, id, true, false).await.unwrap();
    assert!(matches!(registry.seal(stage.team, id).await, Err(LifeError::NotFound(_))));
}

#[tokio::test]
async fn one_image_at_a_time_and_what_comes_meanwhile_waits_or_is_refused() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    stage.engine.faults(|faults| faults.seal_delay = Duration::from_millis(300));
    let sealing = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.seal(team, id).await }
    });
    eventually(|| stage.engine.frozen(id)).await;
    assert!(matches!(registry.seal(stage.team, id).await, Err(LifeError::Transitioning(_))));
    assert_eq!(registry.get(stage.team, id).await.unwrap().record.state, SandboxState::Running);
    let (_, how) = registry.connect(stage.team, id, LONG).await.unwrap();
    assert_eq!(how, Connected::Running);
    assert!(sealing.await.unwrap().is_ok());

    let sealing = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.seal(team, id).await }
    });
    eventually(|| stage.engine.frozen(id)).await;
    let pause = || registry.pause(stage.team, id, true, false);
    let (first, second) = tokio::join!(pause(), pause());
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    assert!(sealing.await.unwrap().is_ok(), "the pauses came after the image");
    assert_eq!(registry.get(stage.team, id).await.unwrap().record.state, SandboxState::Paused);
    let (_, how) = registry.connect(stage.team, id, LONG).await.unwrap();
    assert_eq!(how, Connected::Resumed);

    let sealing = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.seal(team, id).await }
    });
    eventually(|| stage.engine.frozen(id)).await;
    registry.kill(stage.team, id).await.unwrap();
    assert!(matches!(sealing.await.unwrap(), Err(LifeError::NotFound(_))));
    stage.assert_empty(&registry).await;
    stage.collected(&[]).await;
}

#[tokio::test]
async fn a_gateway_that_dies_while_it_makes_an_image_leaves_a_running_sandbox() {
    for phase in [Phase::SealFrozen, Phase::Sealed] {
        let stage = Stage::new();
        stage.engine.listen(8000, Service::Echo);
        let first = stage.registry();
        let id = first.create(stage.spec()).await.unwrap().record.id;
        first.inject(Arc::new(Hang(phase)));
        timeout(Duration::from_millis(100), first.seal(stage.team, id)).await.unwrap_err();
        assert!(stage.engine.frozen(id), "{phase:?}");
        drop(first);
        let next = stage.registry();
        assert_eq!(next.recover().await.unwrap().adopted, [id]);
        assert_eq!(echo(&next.target(&id).unwrap(), 8000).await, b"hello");
        stage.collected(&[]).await;
    }
}

#[tokio::test]
async fn builds_that_newer_ones_replaced_go_with_their_images_after_a_while() {
    let stage = Stage::new();
    let registry = stage.registry();
    let [old, new, stray] = [(); 3].map(|()| BuildId::generate(&OsEntropy));
    for build in [old, new, stray] {
        stage.engine.import_image(build);
    }
    let (id, now) = (TemplateId::generate(&OsEntropy), stage.clock.now());
    let template = Template {
        id: id.clone(),
        team: Some(stage.team),
        public: false,
        aliases: vec!["mine".to_owned()],
        created_at: now,
        updated_at: now,
        last_spawned_at: None,
        spawn_count: 0,
        build: None,
    };
    stage.store.put_template(template).await.unwrap();
    let resources = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 };
    for build in [old, new] {
        let template = id.clone();
        let build = Build { id: build, template, resources, fingerprint: None, created_at: now };
        stage.store.add_build(build).await.unwrap();
    }
    let sweep = async || images::sweep(&registry.inner.world, true).await.unwrap();
    assert_eq!(sweep().await, 0, "whoever made them may be about to use them");
    let sandbox = registry
        .create(SandboxSpec { build: old, timeout_s: 86_400, ..stage.spec() })
        .await
        .unwrap()
        .record
        .id;
    stage.clock.jump(images::GRACE + SignedDuration::from_secs(1));
    assert_eq!(sweep().await, 1, "the stray one: a sandbox stands on the other");
    let mut left = vec![old, new];
    left.sort_unstable();
    assert_eq!(stage.images().await, left);
    registry.kill(stage.team, sandbox).await.unwrap();
    eventually(|| registry.is_empty()).await;
    assert_eq!(sweep().await, 0, "unowned only from now on");
    assert_eq!(stage.store.builds().await.unwrap(), [new]);
    stage.clock.jump(images::GRACE);
    assert_eq!(sweep().await, 1);
    assert_eq!(stage.images().await, [new]);
}

//! Machines that wait for their sandbox.

use super::*;
use crate::store::{Build, Template};

/// A host with a template that is kept warm.
struct Kept {
    stage: Stage,
    template: TemplateId,
    resources: Resources,
}

impl Kept {
    fn new() -> Self {
        let stage = Stage::new();
        let template = TemplateId::generate(&OsEntropy);
        Self { stage, template, resources: Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 } }
    }

    /// A new build of the template.
    async fn build(&self) -> BuildId {
        let (id, now) = (BuildId::generate(&OsEntropy), self.stage.clock.now());
        let template = Template {
            id: self.template.clone(),
            team: None,
            public: true,
            aliases: vec!["base".to_owned()],
            created_at: now,
            updated_at: now,
            last_spawned_at: None,
            spawn_count: 0,
            build: None,
        };
        let build = Build {
            id,
            template: self.template.clone(),
            resources: self.resources,
            fingerprint: None,
            created_at: now,
        };
        self.stage.store.put_template(template).await.unwrap();
        self.stage.store.add_build(build).await.unwrap();
        id
    }

    async fn registry(&self, depth: usize) -> Registry {
        let registry = self.stage.registry();
        registry.recover().await.unwrap();
        registry.keep_warm(plan(&[("base", depth)]));
        registry
    }

    fn spec(&self, build: BuildId) -> SandboxSpec {
        SandboxSpec { template: self.template.clone(), build, resources: self.resources, ..self.stage.spec() }
    }
}

fn plan(templates: &[(&str, usize)]) -> WarmPlan {
    let one = |(name, depth): &(&str, usize)| WarmTemplate {
        namespace: None,
        name: (*name).to_owned(),
        tag: None,
        depth: *depth,
    };
    WarmPlan { templates: templates.iter().map(one).collect(), max_age: Duration::from_hours(1) }
}

fn ids(registry: &Registry) -> Vec<SandboxId> {
    registry.inner.world.pool.ids()
}

async fn filled(registry: &Registry, count: usize) -> Vec<SandboxId> {
    eventually(|| ids(registry).len() == count).await;
    ids(registry)
}

#[tokio::test]
async fn creates_take_the_oldest_machine_and_the_pool_fills_up_again() {
    let kept = Kept::new();
    let build = kept.build().await;
    let registry = kept.registry(2).await;
    let ready = filled(&registry, 2).await;
    let sandbox = registry.create(kept.spec(build)).await.unwrap();
    assert_eq!(sandbox.record.id, ready[0]);
    let guest = kept.stage.engine.guest(ready[0]).unwrap();
    let init = guest.init.unwrap();
    assert_eq!((init.sandbox_id, init.access_token), (ready[0], sandbox.envd_access_token.clone()));
    assert_eq!(guest.attachments, 1, "the stream that was open is used");
    assert_eq!(kept.stage.records().await, [sandbox.record]);
    let next = filled(&registry, 2).await;
    assert_eq!(next[0], ready[1]);
    assert_eq!(registry.warm().hits, 1);
    let trace = registry.traces(Some(ready[0]), 1).remove(0);
    assert_eq!(trace.class, Class::Hot);

    // Those of another size or build are made anew.
    let larger = Resources { memory_mb: 1024, ..kept.resources };
    for spec in [SandboxSpec { resources: larger, ..kept.spec(build) }, kept.stage.spec()] {
        let id = registry.create(spec).await.unwrap().record.id;
        assert!(!next.contains(&id));
    }
    assert!(registry.shutdown(true).await);
    kept.stage.assert_empty(&registry).await;
    let occupancy = registry.occupancy();
    assert_eq!((occupancy.active, occupancy.warm), (Share::default(), Share::default()));
}

#[tokio::test]
async fn a_sandbox_on_a_warm_machine_lives_like_any_other() {
    let kept = Kept::new();
    let build = kept.build().await;
    let registry = kept.registry(1).await;
    let ready = filled(&registry, 1).await;
    let id = registry.create(kept.spec(build)).await.unwrap().record.id;
    assert_eq!(id, ready[0]);
    let team = kept.stage.team;
    assert!(kept.stage.engine.guest_log(id, "hello"));
    eventually(|| registry.logs(team, id).unwrap().len() == 1).await;
    registry.pause(team, id, true, false).await.unwrap();
    registry.connect(team, id, LONG).await.unwrap();
    registry.pause(team, id, false, false).await.unwrap();
    assert_eq!(registry.connect(team, id, LONG).await.unwrap().0.record.generation, 2);
    drop(registry);
    let next = kept.stage.registry();
    let recovered = next.recover().await.unwrap();
    assert_eq!(recovered.adopted, [id]);
    assert_eq!(recovered.swept.len(), 1, "the machine that was still warm");
    assert_eq!(kept.stage.engine.live(), [id]);
}

#[tokio::test]
async fn a_new_build_is_never_served_by_a_machine_of_the_old_one() {
    let kept = Kept::new();
    let old = kept.build().await;
    let registry = kept.registry(2).await;
    let before = filled(&registry, 2).await;
    let new = kept.build().await;
    let id = registry.create(kept.spec(new)).await.unwrap().record.id;
    assert!(!before.contains(&id));
    // What is left of the old build goes as soon as the keeper looks.
    registry.collect_images();
    eventually(|| ids(&registry).iter().all(|id| !before.contains(id)) && ids(&registry).len() == 2).await;
    eventually(|| kept.stage.engine.live().iter().all(|id| !before.contains(id))).await;
    let id = registry.create(kept.spec(old)).await.unwrap().record.id;
    assert!(!before.contains(&id), "one that asks for the old build gets that");
    assert_eq!(registry.warm().expired, 2);
}

#[tokio::test]
async fn a_warm_machine_that_does_not_answer_costs_nobody_the_sandbox() {
    let kept = Kept::new();
    let build = kept.build().await;
    let registry = kept.registry(1).await;
    let ready = filled(&registry, 1).await;
    kept.stage.engine.faults(|faults| faults.init_error = Some("not now".to_owned()));
    // The second machine refuses too: nothing is left.
    let error = registry.create(kept.spec(build)).await.unwrap_err();
    assert!(matches!(error, LifeError::Guest(_)), "{error}");
    assert!(!kept.stage.engine.live().contains(&ready[0]));
    assert_eq!(kept.stage.records().await, []);
    kept.stage.engine.faults(|faults| faults.init_error = None);

    let ready = filled(&registry, 1).await;
    assert!(kept.stage.engine.cut(ready[0]));
    let sandbox = registry.create(kept.spec(build)).await.unwrap();
    assert_eq!((sandbox.record.id, sandbox.record.generation), (ready[0], 2));
    assert_eq!(kept.stage.engine.guest(ready[0]).unwrap().init.unwrap().sandbox_id, ready[0]);
    assert_eq!(registry.warm().dead, 2);
}

#[tokio::test]
async fn machines_that_end_or_grow_old_are_replaced() {
    let kept = Kept::new();
    kept.build().await;
    let registry = kept.stage.registry();
    registry.keep_warm(WarmPlan { max_age: Duration::from_millis(400), ..plan(&[("base", 1)]) });
    let first = filled(&registry, 1).await;
    assert!(kept.stage.engine.exit(first[0]));
    eventually(|| ids(&registry).iter().any(|id| !first.contains(id))).await;
    assert_eq!(kept.stage.engine.disks(), [], "the dead one's disk is gone");
    let second = ids(&registry);
    tokio::time::sleep(Duration::from_millis(400)).await;
    registry.collect_images();
    eventually(|| !ids(&registry).is_empty() && ids(&registry) != second).await;
    eventually(|| !kept.stage.engine.live().contains(&second[0])).await;
}

#[tokio::test]
async fn warm_machines_make_room_before_anybody_waits_in_vain() {
    let mut kept = Kept::new();
    let rules = &mut kept.stage.limits.admission;
    // Room for three machines, and nobody may wait.
    (rules.capacity.memory, rules.queue) = (Some(3 * rules.floor), 0);
    let build = kept.build().await;
    let registry = kept.registry(3).await;
    filled(&registry, 3).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(registry.create(kept.stage.spec()).await.unwrap().record.id);
    }
    assert_eq!(registry.warm().evicted, 3);
    made.sort();
    eventually(|| kept.stage.engine.live() == made).await;
    let error = registry.create(kept.spec(build)).await.unwrap_err();
    assert!(matches!(error, LifeError::NoRoom(Refused::QueueFull(0))), "{error}");
    // Room that is free again is filled again, but one at a time and never over it.
    registry.kill(kept.stage.team, made[0]).await.unwrap();
    registry.collect_images();
    filled(&registry, 1).await;
    assert_eq!(kept.stage.engine.live().len(), 3);
}

#[tokio::test]
async fn a_template_that_fails_does_not_keep_others_from_being_warm() {
    let kept = Kept::new();
    kept.build().await;
    let registry = kept.stage.registry();
    kept.stage.engine.faults(|faults| faults.create_error = Some("injected".to_owned()));
    registry.keep_warm(plan(&[("nobody", 2), ("base", 1)]));
    eventually(|| registry.warm().failed == 1).await;
    kept.stage.engine.faults(|faults| faults.create_error = None);
    filled(&registry, 1).await;
    let state = registry.warm();
    assert_eq!(state.templates, [("nobody".to_owned(), 0, 2), ("base".to_owned(), 1, 1)]);
}

#[tokio::test]
async fn nothing_is_kept_warm_below_its_floor_and_nothing_made_below_the_other() {
    let mut kept = Kept::new();
    kept.stage.limits.floors = Floors { restore: 10 << 30, warm: 20 << 30 };
    let build = kept.build().await;
    kept.stage.engine.faults(|faults| faults.disk = Some((1 << 40, 15 << 30)));
    let registry = kept.registry(1).await;
    let id = registry.create(kept.spec(build)).await.unwrap().record.id;
    assert_eq!(kept.stage.engine.live(), [id]);
    let team = kept.stage.team;
    registry.pause(team, id, false, false).await.unwrap();

    kept.stage.engine.faults(|faults| faults.disk = Some((1 << 40, 9 << 30)));
    let full = |error: &LifeError| matches!(error, LifeError::NoRoom(Refused::Disk { floor, .. }) if *floor == 10 << 30);
    let error = registry.create(kept.spec(build)).await.unwrap_err();
    assert!(full(&error), "{error}");
    let error = registry.connect(team, id, LONG).await.unwrap_err();
    assert!(full(&error), "{error}");
    kept.stage.engine.faults(|faults| faults.disk_unknown = true);
    let error = registry.create(kept.spec(build)).await.unwrap_err();
    assert!(matches!(error, LifeError::NoRoom(Refused::DiskUnknown)), "{error}");
    assert_eq!(registry.occupancy().active, Share::default());

    kept.stage.engine.faults(|faults| (faults.disk_unknown, faults.disk) = (false, None));
    assert!(registry.connect(team, id, LONG).await.is_ok());
    registry.seal(team, id).await.unwrap();
    kept.stage.engine.faults(|faults| faults.disk = Some((1 << 40, 9 << 30)));
    let error = registry.seal(team, id).await.unwrap_err();
    assert!(full(&error), "{error}");
    // A warm machine is there already: it costs no more disk.
    kept.stage.engine.faults(|faults| faults.disk = None);
    registry.collect_images();
    let ready = filled(&registry, 1).await;
    kept.stage.engine.faults(|faults| faults.disk = Some((1 << 40, 9 << 30)));
    assert_eq!(registry.create(kept.spec(build)).await.unwrap().record.id, ready[0]);
}

//! Whether the guests of serving sandboxes answer: asked in turn, told when one is silent for long.
//!
//! The control stream is asked, so that what is told is the guest's life and not a port's. Nothing is
//! done about a silent guest: its processes may go on, and its owner decides. Machines that are
//! gone are their drivers' business.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::handles::Handles;
use crate::{
    id::SandboxId,
    runtime::{driver::Live, traces::Happening, world::World},
};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(15);
/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// A guest that has been silent for so long is told of.
const SILENCE: Duration = Duration::from_secs(30);
/// Guests that are asked at the same time.
const AT_ONCE: usize = 16;

/// One silent guest.
#[derive(Debug, Clone, Copy)]
struct Silent {
    generation: u64,
    since: Instant,
    told: bool,
}

/// Asks for as long as the registry is there.
pub(super) async fn attend(handles: Weak<Handles>, world: Weak<World>) {
    let mut silent: HashMap<SandboxId, Silent> = HashMap::new();
    let mut rounds = interval(PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let Some(serving) = handles.upgrade().map(|handles| handles.serving()) else { return };
        let asked = futures_util::stream::iter(serving).map(|live| async move {
            let answered = matches!(timeout(PATIENCE, live.asker.ping()).await, Ok(Ok(())));
            (live, answered)
        });
        let answers: Vec<(Arc<Live>, bool)> = asked.buffer_unordered(AT_ONCE).collect().await;
        let Some(world) = world.upgrade() else { return };
        silent = judge(&world, silent, answers);
        world.traces.set_silent(silent.values().filter(|one| one.told).count());
    }
}

/// Who is silent after this round. What has ended, rests, or has another machine begins anew.
fn judge(
    world: &World,
    mut silent: HashMap<SandboxId, Silent>,
    answers: Vec<(Arc<Live>, bool)>,
) -> HashMap<SandboxId, Silent> {
    let mut still = HashMap::new();
    for (live, answered) in answers {
        let (id, generation) = (live.record.id, live.record.generation);
        let before = silent.remove(&id).filter(|one| one.generation == generation);
        // A pause or an end that came meanwhile is no silence.
        if live.target.ended.is_cancelled() {
            continue;
        }
        match before {
            Some(Silent { since, told: true, .. }) if answered => {
                tell(world, &live, Happening::GuestAnswered, "info", "answers again", since);
            }
            _ if answered => {}
            before => {
                let mut one = before.unwrap_or(Silent { generation, since: Instant::now(), told: false });
                if !one.told && one.since.elapsed() >= SILENCE {
                    one.told = true;
                    tell(world, &live, Happening::GuestSilent, "warn", "does not answer", one.since);
                }
                still.insert(id, one);
            }
        }
    }
    still
}

fn tell(world: &World, live: &Live, happening: Happening, level: &str, what: &str, since: Instant) {
    let (id, silence_s) = (live.record.id, since.elapsed().as_secs());
    world.traces.event(id, happening);
    live.logs.note(level, &format!("the guest {what}"), world.clock.now());
    match happening {
        Happening::GuestSilent => {
            tracing::warn!(sandbox.id = %id, guest.silence_s = silence_s, "the guest of sandbox {id} {what}");
        }
        _ => {
            tracing::info!(sandbox.id = %id, guest.silence_s = silence_s, "the guest of sandbox {id} {what}");
        }
    }
}

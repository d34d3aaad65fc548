//! The part of a life in which the sandbox serves.

use super::{Driver, EndCause, Next};
use crate::{
    runtime::{
        boot::{Active, Remains},
        driver::inbox::{Command, Manner},
        queue::{Stage, Verdict},
        registry::{Connected, LifeError},
    },
    sandbox::{OnTimeout, SandboxRecord},
};

impl Driver {
    /// Until it is to end, rests, or is let go of.
    pub(super) async fn live(&mut self, mut active: Active) -> Next {
        loop {
            if let Some(cause) = self.ending.take() {
                return Next::end(active, cause);
            }
            let command = tokio::select! {
                () = active.machine.exited() => return Next::end(active, EndCause::Exited),
                () = self.world.closing.cancelled() => return Next::LetGo,
                told = active.control.told() => {
                    Box::pin(self.note_gate(&mut active, told)).await;
                    continue;
                }
                command = self.commands.next() => command,
            };
            // The registry was dropped: the sandbox stays for the next one.
            let Some(command) = command else { return Next::LetGo };
            match (self.decide(stage(&active.record), command.request()), command) {
                (Err(refusal), command) => command.refuse(refusal.error(self.id)),
                (Ok(Verdict::TearDown), command) => {
                    self.vanish();
                    let cause = match command {
                        Command::End(cause) => cause,
                        Command::Ask { reply, .. } => {
                            let _ = reply.send(Ok((active.record.clone(), Connected::Running)));
                            EndCause::Expired
                        }
                        _ => EndCause::Expired,
                    };
                    return Next::end(active, cause);
                }
                (Ok(Verdict::Pause), command) => {
                    let memory = active.record.spec.lifecycle.auto_pause_memory;
                    let manner = match command {
                        Command::Pause { manner, reply } => {
                            self.pausers.push(reply);
                            self.pausers.extend(self.commands.more_pauses());
                            manner
                        }
                        Command::Ask { reply, .. } => {
                            let _ = reply.send(Ok((active.record.clone(), Connected::Running)));
                            Manner { memory, healthy: false }
                        }
                        _ => Manner { memory, healthy: false },
                    };
                    match self.pause(active, manner).await {
                        Next::Live(back) => active = back,
                        next => return next,
                    }
                }
                (Ok(Verdict::Snapshot), Command::Seal { build, reply }) => {
                    match self.seal(active, build, reply).await {
                        Next::Live(back) => active = back,
                        next => return next,
                    }
                }
                (Ok(Verdict::Deadline(end_at)), Command::Ask { reply, .. }) => {
                    let moved = SandboxRecord { end_at, ..active.record.clone() };
                    let stored = self.replace(&mut active, moved).await;
                    if stored.is_ok() {
                        self.world.reaper.set(self.id, end_at);
                    }
                    let _ = reply.send(stored.map(|()| (active.record.clone(), Connected::Running)));
                }
                (Ok(_), Command::SetEgress { egress, reply }) => {
                    let mut changed = active.record.clone();
                    changed.spec.set_egress(egress);
                    let _ = reply.send(self.replace(&mut active, changed).await);
                }
                (Ok(_), Command::Ask { reply, .. }) => {
                    let _ = reply.send(Ok((active.record.clone(), Connected::Running)));
                }
                (Ok(_), Command::Expired) => self.world.reaper.set(self.id, active.record.end_at),
                (Ok(_), command) => command.refuse(LifeError::Transitioning(self.id)),
            }
        }
    }
}

impl Driver {
    /// Keeps and shows another record of the same run, or changes nothing.
    async fn replace(&self, active: &mut Active, record: SandboxRecord) -> Result<(), LifeError> {
        self.world.store.put_sandbox(record.clone()).await?;
        active.record = record;
        self.show(active);
        Ok(())
    }
}

/// Where a sandbox stands that serves.
fn stage(record: &SandboxRecord) -> Stage {
    let pauses = record.spec.lifecycle.on_timeout == OnTimeout::Pause;
    Stage::Running { started_at: record.started_at, end_at: record.end_at, pauses }
}

// === impl Next ===

impl Next {
    pub(super) fn end(active: Active, cause: EndCause) -> Self {
        let machine = Some(active.machine);
        Self::End(Remains { record: active.record, recorded: true, machine }, cause)
    }
}

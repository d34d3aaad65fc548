//! The gate before files and, if that is wanted, processes, and the task that opens it.
//!
//! ```text
//!   Init or Run --> Restored --task takes it up--> Syncing --git, three steps--> Ready, or Failed
//!                   without a checkout: Syncing at once, until somebody says Complete or Fail
//! ```
//! The task works as the default user in the checkout: `git fetch`, `git checkout`, `git reset`. A
//! verdict that comes meanwhile ends its step: what was decided is not changed behind its back.

use std::{path::Path, time::Duration};

use tokio::sync::watch;

use crate::{
    guest::{
        awake,
        process::{Config, Launch, Message, Processes},
        state::Guest,
    },
    sandbox::freshness::{Freshness, Phase, Verdict, bounded},
};

/// How long one step of git may take.
const STEP: Duration = Duration::from_mins(10);
/// The name of the steps among the processes.
const TAG: &str = "firkin.sync";
/// What is kept of a step's last words, in bytes.
const LAST_WORDS: usize = 1024;

/// The gate of this machine; open where there is none. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(watch::Sender<Option<Freshness>>);

// === impl Gate ===

impl Gate {
    /// A new identity comes with this wish. The same sandbox keeps the gate that it has.
    pub(crate) fn install(&self, wish: Option<Freshness>, same_sandbox: bool) {
        self.0.send_if_modified(|gate| {
            if same_sandbox && gate.is_some() || gate.is_none() && wish.is_none() {
                return false;
            }
            *gate = wish.map(|mut wish| {
                if matches!(wish.phase, Phase::Restored | Phase::Syncing) {
                    wish.phase = if wish.checkout.is_some() { Phase::Restored } else { Phase::Syncing };
                }
                wish
            });
            true
        });
    }

    /// Refuses a change of files by its name, while the gate is closed.
    pub(crate) fn admit(&self, operation: &str) -> Result<(), String> {
        self.0.borrow().as_ref().and_then(|gate| gate.refusal(operation)).map_or(Ok(()), Err)
    }

    /// Refuses a new process, while a gate is closed that is before processes too.
    pub(crate) fn admit_process(&self) -> Result<(), String> {
        let gate = self.0.borrow();
        let closed = gate.as_ref().filter(|gate| gate.gates_processes);
        closed.and_then(|gate| gate.refusal("starting a process")).map_or(Ok(()), Err)
    }

    /// Takes what somebody says of it.
    pub(crate) fn judge(&self, verdict: Verdict) -> Result<(), String> {
        let verdict = verdict.checked().map_err(|error| error.to_string())?;
        let mut outcome = Ok(());
        self.0.send_if_modified(|gate| {
            let Some(gate) = gate else {
                outcome = Err("the sandbox was made without a branch to be synchronized".to_owned());
                return false;
            };
            let before = gate.clone();
            match verdict {
                Verdict::Complete { target } => {
                    gate.target = target.unwrap_or_else(|| gate.target.clone());
                    (gate.phase, gate.reason) = (Phase::Ready, None);
                }
                Verdict::Fail { reason } => (gate.phase, gate.reason) = (Phase::Failed, Some(reason)),
                Verdict::Run if gate.checkout.is_none() => {
                    outcome = Err("the sandbox was made without firkin.sync.checkout".to_owned());
                }
                Verdict::Run if gate.phase == Phase::Failed => {
                    (gate.phase, gate.reason) = (Phase::Restored, None);
                }
                // Done, or being done.
                Verdict::Run => {}
            }
            *gate != before
        });
        outcome
    }

    /// The gate, now and as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Freshness>> {
        self.0.subscribe()
    }

    /// Takes up what is to be done; none: somebody else decided meanwhile.
    fn take_up(&self) -> Option<Freshness> {
        let mut taken = None;
        self.0.send_if_modified(|gate| {
            let Some(gate) = gate.as_mut().filter(|gate| is_wanted(gate)) else { return false };
            gate.phase = Phase::Syncing;
            taken = Some(gate.clone());
            true
        });
        taken
    }

    /// What the task found; a verdict that came before it stands.
    fn settle(&self, outcome: Result<(), String>) {
        self.0.send_if_modified(|gate| {
            let Some(gate) = gate.as_mut().filter(|gate| gate.phase == Phase::Syncing) else { return false };
            (gate.phase, gate.reason) = match outcome {
                Ok(()) => (Phase::Ready, None),
                Err(reason) => (Phase::Failed, Some(bounded(reason))),
            };
            true
        });
    }
}

fn is_wanted(gate: &Freshness) -> bool {
    gate.phase == Phase::Restored && gate.checkout.is_some()
}

/// Does what gates ask for, for as long as the machine lives.
pub(crate) async fn run(guest: Guest, processes: Processes) {
    let gate = guest.gate().clone();
    let mut changes = gate.watch();
    loop {
        // The sender lives in `gate`.
        let wanted = changes.wait_for(|gate| gate.as_ref().is_some_and(is_wanted)).await;
        drop(wanted.ok());
        let Some(wish) = gate.take_up() else { continue };
        let mut decided = gate.watch();
        let overruled = async {
            let _ =
                decided.wait_for(|gate| gate.as_ref().is_none_or(|gate| gate.phase != Phase::Syncing)).await;
        };
        let work = Work { guest: &guest, processes: &processes, wish: &wish };
        if let Some(outcome) = work.unless(overruled).await {
            gate.settle(outcome);
        }
    }
}

/// One synchronisation.
struct Work<'a> {
    guest: &'a Guest,
    processes: &'a Processes,
    wish: &'a Freshness,
}

// === impl Work ===

impl Work<'_> {
    /// The three steps; none when it was overruled, and then nothing of them runs any more.
    async fn unless(&self, overruled: impl Future<Output = ()>) -> Option<Result<(), String>> {
        let mut overruled = std::pin::pin!(overruled);
        let Freshness { branch, target, .. } = self.wish;
        // The names were checked where they came in: none is an option. What follows `--` would be
        // paths, so that a file of the branch's name is not meant.
        for step in [
            &["fetch", "--quiet", "origin", branch] as &[&str],
            &["checkout", "--quiet", branch, "--"],
            &["reset", "--hard", "--quiet", target, "--"],
        ] {
            match self.step(step, &mut overruled).await {
                Some(Ok(())) => {}
                ended => return ended,
            }
        }
        Some(Ok(()))
    }

    async fn step(
        &self,
        arguments: &[&str],
        overruled: &mut (impl Future<Output = ()> + Unpin),
    ) -> Option<Result<(), String>> {
        let name = format!("git {}", arguments.first().unwrap_or(&""));
        let launch = match self.launch(arguments) {
            Ok(launch) => launch,
            Err(reason) => return Some(Err(reason)),
        };
        let processes = self.processes.clone();
        // Never dropped half-way: a process without an owner would be left.
        let started = tokio::spawn(async move { processes.start(launch).await }).await;
        let (process, mut messages) = match started {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return Some(Err(error.to_string())),
            Err(error) => return Some(Err(format!("{name}: {error}"))),
        };
        let mut words = LastWords::default();
        loop {
            let message = tokio::select! {
                message = messages.recv() => message,
                () = &mut *overruled => {
                    self.processes.end_group(&process);
                    while messages.recv().await.is_some() {}
                    return None;
                }
            };
            match message {
                Some(Message::Data(_, bytes)) => words.add(&bytes),
                Some(Message::End(end)) if end.exit_code == 0 => return Some(Ok(())),
                Some(Message::End(end)) => {
                    return Some(Err(format!("{name}: {}{}", end.status, words.told())));
                }
                None => return Some(Err(format!("{name}: its end was not heard"))),
            }
        }
    }

    fn launch(&self, arguments: &[&str]) -> Result<Launch, String> {
        let name = self.guest.default_user();
        let user = self.guest.users().by_name(&name).ok_or_else(|| format!("there is no user {name:?}"))?;
        let cwd = self.wish.checkout.clone().ok_or("there is no checkout")?;
        if !Path::new(&cwd).is_dir() {
            return Err(format!("the checkout {cwd:?} is no directory"));
        }
        let config = Config {
            cmd: "git".to_owned(),
            args: arguments.iter().map(|text| (*text).to_owned()).collect(),
            // Nobody is there to be asked for a password.
            envs: [("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned())].into(),
            cwd: Some(cwd.clone()),
        };
        Ok(Launch {
            config,
            tag: Some(TAG.to_owned()),
            user,
            cwd,
            globals: self.guest.envs(),
            pty: None,
            stdin: false,
            deadline: Some(awake::now() + STEP),
        })
    }
}

/// The end of what a step said.
#[derive(Debug, Default)]
struct LastWords(Vec<u8>);

// === impl LastWords ===

impl LastWords {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(LAST_WORDS);
        self.0.drain(..surplus);
    }

    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let text = without_credentials(text.trim());
        if text.is_empty() { text } else { format!(": {text}") }
    }
}

/// git names the addresses that it cannot reach with the passwords in them.
fn without_credentials(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        told.push_str(head);
        let authority = tail.find(|c: char| c == '/' || c == '\'' || c.is_whitespace()).unwrap_or(tail.len());
        rest = match tail[..authority].rfind('@') {
            Some(at) => {
                told.push_str("***");
                &tail[at..]
            }
            None => tail,
        };
    }
    told + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(checkout: Option<&str>, phase: Phase) -> Freshness {
        Freshness {
            branch: "main".to_owned(),
            target: "origin/main".to_owned(),
            checkout: checkout.map(str::to_owned),
            gates_processes: false,
            phase,
            reason: None,
        }
    }

    fn phase(gate: &Gate) -> Option<Phase> {
        gate.watch().borrow().as_ref().map(|gate| gate.phase)
    }

    #[test]
    fn a_machine_without_a_wish_has_no_gate() {
        let gate = Gate::default();
        gate.install(None, false);
        assert_eq!((gate.admit("write"), phase(&gate)), (Ok(()), None));
        gate.judge(Verdict::Complete { target: None }).unwrap_err();
    }

    #[test]
    fn the_same_sandbox_keeps_its_gate_and_another_gets_its_own() {
        let gate = Gate::default();
        gate.install(Some(wish(None, Phase::Restored)), false);
        assert_eq!(phase(&gate), Some(Phase::Syncing), "somebody else does it");
        gate.judge(Verdict::Complete { target: Some("abc".to_owned()) }).unwrap();
        gate.install(Some(wish(None, Phase::Restored)), true);
        assert_eq!((phase(&gate), gate.admit("write")), (Some(Phase::Ready), Ok(())));
        assert_eq!(gate.watch().borrow().as_ref().unwrap().target, "abc");
        gate.install(Some(wish(Some("/x"), Phase::Syncing)), false);
        assert_eq!(phase(&gate), Some(Phase::Restored), "its task begins again");
        gate.install(None, false);
        assert_eq!(phase(&gate), None);
    }

    #[test]
    fn a_new_machine_goes_on_with_what_was_decided() {
        for decided in [Phase::Ready, Phase::Failed] {
            let gate = Gate::default();
            gate.install(Some(wish(Some("/x"), decided)), false);
            assert_eq!(phase(&gate), Some(decided));
        }
    }

    #[test]
    fn verdicts_open_close_and_begin_again() {
        let gate = Gate::default();
        gate.install(Some(wish(Some("/x"), Phase::Restored)), false);
        let refused = gate.admit("mkdir").unwrap_err();
        assert!(refused.contains("mkdir") && refused.contains("Restored"), "{refused}");
        assert_eq!(gate.admit_process(), Ok(()), "processes are not gated unless asked for");
        gate.judge(Verdict::Fail { reason: "no".to_owned() }).unwrap();
        assert!(gate.admit("move").unwrap_err().contains("no"));
        gate.judge(Verdict::Run).unwrap();
        assert_eq!(phase(&gate), Some(Phase::Restored));
        gate.take_up().unwrap();
        gate.judge(Verdict::Complete { target: None }).unwrap();
        gate.settle(Err("too late".to_owned()));
        assert_eq!((phase(&gate), gate.admit("remove")), (Some(Phase::Ready), Ok(())));
        gate.judge(Verdict::Run).unwrap();
        assert_eq!(phase(&gate), Some(Phase::Ready), "it is done");
        gate.judge(Verdict::Complete { target: Some("--x".to_owned()) }).unwrap_err();
    }

    #[test]
    fn a_gate_before_processes_refuses_them() {
        let gate = Gate::default();
        let wish = Freshness { gates_processes: true, ..wish(None, Phase::Restored) };
        gate.install(Some(wish), false);
        assert!(gate.admit_process().unwrap_err().contains("starting a process"));
        gate.judge(Verdict::Complete { target: None }).unwrap();
        assert_eq!(gate.admit_process(), Ok(()));
        gate.judge(Verdict::Run).unwrap_err();
    }

    #[tokio::test]
    async fn a_task_that_can_start_nothing_fails_with_the_reason() {
        let guest = Guest::default();
        guest.gate().install(Some(wish(Some("/"), Phase::Restored)), false);
        let mut changes = guest.gate().watch();
        let task = tokio::spawn(run(guest, Processes::without_spawner()));
        let failed = |gate: &Option<Freshness>| gate.as_ref().is_some_and(|gate| gate.phase == Phase::Failed);
        let gate = changes.wait_for(failed).await.unwrap().clone().unwrap();
        assert!(gate.reason.unwrap().contains("git"));
        task.abort();
    }

    #[test]
    fn passwords_in_addresses_are_not_told() {
        let told = without_credentials("unable to access 'https://me:secret@git.example/x.git/': 403 of b@c");
        assert_eq!(told, "unable to access 'https://***@git.example/x.git/': 403 of b@c");
        assert_eq!(without_credentials("no address"), "no address");
    }

    #[test]
    fn only_the_last_words_are_kept() {
        let mut words = LastWords::default();
        words.add(&[b'x'; 5000]);
        words.add(b"fatal: gone\n");
        assert!(words.0.len() <= LAST_WORDS && words.told().ends_with("fatal: gone"));
    }
}

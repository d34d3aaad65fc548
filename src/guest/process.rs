//! The processes that clients start (contract/sandbox 3).
//!
//! ```text
//! start --> live --------------------------------> retained (30 s) --> forgotten
//!             | output pumps, input, signals          Connect gets start and end
//!             | leader ends AND its pipes reach their end (or: it ended after a client's signal)
//! ```
//! A process belongs to the table, not to the stream that started it: a client that goes away
//! changes nothing. Three tasks live with it: two pumps (or one, for a terminal) and the keeper,
//! which waits for exit, deadline and pumps, tells the end and retires the process. All of them
//! end with it; nothing in here outlives the keeper but the retained end.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, fcntl::OFlag, sys::signal::Signal, unistd::pipe2};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    time::Instant,
};

use crate::guest::{
    awake, failure,
    pty::{self, Size},
    reap::{Exit, Reaper},
    spawner::{Order, SpawnError, Spawner, Stdio, Step},
    state::Guest,
    users::User,
};

mod input;
mod output;
mod status;
mod table;

pub(crate) use input::{Input, InputError};
pub(crate) use output::{Message, Source};
pub(crate) use table::Selector;

use output::{Audience, Patience, pump};
use table::Table;

/// The `PATH` of every process that brings none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The tag of processes that stay outside the groups of the user's work.
const SYSTEM_TAG: &str = "_system";

/// What a client asked to run; told again by List.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    /// The program.
    pub(crate) cmd: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// The request's own environment.
    pub(crate) envs: BTreeMap<String, String>,
    /// The directory as it was named.
    pub(crate) cwd: Option<String>,
}

/// Everything a start needs.
#[derive(Debug)]
pub(crate) struct Launch {
    /// What was asked for.
    pub(crate) config: Config,
    /// A name for later requests.
    pub(crate) tag: Option<String>,
    /// As whom.
    pub(crate) user: Arc<User>,
    /// The directory, resolved and existing.
    pub(crate) cwd: String,
    /// The sandbox's environment, below the request's.
    pub(crate) globals: BTreeMap<String, String>,
    /// A terminal of this size instead of pipes.
    pub(crate) pty: Option<Size>,
    /// Whether standard input is a pipe; else `/dev/null`.
    pub(crate) stdin: bool,
    /// When the process is killed.
    pub(crate) deadline: Option<Instant>,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The kernel refused a pipe or a terminal.
    #[error("error starting process '{0}': {1}")]
    Resources(String, io::Error),
    /// The spawner refused or failed.
    #[error("error starting process '{0}': {text}", text = spawn_text(.1))]
    Spawn(String, SpawnError),
}

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its pid in the machine.
    pub(crate) pid: u32,
    /// Its name.
    pub(crate) tag: Option<String>,
    /// What was asked for.
    pub(crate) config: Config,
    /// When it is killed.
    pub(crate) deadline: Option<Instant>,
    /// The way in.
    pub(crate) input: Input,
    number: u64,
    audience: Arc<Audience>,
    signalled: watch::Sender<bool>,
}

/// All processes of clients.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    spawner: Spawner,
    reaper: Reaper,
    guest: Guest,
    table: Arc<Mutex<Table>>,
}

// === impl StartError ===

impl StartError {
    /// Whether the machine has reached its limit of processes or descriptors.
    pub(crate) fn is_exhaustion(&self) -> bool {
        match self {
            Self::Resources(_, error) => {
                matches!(
                    error.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOSPC | libc::ENOMEM)
                )
            }
            Self::Spawn(_, SpawnError::Step { step: Step::Clone, .. }) => true,
            Self::Spawn(..) => false,
        }
    }

    /// Whether the request itself is at fault.
    pub(crate) fn is_request(&self) -> bool {
        matches!(
            self,
            Self::Spawn(
                _,
                SpawnError::Malformed
                    | SpawnError::Step { step: Step::Chdir | Step::Credentials | Step::Exec, .. }
            )
        )
    }
}

/// Go's words for a start that failed: the wrapper's shell is what upstream executes.
fn spawn_text(error: &SpawnError) -> String {
    match error {
        SpawnError::Step { errno, .. } => {
            format!("fork/exec /bin/sh: {}", failure::text(&io::Error::from(*errno)))
        }
        other => other.to_string(),
    }
}

// === impl Process ===

impl Process {
    /// What is kept of one that has ended: how it is found, and its end. Not what was asked for,
    /// which may be large.
    fn remains(&self) -> Arc<Self> {
        Arc::new(Self {
            pid: self.pid,
            tag: self.tag.clone(),
            config: Config::default(),
            deadline: None,
            input: Input::pipe(None),
            number: self.number,
            audience: Arc::clone(&self.audience),
            signalled: watch::Sender::new(true),
        })
    }

    /// Its output from now on, and its end.
    pub(crate) fn subscribe(&self) -> mpsc::Receiver<Message> {
        self.audience.subscribe()
    }
}

// === impl Processes ===

impl Processes {
    /// None yet.
    pub(crate) fn new(spawner: Spawner, reaper: Reaper, guest: Guest) -> Self {
        Self { spawner, reaper, guest, table: Arc::default() }
    }

    /// For tests of what needs no process: every start is refused.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn without_spawner() -> Self {
        Self::new(Spawner::refusing(), Reaper::default(), Guest::default())
    }

    /// Starts a process and subscribes to it before it can say anything. Must not be dropped
    /// half-way: run it in a task of its own.
    pub(crate) async fn start(
        &self,
        launch: Launch,
    ) -> Result<(Arc<Process>, mpsc::Receiver<Message>), StartError> {
        let cmd = launch.config.cmd.clone();
        let refused = |error: io::Error| StartError::Resources(cmd.clone(), error);
        let (stdio, input, outputs) = plumb(&launch).map_err(refused)?;
        let order = order(&launch);
        let child =
            self.spawner.spawn(order, stdio).await.map_err(|error| StartError::Spawn(cmd.clone(), error))?;

        let audience = Arc::new(Audience::default());
        let (signalled, signal_seen) = watch::channel(false);
        let (exit_sender, exit) = watch::channel(None);
        let receiver = audience.subscribe();
        let process = {
            let mut table = self.table();
            let process = Arc::new(Process {
                pid: child.pid.unsigned_abs(),
                tag: launch.tag,
                config: launch.config,
                deadline: launch.deadline,
                input,
                number: table.next_number(),
                audience: Arc::clone(&audience),
                signalled,
            });
            table.add(&process);
            process
        };
        self.log(&process, "process_start", ("command", process.config.cmd.clone()));
        let patience = Patience { exit, signalled: signal_seen };
        let pumps: Vec<_> = outputs
            .into_iter()
            .map(|(fd, source)| tokio::spawn(pump(fd, source, Arc::clone(&audience), patience.clone())))
            .collect();
        let keeper = self.clone();
        let kept = Arc::clone(&process);
        tokio::spawn(async move {
            let exit = keeper.wait(child.exit, &kept).await;
            keeper.log(&kept, "process_end", ("process_result", status::end_event(exit).status));
            exit_sender.send_replace(Some(exit));
            for pump in pumps {
                let _ = pump.await;
            }
            kept.input.release();
            keeper.table().retire(&kept, awake::now());
            kept.audience.close(status::end_event(exit)).await;
        });
        Ok((process, receiver))
    }

    /// A live process.
    pub(crate) fn live(&self, selector: &Selector) -> Option<Arc<Process>> {
        self.table().live(selector)
    }

    /// A live process, or one that ended within the retention.
    pub(crate) fn any(&self, selector: &Selector) -> Option<Arc<Process>> {
        self.table().any(selector, awake::now())
    }

    /// All live ones, those included whose output is still open.
    pub(crate) fn list(&self) -> Vec<Arc<Process>> {
        self.table().list()
    }

    /// Signals the leader only. From then on its own end is the end, whoever holds its output.
    pub(crate) fn signal(&self, process: &Process, signal: Signal) -> Result<(), Errno> {
        self.reaper.kill(process.pid.cast_signed(), signal)?;
        process.signalled.send_replace(true);
        Ok(())
    }

    /// Kills the leader with its group. From then on its own end is the end.
    pub(crate) fn end_group(&self, process: &Process) {
        // One that has ended meanwhile needs no signal.
        let _ = self.reaper.kill_group(process.pid.cast_signed(), Signal::SIGKILL);
        process.signalled.send_replace(true);
    }

    /// Waits for the exit; the deadline kills the leader, and only it.
    async fn wait(&self, mut exit: tokio::sync::oneshot::Receiver<Exit>, process: &Process) -> Exit {
        if let Some(deadline) = process.deadline {
            tokio::select! {
                exit = &mut exit => return settled(exit.ok()),
                () = awake::until(deadline) => {
                    // Unlike a client's signal it does not cut the output of children short.
                    let _ = self.reaper.kill(process.pid.cast_signed(), Signal::SIGKILL);
                }
            }
        }
        settled(exit.await.ok())
    }

    /// Never arguments, environment or output: those may hold secrets.
    fn log(&self, process: &Process, event: &str, (name, value): (&str, String)) {
        let mut fields = BTreeMap::from([
            ("event_type".to_owned(), event.to_owned()),
            ("pid".to_owned(), process.pid.to_string()),
            (name.to_owned(), value),
        ]);
        fields.extend(process.tag.clone().map(|tag| ("tag".to_owned(), tag)));
        self.guest.logs().info(self.guest.now(), "process", event.replace('_', " "), fields);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reaper lives as long as the program; without it nothing is known but that it is over.
fn settled(exit: Option<Exit>) -> Exit {
    exit.unwrap_or(Exit::Signal { number: libc::SIGKILL, core: false })
}

type Outputs = Vec<(Arc<AsyncFd<OwnedFd>>, Source)>;

/// Pipes or a terminal, by what was asked.
fn plumb(launch: &Launch) -> io::Result<(Stdio, Input, Outputs)> {
    if let Some(size) = launch.pty {
        let (master, slave) = pty::open(size, launch.user.uid)?;
        let master = Arc::new(pty::register(master)?);
        let stdio = [slave.try_clone()?, slave.try_clone()?, slave];
        return Ok((stdio, Input::tty(Arc::clone(&master)), vec![(master, Source::Pty)]));
    }
    let (stdout, their_stdout) = pipe()?;
    let (stderr, their_stderr) = pipe()?;
    let (their_stdin, input) = if launch.stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        (theirs, Some(Arc::new(pty::register(nonblocking(ours)?)?)))
    } else {
        (OwnedFd::from(File::open("/dev/null")?), None)
    };
    let outputs = vec![(stdout, Source::Stdout), (stderr, Source::Stderr)];
    Ok(([their_stdin, their_stdout, their_stderr], Input::pipe(input), outputs))
}

fn pipe() -> io::Result<(Arc<AsyncFd<OwnedFd>>, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((Arc::new(pty::register(nonblocking(ours)?)?), theirs))
}

/// Ours only: the flag belongs to the open file, and each end of a pipe is one of its own.
fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// The environment in layers: the user's, the sandbox's, the request's; later ones win.
fn order(launch: &Launch) -> Order {
    let user = &launch.user;
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    env.extend(launch.globals.clone());
    env.extend(launch.config.envs.clone());
    Order {
        argv: std::iter::once(&launch.config.cmd).chain(&launch.config.args).cloned().collect(),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: launch.cwd.clone(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        tty: launch.pty.is_some(),
        system: launch.tag.as_deref() == Some(SYSTEM_TAG),
    }
}

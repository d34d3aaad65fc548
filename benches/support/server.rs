//! A real `firkin serve` on a free port, with a data directory of its own, gone at the end.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// A stop ends every sandbox first.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) key: String,
    process: Running,
    // Its other end: a server whose output has nowhere to go might mind.
    output: Option<BufReader<ChildStdout>>,
    home: Home,
}

/// A data directory that outlives single servers.
#[derive(Debug)]
pub(crate) struct Home {
    directory: TempDir,
    /// Of every server here, besides the usual ones.
    flags: &'static [&'static str],
}

/// A process that is asked to end, and made to, when its owner goes.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

// === impl Home ===

impl Home {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("firkin-bench-").tempdir_in("/var/tmp")?;
        // The gateway is an ordinary user and must pass through.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { directory: home, flags: &[] })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a server here; what it prints goes to this pipe.
    pub(crate) fn spawn(&self, listen: &str, output: Stdio) -> anyhow::Result<Running> {
        let log = fs::File::options().create(true).append(true).open(self.path().join("log"))?;
        let mut command = Command::new(binary()?);
        command
            .args(["serve", "--stop-sandboxes", "--listen", listen, "--data-dir"])
            .arg(self.path().join("data"))
            .args(self.flags);
        // A promise that names its driver keeps it.
        if let Some(driver) = storage().filter(|_| !self.flags.contains(&"--storage")) {
            command.args(["--storage", &driver]);
        }
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn()?;
        Ok(Running(child))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

// === impl Server ===

impl Server {
    /// Starts a server that keeps nothing warm, and waits until it is ready.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Self::start_with(&["--warm", "none"])
    }

    /// The same with further flags.
    pub(crate) fn start_with(flags: &'static [&'static str]) -> anyhow::Result<Self> {
        let home = Home { flags, ..Home::new()? };
        let (process, output, address, key) = ready(&home)?;
        let key = key.context("the first start prints a key")?;
        Ok(Self { address, key, process, output: Some(output), home })
    }

    /// Kills the gateway, without a word to anybody.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        self.output = None;
        Ok(())
    }

    /// Starts another one on the same data, and waits until it is ready.
    pub(crate) fn start_again(&mut self) -> anyhow::Result<()> {
        let (process, output, address, _) = ready(&self.home)?;
        (self.process, self.output, self.address) = (process, Some(output), address);
        Ok(())
    }

    /// The gateway's.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// The privileged helper's: its only child.
    pub(crate) fn helper(&self) -> anyhow::Result<u32> {
        let gateway = self.pid();
        let children = fs::read_to_string(format!("/proc/{gateway}/task/{gateway}/children"))?;
        children.split(' ').find_map(|pid| pid.parse().ok()).context("the gateway has no helper")
    }

    /// A directory of its own, on the disk of its data.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// What opens `/metrics`.
    pub(crate) fn admin_token(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.home().join("data/gateway/admin-token"))?.trim().to_owned())
    }

    /// Its log, for when something failed.
    pub(crate) fn log(&self) -> String {
        self.home.log()
    }
}

/// Starts a server and reads what it prints until it is ready: its address, and a key if it made one.
fn ready(home: &Home) -> anyhow::Result<(Running, BufReader<ChildStdout>, String, Option<String>)> {
    let mut process = home.spawn("127.0.0.1:0", Stdio::piped())?;
    let mut output = BufReader::new(process.0.stdout.take().context("its output is a pipe")?);
    let (mut key, mut line) = (None, String::new());
    while output.read_line(&mut line)? > 0 {
        if let Some(value) = line.trim().strip_prefix("export E2B_API_KEY=") {
            key = Some(value.to_owned());
        }
        if let Some(address) =
            line.strip_prefix("firkin ready at http://").and_then(|rest| rest.split(' ').next())
        {
            return Ok((process, output, address.to_owned(), key));
        }
        line.clear();
    }
    bail!("the server did not become ready:\n{}", home.log())
}

// === impl Running ===

impl Drop for Running {
    fn drop(&mut self) {
        // A pid that was waited for may be somebody else's by now.
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        if let Ok(pid) = i32::try_from(self.0.id()).map(Pid::from_raw) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        let begin = Instant::now();
        while begin.elapsed() < STOP_PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The storage driver that all servers here shall have: `FIRKIN_BENCH_STORAGE`; none: what the host's probe
/// chooses.
pub(crate) fn storage() -> Option<String> {
    env::var("FIRKIN_BENCH_STORAGE").ok().filter(|driver| !driver.is_empty())
}

/// The release binary: `FIRKIN_BIN`, or where `make build` and cargo put it.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os("FIRKIN_BIN") {
        return Ok(path.into());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let places = [
        target.join(format!("{}-unknown-linux-gnu/release/firkin", env::consts::ARCH)),
        target.join("release/firkin"),
    ];
    places.into_iter().find(|path| path.is_file()).context("no release binary: run `make build` first")
}

//! The setuid `sudo` of the supplement layer, for images that have none.
//!
//! It does what passwordless sandboxes need of sudo and refuses the rest by name: no password
//! is ever asked for, there is no PAM, no plug-in, no log. Everything is decided from the
//! caller's real ids and from files that only root can write; nothing of the caller's
//! environment is looked at before that, but for what goes on to the command.
#![expect(unsafe_code, reason = "descriptors are closed by number before the command starts")]

mod accounts;
mod environment;
mod options;
mod rules;

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, geteuid, getgid, getuid, setgroups, setresgid, setresuid},
};

use accounts::{Accounts, User};
use options::{Action, Options};

/// Where commands are looked for, whatever the caller's PATH says.
const SECURE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match run(&mut arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only when there is nothing to run or it cannot be run.
fn run(arguments: &mut dyn Iterator<Item = OsString>) -> Result<(), String> {
    let options = options::parse(arguments).map_err(|problem| format!("sudo: {problem}"))?;
    match options.action {
        Action::Help => return say(options::USAGE),
        Action::Version => {
            return say(concat!("Sudo of firkin ", env!("CARGO_PKG_VERSION"), " (no passwords, no PAM)\n"));
        }
        // There are no time stamps to remove.
        Action::Forget => return Ok(()),
        Action::Run | Action::List | Action::Validate => {}
    }
    if !geteuid().is_root() {
        return Err("sudo: /usr/bin/sudo must be owned by uid 0 and have the setuid bit set".to_owned());
    }
    let accounts = Accounts::read().map_err(|error| format!("sudo: {error}"))?;
    let caller = accounts
        .by_id(getuid().as_raw())
        .ok_or_else(|| format!("sudo: you do not exist in the passwd database (uid {})", getuid()))?;
    let target = target(&options, &accounts, &caller)?;
    let gid = group(&options, &accounts, &target)?;
    if !caller.is_root() {
        let groups = accounts.groups_of(&caller.name, getgid().as_raw());
        rules::check(&caller.name, &groups, &target.name, options.group.as_deref())?;
    }
    match options.action {
        Action::List => say(&format!(
            "User {} may run the following commands:\n    (ALL : ALL) NOPASSWD: ALL\n",
            caller.name
        )),
        Action::Validate => Ok(()),
        _ => Err(execute(&options, &accounts, &caller, &target, gid)),
    }
}

fn say(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("sudo: {error}"))
}

fn target(options: &Options, accounts: &Accounts, caller: &User) -> Result<User, String> {
    let name = match (&options.user, &options.group) {
        (Some(name), _) => name.as_str(),
        // With a group alone, the command stays the caller's.
        (None, Some(_)) => caller.name.as_str(),
        (None, None) => "root",
    };
    accounts.find(name).ok_or_else(|| format!("sudo: unknown user {name}"))
}

fn group(options: &Options, accounts: &Accounts, target: &User) -> Result<u32, String> {
    match &options.group {
        Some(name) => accounts.group(name).ok_or_else(|| format!("sudo: unknown group {name}")),
        None => Ok(target.gid),
    }
}

/// Becomes the command; what is returned is why it could not.
fn execute(options: &Options, accounts: &Accounts, caller: &User, target: &User, gid: u32) -> String {
    let plan = match Plan::make(options, target) {
        Ok(plan) => plan,
        Err(problem) => return problem,
    };
    let variables = environment::of_command(options, caller, target, &plan.described);
    let groups = if options.keep_groups { None } else { Some(accounts.groups_of(&target.name, gid)) };
    if let Err(problem) = become_target(target, gid, groups) {
        return format!("sudo: cannot become {}: {problem}", target.name);
    }
    if let Some(dir) = &plan.dir
        && let Err(error) = std::env::set_current_dir(dir)
    {
        return format!("sudo: unable to change directory to {}: {error}", dir.display());
    }
    let mut command = Command::new(&plan.program);
    command.arg0(&plan.arg0).args(&plan.arguments).env_clear().envs(variables);
    let error = command.exec();
    format!("sudo: unable to execute {}: {error}", plan.program.display())
}

fn become_target(target: &User, gid: u32, groups: Option<Vec<u32>>) -> nix::Result<()> {
    umask(umask(Mode::empty()) | Mode::from_bits_truncate(0o022));
    if let Some(groups) = groups {
        setgroups(&groups.into_iter().map(Gid::from_raw).collect::<Vec<_>>())?;
    }
    let (uid, gid) = (Uid::from_raw(target.uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // SAFETY: only closes; no descriptor above 2 belongs to anything that lives in this process.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    nix::errno::Errno::result(closed).map(drop)
}

/// What is to be executed.
struct Plan {
    program: PathBuf,
    arg0: OsString,
    arguments: Vec<OsString>,
    dir: Option<PathBuf>,
    /// For `SUDO_COMMAND`.
    described: OsString,
}

// === impl Plan ===

impl Plan {
    fn make(options: &Options, target: &User) -> Result<Self, String> {
        let dir = options.dir.clone().map(PathBuf::from);
        if options.login || options.shell {
            return Ok(Self::shell(options, target, dir));
        }
        let name = options.command.first().ok_or_else(|| options::USAGE.trim_end().to_owned())?;
        let program =
            find(name).ok_or_else(|| format!("sudo: {}: command not found", name.to_string_lossy()))?;
        let arguments = options.command[1..].to_vec();
        let mut described = program.clone().into_os_string();
        for argument in &arguments {
            described.push(" ");
            described.push(argument);
        }
        Ok(Self { program, arg0: name.clone(), arguments, dir, described })
    }

    fn shell(options: &Options, target: &User, dir: Option<PathBuf>) -> Self {
        let own = std::env::var_os("SHELL").filter(|_| !options.login);
        let program = PathBuf::from(own.unwrap_or_else(|| OsString::from(&target.shell)));
        let name = program.file_name().unwrap_or(program.as_os_str()).to_owned();
        let mut arg0 = OsString::from(if options.login { "-" } else { "" });
        arg0.push(name);
        let mut arguments = Vec::new();
        if !options.command.is_empty() {
            arguments.push(OsString::from("-c"));
            arguments.push(environment::one_line(&options.command));
        }
        let mut described = program.clone().into_os_string();
        for argument in &arguments {
            described.push(" ");
            described.push(argument);
        }
        let home = options.login.then(|| PathBuf::from(&target.home));
        Self { program, arg0, arguments, dir: dir.or(home), described }
    }
}

/// The program of that name: a path as it is, a plain name by the secure path.
fn find(name: &OsStr) -> Option<PathBuf> {
    let runs = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| runs(path));
    }
    SECURE_PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| runs(path))
}

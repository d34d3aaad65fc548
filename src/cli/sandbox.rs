//! `firkin sandbox`: sandboxes of a running server, on this machine or another, over its HTTP API.

mod client;
mod create;
mod exec;
mod filter;
mod kill;
mod list;
mod logs;
mod message;
mod names;
mod output;
mod pause;
mod server;
mod session;
mod snapshot;
mod terminal;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use self::{client::Client, server::ServerArgs};
use crate::{
    cli::complain,
    config::{Config, ConfigError},
};

/// The exit code of what `SIGPIPE` ends: nobody reads on.
const NOBODY_READS: u8 = 128 + 13;

const EXAMPLES: &str = "\
Examples:
  export E2B_API_URL=http://127.0.0.1:3000 E2B_API_KEY=...   # `firkin serve` prints these lines
  id=$(firkin sandbox create base --timeout 3600 --metadata owner=me)
  firkin sandbox exec $id -- ls -l /
  firkin sandbox connect $id
  firkin sandbox list --metadata owner=me
  firkin sandbox logs -f $id
  firkin sandbox kill $id

The server is named by --api-url, --domain, E2B_API_URL or E2B_DOMAIN, in this order; by
default it is the one that this machine's configuration describes. Over https its certificate
must be one that SSL_CERT_FILE or the system trusts, or that --ca-file names (`sudo firkin ca
export`).";

/// Sandboxes of a running server.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SandboxArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: SandboxCommand,
}

/// What can be done with sandboxes.
#[derive(Debug, Subcommand)]
enum SandboxCommand {
    /// List sandboxes, newest first
    List(list::ListArgs),
    /// Make a sandbox and print its id
    Create(create::CreateArgs),
    /// Run a command in a sandbox, with pipes and its exit code
    Exec(exec::ExecArgs),
    /// Open a terminal in a sandbox; it goes on for as long as the terminal is open
    Connect(terminal::ConnectArgs),
    /// Show what the sandbox's guest logged: processes that started and ended, and more
    Logs(logs::LogsArgs),
    /// Put sandboxes to rest: they use nothing but disk until they are resumed
    Pause(pause::PauseArgs),
    /// Wake paused sandboxes
    Resume(pause::ResumeArgs),
    /// Make a template of a running sandbox and print its id, which `create` takes
    Snapshot(snapshot::SnapshotArgs),
    /// End sandboxes, running or paused; nothing of them stays
    Kill(kill::KillArgs),
}

pub(super) fn run(
    args: SandboxArgs,
    config: impl FnOnce() -> Result<Config, ConfigError>,
) -> anyhow::Result<ExitCode> {
    let failure = args.command.failure();
    let client = Client::new(args.server.resolve(|name| std::env::var(name).ok(), config)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(args.command.run(&client));
    // A thread that waits for a name or for input does not hold the exit back.
    runtime.shutdown_background();
    done.or_else(|error| {
        if is_broken_pipe(&error) {
            return Ok(ExitCode::from(NOBODY_READS));
        }
        complain(&error);
        Ok(failure)
    })
}

// === impl SandboxCommand ===

impl SandboxCommand {
    /// The exit code of a failure of ours, where a command's own must be told from it.
    fn failure(&self) -> ExitCode {
        match self {
            Self::Exec(_) | Self::Connect(_) => ExitCode::from(u8::MAX),
            Self::Create(args) if args.connect => ExitCode::from(u8::MAX),
            _ => ExitCode::FAILURE,
        }
    }

    async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        match self {
            Self::List(args) => list::run(args, client).await,
            Self::Create(args) => create::run(args, client).await,
            Self::Exec(args) => exec::run(args, client).await,
            Self::Connect(args) => terminal::run(args, client).await,
            Self::Logs(args) => logs::run(args, client).await,
            Self::Pause(args) => pause::pause(args, client).await,
            Self::Resume(args) => pause::resume(args, client).await,
            Self::Snapshot(args) => snapshot::run(args, client).await,
            Self::Kill(args) => kill::run(args, client).await,
        }
    }
}

/// Prints lines, or says that nobody reads them any more.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Text of others as it may go to a terminal: without control characters.
fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    clean
}

/// A value of a command line of the form `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("want NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_a_name_and_may_hold_more_equal_signs() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        for bad in ["", "a", "=b"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("plain é"), "plain é");
        assert_eq!(printable("\u{1b}[2J\n\u{9b}"), "\\u{1b}[2J\\n\\u{9b}");
    }
}

//! `firkin sandbox connect`: a terminal in a sandbox; and this program's own terminal, which is put
//! back as it was on every path.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use http::Method;
use rustix::termios::{self, OptionalActions, Termios};
use serde_json::{Value, json};

use super::{
    client::{Client, escaped},
    message::Size,
    session::{Input, Session},
};
use crate::cli::note;

/// The least that a sandbox with a terminal has before it; told again and again.
const LIFE_SECONDS: u32 = 300;
/// Between two times that it is told.
const RENEW: Duration = Duration::from_mins(1);

/// Flags of `firkin sandbox connect`.
#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    /// The sandbox
    id: String,
    /// The user whose shell it is [default: the sandbox's]
    #[arg(long, short, value_name = "NAME")]
    user: Option<String>,
    /// The directory to begin in [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    cwd: Option<String>,
    /// Take up the terminal of this process, as after a connection that broke
    #[arg(long, value_name = "PID", conflicts_with_all = ["user", "cwd"])]
    pid: Option<u32>,
}

/// The terminal in raw mode, for as long as this lives.
#[derive(Debug)]
pub(super) struct Raw(Termios);

pub(super) async fn run(args: ConnectArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let Size { cols, rows } = size();
    let mut query = format!("cols={cols}&rows={rows}");
    let pid = args.pid.map(|pid| pid.to_string());
    for (name, value) in [("user", args.user), ("cwd", args.cwd), ("pid", pid)] {
        if let Some(value) = value {
            query = format!("{query}&{name}={}", escaped(&value));
        }
    }
    open(client, &args.id, &query).await
}

/// A login shell in the sandbox.
pub(super) async fn shell(client: &Client, id: &str) -> anyhow::Result<ExitCode> {
    let Size { cols, rows } = size();
    open(client, id, &format!("cols={cols}&rows={rows}")).await
}

async fn open(client: &Client, id: &str, query: &str) -> anyhow::Result<ExitCode> {
    check()?;
    // Wakes it, and gives it time.
    renew(client, id).await?;
    let session = Session::terminal(client, id, query).await?;
    let raw = Raw::enter()?;
    let code = tokio::select! {
        code = session.run(Input::Terminal) => code,
        never = keep(client, id) => match never {},
    };
    drop(raw);
    note(&format!("firkin: left the terminal; the sandbox goes on: {id}"));
    Ok(ExitCode::from(code?))
}

/// Puts the deadline off for as long as somebody is there.
async fn keep(client: &Client, id: &str) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(RENEW).await;
        // A sandbox that has ended ends the terminal, too.
        let _ = renew(client, id).await;
    }
}

async fn renew(client: &Client, id: &str) -> anyhow::Result<()> {
    let path = format!("/sandboxes/{}/connect", escaped(id));
    client.call::<Value>(Method::POST, &path, Some(&json!({ "timeout": LIFE_SECONDS }))).await?;
    Ok(())
}

/// Refuses what is no terminal.
pub(super) fn check() -> anyhow::Result<()> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    bail!("this needs a terminal as input and output; without one: firkin sandbox exec ID -- COMMAND")
}

/// The terminal's size, or a usual one where it does not tell.
pub(super) fn size() -> Size {
    let told = termios::tcgetwinsize(io::stdout()).ok();
    match told.filter(|size| size.ws_col > 0 && size.ws_row > 0) {
        Some(size) => Size { cols: size.ws_col, rows: size.ws_row },
        None => Size { cols: 80, rows: 24 },
    }
}

// === impl Raw ===

impl Raw {
    /// Hands every key on as it is typed.
    pub(super) fn enter() -> anyhow::Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("the terminal does not tell its mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("the terminal does not take another mode")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

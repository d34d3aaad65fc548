//! `firkin sandbox exec`: a command in a sandbox with this program's input and outputs, and its
//! exit code.

use std::process::ExitCode;

use clap::Args;

use super::{
    client::Client,
    message::Start,
    pair,
    session::{Input, Session},
    terminal,
};

const EXAMPLES: &str = "\
Examples:
  firkin sandbox exec $id -- ls -l /
  firkin sandbox exec $id --user root -- apt-get install -y jq
  tar c . | firkin sandbox exec $id --cwd /tmp -- tar x
  firkin sandbox exec $id -- sh -c 'echo $HOME | tr a-z A-Z'
  firkin sandbox exec -t $id -- top

The command is started as it is, without a shell. Ctrl-C ends it (SIGTERM), a second one kills it
(SIGKILL). The exit code is the command's own, 127 if there is no such command, 128 + N if signal N
ended it, and 255 if firkin itself failed.";

/// Flags of `firkin sandbox exec`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExecArgs {
    /// The sandbox
    id: String,
    /// The command's user [default: the sandbox's]
    #[arg(long, short, value_name = "NAME")]
    user: Option<String>,
    /// The command's directory [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    cwd: Option<String>,
    /// A variable of the command; can be given again
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Give the command a terminal: this one
    #[arg(long, short)]
    tty: bool,
    /// Leave standard input alone, as in a loop that reads it; the command's is empty
    #[arg(long, short, conflicts_with = "tty")]
    no_stdin: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: ExecArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let input = match (args.tty, args.no_stdin) {
        (true, _) => Input::Terminal,
        (false, true) => Input::None,
        (false, false) => Input::Pipe,
    };
    if args.tty {
        terminal::check()?;
    }
    let mut command = args.command.into_iter();
    let mut start = Start {
        cmd: command.next().unwrap_or_default(),
        args: command.collect(),
        envs: args.env.into_iter().collect(),
        cwd: args.cwd,
        user: args.user,
        stdin: input == Input::Pipe,
        pty: args.tty.then(terminal::size),
    };
    if args.tty {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
        start.envs.entry("TERM".to_owned()).or_insert(term);
    }
    let session = Session::start(client, &args.id, start).await?;
    let raw = args.tty.then(terminal::Raw::enter).transpose()?;
    let code = session.run(input).await;
    drop(raw);
    Ok(ExitCode::from(code?))
}

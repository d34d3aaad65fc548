//! The command line: one file a command. Commands that change a running server talk to its admin
//! socket, `sandbox` to its HTTP API; only `serve`, `doctor` and `template import` do work of their
//! own.

mod admin;
mod ca;
mod doctor;
mod embedded;
mod key;
mod logfile;
mod openapi;
mod sandbox;
mod serve;
mod team;
mod template;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, ConfigError, Sources};

/// Sandboxes for AI agents on your own machine, for the official E2B SDKs.
///
/// `sudo firkin serve` starts the server; its first start prints the lines that point an SDK at
/// it. Every setting is a flag, a FIRKIN_* variable, or a key of /etc/firkin/firkin.toml, in that
/// order of precedence.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

/// The settings that every command shares.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// TOML file with settings [default: /etc/firkin/firkin.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "FIRKIN_CONFIG")]
    config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/firkin]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// What is logged: error, warn, info, debug, or a filter such as firkin=debug [default: info]
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, global = true, value_name = "FORM")]
    log_format: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server (as root)
    Serve(Box<serve::ServeArgs>),
    /// API keys of the running server
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Sandboxes of a running server, here or elsewhere
    Sandbox(sandbox::SandboxArgs),
    /// Teams of the running server
    #[command(subcommand)]
    Team(team::TeamCommand),
    /// Templates of the running server
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Trust the certificates of the server's own development authority
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Probe what this host offers: what will be used, what is lost without it, what to do
    Doctor(doctor::DoctorArgs),
    /// Print the `OpenAPI` document of the control plane
    Openapi,
}

/// Reads the command line, runs the command, and gives its exit code: 0 done, 1 failed, 2 called
/// wrongly.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.dispatch() {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

// === impl Cli ===

impl Cli {
    fn dispatch(self) -> anyhow::Result<ExitCode> {
        let settings = self.settings;
        match self.command {
            Command::Serve(args) => serve::run(&args, &load(&settings, args.flags())?),
            Command::Key(command) => key::run(command, &load(&settings, [])?),
            Command::Sandbox(args) => sandbox::run(args, || load(&settings, [])),
            Command::Team(command) => team::run(command, &load(&settings, [])?),
            Command::Template(command) => template::run(command, &load(&settings, [])?),
            Command::Ca(command) => ca::run(command, &load(&settings, [])?),
            Command::Doctor(args) => doctor::run(&args, &load(&settings, [])?),
            Command::Openapi => Ok(openapi::run()),
        }
    }
}

fn load(
    settings: &SettingsArgs,
    flags: impl IntoIterator<Item = (&'static str, Option<String>)>,
) -> Result<Config, ConfigError> {
    let shared = [
        ("data-dir", settings.data_dir.clone()),
        ("log", settings.log.clone()),
        ("log-format", settings.log_format.clone()),
    ];
    let flags = shared.into_iter().chain(flags).filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let mut sources = Sources::new(flags, std::env::vars());
    let named = settings.config.clone();
    let path = named.clone().unwrap_or_else(|| PathBuf::from(config::DEFAULT_FILE));
    if named.is_some() || path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|error| ConfigError::File {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        sources = sources.with_file(path, &text)?;
    }
    Config::load(&sources)
}

/// Prints a line for the person or script that called.
#[expect(clippy::print_stdout, reason = "the command line's own output")]
fn say(text: &str) {
    println!("{text}");
}

/// Prints what went wrong, causes behind it.
#[expect(clippy::print_stderr, reason = "the command line's own output")]
fn complain(error: &anyhow::Error) {
    eprintln!("firkin: {error:#}");
}

/// Prints a note that is neither output nor failure.
fn note(text: &str) {
    // Nobody may listen any more.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

//! `firkin doctor`: what this host offers, feature by feature.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use crate::{app::host, cli::say, config::Config, warden::probe, wire::warden::ProbeResult};

/// Flags of `firkin doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// One JSON object a feature
    #[arg(long)]
    json: bool,
}

/// Probes, prints, and fails when something is missing that sandboxes cannot run without.
pub(super) fn run(args: &DoctorArgs, config: &Config) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("doctor needs root to try what the server would do. Run `sudo firkin doctor`.");
    }
    let place = nearest(&config.storage.data_dir)?;
    let mut probes = probe::all(place.as_fd());
    probes.extend(host::room(&config.admission, place.as_fd()));
    for result in &probes {
        if args.json {
            say(&serde_json::to_string(result)?);
        } else {
            say(&line(result));
        }
    }
    let missing = probes.iter().filter(|result| result.required && !result.present).count();
    if missing > 0 {
        say(&format!("\n{missing} required features are missing: sandboxes cannot run on this host."));
        return Ok(ExitCode::FAILURE);
    }
    if !args.json {
        say("\nSandboxes can run on this host.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The data directory, or before the first start the directory that will hold it.
fn nearest(data_dir: &Path) -> io::Result<File> {
    let mut path = PathBuf::from(data_dir);
    loop {
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.pop() => {}
            opened => return opened,
        }
    }
}

fn line(result: &ProbeResult) -> String {
    let mark = match (result.present, result.required) {
        (true, _) => "ok      ",
        (false, true) => "MISSING ",
        (false, false) => "without ",
    };
    let mut line = format!("{mark}{}: {}", result.feature, result.used);
    if !result.advice.is_empty() {
        line.push_str("\n        ");
        line.push_str(&result.advice);
    }
    line
}

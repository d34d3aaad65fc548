//! `firkin template`: brings a root file system to the host and registers it with the server.
//!
//! The command, as root, unpacks into the data directory itself: the gateway has no right to, and
//! no path ever passes through it. The server then only learns the build's id.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use http::Method;
use rustix::fs::{Mode, OFlags};

use crate::{
    cli::{admin, embedded, note, say},
    config::Config,
    id::{BuildId, OsEntropy},
    routes::admin::{NewTemplate, Status, TemplateView},
    warden::import::{self, Import},
};

/// What can be done with templates.
#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// Unpack a root file system and make it a template (as root, beside the running server)
    Import(ImportArgs),
}

/// Flags of `firkin template import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The template's name; importing under a known name makes a new build of it
    name: String,
    #[command(flatten)]
    source: Source,
    /// The team that it belongs to [default: everybody]
    #[arg(long, value_name = "SLUG")]
    team: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A directory with a root file system, such as debootstrap makes
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// A tar archive, plain or gzip, such as `docker export` makes
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

pub(super) fn run(command: TemplateCommand, config: &Config) -> anyhow::Result<ExitCode> {
    let TemplateCommand::Import(args) = command;
    if !nix::unistd::geteuid().is_root() {
        bail!("template import needs root: it unpacks files of many owners. Run it with sudo.");
    }
    // Asked first, so that nothing is unpacked for a server that does not run.
    admin::request::<Status>(config, Method::GET, "/status", None::<&()>)?;
    let store = store(&config.storage.data_dir)?;
    let import = Import {
        build: BuildId::generate(&OsEntropy),
        sudo: embedded::sudo(),
        limits: import::Limits::default(),
    };
    let mut progress = |text: &str| note(&format!("firkin: {text}"));
    let image = match (&args.source.rootfs, &args.source.tar) {
        (Some(rootfs), _) => {
            let rootfs =
                rustix::fs::open(rootfs, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                    .with_context(|| format!("cannot open {}", rootfs.display()))?;
            import::import_dir(store.as_fd(), rootfs.as_fd(), &import, &mut progress)?
        }
        (None, Some(tar)) => {
            let archive = File::open(tar).with_context(|| format!("cannot open {}", tar.display()))?;
            import::import_tar(store.as_fd(), archive, &import, &mut progress)?
        }
        (None, None) => bail!("name a source: --rootfs DIR or --tar FILE"),
    };
    let wanted = NewTemplate {
        name: args.name,
        aliases: Vec::new(),
        team: args.team,
        build: image.build,
        resources: None,
        fingerprint: None,
    };
    let made: TemplateView = admin::request(config, Method::POST, "/templates", Some(&wanted))
        .context("the files are unpacked, but the server did not take the template")?;
    if let Some(notice) = image.notice {
        note(&format!("firkin: {notice}"));
    }
    say(&format!("{}  {}  {}", made.template, made.build, made.aliases.join(", ")));
    Ok(ExitCode::SUCCESS)
}

/// The template store of a data directory that `serve` has made.
fn store(data_dir: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let context = || format!("{} is no data directory that `firkin serve` made", data_dir.display());
    let data = rustix::fs::open(data_dir, flags, Mode::empty()).with_context(context)?;
    let store = rustix::fs::openat(&data, "templates", flags, Mode::empty()).with_context(context)?;
    // The data directory is the gateway's: only a directory of root's is the store.
    if rustix::fs::fstat(&store)?.st_uid != 0 {
        bail!("{}", context());
    }
    Ok(store)
}

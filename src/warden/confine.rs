//! The child that unpacks and copies hostile trees: what it loses, and how it says what came of it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::fd::BorrowedFd,
};

use nix::sched::CloneFlags;
use rustix::{
    process::{Resource, Rlimit, WaitOptions},
    thread::{CapabilitySet, CapabilitySets},
};
use serde::{Deserialize, Serialize};

use super::{
    image::{self, Doing as _, ImageError},
    worker::fork_bound,
};

/// Memory for names and for an archive's headers: a header that claims gigabytes ends the child.
const MEMORY: u64 = 1 << 30;

#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Progress(String),
    Done(Option<String>),
    Refused(String),
    /// There is no room for it.
    Full(String),
}

/// Why the work was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// An entry that no honest tree has.
    #[error("{0}")]
    Content(String),
    /// A step failed.
    #[error("{what}: {error}")]
    Step { what: String, error: std::io::Error },
}

/// Names the entry at which a step failed.
pub(super) fn at<E: Into<std::io::Error>>(path: &[u8]) -> impl Fn(E) -> Refusal {
    move |error| Refusal::Step { what: String::from_utf8_lossy(path).into_owned(), error: error.into() }
}

// === impl Said ===

impl From<Refusal> for Said {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::Step { error, .. } if image::is_full(error) => Self::Full(refusal.to_string()),
            _ => Self::Refused(refusal.to_string()),
        }
    }
}

/// Runs the work in a confined child whose root directory is `top`, with these capabilities beside
/// those that give files their owners.
pub(super) fn run(
    top: BorrowedFd<'_>,
    extra: CapabilitySet,
    progress: &mut dyn FnMut(&str),
    work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<Option<String>, Refusal>,
) -> Result<Option<String>, ImageError> {
    run_beside(top, extra, progress, || {}, work)
}

/// The same; `beside` is called here as soon as the child works.
pub(super) fn run_beside(
    top: BorrowedFd<'_>,
    extra: CapabilitySet,
    progress: &mut dyn FnMut(&str),
    beside: impl FnOnce(),
    work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<Option<String>, Refusal>,
) -> Result<Option<String>, ImageError> {
    let (read, write) = std::io::pipe().doing(|| "make a pipe".to_owned())?;
    let pid = fork_bound(move || {
        let mut pipe = File::from(std::os::fd::OwnedFd::from(write));
        let mut say = |said: &Said| {
            let line = serde_json::to_vec(said).unwrap_or_default();
            let _ = pipe.write_all(&[line.as_slice(), b"\n"].concat());
        };
        let outcome = match confine(top, extra) {
            Ok(()) => {
                work(&mut |text| say(&Said::Progress(text.to_owned()))).map_or_else(Said::from, Said::Done)
            }
            Err(error) => Said::Refused(format!("the unpacking process cannot be confined: {error}")),
        };
        say(&outcome);
        0
    })
    .doing(|| "start the unpacking process".to_owned())?;
    beside();
    let mut last = None;
    for line in BufReader::new(File::from(std::os::fd::OwnedFd::from(read))).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Said::Progress(text)) => progress(&text),
            Ok(said) => last = Some(said),
            Err(_) => break,
        }
    }
    while matches!(rustix::process::waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    match last {
        Some(Said::Done(notice)) => Ok(notice),
        Some(Said::Full(reason)) => Err(ImageError::Full(reason)),
        Some(Said::Refused(reason)) => Err(ImageError::Refused(reason)),
        _ => Err(ImageError::Refused("the unpacking process broke: is it out of memory?".to_owned())),
    }
}

fn confine(top: BorrowedFd<'_>, extra: CapabilitySet) -> std::io::Result<()> {
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    rustix::process::setrlimit(Resource::Data, limit)?;
    let apart = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    nix::sched::unshare(apart).map_err(std::io::Error::from)?;
    rustix::process::fchdir(top)?;
    rustix::process::chroot(".")?;
    rustix::thread::set_no_new_privs(true)?;
    let kept =
        CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::FSETID;
    let kept = kept | extra;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

//! `POST /files/compose`: several files into one (contract/sandbox 5.4).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use axum::{
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{blocking, problem::Problem, upload::Written, user};
use crate::guest::{
    disk::Disk,
    entry::UserMetadata,
    failure::{self, is_full},
    filesystem::change::{Owner, ensure_dirs},
    paths,
    state::Guest,
};

#[derive(Debug, Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

/// Everything resolved.
struct Plan {
    sources: Vec<(String, PathBuf)>,
    destination: PathBuf,
    owner: Owner,
    guest: Guest,
}

/// Puts the sources together in order, then deletes them.
pub(super) async fn post_compose(State(guest): State<Guest>, body: Bytes) -> Response {
    let composed = match plan(&guest, &body) {
        Ok(plan) => blocking(move || plan.run()).await,
        Err(problem) => Err(problem),
    };
    let written = match composed {
        Ok(written) => written,
        Err(problem) => return problem.into_response(),
    };
    match serde_json::to_string(&written) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => Problem::internal(format!("error encoding response: {error}")).into_response(),
    }
}

fn plan(guest: &Guest, body: &[u8]) -> Result<Plan, Problem> {
    let compose: Compose = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("invalid request body: {error}")))?;
    if compose.source_paths.is_empty() {
        return Err(Problem::bad_request("source_paths must not be empty"));
    }
    if compose.destination.is_empty() {
        return Err(Problem::bad_request("destination is required"));
    }
    let user = user(guest, compose.username.as_deref())?;
    guest.gate().admit("compose").map_err(Problem::gated)?;
    let workdir = guest.default_workdir();
    let destination = paths::resolve(&compose.destination, &user, workdir.as_deref())
        .map_err(|error| Problem::bad_request(format!("error resolving destination path: {error}")))?;
    let mut sources = Vec::new();
    for source in compose.source_paths {
        let path = paths::resolve(&source, &user, workdir.as_deref()).map_err(|error| {
            Problem::bad_request(format!("error resolving source path {source:?}: {error}"))
        })?;
        sources.push((source, path));
    }
    let owner = Owner { uid: user.uid, gid: user.gid };
    Ok(Plan { sources, destination, owner, guest: guest.clone() })
}

// === impl Plan ===

impl Plan {
    fn run(&self) -> Result<Written, Problem> {
        for (source, path) in &self.sources {
            // It would be deleted as a source right after it was made.
            if is_same_entry(path, &self.destination) {
                let text = format!("source path {source:?} cannot be the same as destination");
                return Err(Problem::bad_request(text));
            }
        }
        for (source, path) in &self.sources {
            match fs::metadata(path) {
                Ok(found) if found.is_file() => {}
                Ok(_) => {
                    return Err(Problem::bad_request(format!("source path is not a regular file: {source}")));
                }
                Err(_) => {
                    return Err(Problem::new(
                        StatusCode::NOT_FOUND,
                        format!("source file not found: {source}"),
                    ));
                }
            }
        }
        if let Some(parent) = self.destination.parent() {
            ensure_dirs(parent, self.owner)
                .map_err(|text| Problem::internal(format!("error ensuring directories: {text}")))?;
        }
        let (file, staging) = self
            .stage()
            .map_err(|error| failed("error creating destination file", &self.destination, &error))?;
        let assembled = self.assemble(&file).and_then(|()| {
            fs::rename(&staging, &self.destination)
                .map_err(|error| failed("error finalizing compose", &self.destination, &error))
        });
        if let Err(problem) = assembled {
            let _ = fs::remove_file(&staging);
            return Err(problem);
        }
        for (_, path) in &self.sources {
            // The composed file is there; a source that stays does no harm.
            let _ = fs::remove_file(path);
        }
        Ok(Written::new(&self.destination, UserMetadata::new()))
    }

    /// A new file beside the destination.
    fn stage(&self) -> io::Result<(File, PathBuf)> {
        for number in 0..10_000_u32 {
            let mut name = self.destination.clone().into_os_string();
            name.push(format!(".e2b-compose.{number}.tmp"));
            match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&name) {
                Ok(file) => return Ok((file, name.into())),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn assemble(&self, mut file: &File) -> Result<(), Problem> {
        let counts = Disk::holds(file);
        fchown(file, Some(self.owner.uid), Some(self.owner.gid))
            .map_err(|error| failed("error changing file ownership", &self.destination, &error))?;
        for (_, path) in &self.sources {
            let failed = |error| failed("error composing source", path, &error);
            let mut source = File::open(path).map_err(failed)?;
            let length = source.metadata().map_err(failed)?.len();
            if counts && !self.guest.disk().take(length) {
                return Err(Problem::full("not enough disk space available"));
            }
            // The kernel copies: no byte passes through this process.
            io::copy(&mut source, &mut file).map_err(failed)?;
        }
        Ok(())
    }
}

/// Whether both name the same entry of the same directory, however they are written.
fn is_same_entry(one: &Path, other: &Path) -> bool {
    let place =
        |path: &Path| Some((fs::canonicalize(path.parent()?).ok()?, path.file_name()?.to_os_string()));
    one == other || place(one).is_some_and(|place_of_one| Some(place_of_one) == place(other))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Problem {
    if is_full(error) {
        return Problem::full("not enough disk space available");
    }
    Problem::internal(format!("{what} {}: {}", path.display(), failure::text(error)))
}

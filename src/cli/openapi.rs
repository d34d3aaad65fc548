//! `firkin openapi`: the control plane's `OpenAPI` document.

use std::process::ExitCode;

use crate::{cli::say, routes};

pub(super) fn run() -> anyhow::Result<ExitCode> {
    say(&serde_json::to_string_pretty(&routes::openapi::document())?);
    Ok(ExitCode::SUCCESS)
}

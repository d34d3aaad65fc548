//! `firkin openapi`: the control plane's `OpenAPI` document.

use std::process::ExitCode;

use crate::{cli::say, routes};

pub(super) fn run() -> anyhow::Result<ExitCode> {
    say(routes::document().trim_end());
    Ok(ExitCode::SUCCESS)
}

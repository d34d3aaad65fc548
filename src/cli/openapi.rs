//! `firkin openapi`: the control plane's `OpenAPI` document.

use std::process::ExitCode;

use crate::{cli::say, routes};

pub(super) fn run() -> ExitCode {
    say(routes::document().trim_end());
    ExitCode::SUCCESS
}

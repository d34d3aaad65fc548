//! Chooses a role, runs it, and gives its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    firkin::cli::run()
}

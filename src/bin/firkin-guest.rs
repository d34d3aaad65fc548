//! The first process in a machine.

use std::{env, io::Write as _, process::ExitCode};

fn main() -> ExitCode {
    let Err(error) = firkin::guest::run(env::args()) else { return ExitCode::SUCCESS };
    // In a machine nobody reads this; for development somebody does.
    let _ = writeln!(std::io::stderr(), "firkin-guest: {error}");
    ExitCode::FAILURE
}

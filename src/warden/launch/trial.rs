//! Where a test reaches into a launch; in the server it is empty.

use std::{ffi::CString, io};

use super::Step;

/// Something to do when a step begins.
pub(super) type At = (Step, fn() -> io::Result<()>);

/// What a test changes about a launch.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// Runs in the launch's process when the step begins; an error makes the step fail.
    pub(super) at: Option<At>,
    /// In place of the guest's arguments.
    pub(super) arguments: Option<Vec<CString>>,
}

// === impl Trial ===

impl Trial {
    pub(super) fn begin(&self, step: Step) -> io::Result<()> {
        match self.at {
            Some((at, act)) if at == step => act(),
            _ => Ok(()),
        }
    }
}

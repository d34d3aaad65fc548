//! Limits, freezing and killing through whatever cgroups the host offers.

use super::instance::Instance;

/// The instance's trees in the host's hierarchies.
#[derive(Debug)]
pub(crate) struct Cgroups;

impl Cgroups {
    pub(crate) fn detect(_instance: Instance) -> Self {
        Self
    }

    /// Whether any process lives in the instance's trees.
    pub(crate) fn inhabited(&self) -> bool {
        false
    }
}

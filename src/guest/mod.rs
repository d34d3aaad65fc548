//! What runs inside a machine: the envd API, its processes and files.

pub(crate) mod entry;
pub(crate) mod failure;
pub(crate) mod filesystem;
pub(crate) mod list;
pub(crate) mod metrics;
pub(crate) mod paths;
pub(crate) mod serve;
pub(crate) mod signature;
pub(crate) mod state;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transfer;
pub(crate) mod users;
pub(crate) mod watch;

//! What runs inside a machine: the envd API, its processes and files.

mod accept;
mod awake;
mod boot;
mod control;
pub(crate) mod disk;
pub(crate) mod entry;
pub(crate) mod failure;
pub(crate) mod filesystem;
mod freshness;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod joined;
pub(crate) mod list;
mod logs;
mod meminfo;
pub(crate) mod metrics;
pub(crate) mod paths;
mod process;
mod pty;
mod reap;
mod rpc;
pub(crate) mod serve;
mod shed;
pub(crate) mod signature;
mod spawner;
pub(crate) mod state;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transfer;
pub(crate) mod users;
pub(crate) mod watch;

pub use boot::{BootError, run};

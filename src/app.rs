//! The only place where engine, store, clock and registry meet.

pub mod base;
mod clock;
pub mod host;
mod pressure;
pub mod server;
mod tasks;
pub mod tls;

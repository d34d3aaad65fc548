//! The only place where engine, store, clock and registry meet.

pub mod base;
pub mod server;
mod tasks;
pub mod tls;

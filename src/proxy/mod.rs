//! The way to a sandbox's own ports: one listener, one gateway, one tower stack.
//!
//! A request is first sorted by its host ([`host`]); what is for a sandbox goes down the stack,
//! what is not goes to the control plane's routes ([`gateway`]). `stack.rs` lists the layers.

mod connect;
mod envelope;
mod error;
mod forward;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod gateway;
mod headers;
pub mod host;
mod https;
mod limit;
mod patience;
mod pool;
mod rescue;
mod reserved;
pub mod resolve;
mod stack;
mod step;
mod target;
pub mod tls;
mod token;
mod upgrade;

//! The way to a sandbox's own ports: one listener, one gateway, one tower stack.
//!
//! A request is first sorted by its host ([`host`]); what is for a sandbox goes down the stack,
//! what is not goes to the control plane's routes ([`gateway`]).

pub mod gateway;
pub mod host;
mod patience;

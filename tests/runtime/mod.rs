//! Engines and links against their one contract.

pub(crate) mod contract;
mod fake;
mod link;
mod restart;

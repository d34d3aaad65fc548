//! The life of sandboxes: the contracts of engines and links, the engines, and what drives them.

pub mod engine;
pub mod envd;
#[doc(hidden)]
pub mod fake;
pub mod link;
pub mod logs;
pub mod mux;
pub mod namespace;
pub mod registry;
pub mod token;

mod admission;
mod boot;
mod control;
mod driver;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod inside;
mod past;
mod queue;
mod reaper;
mod samples;
mod traces;
mod warm;
mod world;

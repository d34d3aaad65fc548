//! The life of sandboxes: the contracts of engines and links, the engines, and what drives them.

pub mod engine;
pub mod link;
pub mod namespace;
pub mod registry;

//! The Apple Virtualization.framework engine, on macOS; elsewhere a stub that says what to use instead.

mod stub;

pub use stub::VzEngine;

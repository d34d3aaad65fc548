//! The warden and the namespace engine for real: as root, on this host's kernel.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "helpers of tests")]

mod server;

mod boot;
mod images;
mod lifecycle;
mod orphans;
mod privilege;

//! The warden and the namespace engine for real: as root, on this host's kernel.

mod server;

mod lifecycle;
mod privilege;

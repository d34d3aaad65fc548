//! The proxy from outside: real sockets in front, fake machines behind.

mod lives;
mod refusals;
mod rig;
mod smuggling;
mod streams;
mod tls;
mod tunnels;

//! What crosses a process boundary: the link's handshake, the control stream's messages, the
//! warden's messages, and (in the guest) the generated envd messages. Formats only, no I/O.

pub mod control;
pub mod link;
pub mod signals;
#[cfg(feature = "gateway")]
pub mod warden;

/// The envd messages and service traits, generated from `openapi/envd` by the build script.
#[cfg(feature = "guest")]
pub mod rpc {
    #![allow(
        missing_docs,
        unreachable_pub,
        unexpected_cfgs,
        rust_2018_idioms,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/envd_rpc.rs"));
}

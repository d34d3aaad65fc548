//! firkin: a self-hosted, E2B-compatible sandbox server.
//!
//! The crate is two programs: the gateway with its warden (`firkin`, feature `gateway`) and the
//! guest (`firkin-guest`, feature `guest`), which the gateway embeds. Modules sit in layers, and
//! a module imports only from its own layer's neighbours named here and from those above it:
//!
//! | layer | modules |
//! | --- | --- |
//! | words | [`body`], `failpoint`, `hold`, [`id`], [`clock`], `error`, [`sandbox`], [`wire`] |
//! | ports | `runtime::{engine, layers, link}`, `store` (the trait) |
//! | engines | `runtime::namespace`, `vz`, `store::sqlite` |
//! | life | `runtime::{registry, driver, boot, reaper, ...}`; engines only as `dyn Engine` |
//! | edge | `proxy` (registry look-up, link), `routes` (store, registry) |
//! | elsewhere | `guest`, `warden`: words only |
//! | joining | `app`, `cli`, `main` |
//!
//! `tests/architecture.rs` reads the `use` lines and holds this table.

pub mod body;
pub mod clock;
#[cfg(feature = "gateway")]
pub(crate) mod failpoint;
#[cfg(feature = "gateway")]
pub mod hold;
pub mod id;
pub mod sandbox;
pub mod wire;

#[cfg(feature = "gateway")]
pub mod runtime;
#[cfg(feature = "gateway")]
pub mod store;

#[cfg(feature = "guest")]
pub mod guest;

#[cfg(feature = "gateway")]
pub mod app;
#[cfg(feature = "gateway")]
pub mod cli;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod routes;
#[cfg(feature = "gateway")]
pub mod telemetry;
#[cfg(feature = "gateway")]
pub mod vz;
#[cfg(feature = "gateway")]
pub mod warden;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

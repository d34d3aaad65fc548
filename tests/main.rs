//! The one integration binary: its folders mirror the rooms of `src/`.

mod architecture;
mod proxy;
#[cfg(feature = "gateway")]
mod routes;
#[cfg(feature = "gateway")]
mod runtime;
mod support;
mod warden;

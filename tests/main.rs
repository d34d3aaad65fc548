//! The one integration binary: its folders mirror the rooms of `src/`.

mod architecture;
mod proxy;
mod routes;
mod runtime;
mod support;
mod warden;

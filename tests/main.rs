//! The one integration binary: its folders mirror the rooms of `src/`.

mod architecture;
#[cfg(feature = "gateway")]
mod runtime;
mod support;
mod warden;

//! The one integration binary: its folders mirror the rooms of `src/`.

mod architecture;
mod support;
mod warden;

//! The one integration binary: its folders mirror the rooms of `src/`.

#![cfg_attr(
    feature = "gateway",
    expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")
)]

mod architecture;
mod failpoints;
mod proxy;
mod routes;
mod runtime;
mod support;
mod warden;

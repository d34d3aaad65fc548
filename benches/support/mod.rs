//! What the promises share: a real server, a plain client of it, and the way figures are told.

pub(crate) mod client;
pub(crate) mod memory;
pub(crate) mod net;
pub(crate) mod report;
pub(crate) mod server;

/// How many pairs to take: `FIRKIN_BENCH_SAMPLES`, or what the promise needs for its percentiles.
pub(crate) fn samples(default: usize) -> usize {
    std::env::var("FIRKIN_BENCH_SAMPLES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How many MiB pass in one sample: `FIRKIN_BENCH_MIB`, or what makes enough samples affordable.
pub(crate) fn mebibytes(default: u64) -> u64 {
    std::env::var("FIRKIN_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

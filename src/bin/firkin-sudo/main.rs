//! The setuid `sudo` of the supplement layer.

fn main() {}

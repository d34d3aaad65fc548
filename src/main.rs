//! Chooses a role, runs it, and gives its exit code.

fn main() {}

//! The first process in a machine.

fn main() {}

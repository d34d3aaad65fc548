//! The way to a sandbox's own ports: one tower stack.

//! The guest as a program: started as an ordinary process, spoken to over its link.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

mod agent;
mod freshness;
mod link;
mod process;
mod spawner;

//! The promises of speed: one program, a file for each promise, run by `make bench` or
//! `cargo bench --bench promises -- p1 p3`.
//!
//! Every metric is paired with a reference that runs in turn with it (A B A B) in the same run:
//! the ratio is what is compared from version to version, the target is for a quiet machine with
//! two cores. One JSON object a metric goes to standard output, a table for people follows.

mod p10_files;
mod p11_stdout;
mod p13_start;
mod p1_create;
mod p2_first_command;
mod p3_exec;
mod p4_burst;
mod p5_execs;
mod p6_idle;
mod p7_pause;
mod p8_snapshot;
mod p9_proxy;
mod restart;
mod support;

use anyhow::bail;
use support::report::Report;

/// What is measured when nothing is named.
const PROMISES: [&str; 13] =
    ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p13", "restart"];

fn main() -> anyhow::Result<()> {
    // Cargo adds `--bench`; everything else names promises.
    let mut wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if wanted.is_empty() {
        wanted = PROMISES.map(str::to_owned).to_vec();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    for promise in wanted {
        match promise.as_str() {
            "p1" => runtime.block_on(p1_create::run(&mut report))?,
            "p2" => runtime.block_on(p2_first_command::run(&mut report))?,
            "p3" => runtime.block_on(p3_exec::run(&mut report))?,
            "p8" => runtime.block_on(p8_snapshot::run(&mut report))?,
            "p9" => runtime.block_on(p9_proxy::run(&mut report))?,
            "p10" => runtime.block_on(p10_files::run(&mut report))?,
            "p11" => runtime.block_on(p11_stdout::run(&mut report))?,
            "p13" => p13_start::run(&mut report)?,
            "p4" => runtime.block_on(p4_burst::run(&mut report))?,
            "p5" => runtime.block_on(p5_execs::run(&mut report))?,
            "p6" | "p15" => runtime.block_on(p6_idle::run(&mut report))?,
            "p7" => runtime.block_on(p7_pause::run(&mut report))?,
            "restart" => runtime.block_on(restart::run(&mut report))?,
            other => {
                bail!("there is no promise {other}: {} are measured here (p15 with p6)", PROMISES.join(", "))
            }
        }
    }
    report.table();
    Ok(())
}

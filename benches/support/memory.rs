//! How much the gateway and one sandbox's guest grow: the peak of their resident sizes.

use std::fs;

use anyhow::{Context as _, ensure};

use super::{client::Sandbox, server::Server};

/// Processes whose peaks were started anew, with their sizes then.
#[derive(Debug)]
pub(crate) struct Growth {
    gateway: (u32, f64),
    guest: (u32, f64),
}

// === impl Growth ===

impl Growth {
    pub(crate) fn begin(server: &Server, sandbox: &Sandbox) -> anyhow::Result<Self> {
        Ok(Self { gateway: fresh(server.pid())?, guest: fresh(guest(sandbox)?)? })
    }

    /// Of the gateway and of the guest, in MiB.
    pub(crate) fn end(self) -> anyhow::Result<(f64, f64)> {
        let grown = |(pid, before): (u32, f64)| Ok::<_, anyhow::Error>(figure(pid, "VmHWM:")? - before);
        Ok((grown(self.gateway)?, grown(self.guest)?))
    }
}

/// Starts the peak anew.
fn fresh(pid: u32) -> anyhow::Result<(u32, f64)> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    Ok((pid, figure(pid, "VmRSS:")?))
}

/// A figure of a process's status, in MiB; numbers in there are KiB.
fn figure(pid: u32, name: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such figure")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// The first process of the sandbox's machine: its helper has the same command line, and it as parent.
pub(crate) fn guest(sandbox: &Sandbox) -> anyhow::Result<u32> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.starts_with("firkin-guest") && command.contains(&sandbox.id) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
            found.extend(parent.map(|parent| (pid, parent)));
        }
    }
    let first: Vec<u32> = found
        .iter()
        .filter(|(_, parent)| !found.iter().any(|(pid, _)| pid == parent))
        .map(|(pid, _)| *pid)
        .collect();
    ensure!(first.len() == 1, "the machine's first process is one of {found:?}");
    Ok(first[0])
}

//! What processes take: the peak of a gateway's and a guest's growth, and the sizes of many guests.

use std::{collections::HashSet, fs};

use anyhow::{Context as _, ensure};

use super::{client::Sandbox, server::Server};

/// Processes whose peaks were started anew, with their sizes then.
#[derive(Debug)]
pub(crate) struct Growth {
    gateway: (u32, f64),
    guest: (u32, f64),
}

/// What a process, or the mean of some, takes, in MiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Size {
    /// What nobody else has, as far as it was written to.
    pub(crate) private: f64,
    /// Pages that others have too, by their share.
    pub(crate) proportional: f64,
}

// === impl Size ===

impl Size {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        Ok(Self { private: line_of(&text, "Private_Dirty:")?, proportional: line_of(&text, "Pss:")? })
    }
}

/// `MemAvailable` of the host.
pub(crate) fn available() -> anyhow::Result<f64> {
    line_of(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
}

/// What the kernel has for itself and cannot give back.
pub(crate) fn kernel() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"].iter().map(|name| line_of(&text, name)).sum()
}

/// The sizes of these sandboxes' guests and their helpers: the mean of each pair's sum.
pub(crate) fn guests(sandboxes: &[Sandbox]) -> anyhow::Result<Size> {
    let ids: HashSet<&str> = sandboxes.iter().map(|sandbox| sandbox.id.as_str()).collect();
    let (mut sum, mut seen) = (Size::default(), 0);
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.starts_with("firkin-guest") && ids.iter().any(|id| command.contains(id)) {
            let size = Size::of(pid)?;
            sum.private += size.private;
            sum.proportional += size.proportional;
            seen += 1;
        }
    }
    ensure!(seen == 2 * ids.len(), "{} sandboxes have {seen} guests and helpers", ids.len());
    let count = f64::from(u32::try_from(ids.len())?);
    Ok(Size { private: sum.private / count, proportional: sum.proportional / count })
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
    line_of(&fs::read_to_string(format!("/proc/{pid}/status"))?, name)
}

/// The figure of a line, in MiB; the kernel writes KiB.
fn line_of(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such figure")?;
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

//! What a machine needs of a tree is added where it is missing.

use super::{Refusal, at};
use crate::warden::{
    base::etc::HOME,
    image::{Tree, accounts::Accounts, tree::Access},
};

/// Where everything else is mounted.
const POINTS: [&str; 4] = ["proc", "sys", "dev", "run"];
/// Passwordless sudo for the sandbox's user.
const SUDOERS: &str = "user ALL=(ALL:ALL) NOPASSWD:ALL\n";
const HOSTS: &str =
    "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n192.0.2.1 events.e2b.local\n";

/// Completes a tree; what people should know of it comes back.
pub(super) fn complete(tree: &mut Tree, sudo: &[u8], skipped: u64) -> Result<Option<String>, Refusal> {
    let has = |tree: &Tree, path: &str| tree.leads_somewhere(path.as_bytes());
    if !has(tree, "bin/sh") {
        return Err(Refusal::Content("it is no root file system: it has no /bin/sh".to_owned()));
    }
    for point in POINTS {
        tree.dir(point.as_bytes(), Access::root(0o755)).map_err(at(point.as_bytes()))?;
    }
    for scratch in ["tmp", "var/tmp"] {
        tree.dir(scratch.as_bytes(), Access::root(0o1777)).map_err(at(scratch.as_bytes()))?;
    }
    tree.dir(b"root", Access::root(0o700)).map_err(at(b"root"))?;
    let bash = has(tree, "bin/bash");
    user(tree, if bash { "/bin/bash" } else { "/bin/sh" })?;
    let hosts = tree.read("etc/hosts", 1 << 20).unwrap_or_default();
    if hosts.trim_ascii().is_empty() {
        tree.write(b"etc/hosts", HOSTS.as_bytes(), Access::root(0o644)).map_err(at(b"etc/hosts"))?;
    }
    tree.write(b"etc/sudoers.d/user", SUDOERS.as_bytes(), Access::root(0o440))
        .map_err(at(b"etc/sudoers.d"))?;
    if !has(tree, "usr/bin/sudo") && !sudo.is_empty() {
        tree.write(b"usr/bin/sudo", sudo, Access::root(0o4755)).map_err(at(b"usr/bin/sudo"))?;
    }
    let mut notes = Vec::new();
    if !bash {
        notes.push("it has no bash, which commands and terminals are run by".to_owned());
    }
    if !has(tree, "usr/bin/sudo") {
        notes.push("it has no sudo".to_owned());
    }
    if skipped > 0 {
        notes.push(format!("{skipped} devices, sockets or pipes were left out"));
    }
    Ok((!notes.is_empty()).then(|| notes.join("; ")))
}

fn user(tree: &mut Tree, shell: &str) -> Result<(), Refusal> {
    let mut accounts = Accounts::read(tree).map_err(at(b"etc"))?;
    let user = accounts.complete(shell);
    accounts.write(tree).map_err(at(b"etc"))?;
    let home = user.home.trim_start_matches('/');
    let own = |mode| Access { mode, uid: user.uid, gid: user.gid };
    tree.dir(home.as_bytes(), own(0o755)).map_err(at(home.as_bytes()))?;
    for (name, text) in HOME {
        let path = format!("{home}/{name}");
        if tree.stat(path.as_bytes()).is_err() {
            tree.write(path.as_bytes(), text.as_bytes(), own(0o644)).map_err(at(path.as_bytes()))?;
        }
    }
    Ok(())
}

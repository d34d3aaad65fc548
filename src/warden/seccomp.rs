//! The system calls a machine may make: an allow-list on the model of docker's default profile.
//!
//! Two programs in a row, since one can only give one answer to what it refuses. The first lets
//! through what is listed and answers ENOSYS to the rest, so that a call newer than the list
//! looks like an older kernel. The second, which the kernel asks first and whose answer wins,
//! says EPERM to known calls that are a matter of privilege. Neither needs `no_new_privs`: sudo
//! must work (see `launch`). Calls of another architecture's table (i386, x32) are not possible.

use std::collections::BTreeSet;

use seccompiler::{BpfProgram, TargetArch};
use serde_json::{Value, json};

mod calls;
#[cfg(test)]
mod tests;

/// Namespaces that a process may not make, as flags of clone and unshare.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// A flag of unshare only: clone has part of its exit signal in this bit.
const CLONE_NEWTIME: libc::c_int = 0x80;
/// Linux, 32-bit Linux, each with or without the old version number, and the question what it is: docker's choice.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, u32::MAX];
/// Sockets to the hypervisor and to the kernel's ciphers: no namespace divides them.
const REFUSED_FAMILIES: [libc::c_int; 2] = [libc::AF_VSOCK, libc::AF_ALG];

/// Why the lists do not compile.
#[derive(Debug, thiserror::Error)]
#[error("system call filter: {0}")]
pub(crate) struct FilterError(String);

/// Both programs for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) allow: BpfProgram,
    pub(crate) deny: BpfProgram,
}

// === impl Filter ===

impl Filter {
    /// For the machine this runs on.
    pub(crate) fn native() -> Result<Self, FilterError> {
        let arch =
            TargetArch::try_from(std::env::consts::ARCH).map_err(|error| FilterError(error.to_string()))?;
        Self::compile(arch)
    }

    /// For a given architecture.
    pub(crate) fn compile(arch: TargetArch) -> Result<Self, FilterError> {
        let lists = json!({
            "allow": {"mismatch_action": {"errno": libc::ENOSYS}, "match_action": "allow", "filter": allowed(arch)},
            "deny": {"mismatch_action": "allow", "match_action": {"errno": libc::EPERM}, "filter": denied(arch)},
        });
        let text = lists.to_string();
        let mut programs = seccompiler::compile_from_json(text.as_bytes(), arch)
            .map_err(|error| FilterError(format!("{error:?}")))?;
        match (programs.remove("allow"), programs.remove("deny")) {
            (Some(allow), Some(deny)) => Ok(Self { allow, deny }),
            _ => Err(FilterError("a program is missing".to_owned())),
        }
    }
}

fn allowed(arch: TargetArch) -> Vec<Value> {
    let mut names: BTreeSet<&str> = calls::ALLOWED.iter().copied().collect();
    if arch == TargetArch::x86_64 {
        names.extend(calls::ALLOWED_X86_64);
    }
    // Restricted by the second program: these three are allowed here whatever their arguments.
    names.extend(["clone", "unshare", "socket"]);
    let mut rules: Vec<Value> = names.into_iter().map(|name| json!({"syscall": name})).collect();
    rules.extend(PERSONALITIES.map(|persona| rule("personality", &json!("eq"), u64::from(persona))));
    rules
}

fn denied(arch: TargetArch) -> Vec<Value> {
    let mut names: BTreeSet<&str> = calls::DENIED.iter().copied().collect();
    if arch == TargetArch::x86_64 {
        names.extend(calls::DENIED_X86_64);
    }
    let mut rules: Vec<Value> = names.into_iter().map(|name| json!({"syscall": name})).collect();
    for flag in NEW_NAMESPACES {
        rules.extend(["clone", "unshare"].map(|name| has_flag(name, flag)));
    }
    rules.push(has_flag("unshare", CLONE_NEWTIME));
    rules.extend(
        REFUSED_FAMILIES.map(|family| rule("socket", &json!("eq"), u64::from(family.unsigned_abs()))),
    );
    rules
}

/// A rule that matches when the first argument has the flag.
fn has_flag(name: &str, flag: libc::c_int) -> Value {
    let flag = u64::from(flag.cast_unsigned());
    rule(name, &json!({"masked_eq": flag}), flag)
}

/// A rule on the lower half of the first argument; the kernel ignores the upper half in all of these.
fn rule(name: &str, op: &Value, value: u64) -> Value {
    json!({"syscall": name, "args": [{"index": 0, "type": "dword", "op": op, "val": value}]})
}

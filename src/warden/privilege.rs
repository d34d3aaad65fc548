//! How the gateway stops being root: for good, and before it reads a byte from outside.

use rustix::{
    process::{self, DumpableBehavior, Resource, Rlimit},
    thread::{self, CapabilitySet, CapabilitySets, Gid, Uid},
};

use super::{At, Prepared, WardenError};

/// The kernel's capability numbers end well below this one.
const LAST_POSSIBLE_CAPABILITY: u32 = 63;

/// Makes the calling process an ordinary user without capabilities that can never gain any, with
/// as many descriptors as its hard limit gives. Call it in the gateway right after the fork, while the process
/// has one thread: every later thread inherits the result.
pub fn drop_privileges(prepared: &Prepared) -> Result<(), WardenError> {
    let limit = process::getrlimit(Resource::Nofile);
    process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .at("raise the soft limit of open files")?;
    empty_bounding_set().at("empty the capability bounding set")?;
    let (uid, gid) = (prepared.gateway_uid(), prepared.gateway_gid());
    thread::set_thread_groups(&[]).at("leave root's groups")?;
    let group = Gid::from_raw(gid);
    thread::set_thread_res_gid(group, group, group).at("change the group")?;
    let user = Uid::from_raw(uid);
    thread::set_thread_res_uid(user, user, user).at("change the user")?;
    let none = CapabilitySet::empty();
    thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .at("give up capabilities")?;
    thread::set_no_new_privs(true).at("refuse new privileges")?;
    // Tokens and keys live in this process: no core dumps, no tracing by a process of the same user.
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at("refuse core dumps")
}

fn empty_bounding_set() -> rustix::io::Result<()> {
    for number in 0..=LAST_POSSIBLE_CAPABILITY {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // This kernel knows no capability of this number, so none above it either.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

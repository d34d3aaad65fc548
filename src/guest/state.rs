//! What the guest knows of itself: who the machine is, its users, its size, its counters.
//!
//! [`Guest`] is the one shared object of the program, cheap to clone. Its identity is replaced
//! as a whole by every Init of the control stream; readers take a snapshot and never hold the
//! lock over an await. Before the first Init there is no identity and envd answers 503.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use connectrpc::ConnectError;
use jiff::Timestamp;

use crate::{
    clock::{Clock, SystemClock},
    guest::{
        disk::Disk,
        freshness::Gate,
        logs::Logs,
        meminfo::Meminfo,
        users::{User, Users},
    },
    id::{Entropy, OsEntropy},
    wire::control::Init,
};

/// Where the address of E2B's in-machine metadata service is expected (contract/sandbox 3).
const EVENTS_ADDRESS: &str = "http://192.0.2.1";

/// The guest's shared state.
#[derive(Clone)]
pub(crate) struct Guest(Arc<Shared>);

impl std::fmt::Debug for Guest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never its identity: that holds the token.
        formatter.write_str("Guest")
    }
}

struct Shared {
    identity: RwLock<Option<Arc<Init>>>,
    users: Arc<Users>,
    machine: Machine,
    marks: Option<PathBuf>,
    meminfo: Meminfo,
    disk: Disk,
    logs: Logs,
    gate: Gate,
    clock: Box<dyn Clock>,
    entropy: Box<dyn Entropy>,
}

/// The machine's size and where its use is read; fixed at boot.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// Memory limit in MiB; 0: not limited, ask the kernel.
    pub(crate) memory_mb: u64,
    /// Virtual CPUs; 0: not limited, ask the kernel.
    pub(crate) cpu_count: u32,
    /// Memory charged, in bytes as text (`memory.usage_in_bytes` or `memory.current`).
    pub(crate) memory_current: Option<OwnedFd>,
    /// `memory.stat` of either cgroup version.
    pub(crate) memory_stat: Option<OwnedFd>,
    /// `cpuacct.usage` (nanoseconds) or `cpu.stat` (has `usage_usec`).
    pub(crate) cpu_usage: Option<OwnedFd>,
    /// True: the files are of cgroup version 2.
    pub(crate) v2: bool,
}

/// The user that the `Authorization: Basic` header named; put into the request by `serve`.
#[derive(Debug, Clone)]
pub(crate) struct BasicUser(pub(crate) Arc<User>);

// === impl Guest ===

impl Default for Guest {
    fn default() -> Self {
        Self::new(Machine::default(), Users::default(), None)
    }
}

impl Guest {
    /// A guest that nobody has introduced yet. In a machine `marks` is where its marks are left.
    pub(crate) fn new(machine: Machine, users: Users, marks: Option<PathBuf>) -> Self {
        Self(Arc::new(Shared {
            identity: RwLock::new(None),
            users: Arc::new(users),
            machine,
            marks,
            meminfo: Meminfo::default(),
            disk: Disk::default(),
            logs: Logs::default(),
            gate: Gate::default(),
            clock: Box::new(SystemClock),
            entropy: Box::new(OsEntropy),
        }))
    }

    /// Takes a new identity, whole; its gate is there before anybody sees it.
    pub(crate) fn introduce(&self, mut init: Init) {
        let same = self.identity().is_some_and(|present| present.sandbox_id == init.sandbox_id);
        self.0.gate.install(init.freshness.take().map(|wish| *wish), same);
        self.0.disk.resize(init.disk_bytes);
        *self.0.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(init));
    }

    /// The present identity, if there is one.
    pub(crate) fn identity(&self) -> Option<Arc<Init>> {
        self.0.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `X-Access-Token` must be; none: envd is open.
    pub(crate) fn access_token(&self) -> Option<String> {
        self.identity().and_then(|init| init.access_token.clone())
    }

    /// Who runs what names no user.
    pub(crate) fn default_user(&self) -> String {
        self.identity().map_or_else(|| "root".to_owned(), |init| init.default_user.clone())
    }

    /// Where processes start that name no directory.
    pub(crate) fn default_workdir(&self) -> Option<String> {
        self.identity().and_then(|init| init.default_workdir.clone())
    }

    /// The global environment: the user's variables, then those that nobody may override.
    pub(crate) fn envs(&self) -> BTreeMap<String, String> {
        let identity = self.identity();
        let mut envs = identity.as_ref().map(|init| init.env_vars.clone()).unwrap_or_default();
        envs.insert("E2B_SANDBOX".to_owned(), "true".to_owned());
        envs.insert("E2B_EVENTS_ADDRESS".to_owned(), EVENTS_ADDRESS.to_owned());
        if let Some(init) = identity {
            envs.insert("E2B_SANDBOX_ID".to_owned(), init.sandbox_id.to_string());
            envs.insert("E2B_TEMPLATE_ID".to_owned(), init.template_id.clone());
        }
        envs
    }

    /// Users and groups.
    pub(crate) fn users(&self) -> Arc<Users> {
        Arc::clone(&self.0.users)
    }

    /// Size and counters.
    pub(crate) fn machine(&self) -> &Machine {
        &self.0.machine
    }

    /// The directory for the marks of a sandbox; none outside a machine.
    pub(crate) fn marks(&self) -> Option<&Path> {
        self.0.marks.as_deref()
    }

    /// How full its disk is.
    pub(crate) fn disk(&self) -> &Disk {
        &self.0.disk
    }

    /// Log lines for the gateway.
    pub(crate) fn logs(&self) -> &Logs {
        &self.0.logs
    }

    /// What stands before changes of files.
    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// Takes over `/proc/meminfo`, if the launcher put a file over it.
    pub(crate) fn attach_meminfo(&self) {
        // A machine whose memory is its kernel's own has the true numbers there.
        if self.0.meminfo.attach().is_ok() {
            self.refresh_meminfo();
        }
    }

    /// Brings `/proc/meminfo` up to date; cheap when that was done just now.
    pub(crate) fn refresh_meminfo(&self) {
        self.0.meminfo.refresh(&self.0.machine);
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Where random bytes come from.
    pub(crate) fn entropy(&self) -> &dyn Entropy {
        &*self.0.entropy
    }

    /// The user a request works as: the one its Basic header names, else the default user.
    /// `unauthenticated` when the default user does not exist (contract/sandbox 3).
    pub(crate) fn request_user(&self, extensions: &http::Extensions) -> Result<Arc<User>, ConnectError> {
        if let Some(BasicUser(user)) = extensions.get() {
            return Ok(Arc::clone(user));
        }
        let name = self.default_user();
        self.0.users.by_name(&name).ok_or_else(|| invalid_username(&name))
    }
}

/// The refusal of a user that the machine does not have.
pub(crate) fn invalid_username(name: &str) -> ConnectError {
    ConnectError::unauthenticated(format!("invalid username: '{name}'"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An identity for tests.
    pub(crate) fn init() -> Init {
        Init {
            sandbox_id: "i0123456789abcdefghij".parse().unwrap(),
            template_id: "base".to_owned(),
            env_vars: BTreeMap::from([
                ("FOO".to_owned(), "bar".to_owned()),
                ("E2B_SANDBOX".to_owned(), "forged".to_owned()),
            ]),
            access_token: None,
            default_user: "root".to_owned(),
            default_workdir: None,
            now_unix_ns: 0,
            disk_bytes: 0,
            entropy: String::new(),
            freshness: None,
        }
    }

    #[test]
    fn internal_variables_cannot_be_overridden() {
        let guest = Guest::default();
        assert!(guest.identity().is_none());
        guest.introduce(init());
        let envs = guest.envs();
        assert_eq!(envs["FOO"], "bar");
        assert_eq!(envs["E2B_SANDBOX"], "true");
        assert_eq!(envs["E2B_SANDBOX_ID"], "i0123456789abcdefghij");
    }
}

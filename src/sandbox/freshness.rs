//! The gate of a sandbox whose checkout is to be brought up to date before anything is written.
//!
//! ```text
//!   Restored --the guest's task begins, or nobody's does--> Syncing --.--> Ready
//!                                                              ^      '--> Failed
//!                                                              '--- run again ---'
//! ```
//! Asked for by labels of a create. The guest holds the gate and is the one that knows its phase;
//! the gateway keeps what the guest last said, for answers and for the sandbox's next machine.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// The label that names the branch.
const BRANCH: &str = "firkin.sync.branch";
/// The label that names what the branch is set to.
const TARGET: &str = "firkin.sync.target";
/// The label that names the directory in which the guest does it.
const CHECKOUT: &str = "firkin.sync.checkout";
/// The label that says whether processes may be started meanwhile.
const PROCESSES: &str = "firkin.sync.processes";
/// The longest name of a branch or target, in bytes.
const MAX_NAME: usize = 255;
/// The longest path of a checkout, in bytes.
const MAX_PATH: usize = 4095;
/// The longest reason, in bytes.
pub const MAX_REASON: usize = 2048;

/// Where the synchronisation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The sandbox was made from its image; nothing was done yet.
    Restored,
    /// It is under way, in the guest or by whoever controls it.
    Syncing,
    /// The checkout is what was asked for.
    Ready,
    /// It is not, and nobody is on it.
    Failed,
}

/// What was asked for, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// The branch, without `refs/heads/`.
    pub branch: String,
    /// What the branch is set to: a commit or a name of one.
    pub target: String,
    /// Where the guest does it; none: somebody else does, and says when it is done.
    pub checkout: Option<String>,
    /// Whether starting a process waits for [`Phase::Ready`] too.
    pub gates_processes: bool,
    /// Where it stands.
    pub phase: Phase,
    /// Why it failed.
    pub reason: Option<String>,
}

/// What may be said of a synchronisation from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Verdict {
    /// It is done; what it came to, if that is not the target that was asked for.
    Complete {
        /// The commit or its name.
        #[serde(default)]
        target: Option<String>,
    },
    /// It cannot be done.
    Fail {
        /// Why.
        reason: String,
    },
    /// The guest shall do it, again if it has failed. Without effect when it is ready.
    Run,
}

/// Why labels or a verdict are refused; the text is for whoever sent them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FreshnessError {
    /// One of the two is missing.
    #[error("metadata: {BRANCH} and {TARGET} belong together")]
    Half,
    /// A directory or option without a branch.
    #[error("metadata: {0} means nothing without {BRANCH} and {TARGET}")]
    Alone(&'static str),
    /// The name cannot be one of git's, or could be read as an option.
    #[error("{0}: {1:?} is no name that git takes for a branch or commit")]
    Name(&'static str, String),
    /// The directory is not named from the root.
    #[error("metadata: {CHECKOUT} must be an absolute path of at most {MAX_PATH} bytes")]
    Checkout,
    /// The option has another value.
    #[error("metadata: {PROCESSES} is \"allow\" or \"refuse\"")]
    Processes,
}

// === impl Phase ===

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Restored => "Restored",
            Self::Syncing => "Syncing",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
        })
    }
}

// === impl Freshness ===

impl Freshness {
    /// What the labels of a create ask for; none: nothing.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Result<Option<Self>, FreshnessError> {
        let label = |name: &str| labels.get(name).map(String::as_str);
        let (branch, target) = match (label(BRANCH), label(TARGET)) {
            (Some(branch), Some(target)) => (branch, target),
            (None, None) => {
                let alone = [CHECKOUT, PROCESSES].into_iter().find(|name| labels.contains_key(*name));
                return alone.map_or(Ok(None), |name| Err(FreshnessError::Alone(name)));
            }
            _ => return Err(FreshnessError::Half),
        };
        let branch = branch.strip_prefix("refs/heads/").unwrap_or(branch);
        if !is_branch(branch) {
            return Err(FreshnessError::Name(BRANCH, shortened(branch)));
        }
        if !is_commit(target) {
            return Err(FreshnessError::Name(TARGET, shortened(target)));
        }
        let checkout = label(CHECKOUT);
        if checkout.is_some_and(|path| !is_absolute(path)) {
            return Err(FreshnessError::Checkout);
        }
        let gates_processes = match label(PROCESSES) {
            None | Some("allow") => false,
            Some("refuse") => true,
            Some(_) => return Err(FreshnessError::Processes),
        };
        Ok(Some(Self {
            branch: branch.to_owned(),
            target: target.to_owned(),
            checkout: checkout.map(str::to_owned),
            gates_processes,
            phase: Phase::Restored,
            reason: None,
        }))
    }

    /// Why `operation` is refused now; none: it is not.
    pub fn refusal(&self, operation: &str) -> Option<String> {
        let Self { branch, phase, .. } = self;
        let why = match phase {
            Phase::Ready => return None,
            Phase::Restored => "has not begun to be synchronized",
            Phase::Syncing => "is being synchronized",
            Phase::Failed => "could not be synchronized",
        };
        let reason = self.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        Some(format!("{operation} is refused: branch {branch:?} {why} (phase {phase}){reason}"))
    }
}

// === impl Verdict ===

impl Verdict {
    /// Checks its texts, and cuts a reason that is too long.
    pub fn checked(self) -> Result<Self, FreshnessError> {
        match self {
            Self::Complete { target: Some(target) } if !is_commit(&target) => {
                Err(FreshnessError::Name("target", shortened(&target)))
            }
            Self::Fail { reason } => Ok(Self::Fail { reason: bounded(reason) }),
            other => Ok(other),
        }
    }
}

/// A reason that is not longer than it may be.
pub fn bounded(mut reason: String) -> String {
    if reason.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(end);
    }
    reason
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// As `git check-ref-format --branch`, and nothing that is an option or a refspec.
fn is_branch(name: &str) -> bool {
    is_commit(name) && !name.contains(['~', '^']) && name.split('/').all(is_component) && !name.ends_with('.')
}

fn is_component(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none()
}

/// A commit's id, or a name of one with its ancestors (`origin/main~2`).
fn is_commit(name: &str) -> bool {
    let forbidden = |byte: u8| byte <= b' ' || byte == 0x7f || b":?*[\\".contains(&byte);
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with(['-', '+'])
        && !name.contains("..")
        && !name.contains("@{")
        && !name.bytes().any(forbidden)
        && name != "@"
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(labels: &[(&str, &str)]) -> Result<Option<Freshness>, FreshnessError> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Freshness::from_labels(&labels)
    }

    #[test]
    fn a_branch_and_a_target_make_a_gate() {
        assert_eq!(parsed(&[("other", "label")]), Ok(None));
        let gate = parsed(&[
            (BRANCH, "refs/heads/feature/x"),
            (TARGET, "origin/feature/x~2"),
            (CHECKOUT, "/home/user/repo"),
            (PROCESSES, "refuse"),
        ]);
        let gate = gate.unwrap().unwrap();
        assert_eq!((&*gate.branch, &*gate.target), ("feature/x", "origin/feature/x~2"));
        assert_eq!((gate.checkout.as_deref(), gate.phase), (Some("/home/user/repo"), Phase::Restored));
        assert!(gate.gates_processes);
        assert!(!parsed(&[(BRANCH, "a"), (TARGET, "b")]).unwrap().unwrap().gates_processes);
    }

    #[test]
    fn labels_that_are_half_a_wish_are_refused() {
        assert_eq!(parsed(&[(BRANCH, "main")]), Err(FreshnessError::Half));
        assert_eq!(parsed(&[(TARGET, "main")]), Err(FreshnessError::Half));
        assert_eq!(parsed(&[(CHECKOUT, "/x")]), Err(FreshnessError::Alone(CHECKOUT)));
        assert_eq!(parsed(&[(PROCESSES, "refuse")]), Err(FreshnessError::Alone(PROCESSES)));
        let with = |key, value| parsed(&[(BRANCH, "main"), (TARGET, "main"), (key, value)]);
        assert!(with(CHECKOUT, "/x").is_ok());
        assert_eq!(with(CHECKOUT, "x"), Err(FreshnessError::Checkout));
        assert_eq!(with(CHECKOUT, "/x\0"), Err(FreshnessError::Checkout));
        assert_eq!(with(PROCESSES, "maybe"), Err(FreshnessError::Processes));
    }

    #[test]
    fn nothing_that_git_could_read_as_an_option_or_a_refspec_is_a_name() {
        for good in ["main", "v1.0", "feature/a-b_c", "é", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(parsed(&[(BRANCH, good), (TARGET, good)]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-f",
            "--upload-pack=sh",
            "+main",
            "a:b",
            "a b",
            "a..b",
            "a\n",
            "a@{1}",
            "*",
            "a\\b",
            "@",
            "refs/heads/-x",
            "\u{7f}",
        ] {
            assert!(parsed(&[(BRANCH, bad), (TARGET, "main")]).is_err(), "branch {bad:?}");
        }
        for bad in ["", "-f", "--hard", "a b", "a..b", "a:b", "a@{1}"] {
            assert!(parsed(&[(BRANCH, "main"), (TARGET, bad)]).is_err(), "target {bad:?}");
        }
        for bad in ["a~1", "a^", "a//b", "/a", "a/", ".a", "a/.b", "a.lock", "a."] {
            assert!(parsed(&[(BRANCH, bad), (TARGET, "main")]).is_err(), "branch {bad:?}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        assert!(parsed(&[(BRANCH, &long), (TARGET, "main")]).is_err());
        assert!(parsed(&[(BRANCH, &long[1..]), (TARGET, "main")]).is_ok());
    }

    #[test]
    fn a_refusal_names_operation_branch_phase_and_reason() {
        let mut gate = parsed(&[(BRANCH, "main"), (TARGET, "main")]).unwrap().unwrap();
        gate.phase = Phase::Failed;
        gate.reason = Some("git fetch: no route".to_owned());
        let text = gate.refusal("write").unwrap();
        for part in ["write", "\"main\"", "Failed", "git fetch: no route"] {
            assert!(text.contains(part), "{text}");
        }
        gate.phase = Phase::Ready;
        assert_eq!(gate.refusal("write"), None);
    }

    #[test]
    fn verdicts_are_checked_and_reasons_cut() {
        let complete = |target: &str| Verdict::Complete { target: Some(target.to_owned()) }.checked();
        assert!(complete("main").is_ok());
        assert!(complete("--x").is_err());
        assert_eq!(Verdict::Run.checked(), Ok(Verdict::Run));
        let Ok(Verdict::Fail { reason }) = Verdict::Fail { reason: "ä".repeat(MAX_REASON) }.checked() else {
            panic!("a failure");
        };
        assert!(reason.len() <= MAX_REASON && reason.len() > MAX_REASON - 4);
    }
}

//! The control stream: what only the gateway may say to the guest, and hear from it.
//!
//! Messages are JSON, each behind its length as four bytes, big endian, at most [`MAX_MESSAGE`].
//! Additive only: unknown fields are ignored by both sides, a variant is never changed. The
//! guest answers every [`ToGuest`] that carries a `seq` with one [`FromGuest::Done`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    id::SandboxId,
    sandbox::freshness::{Freshness, Verdict},
};

/// The longest message, in bytes; a longer one ends the attachment.
pub const MAX_MESSAGE: u32 = 1 << 20;

/// From gateway to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToGuest {
    /// Who the machine is now. Sent once for every attachment, before any traffic is let through.
    Init {
        /// Names the answer.
        seq: u64,
        /// The machine's identity.
        init: Box<Init>,
    },
    /// The machine is about to be frozen; the guest answers when it is ready for that.
    Freeze {
        /// Names the answer.
        seq: u64,
    },
    /// The machine was thawed.
    Thaw {
        /// Names the answer.
        seq: u64,
        /// The host's clock, nanoseconds since 1970.
        now_unix_ns: i64,
    },
    /// How much of its disk the machine has used, as its host has counted it.
    Disk {
        /// Names the answer.
        seq: u64,
        /// Bytes.
        used_bytes: u64,
    },
    /// What somebody says of the synchronisation; refused where there is no gate.
    Freshness {
        /// Names the answer.
        seq: u64,
        /// What is said.
        verdict: Verdict,
    },
    /// Are you there?
    Ping {
        /// Names the answer.
        seq: u64,
    },
}

/// The identity of a sandbox, as its guest needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Its template's id, for `E2B_TEMPLATE_ID`.
    pub template_id: String,
    /// User environment of every process; replaces an earlier one.
    pub env_vars: BTreeMap<String, String>,
    /// What envd wants in `X-Access-Token`; none: envd is open.
    pub access_token: Option<String>,
    /// Who runs what names no user.
    pub default_user: String,
    /// Where processes start that name no directory; none: the user's home.
    pub default_workdir: Option<String>,
    /// The host's clock, nanoseconds since 1970.
    pub now_unix_ns: i64,
    /// What the machine may write to its disk, in bytes; 0: no limit is known.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Fresh random bytes in base64, mixed into the guest's own generators.
    pub entropy: String,
    /// The gate that a new machine begins with. A guest that has one for the same keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<Box<Freshness>>,
}

/// From guest to gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGuest {
    /// The answer to the request of this `seq`.
    Done {
        /// The request.
        seq: u64,
        /// None: it worked. Some: why not, for the log.
        error: Option<String>,
    },
    /// The gate as it is now; told at every attachment that finds one, and at every change.
    Freshness {
        /// The gate.
        freshness: Box<Freshness>,
    },
    /// One line of the guest's log.
    Log {
        /// debug, info, warn or error.
        level: String,
        /// envd, process or filesystem.
        logger: String,
        /// The text.
        message: String,
        /// Further fields; never output, environment or tokens.
        #[serde(default)]
        fields: BTreeMap<String, String>,
        /// When, in nanoseconds since 1970, by the guest's clock.
        unix_ns: i64,
    },
}

//! Identifiers: what they look like, how they are made, how they are read from outside.
//!
//! Every identifier that reaches a path, a socket name or a cgroup passes through one of the
//! parsers here first, so that the rest of the program holds only well-formed ones.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const RANDOM_CHARS: usize = 20;

/// Random bytes for identifiers, keys and nonces; injected so that tests have fixed ones.
pub trait Entropy: Send + Sync {
    /// Fills the buffer with bytes that nobody can predict.
    fn fill(&self, buffer: &mut [u8]);
}

/// The kernel's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

// === impl OsEntropy ===

impl Entropy for OsEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        // A kernel that cannot give random bytes cannot run sandboxes either.
        #[expect(clippy::expect_used, reason = "no identifier may be made from predictable bytes")]
        getrandom::fill(buffer).expect("the kernel gives random bytes");
    }
}

/// Why a text is no identifier of the asked kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}")]
pub struct InvalidId {
    kind: &'static str,
}

/// Names one sandbox: `i` and 20 characters of `[a-z0-9]` (contract/control-plane 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId([u8; RANDOM_CHARS + 1]);

// === impl SandboxId ===

impl SandboxId {
    /// A new id that nobody can guess.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut id = [b'i'; RANDOM_CHARS + 1];
        random_chars(entropy, &mut id[1..]);
        Self(id)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever stored.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for SandboxId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes: [u8; RANDOM_CHARS + 1] =
            text.as_bytes().try_into().map_err(|_| InvalidId { kind: "sandbox id" })?;
        if bytes[0] == b'i' && bytes.iter().all(|byte| ALPHABET.contains(byte)) {
            Ok(Self(bytes))
        } else {
            Err(InvalidId { kind: "sandbox id" })
        }
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for SandboxId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SandboxId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Names one template: 20 characters of `[a-z0-9]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateId(String);

// === impl TemplateId ===

impl TemplateId {
    /// A new id that nobody can guess.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut id = [b'a'; RANDOM_CHARS];
        random_chars(entropy, &mut id);
        Self(String::from_utf8_lossy(&id).into_owned())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for TemplateId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        if text.len() == RANDOM_CHARS && text.bytes().all(|byte| ALPHABET.contains(&byte)) {
            Ok(Self(text))
        } else {
            Err(InvalidId { kind: "template id" })
        }
    }
}

impl From<TemplateId> for String {
    fn from(id: TemplateId) -> Self {
        id.0
    }
}

impl fmt::Display for TemplateId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random (version 4) id.
            pub fn generate(entropy: &dyn Entropy) -> Self {
                let mut bytes = [0; 16];
                entropy.fill(&mut bytes);
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id!(
    /// Names one build of a template.
    BuildId
);
uuid_id!(
    /// Names one team, the owner of keys, templates and sandboxes.
    TeamId
);
uuid_id!(
    /// Names one API key; the key itself is a secret and never stored.
    KeyId
);

fn random_chars(entropy: &dyn Entropy, target: &mut [u8]) {
    // 252 is the largest multiple of 36 below 256: bytes above it would favour some characters.
    let mut pool = [0_u8; 32];
    let mut filled = 0;
    while filled < target.len() {
        entropy.fill(&mut pool);
        for byte in pool.iter().filter(|byte| **byte < 252) {
            if filled == target.len() {
                break;
            }
            target[filled] = ALPHABET[usize::from(byte % 36)];
            filled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_parse_and_differ() {
        let first = SandboxId::generate(&OsEntropy);
        let second = SandboxId::generate(&OsEntropy);
        assert_ne!(first, second);
        assert_eq!(first.as_str().parse(), Ok(first));
        assert_eq!(first.as_str().len(), 21);
    }

    #[test]
    fn foreign_texts_are_no_sandbox_ids() {
        for text in [
            "",
            "i",
            "x0123456789abcdefghij",
            "i0123456789ABCDEFGHIJ",
            "i0123456789abcdefghi/",
            "../etc/passwd/aaaaaaa",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
        assert!("i0123456789abcdefghij".parse::<SandboxId>().is_ok());
    }
}

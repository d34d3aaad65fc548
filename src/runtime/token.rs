//! The tokens of a sandbox: keyed hashes of its id, so that they survive restarts unstored.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::id::SandboxId;

/// The secret seed of all tokens of one installation: 32 bytes that the application keeps.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

// === impl TokenKey ===

impl TokenKey {
    /// Takes the seed.
    pub fn new(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// What envd wants in `X-Access-Token`: the same after a restart or a resume.
    pub fn envd(&self, id: SandboxId) -> String {
        self.sign(&[id.as_str()])
    }

    /// What user ports want in `e2b-traffic-access-token`.
    pub fn traffic(&self, id: SandboxId) -> String {
        self.sign(&["traffic-", id.as_str()])
    }

    fn sign(&self, parts: &[&str]) -> String {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any key length");
        for part in parts {
            mac.update(part.as_bytes());
        }
        hex::encode(mac.finalize().into_bytes())
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenKey(..)")
    }
}

/// Compares a presented token with the right one in a time that does not tell where they differ.
pub fn same(presented: &str, right: &str) -> bool {
    presented.as_bytes().ct_eq(right.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_fixed_by_seed_and_id_and_differ_by_use() {
        let id: SandboxId = "i0123456789abcdefghij".parse().unwrap();
        let other: SandboxId = "i0123456789abcdefghik".parse().unwrap();
        let key = TokenKey::new([7; 32]);
        assert_eq!(key.envd(id), TokenKey::new([7; 32]).envd(id));
        assert_eq!(key.envd(id).len(), 64);
        assert_ne!(key.envd(id), key.traffic(id));
        assert_ne!(key.envd(id), key.envd(other));
        assert_ne!(key.envd(id), TokenKey::new([8; 32]).envd(id));
        assert!(same(&key.envd(id), &key.envd(id)));
        assert!(!same(&key.envd(id), &key.traffic(id)));
        assert!(!same("", &key.envd(id)));
    }

    #[test]
    fn the_hash_is_hmac_sha256() {
        // RFC 4231 has no test of this key length; this value was made with Python's hmac.
        let id: SandboxId = "i0123456789abcdefghij".parse().unwrap();
        assert_eq!(
            TokenKey::new([0; 32]).envd(id),
            "61fa0bb47b428b0a14fd56d21badae504d53a54cce027689e2b15faffb0587ad"
        );
    }
}

//! Signatures that stand in for the access token on `/files` (contract/sandbox 5.1).

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What a signed URL lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// GET.
    Read,
    /// POST.
    Write,
}

/// Why a request on `/files` is refused; every one is a 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureError {
    /// The header is there and wrong; a signature is not even looked at.
    #[error("access token present in header but does not match")]
    WrongToken,
    /// Neither header nor signature.
    #[error("missing signature query parameter")]
    Missing,
    /// Made for another path, user, operation, time or token.
    #[error("invalid signature")]
    Invalid,
    /// Made for this request, but its time is over.
    #[error("signature is already expired")]
    Expired,
}

/// What is signed: the query's values as they came, not what they resolve to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    /// The `path` value, or "".
    pub(crate) path: &'a str,
    /// What the URL is for.
    pub(crate) operation: Operation,
    /// The `username` value, or "" (never the default user).
    pub(crate) username: &'a str,
    /// The `signature_expiration` value, in unix seconds.
    pub(crate) expiration: Option<i64>,
}

// === impl Signed ===

impl Signed<'_> {
    /// The signature that a holder of `token` gives this request.
    pub(crate) fn sign(&self, token: &str) -> String {
        let operation = match self.operation {
            Operation::Read => "read",
            Operation::Write => "write",
        };
        let mut text = format!("{}:{operation}:{}:{token}", self.path, self.username);
        if let Some(expiration) = self.expiration {
            text.push(':');
            text.push_str(&expiration.to_string());
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes())))
    }

    /// Whether the request may go on: by header, else by signature. No token set: open to all.
    pub(crate) fn check(
        &self,
        token: Option<&str>,
        header: Option<&[u8]>,
        signature: Option<&str>,
        now_unix: i64,
    ) -> Result<(), SignatureError> {
        let Some(token) = token else { return Ok(()) };
        if let Some(header) = header {
            let equal = bool::from(header.ct_eq(token.as_bytes()));
            return if equal { Ok(()) } else { Err(SignatureError::WrongToken) };
        }
        let signature = signature.ok_or(SignatureError::Missing)?;
        if !bool::from(signature.as_bytes().ct_eq(self.sign(token).as_bytes())) {
            return Err(SignatureError::Invalid);
        }
        if self.expiration.is_some_and(|expiration| expiration < now_unix) {
            return Err(SignatureError::Expired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Signed<'_> =
        Signed { path: "/a b", operation: Operation::Read, username: "", expiration: None };
    const WRITE: Signed<'_> = Signed {
        path: "/home/user/x.txt",
        operation: Operation::Write,
        username: "user",
        expiration: Some(1_700_000_000),
    };

    #[test]
    fn signs_the_contracts_vectors() {
        assert_eq!(READ.sign("tok"), "v1_dgCJhR1eFbOEacKLrakWIrQZDgxJ2zP38eGtFIbZ9+8");
        assert_eq!(WRITE.sign("tok"), "v1_sZOFVaQd+A+q1sTbwox5b6CKgfi8y7do5PKAQYeMEb4");
    }

    #[test]
    fn header_beats_signature_and_time_ends_it() {
        let good = WRITE.sign("tok");
        assert_eq!(WRITE.check(None, None, None, 0), Ok(()));
        assert_eq!(WRITE.check(Some("tok"), Some(b"tok"), None, i64::MAX), Ok(()));
        assert_eq!(WRITE.check(Some("tok"), Some(b"no"), Some(&good), 0), Err(SignatureError::WrongToken));
        assert_eq!(WRITE.check(Some("tok"), None, None, 0), Err(SignatureError::Missing));
        assert_eq!(WRITE.check(Some("tok"), None, Some(&good), 1_700_000_000), Ok(()));
        assert_eq!(WRITE.check(Some("tok"), None, Some(&good), 1_700_000_001), Err(SignatureError::Expired));
        assert_eq!(WRITE.check(Some("tok"), None, Some(&READ.sign("tok")), 0), Err(SignatureError::Invalid));
    }
}

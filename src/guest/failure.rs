//! I/O failures in the words of E2B's envd, so that a client that shows or greps them finds
//! what it knows: `open /a: no such file or directory`.

use std::{io, path::Path};

/// A failed call on a path: its name, the path, the errno's text in lower case.
pub(crate) fn describe(call: &str, path: &Path, error: &io::Error) -> String {
    format!("{call} {}: {}", path.display(), text(error))
}

/// The errno's text alone: the C library's, which Go's own table repeats in lower case.
pub(crate) fn text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = error
        .raw_os_error()
        .and_then(|code| text.strip_suffix(&format!(" (os error {code})")))
        .unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        // "RPC version wrong" and its like keep their capitals.
        Some(first) if !letters.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Whether the path, or a part of it, is not there (`ENOENT` only: `ENOTDIR` is another failure).
pub(crate) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Whether the storage is full, by blocks or by quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_gos() {
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(describe("lstat", Path::new("/a"), &missing), "lstat /a: no such file or directory");
        assert!(is_missing(&missing));
        let not_dir = io::Error::from_raw_os_error(libc::ENOTDIR);
        assert_eq!(text(&not_dir), "not a directory");
        assert_eq!(text(&io::Error::from_raw_os_error(libc::EXDEV)), "invalid cross-device link");
        assert_eq!(text(&io::Error::from_raw_os_error(libc::ELOOP)), "too many levels of symbolic links");
        assert!(!is_missing(&not_dir));
        assert!(is_full(&io::Error::from_raw_os_error(libc::EDQUOT)));
    }
}

//! The user's metadata of a file: extended attributes `user.e2b.<key>` (contract/sandbox 4, 5.3).

use std::{io, os::fd::AsFd, path::Path};

use http::HeaderMap;
use rustix::fs::XattrFlags;

use super::UserMetadata;

const PREFIX: &str = "user.e2b.";
/// The kernel's 255 bytes for an attribute's name, less our prefix.
const MAX_KEY: usize = 246;
/// All names with their prefix and all values together, in bytes.
const MAX_TOTAL: usize = 4096;
/// The kernel's own limit for a list of names.
const MAX_LIST: usize = 64 * 1024;

/// Why an upload's `X-Metadata-*` headers are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataError {
    /// The key does not fit.
    #[error("invalid metadata: key is {0} bytes long, at most {MAX_KEY} are allowed")]
    LongKey(usize),
    /// Not in 0x20 to 0x7E.
    #[error("invalid metadata: value of key \"{0}\" must be printable ASCII")]
    Unprintable(String),
    /// The whole set does not fit.
    #[error("invalid metadata: total size is {0} bytes, at most {MAX_TOTAL} are allowed")]
    TooLarge(usize),
}

/// Takes the metadata out of an upload's headers. The first value of a key wins; a header
/// that is the bare prefix names no key and is passed over.
pub(crate) fn from_headers(headers: &HeaderMap) -> Result<UserMetadata, MetadataError> {
    let mut set = UserMetadata::new();
    // Header names are lower case and printable already.
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix("x-metadata-").filter(|key| !key.is_empty()) else {
            continue;
        };
        if key.len() > MAX_KEY {
            return Err(MetadataError::LongKey(key.len()));
        }
        let value = headers.get(name).map(http::HeaderValue::as_bytes).unwrap_or_default();
        if !value.iter().all(|byte| (0x20..=0x7e).contains(byte)) {
            return Err(MetadataError::Unprintable(key.to_owned()));
        }
        set.insert(key.to_owned(), String::from_utf8_lossy(value).into_owned());
    }
    let total = set.iter().map(|(key, value)| PREFIX.len() + key.len() + value.len()).sum();
    if total > MAX_TOTAL {
        return Err(MetadataError::TooLarge(total));
    }
    Ok(set)
}

/// Reads the metadata of what `path` leads to. Best effort: none where it cannot be read, and
/// entries that are no UTF-8 are left out.
pub(crate) fn read(path: &Path) -> UserMetadata {
    let mut names = Vec::new();
    if !fill(&mut names, MAX_LIST, |buffer| rustix::fs::listxattr(path, buffer)) {
        return UserMetadata::new();
    }
    let mut set = UserMetadata::new();
    for name in names.split(|&byte| byte == 0) {
        let Some((name, key)) =
            std::str::from_utf8(name).ok().and_then(|name| Some((name, name.strip_prefix(PREFIX)?)))
        else {
            continue;
        };
        let mut value = Vec::new();
        if fill(&mut value, MAX_LIST, |buffer| rustix::fs::getxattr(path, name, buffer))
            && let Ok(value) = String::from_utf8(value)
        {
            set.insert(key.to_owned(), value);
        }
    }
    set
}

/// Makes `wanted` the whole metadata of an open file. Touches nothing where nothing changes,
/// so that a plain upload causes no event of its own.
pub(crate) fn replace(file: impl AsFd, wanted: &UserMetadata) -> io::Result<()> {
    let file = file.as_fd();
    let mut names = Vec::new();
    if fill(&mut names, MAX_LIST, |buffer| rustix::fs::flistxattr(file, buffer)) {
        for name in names.split(|&byte| byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
            if name.strip_prefix(PREFIX).is_some_and(|key| !wanted.contains_key(key)) {
                tolerate(rustix::fs::fremovexattr(file, name))?;
            }
        }
    }
    for (key, value) in wanted {
        tolerate(rustix::fs::fsetxattr(
            file,
            format!("{PREFIX}{key}"),
            value.as_bytes(),
            XattrFlags::empty(),
        ))?;
    }
    Ok(())
}

/// File systems without user attributes keep the file and lose the metadata.
fn tolerate(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads an attribute call's whole answer; false when it fails or is longer than `limit`.
fn fill(
    out: &mut Vec<u8>,
    limit: usize,
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> bool {
    let mut room = 512;
    loop {
        out.resize(room, 0);
        match call(out) {
            Ok(length) => {
                out.truncate(length);
                return true;
            }
            Err(rustix::io::Errno::RANGE) if room < limit => room = limit,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn headers_become_a_checked_set() {
        let good =
            headers(&[("X-Metadata-Author", "first"), ("x-metadata-author", "second"), ("X-Metadata-", "")]);
        let set = from_headers(&good).unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [(&"author".to_owned(), &"first".to_owned())]);

        let longest = format!("x-metadata-{}", "k".repeat(MAX_KEY));
        assert!(from_headers(&headers(&[(&longest, "v")])).is_ok());
        let longer = format!("x-metadata-{}", "k".repeat(MAX_KEY + 1));
        assert_eq!(from_headers(&headers(&[(&longer, "v")])), Err(MetadataError::LongKey(MAX_KEY + 1)));
        assert!(matches!(
            from_headers(&headers(&[("x-metadata-a", "caf\u{e9}")])),
            Err(MetadataError::Unprintable(_))
        ));
        let fits = "v".repeat(MAX_TOTAL - PREFIX.len() - 1);
        assert!(from_headers(&headers(&[("x-metadata-a", &fits)])).is_ok());
        assert_eq!(
            from_headers(&headers(&[("x-metadata-a", &format!("{fits}v"))])),
            Err(MetadataError::TooLarge(MAX_TOTAL + 1))
        );
    }

    #[test]
    fn a_set_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = std::fs::File::create(&path).unwrap();
        let set = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<UserMetadata>()
        };
        let first = set(&[("a", "1"), ("b", "2")]);
        replace(&file, &first).unwrap();
        assert_eq!(read(&path), first);
        let second = set(&[("b", "3")]);
        replace(&file, &second).unwrap();
        assert_eq!(read(&path), second);
        replace(&file, &UserMetadata::new()).unwrap();
        assert!(read(&path).is_empty());
    }
}

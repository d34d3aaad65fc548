//! The extended attributes of a layer's files that a copy keeps.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use rustix::{fs, fs::XattrFlags, io::Errno};

/// Values by name.
pub(super) type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// Hides, on a directory of a layer, what the layers below have under its name.
const OPAQUE: &str = "user.overlay.opaque";
/// The kernel's own limit of a value and of all names.
const LONGEST: usize = 64 * 1024;

/// Reads those that a sandbox can set or that overlay sets for it. `opaque`: with the mark that
/// hides what is below, whether it was there or not.
pub(super) fn read(file: BorrowedFd<'_>, opaque: bool) -> Result<Attributes, Errno> {
    let list = grown(|buffer| fs::flistxattr(file, buffer))?.unwrap_or_default();
    let mut attributes = Attributes::new();
    for name in list.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        if let Some(value) = grown(|buffer| fs::fgetxattr(file, name, buffer))? {
            attributes.insert(name.to_vec(), value);
        }
    }
    if opaque {
        attributes.insert(OPAQUE.into(), b"y".to_vec());
    }
    Ok(attributes)
}

/// What a call gives that wants a buffer large enough. None: there is nothing.
fn grown(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Option<Vec<u8>>, Errno> {
    // Most files have none, or short ones.
    let mut short = [0; 512];
    let (length, mut buffer) = match call(&mut short) {
        Ok(length) => (length, short.to_vec()),
        Err(Errno::RANGE) => {
            let mut long = vec![0; LONGEST];
            (call(&mut long)?, long)
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(error) => return Err(error),
    };
    buffer.truncate(length);
    Ok(Some(buffer))
}

/// Sets them on a new file.
pub(super) fn write(file: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Errno> {
    attributes
        .iter()
        .try_for_each(|(name, value)| fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()))
}

pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut value = [0; 8];
    match fs::fgetxattr(directory, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The others (security modules', the host's own) are not the sandbox's.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability"
}

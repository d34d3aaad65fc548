//! One file-system entry as envd describes it (contract/sandbox 4, "`EntryInfo`"): lstat of the
//! entry, type and mode of what a link finally leads to, Go's permission text, owner names and
//! the user's metadata.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

use buffa_types::google::protobuf::Timestamp;

use crate::{
    guest::users::Users,
    wire::rpc::filesystem::{EntryInfo, FileType},
};

pub(crate) mod metadata;

/// Describes what is at `path`; a final link is described, not followed.
pub(crate) fn describe(path: &Path, users: &Users) -> io::Result<EntryInfo> {
    Ok(from_metadata(path, &fs::symlink_metadata(path)?, users))
}

/// Describes an entry whose lstat result is known already.
pub(crate) fn from_metadata(path: &Path, found: &Metadata, users: &Users) -> EntryInfo {
    let mut entry = EntryInfo {
        name: base_name(path),
        path: path.to_string_lossy().into_owned(),
        size: i64::try_from(found.len()).unwrap_or(i64::MAX),
        permissions: permissions(found.mode()),
        owner: users.user_name(found.uid()),
        group: users.group_name(found.gid()),
        modified_time: Timestamp {
            seconds: found.mtime(),
            nanos: i32::try_from(found.mtime_nsec()).unwrap_or_default(),
            ..Default::default()
        }
        .into(),
        metadata: metadata::read(path).into_iter().collect(),
        ..Default::default()
    };
    if found.is_symlink() {
        // A link that leads nowhere stands for itself and has no type.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if let Ok(end) = fs::metadata(&target) {
            entry.r#type = file_type(&end).into();
            entry.mode = end.mode() & 0o777;
        }
        entry.symlink_target = Some(target.to_string_lossy().into_owned());
        entry.is_symlink = true;
    } else {
        entry.r#type = file_type(found).into();
        entry.mode = found.mode() & 0o777;
    }
    entry
}

/// What an SDK of the first generation can read: name, type and path.
pub(crate) fn legacy(entry: EntryInfo) -> EntryInfo {
    EntryInfo { name: entry.name, r#type: entry.r#type, path: entry.path, ..Default::default() }
}

/// The last component as written (`..` stays), "/" for the root.
pub(crate) fn base_name(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    if end == 0 {
        return "/".to_owned();
    }
    let start = bytes[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    OsStr::from_bytes(&bytes[start..end]).to_string_lossy().into_owned()
}

fn file_type(found: &Metadata) -> FileType {
    if found.is_file() {
        FileType::FILE_TYPE_FILE
    } else if found.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else if found.is_symlink() {
        FileType::FILE_TYPE_SYMLINK
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

/// The text of Go's `FileMode` for a kernel mode: `-rw-r--r--`, `dtrwxrwxrwx`, `Dcrw-rw-rw-`.
fn permissions(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => "d",
        libc::S_IFLNK => "L",
        libc::S_IFBLK | libc::S_IFCHR => "D",
        libc::S_IFIFO => "p",
        libc::S_IFSOCK => "S",
        _ => "",
    };
    let mut text = kind.to_owned();
    let flags = [
        (mode & libc::S_ISUID != 0, 'u'),
        (mode & libc::S_ISGID != 0, 'g'),
        (mode & libc::S_IFMT == libc::S_IFCHR, 'c'),
        (mode & libc::S_ISVTX != 0, 't'),
    ];
    text.extend(flags.iter().filter(|(set, _)| *set).map(|(_, letter)| letter));
    if text.is_empty() {
        text.push('-');
    }
    for (place, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> place) == 0 { '-' } else { letter });
    }
    text
}

/// Metadata as responses carry it: sorted, absent when there is none.
pub(crate) type UserMetadata = BTreeMap<String, String>;

/// Whether the entry is one of the kinds that can be opened without waiting for a peer.
pub(crate) fn is_openable(found: &Metadata) -> bool {
    let kind = found.file_type();
    !kind.is_fifo() && !kind.is_socket()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_text_is_gos() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o104_755, "urwxr-xr-x"),
            (0o102_755, "grwxr-xr-x"),
            (0o010_600, "prw-------"),
            (0o140_755, "Srwxr-xr-x"),
            (0o020_666, "Dcrw-rw-rw-"),
            (0o060_660, "Drw-rw----"),
        ] {
            assert_eq!(permissions(mode), text, "{mode:o}");
        }
    }

    #[test]
    fn base_names_are_as_written() {
        for (path, name) in [("/", "/"), ("//", "/"), ("/a/b", "b"), ("/a/b/", "b"), ("/a/..", "..")] {
            assert_eq!(base_name(Path::new(path)), name);
        }
    }
}

//! Hostile archives and honest ones, as root: the child that unpacks changes its root directory.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::id::OsEntropy;

/// When everything in the archives was written.
const DATE: i64 = 1_000_000_000;

type Builder = tar::Builder<Vec<u8>>;
/// A name for people, and what it adds to an honest archive.
type Attack<'a> = (&'a str, &'a dyn Fn(&mut Builder));

fn import(archive: &[u8], limits: Limits) -> Result<(tempfile::TempDir, ImageInfo), ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let store = std::fs::File::open(dir.path()).unwrap();
    let import = Import { build: BuildId::generate(&OsEntropy), sudo: b"sudo", limits };
    let info = import_tar(store.as_fd(), archive, &import, &mut |_| {})?;
    Ok((dir, info))
}

fn entry(
    builder: &mut Builder,
    kind: tar::EntryType,
    name: &str,
    link: &str,
    content: &[u8],
    mode: u32,
    uid: u64,
) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    // Not by the checked setter: a hostile archive does not use it.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    header.set_mtime(DATE.unsigned_abs());
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn honest() -> Builder {
    let mut builder = Builder::new(Vec::new());
    entry(&mut builder, tar::EntryType::Directory, "./", "", b"", 0o755, 0);
    entry(&mut builder, tar::EntryType::Regular, "./bin/sh", "", b"shell", 0o4755, 0);
    entry(&mut builder, tar::EntryType::Link, "bin/dash", "./bin/sh", b"", 0o755, 0);
    entry(&mut builder, tar::EntryType::Symlink, "lib64", "/usr/lib", b"", 0o777, 0);
    entry(&mut builder, tar::EntryType::Directory, "opt/app", "", b"", 0o755, 0);
    entry(&mut builder, tar::EntryType::Regular, "opt/app/file", "", b"x", 0o644, 0);
    builder
}

#[test]
fn an_honest_archive_becomes_an_image() {
    use std::io::Write as _;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let plain = honest().into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    for archive in [plain, gzip.finish().unwrap()] {
        let (dir, info) = import(&archive, Limits::default()).unwrap();
        let root = dir.path().join(info.build.to_string()).join("root");
        let meta = std::fs::metadata(root.join("bin/sh")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink(), meta.mtime()), (0o4755, 2, DATE));
        assert_eq!(std::fs::symlink_metadata(root.join("lib64")).unwrap().mtime(), DATE);
        assert_eq!(std::fs::metadata(root.join("opt/app")).unwrap().mtime(), DATE);
        assert_eq!(std::fs::metadata(root.join("home/user")).unwrap().uid(), 1000);
        assert_eq!(std::fs::metadata(root.join("usr/bin/sudo")).unwrap().mode() & 0o7777, 0o4755);
        assert_eq!(std::fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert!(info.notice.unwrap().contains("bash"));
    }
}

#[test]
fn a_hostile_archive_is_refused_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let link = outside.path().to_str().unwrap();
    let file = tar::EntryType::Regular;
    let hostile: [Attack<'_>; 6] = [
        ("upwards", &|b| entry(b, file, "../evil", "", b"x", 0o644, 0)),
        ("absolute", &|b| entry(b, file, "/tmp/firkin-evil", "", b"x", 0o644, 0)),
        ("through a link", &|b| {
            entry(b, tar::EntryType::Symlink, "out", link, b"", 0o777, 0);
            entry(b, file, "out/evil", "", b"x", 0o644, 0);
        }),
        ("a hard link out", &|b| entry(b, tar::EntryType::Link, "evil", "../../etc/passwd", b"", 0o644, 0)),
        ("an owner from outside", &|b| entry(b, file, "evil", "", b"x", 0o644, 70_000)),
        ("too large", &|b| entry(b, file, "evil", "", &[0; 5000], 0o644, 0)),
    ];
    let limits = Limits { bytes: 4096, entries: 50 };
    assert!(import(&honest().into_inner().unwrap(), limits).is_ok());
    for (name, add) in hostile {
        let mut builder = honest();
        add(&mut builder);
        let refused = import(&builder.into_inner().unwrap(), limits);
        assert!(matches!(refused, Err(ImageError::Refused(_))), "{name}: {refused:?}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(!std::path::Path::new("/tmp/firkin-evil").exists());
}

#[test]
fn devices_do_not_come_in() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut builder = honest();
    entry(&mut builder, tar::EntryType::Block, "dev/sda", "", b"", 0o666, 0);
    let (dir, info) = import(&builder.into_inner().unwrap(), Limits::default()).unwrap();
    assert!(!dir.path().join(info.build.to_string()).join("root/dev/sda").exists());
    assert!(info.notice.unwrap().contains("1 devices"));
}

#[test]
fn a_directory_is_copied_with_its_links() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("bin")).unwrap();
    std::fs::write(source.path().join("bin/sh"), "shell").unwrap();
    std::fs::hard_link(source.path().join("bin/sh"), source.path().join("bin/bash")).unwrap();
    std::os::unix::fs::symlink("/etc", source.path().join("out")).unwrap();
    std::fs::create_dir_all(source.path().join("opt/app")).unwrap();
    std::fs::write(source.path().join("opt/app/file"), "x").unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(DATE.unsigned_abs());
    for dated in ["opt/app/file", "opt/app"] {
        std::fs::File::open(source.path().join(dated)).unwrap().set_modified(then).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, rootfs) =
        (std::fs::File::open(dir.path()).unwrap(), std::fs::File::open(source.path()).unwrap());
    let import = Import { build: BuildId::generate(&OsEntropy), sudo: b"sudo", limits: Limits::default() };
    let info = import_dir(store.as_fd(), rootfs.as_fd(), &import, &mut |_| {}).unwrap();
    assert_eq!(info.notice, None);
    let root = dir.path().join(info.build.to_string()).join("root");
    assert_eq!(std::fs::metadata(root.join("bin/bash")).unwrap().nlink(), 2);
    assert!(std::fs::symlink_metadata(root.join("out")).unwrap().is_symlink());
    for dated in ["opt/app/file", "opt/app"] {
        assert_eq!(std::fs::metadata(root.join(dated)).unwrap().mtime(), DATE, "{dated}");
    }
    assert!(std::fs::read_to_string(root.join("etc/passwd")).unwrap().contains("user:x:1000"));
}

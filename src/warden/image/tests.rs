use rustix::fs::CWD;

use super::*;
use crate::id::OsEntropy;

fn open_dir(path: &std::path::Path) -> OwnedFd {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .unwrap()
}

#[test]
fn a_draft_is_invisible_until_it_is_finished_and_gone_if_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_dir(dir.path());
    let build = BuildId::generate(&OsEntropy);
    let draft = Draft::begin(store.as_fd(), build).unwrap();
    let mut root = draft.layer("root").unwrap();
    root.write(b"etc/hello", b"hi", tree::Access::root(0o644)).unwrap();
    assert!(matches!(resolve(store.as_fd(), build), Err(ImageError::Missing(_))));
    assert!(matches!(Draft::begin(store.as_fd(), build), Err(ImageError::Busy(_))));
    drop(draft);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let draft = Draft::begin(store.as_fd(), build).unwrap();
    let mut root = draft.layer("root").unwrap();
    root.write(b"etc/hello", b"hi", tree::Access::root(0o644)).unwrap();
    let made = draft.finish(ImageKind::Imported, None, Some("said".to_owned())).unwrap();
    assert!(made.fresh);
    assert_eq!(info(store.as_fd(), build).unwrap(), ImageInfo { fresh: false, ..made });
    let layers = resolve(store.as_fd(), build).unwrap();
    assert_eq!(layers.mounts.len(), 1);
    assert_eq!(tree::read_capped(layers.mounts[0].lowers[0].as_fd(), "etc/hello", 10).unwrap(), b"hi");
    remove(store.as_fd(), build).unwrap();
    remove(store.as_fd(), build).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_a_crash_left_goes_with_the_next_draft() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_dir(dir.path());
    let build = BuildId::generate(&OsEntropy);
    std::fs::create_dir_all(dir.path().join(format!(".new-{build}/root/etc"))).unwrap();
    std::fs::create_dir_all(dir.path().join(format!(".trash-{build}/root/etc"))).unwrap();
    let outside = dir.path().join("kept");
    std::fs::write(&outside, "kept").unwrap();
    std::os::unix::fs::symlink("../../kept", dir.path().join(format!(".new-{build}/root/link"))).unwrap();
    let other = BuildId::generate(&OsEntropy);
    let live = Draft::begin(store.as_fd(), other).unwrap();
    assert!(!dir.path().join(format!(".new-{build}")).exists());
    assert!(!dir.path().join(format!(".trash-{build}")).exists());
    let _mine = Draft::begin(store.as_fd(), build).unwrap();
    assert!(live.layer("root").is_ok(), "a live draft is left alone");
    assert_eq!(std::fs::read_to_string(outside).unwrap(), "kept");
}

#[test]
fn deep_trees_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_dir(dir.path());
    let build = BuildId::generate(&OsEntropy);
    let mut deep = dir.path().join(build.to_string());
    for _ in 0..600 {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f"), "x").unwrap();
    remove(store.as_fd(), build).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn links_in_the_store_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = open_dir(dir.path());
    let build = BuildId::generate(&OsEntropy);
    Draft::begin(store.as_fd(), build).unwrap().finish(ImageKind::Imported, None, None).unwrap();
    assert!(info(store.as_fd(), build).is_ok());
    let other = BuildId::generate(&OsEntropy);
    std::os::unix::fs::symlink(build.to_string(), dir.path().join(other.to_string())).unwrap();
    assert!(matches!(info(store.as_fd(), other), Err(ImageError::Step { .. })));

    let mut tree = Tree::new(open_dir(dir.path()));
    tree.write(b"in/file", b"", tree::Access::root(0o644)).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("out")).unwrap();
    assert!(tree.write(b"out/file", b"", tree::Access::root(0o644)).is_err());
    assert!(tree.write(b"in/../../file", b"", tree::Access::root(0o644)).is_err());
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_foreign_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_dir(dir.path());
    let build = BuildId::generate(&OsEntropy);
    Draft::begin(store.as_fd(), build).unwrap().finish(ImageKind::Imported, None, None).unwrap();
    let path = dir.path().join(format!("{build}/image.json"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"format\": 1", "\"format\": 99")).unwrap();
    assert!(matches!(info(store.as_fd(), build), Err(ImageError::Damaged { .. })));
    std::fs::write(&path, vec![b' '; 70_000]).unwrap();
    assert!(matches!(info(store.as_fd(), build), Err(ImageError::Damaged { .. })));
}

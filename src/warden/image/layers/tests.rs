use std::{
    fs as std_fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use rustix::fs::{CWD, XattrFlags};

use super::*;

/// A place for layers, their copy, and further names.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// None: not root, and owners cannot be kept.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        // A file system that takes user attributes: the rest of the build's.
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let dir = tempfile::Builder::new().prefix("layers-").tempdir_in(place).unwrap();
        for name in ["one", "two", "three", "copy", "links"] {
            std_fs::create_dir(dir.path().join(name)).unwrap();
        }
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(CWD, self.path(name), flags, Mode::empty()).unwrap()
    }

    fn copy(&self, layers: &[&str]) -> Result<Integrity, Refusal> {
        let layers: Vec<OwnedFd> = layers.iter().map(|name| self.open(name)).collect();
        let (layer, links) = (self.open("copy"), self.open("links"));
        copy(&layers, Target { layer: layer.as_fd(), links: links.as_fd() })?;
        record(self.open("copy"))
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std_fs::create_dir_all(path.parent().unwrap()).unwrap();
        std_fs::write(path, text).unwrap();
    }

    fn whiteout(&self, name: &str) {
        fs::mknodat(CWD, self.path(name), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    fn opaque(&self, name: &str) {
        let directory = self.open(name);
        fs::fsetxattr(&directory, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    }

    /// Everything below a directory as a line each: what a machine can see of it.
    fn lines(&self, name: &str) -> Vec<String> {
        let mut lines = Vec::new();
        describe(&self.path(name), &self.path(name), &mut lines);
        lines.sort();
        lines
    }
}

fn describe(top: &Path, path: &Path, lines: &mut Vec<String>) {
    let stat = std_fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let opened = (kind.is_dir() || kind.is_file()).then(|| std_fs::File::open(path).unwrap());
    let attributes = opened.map(|file| attributes::read(file.as_fd(), false).unwrap());
    let small = kind.is_file() && stat.len() < 1000;
    lines.push(format!(
        "{:?} {:o} {} {} {} {} {:?} {:?} {:?} {attributes:?}",
        path.strip_prefix(top).unwrap(),
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.rdev(),
        if kind.is_dir() { 0 } else { stat.len() },
        stat.modified().unwrap(),
        std_fs::read_link(path).ok(),
        small.then(|| std_fs::read(path).unwrap()),
    ));
    if kind.is_dir() {
        for entry in std_fs::read_dir(path).unwrap() {
            describe(top, &entry.unwrap().path(), lines);
        }
    }
}

fn age(path: &Path) {
    let when = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: when, last_modification: when };
    fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn a_copy_keeps_all_that_a_machine_sees() {
    let Some(bench) = Bench::new() else { return };
    bench.write("one/dir/file", "content");
    bench.write("one/dir/tool", "setuid");
    std_fs::set_permissions(bench.path("one/dir/tool"), std_fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(bench.path("one/dir/file"), Some(1000), Some(1001)).unwrap();
    std_fs::hard_link(bench.path("one/dir/file"), bench.path("one/again")).unwrap();
    symlink("/nowhere/at all", bench.path("one/link")).unwrap();
    std::os::unix::fs::lchown(bench.path("one/link"), Some(7), Some(8)).unwrap();
    bench.whiteout("one/gone");
    std_fs::hard_link(bench.path("one/gone"), bench.path("one/gone too")).unwrap();
    let fifo = FileType::Fifo;
    fs::mknodat(CWD, bench.path("one/pipe"), fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    fs::mknodat(CWD, bench.path("one/socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    std_fs::create_dir(bench.path("one/opaque")).unwrap();
    bench.opaque("one/opaque");
    let capable = std_fs::File::open(bench.path("one/dir/tool")).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fs::fsetxattr(&capable, "security.capability", &capability, XattrFlags::empty()).unwrap();
    fs::fsetxattr(&capable, "user.note", b"\0binary\xff", XattrFlags::empty()).unwrap();
    let sparse = std_fs::File::create(bench.path("one/sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"far", (1 << 39) + 5).unwrap();
    sparse.write_all_at(b"end", (1 << 40) - 3).unwrap();
    std_fs::set_permissions(bench.path("one"), std_fs::Permissions::from_mode(0o751)).unwrap();
    for name in ["one/dir/file", "one/dir/tool", "one/link", "one/gone", "one/pipe", "one/socket"] {
        age(&bench.path(name));
    }
    for name in ["one/opaque", "one/sparse", "one/dir", "one"] {
        age(&bench.path(name));
    }

    let made = bench.copy(&["one"]).unwrap();
    assert_eq!(bench.lines("copy"), bench.lines("one"));
    let stat = |name: &str| std_fs::symlink_metadata(bench.path(name)).unwrap();
    assert_eq!(stat("copy/again").ino(), stat("copy/dir/file").ino(), "one file with two names");
    assert_eq!(stat("copy/gone").ino(), stat("copy/gone too").ino());
    assert_eq!(stat("copy/sparse").len(), 1 << 40);
    assert!(stat("copy/sparse").blocks() <= stat("one/sparse").blocks(), "holes stay holes");
    let far = std_fs::File::open(bench.path("copy/sparse")).unwrap();
    let mut read = [0; 5];
    far.read_exact_at(&mut read, (1 << 39) + 4).unwrap();
    assert_eq!(&read, b"\0far\0");
    far.read_exact_at(&mut read[..3], (1 << 40) - 3).unwrap();
    assert_eq!(&read[..3], b"end");

    // The record is the layer's own, wherever it lies, and sees every change.
    assert_eq!(record(bench.open("one")).unwrap(), made);
    assert_eq!(record(bench.open("copy")).unwrap(), made);
    far.metadata().unwrap();
    std_fs::OpenOptions::new()
        .write(true)
        .open(bench.path("copy/sparse"))
        .unwrap()
        .write_all_at(b"F", (1 << 39) + 5)
        .unwrap();
    assert_ne!(record(bench.open("copy")).unwrap().sha256, made.sha256);
}

#[test]
fn no_link_is_followed_and_depth_is_bounded() {
    let Some(bench) = Bench::new() else { return };
    bench.write("two/secret", "host");
    symlink(bench.path("two"), bench.path("one/out")).unwrap();
    symlink("../two/secret", bench.path("one/up")).unwrap();
    bench.copy(&["one"]).unwrap();
    assert!(std_fs::symlink_metadata(bench.path("copy/out")).unwrap().is_symlink());
    assert!(std_fs::symlink_metadata(bench.path("copy/up")).unwrap().is_symlink());

    let mut at = bench.open("three");
    for _ in 0..=DEEPEST {
        at = make(at.as_fd(), b"d").unwrap();
    }
    let refused = bench.copy(&["three"]).unwrap_err();
    assert!(matches!(&refused, Refusal::Content(_)), "{refused}");
    // As the removal of images does it, for a tree that no path reaches the end of.
    drop(at);
    for name in ["three", "copy"] {
        crate::warden::rubbish::empty(bench.open(name).as_fd()).unwrap();
    }
}

#[test]
fn a_pile_of_layers_becomes_one_that_shows_the_same() {
    let Some(bench) = Bench::new() else { return };
    // "three" is the lowest: each case is named for what the layers do to it, from the top down.
    bench.write("three/kept", "3");
    bench.write("three/changed", "3");
    bench.write("two/changed", "2");
    bench.write("three/removed", "3");
    bench.whiteout("two/removed");
    bench.write("three/removed and made", "3");
    bench.whiteout("two/removed and made");
    bench.write("one/removed and made", "1");
    bench.write("three/merged/low", "3");
    bench.write("two/merged/middle", "2");
    bench.write("one/merged/high", "1");
    bench.whiteout("one/merged/low");
    bench.write("three/covered/low", "3");
    bench.write("two/covered/middle", "2");
    bench.opaque("two/covered");
    bench.write("one/covered/high", "1");
    bench.write("three/was dir/low", "3");
    bench.write("two/was dir", "2");
    bench.write("three/was file", "3");
    bench.write("two/was file/inner", "2");
    bench.opaque("two/was file");
    bench.write("three/gone then dir/low", "3");
    bench.whiteout("two/gone then dir");
    bench.write("one/gone then dir/new", "1");
    bench.opaque("one/gone then dir");
    bench.copy(&["one", "two", "three"]).unwrap();

    let text = |name: &str| std_fs::read_to_string(bench.path(&format!("copy/{name}"))).ok();
    for (name, content) in [
        ("kept", "3"),
        ("changed", "2"),
        ("removed and made", "1"),
        ("merged/middle", "2"),
        ("merged/high", "1"),
        ("covered/middle", "2"),
        ("covered/high", "1"),
        ("was dir", "2"),
        ("was file/inner", "2"),
        ("gone then dir/new", "1"),
    ] {
        assert_eq!(text(name).as_deref(), Some(content), "{name}");
    }
    let kind =
        |name: &str| std_fs::symlink_metadata(bench.path(&format!("copy/{name}"))).map(|stat| stat.rdev());
    // What the base may have under these names stays hidden.
    for name in ["removed", "merged/low"] {
        assert_eq!(kind(name).unwrap(), 0, "{name} is a whiteout");
        assert!(text(name).is_none());
    }
    for name in ["covered/low", "was dir/low", "gone then dir/low"] {
        assert!(kind(name).is_err(), "{name}");
    }
    for (name, opaque) in [("covered", true), ("was file", true), ("gone then dir", true), ("merged", false)]
    {
        let directory = bench.open(&format!("copy/{name}"));
        assert_eq!(attributes::is_opaque(directory.as_fd()).unwrap(), opaque, "{name}");
    }
}

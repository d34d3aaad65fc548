//! These run as root on a Debian host and build the real thing, on the file system of /usr.

use std::{
    collections::HashSet,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard},
};

use super::*;

/// A template store that is gone with the test.
struct Store {
    dir: tempfile::TempDir,
    fd: File,
    packages: HashSet<String>,
    /// The tests that build look at the host's files, so they take turns.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Store {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/var/lib/dpkg/status").exists() {
            println!("skipped: needs root on a Debian host");
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let dir = tempfile::Builder::new().prefix("store-").tempdir_in(here).unwrap();
        let fd = File::open(dir.path()).unwrap();
        Some(Self { dir, fd, packages: packages(), _turn: turn })
    }

    fn ensure(&self) -> ImageInfo {
        let wanted = |package: &str| self.packages.contains(package);
        ensure_of(self.fd.as_fd(), b"#!/bin/sh\n", &wanted, &mut |line| println!("{line}")).unwrap()
    }

    fn root(&self, info: &ImageInfo) -> PathBuf {
        self.dir.path().join(info.build.to_string()).join("root")
    }
}

/// The packages of the tools that these tests run, with what they depend on: a tenth of a host's
/// directories, which are what takes time.
fn packages() -> HashSet<String> {
    let essential = Command::new("dpkg-query")
        .args(["-W", "-f", "${Essential} ${Priority} ${Package}\n"])
        .output()
        .unwrap();
    let essential = String::from_utf8(essential.stdout).unwrap();
    let essential = essential
        .lines()
        .filter(|line| line.starts_with("yes ") || line.contains(" required "))
        .filter_map(|line| line.split(' ').next_back());
    let depends = Command::new("apt-cache")
        .args(["depends", "--recurse", "--installed", "--no-recommends", "--no-suggests", "--no-conflicts"])
        .args(["--no-breaks", "--no-replaces", "--no-enhances", "python3", "openssl", "curl", "git", "mawk"])
        .args(essential.clone())
        .output()
        .unwrap();
    let depends = String::from_utf8(depends.stdout).unwrap();
    let named = depends.lines().filter(|line| !line.starts_with([' ', '<', '|']));
    named.chain(essential).map(|name| name.split(':').next().unwrap().to_owned()).collect()
}

/// Runs a line with the image as its root and the host's devices, in a mount namespace of its own.
fn inside(root: &Path, line: &str) -> (bool, String) {
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind /dev \"$0/dev\" && exec chroot \"$0\" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin bash -c \"$1\"")
        .arg(root)
        .arg(line)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn base_is_built_once_and_works() {
    let Some(store) = Store::new() else { return };
    let before = std::fs::metadata("/usr/bin/env").unwrap();
    let started = std::time::Instant::now();
    let made = store.ensure();
    println!("built in {:?}: {made:?}", started.elapsed());
    assert!(made.fresh);
    assert_eq!(made.kind, ImageKind::HostPackages);
    let started = std::time::Instant::now();
    let again = store.ensure();
    println!("found in {:?}", started.elapsed());
    assert_eq!(again, ImageInfo { fresh: false, ..made.clone() });

    let root = store.root(&made);
    let mut failed = Vec::new();
    for line in [
        "python3 -c 'import ssl, sqlite3, ctypes, json; assert ssl.create_default_context().get_ca_certs()'",
        "python --version",
        "bash -l -c true",
        "dpkg -l bash | grep -q ^ii",
        "test -L /bin -a -x /bin/sh",
        "awk 'BEGIN { exit 0 }'",
        "id user | grep -q 'uid=1000(user) gid=1000(user).*(sudo)'",
        "test -u /usr/bin/su -a -u /usr/bin/sudo",
        "test \"$(stat -c %a:%U:%G /home/user /home/user/.bashrc /root /tmp | tr '\\n' ' ')\" = \
         '755:user:user 644:user:user 700:root:root 1777:root:root '",
        "test -z \"$(find /usr/local -type f)\"",
        "test -z \"$(cat /etc/machine-id)\" -a -d /proc -a -d /sys -a -d /dev",
        "ldconfig -p | grep -q libc.so.6",
    ] {
        let (ok, text) = inside(&root, line);
        if !ok {
            failed.push(format!("{line}: {text}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    for tool in ["git --version", "curl --version"] {
        if Path::new("/usr/bin").join(tool.split(' ').next().unwrap()).exists() {
            assert!(inside(&root, tool).0, "{tool}");
        }
    }

    println!("checked after {:?}", started.elapsed());
    image::remove(store.fd.as_fd(), made.build).unwrap();
    println!("removed after {:?}", started.elapsed());
    let after = std::fs::metadata("/usr/bin/env").unwrap();
    let seen = |meta: &std::fs::Metadata| {
        (meta.ino(), meta.mode(), meta.uid(), meta.gid(), meta.len(), meta.nlink())
    };
    assert_eq!(seen(&after), seen(&before));
    assert!(matches!(image::resolve(store.fd.as_fd(), made.build), Err(ImageError::Missing(_))));
}

/// A file of the host that is gone with the test.
struct Planted(PathBuf);

impl Planted {
    fn new(path: &str, mode: u32) -> Self {
        std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, "secret").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        Self(path.into())
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn nothing_else_of_the_host_is_seen_and_a_crash_is_recovered_from() {
    let Some(store) = Store::new() else { return };
    let planted = [
        Planted::new("/usr/share/firkin-test-secret", 0o600),
        Planted::new("/usr/share/firkin-test-unowned", 0o644),
        Planted::new("/usr/local/bin/firkin-test-local", 0o755),
        Planted::new("/etc/firkin-test-secret", 0o644),
    ];
    // A worker that was killed half way leaves a draft without a lock.
    let build = fingerprint(b"#!/bin/sh\n").unwrap().build();
    let half = store.dir.path().join(format!(".new-{build}/root/usr/bin"));
    std::fs::create_dir_all(&half).unwrap();
    std::fs::hard_link("/usr/bin/env", half.join("env")).unwrap();

    let made = store.ensure();
    assert_eq!(made.build, build);
    let root = store.root(&made);
    assert!(!half.exists());
    assert!(root.join("usr/bin/env").exists() && root.join("etc/passwd").exists(), "the allowed twins");
    for Planted(path) in &planted {
        assert!(!root.join(path.strip_prefix("/").unwrap()).exists(), "{}", path.display());
    }
    let (_, unreadable) =
        inside(&root, "find /usr -xdev -type f ! -perm -004 | head; find /usr -xdev ! -user root | head");
    assert_eq!(unreadable, "");
    for private in [
        "etc/npmrc",
        "etc/pip.conf",
        "etc/gitconfig",
        "etc/wgetrc",
        "etc/ssh",
        "usr/etc",
        "etc/apt/auth.conf",
    ] {
        assert!(!root.join(private).exists(), "{private}");
    }
    let passwd = std::fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(passwd.lines().all(|line| line.split(':').nth(4) == Some("")), "{passwd}");
}

#[test]
fn other_packages_are_another_build() {
    let host = tempfile::tempdir().unwrap();
    let status = host.path().join("var/lib/dpkg/status");
    std::fs::create_dir_all(status.parent().unwrap()).unwrap();
    let dir = File::open(host.path()).unwrap();
    assert!(matches!(fingerprint_of(dir.as_fd(), b""), Err(ImageError::Host(_))));
    let write = |text: &str| {
        std::fs::write(&status, text).unwrap();
        fingerprint_of(dir.as_fd(), b"").unwrap()
    };
    let text = "Package: a\nStatus: install ok installed\nVersion: 1\nDescription: x\n";
    let first = write(text);
    assert_eq!(first, write(&text.replace(": x", ": y")));
    assert_eq!(first.build(), write(text).build());
    assert_ne!(first, write(&text.replace(": 1", ": 2")));
    assert_ne!(first, write(&text.replace("installed", "half-configured")));
    assert_ne!(first, fingerprint_of(dir.as_fd(), b"sudo").unwrap());
}

#[test]
fn a_host_without_merged_usr_is_told_to_import() {
    let host = tempfile::tempdir().unwrap();
    let dir = File::open(host.path()).unwrap();
    for name in ["bin", "sbin", "lib"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), host.path().join(name)).unwrap();
    }
    assert!(check_merged(dir.as_fd()).is_ok());
    std::fs::remove_file(host.path().join("sbin")).unwrap();
    std::fs::create_dir(host.path().join("sbin")).unwrap();
    let refusal = check_merged(dir.as_fd()).unwrap_err().to_string();
    assert!(refusal.contains("/sbin") && refusal.contains("firkin template import"), "{refusal}");
}

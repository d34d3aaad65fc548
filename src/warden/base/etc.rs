//! All of the image that is not /usr: a curated /etc, homes, an empty /var, mount points.
//!
//! An allow-list: a file is here because this page names it. Texts of our own come first; from
//! the host come only what packages ship and the few generated files named in [`GENERATED`].
//! Never here: network credentials and settings of pip, npm, git, wget, apt and ssh, profiles,
//! private keys, certificates one by one (the CA bundle is, and may hold the host's own CAs).

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType};

use super::{
    dpkg::copy_file,
    packages::{LARGEST, MERGED, Owned, in_usr, unmerged},
    view::{join, open},
};
use crate::warden::image::{
    Doing as _, ImageError, Tree,
    accounts::{Accounts, SandboxUser},
    tree::{Access, read_capped},
};

/// Our own texts: path, content, permissions.
const TEXTS: [(&str, &str, u32); 32] = [
    ("etc/apt/apt.conf.d/90sandbox", include_str!("texts/apt.conf"), 0o644),
    ("etc/bash.bashrc", include_str!("texts/bash.bashrc"), 0o644),
    ("etc/dpkg/dpkg.cfg", include_str!("texts/dpkg.cfg"), 0o644),
    ("etc/environment", "", 0o644),
    ("etc/fstab", "", 0o644),
    ("etc/hostname", "sandbox\n", 0o644),
    ("etc/hosts", include_str!("texts/hosts"), 0o644),
    ("etc/login.defs", include_str!("texts/login.defs"), 0o644),
    ("etc/machine-id", "", 0o444),
    ("etc/nsswitch.conf", include_str!("texts/nsswitch.conf"), 0o644),
    ("etc/profile", include_str!("texts/profile"), 0o644),
    ("etc/resolv.conf", include_str!("texts/resolv.conf"), 0o644),
    ("etc/shells", "/bin/sh\n/bin/bash\n/usr/bin/sh\n/usr/bin/bash\n", 0o644),
    ("etc/subgid", "", 0o644),
    ("etc/subuid", "", 0o644),
    ("etc/sudoers", include_str!("texts/sudoers"), 0o440),
    ("etc/sudoers.d/user", include_str!("texts/sudoers_user"), 0o440),
    ("etc/timezone", "Etc/UTC\n", 0o644),
    ("etc/skel/.bashrc", include_str!("texts/bashrc"), 0o644),
    ("etc/skel/.profile", include_str!("texts/home_profile"), 0o644),
    ("etc/pam.d/chfn", PAM_ROOT, 0o644),
    ("etc/pam.d/chsh", PAM_ROOT, 0o644),
    ("etc/pam.d/common-account", "account required pam_permit.so\n", 0o644),
    ("etc/pam.d/common-auth", "auth required pam_unix.so nullok\n", 0o644),
    ("etc/pam.d/common-password", "password required pam_unix.so obscure\n", 0o644),
    ("etc/pam.d/common-session", "session required pam_permit.so\n", 0o644),
    ("etc/pam.d/common-session-noninteractive", "session required pam_permit.so\n", 0o644),
    ("etc/pam.d/newusers", "@include common-password\n", 0o644),
    ("etc/pam.d/other", PAM_ALL, 0o644),
    ("etc/pam.d/passwd", "@include common-password\n", 0o644),
    ("etc/pam.d/su", PAM_ROOT, 0o644),
    ("etc/pam.d/sudo", PAM_ALL, 0o644),
];
const PAM_ALL: &str =
    "@include common-auth\n@include common-account\n@include common-password\n@include common-session\n";
const PAM_ROOT: &str =
    "auth sufficient pam_rootok.so\n@include common-auth\n@include common-account\n@include common-session\n";

/// What a home has from the start.
pub(in crate::warden) const HOME: [(&str, &str); 2] =
    [(".bashrc", include_str!("texts/bashrc")), (".profile", include_str!("texts/home_profile"))];

/// Links of our own: path and target.
const LINKS: [(&str, &str); 6] = [
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
    ("etc/mtab", "../proc/self/mounts"),
    ("etc/pam.d/su-l", "su"),
    ("etc/ssl/cert.pem", "certs/ca-certificates.crt"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
];

/// Directories: path and permissions.
const DIRS: [(&str, u32); 37] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("etc/apt/auth.conf.d", 0o755),
    ("etc/apt/preferences.d", 0o755),
    ("etc/apt/trusted.gpg.d", 0o755),
    ("etc/dpkg/dpkg.cfg.d", 0o755),
    ("etc/opt", 0o755),
    ("etc/profile.d", 0o755),
    ("etc/ssl/private", 0o700),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/backups", 0o755),
    ("var/cache/apt/archives/partial", 0o755),
    ("var/cache/debconf", 0o755),
    ("var/cache/ldconfig", 0o700),
    ("var/cache/man", 0o755),
    ("var/lib/apt/lists/partial", 0o755),
    ("var/lib/apt/periodic", 0o755),
    ("var/lib/misc", 0o755),
    ("var/lib/pam", 0o755),
    ("var/lib/python", 0o755),
    ("var/lib/sudo", 0o700),
    ("var/lib/systemd", 0o755),
    ("var/local", 0o755),
    ("var/log/apt", 0o755),
    ("var/mail", 0o1777),
    ("var/opt", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

/// The empty /usr/local.
pub(super) const LOCAL: [&str; 9] =
    ["bin", "etc", "games", "include", "lib", "libexec", "sbin", "share", "src"];

/// Files of the host that no package ships as they are, or whose package varies.
const GENERATED: [&str; 4] = [
    "etc/debian_version",
    "etc/lsb-release",
    "etc/ssl/certs/ca-certificates.crt",
    "etc/ssl/certs/java/cacerts",
];

/// Files that packages ship below /etc and tools miss: a name, or a folder's beginning.
const SHIPPED: [&str; 27] = [
    "etc/adduser.conf",
    "etc/ca-certificates.conf",
    "etc/debconf.conf",
    "etc/deluser.conf",
    "etc/dpkg/origins/",
    "etc/ethertypes",
    "etc/fonts/",
    "etc/gai.conf",
    "etc/host.conf",
    "etc/inputrc",
    "etc/java-",
    "etc/ld.so.conf",
    "etc/locale.alias",
    "etc/magic",
    "etc/mime.types",
    "etc/mke2fs.conf",
    "etc/networks",
    "etc/perl/",
    "etc/protocols",
    "etc/python",
    "etc/rpc",
    "etc/services",
    "etc/ssl/openssl.cnf",
    "etc/terminfo/",
    "etc/ucf.conf",
    "etc/vim/",
    "etc/xattr.conf",
];

/// Makes all of it. `exists` says whether the image has a file below /usr.
pub(super) fn curate(
    host: BorrowedFd<'_>,
    tree: &mut Tree,
    owned: &Owned,
    exists: &dyn Fn(&Tree, &[u8]) -> bool,
) -> Result<(), ImageError> {
    ours(tree).doing(|| "write the image's own files".to_owned())?;
    from_host(host, tree, owned, exists).doing(|| "copy from the host's /etc".to_owned())?;
    let user = accounts(host, tree)?;
    home(tree, &user).doing(|| "make the home directories".to_owned())
}

fn ours(tree: &mut Tree) -> std::io::Result<()> {
    for (path, mode) in DIRS {
        tree.dir(path.as_bytes(), Access::root(mode))?;
    }
    for (path, text, mode) in TEXTS {
        tree.write(path.as_bytes(), text.as_bytes(), Access::root(mode))?;
    }
    for (path, target) in LINKS {
        tree.symlink(path.as_bytes(), target.as_bytes())?;
    }
    Ok(())
}

fn from_host(
    host: BorrowedFd<'_>,
    tree: &mut Tree,
    owned: &Owned,
    exists: &dyn Fn(&Tree, &[u8]) -> bool,
) -> std::io::Result<()> {
    for path in GENERATED {
        copy_file(host, tree, path.as_bytes())?;
    }
    let shipped = |path: &&Vec<u8>| SHIPPED.iter().any(|prefix| path.starts_with(prefix.as_bytes()));
    for path in owned.etc.iter().filter(shipped) {
        if !copy_file(host, tree, path)? {
            copy_link(host, tree, path)?;
        }
    }
    // A link of the host's, unless it was made a file there.
    if !copy_file(host, tree, b"etc/os-release")? {
        tree.symlink(b"etc/os-release", b"../usr/lib/os-release")?;
    }
    for name in MERGED {
        let inside = join(b"usr", name.as_bytes());
        if fs::readlinkat(host, name, Vec::new()).is_ok() && exists(tree, &inside) {
            tree.symlink(name.as_bytes(), &inside)?;
        }
    }
    let release = read_capped(host, "usr/lib/os-release", LARGEST).unwrap_or_default();
    if let Some(sources) = sources(&String::from_utf8_lossy(&release)) {
        let path = b"etc/apt/sources.list.d/distribution.sources";
        tree.write(path, sources.as_bytes(), Access::root(0o644))?;
    }
    Ok(())
}

/// A link that a package ships below /etc, if it stays in what the image has.
fn copy_link(host: BorrowedFd<'_>, tree: &mut Tree, path: &[u8]) -> std::io::Result<()> {
    let (folder, name) = crate::warden::image::tree::split(path);
    let Ok(from) = open(host, folder) else { return Ok(()) };
    let is_link = fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
    if !is_link {
        return Ok(());
    }
    let target = fs::readlinkat(from.as_fd(), name, Vec::new())?;
    let target = target.as_bytes();
    if !target.starts_with(b"/") || unmerged(target).is_some_and(|path| in_usr(&path)) {
        tree.symlink(path, target)?;
    }
    Ok(())
}

fn accounts(host: BorrowedFd<'_>, tree: &mut Tree) -> Result<SandboxUser, ImageError> {
    let text = |path: &str| {
        let bytes = read_capped(host, path, LARGEST).doing(|| format!("read the host's {path}"))?;
        Ok::<_, ImageError>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let mut accounts = Accounts::system_of(&text("etc/passwd")?, &text("etc/group")?);
    let user = accounts.complete("/bin/bash");
    accounts.write(tree).doing(|| "write the account files".to_owned())?;
    Ok(user)
}

/// The homes of `user` and root, with the two files that make a shell comfortable.
fn home(tree: &mut Tree, user: &SandboxUser) -> std::io::Result<()> {
    let root = SandboxUser { uid: 0, gid: 0, home: "root".to_owned() };
    for (user, mode) in [(user, 0o755), (&root, 0o700)] {
        let own = |mode| Access { mode, uid: user.uid, gid: user.gid };
        let home = user.home.trim_start_matches('/');
        tree.dir(home.as_bytes(), own(mode))?;
        for (name, text) in HOME {
            tree.write(format!("{home}/{name}").as_bytes(), text.as_bytes(), own(0o644))?;
        }
    }
    Ok(())
}

/// The distribution's own package sources, without the host's mirrors, proxies and logins.
fn sources(release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        let plain = line.trim_matches('"');
        plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-').then_some(plain)
    };
    let (id, suite) = (value("ID")?, value("VERSION_CODENAME")?);
    let entry = |uri: &str, suites: &str, components: &str, keyring: &str| {
        format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {components}\nSigned-By: {keyring}\n")
    };
    match id {
        "debian" => {
            let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
            let main =
                entry("http://deb.debian.org/debian", &format!("{suite} {suite}-updates"), "main", keyring);
            let security =
                entry("http://deb.debian.org/debian-security", &format!("{suite}-security"), "main", keyring);
            Some(format!("{main}\n{security}"))
        }
        "ubuntu" => Some(entry(
            "http://archive.ubuntu.com/ubuntu",
            &format!("{suite} {suite}-updates {suite}-security"),
            "main universe",
            "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        )),
        _ => None,
    }
}

/// Lets the dynamic loader know where the image's libraries are. The host's own cache would tell
/// of libraries that the image does not have. Without one the loader searches, a little slower.
pub(super) fn library_cache(tree: &Tree) {
    use std::{os::fd::AsRawFd as _, process::Command};
    let top = format!("/proc/self/fd/{}", tree.as_fd().as_raw_fd());
    let made = Command::new("/sbin/ldconfig").args(["-X", "-r", "."]).current_dir(top).output();
    let problem = match made {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(problem, "base has no library cache");
}

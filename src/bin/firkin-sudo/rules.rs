//! Who may: /etc/sudoers and /etc/sudoers.d in the simple form that images of ours have.
//!
//! `WHO HOSTS=(USERS:GROUPS) NOPASSWD: ALL`, where WHO is a name, `%group`, `#uid` or `ALL`. A
//! line that says more than this is not understood, and a line not understood permits nothing.
//! As in sudo, the last line that fits decides.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

const FILE: &str = "/etc/sudoers";
const FOLDER: &str = "/etc/sudoers.d";
const LARGEST: u64 = 1 << 20;

/// What the files say of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Unknown,
    WithPassword,
    Free,
}

/// Whether the caller may run commands as the target; the error is what sudo says.
pub(crate) fn check(caller: &str, groups: &[u32], target: &str, group: Option<&str>) -> Result<(), String> {
    let accounts = crate::accounts::Accounts::read().map_err(|error| format!("sudo: {error}"))?;
    let member = |name: &str| accounts.group(name).is_some_and(|gid| groups.contains(&gid));
    let text: String = files().iter().filter_map(|path| read(path)).collect();
    match decide(&text, caller, &member, target, group) {
        Verdict::Free => Ok(()),
        Verdict::WithPassword => Err("sudo: a password is required".to_owned()),
        Verdict::Unknown => Err(format!("{caller} is not in the sudoers file.")),
    }
}

fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // As sudo: no editor's copies, no packages' leftovers.
    files.retain(|path| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            !name.ends_with('~') && !name.contains('.')
        })
    });
    files.sort();
    files.insert(0, PathBuf::from(FILE));
    files
}

/// The text of a file that only root can have written.
fn read(path: &Path) -> Option<String> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.uid() != 0 || meta.mode() & 0o022 != 0 || meta.len() > LARGEST {
        return None;
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    text.push('\n');
    Some(text)
}

fn decide(
    text: &str,
    caller: &str,
    member: &dyn Fn(&str) -> bool,
    target: &str,
    group: Option<&str>,
) -> Verdict {
    let mut verdict = Verdict::Unknown;
    for line in text.lines() {
        if let Some((who, found)) = rule(line, target, group)
            && (who == "ALL" || who == caller || who.strip_prefix('%').is_some_and(member))
        {
            verdict = found;
        }
    }
    verdict
}

/// A line's WHO and what it gives for that target; none for what is no plain rule.
fn rule<'l>(line: &'l str, target: &str, group: Option<&str>) -> Option<(&'l str, Verdict)> {
    let (who, rest) = line.trim().split_once([' ', '\t'])?;
    let (hosts, rest) = rest.split_once('=')?;
    if who.starts_with('#') || who.starts_with("Defaults") || hosts.trim() != "ALL" {
        return None;
    }
    let mut rest = rest.trim();
    let (mut users, mut groups) = ("root", "");
    if let Some(inside) = rest.strip_prefix('(') {
        let (run_as, after) = inside.split_once(')')?;
        (users, groups) = run_as.split_once(':').unwrap_or((run_as, ""));
        rest = after.trim();
    }
    let named = |list: &str, name: &str| list.split(',').any(|one| one.trim() == "ALL" || one.trim() == name);
    if !named(users, target) || group.is_some_and(|group| !named(groups, group)) {
        return None;
    }
    let mut verdict = Verdict::WithPassword;
    while let Some((tag, after)) = rest.split_once(':') {
        match tag.trim() {
            "NOPASSWD" => verdict = Verdict::Free,
            "PASSWD" => verdict = Verdict::WithPassword,
            "SETENV" => {}
            _ => return None,
        }
        rest = after.trim();
    }
    (rest == "ALL").then_some((who, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(text: &str, caller: &str, target: &str) -> Verdict {
        decide(text, caller, &|group| group == "sudo" && caller == "member", target, None)
    }

    #[test]
    fn the_shipped_form_permits_and_others_do_not() {
        let shipped = "Defaults env_reset\nroot ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) NOPASSWD:ALL\n\
                       @includedir /etc/sudoers.d\nuser ALL=(ALL:ALL) NOPASSWD:ALL\n";
        assert_eq!(decided(shipped, "user", "root"), Verdict::Free);
        assert_eq!(decided(shipped, "member", "postgres"), Verdict::Free);
        assert_eq!(decided(shipped, "mallory", "root"), Verdict::Unknown);
        assert_eq!(decided(shipped, "root", "root"), Verdict::WithPassword);
    }

    #[test]
    fn narrower_rules_are_not_widened() {
        assert_eq!(decided("user ALL=(root) NOPASSWD: ALL", "user", "root"), Verdict::Free);
        for line in [
            "user ALL=(postgres) NOPASSWD: ALL",
            "user ALL=(root) NOPASSWD: /usr/bin/id",
            "user ALL=(root) NOPASSWD: ALL, !/bin/su",
            "user other=(root) NOPASSWD: ALL",
            "user ALL=(root) NOEXEC: ALL",
            "#user ALL=(root) NOPASSWD: ALL",
            "user ALL=(root",
        ] {
            assert_eq!(decided(line, "user", "root"), Verdict::Unknown, "{line}");
        }
        let group = |line| decide(line, "user", &|_| false, "user", Some("disk"));
        assert_eq!(group("user ALL=(ALL:ALL) NOPASSWD: ALL"), Verdict::Free);
        assert_eq!(group("user ALL=(ALL) NOPASSWD: ALL"), Verdict::Unknown);
        let revoked = "user ALL=(ALL:ALL) NOPASSWD:ALL\nuser ALL=(ALL:ALL) ALL\n";
        assert_eq!(decided(revoked, "user", "root"), Verdict::WithPassword);
    }
}

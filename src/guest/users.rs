//! Users and groups of the machine, read from `/etc/passwd` and `/etc/group`.
//!
//! A static binary has no NSS, so both files are parsed here. A parsed table is kept until the
//! file behind it changes (inode, size or modification time).

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// One line of `/etc/passwd`, with the groups it is a member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Login name.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// Home directory.
    pub(crate) home: PathBuf,
    /// Login shell.
    pub(crate) shell: String,
    /// Primary and supplementary groups, each once.
    pub(crate) groups: Vec<u32>,
}

/// The tables of users and groups.
#[derive(Debug)]
pub(crate) struct Users {
    passwd: PathBuf,
    group: PathBuf,
    tables: Mutex<Option<(Stamps, Arc<Tables>)>>,
}

/// Says whether a file is still the one that was parsed.
type Stamp = Option<(u64, u64, i64, i64)>;
type Stamps = (Stamp, Stamp);

#[derive(Debug, Default)]
struct Tables {
    by_name: HashMap<String, Arc<User>>,
    user_names: HashMap<u32, String>,
    group_names: HashMap<u32, String>,
}

// === impl Users ===

impl Default for Users {
    fn default() -> Self {
        Self::at(Path::new("/etc"))
    }
}

impl Users {
    /// The users of the `passwd` and `group` in this directory.
    pub(crate) fn at(etc: &Path) -> Self {
        Self { passwd: etc.join("passwd"), group: etc.join("group"), tables: Mutex::new(None) }
    }

    /// The user of this login name.
    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<User>> {
        self.tables().by_name.get(name).cloned()
    }

    /// The login name of a uid, or the number as text.
    pub(crate) fn user_name(&self, uid: u32) -> String {
        self.tables().user_names.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// The name of a gid, or the number as text.
    pub(crate) fn group_name(&self, gid: u32) -> String {
        self.tables().group_names.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }

    fn tables(&self) -> Arc<Tables> {
        let stamps = (stamp(&self.passwd), stamp(&self.group));
        let mut cached = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        match cached.as_ref() {
            Some((seen, tables)) if *seen == stamps => Arc::clone(tables),
            _ => {
                let tables = Arc::new(Tables::read(&self.passwd, &self.group));
                *cached = Some((stamps, Arc::clone(&tables)));
                tables
            }
        }
    }
}

// === impl Tables ===

impl Tables {
    /// A file that is missing or not UTF-8 gives what can be read of it: no user is no crash.
    fn read(passwd: &Path, group: &Path) -> Self {
        let groups = fs::read(group).unwrap_or_default();
        let groups = String::from_utf8_lossy(&groups);
        let mut tables = Self::default();
        let mut members: HashMap<&str, Vec<u32>> = HashMap::new();
        for line in groups.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(_), Some(Ok(gid))) =
                (fields.next(), fields.next(), fields.next().map(str::parse::<u32>))
            else {
                continue;
            };
            tables.group_names.entry(gid).or_insert_with(|| name.to_owned());
            for member in fields.next().unwrap_or_default().split(',').filter(|member| !member.is_empty()) {
                members.entry(member).or_default().push(gid);
            }
        }
        let users = fs::read(passwd).unwrap_or_default();
        for line in String::from_utf8_lossy(&users).lines() {
            let Some(mut user) = parse_user(line) else { continue };
            for gid in members.get(user.name.as_str()).into_iter().flatten() {
                if !user.groups.contains(gid) {
                    user.groups.push(*gid);
                }
            }
            tables.user_names.entry(user.uid).or_insert_with(|| user.name.clone());
            tables.by_name.entry(user.name.clone()).or_insert_with(|| Arc::new(user));
        }
        tables
    }
}

fn parse_user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let gid = gid.parse().ok()?;
    // An empty home is "/" to every login program.
    let home = if home.is_empty() { "/" } else { home };
    Some(User {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid,
        home: PathBuf::from(home),
        shell: (*shell).to_owned(),
        groups: vec![gid],
    })
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        fs::write(
            etc.path().join("passwd"),
            "root:x:0:0:root:/root:/bin/bash\nbroken:x:zero:0::/:\nuser:x:1000:1001:,,,:/home/user:/bin/sh\n",
        )
        .unwrap();
        fs::write(etc.path().join("group"), "root:x:0:\nuser:x:1001:user\nwheel:x:10:root,user\n").unwrap();
        etc
    }

    #[test]
    fn users_carry_their_groups() {
        let etc = etc();
        let users = Users::at(etc.path());
        let user = users.by_name("user").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_path()), (1000, 1001, Path::new("/home/user")));
        assert_eq!(user.groups, [1001, 10]);
        assert_eq!(users.by_name("broken"), None);
        assert_eq!(users.user_name(1000), "user");
        assert_eq!(users.user_name(77), "77");
        assert_eq!(users.group_name(10), "wheel");
    }

    #[test]
    fn a_new_user_is_seen_at_once() {
        let etc = etc();
        let users = Users::at(etc.path());
        assert_eq!(users.by_name("late"), None);
        fs::write(etc.path().join("passwd"), "late:x:5:5::/l:/bin/sh\n").unwrap();
        assert_eq!(users.by_name("late").unwrap().uid, 5);
    }
}

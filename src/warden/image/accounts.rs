//! The account files of an image: texts in, texts out.

use std::io;

use super::tree::{Access, Tree};

/// The largest account file that is read.
const LARGEST: u64 = 1 << 20;
/// User and group that sandboxes run as (contract/templates-and-timing 1).
pub(in crate::warden) const USER: &str = "user";
/// Its ids, where an image has not given them to somebody else.
const USER_ID: u32 = 1000;
/// The group whose members may use `sudo`, and Debian's number for it.
const SUDO: (&str, u32) = ("sudo", 27);
/// Ids from here belong to people, up to those of `nobody` and other special ones.
const PEOPLE: std::ops::Range<u32> = 1000..65_534;
/// Ageing fields of an account without any: an old day of the last change, no end.
const NO_AGEING: &str = "19000:0:99999:7:::";

/// The four account files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::warden) struct Accounts {
    pub(in crate::warden) passwd: String,
    pub(in crate::warden) group: String,
    /// None where an image has no such file: then none is needed.
    pub(in crate::warden) shadow: Option<String>,
    /// As `shadow`.
    pub(in crate::warden) gshadow: Option<String>,
}

/// Where the sandbox's user ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::warden) struct SandboxUser {
    pub(in crate::warden) uid: u32,
    pub(in crate::warden) gid: u32,
    pub(in crate::warden) home: String,
}

// === impl Accounts ===

impl Accounts {
    /// The host's system accounts by number and name only: setgid files and overrides of the
    /// package database go by them. People, names in full, homes and hashes stay behind.
    pub(in crate::warden) fn system_of(passwd: &str, group: &str) -> Self {
        let mut own = Self { shadow: Some(String::new()), gshadow: Some(String::new()), ..Self::default() };
        own.add_user("root", 0, 0, "/root", "/bin/bash");
        own.add_group("root", 0);
        for fields in lines(passwd) {
            let (Some(uid), Some(gid)) = (number(&fields, 2), number(&fields, 3)) else { continue };
            if is_system(&fields, uid) && gid != 0 {
                own.add_user(fields[0], uid, gid, "/nonexistent", "/usr/sbin/nologin");
            }
        }
        for fields in lines(group) {
            if let Some(gid) = number(&fields, 2).filter(|gid| is_system(&fields, *gid)) {
                own.add_group(fields[0], gid);
            }
        }
        own
    }

    /// The account files of a tree; those it does not have are empty, or none.
    pub(in crate::warden) fn read(tree: &Tree) -> io::Result<Self> {
        let text = |path: &str| match tree.read(path, LARGEST) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
        };
        Ok(Self {
            passwd: text("etc/passwd")?.unwrap_or_default(),
            group: text("etc/group")?.unwrap_or_default(),
            shadow: text("etc/shadow")?,
            gshadow: text("etc/gshadow")?,
        })
    }

    /// Writes the files, the secret ones readable for root and the group `shadow` only.
    pub(in crate::warden) fn write(&self, tree: &mut Tree) -> io::Result<()> {
        let shadow = lines(&self.group).find(|fields| fields[0] == "shadow");
        let gid = shadow.and_then(|fields| number(&fields, 2)).unwrap_or(0);
        let secret = Access { mode: 0o640, uid: 0, gid };
        tree.write(b"etc/passwd", self.passwd.as_bytes(), Access::root(0o644))?;
        tree.write(b"etc/group", self.group.as_bytes(), Access::root(0o644))?;
        for (path, text) in [("etc/shadow", &self.shadow), ("etc/gshadow", &self.gshadow)] {
            if let Some(text) = text {
                tree.write(path.as_bytes(), text.as_bytes(), secret)?;
            }
        }
        Ok(())
    }

    /// Adds what sandboxes need where it is missing: the user, its group, membership of `sudo`.
    pub(in crate::warden) fn complete(&mut self, shell: &str) -> SandboxUser {
        if !lines(&self.passwd).any(|fields| fields[0] == "root") {
            self.add_user("root", 0, 0, "/root", shell);
        }
        if !lines(&self.group).any(|fields| fields[0] == "root") {
            self.add_group("root", 0);
        }
        let user = self.sandbox_user(shell);
        if !lines(&self.group).any(|fields| fields[0] == SUDO.0) {
            let gid = free(&self.group, SUDO.1);
            self.add_group(SUDO.0, gid);
        }
        self.group = with_member(&self.group, 3);
        self.gshadow = self.gshadow.as_deref().map(|text| with_member(text, 3));
        user
    }

    fn sandbox_user(&mut self, shell: &str) -> SandboxUser {
        let known = lines(&self.passwd).find(|fields| fields[0] == USER).and_then(|fields| {
            let home = (*fields.get(5)?).to_owned();
            Some(SandboxUser { uid: number(&fields, 2)?, gid: number(&fields, 3)?, home })
        });
        if let Some(user) = known {
            return user;
        }
        let known = lines(&self.group).find(|fields| fields[0] == USER).and_then(|fields| number(&fields, 2));
        let gid = known.unwrap_or_else(|| {
            let gid = free(&self.group, USER_ID);
            self.add_group(USER, gid);
            gid
        });
        let uid = free(&self.passwd, USER_ID);
        let home = format!("/home/{USER}");
        self.add_user(USER, uid, gid, &home, shell);
        SandboxUser { uid, gid, home }
    }

    fn add_user(&mut self, name: &str, uid: u32, gid: u32, home: &str, shell: &str) {
        append(&mut self.passwd, &format!("{name}:x:{uid}:{gid}::{home}:{shell}"));
        if let Some(shadow) = &mut self.shadow
            && !lines(shadow).any(|fields| fields[0] == name)
        {
            append(shadow, &format!("{name}:*:{NO_AGEING}"));
        }
    }

    fn add_group(&mut self, name: &str, gid: u32) {
        append(&mut self.group, &format!("{name}:x:{gid}:"));
        if let Some(gshadow) = &mut self.gshadow
            && !lines(gshadow).any(|fields| fields[0] == name)
        {
            append(gshadow, &format!("{name}:*::"));
        }
    }
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && line.contains(':'))
        .map(|line| line.split(':').collect())
}

fn number(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

fn is_system(fields: &[&str], id: u32) -> bool {
    let name = fields[0];
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    plain && !name.is_empty() && id != 0 && name != USER && (id < PEOPLE.start || id == PEOPLE.end)
}

/// The wanted id, or the next one above 1000 that nobody has.
fn free(text: &str, wanted: u32) -> u32 {
    let taken = |id: u32| lines(text).any(|fields| number(&fields, 2) == Some(id));
    if taken(wanted) { PEOPLE.clone().find(|id| !taken(*id)).unwrap_or(wanted) } else { wanted }
}

/// The text with the user in the last field of the line of group `sudo`.
fn with_member(text: &str, field: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        append(&mut out, line);
        if fields[0] == SUDO.0 && fields.len() == field + 1 {
            let members = fields[field];
            if !members.split(',').any(|member| member == USER) {
                out.pop();
                out.push_str(if members.is_empty() { "" } else { "," });
                out.push_str(USER);
                out.push('\n');
            }
        }
    }
    out
}

fn append(text: &mut String, line: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_people_stay_behind() {
        let passwd = "root:x:0:0:The Boss:/root:/bin/zsh\ntoor:x:0:0::/:/bin/sh\n_apt:x:42:65534:who:/x:/bin/y\n\
                      alice:x:1000:1000:Alice:/home/alice:/bin/bash\nnobody:x:65534:65534::/:/bin/sh\n\
                      far:x:400000:1::/:/bin/sh\nbad name:x:7:7::/:/bin/sh\n";
        let group = "root:x:0:alice\nshadow:x:42:alice\nalice:x:1000:\nsudo:x:27:alice\n";
        let mut own = Accounts::system_of(passwd, group);
        let user = own.complete("/bin/bash");
        assert_eq!(user, SandboxUser { uid: 1000, gid: 1000, home: "/home/user".to_owned() });
        assert_eq!(
            own.passwd,
            "root:x:0:0::/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n\
             nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\nuser:x:1000:1000::/home/user:/bin/bash\n"
        );
        assert_eq!(own.group, "root:x:0:\nshadow:x:42:\nsudo:x:27:user\nuser:x:1000:\n");
        assert!(!own.shadow.unwrap().contains("alice"));
    }

    #[test]
    fn an_image_keeps_its_accounts_and_gets_the_user_beside_them() {
        let image = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/ash\nnode:x:1000:1000::/home/node:/bin/bash\n".to_owned(),
            group: "root:x:0:root\nsudo:x:27:node\nnode:x:1000:".to_owned(),
            ..Accounts::default()
        };
        let mut completed = image.clone();
        let user = completed.complete("/bin/sh");
        assert_eq!((user.uid, user.gid), (1001, 1001));
        assert!(completed.passwd.starts_with(&image.passwd));
        assert!(completed.group.contains("sudo:x:27:node,user\n"), "{}", completed.group);
        assert!(completed.group.contains("node:x:1000:\n"));
        let again = completed.clone().complete("/bin/sh");
        assert_eq!(again, user);
        let mut twice = completed.clone();
        twice.complete("/bin/sh");
        assert_eq!(twice, completed);
    }
}

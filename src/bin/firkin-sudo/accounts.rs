//! Users and groups from /etc, read by ourselves: a static binary has no NSS.

use std::{fs, io};

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// The two account files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

// === impl User ===

impl User {
    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        Some(Self {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    }
}

// === impl Accounts ===

impl Accounts {
    pub(crate) fn read() -> io::Result<Self> {
        let text = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Self { passwd: text("/etc/passwd")?, group: text("/etc/group").unwrap_or_default() })
    }

    pub(crate) fn by_id(&self, uid: u32) -> Option<User> {
        self.users().find(|user| user.uid == uid)
    }

    /// A user by name or by `#` and number; a number without an account is a user as well.
    pub(crate) fn find(&self, name: &str) -> Option<User> {
        let Some(number) = name.strip_prefix('#') else {
            return self.users().find(|user| user.name == name);
        };
        let uid = number.parse().ok()?;
        // The value that means "leave it as it is" to the kernel is nobody's.
        (uid != u32::MAX).then(|| {
            self.by_id(uid).unwrap_or_else(|| User {
                name: name.to_owned(),
                uid,
                gid: uid,
                home: "/".to_owned(),
                shell: "/bin/sh".to_owned(),
            })
        })
    }

    /// A group by name or by `#` and number.
    pub(crate) fn group(&self, name: &str) -> Option<u32> {
        match name.strip_prefix('#') {
            Some(number) => number.parse().ok().filter(|gid| *gid != u32::MAX),
            None => self.groups().find(|group| group.0 == name).map(|group| group.1),
        }
    }

    /// All groups of a user: the first one given, and those that name it.
    pub(crate) fn groups_of(&self, user: &str, first: u32) -> Vec<u32> {
        let mut groups = vec![first];
        for (_, gid, members) in self.groups() {
            if !groups.contains(&gid) && members.split(',').any(|member| member == user) {
                groups.push(gid);
            }
        }
        groups
    }

    fn users(&self) -> impl Iterator<Item = User> {
        self.passwd.lines().filter_map(User::parse)
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members] = fields[..] else { return None };
            Some((name, gid.parse().ok()?, members))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found() {
        let accounts = Accounts {
            passwd: "root:x:0:0::/root:/bin/bash\nbroken\nuser:x:1000:1000::/home/user:\n".to_owned(),
            group: "sudo:x:27:a,user\nuser:x:1000:\nusers:x:100:user\n".to_owned(),
        };
        let user = accounts.find("user").unwrap();
        assert_eq!((user.uid, user.shell.as_str()), (1000, "/bin/sh"));
        assert_eq!(accounts.find("#1000").unwrap(), user);
        assert_eq!(accounts.find("#7").unwrap().uid, 7);
        assert!(accounts.find("#4294967295").is_none() && accounts.find("#-1").is_none());
        assert!(accounts.find("use").is_none());
        assert_eq!(accounts.groups_of("user", 1000), [1000, 27, 100]);
        assert_eq!(accounts.groups_of("us", 5), [5]);
        assert_eq!(accounts.group("sudo"), Some(27));
    }
}

//! What of the caller's environment reaches the command.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use crate::{
    SECURE_PATH,
    accounts::User,
    options::{Keep, Options},
};

/// Kept as they are.
const KEPT: [&str; 9] = [
    "COLORS",
    "DEBIAN_FRONTEND",
    "DISPLAY",
    "HOSTNAME",
    "LS_COLORS",
    "PS1",
    "PS2",
    "XAUTHORITY",
    "XDG_CURRENT_DESKTOP",
];
/// Kept unless they name a path or hold a format: libraries open files by them.
const CHECKED: [&str; 5] = ["COLORTERM", "LANG", "LANGUAGE", "LINGUAS", "TERM"];

/// The command's variables.
pub(crate) fn of_command(
    options: &Options,
    caller: &User,
    target: &User,
    command: &OsStr,
) -> BTreeMap<OsString, OsString> {
    let mut variables: BTreeMap<OsString, OsString> =
        std::env::vars_os().filter(|(name, value)| goes_on(&options.keep, name, value)).collect();
    let mut set = |name: &str, value: &OsStr| variables.insert(name.into(), value.to_owned());
    set("PATH", SECURE_PATH.as_ref());
    for name in ["USER", "LOGNAME"] {
        set(name, target.name.as_ref());
    }
    if options.keep != Keep::All || options.set_home || options.login {
        set("HOME", target.home.as_ref());
    }
    if options.keep != Keep::All || options.login {
        set("SHELL", target.shell.as_ref());
        set("MAIL", format!("/var/mail/{}", target.name).as_ref());
    }
    set("SUDO_COMMAND", command);
    set("SUDO_USER", caller.name.as_ref());
    set("SUDO_UID", caller.uid.to_string().as_ref());
    set("SUDO_GID", caller.gid.to_string().as_ref());
    variables.extend(options.variables.iter().cloned());
    variables
}

fn goes_on(keep: &Keep, name: &OsStr, value: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return *keep == Keep::All };
    let checked = CHECKED.contains(&name) || name.starts_with("LC_");
    match keep {
        Keep::All => true,
        Keep::Named(names) if names.iter().any(|named| named == name) => true,
        _ if checked => !value.as_bytes().iter().any(|byte| b"/%".contains(byte)),
        _ => KEPT.contains(&name),
    }
}

/// A command and its arguments as one line for `sh -c`, each character that means something to
/// a shell escaped.
pub(crate) fn one_line(command: &[OsString]) -> OsString {
    let mut line = Vec::new();
    for (index, argument) in command.iter().enumerate() {
        if index > 0 {
            line.push(b' ');
        }
        for byte in argument.as_bytes() {
            if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"_-$".contains(byte) {
                line.push(b'\\');
            }
            line.push(*byte);
        }
    }
    OsString::from_vec(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_dropped_unless_they_are_harmless_or_asked_for() {
        let goes = |keep: &Keep, name: &str, value: &str| goes_on(keep, name.as_ref(), value.as_ref());
        assert!(goes(&Keep::Usual, "LANG", "C.UTF-8") && goes(&Keep::Usual, "LC_ALL", "C"));
        assert!(!goes(&Keep::Usual, "LANG", "/tmp/evil") && !goes(&Keep::Usual, "TERM", "../x"));
        assert!(!goes(&Keep::Usual, "FOO", "x") && !goes(&Keep::Usual, "LD_PRELOAD", "x"));
        assert!(goes(&Keep::All, "FOO", "x"));
        let named = Keep::Named(vec!["FOO".to_owned()]);
        assert!(goes(&named, "FOO", "x") && !goes(&named, "BAR", "x") && goes(&named, "TERM", "xterm"));
    }

    #[test]
    fn shells_get_one_escaped_line() {
        let line = one_line(&["echo".into(), "a b;c".into(), "$HOME".into()]);
        assert_eq!(line, "echo a\\ b\\;c $HOME");
    }
}

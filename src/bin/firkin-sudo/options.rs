//! The command line, in sudo's own grammar.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _};

/// Printed for `-h`, and when there is nothing to do.
pub(crate) const USAGE: &str = "usage: sudo -h | -K | -k | -V | -v | -l\n\
     usage: sudo [-EHnPS] [-g group] [-u user] [-D directory] [VAR=value] [-i | -s] [command [arg ...]]\n";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Action {
    #[default]
    Run,
    Help,
    Version,
    Validate,
    List,
    Forget,
}

/// Which of the caller's variables go on beside the usual ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Keep {
    #[default]
    Usual,
    All,
    Named(Vec<String>),
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Options {
    pub(crate) action: Action,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) keep: Keep,
    pub(crate) set_home: bool,
    pub(crate) keep_groups: bool,
    pub(crate) login: bool,
    pub(crate) shell: bool,
    pub(crate) dir: Option<OsString>,
    pub(crate) variables: Vec<(OsString, OsString)>,
    pub(crate) command: Vec<OsString>,
}

type Arguments<'a> = &'a mut dyn Iterator<Item = OsString>;

/// Parses what follows the program's name.
pub(crate) fn parse(arguments: Arguments<'_>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut forget = false;
    while let Some(argument) = arguments.next() {
        let Some(text) = argument.to_str() else {
            options.command.push(argument);
            break;
        };
        if text == "--" {
            break;
        } else if let Some(long) = text.strip_prefix("--") {
            options.long(long, arguments, &mut forget)?;
        } else if text.len() > 1 && text.starts_with('-') {
            options.short(&text[1..], arguments, &mut forget)?;
        } else if let Some(variable) = assignment(&argument) {
            options.variables.push(variable);
        } else {
            options.command.push(argument);
            break;
        }
    }
    let rest: Vec<OsString> = arguments.collect();
    let mut rest = rest.into_iter().peekable();
    if options.command.is_empty() {
        while let Some(variable) = rest.peek().and_then(assignment) {
            options.variables.push(variable);
            rest.next();
        }
    }
    options.command.extend(rest);
    if options.login && options.shell {
        return Err("you may not specify both the -i and -s options".to_owned());
    }
    let nothing = options.command.is_empty() && !options.login && !options.shell;
    if options.action == Action::Run && nothing {
        options.action = if forget { Action::Forget } else { return Err(USAGE.trim_end().to_owned()) };
    }
    Ok(options)
}

// === impl Options ===

impl Options {
    fn short(&mut self, letters: &str, arguments: Arguments<'_>, forget: &mut bool) -> Result<(), String> {
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            let mut value = || {
                let here = rest.as_str();
                let given = if here.is_empty() { arguments.next() } else { Some(here.into()) };
                rest = "".chars();
                given.ok_or_else(|| format!("option requires an argument -- '{letter}'"))
            };
            match letter {
                'u' => self.user = Some(text(value()?)?),
                'g' => self.group = Some(text(value()?)?),
                'D' => self.dir = Some(value()?),
                // A prompt and a descriptor limit are for what is not done here.
                'p' | 'C' => drop(value()?),
                _ => self.flag(letter, forget)?,
            }
        }
        Ok(())
    }

    fn flag(&mut self, letter: char, forget: &mut bool) -> Result<(), String> {
        match letter {
            'E' => self.keep = Keep::All,
            'H' => self.set_home = true,
            'P' => self.keep_groups = true,
            'i' => self.login = true,
            's' => self.shell = true,
            'k' => *forget = true,
            'K' => self.action = Action::Forget,
            'v' => self.action = Action::Validate,
            'l' => self.action = Action::List,
            'V' => self.action = Action::Version,
            'h' => self.action = Action::Help,
            // No password is ever asked for, so how to ask makes no difference.
            'n' | 'S' | 'A' | 'B' | 'N' => {}
            other => {
                return Err(format!(
                    "option -{other} is not available in this sandbox's sudo; install the package sudo"
                ));
            }
        }
        Ok(())
    }

    fn long(&mut self, option: &str, arguments: Arguments<'_>, forget: &mut bool) -> Result<(), String> {
        let (name, given) = match option.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (option, None),
        };
        let mut value = || {
            let value = given.clone().or_else(|| arguments.next());
            value.ok_or_else(|| format!("option '--{name}' requires an argument"))
        };
        match name {
            "user" => self.user = Some(text(value()?)?),
            "group" => self.group = Some(text(value()?)?),
            "chdir" => self.dir = Some(value()?),
            "prompt" | "close-from" => drop(value()?),
            "preserve-env" => {
                self.keep = match given {
                    Some(names) => Keep::Named(text(names)?.split(',').map(str::to_owned).collect()),
                    None => Keep::All,
                }
            }
            _ => self.flag(letter_of(name)?, forget)?,
        }
        Ok(())
    }
}

fn letter_of(name: &str) -> Result<char, String> {
    Ok(match name {
        "set-home" => 'H',
        "preserve-groups" => 'P',
        "login" => 'i',
        "shell" => 's',
        "reset-timestamp" => 'k',
        "remove-timestamp" => 'K',
        "validate" => 'v',
        "list" => 'l',
        "version" => 'V',
        "help" => 'h',
        "non-interactive" => 'n',
        "stdin" => 'S',
        "askpass" => 'A',
        "bell" => 'B',
        "no-update" => 'N',
        other => {
            return Err(format!(
                "option --{other} is not available in this sandbox's sudo; install the package sudo"
            ));
        }
    })
}

fn text(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|_| "an option's value is no valid text".to_owned())
}

fn assignment(argument: &OsString) -> Option<(OsString, OsString)> {
    let bytes = argument.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&bytes[..equals], &bytes[equals + 1..]);
    let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let own = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    (plain && !name.is_empty() && !name[0].is_ascii_digit()).then(|| (own(name), own(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        parse(&mut line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let options = parsed("-nu user -E A=1 B= id -u X=2").unwrap();
        assert_eq!(options.user.as_deref(), Some("user"));
        assert_eq!(options.keep, Keep::All);
        assert_eq!(options.variables.len(), 2);
        assert_eq!(options.command, ["id", "-u", "X=2"]);
        let options = parsed("--user=user --preserve-env=A,B -- A=1 ls -l").unwrap();
        assert_eq!(options.keep, Keep::Named(vec!["A".to_owned(), "B".to_owned()]));
        assert_eq!((options.variables.len(), options.command.len()), (1, 2));
        assert_eq!(parsed("-uuser id").unwrap().user.as_deref(), Some("user"));
        assert_eq!(parsed("-k").unwrap().action, Action::Forget);
        assert_eq!(parsed("-k id").unwrap().action, Action::Run);
        assert!(parsed("-i").unwrap().login);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        assert!(parsed("-n id").is_ok());
        for line in ["", "-n", "-u", "-e /etc/passwd", "--chroot=/x id", "-is id"] {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert!(parsed("-e x").unwrap_err().contains("-e"));
    }
}

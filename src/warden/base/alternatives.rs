//! Debian's alternatives: the links `/usr/bin/awk -> /etc/alternatives/awk -> /usr/bin/mawk`.
//!
//! No package owns these links, so they are made here from the database of alternatives. One
//! with any choice from outside the packages is left out whole.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs;

use super::{
    packages::{ADMIN, LARGEST, in_usr, unmerged},
    view::open,
};
use crate::warden::image::{
    Doing as _, ImageError, Tree,
    tree::{Access, names, read_capped},
};

const CHOSEN: &str = "etc/alternatives";

/// One file of the database.
#[derive(Debug, PartialEq, Eq)]
struct Alternative {
    /// Each name below /etc/alternatives with the path of the link to it.
    links: Vec<(String, String)>,
    choices: Vec<String>,
}

/// Makes the links in the image. `exists` says whether the image has a file.
pub(super) fn copy(
    host: BorrowedFd<'_>,
    tree: &mut Tree,
    links_in_usr: bool,
    exists: &dyn Fn(&Tree, &[u8]) -> bool,
) -> Result<(), ImageError> {
    let admin = format!("{ADMIN}/alternatives");
    let (Ok(database), Ok(chosen)) = (open(host, admin.as_bytes()), open(host, CHOSEN.as_bytes())) else {
        return Ok(());
    };
    for file in names(database.as_fd()).doing(|| format!("list /{admin}"))? {
        let Ok(name) = std::str::from_utf8(&file) else { continue };
        let text = read_capped(database.as_fd(), name, LARGEST).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let Some(alternative) = parse(name, &text).filter(Alternative::is_packaged) else { continue };
        let made = install(chosen.as_fd(), tree, &alternative, links_in_usr, exists);
        made.doing(|| format!("make the links of alternative {name}"))?;
        let path = format!("{admin}/{name}");
        tree.write(path.as_bytes(), text.as_bytes(), Access::root(0o644))
            .doing(|| format!("write /{path}"))?;
    }
    Ok(())
}

fn install(
    chosen: BorrowedFd<'_>,
    tree: &mut Tree,
    alternative: &Alternative,
    links_in_usr: bool,
    exists: &dyn Fn(&Tree, &[u8]) -> bool,
) -> std::io::Result<()> {
    for (name, link) in &alternative.links {
        let Ok(target) = fs::readlinkat(chosen, name.as_str(), Vec::new()) else { continue };
        let Some(place) = unmerged(target.as_bytes()).filter(|place| in_usr(place)) else { continue };
        if !exists(tree, &place) {
            continue;
        }
        tree.symlink(format!("{CHOSEN}/{name}").as_bytes(), target.as_bytes())?;
        if let Some(link) = unmerged(link.as_bytes()).filter(|link| links_in_usr && in_usr(link))
            && tree.stat(&link).is_err()
        {
            tree.symlink(&link, format!("/{CHOSEN}/{name}").as_bytes())?;
        }
    }
    Ok(())
}

/// The format: mode; the master's link; pairs of a slave's name and link; an empty line; then
/// for each choice its path, its priority, and a path (or an empty line) for each slave. The
/// master's name is that of the file.
fn parse(name: &str, text: &str) -> Option<Alternative> {
    let mut rest = text.lines();
    rest.next()?;
    let master = rest.next()?;
    let mut links = vec![(name.to_owned(), master.to_owned())];
    loop {
        match rest.next()? {
            "" => break,
            slave => links.push((slave.to_owned(), rest.next()?.to_owned())),
        }
    }
    let mut choices = Vec::new();
    while let Some(choice) = rest.next().filter(|line| !line.is_empty()) {
        choices.push(choice.to_owned());
        rest.next()?;
        for _ in 1..links.len() {
            choices.extend(rest.next().filter(|line| !line.is_empty()).map(str::to_owned));
        }
    }
    Some(Alternative { links, choices })
}

// === impl Alternative ===

impl Alternative {
    fn is_packaged(&self) -> bool {
        let inside = |path: &String| unmerged(path.as_bytes()).is_some_and(|path| in_usr(&path));
        self.choices.iter().all(inside)
            && self.links.iter().all(|(name, _)| !name.contains('/') && name != "." && name != "..")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JAVA: &str = "auto\n/usr/bin/java\njava.1.gz\n/usr/share/man/man1/java.1.gz\n\n\
                        /usr/lib/jvm/17/bin/java\n1711\n/usr/lib/jvm/17/man/java.1.gz\n\
                        /usr/lib/jvm/8/bin/java\n1081\n\n\n";

    #[test]
    fn the_database_of_alternatives_is_read() {
        let java = parse("java", JAVA).unwrap();
        assert_eq!(java.links.len(), 2);
        assert_eq!(java.choices.len(), 3);
        assert!(java.is_packaged());
        let local = parse("java", &JAVA.replace("/usr/lib/jvm/8", "/usr/local/jvm")).unwrap();
        assert!(!local.is_packaged());
    }
}

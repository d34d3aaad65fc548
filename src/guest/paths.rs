//! How a path in a request becomes a path in the machine (contract/sandbox 4, "Path rule").

use std::path::{Component, Path, PathBuf};

use crate::guest::users::User;

/// Why a path cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// `~name`: homes of other users are not looked up.
    #[error("cannot expand user-specific home dir: '{0}'; use ~ or ~/path, or an absolute path")]
    OtherHome(String),
}

/// Empty: the default workdir, else home. `~` and `~/x`: home. Relative: joined to home and
/// cleaned, whatever the workdir is. Absolute: verbatim, not even cleaned.
pub(crate) fn resolve(path: &str, user: &User, default_workdir: Option<&str>) -> Result<PathBuf, PathError> {
    if path.is_empty() {
        return Ok(default_workdir
            .filter(|workdir| !workdir.is_empty())
            .map_or_else(|| user.home.clone(), PathBuf::from));
    }
    if let Some(rest) = path.strip_prefix('~') {
        return if rest.is_empty() || rest.starts_with('/') {
            Ok(clean(&user.home.join(rest.trim_start_matches('/'))))
        } else {
            Err(PathError::OtherHome(path.to_owned()))
        };
    }
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Ok(clean(&user.home.join(path)))
}

/// Go's `filepath.Clean` for an absolute path: by text, without following links.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_resolve_by_the_rule() {
        let user = User {
            name: "user".to_owned(),
            uid: 1,
            gid: 1,
            home: PathBuf::from("/home/user"),
            shell: String::new(),
            groups: vec![],
        };
        let resolved = |path, workdir| resolve(path, &user, workdir);
        for (path, workdir, want) in [
            ("", None, "/home/user"),
            ("", Some(""), "/home/user"),
            ("", Some("/work"), "/work"),
            ("~", Some("/work"), "/home/user"),
            ("~/x/../y", None, "/home/user/y"),
            ("x//y/.", Some("/work"), "/home/user/x/y"),
            ("../../../..", None, "/"),
            ("/a/../b", None, "/a/../b"),
        ] {
            assert_eq!(resolved(path, workdir), Ok(PathBuf::from(want)), "{path}");
        }
        assert_eq!(resolved("~root/x", None), Err(PathError::OtherHome("~root/x".to_owned())));
    }
}

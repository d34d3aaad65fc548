//! Every named step is taken by the code, and a test dies at it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The names in the list of `src/failpoint.rs`.
fn listed() -> BTreeSet<String> {
    let code = fs::read_to_string(root().join("src/failpoint.rs")).unwrap();
    let (_, list) = code.split_once("enum Step {").unwrap();
    let (list, _) = list.split_once("\n}").unwrap();
    let name = |line: &str| {
        let name = line.trim().strip_suffix(',')?;
        name.chars().all(char::is_alphanumeric).then(|| name.to_owned())
    };
    list.lines().filter_map(name).collect()
}

/// Words after `before` in all files below a directory but the list itself.
fn words(directory: &Path, before: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            words(&path, before, found);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("failpoint.rs")
        {
            add(&fs::read_to_string(path).unwrap(), before, found);
        }
    }
}

fn add(text: &str, before: &str, found: &mut BTreeSet<String>) {
    for (at, _) in text.match_indices(before) {
        let word: String = text[at + before.len()..].chars().take_while(|c| c.is_alphanumeric()).collect();
        found.insert(word);
    }
}

#[test]
fn every_step_of_the_list_is_taken_by_the_code_and_died_at_by_a_test() {
    let listed = listed();
    assert!(listed.len() > 40, "{listed:?}");
    let mut taken = BTreeSet::new();
    words(&root().join("src"), "Step::", &mut taken);
    let untaken: Vec<_> = listed.difference(&taken).collect();
    assert!(untaken.is_empty(), "no code takes {untaken:?}");
    let suite = fs::read_to_string(root().join("tests/sdk/python/test_failpoints.py")).unwrap();
    let mut died = BTreeSet::new();
    add(&suite, "\"", &mut died);
    let survived: Vec<_> = listed.difference(&died).collect();
    assert!(survived.is_empty(), "no test dies at {survived:?}");
}

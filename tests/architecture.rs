//! Reads the `use` lines of the crate and holds the table of ARCHITECTURE.md: what may import what.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A room of the crate and what it may import from it. `*` as a room's last letter means "and below".
struct Rule {
    room: &'static str,
    may: &'static [&'static str],
}

const WORDS: &[&str] = &["body", "hold", "id", "clock", "error", "sandbox", "wire"];

/// First match wins, so the narrower room stands first.
const RULES: &[Rule] = &[
    Rule { room: "body", may: WORDS },
    Rule { room: "failpoint", may: &[] },
    Rule { room: "hold", may: WORDS },
    Rule { room: "id", may: WORDS },
    Rule { room: "clock", may: WORDS },
    Rule { room: "error", may: WORDS },
    Rule { room: "sandbox", may: WORDS },
    Rule { room: "wire", may: WORDS },
    Rule {
        room: "runtime::engine",
        may: &["body", "id", "clock", "error", "sandbox", "wire", "runtime::link"],
    },
    Rule { room: "runtime::link", may: WORDS },
    Rule { room: "store", may: &["body", "id", "clock", "error", "sandbox", "wire", "store"] },
    Rule {
        room: "runtime::namespace",
        may: &[
            "body",
            "failpoint",
            "id",
            "clock",
            "error",
            "sandbox",
            "wire",
            "runtime::engine",
            "runtime::link",
            "runtime::namespace",
            "runtime::contract",
        ],
    },
    Rule {
        room: "runtime::fake",
        may: &[
            "body",
            "id",
            "clock",
            "error",
            "sandbox",
            "wire",
            "runtime::engine",
            "runtime::link",
            "runtime::mux",
            "runtime::fake",
            "runtime::contract",
        ],
    },
    Rule {
        room: "vz",
        may: &["body", "id", "clock", "error", "sandbox", "wire", "runtime::engine", "runtime::link", "vz"],
    },
    Rule {
        room: "runtime",
        may: &["body", "failpoint", "id", "clock", "error", "sandbox", "wire", "store", "runtime"],
    },
    Rule {
        room: "proxy",
        may: &[
            "body",
            "hold",
            "id",
            "clock",
            "error",
            "sandbox",
            "wire",
            "runtime::registry",
            "runtime::link",
            "proxy",
        ],
    },
    Rule {
        room: "routes",
        may: &[
            "body",
            "failpoint",
            "hold",
            "id",
            "clock",
            "error",
            "sandbox",
            "wire",
            "store",
            "runtime::registry",
            "runtime::engine",
            "routes",
        ],
    },
    Rule { room: "guest", may: &["body", "id", "clock", "error", "sandbox", "wire", "guest"] },
    Rule { room: "warden", may: &["body", "failpoint", "id", "clock", "error", "sandbox", "wire", "warden"] },
    Rule { room: "config", may: &["body", "id", "clock", "error", "sandbox", "wire", "config"] },
    Rule {
        room: "telemetry",
        may: &["body", "id", "clock", "error", "sandbox", "wire", "telemetry", "config"],
    },
];

/// Outside crates that belong to few rooms.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["routes", "guest", "app", "proxy"]),
    ("rusqlite", &["store::sqlite"]),
    ("connectrpc", &["wire::rpc", "guest"]),
    ("buffa", &["wire::rpc", "guest"]),
    ("utoipa", &["routes"]),
    ("clap", &["cli"]),
    ("objc2_virtualization", &["vz"]),
    ("seccompiler", &["warden"]),
    ("rustls", &["proxy", "app", "cli"]),
    ("tokio_tungstenite", &["cli"]),
    ("rcgen", &["app"]),
    ("tower", &["proxy", "routes", "guest", "app"]),
    ("anyhow", &["cli", "app"]),
];

#[test]
fn every_import_keeps_the_direction_of_the_layers() {
    let mut broken = Vec::new();
    for (room, path, code) in modules() {
        let Some(rule) = RULES.iter().find(|rule| within(&room, rule.room)) else { continue };
        for (number, import) in crate_imports(&code) {
            let own_family = within(&import, &room);
            if !own_family && !rule.may.iter().any(|allowed| within(&import, allowed)) {
                broken.push(format!("{}:{number}: `{room}` imports `{import}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "imports against the table in ARCHITECTURE.md:\n{}", broken.join("\n"));
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for (room, path, code) in modules() {
        if room.is_empty() {
            continue;
        }
        for (number, line) in code.lines().enumerate() {
            for (name, rooms) in CRATES {
                let used = line.trim_start().starts_with(&format!("use {name}::"))
                    || line.contains(&format!(" {name}::"))
                    || line.contains(&format!("({name}::"));
                let comment = line.trim_start().starts_with("//");
                if used && !comment && !rooms.iter().any(|allowed| within(&room, allowed)) {
                    broken.push(format!("{}:{}: `{room}` uses `{name}`", path.display(), number + 1));
                }
            }
        }
    }
    assert!(broken.is_empty(), "crates outside their rooms:\n{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    for (_, path, code) in modules() {
        assert!(code.starts_with("//!"), "{}: the first line says what the file is for", path.display());
        let lines = code.lines().count();
        assert!(lines <= 600, "{}: {lines} lines; no file is over 600", path.display());
    }
}

#[test]
fn the_reader_of_imports_sees_nested_ones() {
    let code = "use crate::{\n    id::SandboxId,\n    runtime::{engine::Engine, link},\n};\nuse crate::store::Store;\n";
    let found: Vec<String> = crate_imports(code).into_iter().map(|(_, import)| import).collect();
    assert_eq!(found, ["id::SandboxId", "runtime::engine::Engine", "runtime::link", "store::Store"]);
}

/// Every file below `src/` with its module path and its code, test modules cut off.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).expect("below src");
                if relative.starts_with("bin") || relative.ends_with("tests.rs") {
                    continue;
                }
                let module = room_of(relative);
                let code = fs::read_to_string(&path).expect("a source file");
                let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
                found.push((module, relative.to_owned(), code));
            }
        }
    }
    assert!(found.len() > 10, "the source was found");
    found
}

fn room_of(relative: &Path) -> String {
    let text = relative.with_extension("").display().to_string().replace('/', "::");
    let text = text.strip_suffix("::mod").unwrap_or(&text).to_owned();
    if matches!(text.as_str(), "lib" | "main") { String::new() } else { text }
}

/// Whether a module path is that of a room or below it.
fn within(path: &str, room: &str) -> bool {
    path == room || path.strip_prefix(room).is_some_and(|rest| rest.starts_with("::"))
}

/// The paths behind every `use crate::`, braces spelled out, with the line each `use` begins on.
fn crate_imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut rest = code;
    let mut line = 1;
    while let Some(at) = rest.find("use crate::") {
        line += rest[..at].matches('\n').count();
        let statement = &rest[at + "use crate::".len()..];
        let end = statement.find(';').unwrap_or(statement.len());
        let tree: String = statement[..end].chars().filter(|c| !c.is_whitespace()).collect();
        spell_out("", &tree, &mut |path| found.push((line, path)));
        line += rest[at..at + "use crate::".len() + end].matches('\n').count();
        rest = &statement[end..];
    }
    found
}

fn spell_out(prefix: &str, tree: &str, found: &mut impl FnMut(String)) {
    match tree.find('{') {
        None => found(format!("{prefix}{}", tree.trim_end_matches("::self"))),
        Some(open) => {
            let inner = tree[open + 1..].strip_suffix('}').unwrap_or(&tree[open + 1..]);
            let prefix = format!("{prefix}{}", &tree[..open]);
            let (mut depth, mut start) = (0, 0);
            for (index, character) in inner.char_indices() {
                match character {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        if start < index {
                            spell_out(&prefix, &inner[start..index], found);
                        }
                        start = index + 1;
                    }
                    _ => {}
                }
            }
            if start < inner.len() {
                spell_out(&prefix, &inner[start..], found);
            }
        }
    }
}

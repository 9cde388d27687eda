//! The house: who may use whom. A module uses only modules in earlier rows.

use std::collections::BTreeMap;
use std::path::Path;

const ROWS: &[&[&str]] = &[
    &["clock"],
    &["identity", "connection"],
    &["crypto", "telemetry", "http"],
    &["client", "store", "route", "authorize"],
    &["tls", "session", "assertion", "proxy"],
    &["authenticate"],
    &["config"],
    &["snapshot"],
    &["pages"],
    &["ext_auth"],
    &["pipeline"],
    &["listener"],
    &["runtime", "admin", "demo"],
    &["cli"],
    &["main"],
];

fn row(module: &str) -> usize {
    ROWS.iter()
        .position(|row| row.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` has no row in the house"))
}

fn files(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect()
}

#[test]
fn a_module_uses_only_modules_in_earlier_rows() {
    let mut edges = 0;
    for (name, text) in sources() {
        let module = name.split(['/', '.']).next().unwrap().to_owned();
        if module == "lib" {
            continue;
        }
        let prefix = if module == "main" { "portcullis::" } else { "crate::" };
        for (at, _) in text.match_indices(prefix) {
            let rest = &text[at + prefix.len()..];
            let used: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if used.is_empty() || used == module {
                continue;
            }
            edges += 1;
            assert!(
                row(&used) < row(&module),
                "src/{name} uses `{used}`, which is not in an earlier row than `{module}`"
            );
        }
        assert!(
            !text.contains("use crate::{"),
            "src/{name}: one `use` a module, so that this test can read it"
        );
    }
    assert!(edges > 100, "only {edges} edges were found; is the test still reading them?");
}

#[test]
fn a_permit_is_made_only_in_authorize() {
    for (name, text) in sources() {
        let made = text.contains("Permit {") && !text.contains("pub struct Permit {");
        let elsewhere = made && !name.starts_with("authorize/");
        assert!(!elsewhere, "src/{name} makes a Permit");
    }
}

#[test]
fn files_keep_to_one_purpose() {
    let mut lengths: Vec<_> =
        sources().into_iter().map(|(name, text)| (text.lines().count(), name)).collect();
    lengths.sort();
    let longest = lengths.last().unwrap();
    assert!(longest.0 <= 800, "{longest:?}");
    for (name, text) in sources() {
        assert!(text.starts_with("//!"), "src/{name} does not begin with its documentation");
        assert!(!name.ends_with("mod.rs"), "src/{name}");
    }
}

//! Every configuration in Pomerium's public documentation either loads, or is refused by the name of what is
//! not there yet; it is never misread. `pomerium/` holds them as published, each fragment put into the smallest
//! configuration around it; `pomerium/expected.txt` says what becomes of each, and is reviewed when it changes:
//!
//! ```sh
//! BLESS=1 cargo test --test it pomerium && git diff tests/it/pomerium/expected.txt
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::rig::BINARY;

#[test]
fn every_published_configuration_loads_or_is_refused_by_name() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/pomerium");
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("expected.txt"))
        .collect();
    files.sort();
    assert!(files.len() > 200, "{}", files.len());
    let mut found = String::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        // Its own directory is where relative files are looked for: there are none.
        let done = Command::new(BINARY)
            .args(["check", "-c", file.to_str().unwrap()])
            .current_dir(&directory)
            .env_clear()
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap().replace(&format!("{}:", file.display()), "");
        let outcome = match done.status.code() {
            Some(0) => "loads",
            Some(2) => "refused",
            other => panic!("{name}: {other:?} {said}"),
        };
        writeln!(found, "{name}: {outcome}").unwrap();
        for line in said.lines().filter(|line| !line.ends_with(" found")) {
            writeln!(found, "    {line}").unwrap();
        }
    }
    let expected = directory.join("expected.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&expected, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&expected).unwrap();
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

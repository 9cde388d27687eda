//! `portcullis sessions` against a running service, and the control socket.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::rig::{BINARY, Rig, Setup};

struct Done {
    code: i32,
    out: String,
    err: String,
}

fn portcullis(rig: &Rig, words: &[&str]) -> Done {
    let config = rig.state().join("config.yaml");
    let done = Command::new(BINARY).args(words).arg("-c").arg(config).env_clear().output().unwrap();
    Done {
        code: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn json_of(rig: &Rig, words: &[&str]) -> Value {
    let done = portcullis(rig, &[words, &["--json"]].concat());
    serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {} {}", done.out, done.err))
}

#[test]
fn an_administrator_sees_and_ends_the_sessions_of_a_running_service() {
    let rig = Rig::start();
    let done = portcullis(&rig, &["sessions", "list"]);
    assert_eq!((done.code, done.out.as_str()), (0, "There are no sessions.\n"), "{}", done.err);
    let jane = rig.signed_in();
    let again = rig.signed_in();
    rig.provider.set(|state| {
        state.claims = json!({ "sub": "bob-1", "email": "Bob@example.com", "groups": ["ops"] });
    });
    let bob = rig.signed_in();
    let alive = |browser: &crate::browser::Browser| {
        rig.server.get("app.localhost", "/", &browser.session("app.localhost")).status == 200
    };

    let done = portcullis(&rig, &["sessions", "list"]);
    assert!(done.out.contains("jane@example.com") && done.out.contains("bob-1"), "{}", done.out);
    assert_eq!(done.out.lines().count(), 4, "{}", done.out);
    let listed = json_of(&rig, &["sessions", "list", "--user", "bob@example.com"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1, "an address in any case: {listed}");
    let id = listed["sessions"][0]["session"].as_str().unwrap();
    // The same name as in the log.
    let named = rig.server.records().into_iter().filter(|record| record["session-id"] == *id).count();
    assert!(named > 0);
    let shown = json_of(&rig, &["sessions", "show", id]);
    assert_eq!((&shown["user"], &shown["groups"]), (&json!("bob-1"), &json!(["ops"])), "{shown}");
    assert_eq!(shown["hosts"], json!(["app.localhost"]), "where it was used");
    let text = portcullis(&rig, &["sessions", "show", id]).out;
    assert!(text.contains("user: bob-1") && text.contains("  email: Bob@example.com"), "{text}");
    // Nothing that opens anything.
    let cookie = bob.cookies["app.localhost"]["__Host-_pomerium"].clone();
    let shown = shown.to_string();
    for told in [&text, &shown] {
        assert!(!told.contains(&cookie) && !told.contains("refresh"), "{told}");
        assert_eq!(rig.provider.token_within(told), None, "{told}");
    }

    let done = portcullis(&rig, &["sessions", "revoke", id]);
    assert_eq!((done.code, done.out.as_str()), (0, "1 ended\n"), "{}", done.err);
    assert!(!alive(&bob) && alive(&jane));
    let done = portcullis(&rig, &["sessions", "revoke", id]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("there is no such session"), "{}", done.err);
    let done = portcullis(&rig, &["sessions", "revoke", "--user", "jane-1"]);
    assert_eq!((done.code, done.out.as_str()), (0, "2 ended\n"), "{}", done.err);
    assert!(!alive(&jane) && !alive(&again));
    assert_eq!(portcullis(&rig, &["sessions", "revoke", "--user", "jane-1"]).code, 1);
    let last = rig.signed_in();
    assert_eq!(portcullis(&rig, &["sessions", "revoke", "--all"]).out, "1 ended\n");
    assert!(!alive(&last));
    assert_eq!(portcullis(&rig, &["sessions", "revoke"]).code, 2);
    assert_eq!(portcullis(&rig, &["sessions", "show", "what"]).code, 1);
}

#[test]
fn sessions_that_are_not_in_use_are_listed_by_what_stands_beside_their_seal() {
    let mut rig = Rig::start();
    rig.signed_in();
    rig.kill_and_restart(&Setup::default());
    let listed = json_of(&rig, &["sessions", "list"]);
    let session = &listed["sessions"][0];
    assert_eq!((&session["in_use_here"], &session["email"]), (&json!(false), &Value::Null), "{listed}");
    // They are found by whose they are all the same.
    let found = json_of(&rig, &["sessions", "list", "--user", "jane@example.com"]);
    assert_eq!(found["sessions"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(json_of(&rig, &["sessions", "revoke", "--user", "jane@example.com"]), json!({ "revoked": 1 }));
}

#[test]
fn the_control_socket_is_the_owners_and_goes_with_the_process() {
    let mut rig = Rig::start();
    let socket = rig.state().join("control.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A second process does not take it over, and says so.
    let text = std::fs::read_to_string(rig.state().join("config.yaml")).unwrap();
    let second =
        crate::rig::Server::start(&format!("databroker_storage_type: memory\n{text}"), rig.state(), &[]);
    assert!(second.raw_log().contains("another process answers there"));
    drop(second);
    assert!(socket.exists());
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(std::time::Duration::from_secs(10)), Some(0));
    assert!(!socket.exists());
    let done = portcullis(&rig, &["sessions", "list"]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("no running service answers at"), "{}", done.err);
}

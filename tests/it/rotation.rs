//! Secrets are replaced, and nobody is signed out.

use std::process::Command;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::rig::{BINARY, Rig, Setup};

fn keys(rig: &Rig, words: &[&str]) -> (i32, String, String) {
    let config = rig.state().join("config.yaml");
    let done =
        Command::new(BINARY).arg("keys").args(words).arg("-c").arg(config).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

fn made(kind: &str) -> String {
    let done = Command::new(BINARY).args(["keys", "new", kind]).output().unwrap();
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap()
}

/// The ids of the published keys.
fn published(rig: &Rig) -> Vec<String> {
    let jwks = rig.server.get("app.localhost", "/.well-known/pomerium/jwks.json", "").json();
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

/// The id of the key that signs, by the assertion that the upstream saw last.
fn signs(rig: &Rig) -> String {
    let token = rig.upstream.header("x-pomerium-jwt-assertion").pop().unwrap();
    let header = portcullis::crypto::decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

fn in_files() -> (Setup, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("secret"), made("shared-secret")).unwrap();
    std::fs::write(path("key"), made("signing-key")).unwrap();
    let settings = format!("shared_secret_file: {}\nsigning_key_file: {}", path("secret"), path("key"));
    (Setup { settings, ..Setup::default() }, directory)
}

#[test]
fn a_rotation_signs_nobody_out_and_breaks_no_sign_in_under_way() {
    let (setup, files) = in_files();
    let mut rig = Rig::with(setup.clone());
    let mut person = rig.signed_in();
    let first = signs(&rig);
    assert_eq!(published(&rig), std::slice::from_ref(&first));
    let mut under_way = rig.browser();
    let callback = under_way.until("http://app.localhost/deep", "/oauth2/callback");

    let (code, out, err) = keys(&rig, &["rotate"]);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains("holds 2 now, of which the first makes"), "{err}");
    rig.kill_and_restart(&setup);
    person.balanced = vec![rig.server.address];
    under_way.balanced = vec![rig.server.address];

    assert_eq!(person.get("http://app.localhost/").status, 200);
    let second = signs(&rig);
    assert_ne!(first, second);
    assert_eq!(published(&rig), [second.clone(), first], "what the first one signed is still verified");
    let page = under_way.open(&callback);
    assert_eq!(page.status, 200, "{page:?}");
    // The provider finds the session that began before.
    let claims = json!({
        "iss": rig.provider.issuer(), "aud": "client", "iat": now(), "exp": now() + 60, "jti": "j", "sub": "jane-1",
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} }
    });
    let token = rig.provider.state.lock().unwrap().signer.sign(&claims).unwrap();
    let body = format!("logout_token={token}");
    let answer = rig.server.send(format!(
        "POST /.pomerium/backchannel_logout HTTP/1.1\r\nHost: authenticate.localhost\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let cookie = format!("Accept: application/json\r\n{}", person.session("app.localhost"));
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 401);

    let (code, _, err) = keys(&rig, &["rotate", "--retire"]);
    assert_eq!(code, 0, "{err}");
    rig.kill_and_restart(&setup);
    assert_eq!(published(&rig), [second]);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(files.path().join("secret")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o644, "the file keeps its mode");
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_key_may_be_announced_before_it_is_used() {
    let (setup, _files) = in_files();
    let mut rig = Rig::with(setup.clone());
    rig.signed_in();
    let first = signs(&rig);
    assert_eq!(keys(&rig, &["rotate", "signing-key", "--announce"]).0, 0);
    rig.kill_and_restart(&setup);
    rig.signed_in();
    assert_eq!(signs(&rig), first);
    let both = published(&rig);
    assert_eq!(both.len(), 2);
    assert_eq!(keys(&rig, &["rotate", "signing-key", "--use"]).0, 0);
    rig.kill_and_restart(&setup);
    rig.signed_in();
    assert_eq!(signs(&rig), both[1]);
    assert_eq!(published(&rig).len(), 2);
}

#[test]
fn what_stands_in_the_configuration_is_printed_and_what_was_made_by_itself_is_replaced() {
    let secret = made("shared-secret").trim().to_owned();
    let setup = Setup { settings: format!("shared_secret: {secret}"), ..Setup::default() };
    let mut rig = Rig::with(setup);
    let (code, out, err) = keys(&rig, &["rotate"]);
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[2]),
        (3, "shared_secret:", format!("  - {secret}").as_str()),
        "{out}"
    );
    // As it was printed, it loads.
    rig.kill_and_restart(&Setup { settings: out.clone(), ..Setup::default() });
    assert_eq!(published(&rig).len(), 2, "the keys that follow from the secrets");
    let (code, _, err) = keys(&rig, &["rotate", "signing-key"]);
    assert_eq!(code, 1);
    assert!(err.contains("it follows from shared_secret"), "{err}");

    let mut rig = Rig::start();
    let mut person = rig.signed_in();
    assert_eq!(std::fs::read(rig.state().join("secret")).unwrap().len(), 32);
    assert_eq!(keys(&rig, &["rotate"]).0, 0);
    assert_eq!(std::fs::read(rig.state().join("secret")).unwrap().len(), 64);
    rig.kill_and_restart(&Setup::default());
    person.balanced = vec![rig.server.address];
    assert_eq!(person.get("http://app.localhost/").status, 200);
    assert_eq!(published(&rig).len(), 2);
}

#[test]
fn the_next_client_secret_is_tried_when_the_provider_does_not_know_the_first() {
    let setup =
        Setup { settings: "idp_client_secret: [the-next-secret, the-old-secret]".into(), ..Setup::default() };
    let rig = Rig::prepared(setup, |provider| {
        provider.set(|state| {
            state.check_token_call = Some(Box::new(|call| {
                let old = base64::engine::general_purpose::STANDARD.encode("client:the-old-secret");
                call.head.contains(&old)
                    || call.form.get("client_secret").is_some_and(|own| own == "the-old-secret")
            }));
        });
    });
    rig.signed_in();
    rig.provider.set(|state| {
        state.check_token_call = Some(Box::new(|call| {
            let next = base64::engine::general_purpose::STANDARD.encode("client:the-next-secret");
            call.head.contains(&next)
        }));
    });
    rig.signed_in();
    assert!(!rig.server.raw_log().contains("-secret"));
}

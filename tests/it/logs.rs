//! Two records a request, and no secret in any line.

use serde_json::Value;

use crate::rig::{Answer, Rig, Setup};

fn of<'r>(records: &'r [Value], message: &str, path: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["message"] == message && record["path"] == path).collect()
}

#[test]
fn every_request_leaves_an_access_record_and_every_decision_its_own() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    rig.server.get("app.localhost", "/admin/x?secret=1", &format!("{cookie}User-Agent: a\"b\r\n"));
    rig.server.get("app.localhost", "/page", &cookie);
    rig.server.get("nowhere.localhost", "/lost", "");
    rig.server.raw_log();
    let records = rig.server.records();
    let access = of(&records, "http-request", "/admin/x")[0];
    let decision = of(&records, "authorize-check", "/admin/x")[0];
    assert_eq!(access["request-id"], decision["request-id"]);
    assert_eq!((access["method"].as_str(), access["response-code"].as_u64()), (Some("GET"), Some(403)));
    assert_eq!(access["authority"], "app.localhost");
    assert!(access["duration"].is_number() && access.get("allow").is_none());
    assert_eq!(access["user-agent"], "a\"b");
    assert_eq!(
        (&decision["allow"], decision["reasons"][0].as_str()),
        (&Value::Bool(false), Some("groups-unauthorized"))
    );
    assert_eq!(
        (decision["user"].as_str(), decision["email"].as_str()),
        (Some("jane-1"), Some("jane@example.com"))
    );
    let allowed = of(&records, "authorize-check", "/page")[0];
    assert_eq!(allowed["allow"], true);
    assert_eq!(allowed["rule"], "allow[0].or[0] authenticated_user");
    assert!(allowed["session-id"].is_string() && allowed["route"].is_string());
    assert_eq!(of(&records, "http-request", "/lost").len(), 1);
    assert_eq!(of(&records, "authorize-check", "/lost").len(), 0);
}

#[test]
fn a_request_that_cannot_be_read_is_answered_and_recorded_like_any_other() {
    let rig = Rig::start();
    let long = "x".repeat(100_000);
    let cases = [
        ("nonsense\r\n\r\n".to_owned(), 400, "", ""),
        ("GET /bare?code=secret HTTP/1.1\nHost: app.localhost\r\n\r\n".into(), 400, "GET", "/bare"),
        ("GET /fold?code=secret HTTP/1.1\r\nHost: app.localhost\r\n x\r\n\r\n".into(), 400, "GET", "/fold"),
        ("PUT /ctl HTTP/1.1\r\nHost: app.localhost\r\nX: a\0b\r\n\r\n".into(), 400, "PUT", "/ctl"),
        ("GET /cut?state=secret#x HTTP/1.1\r\nHost: app.localhost\r\n\r\n".into(), 400, "GET", "/cut"),
        ("GET /v HTTP/2.0\r\nHost: app.localhost\r\n\r\n".into(), 400, "GET", "/v"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400, "PRI", "*"),
        ("POST /te HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "POST", "/te"),
        (format!("GET /{long} HTTP/1.1\r\nHost: app.localhost\r\n\r\n"), 414, "", ""),
        (format!("GET /wide HTTP/1.1\r\nHost: app.localhost\r\nX: {long}\r\n\r\n"), 431, "GET", "/wide"),
        (
            format!("GET /many HTTP/1.1\r\nHost: app.localhost\r\n{}\r\n", "X: y\r\n".repeat(100)),
            431,
            "GET",
            "/many",
        ),
    ];
    for (bytes, status, method, path) in cases {
        let start = &bytes[..40.min(bytes.len())];
        let answer = Answer::parse(&rig.server.send(&bytes));
        assert_eq!(answer.status, status, "{start:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{start:?}");
        let id = answer.header("x-request-id").unwrap();
        assert!(answer.body.contains("understood"), "{start:?}: {}", answer.body);
        rig.server.raw_log();
        let records = rig.server.records();
        let record = records.iter().find(|record| record["request-id"] == id).unwrap();
        assert_eq!(record["message"], "http-request", "{start:?}");
        assert_eq!(record["response-code"], status, "{start:?}");
        // Of a line that is longer than the limit nothing is kept.
        if status != 414 {
            assert_eq!(
                (record["method"].as_str(), record["path"].as_str()),
                (Some(method), Some(path)),
                "{start:?}"
            );
        }
        assert!(record["error"].is_string(), "{start:?}");
    }
    let json = rig.server.get("app.localhost", "/cut#x", "Accept: application/json\r\n");
    assert!(json.json()["error"].as_str().unwrap().contains('#'), "{json:?}");
    assert!(!rig.server.raw_log().contains("secret"));
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn no_secret_is_logged_at_any_level() {
    let rig = Rig::settings("log_level: trace");
    let mut browser = rig.signed_in();
    browser.open("http://other.localhost/?token=query-secret");
    let cookies: Vec<String> = browser.cookies.values().flat_map(|jar| jar.values().cloned()).collect();
    browser.get("http://app.localhost/.pomerium/sign_out");
    let log = rig.server.raw_log();
    let mut secrets = vec!["the-secret-of-the-tests".to_owned(), "query-secret".into()];
    assert_eq!(rig.provider.token_within(&log), None);
    secrets.extend(cookies.into_iter().filter(|value| value.len() > 8));
    let assertions = rig.upstream.header("x-pomerium-jwt-assertion");
    assert!(!assertions.is_empty());
    secrets.extend(assertions.iter().flat_map(|token| token.split('.')).map(Into::into));
    let state = rig.provider.state.lock().unwrap();
    for call in &state.calls {
        for name in ["state", "nonce", "code_challenge"] {
            secrets.extend(call.query.get(name).cloned());
        }
        for name in ["code", "code_verifier", "refresh_token"] {
            secrets.extend(call.form.get(name).cloned());
        }
    }
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret}");
    }
}

#[test]
fn what_a_client_sends_cannot_forge_a_record() {
    let rig = Rig::start();
    rig.server.send(b"GET /a\x1b[31m HTTP/1.1\r\nHost: open.localhost\r\nUser-Agent: \x1b]0;x\x07\xff\"}\r\nConnection: close\r\n\r\n");
    rig.server.get("open.localhost", "/%0a%7b%22x%22", "User-Agent: a\tb\r\n");
    rig.server.raw_log();
    // Each line is JSON, or `records` panics.
    assert!(!rig.server.records().is_empty());
    assert!(!rig.server.raw_log().contains('\x1b'));
}

/// The names of a record's fields, in order.
fn names(record: &Value) -> Vec<&str> {
    let fixed = ["timestamp", "level", "message"];
    let names = record.as_object().unwrap().keys().map(String::as_str);
    names.filter(|name| !fixed.contains(name)).collect()
}

#[test]
fn records_have_the_fields_that_were_chosen_and_a_reload_changes_them() {
    let settings = "access_log_fields: [path, response-code, upstream-cluster, headers.X-Mark, referer]\n\
                    authorize_log_fields: [path, user, headers.content-type, removed-groups-count]";
    let setup = Setup { settings: settings.into(), ..Setup::default() };
    let rig = Rig::with(setup);
    let cookie = rig.signed_in().session("app.localhost");
    let fields = format!(
        "{cookie}X-Mark: a\"b\r\nX-Mark: c\r\nReferer: https://a.test/x?code=secret#y\r\nContent-Type: text/plain\r\n"
    );
    rig.server.get("app.localhost", "/chosen", &fields);
    let log = rig.server.raw_log();
    assert!(log.contains("`removed-groups-count` has no value here") && !log.contains("secret"), "{log}");
    let records = rig.server.records();
    let access = of(&records, "http-request", "/chosen")[0];
    assert_eq!(names(access), ["headers.x-mark", "path", "referer", "response-code", "route"], "{access}");
    assert_eq!(
        (access["headers.x-mark"].as_str(), access["referer"].as_str()),
        (Some("a\"b, c"), Some("https://a.test/x"))
    );
    let decision = of(&records, "authorize-check", "/chosen")[0];
    assert_eq!(
        names(decision),
        ["allow", "headers.content-type", "path", "reasons", "rule", "user"],
        "{decision}"
    );
    rig.change(&Setup { settings: "access_log_fields: path, method".into(), ..Setup::default() });
    rig.server.get("app.localhost", "/later", &fields);
    rig.server.raw_log();
    let records = rig.server.records();
    assert_eq!(names(of(&records, "http-request", "/later")[0]), ["method", "path"]);
    assert!(of(&records, "authorize-check", "/later")[0]["request-id"].is_string(), "all of them");
}

#[test]
fn fields_that_may_hold_secrets_are_refused_by_name() {
    let rig = Rig::start();
    for (settings, expected) in [
        (
            "access_log_fields: [query]",
            "access_log_fields: `query` is in no log: it may hold tokens, codes or passwords",
        ),
        ("access_log_fields: [headers.cookie]", "access_log_fields: `headers.cookie` is in no log"),
        ("authorize_log_fields: [id-token]", "authorize_log_fields: `id-token` is in no log"),
        ("access_log_fields: [pth]", "there is no field `pth`, expected some of request-id, method"),
        ("access_log_fields: [pth]", "(did you mean `path`?)"),
    ] {
        let (code, said) = rig.check(&Setup { settings: settings.into(), ..Setup::default() });
        assert!(code == 2 && said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn a_process_outlives_whoever_reads_its_log() {
    use std::io::BufRead as _;
    let rig = Rig::start();
    let state = tempfile::tempdir().unwrap();
    let settings = format!("state_dir: {}", state.path().display());
    let path = state.path().join("c.yaml");
    std::fs::write(&path, rig.configuration(&Setup { settings, ..Setup::default() })).unwrap();
    let mut child = std::process::Command::new(crate::rig::BINARY)
        .args(["run", "-c"])
        .arg(&path)
        .env_clear()
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let listening: Value = lines
        .by_ref()
        .map(|line| serde_json::from_str::<Value>(&line).unwrap())
        .find(|one| one["message"] == "listening")
        .unwrap();
    drop(lines);
    let signal = |name: &str| {
        let done = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(done.success());
    };
    // It says what it reads, and leaves a record of each request, to nobody.
    signal("-HUP");
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(400));
        let mut stream = std::net::TcpStream::connect(listening["address"].as_str().unwrap()).unwrap();
        std::io::Write::write_all(
            &mut stream,
            b"GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
        assert_eq!(Answer::parse(&crate::rig::read_all(&mut stream)).status, 200);
    }
    signal("-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

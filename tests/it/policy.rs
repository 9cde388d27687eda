//! Policies: stronger sign-ins, what a refusal says, and the commands that ask policies.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::rig::{BINARY, Rig};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// What was asked of the provider, one sign-in after another.
fn asked(rig: &Rig, parameter: &str) -> Vec<Option<String>> {
    rig.provider.calls("/authorize").into_iter().map(|call| call.query.get(parameter).cloned()).collect()
}

const STRONG: &str = "
  - from: http://app.localhost
    path: /strong
    to: http://UPSTREAM
    show_error_details: true
    policy: [{allow: {and: [{acr: {in: [mfa, hardware]}}, {groups: dev}]}}]
  - from: http://app.localhost
    path: /fresh
    to: http://UPSTREAM
    policy: [{allow: {and: [{auth_time: {within: 15m}}]}}]
  - from: http://app.localhost
    path: /not-weak
    to: http://UPSTREAM
    policy: [{allow: {or: [{authenticated_user: true}]}}, {deny: {not: [{acr: mfa}]}}]
  - from: http://app.localhost
    path: /others
    to: http://UPSTREAM
    policy: [{allow: {and: [{acr: mfa}, {groups: admins}]}}]
  - from: http://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
";

#[test]
fn a_sign_in_that_is_too_weak_is_asked_for_more_and_comes_back_to_the_same_page() {
    for (page, parameter, wanted) in [
        ("/strong?a=b", "acr_values", "mfa hardware"),
        ("/not-weak", "acr_values", "mfa"),
        ("/fresh", "max_age", "900"),
    ] {
        let rig = Rig::routes(STRONG);
        rig.provider.set(|state| {
            state.claims["auth_time"] = json!(now() - 7200);
            state.claims["acr"] = json!("password");
        });
        let mut browser = rig.browser();
        assert_eq!(browser.open("http://app.localhost/").status, 200);
        // From now on the provider does what it is asked.
        rig.provider.set(|state| {
            state.claims["auth_time"] = json!(now());
            state.claims["acr"] = json!("mfa");
        });
        rig.upstream.forget();
        assert_eq!(browser.open(&format!("http://app.localhost{page}")).status, 200, "{page}");
        assert!(rig.upstream.seen().starts_with(&format!("GET {page} ")), "{page}");
        assert_eq!(asked(&rig, parameter), [None, Some(wanted.to_owned())], "{page}");
        let prompts = asked(&rig, "prompt");
        assert_eq!(prompts.last().unwrap().as_deref(), (parameter == "max_age").then_some("login"), "{page}");
        // It is strong now: nobody is asked again, on another page neither.
        assert_eq!(browser.open(&format!("http://app.localhost{page}")).status, 200);
        assert_eq!(asked(&rig, "acr_values").len(), 2);
        assert_eq!(browser.open("http://app.localhost/strong").status, 200);
        assert_eq!(asked(&rig, "acr_values").len(), 2);
    }
}

#[test]
fn a_provider_that_does_not_do_what_it_is_asked_is_asked_once() {
    for (change, page) in [
        (json!({ "acr": "password" }), "/strong"),
        (json!({ "acr": Value::Null }), "/strong"),
        (json!({ "acr": Value::Null }), "/not-weak"),
        (json!({ "auth_time": now() - 7200 }), "/fresh"),
        (json!({ "auth_time": Value::Null }), "/fresh"),
    ] {
        let rig = Rig::routes(STRONG);
        let changed = change.clone();
        rig.provider.set(move |state| {
            for (name, value) in changed.as_object().unwrap() {
                state.claims[name.as_str()] = value.clone();
            }
        });
        let mut browser = rig.browser();
        let answer = browser.open(&format!("http://app.localhost{page}"));
        assert_eq!(answer.status, 403, "{change} {page}: {answer:?}");
        // Once to sign in, once for more.
        assert_eq!(asked(&rig, "acr_values").len(), 2, "{change} {page}");
        for _ in 0..3 {
            assert_eq!(browser.open(&format!("http://app.localhost{page}")).status, 403);
        }
        assert_eq!(asked(&rig, "acr_values").len(), 2, "{change} {page}");
        // What does not need it goes on.
        assert_eq!(browser.open("http://app.localhost/").status, 200);
    }
}

#[test]
fn somebody_whom_no_sign_in_would_let_in_is_not_asked_for_more() {
    let rig = Rig::routes(STRONG);
    let mut browser = rig.browser();
    assert_eq!(browser.open("http://app.localhost/").status, 200);
    assert_eq!(browser.open("http://app.localhost/others").status, 403);
    assert_eq!(asked(&rig, "acr_values"), [None]);
    // A program is told to sign in again, and where.
    let cookie = browser.session("app.localhost");
    let answer = rig.server.get("app.localhost", "/strong", &format!("{cookie}Accept: application/json\r\n"));
    assert_eq!(answer.status, 401);
    assert!(answer.json()["sign_in_url"].as_str().unwrap().contains("%2Fstrong"));
}

#[test]
fn a_refusal_says_for_whom_the_page_is_and_how_to_get_out() {
    let rig = Rig::start();
    let mut browser = rig.signed_in();
    let page = browser.open("http://app.localhost/admin/x?y=z");
    assert_eq!(page.status, 403);
    let said = "This page is for the group admins. You are signed in as jane@example.com, in the group dev.";
    assert!(page.body.contains(said), "{page:?}");
    let anew = "/.pomerium/sign_in?pomerium_redirect_uri=http%3A%2F%2Fapp.localhost%2Fadmin%2Fx%3Fy%3Dz";
    assert!(page.body.contains(anew) && page.body.contains("Sign in as someone else"), "{page:?}");
    // Somebody else signs in there, comes back to the page, and is let in.
    rig.provider.set(|state| {
        state.claims = json!({ "sub": "ada-1", "email": "ada@example.com", "email_verified": true, "groups": ["admins"] });
    });
    let page = browser.open(&format!("http://app.localhost{anew}&pomerium_prompt=login"));
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(asked(&rig, "prompt").last().unwrap().as_deref(), Some("login"));
    assert_eq!(rig.upstream.header("x-pomerium-claim-email").last().unwrap(), "ada@example.com");
}

#[test]
fn every_decision_record_says_what_each_criterion_saw_and_no_secret() {
    let routes = "
  - from: http://app.localhost
    to: http://UPSTREAM
    policy: [{allow: {and: [{email: {ends_with: '@example.com'}}, {claim/groups: dev}, {http_header/x-key: hunter2}, {http_query/code: hunter3}]}}]
";
    let rig = Rig::routes(routes);
    let mut browser = rig.browser();
    browser.headers.push_str("X-Key: hunter2\r\n");
    assert_eq!(browser.open("http://app.localhost/?code=hunter3").status, 200);
    let log = rig.server.raw_log();
    assert!(!log.contains("hunter"), "{log}");
    let records = rig.server.records();
    let seen: Vec<_> = records
        .iter()
        .filter(|one| one["message"] == "authorize-check")
        .map(|one| one["saw"].as_str().unwrap())
        .collect();
    assert_eq!(
        seen,
        [
            "email nobody; claim/groups nobody; http_header/x-key present; http_query/code present",
            "email jane@example.com; claim/groups dev; http_header/x-key present; http_query/code present",
        ]
    );
}

const CONFIGURATION: &str = "
authenticate_service_url: https://authenticate.example.com
idp_provider: oidc
idp_provider_url: https://idp.example.com
idp_client_id: client
idp_client_secret: a-secret-of-ones-own
routes:
  - from: https://app.example.com
    path: /deep
    to: http://127.0.0.1:1
    policy:
      - allow: {and: [{groups: admins}, {acr: mfa}]}
      - deny: {or: [{source_ip: 10.0.0.0/8}]}
  - from: https://app.example.com
    to: http://127.0.0.1:1
    policy:
      - allow: {or: [{groups: admins}, {email: {ends_with: '@example.com'}}]}
      - allow: {and: [{day_of_week: mon-fri}, {http_header/x-team: blue}, {http_query/page: '1'}]}
";

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn policy(arguments: &[&str], files: &[(&str, &str)], input: &str) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files.iter().chain(&[("config.yaml", CONFIGURATION)]) {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let mut child = Command::new(BINARY)
        .arg("policy")
        .args(arguments)
        .current_dir(directory.path())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    Ran {
        code: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn explain(url: &str, more: &[&str], claims: &str) -> Value {
    let mut arguments = vec!["explain", "-c", "config.yaml", "--json", "--url", url];
    arguments.extend(more);
    if !claims.is_empty() {
        arguments.extend(["--claims", "-"]);
    }
    let ran = policy(&arguments, &[], claims);
    let told: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err));
    assert_eq!(ran.code, i32::from(told["decision"] != "allow"), "{told}");
    told
}

const JANE: &str = r#"{"sub":"1","email":"jane@example.com","email_verified":true,"groups":["dev"]}"#;
const ADA: &str = r#"{"sub":"2","email":"ada@other.test","groups":["admins"]}"#;

#[test]
fn explain_says_what_would_become_of_a_request_and_why() {
    let app = "https://app.example.com/items/1";
    for (url, more, claims, decision, reasons) in [
        (app, &[][..], "", "login", json!(["user-unauthenticated"])),
        (app, &[], JANE, "allow", json!(["email-ok"])),
        (app, &[], ADA, "allow", json!(["groups-ok"])),
        ("https://app.example.com/deep", &[], ADA, "step_up", json!(["acr-unauthorized"])),
        (
            "https://app.example.com/deep",
            &[],
            JANE,
            "deny",
            json!(["acr-unauthorized", "groups-unauthorized"]),
        ),
        ("https://app.example.com/deep", &["--ip", "10.1.2.3"], ADA, "deny", json!(["source-ip-ok"])),
        ("https://app.example.com/deep", &["--ip", "::ffff:10.1.2.3"], "", "deny", json!(["source-ip-ok"])),
        ("https://none.example.com/", &[], ADA, "not_found", json!([])),
        (
            "https://app.example.com/?page=1",
            &["--header", "X-Team: blue", "--at", "2026-11-20T12:00:00Z"],
            "",
            "allow",
            json!(["day-of-week-ok", "http-header-ok", "http-query-ok"]),
        ),
    ] {
        let told = explain(url, more, claims);
        assert_eq!(told["decision"], decision, "{url} {more:?} {claims}: {told}");
        assert_eq!(told["reasons"], reasons, "{url} {more:?} {claims}");
    }
    let told = explain(app, &[], JANE);
    assert_eq!(
        told["route"],
        json!({ "from": "https://app.example.com", "path": "/", "name": told["route"]["name"] })
    );
    assert_eq!(
        told["trace"][1],
        json!({ "rule": "allow[0].or[1]", "criterion": "email", "result": true, "saw": "jane@example.com" })
    );
    assert_eq!(told["trace"].as_array().unwrap().len(), 5);
    assert_eq!(told["trace"][3]["criterion"], "http_header/x-team");

    let ran = policy(
        &["explain", "-c", "config.yaml", "--url", app, "--claims", "claims.json"],
        &[("claims.json", JANE)],
        "",
    );
    assert!(
        ran.out.contains("decision: allow")
            && ran.out.contains("yes allow[0].or[1] email, saw: jane@example.com"),
        "{}",
        ran.out
    );
}

#[test]
fn explain_refuses_what_it_cannot_ask_by_saying_what_is_wrong() {
    for (arguments, claims, says) in [
        (&["--url", "app.example.com"][..], "", "relative URL"),
        (&["--url", "ftp://app.example.com/"], "", "http or https"),
        (&["--url", "https://app.example.com/%zz"], "", "refused"),
        (&["--url", "https://app.example.com/.pomerium/user"], "", "Portcullis's own"),
        (&["--url", "https://app.example.com/", "--header", "x"], "", "Name: value"),
        (&["--url", "https://app.example.com/", "--at", "soon"], "", "2026-01-31"),
        (&["--url", "https://app.example.com/"], "[]", "JSON object"),
        (&["--url", "https://app.example.com/"], "{}", "`sub`"),
        (&["--url", "https://app.example.com/", "--provider", "x"], JANE, "no provider `x`"),
        (&["--url", "https://app.example.com/", "--ip", "localhost"], "", "invalid"),
    ] {
        let mut all = vec!["explain", "-c", "config.yaml"];
        all.extend(arguments);
        if !claims.is_empty() {
            all.extend(["--claims", "-"]);
        }
        let ran = policy(&all, &[], claims);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.out);
        assert!(ran.err.contains(says), "{arguments:?}: {}", ran.err);
    }
}

const CASES: &str = "
- name: a colleague may read
  request: { url: https://app.example.com/items/1 }
  caller: { claims: { sub: '1', email: jane@example.com, email_verified: true, groups: [dev] } }
  expect: allow
  reason: email-ok
- name: nobody reads unseen
  request: { method: DELETE, url: https://app.example.com/items/1, ip: 192.0.2.1, at: 2026-11-21 }
  expect: login
- name: an admin signs in again for the deep part
  request: { url: https://app.example.com/deep }
  caller: { claims: { sub: '2', groups: [admins] }, session_age: 2h }
  expect: step_up
- name: nothing is served elsewhere
  request: { url: https://none.example.com/ }
  expect: not_found
";

#[test]
fn cases_are_tested_and_what_fails_is_shown_with_its_trace() {
    let ran = policy(&["test", "-c", "config.yaml", "cases.yaml"], &[("cases.yaml", CASES)], "");
    assert_eq!((ran.code, ran.out.as_str()), (0, "4 passed, 0 failed\n"), "{}", ran.err);

    let wrong = CASES
        .replace("expect: allow", "expect: deny")
        .replace("expect: not_found", "expect: not_found\n  reason: accept");
    let ran = policy(
        &["test", "-c", "config.yaml", "cases.yaml", "more.yaml"],
        &[("cases.yaml", &wrong), ("more.yaml", CASES)],
        "",
    );
    assert_eq!(ran.code, 1);
    assert!(ran.out.ends_with("6 passed, 2 failed\n"), "{}", ran.out);
    assert!(
        ran.out.contains("FAILED cases.yaml:2: a colleague may read: expected deny, got allow"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("allow[0].or[1] email, saw: jane@example.com"), "{}", ran.out);
    assert!(ran.out.contains("expected the reason accept"), "{}", ran.out);
}

#[test]
fn rules_that_no_case_exercised_are_named() {
    let ran =
        policy(&["test", "--coverage", "-c", "config.yaml", "cases.yaml"], &[("cases.yaml", CASES)], "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let unused: Vec<_> = ran.out.lines().filter_map(|line| line.strip_prefix("decided no case: ")).collect();
    assert_eq!(
        unused,
        [
            "https://app.example.com/deep allow[0].and",
            "https://app.example.com/deep deny[0].or",
            "https://app.example.com allow[1].and"
        ]
    );
}

#[test]
fn the_example_of_cases_exercises_every_rule_of_the_example() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    let arguments = ["test", "--coverage", "-c", "routes-with-policy.yaml", "routes-with-policy.cases.yaml"];
    let mut command = Command::new(BINARY);
    let done = command.arg("policy").args(arguments).current_dir(directory).env_clear().output().unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "{out}");
    assert_eq!(out, "every rule decided a case\n11 passed, 0 failed\n");
}

/// Every criterion that there is stands in the documentation.
#[test]
fn the_documentation_has_every_criterion() {
    let text = include_str!("../../config/policy.md");
    let table = include_str!("../../src/authorize/evaluate/table.txt");
    let names = table.lines().filter_map(|line| line.strip_prefix("allow ")?.split([':', '/']).next());
    for name in names {
        assert!(text.contains(&format!("`{name}`")) || text.contains(&format!("`{name}/NAME`")), "{name}");
    }
}

#[test]
fn cases_that_are_wrong_are_refused_with_their_place() {
    for (cases, says) in [
        ("", "empty"),
        ("a: b", "a list was expected"),
        ("- name: x\n  expect: allow\n", "cases.yaml:1: missing field `request`"),
        ("- name: x\n  request: {url: https://a.test}\n  expect: maybe\n", "unknown variant `maybe`"),
        ("- name: x\n  request: {urls: https://a.test}\n  expect: allow\n", "unknown field `urls`"),
        ("- name: x\n  request: {url: https://a.test}\n  expects: allow\n", "unknown field `expects`"),
        ("[", "cases.yaml:"),
    ] {
        let ran = policy(&["test", "-c", "config.yaml", "cases.yaml"], &[("cases.yaml", cases)], "");
        assert_eq!(ran.code, 2, "{cases:?}: {}", ran.out);
        assert!(ran.err.contains(says), "{cases:?}: {}", ran.err);
    }
    let ran = policy(&["test", "-c", "config.yaml", "missing.yaml"], &[], "");
    assert!(ran.code == 2 && ran.err.contains("missing.yaml"), "{}", ran.err);
}

#[test]
fn a_policy_is_tried_before_it_is_enforced() {
    let routes = "
  - from: http://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
    policy_mode: report
    report_policy: [{allow: {or: [{groups: admins}]}}]
  - from: http://open.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
    policy_mode: report
    report_policy: [{allow: {or: [{email: jane@example.com}]}}]
  - from: http://other.localhost
    to: http://UPSTREAM
    policy: [{allow: {or: [{groups: admins}]}}]
    policy_mode: report
    report_policy: [{allow: {or: [{groups: dev}]}}]
";
    let rig = Rig::routes(routes);
    let mut browser = rig.browser();
    // What is enforced decides, whatever the other says.
    assert_eq!(browser.open("http://app.localhost/").status, 200);
    assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
    assert_eq!(browser.open("http://other.localhost/").status, 403);
    rig.server.raw_log();
    let told = |route: &str, enforced: bool| {
        let records = rig.server.records();
        let mut of_route = records.iter().filter(|one| {
            one["message"] == "authorize-check"
                && one["route"].as_str().unwrap().contains(route)
                && one["allow"] == enforced
        });
        let last = of_route.next_back().unwrap_or_else(|| panic!("{route}: {records:#?}"));
        (last["report-decision"].clone(), last["report-reasons"].clone(), last["report-rule"].clone())
    };
    assert_eq!(told("app", true), (json!("deny"), json!(["groups-unauthorized"]), json!("")));
    assert_eq!(told("open", true), (json!("login"), json!(["user-unauthenticated"]), json!("")));
    assert_eq!(told("other", false), (json!("allow"), json!(["groups-ok"]), json!("allow[0].or[0] groups")));
}

#[test]
fn a_policy_that_is_tried_is_read_like_the_one_that_is_enforced() {
    let route = |lines: &str| {
        let text = format!(
            "{CONFIGURATION}  - from: https://tried.example.com\n    to: http://127.0.0.1:1\n    allow_any_authenticated_user: true\n{lines}"
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let done = Command::new(BINARY).args(["check", "-c"]).arg(&path).env_clear().output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    for (lines, says) in [
        ("    policy_mode: report\n", "policy_mode: there is no `report_policy`"),
        ("    report_policy: []\n", "has no effect without `policy_mode: report`"),
        ("    policy_mode: enforce\n    report_policy: []\n", "has no effect without"),
        (
            "    policy_mode: watch\n    report_policy: []\n",
            "`watch` is no mode; expected `enforce` or `report`",
        ),
        ("    policy_mode: report\n    report_policy: null\n", "there is no `report_policy`"),
        (
            "    policy_mode: report\n    report_policy: [{allow: {or: [{emial: x}]}}]\n",
            "did you mean `email`",
        ),
    ] {
        let (code, err) = route(lines);
        assert!(code == 2 && err.contains(says), "{lines}: {err}");
    }
    for lines in ["    policy_mode: enforce\n", "    policy_mode: report\n    report_policy: []\n"] {
        assert_eq!(route(lines), (0, String::new()), "{lines}");
    }
}

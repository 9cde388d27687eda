//! Every criterion with every matcher, for nobody, for whom it is made, and for somebody else: `table.txt`.

use std::fmt::Write;

use ::http::{HeaderMap, HeaderValue, Method, header};
use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::super::*;
use crate::clock::Timestamp;
use crate::connection::{ClientCertificate, Shown};
use crate::identity::{Caller, Identity, Reading};

/// A request and who makes it.
struct Scene {
    caller: Caller,
    method: Method,
    path: &'static str,
    query: &'static str,
    client: &'static str,
    headers: HeaderMap,
    certificate: Option<Shown>,
    time: &'static str,
}

fn person(claims: Value, provider: &str, age: u64, now: &str) -> Caller {
    let Value::Object(claims) = claims else { unreachable!() };
    let signed_in = Timestamp::parse(now).unwrap() - std::time::Duration::from_secs(age);
    let reading = Reading::plain("groups");
    Caller::Identified(
        Identity::read("s".into(), provider.into(), claims, &reading, signed_in).unwrap().into(),
    )
}

/// A certificate of `NAME@example.com`.
fn certificate(name: &str, flaw: Option<&str>) -> Shown {
    let certificate = ClientCertificate {
        fingerprint: fingerprint(name),
        spki_hash: spki_hash(name),
        dns: vec![format!("{name}.example.com")],
        emails: vec![format!("{name}@example.com")],
        uris: vec![format!("spiffe://example.com/{name}")],
        ..ClientCertificate::default()
    };
    Shown { certificate: certificate.into(), flaw: flaw.map(Into::into) }
}

fn fingerprint(name: &str) -> String {
    format!("{:02x}", name.len()).repeat(32)
}

fn spki_hash(name: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode([name.as_bytes()[0]; 32])
}

/// `client_certificate` with each of its keys.
fn certificates() -> Vec<Value> {
    let keyed =
        |key: &'static str, matchers: Vec<Value>| matchers.into_iter().map(move |one| json!({ key: one }));
    let all = [
        keyed(
            "fingerprint",
            vec![json!(fingerprint("jane")), json!([fingerprint("bob"), fingerprint("jane")])],
        ),
        keyed("spki_hash", vec![json!(spki_hash("jane")), json!([spki_hash("bob"), spki_hash("jane")])]),
        keyed("san_dns", texts("jane.example.com", "bob.example.com")),
        keyed("san_email", texts("jane@example.com", "bob@example.com")),
        keyed("san_uri", texts("spiffe://example.com/jane", "spiffe://example.com/bob")),
    ];
    let both = json!({ "fingerprint": fingerprint("jane"), "san_email": "bob@example.com" });
    all.into_iter().flatten().chain([both, json!({ "fingerprint": fingerprint("bob") })]).collect()
}

/// Whom the criteria of the table are made for, in a request that they are made for.
fn matching() -> Scene {
    let mut headers = HeaderMap::new();
    headers.insert("x-team", HeaderValue::from_static("blue"));
    headers.insert(header::ORIGIN, HeaderValue::from_static("https://a.test"));
    headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
    // A Friday, a minute after the person proved who they are.
    let time = "2026-11-20T10:00:00Z";
    let proved = Timestamp::parse(time).unwrap().as_unix_seconds() - 60;
    let claims = json!({
        "sub": "jane", "email": "jane@example.com", "email_verified": true, "groups": ["dev"], "level": 5,
        "acr": "mfa", "amr": ["pwd", "otp"], "auth_time": proved,
    });
    Scene {
        caller: person(claims, "main", 60, time),
        method: Method::OPTIONS,
        path: "/items/1",
        query: "page=1",
        client: "10.0.0.5",
        headers,
        certificate: Some(certificate("jane", None)),
        time,
    }
}

/// Somebody else, in another request.
fn other() -> Scene {
    // A Saturday, two years on.
    let time = "2028-11-25T22:00:00Z";
    let proved = Timestamp::parse(time).unwrap().as_unix_seconds() - 100_000;
    let claims = json!({
        "sub": "bob", "email": "bob@other.test", "email_verified": true, "groups": ["ops"], "level": 6,
        "acr": "password", "amr": ["pwd"], "auth_time": proved,
    });
    let mut headers = HeaderMap::new();
    headers.insert("x-team", HeaderValue::from_static("red"));
    Scene {
        caller: person(claims, "second", 100_000, time),
        method: Method::GET,
        path: "/",
        query: "page=2",
        client: "192.0.2.1",
        headers,
        certificate: Some(certificate("bob", Some("it has expired"))),
        time,
    }
}

/// Nobody, in a request that has nothing of what is looked for.
fn nobody() -> Scene {
    Scene { caller: Caller::Anonymous, query: "", headers: HeaderMap::new(), certificate: None, ..other() }
}

fn decided(policy: &Policy, scene: &Scene) -> String {
    let decision = policy.decide(&Facts {
        caller: &scene.caller,
        method: &scene.method,
        path: scene.path,
        query: scene.query,
        client: scene.client.parse().unwrap(),
        headers: &scene.headers,
        certificate: scene.certificate.as_ref(),
        time: Timestamp::parse(scene.time).unwrap(),
    });
    let (name, decided) = match &decision {
        Decision::Allow(permit) => ("allow", permit.decided()),
        Decision::SignIn(decided) => ("login", decided),
        Decision::StepUp(decided, _) => ("step_up", decided),
        Decision::ClientCertificate(decided) => ("client_certificate", decided),
        Decision::Deny(decided) => ("deny", decided),
    };
    let reasons: Vec<_> = decided.reasons.iter().map(Reason::as_str).collect();
    format!("{name} {}", reasons.join(" "))
}

/// A text's matchers: each once for a text that holds, once for one that does not.
fn texts(holds: &str, fails: &str) -> Vec<Value> {
    let (begin, end) = (&holds[..holds.len() / 2 + 1], &holds[holds.len() / 2..]);
    vec![
        json!(holds),
        json!({ "is": holds }),
        json!({ "not": fails }),
        json!({ "contains": begin }),
        json!({ "starts_with": begin }),
        json!({ "ends_with": end }),
        json!({ "in": [fails, holds] }),
        json!({ "not_in": [fails] }),
        json!({ "in": [] }),
    ]
}

fn lists(holds: &Value, fails: &Value) -> Vec<Value> {
    vec![holds.clone(), json!({ "has": holds }), json!({ "is": holds }), json!({ "exclude": fails })]
}

fn rows() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("accept", vec![json!(true)]),
        ("reject", vec![json!(true)]),
        ("authenticated_user", vec![json!(true)]),
        ("cors_preflight", vec![json!(true)]),
        ("email", texts("jane@example.com", "bob@other.test")),
        ("domain", texts("example.com", "other.test")),
        ("user", texts("jane", "bob")),
        ("provider", texts("main", "second")),
        ("groups", lists(&json!("dev"), &json!("ops"))),
        ("claim/level", lists(&json!(5), &json!(6))),
        ("claim/absent", lists(&json!("x"), &json!("y"))),
        ("acr", texts("mfa", "password")),
        ("amr", lists(&json!("otp"), &json!("sms"))),
        ("auth_time", vec![json!({ "within": "15m" })]),
        ("session_age", vec![json!({ "within": "8h" })]),
        ("http_method", texts("OPTIONS", "GET")),
        ("http_path", texts("/items/1", "/")),
        ("http_header/x-team", texts("blue", "red")),
        ("http_query/page", texts("1", "2")),
        ("client_certificate", certificates()),
        ("invalid_client_certificate", vec![json!(true)]),
        ("source_ip", vec![json!("10.0.0.5"), json!("10.0.0.0/8"), json!(["192.168.0.0/16", "10.0.0.0/8"])]),
        (
            "date",
            vec![
                json!({ "after": "2026-01-01" }),
                json!({ "before": "2027-01-01" }),
                json!({ "after": "2026-11-20T11:00:00+01:00", "before": "2026-11-20T10:00:01" }),
            ],
        ),
        (
            "time_of_day",
            vec![
                json!({ "timezone": "UTC", "after": "9:00", "before": "5PM" }),
                json!({ "timezone": "Europe/Berlin", "after": "11:00:00", "before": "11:00:01" }),
                json!({ "timezone": "UTC", "after": "11PM", "before": "4:30 PM" }),
            ],
        ),
        (
            "day_of_week",
            vec![
                json!("mon-fri"),
                json!("mon,Friday"),
                json!(["tue", "fri"]),
                json!("fri-fri"),
                json!("sun-fri"),
                json!("*"),
                json!({ "is": "fri", "timezone": "Pacific/Kiritimati" }),
                json!({ "is": "sat", "timezone": "Pacific/Kiritimati" }),
            ],
        ),
    ]
}

#[test]
fn every_criterion_decides_as_the_table_says() {
    let mut table = String::from(
        "# Every criterion with every matcher, as the only one of an allow rule, and of a deny rule beside one that lets\n\
         # everyone in. Made by a test, which fails when it changes: BLESS=1 cargo test criterion_decides.\n\n",
    );
    let (nobody, matching, other) = (nobody(), matching(), other());
    for (name, matchers) in rows() {
        for matcher in matchers {
            for action in ["allow", "deny"] {
                let rule = json!({ action: { "or": [{ name: matcher }] } });
                let mut all = vec![rule];
                if action == "deny" {
                    all.push(json!({ "allow": { "or": [{ "accept": true }] } }));
                }
                let policy =
                    Policy::compile(&Value::Array(all), true).unwrap_or_else(|errors| panic!("{errors:?}"));
                writeln!(table, "{action} {name}: {matcher}").unwrap();
                for (who, scene) in [("nobody", &nobody), ("matching", &matching), ("other", &other)] {
                    writeln!(table, "    {who:9} {}", decided(&policy, scene)).unwrap();
                }
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/authorize/evaluate/table.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    for (line, (now, before)) in table.lines().zip(known.lines()).enumerate() {
        assert_eq!(now, before, "line {}", line + 1);
    }
    assert_eq!(table.lines().count(), known.lines().count());
}

#[test]
fn the_table_has_every_criterion() {
    let compiled = |name: &str| {
        let data = rows().into_iter().find(|(known, _)| known.split('/').next() == Some(name));
        data.unwrap_or_else(|| panic!("`{name}` is not in the table"));
    };
    // What the error about an unknown criterion lists is what there is.
    let wrong = json!({ "allow": { "or": [{ "nonsense": Map::new() }] } });
    let errors = Policy::compile(&wrong, true).unwrap_err();
    let known = errors[0].message.split("expected one of ").nth(1).unwrap();
    for name in known.split(", ") {
        compiled(name.trim_end_matches("/…"));
    }
}

//! The decision, case by case.

use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::super::*;
use crate::clock::Timestamp;
use crate::identity::{Identity, Reading};

fn jane() -> Caller {
    person(json!({
        "sub": "jane-1", "email": "jane@example.com", "email_verified": true, "groups": ["dev", "ops"],
        "level": 5, "on": true, "custom:team": "5", "address": { "country": "NL" }
    }))
}

fn person(claims: Value) -> Caller {
    let Value::Object(claims) = claims else { panic!("claims are an object") };
    let reading = Reading::plain("groups");
    Caller::Identified(Arc::new(
        Identity::read("s".into(), "p".into(), claims, &reading, Timestamp::default()).unwrap(),
    ))
}

fn decide_with(policy: &Policy, caller: &Caller, method: &Method, path: &str, ip: &str) -> Decision {
    let headers = HeaderMap::new();
    policy.decide(&Facts {
        caller,
        method,
        path,
        client: ip.parse().unwrap(),
        query: "",
        headers: &headers,
        certificate: None,
        time: Timestamp::default(),
    })
}

/// `allow`, `sign in` or `deny`.
fn decide(policy: Value, caller: &Caller) -> &'static str {
    let policy = Policy::compile(&policy, true).unwrap_or_else(|errors| panic!("{errors:?}"));
    name(&decide_with(&policy, caller, &Method::GET, "/a/b", "10.0.0.5"))
}

fn name(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(_) => "allow",
        Decision::SignIn(_) => "sign in",
        Decision::StepUp(..) => "step up",
        Decision::ClientCertificate(_) => "client certificate",
        Decision::Deny(_) => "deny",
    }
}

fn allow_or(criterion: Value) -> Value {
    json!([{ "allow": { "or": [criterion] } }])
}

#[test]
fn empty_policies_rules_and_operators_match_nothing() {
    for policy in [
        json!([]),
        json!({}),
        json!([{ "allow": {} }]),
        json!([{ "allow": { "and": [] } }]),
        json!({ "allow": { "not": [] } }),
        json!({ "allow": { "nor": [] } }),
    ] {
        assert_eq!(decide(policy.clone(), &jane()), "deny", "{policy}");
        assert_eq!(decide(policy, &Caller::Anonymous), "deny");
    }
    assert_eq!(
        decide(json!([{ "allow": { "or": [{ "accept": true }] } }, { "deny": { "or": [] } }]), &jane()),
        "allow"
    );
}

#[test]
fn every_matcher_works() {
    for (criterion, expected) in [
        (json!({ "email": "jane@example.com" }), "allow"),
        (json!({ "email": { "is": "bob@example.com" } }), "deny"),
        (json!({ "email": { "not": "bob@example.com" } }), "allow"),
        (json!({ "email": { "contains": "@exam" } }), "allow"),
        (json!({ "email": { "starts_with": "jane", "ends_with": "@example.com" } }), "allow"),
        (json!({ "email": { "starts_with": "jane", "ends_with": "@example.org" } }), "deny"),
        (json!({ "email": { "in": ["a", "jane@example.com"] } }), "allow"),
        (json!({ "email": { "not_in": ["jane@example.com"] } }), "deny"),
        (json!({ "email": { "in": [] } }), "deny"),
        (json!({ "domain": "EXAMPLE.com" }), "allow"),
        (json!({ "domain": { "is": "badexample.com" } }), "deny"),
        (json!({ "user": { "is": "jane-1" } }), "allow"),
        (json!({ "user": "jane@example.com" }), "deny"),
        (json!({ "groups": "ops" }), "allow"),
        (json!({ "groups": { "has": "admins" } }), "deny"),
        (json!({ "groups": { "is": "dev" } }), "deny"),
        (json!({ "groups": { "exclude": "admins" } }), "allow"),
        (json!({ "groups": { "has": "dev", "exclude": "ops" } }), "deny"),
        (json!({ "claim/groups": "dev" }), "allow"),
        (json!({ "claim/level": 5 }), "allow"),
        (json!({ "claim/level": "5" }), "deny"),
        (json!({ "claim/on": true }), "allow"),
        (json!({ "claim/on": "true" }), "deny"),
        (json!({ "claim/custom:team": 5 }), "allow"),
        (json!({ "claim/address/country": "NL" }), "allow"),
        (json!({ "claim/address": "NL" }), "deny"),
        (json!({ "claim/none": { "exclude": "x" } }), "deny"),
        (json!({ "http_method": "GET" }), "allow"),
        (json!({ "http_method": { "in": ["POST", "PUT"] } }), "deny"),
        (json!({ "http_path": { "starts_with": "/a/" } }), "allow"),
        (json!({ "source_ip": "10.0.0.0/8" }), "allow"),
        (json!({ "source_ip": ["192.168.0.0/16", "10.0.0.5"] }), "allow"),
        (json!({ "source_ip": "::ffff:10.0.0.5" }), "allow"),
        (json!({ "source_ip": "10.0.0.6" }), "deny"),
        (json!({ "authenticated_user": true }), "allow"),
        (json!({ "authenticated_user": null }), "allow"),
        (json!({ "accept": true }), "allow"),
        (json!({ "reject": true }), "deny"),
        (json!({ "cors_preflight": true }), "deny"),
    ] {
        assert_eq!(decide(allow_or(criterion.clone()), &jane()), expected, "{criterion}");
    }
}

#[test]
fn identity_needs_a_session_negative_matchers_and_operators_too() {
    for criterion in [
        json!({ "email": { "not": "x" } }),
        json!({ "email": { "not_in": ["x"] } }),
        json!({ "domain": { "not": "x" } }),
        json!({ "user": { "not": "x" } }),
        json!({ "claim/groups": { "exclude": "x" } }),
        json!({ "groups": { "exclude": "x" } }),
        json!({ "authenticated_user": true }),
    ] {
        for operator in ["and", "or", "not", "nor"] {
            for action in ["allow", "deny"] {
                let mut policy = json!([{ action: { operator: [criterion.clone()] } }]);
                if action == "deny" {
                    policy.as_array_mut().unwrap().push(json!({ "allow": { "or": [{ "accept": true }] } }));
                }
                assert_eq!(decide(policy.clone(), &Caller::Anonymous), "sign in", "{policy}");
            }
        }
    }
}

#[test]
fn an_anonymous_caller_passes_by_another_alternative() {
    let policy = json!([{ "allow": { "or": [{ "accept": true }, { "email": "jane@example.com" }] } }]);
    assert_eq!(decide(policy, &Caller::Anonymous), "allow");
}

#[test]
fn operators_combine_as_in_pomerium() {
    let (yes, no) = (json!({ "accept": true }), json!({ "reject": true }));
    for (operator, criteria, expected) in [
        ("and", [&yes, &yes], "allow"),
        ("and", [&yes, &no], "deny"),
        ("or", [&no, &yes], "allow"),
        ("or", [&no, &no], "deny"),
        ("not", [&no, &no], "allow"),
        ("not", [&no, &yes], "deny"),
        ("nor", [&yes, &yes], "deny"),
        ("nor", [&yes, &no], "allow"),
        ("nor", [&no, &no], "allow"),
    ] {
        assert_eq!(
            decide(json!([{ "allow": { operator: criteria } }]), &jane()),
            expected,
            "{operator} {criteria:?}"
        );
    }
    // Several operators in a rule, and several rules, are alternatives.
    assert_eq!(decide(json!([{ "allow": { "and": [no], "or": [yes] } }]), &jane()), "allow");
    assert_eq!(
        decide(json!([{ "allow": { "and": [no] } }, { "allow": { "and": [yes] } }]), &jane()),
        "allow"
    );
}

#[test]
fn deny_beats_allow_and_comes_before_sign_in_when_it_is_not_about_identity() {
    let everyone = json!({ "allow": { "or": [{ "authenticated_user": true }] } });
    let policy = json!([everyone, { "deny": { "or": [{ "source_ip": "10.0.0.0/8" }] } }]);
    assert_eq!(decide(policy.clone(), &jane()), "deny");
    assert_eq!(decide(policy, &Caller::Anonymous), "deny");
    let policy = json!([everyone, { "deny": { "or": [{ "groups": "ops" }] } }]);
    assert_eq!(decide(policy, &jane()), "deny");
}

#[test]
fn an_absent_claim_fails_in_allow_rules_and_holds_negatively_in_deny_rules() {
    let bare = person(json!({ "sub": "1" }));
    for criterion in [
        json!({ "claim/x": { "exclude": "a" } }),
        json!({ "email": { "not": "a" } }),
        json!({ "groups": { "exclude": "a" } }),
    ] {
        assert_eq!(decide(allow_or(criterion.clone()), &bare), "deny", "{criterion}");
        let deny = json!([{ "allow": { "or": [{ "accept": true }] } }, { "deny": { "or": [criterion] } }]);
        assert_eq!(decide(deny, &bare), "deny");
    }
    let positive =
        json!([{ "allow": { "or": [{ "accept": true }] } }, { "deny": { "or": [{ "claim/x": "a" }] } }]);
    assert_eq!(decide(positive, &bare), "allow");
    // `not` inverts what the criterion gave.
    assert_eq!(decide(json!([{ "allow": { "not": [{ "claim/x": "a" }] } }]), &bare), "allow");
}

#[test]
fn addresses_count_only_when_verified_and_the_decision_says_so() {
    for verified in [json!(false), json!("false"), json!(null)] {
        let caller = person(json!({ "sub": "1", "email": "jane@example.com", "email_verified": verified }));
        for criterion in [json!({ "email": "jane@example.com" }), json!({ "domain": "example.com" })] {
            let policy = Policy::compile(&allow_or(criterion.clone()), true).unwrap();
            let Decision::Deny(decided) = decide_with(&policy, &caller, &Method::GET, "/", "10.0.0.1") else {
                panic!("{criterion}")
            };
            assert!(decided.unverified_email);
            let lax = Policy::compile(&allow_or(criterion.clone()), false).unwrap();
            assert_eq!(name(&decide_with(&lax, &caller, &Method::GET, "/", "10.0.0.1")), "allow");
            let deny =
                json!([{ "allow": { "or": [{ "accept": true }] } }, { "deny": { "or": [criterion] } }]);
            assert_eq!(decide(deny, &caller), "deny");
        }
    }
    let absent = person(json!({ "sub": "1", "email": "jane@example.com" }));
    assert_eq!(decide(allow_or(json!({ "email": "jane@example.com" })), &absent), "deny");
}

#[test]
fn the_decision_names_its_rule_and_reasons() {
    let policy = json!([{ "allow": { "or": [{ "email": "x" }] } }, { "allow": { "and": [{ "groups": "ops" }, { "user": "jane-1" }] } }]);
    let policy = Policy::compile(&policy, true).unwrap();
    let Decision::Allow(permit) = decide_with(&policy, &jane(), &Method::GET, "/", "10.0.0.1") else {
        panic!()
    };
    assert_eq!(permit.decided().rule.unwrap().to_string(), "allow[1].and[0] groups");
    let reasons: Vec<_> = permit.decided().reasons.iter().map(Reason::as_str).collect();
    assert_eq!(reasons, ["groups-ok", "user-ok"]);
}

#[test]
fn a_preflight_needs_its_three_marks() {
    let policy = Policy::compile(&allow_or(json!({ "cors_preflight": true })), true).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(header::ORIGIN, HeaderValue::from_static("https://a"));
    headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
    let decide = |method: Method, headers: &HeaderMap| {
        let client = "10.0.0.1".parse().unwrap();
        name(&policy.decide(&Facts {
            caller: &Caller::Anonymous,
            method: &method,
            path: "/",
            query: "",
            client,
            headers,
            certificate: None,
            time: Timestamp::default(),
        }))
    };
    assert_eq!(decide(Method::OPTIONS, &headers), "allow");
    assert_eq!(decide(Method::GET, &headers), "deny");
    headers.remove(header::ORIGIN);
    assert_eq!(decide(Method::OPTIONS, &headers), "deny");
}

#[test]
fn mistakes_are_refused_with_their_place_all_at_once() {
    let errors = Policy::compile(
        &json!([
            { "allow": { "or": [{ "emial": "x" }, { "email": {} }, { "email": { "iss": "x" } }, { "accept": "yes" }] } },
            { "alow": {} },
            { "deny": { "xor": [] } },
            { "deny": { "or": null } },
            { "allow": null },
            { "allow": { "or": [{ "email": "a", "user": "b" }, { "source_ip": "10.0.0.0/40" }, { "claim": "x" }] } },
            { "allow": { "or": [{ "device": {} }, { "record": {} }, { "groups": { "has": ["a"] } }, { "email": { "in": "a" } }] } }
        ]),
        true,
    )
    .unwrap_err();
    let texts: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(errors.len(), 15, "{texts:#?}");
    assert_eq!(errors[0].suggestion.as_deref(), Some("email"));
    assert_eq!(
        errors[0].path,
        [
            Step::Index(0),
            Step::Key("allow".into()),
            Step::Key("or".into()),
            Step::Index(0),
            Step::Key("emial".into())
        ]
    );
}

#[test]
fn short_forms_are_alternatives() {
    let short = |short: Shorthand, caller: &Caller| {
        name(&decide_with(&Policy::from_shorthand(&short, true), caller, &Method::GET, "/", "10.0.0.1"))
    };
    assert_eq!(short(Shorthand { public: true, ..Shorthand::default() }, &Caller::Anonymous), "allow");
    assert_eq!(
        short(Shorthand { any_authenticated_user: true, ..Shorthand::default() }, &Caller::Anonymous),
        "sign in"
    );
    assert_eq!(short(Shorthand { any_authenticated_user: true, ..Shorthand::default() }, &jane()), "allow");
    assert_eq!(
        short(Shorthand { users: vec!["jane@example.com".into()], ..Shorthand::default() }, &jane()),
        "allow"
    );
    assert_eq!(short(Shorthand { users: vec!["jane-1".into()], ..Shorthand::default() }, &jane()), "allow");
    assert_eq!(
        short(Shorthand { domains: vec!["example.com".into()], ..Shorthand::default() }, &jane()),
        "allow"
    );
    let claims = vec![("groups".to_owned(), vec![json!("admins"), json!("ops")])];
    assert_eq!(short(Shorthand { claims, ..Shorthand::default() }, &jane()), "allow");
    assert_eq!(short(Shorthand::default(), &jane()), "deny");
}

/// A decision is made for every request: it allocates nothing, whoever asks and however it ends.
#[test]
fn a_decision_allocates_nothing() {
    let policy = json!([
        { "allow": { "and": [
            { "domain": { "is": "example.com" } },
            { "email": { "ends_with": "@example.com" } },
            { "groups": { "has": "ops" } },
            { "claim/custom:team": "5" },
            { "claim/address.country": "NL" },
            { "http_method": { "in": ["GET", "POST"] } },
            { "http_path": { "starts_with": "/a" } },
            { "source_ip": "10.0.0.0/8" },
        ] } },
        { "allow": { "nor": [{ "user": "bob" }, { "cors_preflight": true }] } },
        { "deny": { "or": [{ "email": "eve@example.com" }, { "http_path": { "is": "/secret" } }] } },
    ]);
    let policy = Policy::compile(&policy, true).unwrap_or_else(|errors| panic!("{errors:?}"));
    let eve = person(json!({ "sub": "e", "email": "eve@example.com", "email_verified": true }));
    let (jane, anonymous) = (jane(), Caller::Anonymous);
    let headers = HeaderMap::new();
    for (caller, path, expected) in [
        (&jane, "/a/b", "allow"),
        (&jane, "/secret", "deny"),
        (&eve, "/a/b", "deny"),
        (&anonymous, "/a/b", "sign in"),
    ] {
        let client = "10.0.0.5".parse().unwrap();
        let facts = Facts {
            caller,
            method: &Method::GET,
            path,
            query: "",
            client,
            headers: &headers,
            certificate: None,
            time: Timestamp::default(),
        };
        let mut decided = None;
        let used = allocation_counter::measure(|| decided = Some(policy.decide(&facts)));
        assert_eq!(name(&decided.unwrap()), expected, "{path}");
        assert_eq!(used.count_total, 0, "{expected}: {used:?}");
    }
}

#[test]
fn a_policy_knows_what_it_looks_at() {
    for (criterion, headers, time) in [
        (json!({ "accept": true }), false, false),
        (json!({ "groups": "dev" }), false, false),
        (json!({ "http_path": "/x" }), false, false),
        (json!({ "http_header/x-mark": "one" }), true, false),
        (json!({ "cors_preflight": true }), true, false),
        (json!({ "date": { "before": "2030-01-01T00:00:00Z" } }), false, true),
        (json!({ "time_of_day": { "timezone": "UTC", "before": "17:00" } }), false, true),
        (json!({ "day_of_week": "mon-fri" }), false, true),
        (json!({ "session_age": { "within": "8h" } }), false, true),
        (json!({ "auth_time": { "within": "8h" } }), false, true),
    ] {
        let policy = Policy::compile(&allow_or(criterion.clone()), true);
        let policy = policy.unwrap_or_else(|errors| panic!("{criterion}: {errors:?}"));
        assert_eq!((policy.reads_headers(), policy.reads_time()), (headers, time), "{criterion}");
    }
}

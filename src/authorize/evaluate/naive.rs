//! The compiled evaluator against one that follows the words of the reference, set by set.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::*;
use crate::clock::Timestamp;
use crate::connection::{ClientCertificate, Shown};
use crate::identity::{Caller, Identity, Reading};

/// A request, as plain data.
#[derive(Clone, Debug)]
struct Plain {
    claims: Option<Value>,
    method: &'static str,
    path: &'static str,
    team: Option<&'static str>,
    query: &'static str,
    /// The DNS names of the client certificate, and whether it is good.
    certificate: Option<(Vec<&'static str>, bool)>,
}

/// What a criterion, a list, a rule or an action gave: whether it holds, and why.
type Result = (bool, BTreeSet<String>);

fn naive(policy: &Value, request: &Plain) -> String {
    let rules: Vec<&Value> = match policy {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    };
    let action = |name: &str| -> Result {
        let lists = rules.iter().filter_map(|rule| rule.get(name)).flat_map(|body| {
            body.as_object()
                .unwrap()
                .iter()
                .map(|(operator, criteria)| (operator.as_str(), criteria.as_array().unwrap()))
        });
        any(lists.map(|(operator, criteria)| list(operator, criteria, request, name == "deny")).collect())
    };
    let (deny, allow) = (action("deny"), action("allow"));
    let nobody = "user-unauthenticated";
    let because = |reasons: &BTreeSet<String>| reasons.iter().cloned().collect::<Vec<_>>().join(" ");
    let about_certificates = ["client-certificate-required", "invalid-client-certificate"];
    if deny.0 && about_certificates.iter().any(|reason| deny.1.contains(*reason)) {
        format!("client certificate: {}", because(&deny.1))
    } else if deny.0 {
        format!("deny: {}", because(&deny.1))
    } else if deny.1.contains(nobody) || (!allow.0 && allow.1.contains(nobody)) {
        format!("sign in: {nobody}")
    } else {
        format!("{}: {}", if allow.0 { "allow" } else { "deny" }, because(&allow.1))
    }
}

/// Alternatives: those that hold speak, or all of them when none does.
fn any(results: Vec<Result>) -> Result {
    let holds = results.iter().any(|one| one.0);
    (holds, results.into_iter().filter(|one| one.0 == holds).flat_map(|one| one.1).collect())
}

fn list(operator: &str, criteria: &[Value], request: &Plain, denies: bool) -> Result {
    if criteria.is_empty() {
        return (false, BTreeSet::new());
    }
    let given: Vec<Result> = criteria
        .iter()
        .map(|one| {
            let (holds, reason) = criterion(one, request, denies);
            (holds, BTreeSet::from([reason]))
        })
        .collect();
    let (conjunctive, inverted) = match operator {
        "and" => (true, false),
        "or" => (false, false),
        "not" => (false, true),
        "nor" => (true, true),
        other => unreachable!("{other}"),
    };
    let combined = if conjunctive { given.iter().all(|one| one.0) } else { given.iter().any(|one| one.0) };
    let reasons: BTreeSet<String> =
        given.into_iter().filter(|one| one.0 == combined).flat_map(|one| one.1).collect();
    let nobody = reasons.contains("user-unauthenticated");
    (if inverted { !combined && !nobody } else { combined }, reasons)
}

fn criterion(one: &Value, request: &Plain, denies: bool) -> (bool, String) {
    let (name, data) = one.as_object().unwrap().iter().next().unwrap();
    let base = name.split('/').next().unwrap();
    let claim = |name: &str| request.claims.as_ref().and_then(|claims| claims.get(name));
    let dashed = base.replace('_', "-");
    let told = |holds: bool| (holds, format!("{dashed}-{}", if holds { "ok" } else { "unauthorized" }));
    match base {
        "accept" => return (true, "accept".into()),
        "reject" => return (false, "reject".into()),
        "client_certificate" => {
            let wanted = &data["san_dns"];
            // An allow rule looks at what is good, a deny rule at whatever was shown, or not shown.
            let names = match &request.certificate {
                Some((names, good)) if *good || denies => Some(names.as_slice()),
                None if denies => Some(&[][..]),
                _ => None,
            };
            let holds = names.is_some_and(|names| match names {
                [] => text(wanted, None, denies),
                names => names.iter().any(|name| text(wanted, Some(name), denies)),
            });
            return told(holds);
        }
        "invalid_client_certificate" => {
            return match &request.certificate {
                None => (true, "client-certificate-required".into()),
                Some((_, false)) => (true, "invalid-client-certificate".into()),
                Some((_, true)) => (false, "valid-client-certificate".into()),
            };
        }
        "http_method" => return told(text(data, Some(request.method), denies)),
        "http_path" => return told(text(data, Some(request.path), denies)),
        "http_header" => return told(text(data, request.team, denies)),
        "http_query" => {
            let values: Vec<_> =
                request.query.split('&').filter_map(|pair| pair.strip_prefix("page=")).collect();
            let holds = match values.as_slice() {
                [] => text(data, None, denies),
                values => values.iter().any(|value| text(data, Some(value), denies)),
            };
            return told(holds);
        }
        _ if request.claims.is_none() => return (false, "user-unauthenticated".into()),
        _ => {}
    }
    let verified = denies || claim("email_verified") == Some(&Value::Bool(true));
    let email = claim("email").and_then(Value::as_str);
    match base {
        "authenticated_user" => (true, "user-ok".into()),
        "user" => told(text(data, claim("sub").and_then(Value::as_str), denies)),
        "email" => told(text(data, email, denies) && verified),
        "domain" => told(text(data, email.and_then(|email| email.split('@').nth(1)), denies) && verified),
        "groups" => told(values(data, claim("groups"), denies)),
        "claim" => told(values(data, claim(name.split_once('/').unwrap().1), denies)),
        "provider" => told(text(data, Some("p"), denies)),
        other => unreachable!("{other}"),
    }
}

fn text(matcher: &Value, text: Option<&str>, denies: bool) -> bool {
    let Value::Object(keys) = matcher else { return text == matcher.as_str() && text.is_some() };
    let one = |value: &Value| value.as_str().unwrap().to_owned();
    let all = |value: &Value| value.as_array().unwrap().iter().map(one).collect::<Vec<_>>();
    keys.iter().all(|(key, value)| match (key.as_str(), text) {
        ("not" | "not_in", None) => denies,
        (_, None) => false,
        ("is", Some(text)) => text == one(value),
        ("not", Some(text)) => text != one(value),
        ("contains", Some(text)) => text.contains(&one(value)),
        ("starts_with", Some(text)) => text.starts_with(&one(value)),
        ("ends_with", Some(text)) => text.ends_with(&one(value)),
        ("in", Some(text)) => all(value).iter().any(|one| one == text),
        ("not_in", Some(text)) => !all(value).iter().any(|one| one == text),
        other => unreachable!("{other:?}"),
    })
}

fn values(matcher: &Value, claim: Option<&Value>, denies: bool) -> bool {
    let owned = json!({ "has": matcher });
    let keys = if matcher.is_object() { matcher } else { &owned };
    let values: Option<Vec<Value>> = match claim {
        None => None,
        Some(Value::Array(values)) => Some(values.clone()),
        Some(value) => Some(vec![value.clone()]),
    };
    keys.as_object().unwrap().iter().all(|(key, wanted)| match (key.as_str(), &values) {
        ("exclude", None) => denies,
        (_, None) => false,
        ("has", Some(values)) => values.contains(wanted),
        ("is", Some(values)) => values.len() == 1 && values.contains(wanted),
        ("exclude", Some(values)) => !values.contains(wanted),
        other => unreachable!("{other:?}"),
    })
}

fn compiled(policy: &Value, request: &Plain) -> String {
    let policy = Policy::compile(policy, true).unwrap_or_else(|errors| panic!("{errors:?}"));
    let caller = match &request.claims {
        None => Caller::Anonymous,
        Some(Value::Object(claims)) => {
            let reading = Reading::plain("groups");
            let identity =
                Identity::read("s".into(), "p".into(), claims.clone(), &reading, Timestamp::default());
            Caller::Identified(identity.unwrap().into())
        }
        Some(other) => unreachable!("{other}"),
    };
    let mut headers = HeaderMap::new();
    if let Some(team) = request.team {
        headers.insert(HeaderName::from_static("x-team"), HeaderValue::from_static(team));
    }
    let shown = request.certificate.as_ref().map(|(names, good)| Shown {
        certificate: Arc::new(ClientCertificate {
            dns: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ClientCertificate::default()
        }),
        flaw: (!good).then(|| "it is not good".into()),
    });
    let decision = policy.decide(&Facts {
        caller: &caller,
        method: &Method::from_bytes(request.method.as_bytes()).unwrap(),
        path: request.path,
        query: request.query,
        client: "10.0.0.1".parse().unwrap(),
        headers: &headers,
        certificate: shown.as_ref(),
        time: Timestamp::default(),
    });
    let (name, decided) = match &decision {
        Decision::Allow(permit) => ("allow", permit.decided()),
        Decision::SignIn(decided) => ("sign in", decided),
        Decision::Deny(decided) => ("deny", decided),
        Decision::ClientCertificate(decided) => ("client certificate", decided),
        Decision::StepUp(..) => unreachable!("no criterion asks for that"),
    };
    let reasons: Vec<_> = decided.reasons.iter().map(Reason::as_str).collect();
    format!("{name}: {}", reasons.join(" "))
}

fn word() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just("jane"),
        Just("bob"),
        Just("jane@a.test"),
        Just("a.test"),
        Just("dev"),
        Just("ops"),
        Just("GET"),
        Just("/a"),
        Just("p"),
        Just("a")
    ]
    .prop_map(|text| json!(text))
}

/// In a box: kept by value, what is made of them would fill the stack.
fn string_matcher() -> BoxedStrategy<Value> {
    let many = (prop_oneof![Just("in"), Just("not_in")], prop::collection::vec(word(), 0..3));
    prop_oneof![
        word(),
        string_key().prop_map(|(key, word)| json!({ key: word })),
        many.prop_map(|(key, words)| json!({ key: words })),
        (string_key(), string_key()).prop_map(|((a, x), (b, y))| json!({ a: x, b: y })),
    ]
    .boxed()
}

fn string_key() -> impl Strategy<Value = (&'static str, Value)> {
    (prop_oneof![Just("is"), Just("not"), Just("contains"), Just("starts_with"), Just("ends_with")], word())
}

fn list_matcher() -> impl Strategy<Value = Value> {
    let value = prop_oneof![word(), Just(json!(5)), Just(json!(true))];
    let key = prop_oneof![Just("has"), Just("is"), Just("exclude")];
    prop_oneof![value.clone(), (key, value).prop_map(|(key, value)| json!({ key: value }))]
}

fn criteria() -> BoxedStrategy<Value> {
    let texts = prop_oneof![
        Just("email"),
        Just("domain"),
        Just("user"),
        Just("provider"),
        Just("http_method"),
        Just("http_path"),
        Just("http_header/x-team"),
        Just("http_query/page")
    ];
    let flags = prop_oneof![
        Just("accept"),
        Just("reject"),
        Just("authenticated_user"),
        Just("invalid_client_certificate")
    ];
    let claims = prop_oneof![Just("claim/groups"), Just("claim/level"), Just("claim/absent")];
    prop_oneof![
        4 => (texts, string_matcher()).prop_map(|(name, data)| json!({ name: data })),
        1 => flags.prop_map(|name| json!({ name: true })),
        1 => string_matcher().prop_map(|data| json!({ "client_certificate": { "san_dns": data } })),
        2 => (claims, list_matcher()).prop_map(|(name, data)| json!({ name: data })),
        // Groups are texts, whatever was typed.
        1 => word().prop_map(|data| json!({ "groups": data })),
        1 => word().prop_map(|data| json!({ "groups": { "exclude": data } })),
    ]
    .boxed()
}

fn policies() -> impl Strategy<Value = Value> {
    let operator = prop_oneof![Just("and"), Just("or"), Just("not"), Just("nor")];
    let lists = prop::collection::btree_map(operator, prop::collection::vec(criteria(), 0..4), 0..3);
    let action = prop_oneof![3 => Just("allow"), 1 => Just("deny")];
    let rule = (action, lists).prop_map(|(action, lists)| json!({ action: lists }));
    prop::collection::vec(rule, 0..4).prop_map(|rules| json!(rules))
}

fn requests() -> impl Strategy<Value = Plain> {
    let maybe = |value: Value| prop_oneof![Just(Some(value)), Just(None)];
    let claims = (
        prop_oneof![Just("jane"), Just("bob")],
        maybe(json!("jane@a.test")),
        prop_oneof![Just(Some(json!(true))), Just(Some(json!(false))), Just(None)],
        prop_oneof![
            Just(Some(json!(["dev"]))),
            Just(Some(json!(["dev", "ops"]))),
            Just(Some(json!([]))),
            Just(None)
        ],
        prop_oneof![Just(Some(json!(5))), Just(Some(json!("5"))), Just(Some(json!([true, 5]))), Just(None)],
    );
    let claims = claims.prop_map(|(sub, email, verified, groups, level)| {
        let all = [
            ("sub", Some(json!(sub))),
            ("email", email),
            ("email_verified", verified),
            ("groups", groups),
            ("level", level),
        ];
        let known = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(known.collect())
    });
    let parts = (
        prop_oneof![1 => Just(None), 3 => claims.prop_map(Some)],
        prop_oneof![Just("GET"), Just("POST")],
        prop_oneof![Just("/a"), Just("/b")],
        prop_oneof![Just(None), Just(Some("dev")), Just(Some("a"))],
        prop_oneof![Just(""), Just("page=dev"), Just("page=a&page=ops"), Just("x=1")],
        prop_oneof![
            Just(None),
            (prop_oneof![Just(vec![]), Just(vec!["a.test"]), Just(vec!["dev", "p"])], any_bool())
                .prop_map(Some)
        ],
    );
    parts.prop_map(|(claims, method, path, team, query, certificate)| Plain {
        claims,
        method,
        path,
        team,
        query,
        certificate,
    })
}

fn any_bool() -> impl Strategy<Value = bool> {
    prop_oneof![Just(true), Just(false)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_policy_decides_as_the_words_say(policy in policies(), request in requests()) {
        prop_assert_eq!(compiled(&policy, &request), naive(&policy, &request));
    }
}

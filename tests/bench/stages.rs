//! What each stage of the road costs: `cargo bench`. Compare numbers of one run only; what a whole request takes, and
//! may take, is counted by `tests/bench/instructions`.

#![allow(clippy::expect_used, missing_docs, reason = "a measurement that cannot be set up says so and ends")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use portcullis::assertion::{ClaimHeader, Form, IssuerFormat, claim_header_name};
use portcullis::authorize::{Decision, Facts, Policy};
use portcullis::clock::{Clock, Timestamp};
use portcullis::connection::Connection;
use portcullis::crypto::Signer;
use portcullis::http::forwarded::ForwardedRules;
use portcullis::http::headers::{HeaderRules, remove_hop_by_hop, scrub};
use portcullis::http::{Canonical, LastHost, PathRules, Readings, Scheme, Seen, canonicalise, cookies};
use portcullis::identity::{Caller, Identity, Reading};
use portcullis::route::{HostPattern, Match, PathMatch, Table};
use portcullis::session::{Content, Found, Origin, Recent, Sessions, Settings, Tokens};
use portcullis::store::{MemoryStore, Tag, Tags};
use serde_json::{Value, json};

fn now() -> Timestamp {
    Timestamp::from_unix_seconds(1_790_000_000)
}

fn claims() -> serde_json::Map<String, Value> {
    let Value::Object(claims) = json!({
        "sub": "jane-1", "email": "jane@example.com", "email_verified": true, "name": "Jane Doe",
        "groups": ["dev", "ops", "staff"],
    }) else {
        return serde_json::Map::new();
    };
    claims
}

fn reading() -> Reading {
    Reading::plain("groups")
}

fn jane() -> Caller {
    let identity = Identity::read("session".into(), "provider".into(), claims(), &reading(), now());
    Caller::Identified(Arc::new(identity.expect("a sub")))
}

/// As a browser sends them.
fn fields() -> HeaderMap {
    let fields = [
        ("host", "app.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("connection", "keep-alive"),
        (
            "cookie",
            "theme=dark; __Host-_pomerium=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
        ("sec-fetch-site", "none"),
    ];
    fields
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

fn route_match(bench: &mut Criterion) {
    for count in [1, 1000, 10_000] {
        let hosts = Table::new((0..count).map(|at| {
            let host = HostPattern::new(&format!("r{at}.example.com")).expect("a host");
            (Match { host, port: None, path: PathMatch::Prefix("/".into()) }, at)
        }));
        let path = || Readings::of("/items/1", PathRules::default()).expect("a path");
        let request = Canonical::new(Scheme::Https, &format!("r{}.example.com", count / 2), None, path());
        bench.bench_function(&format!("route: one of {count} hosts"), |bench| {
            bench.iter(|| hosts.find(black_box(&request)));
        });
        let paths = Table::new((0..count).map(|at| {
            let host = HostPattern::new("app.example.com").expect("a host");
            (Match { host, port: None, path: PathMatch::Prefix(format!("/r{at}").into()) }, at)
        }));
        let path = Readings::of(&format!("/r{}/items/1", count / 2), PathRules::default()).expect("a path");
        let request = Canonical::new(Scheme::Https, "app.example.com", None, path);
        bench.bench_function(&format!("route: one of {count} paths"), |bench| {
            bench.iter(|| paths.find(black_box(&request)));
        });
    }
}

fn canonical_request(bench: &mut Criterion) {
    let mut request = Request::builder().uri("/items/1?x=2").body(()).expect("a request");
    *request.headers_mut() = fields();
    let host = LastHost::default();
    bench.bench_function("http: canonical request", |bench| {
        bench.iter(|| {
            let seen = Seen::of(request.headers());
            canonicalise(black_box(&request), seen, Scheme::Https, PathRules::default(), &host)
        });
    });
}

fn header_work(bench: &mut Criterion) {
    let address = "203.0.113.9:1".parse().expect("an address");
    let connection = Connection::new(address, address);
    let path = Readings::of("/", PathRules::default()).expect("a path");
    let canonical = Canonical::new(Scheme::Https, "app.example.com", None, path);
    let rules = HeaderRules::default();
    bench.bench_function("http: header work", |bench| {
        bench.iter_batched_ref(
            fields,
            |fields| {
                let seen = Seen::of(fields);
                let _ = scrub(fields, &rules, false);
                remove_hop_by_hop(fields, seen);
                cookies::remove(fields, |name| name == "__Host-_pomerium");
                black_box(ForwardedRules::default().chain(fields, &connection, &canonical, Scheme::Https));
            },
            BatchSize::SmallInput,
        );
    });
}

fn session_lookup(bench: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let origin = Origin { fingerprint: "f".into(), reading: reading() };
    let settings = Settings {
        providers: HashMap::from([("p".to_owned(), origin)]),
        lifetime: Duration::from_secs(3600),
        ..Settings::default()
    };
    let sessions = Sessions::new(settings, Arc::new(MemoryStore::new()), Clock::held_at(now()));
    let content = Content {
        provider: "p".into(),
        fingerprint: "f".into(),
        claims: claims(),
        from_userinfo: Vec::new(),
        signed_in: now(),
        asked: None,
        nonce: String::new(),
        tokens: Tokens::default(),
    };
    let tags = Tags { subject: Tag([0; 32]), provider_session: None, email: None };
    let (_, cookie) = runtime.block_on(sessions.begin(&content, tags, "app.example.com")).expect("a session");
    let line = HeaderValue::try_from(cookie.split(';').next().unwrap_or_default()).expect("a cookie");
    let fields = HeaderMap::from_iter([(http::header::COOKIE, line)]);
    let found = async |recent: &Recent| {
        let found = sessions.find_on(recent, "app.example.com", black_box(&fields), now()).await;
        assert!(matches!(found, Ok((Found::Session(_), _))));
    };
    bench.bench_function("session: first on a connection", |bench| {
        bench.iter(|| runtime.block_on(found(&Recent::default())));
    });
    let recent = Recent::default();
    bench.bench_function("session: the same again", |bench| bench.iter(|| runtime.block_on(found(&recent))));
}

fn decision(bench: &mut Criterion) {
    let two = json!([{ "allow": { "and": [
        { "email": { "ends_with": "@example.com" } }, { "claim/groups": { "has": "ops" } }
    ] } }]);
    // All of them are asked, and the last one lets the caller in.
    let group = |number: usize| json!({ "claim/groups": format!("team-{number}") });
    let caller: Vec<_> = (0..19).map(group).chain([json!({ "claim/groups": "ops" })]).collect();
    let request = json!([{ "allow": { "and": [
        { "email": { "ends_with": "@example.com" } }, { "domain": "example.com" }, { "groups": { "has": "ops" } },
        { "claim/groups": "ops" }, { "user": { "not": "bob" } }, { "provider": "provider" },
        { "http_method": { "in": ["GET", "HEAD"] } }, { "http_method": { "not": "DELETE" } },
        { "http_path": { "starts_with": "/items" } }, { "http_path": { "not_in": ["/admin", "/secret"] } },
        { "http_header/x-team": { "in": ["red", "blue"] } }, { "http_header/x-team": { "not": "green" } },
        { "http_query/page": "7" }, { "http_query/sort": { "starts_with": "na" } },
        { "source_ip": ["10.0.0.0/8", "203.0.113.0/24"] }, { "source_ip": "203.0.113.9" },
        { "date": { "after": "2020-01-01", "before": "2100-01-01" } },
        { "time_of_day": { "timezone": "Europe/Berlin", "after": "0:00", "before": "23:59:59" } },
        { "day_of_week": "mon-sun" }, { "day_of_week": { "is": "*", "timezone": "America/New_York" } },
    ] } }]);
    let (jane, client) = (jane(), "203.0.113.9".parse().expect("an address"));
    let headers =
        HeaderMap::from_iter([(HeaderName::from_static("x-team"), HeaderValue::from_static("blue"))]);
    for (name, source) in [
        ("two criteria about the caller", two),
        ("twenty about the caller", json!([{ "allow": { "or": caller } }])),
        ("twenty about caller, request and moment", request),
    ] {
        let policy = Policy::compile(&source, true).expect("a policy");
        let facts = |caller| Facts {
            caller,
            method: &Method::GET,
            path: "/items/1",
            client,
            query: "page=7&sort=name",
            headers: &headers,
            certificate: None,
            time: now(),
        };
        assert!(matches!(policy.decide(&facts(&jane)), Decision::Allow(_)), "{name}");
        bench.bench_function(&format!("authorize: {name}"), |bench| {
            bench.iter(|| policy.decide(&facts(black_box(&jane))));
        });
    }
}

fn assertion(bench: &mut Criterion) {
    let signer = Signer::from_secret(&[7; 32]).expect("a key");
    let claims = ["email", "groups"]
        .map(|claim| ClaimHeader { header: claim_header_name(claim).expect("a name"), claim: claim.into() });
    let form = Form::new(IssuerFormat::HostOnly, claims.to_vec());
    let state = |caller: &Caller| {
        black_box(form.state(&signer, caller, "app.example.com", now()).expect("signed"));
    };
    let caller = jane();
    bench.bench_function("assertion: kept", |bench| bench.iter(|| state(&caller)));
    bench.bench_function("assertion: signed", |bench| {
        bench.iter_batched_ref(jane, |caller| state(caller), BatchSize::SmallInput);
    });
}

criterion_group!(stages, route_match, canonical_request, header_work, session_lookup, decision, assertion);
criterion_main!(stages);

//! Other proxies ask, each in its own way, and forward by themselves. Here their questions are replayed; real ones ask
//! in `tests/e2e/doors.test.mjs`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::browser::Browser;
use crate::rig::{Answer, Rig, Setup};

pub const ROUTES: &str = "
  - from: http://app.localhost
    prefix: /admin
    decide_only: true
    pass_identity_headers: true
    show_error_details: true
    policy: [{allow: {or: [{groups: admins}]}}]
  - from: http://app.localhost
    prefix: /public
    decide_only: true
    pass_identity_headers: true
    allow_public_unauthenticated_access: true
  - from: http://app.localhost
    prefix: /read
    decide_only: true
    policy: [{allow: {and: [{authenticated_user: true}, {http_method: {is: GET}}]}}]
  - from: http://app.localhost
    prefix: /near
    decide_only: true
    policy: [{allow: {or: [{accept: true}]}, deny: {not: [{source_ip: 203.0.113.0/24}]}}]
  - from: http://app.localhost
    prefix: /quiet
    decide_only: true
    allow_any_authenticated_user: true
  - from: http://app.localhost
    decide_only: true
    pass_identity_headers: true
    allow_any_authenticated_user: true
  - from: http://forwarded.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
";

pub const TRUSTED: &str = "trusted_proxies: [127.0.0.1]\ngrpc_address: 127.0.0.1:0\ngrpc_insecure: true";

/// The doors over HTTP.
const DOORS: [&str; 6] = ["traefik", "caddy", "haproxy", "nginx", "envoy", "oauth2"];

/// Every header that says who is calling.
const SAID: [&str; 4] = [
    "x-pomerium-jwt-assertion",
    "x-pomerium-claim-email",
    "x-pomerium-claim-groups",
    "x-pomerium-claim-team",
];

pub fn rig_with(settings: &str) -> Rig {
    Rig::prepared(
        Setup { settings: settings.into(), routes: ROUTES.into(), ..Setup::default() },
        |provider| {
            provider.set(|state| {
                state.claims["groups"] = serde_json::json!(["dev", "ops"]);
                state.claims["team"] = serde_json::json!(null);
            });
        },
    )
}

fn rig() -> Rig {
    rig_with(TRUSTED)
}

/// A browser that has signed in on a host, by the pages that are ours.
pub fn signed_in(rig: &Rig, host: &str) -> Browser {
    let mut browser = rig.browser();
    let page = browser.open(&format!("http://{host}/.pomerium/"));
    assert_eq!(page.status, 200, "{page:?}");
    browser
}

/// What a door's proxy sends for a request.
struct Asked<'a> {
    door: &'a str,
    method: &'a str,
    host: &'a str,
    target: &'a str,
    /// Fields of the client.
    fields: String,
    /// Fields that the proxy leaves out.
    without: &'a [&'a str],
    from: &'a str,
}

impl<'a> Asked<'a> {
    fn new(door: &'a str, target: &'a str, fields: impl Into<String>) -> Self {
        Self {
            door,
            method: "GET",
            host: "app.localhost",
            target,
            fields: fields.into(),
            without: &[],
            from: "203.0.113.7",
        }
    }

    fn at(self, rig: &Rig) -> Answer {
        let Self { door, method, host, target, fields, without, from } = self;
        let (line, asked, said) = match door {
            "nginx" => (
                "GET /.pomerium/auth/nginx".to_owned(),
                "portcullis.internal",
                vec![
                    ("X-Original-URL", format!("http://{host}{target}")),
                    ("X-Original-Method", method.to_owned()),
                ],
            ),
            "envoy" => (format!("{method} /.pomerium/auth/envoy{target}"), host, Vec::new()),
            "oauth2" => (
                "GET /oauth2/auth".to_owned(),
                host,
                vec![("X-Forwarded-Uri", target.to_owned()), ("X-Forwarded-Method", method.to_owned())],
            ),
            other => (
                format!("GET /.pomerium/auth/{other}"),
                "portcullis.internal:4180",
                vec![
                    ("X-Forwarded-Method", method.to_owned()),
                    ("X-Forwarded-Host", host.to_owned()),
                    ("X-Forwarded-Uri", target.to_owned()),
                    ("X-Forwarded-Proto", "http".to_owned()),
                ],
            ),
        };
        let mut request = format!("{line} HTTP/1.1\r\nHost: {asked}\r\nConnection: close\r\n{fields}");
        let from = ("X-Forwarded-For", from.to_owned());
        for (name, value) in said.into_iter().chain([from]).filter(|(name, _)| !without.contains(name)) {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        Answer::parse(&rig.server.send(format!("{request}\r\n")))
    }
}

fn ask(rig: &Rig, door: &str, target: &str, fields: impl Into<String>) -> Answer {
    Asked::new(door, target, fields).at(rig)
}

/// The records, once they have all been written.
pub fn settled(rig: &Rig) -> Vec<Value> {
    rig.server.raw_log();
    rig.server.records()
}

fn passes(answer: &Answer) -> bool {
    (200..300).contains(&answer.status)
}

const PAGE: &str = "Accept: text/html\r\n";

#[test]
fn a_caller_who_may_pass_passes_at_every_door_with_every_identity_header() {
    let rig = rig();
    let cookie = format!("{}{PAGE}", signed_in(&rig, "app.localhost").session("app.localhost"));
    for door in DOORS {
        let answer = ask(&rig, door, "/x?y=1", &cookie);
        let status = if door == "oauth2" { 202 } else { 200 };
        assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{door}: {answer:?}");
        assert_eq!(answer.header("x-pomerium-claim-email"), Some("jane@example.com"), "{door}");
        assert_eq!(answer.header("x-pomerium-claim-groups"), Some("dev,ops"), "{door}");
        assert_eq!(answer.header("x-pomerium-claim-team"), Some(""), "{door}");
        assert!(answer.header("x-pomerium-jwt-assertion").is_some_and(|jwt| jwt.len() > 100), "{door}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{door}");
        assert!(answer.header("set-cookie").is_none(), "{door}");
    }
    // Nobody who is known, and a route that tells nobody: the headers are there all the same.
    for (target, fields) in [("/public", PAGE), ("/public", ""), ("/quiet", cookie.as_str())] {
        for door in DOORS {
            let answer = ask(&rig, door, target, fields);
            assert!(passes(&answer), "{door} {target}: {answer:?}");
            for name in SAID {
                assert_eq!(answer.all(name), [""], "{door} {target} {name}");
            }
        }
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn who_has_to_sign_in_is_sent_there_in_the_terms_of_each_door() {
    let rig = rig();
    for door in DOORS {
        let page = ask(&rig, door, "/x?y=1", PAGE);
        let to = page.header("location").unwrap_or_default();
        match door {
            "nginx" => {
                assert_eq!((page.status, page.all("set-cookie").len()), (401, 0), "{page:?}");
                assert_eq!(
                    to,
                    "http://app.localhost/.pomerium/sign_in?pomerium_redirect_uri=http%3A%2F%2Fapp.localhost%2Fx%3Fy%3D1"
                );
            }
            "oauth2" => {
                assert_eq!((page.status, to, page.all("set-cookie").len()), (401, "", 0), "{page:?}");
            }
            _ => {
                assert_eq!(page.status, 302, "{door}: {page:?}");
                let start = "http://authenticate.localhost/.pomerium/sign_in?pomerium_request=";
                assert!(to.starts_with(start), "{door}: {to}");
                assert_eq!(page.all("set-cookie").len(), 1, "{door}");
            }
        }
        for fields in ["Accept: application/json\r\n", "Sec-Fetch-Mode: cors\r\nAccept: text/html\r\n"] {
            let script = ask(&rig, door, "/x", fields);
            assert_eq!((script.status, script.header("location")), (401, None), "{door}: {script:?}");
            assert_eq!(script.json()["error"], "sign-in required", "{door}");
        }
        // What was sent is with the proxy; a sign-in would lose it.
        let posted = Asked { method: "POST", ..Asked::new(door, "/x", PAGE) }.at(&rig);
        assert_eq!((posted.status, posted.header("location")), (401, None), "{door}: {posted:?}");
    }
}

#[test]
fn who_may_not_pass_does_not_pass_and_is_told_why() {
    let rig = rig();
    let cookie = format!("{}{PAGE}", signed_in(&rig, "app.localhost").session("app.localhost"));
    for door in DOORS {
        let answer = ask(&rig, door, "/admin/x", &cookie);
        assert_eq!(answer.status, 403, "{door}: {answer:?}");
        assert!(answer.body.contains("for the group admins"), "{door}: {answer:?}");
        for name in SAID {
            assert_eq!(answer.header(name), None, "{door}");
        }
        let elsewhere = Asked { host: "nowhere.localhost", ..Asked::new(door, "/", &cookie) }.at(&rig);
        let status = if matches!(door, "nginx" | "oauth2") { 403 } else { 404 };
        assert_eq!(elsewhere.status, status, "{door}: {elsewhere:?}");
        // The method is what was asked about, not how.
        assert!(passes(&ask(&rig, door, "/read", &cookie)), "{door}");
        let posted = Asked { method: "POST", ..Asked::new(door, "/read", &cookie) }.at(&rig);
        assert_eq!(posted.status, 403, "{door}: {posted:?}");
        // Another host's cookie opens nothing.
        let other = Asked { host: "forwarded.localhost", ..Asked::new(door, "/", &cookie) }.at(&rig);
        assert!(matches!(other.status, 302 | 401), "{door}: {other:?}");
    }
}

#[test]
fn only_the_proxies_that_are_named_are_answered() {
    let settings = [
        "",
        "trusted_proxies: [10.0.0.0/8]",
        // Says how many hops to count, and names nobody.
        "xff_num_trusted_hops: 1",
    ];
    for settings in settings {
        let rig = rig_with(settings);
        for door in DOORS {
            for target in ["/public", "/x", "/near"] {
                let answer = ask(&rig, door, target, "");
                assert_eq!(answer.status, 403, "{settings} {door} {target}: {answer:?}");
            }
        }
        let records = settled(&rig);
        assert!(records.iter().all(|record| record["message"] != "authorize-check"), "{records:#?}");
        let noted = records
            .iter()
            .filter(|record| record["error"] == "127.0.0.1 asks, and is not one of trusted_proxies");
        assert_eq!(noted.count(), DOORS.len() * 3);
    }
}

#[test]
fn what_a_proxy_does_not_say_is_not_made_up() {
    let rig = rig();
    let cookie = signed_in(&rig, "app.localhost").session("app.localhost");
    let needed: [(&str, &[&str]); 6] = [
        ("traefik", &["X-Forwarded-Method", "X-Forwarded-Host", "X-Forwarded-Uri", "X-Forwarded-For"]),
        ("caddy", &["X-Forwarded-Method", "X-Forwarded-Host", "X-Forwarded-Uri", "X-Forwarded-For"]),
        ("haproxy", &["X-Forwarded-Method", "X-Forwarded-Host", "X-Forwarded-Uri", "X-Forwarded-For"]),
        ("nginx", &["X-Original-URL", "X-Original-Method", "X-Forwarded-For"]),
        ("envoy", &["X-Forwarded-For"]),
        ("oauth2", &["X-Forwarded-Uri", "X-Forwarded-For"]),
    ];
    for (door, names) in needed {
        let refused = [if matches!(door, "nginx" | "oauth2") { 403 } else { 400 }];
        for name in names {
            let left_out = Asked { without: &[name], ..Asked::new(door, "/public", &cookie) }.at(&rig);
            assert!(refused.contains(&left_out.status), "{door} without {name}: {left_out:?}");
            if !matches!(*name, "X-Forwarded-For") {
                let value = if name.ends_with("Method") { "GET" } else { "/public" };
                let twice = ask(&rig, door, "/public", format!("{cookie}{name}: {value}\r\n"));
                assert!(refused.contains(&twice.status), "{door} with two {name}: {twice:?}");
            }
        }
        for from in ["", "unknown", "203.0.113.7, unknown", "_hidden"] {
            let answer = Asked { from, ..Asked::new(door, "/near", "") }.at(&rig);
            assert!(!passes(&answer), "{door} from `{from}`: {answer:?}");
        }
    }
    // oauth2-proxy's users do not send the method: it is missed only where it matters.
    let unsaid = |target: &str| {
        Asked { without: &["X-Forwarded-Method"], ..Asked::new("oauth2", target, &cookie) }.at(&rig)
    };
    assert_eq!(unsaid("/x").status, 202);
    let refused = unsaid("/read");
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(refused.body.contains("X-Forwarded-Method"), "{refused:?}");
}

#[test]
fn the_client_is_who_the_proxy_says_and_not_the_proxy() {
    let rig = rig();
    for door in DOORS {
        let from = |from: &str| Asked { from, ..Asked::new(door, "/near", "") }.at(&rig).status;
        assert!((200..300).contains(&from("203.0.113.7")), "{door}");
        // The rightmost is what the proxy wrote; those before it are what the client said.
        assert_eq!(from("203.0.113.7, 198.51.100.1"), 403, "{door}");
        assert_eq!(from("198.51.100.1"), 403, "{door}");
        let line = "X-Forwarded-For: 203.0.113.9\r\n";
        let spoofed = Asked { from: "198.51.100.1", ..Asked::new(door, "/near", line) }.at(&rig);
        assert_eq!(spoofed.status, 403, "{door}");
    }
    let decided: Vec<Value> =
        settled(&rig).into_iter().filter(|record| record["message"] == "authorize-check").collect();
    assert_eq!(decided.len(), DOORS.len() * 4);
    for record in decided {
        assert_eq!(record["method"], "GET");
        assert_eq!(record["host"], "app.localhost");
        assert_eq!(record["path"], "/near");
        let near = record["ip"] == "203.0.113.7";
        assert_eq!(record["allow"], near, "{record}");
        assert_eq!(record["route"], "http://app.localhost/near");
    }
}

#[test]
fn a_path_that_could_be_read_in_two_ways_passes_at_no_door() {
    let rig = rig();
    let cookie = signed_in(&rig, "app.localhost").session("app.localhost");
    let roundabout = [
        "/public/../admin",
        "/public/..%2fadmin",
        "/public/%2e%2e/admin",
        "/public/%252e%252e/admin",
        "/public/..;/admin",
        "/public//../admin",
        "/public\\..\\admin",
        "/public/%5c../admin",
        "/public/%00",
        "/admin#/public",
        "/admin%23/../public",
        "http://app.localhost/public",
        "public",
        "*",
        "/public /admin",
    ];
    for door in DOORS {
        for target in roundabout {
            // Some cannot be written in a request line at all, and end with the connection.
            let answer = ask(&rig, door, target, &cookie);
            assert!(!passes(&answer), "{door} {target}: {answer:?}");
        }
        assert!(passes(&ask(&rig, door, "/public/a%20b?c=%2f..%2f", &cookie)), "{door}");
    }
}

#[test]
fn a_program_with_a_token_passes_at_every_door_and_its_token_does_not() {
    let rig = rig();
    let token = rig.account("ci", &["email=ci@example.com", "email_verified=true", "sub=jane-1"]);
    for door in DOORS {
        for field in [format!("Authorization: Bearer {token}"), format!("X-Pomerium-Authorization: {token}")]
        {
            let answer = ask(&rig, door, "/x", format!("{field}\r\n"));
            let name = field.split(':').next().unwrap().to_ascii_lowercase();
            assert!(passes(&answer), "{door} {field}: {answer:?}");
            assert_eq!(answer.header("x-pomerium-claim-email"), Some("ci@example.com"), "{door}");
            if door == "envoy" {
                let removed = answer.header("x-envoy-auth-headers-to-remove").unwrap();
                assert!(removed.split(',').any(|one| one == name), "{removed}");
            } else {
                assert_eq!(answer.header(&name), Some(""), "{door} {answer:?}");
            }
        }
        if door != "envoy" {
            // What is the application's goes on as it came.
            let session = signed_in(&rig, "app.localhost").session("app.localhost");
            let answer = ask(&rig, door, "/x", format!("{session}Authorization: Digest theirs\r\n"));
            assert_eq!(answer.header("authorization"), Some("Digest theirs"), "{door}");
        }
        let answer = ask(&rig, door, "/x", "Authorization: Bearer portcullis_x\r\n");
        assert!(!passes(&answer), "{door}: {answer:?}");
    }
}

#[test]
fn what_a_client_says_about_itself_is_overwritten() {
    let rig = rig();
    let session = signed_in(&rig, "app.localhost").session("app.localhost");
    let spoofed = "X-Pomerium-Claim-Email: root@example.com\r\nX-Pomerium-Jwt-Assertion: x.y.z\r\nX-Pomerium-Claim-Other: y\r\n\
        X-Forwarded-User: root\r\nRemote-User: root\r\nX-Auth-Request-User: root\r\n";
    for door in DOORS {
        for (target, email) in [("/x", "jane@example.com"), ("/public", "jane@example.com"), ("/quiet", "")] {
            let answer = ask(&rig, door, target, format!("{session}{spoofed}"));
            assert!(passes(&answer), "{door}: {answer:?}");
            assert_eq!(answer.all("x-pomerium-claim-email"), [email], "{door} {target}");
            assert_eq!(answer.all("x-pomerium-jwt-assertion").len(), 1, "{door} {target}");
            assert_ne!(answer.header("x-pomerium-jwt-assertion"), Some("x.y.z"));
            if door == "envoy" {
                let mut removed: Vec<_> =
                    answer.header("x-envoy-auth-headers-to-remove").unwrap().split(',').collect();
                removed.sort_unstable();
                let all = [
                    "cookie",
                    "remote-user",
                    "x-auth-request-user",
                    "x-forwarded-user",
                    "x-pomerium-claim-other",
                ];
                assert_eq!(removed, all);
            }
        }
        let nobody = ask(&rig, door, "/public", spoofed);
        for name in SAID {
            assert_eq!(nobody.all(name), [""], "{door} {name}");
        }
        // The application sees the other cookies, and not ours.
        let session = session.trim_end().trim_start_matches("Cookie: ");
        let answer = ask(&rig, door, "/x", format!("Cookie: a=1; {session}; b=\"2\"\r\n"));
        assert_eq!(answer.header("cookie"), Some("a=1; b=\"2\""), "{door}");
        let answer = ask(&rig, door, "/x", format!("Cookie: {session}\r\n"));
        let none = if door == "envoy" { None } else { Some("") };
        assert_eq!(answer.header("cookie"), none, "{door}");
        // Underscores stand for dashes somewhere.
        let answer = ask(&rig, door, "/x", format!("Cookie: {session}\r\nx_other: 1\r\n"));
        assert!(!passes(&answer), "{door}: {answer:?}");
    }
}

#[test]
fn a_page_of_another_site_opens_no_tunnel() {
    let rig = rig();
    let session = signed_in(&rig, "app.localhost").session("app.localhost");
    let handshakes = [
        // As nginx and Traefik pass it on: what concerns the connection is left out.
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Sec-WebSocket-Version: 13\r\n",
        "Sec-Fetch-Mode: websocket\r\n",
        // As it came.
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    ];
    for door in DOORS {
        for handshake in handshakes {
            let from = |origin: &str| ask(&rig, door, "/x", format!("{session}{handshake}{origin}")).status;
            assert_eq!(from("Origin: http://evil.localhost\r\n"), 403, "{door} {handshake}");
            assert_eq!(from("Origin: null\r\n"), 403, "{door} {handshake}");
            let own = from("Origin: http://app.localhost\r\n");
            assert!((200..300).contains(&own), "{door} {handshake}");
        }
    }
}

#[test]
fn pages_of_our_own_let_nothing_pass() {
    let rig = rig();
    let mut browser = signed_in(&rig, "app.localhost");
    let session = browser.session("app.localhost");
    let pages = [
        "/.pomerium/",
        "/.pomerium/user",
        "/.pomerium/routes",
        "/.pomerium/signed_out",
        "/.pomerium/nothing",
        "/.pomerium/auth/nginx",
        "/.pomerium/auth/envoy/public",
        "/.well-known/pomerium/jwks.json",
        "/ping",
        "/oauth2/userinfo",
        "/oauth2/sign_in",
    ];
    for door in DOORS {
        for page in pages {
            let answer = ask(&rig, door, page, &session);
            assert!(!passes(&answer), "{door} {page}: {answer:?}");
        }
    }
    // Where our answer gets to the browser, the last step of a sign-in works by way of the proxy.
    for door in ["traefik", "caddy", "haproxy", "envoy"] {
        let out = ask(&rig, door, "/.pomerium/sign_out", format!("{session}{PAGE}"));
        assert_eq!(out.status, 302, "{door}: {out:?}");
        assert!(out.header("set-cookie").is_some(), "{door}: {out:?}");
        let to = out.header("location").unwrap();
        assert!(to.starts_with("http://"), "{door}: {to}");
    }
    assert_eq!(browser.get("http://app.localhost/.pomerium/user").status, 302);
    // Where it does not, nothing is done there.
    let session = signed_in(&rig, "app.localhost").session("app.localhost");
    for door in ["nginx", "oauth2"] {
        assert_eq!(ask(&rig, door, "/.pomerium/sign_out", format!("{session}{PAGE}")).status, 403, "{door}");
        assert!(passes(&ask(&rig, door, "/x", &session)), "{door}");
    }
}

#[test]
fn a_route_that_another_proxy_forwards_is_not_forwarded_here() {
    let rig = rig();
    let mut browser = signed_in(&rig, "app.localhost");
    for target in ["/", "/public", "/near", "/oauth2/other"] {
        let answer = browser.get(&format!("http://app.localhost{target}"));
        assert_eq!(answer.status, 404, "{target}: {answer:?}");
    }
    // And an application's own paths are its own.
    let mut browser = signed_in(&rig, "forwarded.localhost");
    for path in ["start", "auth", "sign_in", "sign_out", "userinfo"] {
        let answer = browser.get(&format!("http://forwarded.localhost/oauth2/{path}"));
        assert_eq!(answer.header("x-upstream"), Some("yes"), "{path}: {answer:?}");
    }
}

#[test]
fn those_who_come_from_oauth2_proxy_find_their_endpoints() {
    let rig = rig();
    let mut browser = rig.browser();
    // Nobody is let in for `rd` alone.
    let outside = [
        "http://evil.localhost/",
        "//evil.localhost/",
        "/\\evil.localhost/",
        "https:evil.localhost",
        "/%09/evil.localhost",
        "javascript:alert(1)",
        "http://app.localhost@evil.localhost/",
    ];
    for rd in outside {
        let rd: String = url::form_urlencoded::byte_serialize(rd.as_bytes()).collect();
        for path in ["start", "sign_in"] {
            let answer = browser.get(&format!("http://app.localhost/oauth2/{path}?rd={rd}"));
            let to = answer.header("location").unwrap_or_default();
            assert!(!to.contains("evil") || to.starts_with("http://authenticate.localhost/"), "{rd}: {to}");
            assert!(
                answer.status == 400 || path == "sign_in" || rd.starts_with("%2F%2509"),
                "{rd}: {answer:?}"
            );
        }
    }
    let page = browser.get("http://app.localhost/oauth2/sign_in?rd=%2Fnext");
    assert_eq!(page.status, 403);
    assert!(page.body.contains("/oauth2/start?rd=http%3A%2F%2Fapp.localhost%2Fnext"), "{page:?}");
    // nginx cannot encode it, and what follows is still part of it.
    let page = browser.get("http://app.localhost/oauth2/sign_in?rd=http://app.localhost/next?a=1&b=%20c");
    assert!(page.body.contains("rd=http%3A%2F%2Fapp.localhost%2Fnext%3Fa%3D1%26b%3D%2520c"), "{page:?}");
    let arrived = browser.until("http://app.localhost/oauth2/start?rd=%2Fnext%3Fa%3D1", "/next?a=1");
    assert_eq!(arrived, "http://app.localhost/next?a=1");
    let info = browser.get("http://app.localhost/oauth2/userinfo").json();
    assert_eq!((&info["email"], &info["groups"][1]), (&"jane@example.com".into(), &"ops".into()));
    let session = browser.session("app.localhost");
    let auth = ask(&rig, "oauth2", "/x", &session);
    for (name, value) in [("email", "jane@example.com"), ("groups", "dev,ops"), ("preferred-username", "")] {
        assert_eq!(auth.all(&format!("x-auth-request-{name}")), [value]);
    }
    assert!(!auth.header("x-auth-request-user").unwrap().is_empty());
    let out = browser.request("POST", "http://app.localhost/oauth2/sign_out", "", "");
    assert_eq!(out.status, 302, "{out:?}");
    assert_eq!(ask(&rig, "oauth2", "/x", &session).status, 401);
}

#[test]
fn a_query_of_oauth2_auth_narrows_and_never_widens() {
    let rig = rig();
    let session = signed_in(&rig, "app.localhost").session("app.localhost");
    let auth = |query: &str, target: &str, fields: &str| {
        let request = format!(
            "GET /oauth2/auth{query} HTTP/1.1\r\nHost: app.localhost\r\nX-Forwarded-Uri: {target}\r\nX-Forwarded-For: 203.0.113.7\r\n\
             X-Forwarded-Method: GET\r\nConnection: close\r\n{fields}\r\n"
        );
        Answer::parse(&rig.server.send(request)).status
    };
    let cases = [
        ("", 202),
        ("?allowed_groups=ops", 202),
        ("?allowed_groups=x,dev", 202),
        ("?allowed_groups=x", 403),
        ("?allowed_groups=", 403),
        ("?allowed_emails=JANE@example.com", 202),
        ("?allowed_emails=joe@example.com", 403),
        ("?allowed_email_domains=example.com", 202),
        ("?allowed_email_domains=*.com", 202),
        ("?allowed_email_domains=.example.com", 403),
        ("?allowed_email_domains=ample.com", 403),
        ("?allowed_groups=ops&allowed_emails=joe@example.com", 403),
        ("?allowed_groups=ops&allowed_email_domains=example.com", 202),
        ("?allowed_group=ops", 403),
        ("?rd=/", 403),
    ];
    for (query, status) in cases {
        assert_eq!(auth(query, "/x", &session), status, "{query}");
    }
    // Who may not pass at all does not pass for being listed.
    assert_eq!(auth("?allowed_groups=dev", "/admin", &session), 403);
    // And who is not known is in no list.
    assert_eq!(auth("", "/public", ""), 202);
    assert_eq!(auth("?allowed_groups=dev", "/public", ""), 403);
}

#[test]
fn what_is_decided_for_other_proxies_is_counted_by_route_and_outcome() {
    let mut rig = rig_with(&format!("{TRUSTED}\nmetrics_address: 127.0.0.1:0"));
    let metrics = crate::metrics::address(&mut rig);
    let session = signed_in(&rig, "app.localhost").session("app.localhost");
    for door in DOORS {
        Asked::new(door, "/quiet", session.as_str()).at(&rig);
        Asked::new(door, "/quiet", "").at(&rig);
        Asked::new(door, "/admin", session.as_str()).at(&rig);
    }
    let page = crate::metrics::page(&metrics);
    let count = |route: &str, outcome: &str| -> u32 {
        let series =
            format!("portcullis_requests_total{{route=\"http://app.localhost{route}\",outcome=\"{outcome}\"");
        let lines = page.lines().filter(|line| line.starts_with(&series));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()).sum()
    };
    let doors = u32::try_from(DOORS.len()).unwrap();
    assert_eq!((count("/quiet", "forwarded"), count("/quiet", "sign_in")), (doors, doors), "{page}");
    assert_eq!((count("/admin", "refused"), count("/quiet", "own")), (doors, 0), "{page}");
}

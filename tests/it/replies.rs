//! What a client gets: the table of the contract.

use crate::rig::{Rig, Setup};

#[test]
fn a_request_without_a_session_is_answered_in_the_form_that_its_sender_can_use() {
    let rig = Rig::start();
    let navigation = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for (headers, status) in [
        (navigation, 302),
        ("Accept: text/html\r\n", 302),
        ("Accept: */*\r\n", 302),
        ("", 302),
        ("Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nAccept: text/html\r\n", 401),
        ("Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n", 401),
        ("Accept: application/json\r\n", 401),
        ("X-Requested-With: XMLHttpRequest\r\n", 401),
        ("Accept: text/event-stream\r\n", 401),
    ] {
        let answer = rig.server.get("app.localhost", "/", headers);
        assert_eq!(answer.status, status, "{headers}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{headers}");
        assert!(answer.header("x-request-id").is_some());
        if status == 401 {
            assert!(answer.header("www-authenticate").is_some());
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let body = answer.json();
            assert_eq!(body["request_id"], answer.header("x-request-id").unwrap());
            assert!(body["error"].is_string());
            let sign_in = body["sign_in_url"].as_str().unwrap();
            let mut browser = rig.browser();
            assert_eq!(browser.open(sign_in).status, 200, "{sign_in}");
        } else {
            assert!(
                answer
                    .header("location")
                    .unwrap()
                    .starts_with("http://authenticate.localhost/.pomerium/sign_in?")
            );
        }
    }
    let post = rig.server.send("POST / HTTP/1.1\r\nHost: app.localhost\r\nAccept: text/html\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 401") && post.contains("text/html"), "{post}");
}

#[test]
fn grpc_gets_grpc_statuses() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
  - from: http://closed.localhost
    to: http://UPSTREAM
    policy: []
  - from: http://down.localhost
    to: http://127.0.0.1:1
    allow_public_unauthenticated_access: true
",
    );
    for (host, status) in [("app.localhost", "16"), ("closed.localhost", "7"), ("down.localhost", "14")] {
        let answer = rig.server.get(host, "/s.S/M", "Content-Type: application/grpc\r\n");
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some(status)), "{host}");
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
    }
}

#[test]
fn a_refusal_says_for_whom_and_how_to_go_on() {
    let rig = Rig::settings("error_contact: Ask <ops@example.com>");
    let cookie = rig.signed_in().session("app.localhost");
    rig.upstream.forget();
    let page = rig.server.get("app.localhost", "/admin", &cookie);
    assert_eq!(page.status, 403);
    for text in [
        "jane@example.com",
        "/.pomerium/sign_out",
        "Ask &#60;ops@example.com&#62;",
        "groups-unauthorized",
        page.header("x-request-id").unwrap(),
    ] {
        assert!(page.body.contains(text), "{text}: {}", page.body);
    }
    let json = rig.server.get("app.localhost", "/admin", &format!("{cookie}Accept: application/json\r\n"));
    assert_eq!(json.status, 403);
    let keys: Vec<_> = json.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["error", "request_id"]);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn without_details_a_refusal_does_not_say_which_rule() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    to: http://UPSTREAM
    policy: [{allow: {or: [{groups: admins}]}}]
",
    );
    let mut browser = rig.browser();
    let page = browser.open("http://app.localhost/");
    assert_eq!(page.status, 403);
    assert!(!page.body.contains("groups") && page.body.contains("jane@example.com"), "{}", page.body);
}

#[test]
fn an_address_that_is_refused_asks_nobody_to_sign_in() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    to: http://UPSTREAM
    policy:
      - allow: {or: [{authenticated_user: true}]}
      - deny: {or: [{source_ip: 127.0.0.0/8}]}
",
    );
    assert_eq!(rig.server.get("app.localhost", "/", "").status, 403);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn pages_carry_every_protection() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    for (host, target, headers) in [
        ("app.localhost", "/admin", cookie.as_str()),
        ("app.localhost", "/.pomerium/", cookie.as_str()),
        ("nowhere.localhost", "/", ""),
        ("authenticate.localhost", "/oauth2/callback", ""),
        ("app.localhost", "/.pomerium/signed_out", ""),
        ("app.localhost", "/%00", ""),
    ] {
        let page = rig.server.get(host, target, headers);
        let policy = page.header("content-security-policy").unwrap_or_else(|| panic!("{target} {page:?}"));
        for needed in ["default-src 'none'", "frame-ancestors 'none'", "style-src 'sha256-"] {
            assert!(policy.contains(needed), "{target}: {policy}");
        }
        assert!(!policy.contains("unsafe"));
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(page.header(name), Some(value), "{target}");
        }
        assert!(
            !page.body.contains("<script") && !page.body.contains("http://")
                || target == "/.pomerium/"
                || target.contains("callback"),
            "{}",
            page.body
        );
    }
}

#[test]
fn the_callers_page_shows_who_they_are_and_what_they_may_open_and_no_token() {
    let rig = Rig::start();
    let mut browser = rig.signed_in();
    let page = browser.get("http://app.localhost/.pomerium/");
    for text in [
        "Jane Doe",
        "jane@example.com",
        "jane-1",
        "http://open.localhost/",
        "http://other.localhost/",
        "/.pomerium/sign_out",
    ] {
        assert!(page.body.contains(text), "{text}: {}", page.body);
    }
    assert!(!page.body.contains("http://app.localhost/admin"), "{}", page.body);
    let claims = browser.get("http://app.localhost/.pomerium/user");
    assert_eq!(claims.header("content-type"), Some("application/json"));
    assert_eq!(claims.json()["email"], "jane@example.com");
    let routes = browser.get("http://app.localhost/.pomerium/api/v1/routes");
    assert_eq!(routes.json()["routes"].as_array().unwrap().len(), 4);
    for answer in [&page, &claims, &routes] {
        assert!(!answer.body.contains("nonce"), "{}", answer.body);
        assert_eq!(rig.provider.token_within(&answer.body), None, "{}", answer.body);
    }
    let anonymous = rig.server.get("app.localhost", "/.pomerium/user", "Accept: application/json\r\n");
    assert_eq!(anonymous.status, 401);
}

#[test]
fn inner_endpoints_are_not_on_a_public_host() {
    let rig = Rig::start();
    for path in ["/metrics", "/debug/pprof", "/config_dump", "/stats", "/healthz", "/readyz", "/status"] {
        for host in ["authenticate.localhost", "nowhere.localhost"] {
            let answer = rig.server.get(host, path, "");
            assert_eq!(answer.status, 404, "{host}{path}");
        }
        assert_ne!(rig.server.get("app.localhost", path, "").status, 200);
    }
    assert_eq!(rig.upstream.seen(), "");
    for (path, status) in
        [("/healthz", 200), ("/readyz", 200), ("/startupz", 200), ("/status", 200), ("/x", 404)]
    {
        assert_eq!(rig.server.health(path), status);
    }
    assert_eq!(rig.server.get("app.localhost", "/ping", "").body, "OK");
    let metadata = rig.server.get("app.localhost", "/.well-known/pomerium", "").json();
    assert_eq!(metadata["authentication_callback_endpoint"], "http://authenticate.localhost/oauth2/callback");
}

#[test]
fn methods_that_an_endpoint_does_not_take_are_refused() {
    let rig = Rig::start();
    for target in [
        "/.pomerium/",
        "/.pomerium/user",
        "/.pomerium/sign_in",
        "/.pomerium/callback/",
        "/.well-known/pomerium/jwks.json",
        "/oauth2/callback",
    ] {
        let answer = rig.server.send(format!("POST {target} HTTP/1.1\r\nHost: authenticate.localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 405"), "{target}: {answer}");
    }
}

#[test]
fn requests_are_named_by_us_unless_a_trusted_proxy_did() {
    let rig = Rig::start();
    assert_ne!(
        rig.server.get("open.localhost", "/", "X-Request-Id: theirs\r\n").header("x-request-id"),
        Some("theirs")
    );
    let rig = Rig::with(Setup { settings: "trusted_proxies: 127.0.0.1".into(), ..Setup::default() });
    assert_eq!(
        rig.server.get("open.localhost", "/", "X-Request-Id: theirs-1\r\n").header("x-request-id"),
        Some("theirs-1")
    );
    assert_eq!(rig.upstream.header("x-request-id"), ["theirs-1"]);
}

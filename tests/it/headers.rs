//! What an upstream receives: identity as we say it, one forwarded chain, none of our cookies.

use crate::rig::Rig;

#[test]
fn forged_identity_headers_never_arrive() {
    let rig = Rig::settings("headers_with_underscores_action: allow");
    let cookie = rig.signed_in().session("app.localhost");
    let forged = [
        "X-Pomerium-Jwt-Assertion",
        "x-pomerium-jwt-assertion",
        "X_Pomerium_Jwt_Assertion",
        "X-Pomerium_Jwt-Assertion",
        "X-Pomerium-Jwt-Assertion-For",
        "X-Pomerium-Claim-Email",
        "X_POMERIUM_CLAIM_EMAIL",
        "x.pomerium.claim.email",
        "-X-Pomerium-Claim-Role",
        ".X-Forwarded-User",
        "X-Pomerium-Claim-Groups",
        "X-Pomerium-Claim-Role",
        "X-Forwarded-User",
        "X_Forwarded_User",
        "X-Forwarded-Email",
        "X-Forwarded-Groups",
        "X-Forwarded-Preferred-Username",
        "X-Auth-Request-User",
        "X-Auth-Request-Email",
        "Remote-User",
        "Remote_User",
        "X-Remote-User",
        "X-WebAuth-User",
        "X-Forwarded-Client-Cert",
        "Client-Cert",
        "X-SSL-Client-Cert",
        "X-Client-Verify",
        "Impersonate-User",
    ];
    for (host, path, cookie) in [
        ("app.localhost", "/", cookie.as_str()),
        ("open.localhost", "/", ""),
        ("app.localhost", "/public", ""),
    ] {
        for name in forged {
            rig.upstream.forget();
            let headers = format!("{cookie}{name}: forged-1\r\n{}: forged-2\r\n", name.to_uppercase());
            assert_eq!(rig.server.get(host, path, &headers).status, 200, "{name}");
            assert!(!rig.upstream.seen().contains("forged"), "{host}{path} {name}: {}", rig.upstream.seen());
        }
    }
    rig.upstream.forget();
    rig.server.get("app.localhost", "/", &format!("{cookie}X-Pomerium-Claim-Email: forged\r\n"));
    assert_eq!(rig.upstream.header("x-pomerium-claim-email"), ["jane@example.com"]);
    assert_eq!(rig.upstream.header("x-pomerium-jwt-assertion").len(), 1);
    rig.upstream.forget();
    rig.server.get("open.localhost", "/", "X-Pomerium-Claim-Email: forged\r\n");
    assert_eq!(rig.upstream.header("x-pomerium-claim-email"), [""]);
}

#[test]
fn underscores_in_names_are_refused_by_default() {
    let rig = Rig::start();
    assert_eq!(rig.server.get("open.localhost", "/", "X_Custom: a\r\n").status, 400);
    assert_eq!(rig.upstream.seen(), "");
    let rig = Rig::settings("headers_with_underscores_action: drop_header");
    assert_eq!(rig.server.get("open.localhost", "/", "X_Custom: a\r\nX-Kept: b\r\n").status, 200);
    assert_eq!((rig.upstream.header("x_custom").len(), rig.upstream.header("x-kept").len()), (0, 1));
}

#[test]
fn connection_cannot_take_our_headers_away() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    for listed in ["X-Pomerium-Jwt-Assertion", "X-Pomerium-Claim-Email, X-Forwarded-For", "Cookie", "Host"] {
        rig.upstream.forget();
        let headers = format!("{cookie}X-Named: gone\r\nConnection: X-Named, {listed}\r\n");
        assert_eq!(rig.server.get("app.localhost", "/", &headers).status, 200, "{listed}");
        assert_eq!(rig.upstream.header("x-pomerium-jwt-assertion").len(), 1, "{listed}");
        assert_eq!(rig.upstream.header("x-pomerium-claim-email"), ["jane@example.com"], "{listed}");
        assert_eq!(rig.upstream.header("x-forwarded-for"), ["127.0.0.1"], "{listed}");
        assert!(rig.upstream.header("x-named").is_empty());
    }
}

#[test]
fn the_forwarded_family_of_an_untrusted_peer_is_replaced_by_one_chain() {
    let rig = Rig::settings("headers_with_underscores_action: allow");
    let spoofed = [
        "Forwarded",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Server",
        "X-Forwarded-Ssl",
        "X-Forwarded-Scheme",
        "X-Forwarded-Uri",
        "X-Forwarded-Method",
        "X-Real-IP",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Envoy-Original-Path",
        "X-Envoy-External-Address",
    ];
    for name in spoofed {
        rig.upstream.forget();
        assert_eq!(
            rig.server.get("open.localhost", "/", &format!("{name}: 6.6.6.6\r\n{name}: evil\r\n")).status,
            200
        );
        let seen = rig.upstream.seen();
        assert!(!seen.contains("6.6.6.6") && !seen.contains("evil"), "{name}: {seen}");
    }
    assert_eq!(rig.upstream.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(rig.upstream.header("x-forwarded-proto"), ["http"]);
    assert_eq!(rig.upstream.header("x-forwarded-host"), ["open.localhost"]);
    assert_eq!(rig.upstream.header("x-forwarded-port"), ["80"]);
}

#[test]
fn a_trusted_proxy_is_believed_about_the_client() {
    const ROUTES: &str = "
  - from: http://app.localhost
    to: http://UPSTREAM
    policy:
      - allow: {or: [{accept: true}]}
      - deny: {or: [{source_ip: 203.0.113.0/24}]}
";
    for (settings, chain, status) in [
        ("", "203.0.113.9", 200),
        ("trusted_proxies: [127.0.0.0/8]", "203.0.113.9", 403),
        ("trusted_proxies: [127.0.0.0/8]", "203.0.113.9, 198.51.100.1", 200),
        ("trusted_proxies: [127.0.0.0/8, 198.51.100.0/24]", "203.0.113.9, 198.51.100.1", 403),
        ("trusted_proxies: [10.0.0.0/8]", "203.0.113.9", 200),
        ("xff_num_trusted_hops: 1", "203.0.113.9", 403),
    ] {
        let rig = Rig::with(crate::rig::Setup {
            settings: settings.into(),
            routes: ROUTES.into(),
            ..Default::default()
        });
        let answer = rig.server.get("app.localhost", "/", &format!("X-Forwarded-For: {chain}\r\n"));
        assert_eq!(answer.status, status, "{settings} {chain}");
        if settings.starts_with("trusted_proxies: [127") && status == 200 {
            assert_eq!(rig.upstream.header("x-forwarded-for"), [format!("{chain}, 127.0.0.1")]);
        }
    }
}

#[test]
fn our_cookies_do_not_reach_the_upstream_and_the_others_arrive_byte_for_byte() {
    let rig = Rig::start();
    let browser = rig.signed_in();
    let session = browser.session("app.localhost").trim_end().trim_start_matches("Cookie: ").to_owned();
    for (sent, expected) in [
        (session.clone(), vec![]),
        (format!("a=1; {session}; b=\"x y\"; c"), vec!["a=1; b=\"x y\"; c"]),
        (format!("a=1;  b==;;{session}"), vec!["a=1;  b==;"]),
        (format!("{session}; __Host-_pomerium_state_x=y; _pomerium=old; z=1"), vec!["z=1"]),
    ] {
        rig.upstream.forget();
        assert_eq!(
            rig.server.get("app.localhost", "/", &format!("Cookie: {sent}\r\n")).status,
            200,
            "{sent}"
        );
        assert_eq!(rig.upstream.header("cookie"), expected, "{sent}");
    }
    rig.upstream.forget();
    // One that opens nothing is not passed over for the cookie; where anybody may pass, it goes no further.
    let credential = "Authorization: Pomerium secret\r\n";
    let answer = rig.server.get("app.localhost", "/", &format!("Cookie: {session}\r\n{credential}"));
    assert_eq!((answer.status, rig.upstream.seen().as_str()), (401, ""));
    let answer = rig.server.get("app.localhost", "/public", &format!("Cookie: {session}\r\n{credential}"));
    assert_eq!((answer.status, rig.upstream.header("authorization").len()), (200, 0));
    rig.upstream.forget();
    let answer = rig.server.get("app.localhost", "/public", "X-Pomerium-Authorization: secret\r\n");
    assert_eq!((answer.status, rig.upstream.header("x-pomerium-authorization").len()), (200, 0));
    for kept in ["Bearer eyJ.x.y", "Basic dXNlcjpwYXNz"] {
        rig.upstream.forget();
        rig.server.get("app.localhost", "/", &format!("Cookie: {session}\r\nAuthorization: {kept}\r\n"));
        assert_eq!(rig.upstream.header("authorization"), [kept]);
    }
}

#[test]
fn an_upstream_cannot_set_our_cookies() {
    let rig = Rig::start();
    rig.upstream.answer(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: __Host-_pomerium=evil; Path=/\r\nSet-Cookie: theirs=1\r\n\
         Set-Cookie: _pomerium_csrf=x\r\nSet-Cookie: =__Host-_pomerium=evil\r\nSet-Cookie:  = _pomerium=evil\r\n\r\n",
    );
    let answer = rig.server.get("open.localhost", "/", "");
    assert_eq!(answer.all("set-cookie"), ["theirs=1"]);
}

#[test]
fn a_garbage_credential_is_no_identity() {
    let rig = Rig::start();
    for header in [
        "Authorization: Bearer x",
        "Authorization: Pomerium x",
        "X-Pomerium-Authorization: x",
        "Cookie: _pomerium=x",
    ] {
        assert_ne!(
            rig.server
                .get("app.localhost", "/?access_token=x&pomerium_session=y", &format!("{header}\r\n"))
                .status,
            200
        );
    }
    for agent in ["kube-probe/1.30", "GoogleHC/1.0", "ELB-HealthChecker/2.0"] {
        assert_ne!(
            rig.server.get("app.localhost", "/admin", &format!("User-Agent: {agent}\r\n")).status,
            200
        );
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn the_assertion_verifies_with_the_published_keys() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    rig.upstream.forget();
    rig.server.get("app.localhost", "/", &cookie);
    let token = rig.upstream.header("x-pomerium-jwt-assertion").remove(0);
    let jwks = rig.server.get("app.localhost", "/.well-known/pomerium/jwks.json", "");
    assert_eq!(jwks.status, 200);
    assert!(!jwks.body.contains("\"d\""));
    let keys = portcullis::crypto::KeySet::parse(jwks.body.as_bytes()).unwrap();
    let expected = portcullis::crypto::Expected {
        issuer: "app.localhost",
        audience: Some("app.localhost"),
        allowed: &[portcullis::crypto::Algorithm::ES256],
        undated: None,
    };
    let now = portcullis::clock::Clock::system().now();
    let claims = portcullis::crypto::verify(&token, &keys, &expected, now).unwrap().claims;
    for (name, value) in [
        ("sub", "jane-1"),
        ("user", "jane-1"),
        ("email", "jane@example.com"),
        ("name", "Jane Doe"),
        ("team", "blue"),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_eq!(claims["groups"], serde_json::json!(["dev"]));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);
}

#[test]
fn route_header_rules_apply_but_ours_come_last() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
    pass_identity_headers: true
    preserve_host_header: true
    set_request_headers: {X-Set: a$$b, X-Removed: kept, X-Pomerium-Claim-Email: forged}
    remove_request_headers: [X-Gone, X-Removed]
    set_response_headers: {X-Answer: b, X-Frame-Options: DENY}
  - from: http://rewritten.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
    host_rewrite: inner.example.com
    set_response_headers: {disable: true}
",
    );
    let cookie = rig.signed_in().session("app.localhost");
    rig.upstream.forget();
    let answer = rig.server.get("app.localhost", "/", &format!("{cookie}X-Gone: 1\r\nX-Removed: client\r\n"));
    assert_eq!(rig.upstream.header("x-set"), ["a$b"]);
    assert_eq!(rig.upstream.header("x-removed"), ["kept"]);
    assert!(rig.upstream.header("x-gone").is_empty());
    assert_eq!(rig.upstream.header("x-pomerium-claim-email"), ["jane@example.com"]);
    assert_eq!(rig.upstream.header("host"), ["app.localhost"]);
    assert_eq!((answer.header("x-answer"), answer.header("x-frame-options")), (Some("b"), Some("DENY")));
    assert_eq!(answer.header("x-xss-protection"), Some("1; mode=block"));
    rig.upstream.forget();
    let answer = rig.server.get("rewritten.localhost", "/", "");
    assert_eq!(rig.upstream.header("host"), ["inner.example.com"]);
    assert_eq!(answer.header("x-frame-options"), None);
}

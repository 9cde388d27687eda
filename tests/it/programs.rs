//! Programs: tokens of ours, tokens from elsewhere, and how none is taken for another.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis::crypto::{self, Signer};
use serde_json::{Map, Value, json};

use crate::browser::Browser;
use crate::provider::Provider;
use crate::rig::{Answer, BINARY, HTTPS, Rig, Setup, self_signed, write_certificate};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A request of a program with one header.
fn ask(rig: &Rig, host: &str, header: &str) -> Answer {
    rig.server.get(host, "/", &format!("Accept: application/json\r\n{header}\r\n"))
}

fn bearer(rig: &Rig, token: &str) -> Answer {
    ask(rig, "app.localhost", &format!("Authorization: Bearer {token}"))
}

/// The link that a program gets, and the token that it is given in the end.
fn program_token(rig: &Rig, browser: &mut Browser) -> String {
    let path = "/.pomerium/api/v1/login?pomerium_redirect_uri=http://localhost:8000/done?x=1";
    let answer = rig.server.get("app.localhost", path, "");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    let last = browser.until(&answer.body, "http://localhost:8000/");
    let url = url::Url::parse(&last).unwrap();
    assert_eq!((url.path(), url.query_pairs().next().unwrap().0.as_ref()), ("/done", "x"));
    let pairs: Vec<_> = url.query_pairs().filter(|(name, _)| name == "pomerium_jwt").collect();
    assert_eq!(pairs.len(), 1, "{last}");
    pairs[0].1.clone().into_owned()
}

#[test]
fn a_program_gets_a_token_through_its_persons_browser() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let token = program_token(&rig, &mut browser);
    // Whoever has signed in already only passes by.
    let again = program_token(&rig, &mut browser);
    assert_ne!(token, again);
    for header in [
        format!("Authorization: Pomerium {token}"),
        format!("Authorization: Bearer Pomerium-{token}"),
        format!("X-Pomerium-Authorization: {token}"),
    ] {
        rig.upstream.forget();
        let answer = ask(&rig, "app.localhost", &header);
        assert_eq!(answer.status, 200, "{header}: {answer:?}");
        let seen = rig.upstream.seen();
        assert!(!seen.contains(&token) && !seen.to_ascii_lowercase().contains("\r\nauthorization"), "{seen}");
        assert!(seen.to_ascii_lowercase().contains("x-pomerium-claim-email: jane@example.com"), "{seen}");
    }
    rig.upstream.forget();
    let refused = [
        // Only on its own host, and not as a cookie; a cookie is no token.
        ask(&rig, "other.localhost", &format!("Authorization: Pomerium {token}")),
        ask(&rig, "app.localhost", &format!("Cookie: __Host-_pomerium={token}")),
        ask(
            &rig,
            "app.localhost",
            &format!("Authorization: Pomerium {}", browser.cookies["app.localhost"]["__Host-_pomerium"]),
        ),
        ask(&rig, "app.localhost", &format!("Authorization: Bearer portcullis_{token}")),
        ask(&rig, "app.localhost", "Authorization: Pomerium x"),
        ask(&rig, "app.localhost", "X-Pomerium-Authorization: "),
    ];
    for answer in refused {
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer realm="), "{answer:?}");
    }
    assert_eq!(rig.upstream.seen(), "");
    let two = format!("Authorization: Pomerium {token}\r\nX-Pomerium-Authorization: {token}");
    assert_eq!(ask(&rig, "app.localhost", &two).status, 400);
    // It ends with the session.
    browser.open("http://app.localhost/.pomerium/sign_out");
    let answer = ask(&rig, "app.localhost", &format!("Authorization: Pomerium {token}"));
    assert_eq!(answer.status, 401);
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.contains("error=\"invalid_token\", error_description=\""), "{challenge}");
    assert!(!rig.server.raw_log().contains(&token));
}

#[test]
fn a_programs_token_goes_where_the_configuration_says_and_nowhere_else() {
    let rig = Rig::start();
    let login = |query: &str| rig.server.get("app.localhost", &format!("/.pomerium/api/v1/login{query}"), "");
    assert_eq!(login("").status, 404);
    for target in [
        "https://evil.example.com/",
        "http://localhost.evil.example.com/",
        "http://user@localhost/",
        "javascript:alert(1)",
        "//localhost/",
        "http://127.0.0.1:80/",
    ] {
        let answer = login(&format!("?pomerium_redirect_uri={target}"));
        assert_eq!(answer.status, 400, "{target}: {answer:?}");
    }
    let post = "POST /.pomerium/api/v1/login HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(rig.server.send(post).starts_with("HTTP/1.1 405"));
    // A link of another host, or of nobody's making.
    let mut browser = rig.signed_in();
    let answer = login("?pomerium_redirect_uri=http://localhost:8000/");
    let link = url::Url::parse(&answer.body).unwrap();
    let landing =
        link.query_pairs().find(|(name, _)| name == "pomerium_redirect_uri").unwrap().1.into_owned();
    assert_eq!(browser.open(&landing.replace("app.localhost", "other.localhost")).status, 400);
    assert_eq!(browser.open("http://app.localhost/.pomerium/programmatic?pomerium_program=x").status, 400);
}

fn portcullis(rig: &Rig, words: &[&str]) -> (i32, String, String) {
    let config = rig.state().join("config.yaml");
    let done = Command::new(BINARY).args(words).arg("-c").arg(config).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

#[test]
fn a_service_account_is_seen_like_a_user_listed_and_revoked() {
    let mut rig = Rig::start();
    let token = rig.account("ci", &["groups=admins,dev", "email=ci@example.com", "email_verified=true"]);
    assert!(token.starts_with("portcullis_") && token.len() == 75, "{token}");
    let admin = |rig: &Rig| {
        let header = format!("Accept: application/json\r\nAuthorization: Bearer {token}\r\n");
        rig.server.get("app.localhost", "/admin", &header).status
    };
    assert_eq!((admin(&rig), bearer(&rig, &token).status), (200, 200));
    assert_eq!(ask(&rig, "other.localhost", &format!("Authorization: Bearer {token}")).status, 200);
    let seen = rig.upstream.seen();
    assert!(!seen.contains("portcullis_") && seen.contains("ci@example.com"), "{seen}");
    let plain = rig.account("plain", &[]);
    let header = format!("Accept: application/json\r\nAuthorization: Bearer {plain}\r\n");
    assert_eq!(rig.server.get("app.localhost", "/admin", &header).status, 403);
    rig.server.raw_log();
    let decided = rig.server.records().into_iter().rfind(|record| record["allow"] == json!(false)).unwrap();
    assert_eq!(decided["user"], "service-account/plain", "{decided}");
    // The name is known, the token is not.
    let (code, out, _) = portcullis(&rig, &["tokens", "list"]);
    assert!(
        code == 0 && out.contains("ci") && out.contains("plain") && !out.contains("portcullis_"),
        "{out}"
    );
    let (_, out, _) = portcullis(&rig, &["sessions", "list"]);
    assert_eq!(out, "There are no sessions.\n", "they are no sessions of people");
    assert_eq!(portcullis(&rig, &["tokens", "create", "--name", "ci"]).0, 1, "the name is taken");
    for bad in [&["--claims", "x"][..], &["--expires", "soon"], &["--claims", "{"]] {
        let words = [&["tokens", "create", "--name", "bad"], bad].concat();
        assert_eq!(portcullis(&rig, &words).0, 2, "{bad:?}");
    }
    assert_eq!(portcullis(&rig, &["tokens", "create", "--name", "a b"]).0, 1);
    // It outlives the process.
    rig.kill_and_restart(&Setup::default());
    assert_eq!(admin(&rig), 200);
    let file = std::fs::read(rig.state().join("sessions.redb")).unwrap();
    let secret = &token.as_bytes()[token.len() - 20..];
    assert!(!file.windows(secret.len()).any(|part| part == secret), "the token is stored nowhere");
    // Each bit of it counts.
    let changed = format!("{}{}", &token[..74], if token.ends_with('A') { "B" } else { "A" });
    assert_eq!(bearer(&rig, &changed).status, 401);
    assert_eq!(portcullis(&rig, &["tokens", "revoke", "ci"]).1, "1 ended\n");
    assert_eq!((admin(&rig), bearer(&rig, &plain).status), (401, 200));
    let (code, _, err) = portcullis(&rig, &["tokens", "revoke", "ci"]);
    assert!(code == 1 && err.contains("there is no service account `ci`"), "{err}");
    assert!(!rig.server.raw_log().contains("portcullis_"));
}

#[test]
fn a_token_may_be_the_password_of_http_basic_where_that_is_said() {
    use base64::Engine as _;
    let routes = "
  - from: http://app.localhost
    to: http://UPSTREAM
    basic_auth_token: true
    allow_any_authenticated_user: true
  - from: http://other.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
";
    let rig = Rig::routes(routes);
    let token = rig.account("git", &[]);
    let line = |password: &str| {
        let both = base64::engine::general_purpose::STANDARD.encode(format!("anybody:{password}"));
        format!("Authorization: Basic {both}")
    };
    assert_eq!(ask(&rig, "app.localhost", &line(&token)).status, 200);
    assert!(!rig.upstream.seen().to_ascii_lowercase().contains("\r\nauthorization"));
    rig.upstream.forget();
    assert_eq!(ask(&rig, "other.localhost", &line(&token)).status, 401);
    assert_eq!(ask(&rig, "app.localhost", &line("portcullis_x")).status, 401);
    assert_eq!(rig.upstream.seen(), "");
    // Tools ask when they are asked; browsers are not, for they would show a window of their own.
    let asked = |headers: &str| {
        let answer = ask(&rig, "app.localhost", headers);
        answer.all("www-authenticate").iter().any(|one| one.starts_with("Basic realm="))
    };
    assert!(asked("X: y") && !asked("Sec-Fetch-Mode: cors"));
}

/// A stream over HTTP/2 is reset when its session ends; another one's is not.
#[test]
fn a_stream_over_http2_is_reset_when_its_session_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = write_certificate(directory.path(), "app", &self_signed("app.localhost"));
    let rig = Rig::with(Setup {
        settings: format!("{HTTPS}\ncertificate_file: {cert}\ncertificate_key_file: {key}"),
        routes: "
  - from: https://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
"
        .into(),
        ..Setup::default()
    });
    rig.upstream.greets_later(Duration::from_secs(4));
    let (one, two) = (rig.account("one", &[]), rig.account("two", &[]));
    let port = rig.server.address.port();
    let start = |token: &str| {
        Command::new("curl")
            .args(["-sS", "-k", "-N", "--http2", "--max-time", "20", "-w", "%{http_version}"])
            .args(["--resolve", &format!("app.localhost:{port}:127.0.0.1")])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .arg(format!("https://app.localhost:{port}/"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (mut first, mut second) = (start(&one), start(&two));
    for curl in [&mut first, &mut second] {
        let mut hello = [0; 5];
        curl.stdout.as_mut().unwrap().read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
    }
    let began = std::time::Instant::now();
    assert_eq!(portcullis(&rig, &["tokens", "revoke", "one"]).0, 0);
    let first = first.wait_with_output().unwrap();
    let took = began.elapsed();
    let (out, err) = (String::from_utf8_lossy(&first.stdout), String::from_utf8_lossy(&first.stderr));
    // 92: the stream was not closed as it should be.
    assert_eq!(first.status.code(), Some(92), "{out} {err}");
    assert!(out == "2" && took < Duration::from_secs(5), "{out} {took:?}");
    let second = second.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&second.stdout), "world2");
}

pub const ISSUER_ROUTES: &str = "
  - from: http://app.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    bearer_token_format: jwt
    identity_providers: [robots]
    policy: [{allow: {or: [{user: robots/robot-1}, {groups: admins}]}}]
  - from: http://other.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
  - from: http://opaque.localhost
    to: http://UPSTREAM
    bearer_token_format: jwt
    identity_providers: [asked]
    allow_any_authenticated_user: true
";

/// A server that takes tokens of an issuer nobody signs in with; `more`: further keys.
pub fn issuer_rig(more: &str) -> (Rig, Provider) {
    let issuer = Provider::start();
    let settings = format!(
        "identity_providers: {{robots: {{issuer: '{}', audiences: [api]}}, asked: {{issuer: 'http://localhost/asked', \
         audiences: [api], introspection_url: 'http://{}/introspect', client_id: me, client_secret: my-own-secret}}}}\n{more}",
        issuer.issuer(),
        issuer.address
    );
    (Rig::with(Setup { settings, routes: ISSUER_ROUTES.into(), ..Setup::default() }), issuer)
}

pub fn robot(issuer: &Provider) -> Map<String, Value> {
    let claims = json!({
        "iss": issuer.issuer(), "aud": ["api", "x"], "sub": "robot-1", "iat": now(), "exp": now() + 300
    });
    claims.as_object().unwrap().clone()
}

pub fn sign(issuer: &Provider, claims: &Map<String, Value>) -> String {
    issuer.state.lock().unwrap().signer.sign(claims).unwrap()
}

#[test]
fn a_token_of_a_named_issuer_opens_what_the_policy_says() {
    let (rig, issuer) = issuer_rig("");
    let token = sign(&issuer, &robot(&issuer));
    for _ in 0..5 {
        assert_eq!(bearer(&rig, &token).status, 200);
    }
    assert_eq!(issuer.calls("/jwks").len(), 1, "keys are kept");
    // It is the application's, which may want it too.
    assert!(rig.upstream.seen().contains(&token));
    let mut other = robot(&issuer);
    other.insert("sub".into(), json!("robot-2"));
    assert_eq!(bearer(&rig, &sign(&issuer, &other)).status, 403);
    other.insert("groups".into(), json!(["admins"]));
    assert_eq!(bearer(&rig, &sign(&issuer, &other)).status, 200);
    // A route that takes none leaves it to the application, and nobody is signed in by it.
    let answer = ask(&rig, "other.localhost", &format!("Authorization: Bearer {token}"));
    assert_eq!(answer.status, 401);
    assert!(!answer.header("www-authenticate").unwrap().contains("error="), "{answer:?}");
    // Another issuer's route does not take it.
    issuer.set(|state| drop(state.answers.insert("/introspect".into(), (200, json!({ "active": false })))));
    let answer = ask(&rig, "opaque.localhost", &format!("Authorization: Bearer {token}"));
    assert_eq!(answer.status, 401, "{answer:?}");
    // What lasts ends with the token.
    rig.upstream.script(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        std::thread::sleep(Duration::from_secs(10));
        false
    });
    let mut short = robot(&issuer);
    short.insert("exp".into(), json!(now() + 2));
    let mut stream = rig.server.connect();
    let token = sign(&issuer, &short);
    write!(stream, "GET / HTTP/1.1\r\nHost: app.localhost\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
    let began = std::time::Instant::now();
    let got = crate::rig::read_to_close(&mut stream);
    assert!(got.contains("hello") && began.elapsed() < Duration::from_secs(6), "{got}");
}

/// T37: each of these is refused, and the upstream sees nothing.
#[test]
fn a_token_of_another_kind_opens_nothing() {
    let (rig, issuer) = issuer_rig("");
    let mut browser = rig.signed_in_to("http://other.localhost/");
    rig.upstream.forget();
    let with = |name: &str, value: Value| {
        let mut claims = robot(&issuer);
        claims.insert(name.into(), value);
        sign(&issuer, &claims)
    };
    let without = |name: &str| {
        let mut claims = robot(&issuer);
        claims.remove(name);
        sign(&issuer, &claims)
    };
    let good = sign(&issuer, &robot(&issuer));
    let (_, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let headed =
        |header: Value| format!("{}.{payload}.{signature}", crypto::encode(header.to_string().as_bytes()));
    // The ID token of the person who has signed in.
    let id = rig.provider.state.lock().unwrap();
    let mut person = id.claims.as_object().unwrap().clone();
    person.extend(robot(&issuer).into_iter().filter(|(name, _)| matches!(name.as_str(), "iat" | "exp")));
    person.insert("iss".into(), json!(rig.provider.issuer()));
    person.insert("aud".into(), json!("client"));
    let person = id.signer.sign(&person).unwrap();
    drop(id);
    let cookie = browser.cookies["other.localhost"]["__Host-_pomerium"].clone();
    for (what, token) in [
        ("an ID token", with("nonce", json!("n"))),
        ("an ID token with at_hash", with("at_hash", json!("n"))),
        ("Cognito's ID token", with("token_use", json!("id"))),
        ("a logout token", with("events", json!({}))),
        ("another audience", with("aud", json!("other"))),
        ("no audience", without("aud")),
        ("an audience by client_id alone", {
            let mut c = robot(&issuer);
            c.remove("aud");
            c.insert("client_id".into(), json!("api"));
            sign(&issuer, &c)
        }),
        ("no expiry", without("exp")),
        ("expired", with("exp", json!(now() - 600))),
        ("not yet", with("nbf", json!(now() + 600))),
        ("no subject", without("sub")),
        ("another issuer", with("iss", json!("https://other.example.com"))),
        ("issuer with a slash", with("iss", json!(format!("{}/", issuer.issuer())))),
        ("no issuer", without("iss")),
        ("a person's ID token", person),
        ("alg none", format!("{}.{payload}.", crypto::encode(b"{\"alg\":\"none\"}"))),
        ("alg HS256", headed(json!({ "alg": "HS256" }))),
        ("a critical extension", headed(json!({ "alg": "ES256", "crit": ["x"] }))),
        ("another key", Signer::from_secret(&[9; 32]).unwrap().sign(&robot(&issuer)).unwrap()),
        ("a session's cookie", cookie),
        ("garbage", "x".into()),
        ("a very long one", "x".repeat(20_000)),
    ] {
        let answer = bearer(&rig, &token);
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        assert!(
            answer.header("www-authenticate").unwrap().contains("error=\"invalid_token\""),
            "{what}: {answer:?}"
        );
    }
    assert_eq!(rig.upstream.seen(), "");
    // A cookie beside a token that is not believed does not help.
    browser.open("http://app.localhost/");
    rig.upstream.forget();
    let both = format!("Authorization: Bearer x\r\n{}", browser.session("other.localhost").trim_end());
    assert_eq!(ask(&rig, "app.localhost", &both).status, 401);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn a_token_is_not_believed_while_nobody_can_be_asked() {
    let (rig, issuer) = issuer_rig("");
    issuer.set(|state| state.keys_down = true);
    let token = sign(&issuer, &robot(&issuer));
    let answer = bearer(&rig, &token);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn an_opaque_token_is_asked_about_and_remembered_for_a_while() {
    let (rig, issuer) = issuer_rig("");
    let answers =
        |answer: Value| issuer.set(|state| drop(state.answers.insert("/introspect".into(), (200, answer))));
    let opaque = |token: &str| ask(&rig, "opaque.localhost", &format!("Authorization: Bearer {token}"));
    answers(json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": now() + 300 }));
    for _ in 0..5 {
        assert_eq!(opaque("opaque-1").status, 200);
    }
    answers(json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": null, "nbf": null, "iss": null }));
    assert_eq!(opaque("opaque-without").status, 200);
    issuer.set(|state| drop(state.calls.pop()));
    let calls = issuer.calls("/introspect");
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].form["token"], "opaque-1");
    assert!(calls[0].head.to_ascii_lowercase().contains("authorization: basic "), "{}", calls[0].head);
    rig.upstream.forget();
    for (number, answer) in [
        json!({ "active": false }),
        json!({ "active": false, "sub": "robot-7", "aud": "api", "exp": now() + 300 }),
        json!({ "active": true, "sub": "robot-7", "aud": "other" }),
        json!({ "active": true, "sub": "robot-7" }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": now() - 5 }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": f64::from(u32::try_from(now()).unwrap()) - 5.5 }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": -1 }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": 1e300 }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "exp": "soon" }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "nbf": f64::from(u32::try_from(now()).unwrap()) + 60.5 }),
        json!({ "active": true, "sub": "robot-7", "aud": "api", "iss": "https://other.example.com" }),
        json!({ "active": true, "sub": "", "aud": "api" }),
    ]
    .into_iter()
    .enumerate()
    {
        answers(answer.clone());
        assert_eq!(opaque(&format!("opaque-2{number}")).status, 401, "{answer}");
    }
    for broken in [json!({ "sub": "robot-7", "aud": "api" }), json!("yes"), json!({ "active": "true" })] {
        answers(broken.clone());
        assert_eq!(opaque("opaque-3").status, 503, "{broken}");
    }
    issuer.set(|state| state.down = true);
    assert_eq!(opaque("opaque-4").status, 503);
    assert_eq!(opaque("opaque-1").status, 200, "what is known goes on");
    assert_eq!(rig.upstream.requests().len(), 1);
    assert!(!rig.server.raw_log().contains("opaque-1"));
}

#[test]
fn tokens_of_the_provider_that_people_sign_in_with_are_taken_for_what_they_are() {
    let routes = "
  - from: http://app.localhost
    to: http://UPSTREAM
    bearer_token_format: idp_identity_token
    allowed_users: [jane-1]
  - from: http://other.localhost
    to: http://UPSTREAM
    bearer_token_format: idp_access_token
    idp_access_token_allowed_audiences: [api]
    allowed_users: [jane-1]
";
    let rig = Rig::routes(routes);
    let token = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut claims = json!({
            "iss": rig.provider.issuer(), "aud": "client", "sub": "jane-1", "iat": now(), "exp": now() + 300
        });
        change(claims.as_object_mut().unwrap());
        sign(&rig.provider, claims.as_object().unwrap())
    };
    let id = token(&|_| ());
    let access = token(&|claims| drop(claims.insert("aud".into(), json!("api"))));
    let with_nonce = token(&|claims| drop(claims.insert("nonce".into(), json!("n"))));
    let status = |host: &str, token: &str| ask(&rig, host, &format!("Authorization: Bearer {token}")).status;
    assert_eq!((status("app.localhost", &id), status("app.localhost", &with_nonce)), (200, 200));
    assert_eq!(status("other.localhost", &access), 200);
    assert_eq!(status("app.localhost", &access), 401, "an access token for another audience");
    assert_eq!(status("other.localhost", &id), 401, "an ID token, by its audience");
    assert_eq!(status("other.localhost", &with_nonce), 401);
    let other = token(&|claims| drop(claims.insert("aud".into(), json!("other-client"))));
    assert_eq!((status("app.localhost", &other), status("other.localhost", &other)), (401, 401));
    let events = token(&|claims| drop(claims.insert("events".into(), json!({}))));
    assert_eq!((status("app.localhost", &events), status("other.localhost", &events)), (401, 401));
    assert_eq!(rig.upstream.requests().len(), 3);
}

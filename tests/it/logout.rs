//! Ends that a provider announces: back-channel and front-channel logout.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis::crypto::{self, Signer};
use serde_json::{Map, Value, json};

use crate::browser::Browser;
use crate::rig::{Answer, Rig, Setup};

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
const PATH: &str = "/.pomerium/backchannel_logout";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A provider that names its sessions.
fn rig() -> Rig {
    Rig::prepared(Setup::default(), |provider| provider.set(|state| state.claims["sid"] = json!("s-1")))
}

/// The claims of a logout token that is right, for a session.
pub fn claims(rig: &Rig) -> Map<String, Value> {
    let claims = json!({
        "iss": rig.provider.issuer(), "aud": "client", "iat": now(), "exp": now() + 120, "jti": crypto::random_name::<8>(),
        "sid": "s-1", "events": { EVENT: {} }
    });
    claims.as_object().unwrap().clone()
}

pub fn sign(rig: &Rig, claims: &Map<String, Value>) -> String {
    rig.provider.state.lock().unwrap().signer.sign(claims).unwrap()
}

fn post(rig: &Rig, kind: &str, body: &str) -> Answer {
    Answer::parse(&rig.server.send(format!(
        "POST {PATH} HTTP/1.1\r\nHost: authenticate.localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )))
}

pub fn tell(rig: &Rig, token: &str) -> Answer {
    post(rig, "application/x-www-form-urlencoded", &format!("logout_token={token}"))
}

fn is_alive(rig: &Rig, browser: &Browser) -> bool {
    rig.server.get("app.localhost", "/", &browser.session("app.localhost")).status == 200
}

#[test]
fn a_logout_token_ends_what_it_names_and_nothing_else() {
    let rig = rig();
    let first = rig.signed_in();
    rig.provider.set(|state| state.claims["sid"] = json!("s-2"));
    let second = rig.signed_in();
    rig.provider.set(|state| state.claims["sub"] = json!("bob-1"));
    rig.provider.set(|state| state.claims["sid"] = json!("s-3"));
    let other = rig.signed_in();

    // Times may be fractional (RFC 7519 §2).
    let mut named = claims(&rig);
    for name in ["iat", "exp"] {
        let whole = named[name].as_f64().unwrap();
        named.insert(name.into(), json!(whole + 0.5));
    }
    let answer = tell(&rig, &sign(&rig, &named));
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    assert!(!is_alive(&rig, &first) && is_alive(&rig, &second) && is_alive(&rig, &other));
    // A session that is not known is no mistake.
    let mut unknown = claims(&rig);
    unknown.insert("sid".into(), json!("s-9"));
    assert_eq!(tell(&rig, &sign(&rig, &unknown)).status, 200);
    assert!(is_alive(&rig, &second));
    // The session of one person is not ended in the name of another.
    let mut crossed = claims(&rig);
    crossed.insert("sid".into(), json!("s-2"));
    crossed.insert("sub".into(), json!("bob-1"));
    assert_eq!(tell(&rig, &sign(&rig, &crossed)).status, 200);
    assert!(is_alive(&rig, &second) && is_alive(&rig, &other));
    // All of a person's.
    let mut all = claims(&rig);
    all.remove("sid");
    all.insert("sub".into(), json!("jane-1"));
    assert_eq!(tell(&rig, &sign(&rig, &all)).status, 200);
    assert!(!is_alive(&rig, &second) && is_alive(&rig, &other));
}

/// T50: each of these is refused, and the session lives.
#[test]
fn a_logout_token_that_is_not_quite_right_ends_nothing() {
    let rig = rig();
    let browser = rig.signed_in();
    let jwks = rig.provider.calls("/jwks").len();
    let with = |name: &str, value: Value| {
        let mut claims = claims(&rig);
        claims.insert(name.into(), value);
        sign(&rig, &claims)
    };
    let without = |name: &str| {
        let mut claims = claims(&rig);
        claims.remove(name);
        sign(&rig, &claims)
    };
    let good = sign(&rig, &claims(&rig));
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let headed =
        |header: Value| format!("{}.{payload}.{signature}", crypto::encode(header.to_string().as_bytes()));
    let kid = serde_json::from_slice::<Value>(&crypto::decode(head).unwrap()).unwrap()["kid"].clone();
    let stranger = Signer::from_secret(&[9; 32]).unwrap();
    let tokens = [
        ("no events", without("events")),
        ("another event", with("events", json!({ "x": {} }))),
        ("an event of another form", with("events", json!({ EVENT: true }))),
        ("events as a list", with("events", json!([EVENT]))),
        ("a nonce", with("nonce", json!("n"))),
        ("no iat", without("iat")),
        ("iat ahead", with("iat", json!(now() + 3600))),
        ("no jti", without("jti")),
        ("an empty jti", with("jti", json!(""))),
        ("expired", with("exp", json!(now() - 3600))),
        ("another issuer", with("iss", json!("https://other.example.com"))),
        ("issuer with a slash", with("iss", json!(format!("{}/", rig.provider.issuer())))),
        ("another audience", with("aud", json!("other"))),
        ("no audience", without("aud")),
        ("no issuer", without("iss")),
        ("nobody", without("sid")),
        ("another kind of sid", with("sid", json!(7))),
        ("alg none", format!("{}.{payload}.", crypto::encode(b"{\"alg\":\"none\"}"))),
        ("alg HS256", headed(json!({ "alg": "HS256", "kid": kid }))),
        ("an access token", headed(json!({ "alg": "ES256", "kid": kid, "typ": "at+jwt" }))),
        ("another key", stranger.sign(&claims(&rig)).unwrap()),
        ("a changed payload", good.replace(payload, &payload.replacen('J', "K", 1))),
        ("no token", "x".into()),
        ("nothing", String::new()),
    ];
    for (what, token) in &tokens {
        let answer = tell(&rig, token);
        assert_eq!(
            (answer.status, answer.header("cache-control")),
            (400, Some("no-store")),
            "{what}: {answer:?}"
        );
        assert!(answer.json()["error"] == "invalid_request", "{what}: {answer:?}");
    }
    // An ID token is none; `make_token` shows what a sign-in gets.
    let mut id = claims(&rig);
    id.remove("events");
    id.insert("sub".into(), json!("jane-1"));
    assert_eq!(tell(&rig, &sign(&rig, &id)).status, 400);
    let twice = format!("logout_token={good}&logout_token={good}");
    assert_eq!(post(&rig, "application/x-www-form-urlencoded", &twice).status, 400);
    assert_eq!(post(&rig, "application/json", &format!("{{\"logout_token\":\"{good}\"}}")).status, 400);
    assert_eq!(
        rig.server.get("authenticate.localhost", &format!("{PATH}?logout_token={good}"), "").status,
        405
    );
    let large = format!("logout_token={good}&x={}", "y".repeat(1024 * 1024));
    assert_eq!(post(&rig, "application/x-www-form-urlencoded", &large).status, 400);
    assert!(is_alive(&rig, &browser));
    // At most the keys were asked for again, because of the unknown one.
    assert!(rig.provider.calls("/jwks").len() <= jwks + 1);
    // The good one works, once.
    assert_eq!(tell(&rig, &good).status, 200);
    assert!(!is_alive(&rig, &browser));
    assert_eq!(tell(&rig, &good).status, 400);
}

#[test]
fn a_logout_token_does_not_end_what_begins_later() {
    let rig = rig();
    let mut old = claims(&rig);
    old.remove("sid");
    old.insert("sub".into(), json!("jane-1"));
    old.insert("iat".into(), json!(now() - 100));
    let browser = rig.signed_in();
    assert_eq!(tell(&rig, &sign(&rig, &old)).status, 200);
    assert!(is_alive(&rig, &browser));
}

#[test]
fn a_session_whose_provider_named_none_ends_with_the_person() {
    // The ID token has no `sid`, the logout token has.
    let rig = Rig::start();
    let browser = rig.signed_in();
    let mut both = claims(&rig);
    both.insert("sub".into(), json!("jane-1"));
    // Without `exp`, as of old.
    both.remove("exp");
    assert_eq!(tell(&rig, &sign(&rig, &both)).status, 200);
    assert!(!is_alive(&rig, &browser));
}

#[test]
fn a_page_of_the_provider_may_end_the_session_it_names() {
    let rig = rig();
    let browser = rig.signed_in();
    let issuer = rig.provider.issuer();
    let get = |query: &str| {
        rig.server.get("authenticate.localhost", &format!("/.pomerium/frontchannel_logout{query}"), "")
    };
    for query in [
        String::new(),
        "?sid=s-1".into(),
        format!("?iss={issuer}"),
        format!("?iss={issuer}&sid="),
        "?iss=https://other.example.com&sid=s-1".into(),
        format!("?iss={issuer}&sid=s-1&sid=s-1"),
    ] {
        let answer = get(&query);
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
    }
    assert_eq!(get(&format!("?iss={issuer}&sid=s-9")).status, 200);
    assert!(is_alive(&rig, &browser));
    let answer = get(&format!("?iss={issuer}&sid=s-1"));
    assert_eq!(answer.status, 200);
    let origin = format!("http://{}", rig.provider.address);
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.contains(&format!("frame-ancestors {origin}")), "{policy}");
    assert_eq!((answer.header("x-frame-options"), answer.header("cache-control")), (None, Some("no-store")));
    assert!(!is_alive(&rig, &browser));
}

#[test]
fn a_logout_closes_what_lasts() {
    let rig = rig();
    let browser = rig.signed_in();
    rig.upstream.script(|stream, _| {
        use std::io::Write as _;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        std::thread::sleep(Duration::from_secs(20));
        false
    });
    let mut stream = rig.server.connect();
    let request =
        format!("GET / HTTP/1.1\r\nHost: app.localhost\r\n{}\r\n", browser.session("app.localhost"));
    use std::io::Write as _;
    stream.write_all(request.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(tell(&rig, &sign(&rig, &claims(&rig))).status, 200);
    let got = crate::rig::read_to_close(&mut stream);
    assert!(got.contains("hello") && !got.ends_with("0\r\n\r\n"), "{got}");
}

//! What lasts goes on only as long as it would be let in: it ends when the policy, the configuration, the caller or the
//! time changes so that it would not, and whoever does not read is cut off.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::browser::Browser;
use crate::programs::{ISSUER_ROUTES, issuer_rig, robot, sign};
use crate::rig::{self, ROUTES, Rig, Setup};
use crate::sessions::{lasting, lasting_upstream, open_websocket};

/// Longer than what may not go on may last.
const LIMIT: Duration = Duration::from_secs(5);

fn ask(rig: &Rig, host: &str, path: &str, fields: &str) -> TcpStream {
    lasting(rig, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"), "hello")
}

/// What still comes until it is closed, which has to be soon.
fn rest(stream: &mut TcpStream, what: &str) -> Vec<u8> {
    let began = Instant::now();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{what}: still open after {:?}: {error}", began.elapsed()),
    }
    rest
}

fn assert_open(stream: &mut TcpStream, what: &str) {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    match stream.read(&mut [0; 64]) {
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{what}: {error}")
        }
        Ok(count) => panic!("{what}: {count} bytes, or closed"),
    }
}

/// Someone in the group `admins`, besides.
fn admin(rig: &Rig) -> Browser {
    rig.provider.set(|state| {
        state.claims["sub"] = json!("ann-1");
        state.claims["groups"] = json!(["dev", "admins"]);
    });
    rig.signed_in()
}

const ANYBODY: &str = "allow_any_authenticated_user: true";

/// The routes, with another policy for the third route of `app.localhost`, which all of `/` falls to.
fn routes_with(policy: &str) -> Setup {
    let (before, after) = ROUTES.rsplit_once("  - from: http://other.localhost").unwrap();
    let (before, rule) = before.rsplit_once(ANYBODY).unwrap();
    Setup {
        routes: format!("{before}{policy}{rule}  - from: http://other.localhost{after}"),
        ..Setup::default()
    }
}

#[test]
fn what_another_configuration_would_not_let_in_is_ended_and_the_rest_goes_on() {
    for (change, refuses_ann) in [
        ("policy: [{allow: {or: [{groups: admins}]}}]", false),
        ("policy: [{allow: {or: [{authenticated_user: true}]}, deny: {or: [{user: jane-1}]}}]", false),
        (
            "policy: [{allow: {and: [{groups: admins}, {http_method: GET}, {http_header/x-mark: one}]}}]",
            false,
        ),
        ("policy: [{allow: {and: [{groups: admins}, {http_query/who: ann}]}}]", false),
        ("policy: [{allow: {or: [{groups: admins}]}, deny: {or: [{http_header/x-mark: one}]}}]", true),
        ("policy: [{allow: {or: [{http_path: /elsewhere}]}}]", true),
        ("policy: [{allow: {or: [{source_ip: 10.0.0.0/8}]}}]", true),
        ("policy: [{allow: {or: [{domain: example.com}]}}]\n    decide_only: true", true),
    ] {
        let rig = Rig::start();
        let jane = rig.signed_in().session("app.localhost");
        let ann = admin(&rig).session("app.localhost");
        lasting_upstream(&rig);
        let open = |who: &str, session: &str| {
            let fields = format!("X-Mark: one\r\n{session}");
            [
                websocket(&rig, &format!("/ws?who={who}"), &fields),
                ask(&rig, "app.localhost", &format!("/events?who={who}"), &fields),
            ]
        };
        let (mut hers, mut anns) = (open("jane", &jane), open("ann", &ann));
        let mut public = ask(&rig, "app.localhost", "/public/x", "");
        let began = Instant::now();
        let to = routes_with(change).routes;
        let to = if change.contains("decide_only") { without_to(&to) } else { to };
        let status = rig.change(&Setup { routes: to, ..Setup::default() });
        assert_eq!(status["last_reload"]["success"], true, "{change}: {status}");
        assert_eq!(rest(&mut hers[0], change), [0x88, 0x02, 0x03, 0xF0], "{change}");
        assert_eq!(rest(&mut hers[1], change), b"", "{change}");
        let took = began.elapsed();
        assert!(took < LIMIT, "{change}: {took:?}");
        for (at, stream) in anns.iter_mut().enumerate() {
            // A stream's fields are not kept unless the policy looked at them: it is ended rather than let go on.
            let is_unknown = at == 1 && change.contains("http_header");
            if refuses_ann || is_unknown {
                rest(stream, change);
            } else {
                assert_open(stream, change);
            }
        }
        assert_open(&mut public, change);
        let log = rig.server.raw_log();
        assert!(log.contains("it would not be let in any more") && !log.contains("who="), "{log}");
        let records = rig.server.records();
        let said =
            records.iter().any(|one| one["path"] == "/events" && one["ended"] == "it was not let go on");
        assert!(said, "{change}: {log}");
    }
}

fn without_to(routes: &str) -> String {
    let at = routes.find("decide_only").unwrap();
    let from = routes[..at].rfind("- from").unwrap();
    let to = routes[from..].find("to: http").unwrap() + from;
    let end = routes[to..].find('\n').unwrap() + to;
    format!("{}{}", &routes[..to], routes[end..].trim_start())
}

fn websocket(rig: &Rig, target: &str, fields: &str) -> TcpStream {
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Origin: http://app.localhost\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
    );
    lasting(rig, &request, "hello")
}

#[test]
fn what_nobody_had_to_sign_in_for_ends_when_somebody_would_have_to() {
    let rig = Rig::start();
    lasting_upstream(&rig);
    let mut public = ask(&rig, "app.localhost", "/public/x", "");
    let mut open = ask(&rig, "open.localhost", "/x", "");
    let routes = ROUTES.replacen(
        "prefix: /public\n    to: http://UPSTREAM\n    allow_public_unauthenticated_access",
        "prefix: /public\n    to: http://UPSTREAM\n    allow_any_authenticated_user",
        1,
    );
    assert_ne!(routes, ROUTES);
    rig.change(&Setup { routes, ..Setup::default() });
    assert_eq!(rest(&mut public, "public"), b"");
    assert_open(&mut open, "open");
    // And when there is no route any more.
    rig.change(&Setup {
        routes: ROUTES.split("  - from: http://app").next().unwrap().replace("open.", "opened."),
        ..Setup::default()
    });
    assert_eq!(rest(&mut open, "open"), b"");
}

#[test]
fn what_lasts_ends_when_a_group_is_taken_away_and_the_session_goes_on() {
    let routes = routes_with("policy: [{allow: {or: [{groups: dev}]}}]").routes;
    let rig = Rig::prepared(Setup { routes, ..Setup::default() }, |provider| {
        provider.set(|state| state.lifetime = 3);
    });
    let mut jane = rig.signed_in();
    assert_eq!(jane.open("http://other.localhost/").status, 200);
    lasting_upstream(&rig);
    let session = jane.session("app.localhost");
    let mut hers = [open_websocket(&rig, &session), ask(&rig, "app.localhost", "/events", &session)];
    let mut other = ask(&rig, "other.localhost", "/x", &jane.session("other.localhost"));
    rig.provider.set(|state| {
        state.claims["groups"] = json!(["sales"]);
        state.lifetime = 3600;
    });
    let began = Instant::now();
    assert_eq!(rest(&mut hers[0], "websocket"), [0x88, 0x02, 0x03, 0xF0]);
    assert_eq!(rest(&mut hers[1], "events"), b"");
    assert!(began.elapsed() < Duration::from_secs(3) + LIMIT, "{:?}", began.elapsed());
    assert_open(&mut other, "another route lets her in");
    assert_eq!(jane.get("http://app.localhost/").status, 403);
}

#[test]
fn what_lasts_ends_when_its_time_is_over() {
    let soon = std::time::SystemTime::now() + Duration::from_secs(6);
    let soon = soon.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let soon = portcullis::clock::Timestamp::from_unix_seconds(soon);
    let rig = Rig::with(routes_with(&format!(
        "policy: [{{allow: {{and: [{{groups: dev}}, {{date: {{before: '{soon}'}}}}]}}}}]"
    )));
    let session = rig.signed_in().session("app.localhost");
    lasting_upstream(&rig);
    let mut hers = open_websocket(&rig, &session);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    while now() + 2 < soon.as_unix_seconds() {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(rest(&mut hers, "websocket"), [0x88, 0x02, 0x03, 0xF0]);
    let now = now();
    assert!(now >= soon.as_unix_seconds(), "not before that");
}

#[test]
fn an_upload_ends_with_its_session_and_with_the_policy() {
    for by_policy in [false, true] {
        let rig = Rig::start();
        let mut jane = rig.signed_in();
        let session = jane.session("app.localhost");
        let (ann, _) = (admin(&rig).session("app.localhost"), rig.upstream.forget());
        let upload = |session: &str| {
            let mut stream = rig.server.connect();
            let head = format!(
                "POST /up HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 100000\r\n{session}\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(b"the first part").unwrap();
            stream
        };
        rig.upstream.script(|_, _| true);
        let (mut hers, mut anns) = (upload(&session), upload(&ann));
        while rig.upstream.seen().matches("the first part").count() < 2 {}
        let began = Instant::now();
        if by_policy {
            rig.change(&routes_with("policy: [{allow: {or: [{groups: admins}]}}]"));
        } else {
            jane.open("http://app.localhost/.pomerium/sign_out");
        }
        let answer = String::from_utf8_lossy(&rest(&mut hers, "upload")).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("may not go on"),
            "{by_policy}: {answer}"
        );
        assert!(began.elapsed() < LIMIT, "{by_policy}: {:?}", began.elapsed());
        assert_open(&mut anns, "another one's upload");
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let rig = Rig::start();
    let mut jane = rig.signed_in();
    let session = jane.session("app.localhost");
    let other = admin(&rig).session("app.localhost");
    rig.upstream.script(|stream, _| {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nhello";
            // Until nobody takes any more.
            let mut sent = stream.write_all(head);
            while sent.is_ok() {
                sent = stream.write_all(&[b'x'; 65536]);
            }
        });
        true
    });
    let open = |session: &str| {
        let mut stream = rig.server.connect();
        write!(stream, "GET /stalled HTTP/1.1\r\nHost: app.localhost\r\n{session}\r\n").unwrap();
        stream
    };
    let (hers, mut others) = (open(&session), open(&other));
    std::thread::sleep(Duration::from_secs(2));
    let ended = || {
        rig.server
            .records()
            .iter()
            .filter(|one| one["path"] == "/stalled" && one["ended"].is_string())
            .count()
    };
    assert_eq!(ended(), 0);
    let began = Instant::now();
    jane.open("http://app.localhost/.pomerium/sign_out");
    while ended() == 0 {
        assert!(began.elapsed() < LIMIT, "{}", rig.server.raw_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("cut off after {:?}", began.elapsed());
    assert_eq!(ended(), 1);
    let mut hers = hers;
    let got = rig::read_all(&mut hers).len();
    assert!(got < 50_000_000, "{got}: no more than was under way");
    others.set_read_timeout(Some(LIMIT)).unwrap();
    let mut enough = vec![0; 60_000_000];
    others.read_exact(&mut enough).unwrap();
}

#[test]
fn a_token_that_a_route_takes_no_more_ends_what_it_opened() {
    for change in ["bearer", "issuer", "audience"] {
        let (rig, issuer) = issuer_rig("");
        lasting_upstream(&rig);
        let token = sign(&issuer, &robot(&issuer));
        let mut stream = ask(&rig, "app.localhost", "/events", &format!("Authorization: Bearer {token}\r\n"));
        let text = std::fs::read_to_string(rig.state().join("config.yaml")).unwrap();
        let write = |text: &str| rig.reads(|| std::fs::write(rig.state().join("config.yaml"), text).unwrap());
        let said = write(&format!("{text}# nothing\n"));
        assert_eq!(said["generation"], 2);
        std::thread::sleep(Duration::from_millis(1300));
        assert_open(&mut stream, "nothing has changed");
        let changed = match change {
            "bearer" => text.replacen("bearer_token_format: jwt", "bearer_token_format: default", 1),
            "issuer" => text.replace("robots", "others"),
            _ => text.replacen("audiences: [api]", "audiences: [another]", 1),
        };
        assert_ne!(changed, text);
        let said = write(&changed);
        assert_eq!(said["last_reload"]["success"], true, "{said}");
        assert_eq!(rest(&mut stream, change), b"", "{change}");
    }
    assert!(ISSUER_ROUTES.contains("robots"));
}

#[test]
fn a_configuration_is_not_held_by_what_began_under_it() {
    let rig = Rig::start();
    lasting_upstream(&rig);
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", rig.server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let many = |number: usize| {
        let route = |at: usize| {
            format!(
                "  - from: http://r{at}x{number}.localhost\n    to: http://UPSTREAM\n    policy: [{{allow: {{or: [{{groups: g{at}}}, {{domain: d{at}.test}}]}}}}]\n"
            )
        };
        Setup { routes: format!("{ROUTES}{}", (0..500).map(route).collect::<String>()), ..Setup::default() }
    };
    let mut streams = Vec::new();
    let mut change = |number: usize| {
        rig.change(&many(number));
        streams.push(ask(&rig, "app.localhost", "/public/x", ""));
    };
    (0..6).for_each(&mut change);
    let before = memory();
    (6..26).for_each(&mut change);
    std::thread::sleep(Duration::from_millis(1500));
    let after = memory();
    println!("{before} kB after 6, {after} kB after 26");
    // Each of them takes several megabytes.
    assert!(after < before + 15_000, "{before} kB after 6, {after} kB after 26");
    for stream in &mut streams {
        assert_open(stream, "it goes on");
    }
}

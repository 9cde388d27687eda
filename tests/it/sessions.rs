//! Sessions: what they survive, when they end, and how they are renewed.

use std::time::Duration;

use serde_json::json;

use crate::rig::{Rig, Setup};

#[test]
fn a_killed_server_loses_no_session() {
    let mut rig = Rig::start();
    let mut browser = rig.signed_in();
    rig.kill_and_restart(&Setup::default());
    let mut again = rig.browser();
    again.cookies = std::mem::take(&mut browser.cookies);
    assert_eq!(again.get("http://app.localhost/").status, 200);
    assert_eq!(again.open("http://other.localhost/").status, 200);
    assert_eq!(rig.provider.calls("/authorize").len(), 1);
}

#[test]
fn memory_sessions_end_with_the_process_and_nothing_lies_in_the_file_in_clear() {
    let setup = Setup { settings: "databroker_storage_type: memory".into(), ..Setup::default() };
    let mut rig = Rig::with(setup.clone());
    let browser = rig.signed_in();
    rig.kill_and_restart(&setup);
    let cookie = browser.session("app.localhost");
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 302);

    let rig = Rig::start();
    rig.signed_in();
    let bytes = std::fs::read(rig.state().join("sessions.redb")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for secret in ["jane@example.com", "jane-1", "refresh"] {
        assert!(!text.contains(secret), "{secret}");
    }
    assert_eq!(rig.provider.token_within(&text), None);
    use std::os::unix::fs::PermissionsExt as _;
    for name in ["sessions.redb", "secret"] {
        assert_eq!(
            std::fs::metadata(rig.state().join(name)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{name}"
        );
    }
}

#[test]
fn a_session_ends_with_cookie_expire() {
    let rig = Rig::settings("cookie_expire: 3s");
    let cookie = rig.signed_in().session("app.localhost");
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
    std::thread::sleep(Duration::from_millis(3100));
    rig.upstream.forget();
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 302);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn every_tampered_cookie_gets_the_same_answer() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    let value = cookie.trim_end().rsplit('=').next().unwrap().to_owned();
    rig.upstream.forget();
    let mut answers = std::collections::HashSet::new();
    for at in (0..value.len()).step_by(5) {
        let mut bad = value.clone().into_bytes();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        let line = format!(
            "Cookie: __Host-_pomerium={}\r\nAccept: application/json\r\n",
            String::from_utf8(bad).unwrap()
        );
        let answer = rig.server.get("app.localhost", "/", &line);
        let mut body = answer.json();
        body["request_id"] = json!("");
        answers.insert((answer.status, body.to_string()));
    }
    for bad in ["", "x", &value[..40], &format!("{value}{value}")] {
        let answer = rig.server.get(
            "app.localhost",
            "/",
            &format!("Cookie: __Host-_pomerium={bad}\r\nAccept: application/json\r\n"),
        );
        assert_eq!(answer.status, 401, "{bad}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|(status, _)| *status == 401));
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn a_session_cookie_that_occurs_twice_is_refused() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    rig.upstream.forget();
    assert_eq!(rig.server.get("app.localhost", "/", &format!("{cookie}{cookie}")).status, 400);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn a_cookie_of_a_sign_in_is_no_session_and_the_other_way_round() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    browser.until("http://app.localhost/", "/oauth2/callback");
    for (host, jar) in browser.cookies.clone() {
        for value in jar.values() {
            let answer = rig.server.get(&host, "/", &format!("Cookie: __Host-_pomerium={value}\r\n"));
            assert_ne!(answer.status, 200);
        }
    }
}

fn short_lived(rotate: bool) -> Rig {
    let rig = Rig::start();
    rig.provider.set(|state| {
        state.lifetime = 2;
        state.rotate = rotate;
    });
    rig
}

/// The route's timeout is the upstream's: it has not even been asked while the provider is.
#[test]
fn the_time_of_a_renewal_is_not_the_upstreams() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    to: http://UPSTREAM
    timeout: 300ms
    allow_any_authenticated_user: true
",
    );
    rig.provider.set(|state| state.lifetime = 2);
    let mut browser = rig.browser();
    assert_eq!(browser.open("http://app.localhost/").status, 200);
    rig.provider.set(|state| {
        state.change_answer = Some(Box::new(|_| std::thread::sleep(Duration::from_millis(500))));
    });
    std::thread::sleep(Duration::from_millis(2100));
    let before = rig.provider.calls("/token").len();
    assert_eq!(rig.server.get("app.localhost", "/", &browser.session("app.localhost")).status, 200);
    assert_eq!(rig.provider.calls("/token").len(), before + 1);
}

#[test]
fn expired_tokens_are_renewed_once_for_all_who_wait_and_new_claims_decide() {
    for rotate in [false, true] {
        let rig = short_lived(rotate);
        // None of those who wait comes when what was renewed is due again.
        rig.provider.set(|state| state.lifetime = 5);
        let mut browser = rig.browser();
        assert_eq!(browser.open("http://app.localhost/admin").status, 403);
        rig.provider.set(|state| state.claims["groups"] = json!(["admins"]));
        std::thread::sleep(Duration::from_millis(5100));
        let cookie = browser.session("app.localhost");
        let before = rig.provider.calls("/token").len();
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..20)
                .map(|_| scope.spawn(|| rig.server.get("app.localhost", "/admin", &cookie).status))
                .collect();
            assert!(all.into_iter().all(|one| one.join().unwrap() == 200));
        });
        assert_eq!(rig.provider.calls("/token").len(), before + 1, "rotate {rotate}");
        // And again, with the refresh token that the first renewal left.
        rig.provider.set(|state| state.claims["groups"] = json!([]));
        std::thread::sleep(Duration::from_millis(5100));
        assert_eq!(rig.server.get("app.localhost", "/admin", &cookie).status, 403);
        assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
    }
}

#[test]
fn tokens_are_renewed_before_they_expire_without_holding_anybody_up() {
    let rig = Rig::start();
    rig.provider.set(|state| state.lifetime = 4);
    let cookie = rig.signed_in().session("app.localhost");
    std::thread::sleep(Duration::from_millis(3400));
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rig.provider.calls("/token").len(), 2);
}

#[test]
fn a_session_that_the_provider_does_not_renew_ends_on_every_host() {
    let rig = short_lived(false);
    let mut browser = rig.signed_in();
    browser.open("http://other.localhost/");
    rig.provider.set(|state| state.refresh_tokens.clear());
    std::thread::sleep(Duration::from_millis(2100));
    rig.upstream.forget();
    for host in ["app.localhost", "other.localhost"] {
        assert_eq!(rig.server.get(host, "/", &browser.session(host)).status, 302);
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn another_person_in_a_renewed_token_ends_the_session() {
    let rig = short_lived(false);
    let cookie = rig.signed_in().session("app.localhost");
    rig.provider.set(|state| state.claims["sub"] = json!("mallory"));
    std::thread::sleep(Duration::from_millis(2100));
    rig.upstream.forget();
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 302);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn while_the_provider_is_down_sessions_go_on_until_their_tokens_expire_and_then_wait() {
    let rig = short_lived(true);
    let cookie = rig.signed_in().session("app.localhost");
    rig.provider.set(|state| state.down = true);
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
    std::thread::sleep(Duration::from_millis(2100));
    rig.upstream.forget();
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 503);
    assert_eq!(rig.upstream.seen(), "");
    rig.provider.set(|state| state.down = false);
    // For a moment the failure is shared, so that many who wait do not each ask.
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
}

#[test]
fn many_who_wait_for_a_provider_that_is_down_ask_it_once() {
    let rig = short_lived(true);
    let cookie = rig.signed_in().session("app.localhost");
    rig.provider.set(|state| state.down = true);
    std::thread::sleep(Duration::from_millis(2100));
    let (before, probes) = (rig.provider.calls("/token").len(), rig.provider.calls("/jwks").len());
    let together = std::sync::Barrier::new(20);
    let ask = || {
        together.wait();
        rig.server.get("app.localhost", "/", &cookie).status
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        assert!(all.into_iter().all(|one| one.join().unwrap() == 503));
    });
    // Whether it answers at all is asked before a token is sent that may work only once.
    assert_eq!(rig.provider.calls("/jwks").len(), probes + 1);
    assert_eq!(rig.provider.calls("/token").len(), before);
}

#[test]
fn a_session_without_a_refresh_token_lives_until_cookie_expire() {
    let rig = Rig::start();
    rig.provider.set(|state| {
        state.lifetime = 1;
        state.change_answer =
            Some(Box::new(|answer| drop(answer.as_object_mut().unwrap().remove("refresh_token"))));
    });
    let cookie = rig.signed_in().session("app.localhost");
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
}

#[test]
fn a_store_in_use_stops_the_second_server() {
    let rig = Rig::start();
    let configuration = std::fs::read_to_string(rig.state().join("config.yaml")).unwrap();
    let path = rig.state().join("second.yaml");
    std::fs::write(&path, configuration).unwrap();
    let second = std::process::Command::new(crate::rig::BINARY)
        .args(["run", "-c"])
        .arg(&path)
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("sessions.redb"));
}

/// Every worker sees what another one did.
#[test]
fn workers_share_sessions_renewals_and_sign_outs() {
    let rig = Rig::with(Setup { settings: "workers: 4".into(), ..Setup::default() });
    rig.provider.set(|state| state.lifetime = 2);
    let mut browser = rig.signed_in();
    let cookie = browser.session("app.localhost");
    let statuses = |expected: u16| {
        // A connection each: the system spreads them over the workers.
        for _ in 0..40 {
            assert_eq!(rig.server.get("app.localhost", "/.pomerium/user", &cookie).status, expected);
        }
    };
    statuses(200);
    rig.provider.set(|state| state.lifetime = 3600);
    let renewed = rig.provider.calls("/token").len();
    std::thread::sleep(std::time::Duration::from_millis(2200));
    statuses(200);
    assert_eq!(rig.provider.calls("/token").len(), renewed + 1, "it is renewed once for all workers");
    browser.get("http://app.localhost/.pomerium/sign_out");
    statuses(302);
}

/// A connection on which something lasts.
pub fn lasting(rig: &Rig, request: &str, until: &str) -> std::net::TcpStream {
    use std::io::Read as _;
    use std::io::Write as _;
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let (mut seen, mut part) = (String::new(), [0; 4096]);
    while !seen.ends_with(until) {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    stream
}

pub fn open_websocket(rig: &Rig, session: &str) -> std::net::TcpStream {
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Origin: http://app.localhost\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{session}\r\n"
    );
    lasting(rig, &request, "hello")
}

/// An upstream that opens WebSockets, streams events without an end, and sends a file that is never whole.
pub fn lasting_upstream(rig: &Rig) {
    use std::io::Write as _;
    rig.upstream.script(|stream, head| {
        let sent = if head.contains("/ws") {
            // One whole frame.
            stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x05hello",
            )
        } else if head.contains("/half") {
            stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x09hello",
            )
        } else {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\ndata: hello",
            )
        };
        // And is silent.
        sent.is_ok()
    });
}

#[test]
fn what_lasts_ends_with_the_session_and_nothing_else_does() {
    use std::io::Read as _;
    let rig = Rig::start();
    let mut jane = rig.signed_in();
    let (session, other) = (jane.session("app.localhost"), rig.signed_in().session("app.localhost"));
    lasting_upstream(&rig);
    let stream = |path: &str, session: &str| {
        lasting(&rig, &format!("GET {path} HTTP/1.1\r\nHost: app.localhost\r\n{session}\r\n"), "hello")
    };
    let mut ended = [open_websocket(&rig, &session), stream("/events", &session), stream("/file", &session)];
    let kept = [open_websocket(&rig, &other), stream("/events", &other), stream("/public/x", "")];
    // In the middle of a frame there is no place for a farewell.
    let mut middle = {
        let request = "GET /half HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Origin: http://app.localhost\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
        lasting(&rig, &format!("{request}{session}\r\n"), "hello")
    };

    let began = std::time::Instant::now();
    jane.open("http://app.localhost/.pomerium/sign_out");
    for (at, stream) in ended.iter_mut().enumerate() {
        let mut rest = Vec::new();
        // However it ends: closed, or reset.
        let _ = stream.read_to_end(&mut rest);
        let expected: &[u8] = if at == 0 { &[0x88, 0x02, 0x03, 0xF0] } else { &[] };
        assert_eq!(rest, expected, "{at}");
    }
    let mut rest = Vec::new();
    let _ = middle.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for mut stream in kept {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let error = stream.read(&mut [0; 64]).unwrap_err();
        assert!(
            matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
            "{error}"
        );
    }
}

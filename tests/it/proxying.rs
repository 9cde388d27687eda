//! Forwarding: bodies, connections, timeouts, and upstreams that misbehave.

use std::io::{Read, Write};
use std::time::Duration;

use crate::rig::{Answer, Rig, read_all, read_to_close};

const OPEN: &str = "GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n";

#[test]
fn bodies_pass_both_ways_unchanged() {
    let rig = Rig::start();
    rig.upstream.script(|stream, request| {
        let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
        write!(
            stream,
            "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
        .is_ok()
    });
    let body = "é\0\r\n0\r\n\r\nGET /x";
    let sent = format!(
        "PUT /x HTTP/1.1\r\nHost: open.localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = rig.server.send(sent);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(answer.contains(body), "{answer}");
    assert_eq!(rig.upstream.header("content-length"), [body.len().to_string()]);
}

#[test]
fn statuses_and_bodies_of_an_upstream_are_its_own() {
    let rig = Rig::start();
    for status in [204, 301, 304, 400, 401, 403, 404, 418, 500, 503] {
        let body = if matches!(status, 204 | 304) { "" } else { "Content-Length: 5\r\n\r\ntheir" };
        rig.upstream.answer(format!(
            "HTTP/1.1 {status} X\r\nX-Theirs: yes\r\n{}",
            if body.is_empty() { "\r\n" } else { body }
        ));
        let answer = rig.server.get("open.localhost", "/", "Accept: application/json\r\n");
        assert_eq!((answer.status, answer.header("x-theirs")), (status, Some("yes")));
        assert!(body.is_empty() || answer.body == "their", "{answer:?}");
    }
}

#[test]
fn an_upload_larger_than_memory_streams_with_back_pressure() {
    let rig = Rig::start();
    rig.upstream.script(|stream, _| {
        // Reads slowly, so that a proxy that buffered would have to hold everything.
        let mut part = [0; 65536];
        std::thread::sleep(Duration::from_millis(300));
        let mut end = Vec::new();
        while !end.ends_with(b"\r\n0\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => return false,
                Ok(count) => end.extend_from_slice(&part[..count]),
            }
            end.drain(..end.len().saturating_sub(16));
        }
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone"));
        false
    });
    // The recorder reads bodies by their length; this one has none.
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: open.localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![b'x'; 1024 * 1024], b"\r\n".to_vec()].concat();
    for _ in 0..201 {
        stream.write_all(&chunk).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let answer = read_all(&mut stream);
    assert!(answer.ends_with("done"), "{answer}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.server.pid())).unwrap();
    let peak: u64 = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(peak < 100 * 1024, "{peak} KiB");
}

#[test]
fn events_arrive_as_they_are_sent() {
    let rig = Rig::start();
    let (received, wait) = std::sync::mpsc::channel();
    rig.upstream.script(move |stream, _| {
        let head =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head).unwrap();
        // The second event is not sent before the first has arrived.
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            write!(stream, "{:x}\r\n{event}\r\n", event.len()).unwrap();
            wait.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        false
    });
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(OPEN.as_bytes()).unwrap();
    let mut seen = String::new();
    let mut part = [0; 4096];
    for event in ["data: 1", "data: 2"] {
        while !seen.contains(event) {
            let count = stream.read(&mut part).unwrap();
            assert_ne!(count, 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        received.send(()).unwrap();
    }
    // The upstream broke off: the client must not take it for the end.
    seen.push_str(&read_all(&mut stream));
    assert!(!seen.contains("\r\n0\r\n\r\n"), "{seen}");
}

#[test]
fn upstream_connections_are_used_again_and_a_closed_one_is_replaced() {
    let rig = Rig::start();
    let count = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let seen = count.clone();
    rig.upstream.script(move |stream, _| {
        seen.lock().unwrap().insert(stream.peer_addr().unwrap());
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    for _ in 0..10 {
        assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
    }
    assert_eq!(count.lock().unwrap().len(), 1);
    // The upstream answers and closes without a word: the next request goes on a new connection.
    rig.upstream.script(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        false
    });
    for _ in 0..5 {
        assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let rig = Rig::start();
    assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
    rig.upstream.forget();
    rig.upstream.script(|_, _| false);
    let sent =
        "POST /once HTTP/1.1\r\nHost: open.localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    assert_eq!(Answer::parse(&rig.server.send(sent)).status, 502);
    assert_eq!(rig.upstream.seen().matches("POST /once").count(), 1);
}

#[test]
fn an_upstream_that_is_down_slow_or_broken_is_reported_without_naming_anything() {
    let down = "
  - from: http://open.localhost
    to: http://127.0.0.1:1
    allow_public_unauthenticated_access: true
";
    let rig = Rig::routes(down);
    let answer = rig.server.get("open.localhost", "/", "Accept: application/json\r\n");
    assert_eq!(answer.status, 502);
    assert!(answer.json()["error"].is_string() && answer.json()["request_id"].is_string());
    assert!(!answer.body.contains("127.0.0.1"));

    let slow = "
  - from: http://open.localhost
    to: http://UPSTREAM
    timeout: 300ms
    allow_public_unauthenticated_access: true
";
    let rig = Rig::routes(slow);
    rig.upstream.script(|_, _| {
        std::thread::sleep(Duration::from_secs(2));
        false
    });
    assert_eq!(rig.server.get("open.localhost", "/", "").status, 504);
    let rig = Rig::start();
    for broken in [
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "",
    ] {
        rig.upstream.script(move |stream, _| {
            let _ = stream.write_all(broken.as_bytes());
            false
        });
        assert_eq!(rig.server.get("open.localhost", "/", "").status, 502, "{broken:?}");
    }
    let huge = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(100_000));
    rig.upstream.answer(huge);
    assert_eq!(rig.server.get("open.localhost", "/", "").status, 502);
}

#[test]
fn a_body_that_breaks_off_is_seen_to_have_broken_off() {
    let rig = Rig::start();
    rig.upstream.script(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npartial");
        false
    });
    let answer = Answer::parse(&rig.server.send(OPEN));
    assert_eq!((answer.status, answer.body.as_str()), (200, "partial"));
}

#[test]
fn several_upstreams_take_turns_by_weight_and_a_dead_one_is_passed_over() {
    let (one, two) = (crate::upstream::Upstream::start(), crate::upstream::Upstream::start());
    let rig = Rig::routes(&format!(
        "
  - from: http://open.localhost
    to: ['http://{},3', 'http://{},1']
    allow_public_unauthenticated_access: true
  - from: http://half.localhost
    to: ['http://127.0.0.1:1', 'http://{}']
    allow_public_unauthenticated_access: true
",
        one.address, two.address, two.address
    ));
    for _ in 0..40 {
        assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
    }
    assert_eq!(one.seen().matches("GET / ").count(), 30);
    assert_eq!(two.seen().matches("GET / ").count(), 10);
    for _ in 0..4 {
        assert_eq!(rig.server.get("half.localhost", "/", "").status, 200);
    }
}

#[test]
fn an_idle_answer_is_given_up_and_a_slow_upload_too() {
    let rig = Rig::with(crate::rig::Setup {
        settings: "timeout_read: 400ms".into(),
        routes: "
  - from: http://open.localhost
    to: http://UPSTREAM
    idle_timeout: 400ms
    allow_public_unauthenticated_access: true
"
        .into(),
        ..Default::default()
    });
    rig.upstream.script(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx");
        // It says no more, until the other side goes.
        let _ = stream.read(&mut [0]);
        false
    });
    let mut stream = rig.server.connect();
    stream.write_all(OPEN.as_bytes()).unwrap();
    read_to_close(&mut stream);

    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: open.localhost\r\nContent-Length: 100\r\n\r\nx").unwrap();
    let answer = Answer::parse(&read_all(&mut stream));
    assert_eq!(answer.status, 408);
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let rig = Rig::start();
    let mut stream = rig.server.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: open.localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n").unwrap();
    let mut part = [0; 1024];
    let count = stream.read(&mut part).unwrap();
    assert!(
        String::from_utf8_lossy(&part[..count]).starts_with("HTTP/1.1 100"),
        "{}",
        String::from_utf8_lossy(&part[..count])
    );
    stream.write_all(b"hi").unwrap();
    assert!(read_all(&mut stream).contains("200 OK"));
}

#[test]
fn what_is_made_for_somebody_is_kept_by_no_shared_cache_unless_the_application_says_so() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    for (host, cookie, sent, seen) in [
        ("app.localhost", cookie.as_str(), "", Some("private")),
        ("app.localhost", &cookie, "Cache-Control: public, max-age=60\r\n", Some("public, max-age=60")),
        ("open.localhost", "", "", None),
    ] {
        rig.upstream.answer(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{sent}\r\nhi"));
        let answer = rig.server.get(host, "/", cookie);
        assert_eq!((answer.status, answer.header("cache-control")), (200, seen), "{host} {sent}");
    }
}

#[test]
fn an_expectation_that_cannot_be_met_is_refused() {
    let rig = Rig::start();
    for (expected, status) in [("100-Continue", 200), ("200-ok", 417), ("100-continue, magic", 417)] {
        assert_eq!(rig.server.get("open.localhost", "/", &format!("Expect: {expected}\r\n")).status, status);
    }
    assert_eq!(rig.upstream.seen().matches("HTTP/1.1\r\n").count(), 1);
}

/// RFC 9110 §7.6.2.
#[test]
fn max_forwards_is_counted_down_and_ends_at_zero() {
    let rig = Rig::start();
    let options = |left: &str| {
        rig.upstream.forget();
        let sent = format!(
            "OPTIONS /x HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\nMax-Forwards: {left}\r\n\r\n"
        );
        (Answer::parse(&rig.server.send(sent)).status, rig.upstream.seen())
    };
    assert_eq!(options("0"), (204, String::new()));
    let (status, seen) = options("5");
    assert!(status == 200 && seen.contains("max-forwards: 4\r\n"), "{seen}");
    rig.upstream.forget();
    rig.server.get("open.localhost", "/", "Max-Forwards: 0\r\n");
    assert!(rig.upstream.seen().contains("max-forwards: 0\r\n"), "it means nothing for other methods");
}

#[test]
fn head_has_no_body_and_keeps_the_length() {
    let rig = Rig::start();
    rig.upstream.answer("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n");
    let answer = Answer::parse(&rig.server.send(OPEN.replace("GET", "HEAD")));
    assert_eq!(
        (answer.status, answer.header("content-length"), answer.body.as_str()),
        (200, Some("1234"), "")
    );
}

#[test]
fn term_finishes_what_is_under_way_and_a_second_one_does_not() {
    let mut rig = Rig::start();
    rig.upstream.script(|stream, _| {
        std::thread::sleep(Duration::from_millis(600));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").is_ok()
    });
    assert_eq!(rig.server.health("/readyz"), 200);
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(OPEN.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    rig.server.signal("TERM");
    assert!(read_all(&mut stream).ends_with("slow"));
    assert_eq!(rig.server.wait(Duration::from_secs(15)), Some(0));

    let mut rig = Rig::start();
    rig.upstream.script(|_, _| {
        std::thread::sleep(Duration::from_secs(20));
        false
    });
    let mut stream = rig.server.connect();
    stream.write_all(OPEN.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    rig.server.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(3)), Some(0));
}

#[test]
fn a_drain_ends_with_its_timeout() {
    let mut rig = Rig::settings("drain_timeout: 500ms");
    rig.upstream.script(|_, _| {
        std::thread::sleep(Duration::from_secs(20));
        false
    });
    let mut stream = rig.server.connect();
    stream.write_all(OPEN.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(4)), Some(0));
}

#[test]
fn the_time_of_an_upload_is_not_the_upstreams() {
    let rig = Rig::routes(
        "
  - from: http://open.localhost
    to: http://UPSTREAM
    timeout: 700ms
    allow_public_unauthenticated_access: true
",
    );
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nHost: open.localhost\r\nContent-Length: 6\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(250));
        stream.write_all(b"x").unwrap();
    }
    assert!(read_all(&mut stream).starts_with("HTTP/1.1 200"));
}

#[test]
fn trailers_pass_without_what_decides_anything() {
    let rig = Rig::settings("jwt_claims_headers: {X-Team: custom:team}");
    let (tell, told) = std::sync::mpsc::channel();
    rig.upstream.script(move |stream, request| {
        let mut rest = request.split_once("\r\n\r\n").unwrap().1.to_owned();
        let mut part = [0; 4096];
        while !rest.ends_with("\r\n\r\n") {
            let count = stream.read(&mut part).unwrap();
            rest.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        tell.send(rest).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        false
    });
    rig.server.send(
        "POST / HTTP/1.1\r\nHost: open.localhost\r\nTE: trailers\r\nTrailer: X-Sum, X-Team, X-Pomerium-Claim-Email\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-Pomerium-Claim-Email: forged\r\nX-Team: forged\r\nX-Forwarded-For: forged\r\nCookie: forged\r\n\r\n",
    );
    let arrived = told.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(arrived.to_ascii_lowercase(), "2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n");

    rig.upstream.answer(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 2\r\n\r\n",
    );
    let answer = rig
        .server
        .send("GET / HTTP/1.1\r\nHost: open.localhost\r\nTE: trailers\r\nConnection: close\r\n\r\n");
    assert!(answer.to_ascii_lowercase().ends_with("\r\n0\r\nx-sum: 2\r\n\r\n"), "{answer}");
}

#[test]
fn what_anybody_may_see_does_not_depend_on_the_provider() {
    let rig = Rig::start();
    rig.provider.set(|state| state.lifetime = 2);
    let mut browser = rig.signed_in();
    browser.open("http://other.localhost/");
    let cookie = browser.session("app.localhost");
    rig.provider.set(|state| state.down = true);
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 503);
    assert_eq!(rig.server.get("app.localhost", "/public", &cookie).status, 200);
}

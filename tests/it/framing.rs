//! One meaning or none: framing, hosts and paths that could be read in two ways reach no upstream.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::rig::{Answer, Rig, read_to_close};

const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: app.localhost\r\n\r\n";

#[test]
fn ambiguous_framing_is_refused_and_the_connection_closed() {
    let rig = Rig::start();
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n",
        "Content-Length: 4, 4\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: -4\r\n",
        "Content-Length: 0x4\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "X: a\r\n folded\r\n",
        "X: a\rY: b\r\n",
        "X: a\nContent-Length: 4\r\n",
        "X: a\0b\r\n",
        "X Y: a\r\n",
    ] {
        let sent = format!("POST /public HTTP/1.1\r\nHost: app.localhost\r\n{head}\r\n0\r\n\r\n{SMUGGLED}");
        let answer = rig.server.send(&sent);
        let first = Answer::parse(&answer);
        assert!(matches!(first.status, 400 | 501), "{head:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answer:?}");
        assert_eq!(rig.upstream.seen(), "", "{head:?}");
    }
    let answer = rig
        .server
        .send("POST /public HTTP/1.0\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(Answer::parse(&answer).status, 400);
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn a_malformed_chunk_reaches_the_upstream_as_a_request_that_broke_off() {
    let rig = Rig::start();
    for body in ["5\nhello\r\n0\r\n\r\n", "zz\r\nhello\r\n", "5\r\nhelloX\r\n0\r\n\r\n"] {
        rig.upstream.forget();
        let answer = rig.server.send(format!("POST /public HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}"));
        assert!(
            matches!(Answer::parse(&answer).status, 400 | 502) && answer.matches("HTTP/1.1 ").count() == 1,
            "{answer}"
        );
        let seen = rig.upstream.seen();
        assert!(!seen.contains("/admin") && !seen.contains("\r\n0\r\n\r\n"), "{body:?}: {seen}");
    }
}

#[test]
fn the_host_is_one_and_well_formed() {
    let rig = Rig::start();
    for head in [
        "GET /public HTTP/1.1\r\n\r\n",
        "GET /public HTTP/1.0\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: app.localhost\r\nHost: app.localhost\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: app.localhost\r\nHost: open.localhost\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: app.localhost open.localhost\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: user@app.localhost\r\n\r\n",
        "GET /public HTTP/1.1\r\nHost: app.localhost:x\r\n\r\n",
        "GET http://app.localhost/admin HTTP/1.1\r\nHost: open.localhost\r\n\r\n",
        "GET http://open.localhost/ HTTP/1.1\r\nHost: app.localhost\r\n\r\n",
        "GET ftp://open.localhost/ HTTP/1.1\r\nHost: open.localhost\r\n\r\n",
        "CONNECT open.localhost:80 HTTP/1.1\r\nHost: open.localhost:80\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: open.localhost\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: open.localhost\r\n\r\n",
        "GET app.localhost HTTP/1.1\r\nHost: app.localhost\r\n\r\n",
    ] {
        let answer = Answer::parse(&rig.server.send(head));
        assert_eq!(answer.status, 400, "{head:?} {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{head:?}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(300));
    assert_eq!(Answer::parse(&rig.server.send(long)).status, 400);
    assert_eq!(rig.upstream.seen(), "");
    for host in ["OPEN.localhost", "open.localhost.", "open.localhost:8080"] {
        assert_eq!(rig.server.get(host, "/", "").status, 200, "{host}");
    }
    let absolute =
        "GET http://open.localhost/x HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(Answer::parse(&rig.server.send(absolute)).status, 200);
}

#[test]
fn no_way_of_writing_a_path_leads_from_a_public_route_to_a_protected_one() {
    let rig = Rig::start();
    for target in [
        "/public/../admin/secret",
        "/public/./../admin",
        "/public//../admin",
        "/public/%2e%2e/admin",
        "/public/%2E%2E/admin",
        "/public/.%2e/admin",
        "/public/..%2fadmin",
        "/public/%2e%2e%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public\\..\\admin",
        "/public/%252e%252e/admin",
        "/public/%252e%252e%252fadmin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/public/..%3b/admin",
        "/public/%00/../admin",
        "/public/%c0%ae%c0%ae/admin",
        "/public/%25c0%25ae%25c0%25ae/admin",
        "/public/%e0%80%ae%e0%80%ae/admin",
        "/public/..%00/admin",
        "/./public/../admin",
        "//public/../admin",
        "/public/%2e%2e;x/admin",
        "/public/.;/../admin",
        "/public/../Admin/../admin",
        "/admin#/public",
        "/public/%252e%252e/admin/secret%25",
        "/public/%",
        "/public/%zz",
        "/public/\x7f",
        "/public/%0d%0aX:y",
    ] {
        let status = rig.server.get("app.localhost", target, "").status;
        assert!(matches!(status, 400 | 302 | 401), "{target}: {status}");
        assert_eq!(rig.upstream.seen(), "", "{target}");
    }
    for (target, forwarded) in [
        ("/public/a%20b;v=1?x=%2F..", "/public/a%20b;v=1?x=%2F.."),
        ("/public/a/../b", "/public/a/../b"),
        ("/public/%7Euser", "/public/%7Euser"),
        ("/public/foo%23bar", "/public/foo%23bar"),
        ("/public?/admin", "/public?/admin"),
    ] {
        rig.upstream.forget();
        assert_eq!(rig.server.get("app.localhost", target, "").status, 200, "{target}");
        assert!(
            rig.upstream.seen().starts_with(&format!("GET {forwarded} HTTP/1.1\r\n")),
            "{}",
            rig.upstream.seen()
        );
    }
}

#[test]
fn a_public_pattern_is_matched_against_the_path_alone() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    regex: /public/.*|/foo/.*/bar
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: http://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
",
    );
    for target in ["/admin?x=/public/a", "/secret?/foo/x/bar", "/foo/secret%2Fx/barx", "/xpublic/a"] {
        assert_ne!(rig.server.get("app.localhost", target, "").status, 200, "{target}");
    }
    assert_eq!(rig.upstream.seen(), "");
    assert_eq!(rig.server.get("app.localhost", "/foo/a%23b/bar", "").status, 200);
    assert!(rig.upstream.seen().starts_with("GET /foo/a%23b/bar HTTP/1.1"));
}

#[test]
fn a_policy_on_the_path_holds_for_every_reading_of_it() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    to: http://UPSTREAM
    policy:
      - allow: {or: [{accept: true}]}
      - deny: {or: [{http_path: {starts_with: /admin}}]}
",
    );
    for target in
        ["/admin", "/x/../admin", "/%61dmin", "/x/%252e%252e/admin", "/x/..;/admin", "//admin", "/./admin/x"]
    {
        let status = rig.server.get("app.localhost", target, "").status;
        assert!(matches!(status, 403 | 400), "{target}: {status}");
        assert_eq!(rig.upstream.seen(), "", "{target}");
    }
    assert_eq!(rig.server.get("app.localhost", "/x/administrator", "").status, 200);
}

#[test]
fn a_rewritten_path_stays_where_it_belongs() {
    let rig = Rig::routes(
        "
  - from: http://app.localhost
    prefix: /api
    prefix_rewrite: /v1
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: http://base.localhost
    to: http://UPSTREAM/base
    allow_public_unauthenticated_access: true
",
    );
    for (host, target, forwarded) in [
        ("app.localhost", "/api/x?y=1", "/v1/x?y=1"),
        ("app.localhost", "/api", "/v1"),
        ("base.localhost", "/foo", "/base/foo"),
        ("base.localhost", "/", "/base/"),
    ] {
        rig.upstream.forget();
        assert_eq!(rig.server.get(host, target, "").status, 200, "{target}");
        assert!(
            rig.upstream.seen().starts_with(&format!("GET {forwarded} HTTP/1.1\r\n")),
            "{}",
            rig.upstream.seen()
        );
    }
    rig.upstream.forget();
    for target in [
        "/api../admin",
        "/api/../api/../admin",
        "/api%2e%2e/admin",
        "/api/%2e%2e%2fadmin",
        "/%61pi/x",
        "/api/x/../../api/y",
        "/api/..;/api/x",
    ] {
        let status = rig.server.get("app.localhost", target, "").status;
        assert!(matches!(status, 400 | 404), "{target}: {status}");
    }
    for target in ["/../admin", "/x/../../admin", "/%2e%2e/admin"] {
        let status = rig.server.get("base.localhost", target, "").status;
        let seen = rig.upstream.seen();
        assert!(status == 400 || seen.is_empty() || !seen.contains("/base/../"), "{target}: {status} {seen}");
    }
}

#[test]
fn an_application_is_not_reached_through_our_own_endpoints_in_disguise() {
    let rig = Rig::start();
    for target in ["/x/../.pomerium/user", "/%2epomerium/user", "//.pomerium/user", "/.pomerium/unknown"] {
        let status = rig.server.get("open.localhost", target, "").status;
        assert!(matches!(status, 400 | 404 | 302), "{target}: {status}");
        assert_eq!(rig.upstream.seen(), "", "{target}");
    }
}

#[test]
fn slow_and_oversized_heads_are_cut_off_and_others_served_meanwhile() {
    let rig = Rig::start();
    for (head, statuses) in [
        (format!("GET /{} HTTP/1.1\r\nHost: open.localhost\r\n\r\n", "x".repeat(100_000)), [414, 431]),
        (format!("GET / HTTP/1.1\r\nHost: open.localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000)), [431, 431]),
        (format!("GET / HTTP/1.1\r\nHost: open.localhost\r\n{}\r\n", "X: y\r\n".repeat(10_000)), [431, 431]),
    ] {
        let answer = Answer::parse(&rig.server.send(head));
        assert!(statuses.contains(&answer.status), "{answer:?}");
    }
    assert_eq!(rig.upstream.seen(), "");
    let held: Vec<_> = (0..2000)
        .map(|_| {
            let mut stream = rig.server.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: open.local").unwrap();
            stream
        })
        .collect();
    assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
    drop(held);
}

#[test]
fn the_answer_to_an_upload_that_nobody_reads_arrives() {
    let rig = Rig::start();
    let body = vec![b'x'; 20 << 20];
    for (head, status) in [
        ("POST /admin HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 20971520\r\n\r\n", 401),
        ("POST /nowhere HTTP/1.1\r\nHost: nowhere.localhost\r\nContent-Length: 20971520\r\n\r\n", 404),
        ("POST /admin#x HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 20971520\r\n\r\n", 400),
    ] {
        let mut stream = rig.server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        let answer = Answer::parse(&read_to_close(&mut stream));
        assert_eq!(answer.status, status, "{head}");
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_serves_many_requests() {
    let rig = Rig::settings("timeout_idle: 1s");
    let mut stream = rig.server.connect();
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: open.localhost\r\n\r\n").unwrap();
        let mut part = [0; 4096];
        let count = std::io::Read::read(&mut stream, &mut part).unwrap();
        assert!(String::from_utf8_lossy(&part[..count]).starts_with("HTTP/1.1 200"));
    }
    assert_eq!(read_to_close(&mut stream), "");
}

/// A connection that waits is taken from hyper after a second, and given back with the next request.
#[test]
fn a_connection_that_waited_is_served_as_before() {
    let mut rig = Rig::settings("timeout_idle: 3s");
    let request = |stream: &mut TcpStream, head: &str| {
        stream.write_all(head.as_bytes()).unwrap();
        let mut part = [0; 4096];
        let count = std::io::Read::read(stream, &mut part).unwrap();
        String::from_utf8_lossy(&part[..count]).into_owned()
    };
    let good = "GET / HTTP/1.1\r\nHost: open.localhost\r\n\r\n";
    let (mut stream, mut other) = (rig.server.connect(), rig.server.connect());
    for wait in [0, 1300, 1300] {
        std::thread::sleep(Duration::from_millis(wait));
        assert!(request(&mut stream, good).starts_with("HTTP/1.1 200"), "after {wait}");
    }
    std::thread::sleep(Duration::from_millis(1300));
    // Two at once, of which the second cannot be read.
    let bad = "GET / HTTP/1.1\r\nHost: open.localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx";
    stream.write_all(format!("{good}{bad}").as_bytes()).unwrap();
    let answers = read_to_close(&mut stream);
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
    assert!(answers.starts_with("HTTP/1.1 200") && answers.contains("HTTP/1.1 400"), "{answers}");
    // It is read on as long as its client does not close it.
    drop(stream);
    // One that never said anything is closed after `timeout_idle`, and all when the server stops.
    other.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    assert_eq!(read_to_close(&mut other), "");
    let mut waiting = rig.server.connect();
    assert!(request(&mut waiting, good).starts_with("HTTP/1.1 200"));
    std::thread::sleep(Duration::from_millis(1300));
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(2)), Some(0));
    assert_eq!(read_to_close(&mut waiting), "");
}

/// Nobody may lose the end of an answer by reading slowly.
#[test]
fn an_answer_that_is_read_slowly_arrives_whole() {
    const SIZE: usize = 8_000_000;
    let rig = Rig::start();
    rig.upstream.script(|stream, _| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; SIZE])).is_ok()
    });
    let mut stream = rig.server.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: open.localhost\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut part, mut got, mut pauses) = (vec![0; 1_000_000], 0, 0);
    while got < SIZE {
        if got >= pauses * SIZE / 2 {
            // Longer than a connection may wait before it is taken from hyper.
            std::thread::sleep(Duration::from_millis(1500));
            pauses += 1;
        }
        let count = std::io::Read::read(&mut stream, &mut part).unwrap();
        assert!(count > 0, "it ended after {got}");
        got += count;
    }
    assert!(got - SIZE < 1000, "{got}");
}

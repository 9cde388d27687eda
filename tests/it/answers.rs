//! Where an upstream's answer ends, whatever it says about that (RFC 9112 §6.3), and what becomes of its
//! connection: what one request left on it is never another one's answer.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::rig::{Answer, Rig, read_all};

/// What the upstream would answer to somebody else.
const STRANGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstrange";
const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    AtOnce,
    ByteByByte,
}

/// One answer: to which method, its bytes, whether the upstream closes after them, what arrives, and whether
/// the connection is used again.
type Case = (&'static str, &'static str, bool, u16, &'static str, bool);

const CASES: &[Case] = &[
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, 200, "hello", true),
    ("GET", "HTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello", false, 200, "hello", true),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, 200, "", true),
    ("GET", "HTTP/1.1 404 Nope\r\nContent-Length: 2\r\n\r\nno", false, 404, "no", true),
    ("GET", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", true),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
        200,
        "hello",
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n000\r\n\r\n",
        false,
        200,
        "hello",
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
        false,
        200,
        "ok",
        true,
    ),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false, 200, "", true),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        true,
        200,
        "ok",
        false,
    ),
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, 200, "", true),
    ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, 200, "", true),
    ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", false, 200, "", true),
    ("GET", "HTTP/1.1 204 No Content\r\n\r\n", false, 204, "", true),
    ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false, 204, "", true),
    ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, 304, "", true),
    (
        "GET",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        false,
        200,
        "ok",
        true,
    ),
    (
        "GET",
        "HTTP/1.1 102 Processing\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        false,
        200,
        "ok",
        true,
    ),
    ("GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", false),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
        false,
        200,
        "ok",
        false,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        false,
        200,
        "ok",
        false,
    ),
    ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", false),
    (
        "GET",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        false,
        200,
        "ok",
        true,
    ),
    (
        "GET",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\nok",
        false,
        200,
        "ok",
        false,
    ),
    ("GET", "HTTP/1.1 200 OK\r\n\r\nuntil the end", true, 200, "until the end", false),
    ("GET", "HTTP/1.0 200 OK\r\n\r\nuntil the end", true, 200, "until the end", false),
    // More than was announced is nobody's answer.
    (
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstrange",
        false,
        200,
        "ok",
        false,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstrange",
        false,
        200,
        "ok",
        false,
    ),
    ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\nstrange", false, 204, "", false),
    (
        "GET",
        "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstrange",
        false,
        304,
        "",
        false,
    ),
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstrange", false, 200, "", false),
    (
        "HEAD",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nstrange\r\n0\r\n\r\n",
        false,
        200,
        "",
        false,
    ),
];

/// Answers the first request so, and each later one plainly. The addresses that requests came from, in order.
fn answer_once(rig: &Rig, bytes: &'static str, pace: Pace, close: bool) -> Arc<Mutex<Vec<SocketAddr>>> {
    let from = Arc::new(Mutex::new(Vec::new()));
    let seen = from.clone();
    rig.upstream.script(move |stream, _| {
        let mut seen = seen.lock().unwrap();
        seen.push(stream.peer_addr().unwrap());
        if seen.len() > 1 {
            return stream.write_all(PLAIN).is_ok();
        }
        drop(seen);
        send(stream, bytes, pace);
        !close
    });
    from
}

/// Who is answered may have gone before the last byte: that is looked at elsewhere.
fn send(stream: &mut TcpStream, bytes: &str, pace: Pace) {
    stream.set_nodelay(true).unwrap();
    match pace {
        Pace::AtOnce => drop(stream.write_all(bytes.as_bytes())),
        Pace::ByteByByte => {
            for byte in bytes.bytes() {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        }
    }
}

/// An HTTP/1.0 client gets a body without any framing.
fn ask(rig: &Rig, method: &str) -> Answer {
    Answer::parse(&rig.server.send(format!("{method} / HTTP/1.0\r\nHost: open.localhost\r\n\r\n")))
}

#[test]
fn an_answer_ends_where_it_says_and_its_connection_is_used_again_when_nothing_is_left_on_it() {
    let rig = Rig::start();
    for pace in [Pace::AtOnce, Pace::ByteByByte] {
        for (method, bytes, close, status, body, again) in CASES {
            let from = answer_once(&rig, bytes, pace, *close);
            let answer = ask(&rig, method);
            assert_eq!((answer.status, answer.body.as_str()), (*status, *body), "{pace:?} {bytes:?}");
            // Let what was sent too much arrive.
            std::thread::sleep(Duration::from_millis(if *again { 0 } else { 60 }));
            assert_eq!(ask(&rig, "GET").body, "ok", "{pace:?} {bytes:?}");
            let from = from.lock().unwrap();
            assert_eq!(from.len(), 2, "{pace:?} {bytes:?}");
            assert_eq!(from[0] == from[1], *again, "{pace:?} {bytes:?}");
        }
    }
}

#[test]
fn an_answer_that_could_be_read_in_two_ways_is_none() {
    let rig = Rig::start();
    let framed = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let mut refused: Vec<String> = [
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;x",
        "Transfer-Encoding:",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nContent-Length: 12",
        "Content-Length: 12\r\nTransfer-Encoding: chunked",
        "Content-Length: 12\r\nTransfer-Encoding: gzip",
        "Content-Length: 12\r\nContent-Length: 12",
        "Content-Length: 12\r\nContent-Length: 2",
        "Content-Length: 12, 12",
        "Content-Length: +12",
        "Content-Length: -12",
        "Content-Length: 0xc",
        "Content-Length: 1 2",
        "Content-Length: 12.0",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        "Content-Length : 12",
        "Content-Length: 12\r\n X-Folded: y",
        " Content-Length: 12",
        "Content-Length: 12\r\nX\0Y: z",
        "Content-Length: 12\r\nX: a\0b",
        "Content-Length: 12\r\nX: a\rb",
        "Content-Length: 12\r\nno colon",
        "Content-Length: 12\r\n: no name",
    ]
    .map(framed)
    .into();
    refused.extend(
        [
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 099 X\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 2000 X\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 abc X\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1\r\nContent-Length: 2\r\n\r\nok",
            "ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "just text",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "HTTP/1.1 100 Continue\r\n\r\ngarbage\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ]
        .map(str::to_owned),
    );
    refused.push(framed(&"X: y\r\n".repeat(101)));
    refused.push(framed(&format!("X: {}", "y".repeat(300 * 1024))));
    for bytes in refused {
        let shown = bytes.chars().take(120).collect::<String>();
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        rig.upstream.script(move |stream, _| {
            *count.lock().unwrap() += 1;
            send(stream, &bytes, Pace::AtOnce);
            // What comes behind it must not help.
            let _ = stream.write_all(STRANGE.as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 64]);
            false
        });
        let answer = ask(&rig, "GET");
        assert_eq!(answer.status, 502, "{shown:?} {answer:?}");
        assert!(!answer.body.contains("strange"), "{shown:?}");
        // It was answered, if badly: it is not asked again.
        assert_eq!(*asked.lock().unwrap(), 1, "{shown:?}");
    }
    // At the very limits it is an answer.
    for fields in ["X: y\r\n".repeat(99), format!("X: {}\r\n", "y".repeat(200 * 1024))] {
        rig.upstream.answer(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"));
        assert_eq!(ask(&rig, "GET").status, 200);
    }
}

#[test]
fn a_body_that_breaks_off_or_is_malformed_is_never_seen_whole() {
    let rig = Rig::start();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (head, rest) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "begun"),
        (chunked, "5\r\nbegun\r\n"),
        (chunked, "5\r\nbegun\r\n0\r\n"),
        (chunked, "5\r\nbegun\r\n0\r\nX-Sum: 1\r\n"),
        (chunked, "5\r\nbegun\r\n0\r\nX-Sum\r\n\r\n"),
        (chunked, "5\r\nbegun\r\n0\r\nX: a\0b\r\n\r\n"),
        (chunked, "5\r\nbegunX\r\n0\r\n\r\n"),
        (chunked, "5\r\nbegun\n0\r\n\r\n"),
        (chunked, "5\r\nbegun\r\n-1\r\n\r\n"),
        (chunked, "5\r\nbegun\r\n00000000000000001\r\nx\r\n0\r\n\r\n"),
        (chunked, "5\r\nbegun\r\n1;\nx\r\n0\r\n\r\n"),
        (chunked, "5\r\nbegun\r\n1 x\nx\r\n0\r\n\r\n"),
        (chunked, "5\r\nbegun\r\n\r\n0\r\n\r\n"),
    ] {
        let whole = format!("{head}{rest}");
        rig.upstream.script(move |stream, _| {
            let _ = stream.write_all(whole.as_bytes());
            false
        });
        // What was sent before it broke off arrives, and then no end.
        let answer = rig.server.send("GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("begun"), "{rest:?} {answer}");
        assert!(!answer.ends_with("0\r\n\r\n") && !answer.contains("x-sum"), "{rest:?} {answer}");
    }
    for (fields, most) in
        [("X: y\r\n".repeat(101), "fields"), (format!("X: {}\r\n", "y".repeat(70 * 1024)), "bytes")]
    {
        rig.upstream.answer(format!("{chunked}5\r\nbegun\r\n0\r\n{fields}\r\n"));
        let answer = rig.server.send("GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n");
        assert!(answer.contains("begun") && !answer.ends_with("0\r\n\r\n"), "{most}: {answer}");
    }
}

#[test]
fn what_comes_unasked_on_a_waiting_connection_is_nobodys_answer() {
    let rig = Rig::start();
    for unasked in [STRANGE, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", "\r\n"] {
        let from = Arc::new(Mutex::new(Vec::new()));
        let seen = from.clone();
        let (tell, told) = std::sync::mpsc::channel();
        rig.upstream.script(move |stream, _| {
            seen.lock().unwrap().push(stream.peer_addr().unwrap());
            let _ = stream.write_all(PLAIN);
            // It waits by now, and is closed when something comes.
            std::thread::sleep(Duration::from_millis(30));
            let _ = stream.write_all(unasked.as_bytes());
            let (mut stream, tell) = (stream.try_clone().unwrap(), tell.clone());
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let read = stream.read(&mut [0; 64]).map_err(|error| error.kind());
                let _ = tell.send(matches!(read, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)));
            });
            true
        });
        for _ in 0..3 {
            assert_eq!(ask(&rig, "GET").body, "ok", "{unasked:?}");
            assert!(told.recv_timeout(Duration::from_secs(12)).unwrap(), "{unasked:?}: it was closed");
        }
        let from = from.lock().unwrap();
        assert_eq!(from.iter().collect::<HashSet<_>>().len(), 3, "{unasked:?} {from:?}");
    }
}

#[test]
fn a_request_is_sent_again_only_when_nothing_came_back_and_twice_does_no_harm() {
    let rig = Rig::start();
    // How a connection that was used before ends instead of an answer.
    let reset = |stream: &TcpStream| {
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    };
    let silent: fn(&mut TcpStream) = |_| {};
    let partial: fn(&mut TcpStream) = |stream| drop(stream.write_all(b"HTTP/1."));
    let interim: fn(&mut TcpStream) = |stream| drop(stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n"));
    for (request, ending, again) in [
        ("GET / HTTP/1.1\r\n\r\n", silent, true),
        ("HEAD / HTTP/1.1\r\n\r\n", silent, true),
        ("OPTIONS / HTTP/1.1\r\n\r\n", silent, true),
        ("GET / HTTP/1.1\r\n\r\n", partial, false),
        ("GET / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", silent, false),
        ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", silent, false),
        ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", silent, false),
        ("PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", silent, false),
        ("DELETE / HTTP/1.1\r\n\r\n", silent, false),
        ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", interim, false),
    ] {
        for how in ["closed", "reset"] {
            rig.upstream.script(|stream, _| stream.write_all(PLAIN).is_ok());
            assert_eq!(ask(&rig, "GET").status, 200);
            let asked = Arc::new(Mutex::new(0));
            let count = asked.clone();
            rig.upstream.script(move |stream, _| {
                let mut count = count.lock().unwrap();
                *count += 1;
                if *count > 1 {
                    return stream.write_all(PLAIN).is_ok();
                }
                ending(stream);
                if how == "reset" {
                    std::thread::sleep(Duration::from_millis(20));
                    reset(stream);
                }
                false
            });
            let sent =
                request.replace("HTTP/1.1\r\n", "HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n");
            let status = Answer::parse(&rig.server.send(sent)).status;
            assert_eq!(status, if again { 200 } else { 502 }, "{request:?} {how}");
            assert_eq!(*asked.lock().unwrap(), if again { 2 } else { 1 }, "{request:?} {how}");
        }
    }
}

#[test]
fn an_upload_goes_on_beside_an_early_answer() {
    let rig = Rig::start();
    for early in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n",
    ] {
        let (tell, told) = std::sync::mpsc::channel();
        rig.upstream.script(move |stream, request| {
            if request.starts_with("GET") {
                return stream.write_all(PLAIN).is_ok();
            }
            stream.write_all(early.as_bytes()).unwrap();
            let mut rest = request.split_once("\r\n\r\n").unwrap().1.to_owned();
            let mut part = [0; 65536];
            while !rest.ends_with("\r\n0\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => rest.push_str(&String::from_utf8_lossy(&part[..count])),
                }
            }
            tell.send(rest.matches('x').count()).unwrap();
            true
        });
        let mut stream = rig.server.connect();
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: open.localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        let mut seen = String::new();
        let mut part = [0; 4096];
        while !seen.contains("early") {
            let count = stream.read(&mut part).unwrap();
            assert_ne!(count, 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
        for _ in 0..20 {
            stream.write_all(chunk.as_bytes()).unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), 20 * 0x4000, "{early:?}");
        // The same connection serves the next request.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n").unwrap();
        assert!(read_all(&mut stream).ends_with("ok"));
    }
}

#[test]
fn an_upstream_that_stops_listening_may_say_why() {
    let rig = Rig::start();
    rig.upstream.script(|stream, _| {
        let why = b"HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much";
        stream.write_all(why).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        // Whoever closes with bytes unread resets what it has said: it reads a while, as servers do.
        let until = Instant::now() + Duration::from_secs(1);
        let mut part = [0; 65536];
        while Instant::now() < until && stream.read(&mut part).is_ok_and(|count| count > 0) {}
        false
    });
    let mut stream = rig.server.connect();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: open.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        .unwrap();
    let answer = Answer::parse(&read_all(&mut stream));
    assert_eq!((answer.status, answer.body.as_str()), (413, "too much"));
}

#[test]
fn an_upload_that_is_not_what_it_was_said_to_be_breaks_off_upstream_too() {
    let rig = Rig::start();
    let (tell, told) = std::sync::mpsc::channel();
    rig.upstream.script(move |stream, request| {
        let mut rest = request.split_once("\r\n\r\n").unwrap().1.to_owned();
        let _ = stream.read_to_string(&mut rest);
        tell.send(rest).unwrap();
        false
    });
    let mut stream = rig.server.connect();
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nHost: open.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        )
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(stream);
    let arrived = told.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(arrived, "3\r\nabc\r\n");
}

#[test]
fn a_waiting_connection_that_the_upstream_closes_is_closed_here_too() {
    let rig = Rig::start();
    let (tell, told) = std::sync::mpsc::channel();
    rig.upstream.script(move |stream, _| {
        stream.write_all(PLAIN).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        stream.shutdown(Shutdown::Write).unwrap();
        tell.send(stream.read(&mut [0; 16]).is_ok_and(|count| count == 0)).unwrap();
        false
    });
    assert_eq!(ask(&rig, "GET").body, "ok");
    // Without any further request.
    assert!(told.recv_timeout(Duration::from_secs(20)).unwrap());
}

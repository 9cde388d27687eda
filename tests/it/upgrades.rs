//! WebSocket and other tunnels: authorised like any request, then byte for byte.

use std::io::{Read, Write};
use std::time::Duration;

use crate::rig::{Answer, Rig, read_to_close};

fn handshake(host: &str, extra: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
}

fn echo(rig: &Rig) {
    rig.upstream.script(|stream, _| {
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: theirs\r\n\r\nhello")
            .unwrap();
        let mut part = [0; 65536];
        while let Ok(count) = stream.read(&mut part) {
            if count == 0 || stream.write_all(&part[..count]).is_err() {
                break;
            }
        }
        false
    });
}

#[test]
fn a_tunnel_passes_every_byte_both_ways() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    echo(&rig);
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let extra = format!(
        "{cookie}Sec-WebSocket-Protocol: a, b.c\r\nSec-WebSocket-Extensions: permessage-deflate\r\nOrigin: http://app.localhost\r\n"
    );
    rig.upstream.forget();
    stream.write_all(handshake("app.localhost", &extra).as_bytes()).unwrap();
    let mut head = Vec::new();
    let mut one = [0; 1];
    while !head.ends_with(b"\r\n\r\nhello") {
        stream.read_exact(&mut one).unwrap();
        head.push(one[0]);
    }
    let answer = Answer::parse(&String::from_utf8_lossy(&head));
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("sec-websocket-protocol"), Some("theirs"));
    assert_eq!(rig.upstream.header("sec-websocket-protocol"), ["a, b.c"]);
    assert_eq!(rig.upstream.header("sec-websocket-extensions"), ["permessage-deflate"]);
    assert_eq!(rig.upstream.header("x-pomerium-claim-email"), ["jane@example.com"]);
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n * 7 % 256) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let write = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    write.join().unwrap();
    assert!(back == bytes);
    // What looks like a bad request is only bytes here.
    let odd = b"GET /admin#x HTTP/1.1\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(odd).unwrap();
    let mut back = vec![0; odd.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, odd);
}

#[test]
fn a_tunnel_needs_a_session_and_our_own_page() {
    let rig = Rig::start();
    let cookie = rig.signed_in().session("app.localhost");
    rig.upstream.forget();
    let status = |extra: &str| Answer::parse(&rig.server.send(handshake("app.localhost", extra))).status;
    assert_eq!(status(""), 401);
    for origin in [
        "http://evil.test",
        "null",
        "http://app.localhost.evil.test",
        "https://app.localhost",
        "http://app.localhost:81",
    ] {
        assert_eq!(status(&format!("{cookie}Origin: {origin}\r\n")), 403, "{origin}");
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn a_malformed_handshake_is_refused() {
    let rig = Rig::start();
    for (from, to, status) in [
        ("Version: 13", "Version: 8", 426),
        ("Key: dGhlIHNhbXBsZSBub25jZQ==", "Key: x", 400),
        ("GET ", "POST ", 400),
        ("Sec-WebSocket-Version: 13\r\n", "", 400),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nUpgrade: websocket\r\n", 400),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nContent-Length: 5\r\n", 400),
    ] {
        let answer = Answer::parse(&rig.server.send(handshake("open.localhost", "").replace(from, to)));
        assert_eq!(answer.status, status, "{to}");
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn cleartext_http_2_never_tunnels() {
    let rig = Rig::start();
    rig.upstream.script(|stream, request| {
        assert!(!request.to_lowercase().contains("upgrade:"), "{request}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    for protocol in ["h2c", "websocket, h2c", "H2C"] {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        );
        assert_eq!(Answer::parse(&rig.server.send(head)).status, 200, "{protocol}");
    }
    rig.upstream.script(|stream, _| {
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
            .is_ok()
    });
    let head = "GET / HTTP/1.1\r\nHost: open.localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_ne!(Answer::parse(&rig.server.send(head)).status, 101);
    let preface = rig.server.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(Answer::parse(&preface).status, 400);
}

#[test]
fn tunnels_can_be_forbidden_and_idle_ones_end() {
    let rig = Rig::routes(
        "
  - from: http://off.localhost
    to: http://UPSTREAM
    allow_websockets: false
    allow_public_unauthenticated_access: true
  - from: http://idle.localhost
    to: http://UPSTREAM
    idle_timeout: 400ms
    allow_public_unauthenticated_access: true
",
    );
    assert_eq!(Answer::parse(&rig.server.send(handshake("off.localhost", ""))).status, 200);
    assert!(rig.upstream.header("upgrade").is_empty());
    echo(&rig);
    let mut stream = rig.server.connect();
    stream.write_all(handshake("idle.localhost", "").as_bytes()).unwrap();
    assert!(read_to_close(&mut stream).starts_with("HTTP/1.1 101"));
}

#[test]
fn a_change_to_another_protocol_than_was_asked_for_is_refused() {
    let rig = Rig::start();
    rig.upstream.script(|stream, _| {
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
            .is_ok()
    });
    assert_eq!(Answer::parse(&rig.server.send(handshake("open.localhost", ""))).status, 502);
}

#[test]
fn a_connection_that_asked_for_a_tunnel_and_got_none_is_closed() {
    let rig = Rig::start();
    let answer = rig.server.send(format!(
        "{}GET /admin#x HTTP/1.1\r\nHost: open.localhost\r\n\r\n",
        handshake("open.localhost", "")
    ));
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(Answer::parse(&answer).header("connection"), Some("close"));
}

#[test]
fn a_stopping_server_waits_for_tunnels() {
    let mut rig = Rig::settings("drain_timeout: 1500ms");
    echo(&rig);
    let mut stream = rig.server.connect();
    stream.write_all(handshake("open.localhost", "").as_bytes()).unwrap();
    let mut part = [0; 4096];
    assert!(stream.read(&mut part).unwrap() > 0);
    std::thread::sleep(Duration::from_millis(100));
    rig.server.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    stream.write_all(b"still here").unwrap();
    let mut back = String::new();
    while !back.contains("still here") {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "{back}");
        back.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    assert_eq!(rig.server.wait(Duration::from_secs(4)), Some(0));
}

//! What hyper gets of the bytes that are sent, however they are cut.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn of<S>(stream: S) -> Gate<S> {
    let clock = Clock::system();
    let activity = Activity::since(clock.instant());
    let limits = Limits { head_size: 1000, ..Limits::new(Duration::from_secs(300)) };
    Gate::new(stream, limits, Arc::new(activity), clock)
}

/// What hyper would get of these bytes, sent in such parts, and what was refused.
fn gate(bytes: &[u8], step: usize) -> (String, Option<(u64, Misread)>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(step.clamp(1, 1 << 20));
        let mut gate = of(server);
        let verdict = gate.verdict();
        let bytes = bytes.to_vec();
        let sent = tokio::spawn(async move { client.write_all(&bytes).await });
        let mut all = Vec::new();
        let mut part = [0; 100];
        // A refused stream never ends; its stand-in comes last.
        while verdict.bad.get().is_none() || !gate.ready.is_empty() || matches!(gate.state, State::Off) {
            match gate.read(&mut part).await {
                Ok(0) | Err(_) => break,
                Ok(count) => all.extend_from_slice(&part[..count]),
            }
        }
        sent.abort();
        (String::from_utf8_lossy(&all).into_owned(), verdict.bad.get().cloned())
    })
}

#[test]
fn plain_requests_pass_byte_for_byte() {
    let all = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n5;x=y\r\nGET /\r\n0\r\nX: y\r\n\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
    for step in [1, 2, 3, 7, 50, 4096] {
        let (passed, bad) = gate(all, step);
        assert_eq!(passed.as_bytes(), all, "{step}");
        assert!(bad.is_none(), "{step}");
    }
}

#[test]
fn in_the_place_of_a_bad_request_comes_a_stand_in_and_nothing_follows() {
    let first = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    for (second, status) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), 400),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2000)), 414),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2000)), 431),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(101)), 431),
    ] {
        for step in [1, 5, 4096] {
            let (passed, bad) = gate(format!("{first}{second}GET /b HTTP/1.1\r\n\r\n").as_bytes(), step);
            assert_eq!(passed, format!("{first}GET / HTTP/1.1\r\n\r\n"), "{step} {second:?}");
            let (number, misread) = bad.unwrap();
            assert_eq!((number, misread.status.as_u16()), (2, status), "{step} {second:?}");
        }
    }
}

#[test]
fn what_follows_a_malformed_chunk_is_refused() {
    for body in ["5\nhello", "g\r\n", "\r\n", "5\r\nhello\r\n0\n", "ffffffffffffffff1\r\n"] {
        let (_, bad) =
            gate(format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}").as_bytes(), 4096);
        assert_eq!(bad.unwrap().0, 2, "{body:?}");
    }
}

#[test]
fn after_a_request_to_change_the_protocol_nothing_is_looked_at() {
    let bytes = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nPOST / HTTP/1.1\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz";
    let (passed, bad) = gate(bytes, 3);
    assert_eq!(passed.as_bytes(), bytes);
    assert!(bad.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_refused() {
    let (mut client, server) = tokio::io::duplex(100);
    let mut gate = of(server);
    client.write_all(b"GET /slow HTTP/1.1\r\nHost").await.unwrap();
    let mut part = [0; 100];
    let count = gate.read(&mut part).await.unwrap();
    assert_eq!(&part[..count], b"GET / HTTP/1.1\r\n\r\n");
    let misread = gate.verdict().about(1).unwrap();
    assert_eq!(misread.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(misread.path.as_deref(), Some("/slow"));
}

/// What hyper asks for when it has nothing to do.
async fn read_some<S: tokio::io::AsyncRead + Unpin>(gate: &mut Gate<S>) -> Vec<u8> {
    let mut part = [0; 100];
    let count = gate.read(&mut part).await.unwrap();
    part[..count].to_vec()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_is_given_up_by_hyper_and_loses_nothing() {
    let (mut client, server) = tokio::io::duplex(1000);
    let mut gate = of(server);
    let verdict = gate.verdict();
    client.write_all(b"GET /a HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(read_some(&mut gate).await, b"GET /a HTTP/1.1\r\n\r\n");
    for round in 0..2 {
        assert!(!verdict.is_idle(), "{round}");
        let waits = async {
            tokio::select! {
                _ = read_some(&mut gate) => panic!("there is nothing to read"),
                () = sleep(Duration::from_millis(100)) => {}
            }
        };
        waits.await;
        std::thread::sleep(PARK);
        tokio::select! {
            _ = read_some(&mut gate) => panic!("there is nothing to read"),
            () = sleep(PARK) => {}
        }
        assert!(verdict.is_idle(), "{round}");
        // In two parts, so that the first does not hold a whole head.
        client.write_all(b"GET /b HT").await.unwrap();
        assert!(gate.wait().await.unwrap());
        client.write_all(b"TP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(read_some(&mut gate).await, b"GET /b HTTP/1.1\r\n\r\n");
    }
    drop(client);
    assert!(!gate.wait().await.unwrap(), "the client has gone");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_begins_after_a_wait_is_timed_too() {
    let (mut client, server) = tokio::io::duplex(100);
    let mut gate = of(server);
    client.write_all(b"GET /slow HT").await.unwrap();
    assert!(gate.wait().await.unwrap());
    assert_eq!(read_some(&mut gate).await, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(gate.verdict().about(1).unwrap().status, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn what_has_not_left_yet_keeps_a_connection_with_hyper() {
    let (client, server) = tokio::io::duplex(4);
    let mut gate = of(server);
    let verdict = gate.verdict();
    // Nobody reads it.
    let written = tokio::time::timeout(Duration::from_millis(1), gate.write_all(b"an answer")).await;
    assert!(written.is_err());
    std::thread::sleep(PARK);
    tokio::select! {
        _ = read_some(&mut gate) => panic!("there is nothing to read"),
        () = sleep(3 * PARK) => {}
    }
    assert!(!verdict.is_idle());
    drop(client);
}

proptest! {
    #[test]
    fn where_the_bytes_are_cut_does_not_matter(
        bytes in "(GET / HTTP/1.1|POST /#|\r\n|\n|Content-Length: [0-9]{1,2}|Transfer-Encoding: chunked|[0-9a-f]|x|: ){1,30}",
        step in 1..9_usize,
    ) {
        let (whole, bad) = gate(bytes.as_bytes(), 1 << 20);
        let (parts, also_bad) = gate(bytes.as_bytes(), step);
        prop_assert_eq!(parts, whole);
        prop_assert_eq!(also_bad.map(|(number, bad)| (number, bad.status)), bad.map(|(number, bad)| (number, bad.status)));
    }
}

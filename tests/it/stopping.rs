//! A server that stops says so first, refuses nobody who has come, and finishes what is under way; and what systemd passes
//! and is told.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::rig::{Answer, BINARY, Rig, Server, Setup, read_all};

const OPEN: &str = "GET /x HTTP/1.1\r\nHost: open.localhost\r\n\r\n";

/// One answer on a connection that stays open.
fn answer(stream: &mut TcpStream) -> Answer {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    let length = Answer::parse(&String::from_utf8_lossy(&text)).header("content-length").unwrap().parse();
    let mut body = vec![0; length.unwrap()];
    stream.read_exact(&mut body).unwrap();
    text.extend(body);
    Answer::parse(&String::from_utf8(text).unwrap())
}

fn is_refused(rig: &Rig) -> bool {
    matches!(TcpStream::connect(rig.server.address), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

/// The records that say that it stops.
fn stopping(rig: &Rig) -> serde_json::Value {
    rig.server.records().into_iter().find(|record| record["message"] == "stopping").unwrap()
}

#[test]
fn readiness_goes_first_and_whoever_comes_meanwhile_is_served_once() {
    let mut rig = Rig::settings("drain_delay: 1500ms");
    let mut kept = rig.server.connect();
    kept.write_all(OPEN.as_bytes()).unwrap();
    let first = answer(&mut kept);
    assert_eq!((first.status, first.header("connection")), (200, None));
    assert_eq!(rig.server.health("/readyz"), 200);
    let began = Instant::now();
    rig.server.signal("TERM");
    while rig.server.health("/readyz") != 503 {
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(rig.server.health("/healthz"), 200, "it lives");
    // A connection that was there, and one that has just come: both are asked to come no more.
    let mut new = rig.server.connect();
    for stream in [&mut kept, &mut new] {
        stream.write_all(OPEN.as_bytes()).unwrap();
        let text = read_all(stream);
        let answer = Answer::parse(&text);
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{text}");
    }
    assert!(began.elapsed() < Duration::from_millis(1400), "the answers ended with their connections");
    assert!(rig.server.raw_log().contains("drain_delay"));
    assert_eq!(rig.server.wait(Duration::from_secs(5)), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(1500), "not before the delay was over");
    assert!(is_refused(&rig));
}

#[test]
fn a_delay_is_for_those_who_look_at_readiness_and_not_for_people() {
    // Nobody asked.
    let mut rig = Rig::start();
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(3)), Some(0));
    assert_eq!(stopping(&rig)["drain_delay"], "0ns");
    // Somebody did.
    let mut rig = Rig::start();
    rig.server.health("/readyz");
    rig.server.signal("TERM");
    while !rig.server.raw_log().contains("stopping") {}
    assert_eq!(stopping(&rig)["drain_delay"], "5s");
    assert_eq!(rig.server.get("open.localhost", "/x", "").status, 200);
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(3)), Some(0), "a second TERM does not wait");
    // A person.
    let mut rig = Rig::settings("drain_delay: 20s");
    rig.server.signal("INT");
    assert_eq!(rig.server.wait(Duration::from_secs(3)), Some(0));
    // It is a part of the whole.
    let mut rig = Rig::settings("drain_timeout: 700ms");
    rig.server.health("/readyz");
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(3)), Some(0));
}

#[test]
fn a_delay_longer_than_the_drain_is_refused() {
    let rig = Rig::start();
    let settings = "drain_delay: 31s\ndrain_timeout: 30s".into();
    let (code, said) = rig.check(&Setup { settings, ..Setup::default() });
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("c.yaml:1:1: drain_delay: it is a part of drain_timeout"), "{said}");
}

#[test]
fn a_connection_that_came_before_the_end_is_answered() {
    let mut rig = Rig::start();
    // It has not said anything yet; another has said a half.
    let (mut silent, mut half) = (rig.server.connect(), rig.server.connect());
    half.write_all(&OPEN.as_bytes()[..20]).unwrap();
    let mut never = rig.server.connect();
    // One that was answered before, and has begun to ask again.
    let mut again = rig.server.connect();
    again.write_all(OPEN.as_bytes()).unwrap();
    assert_eq!(answer(&mut again).status, 200);
    again.write_all(&OPEN.as_bytes()[..20]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    rig.server.signal("TERM");
    std::thread::sleep(Duration::from_millis(400));
    assert!(is_refused(&rig));
    silent.write_all(OPEN.as_bytes()).unwrap();
    half.write_all(&OPEN.as_bytes()[20..]).unwrap();
    again.write_all(&OPEN.as_bytes()[20..]).unwrap();
    for stream in [&mut silent, &mut half, &mut again] {
        let text = read_all(stream);
        let answer = Answer::parse(&text);
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{text}");
    }
    // One that says nothing is not waited for.
    never.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(never.read(&mut [0]).unwrap_or(0), 0);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(rig.server.wait(Duration::from_secs(3)), Some(0));
    assert_eq!(stopping(&rig)["connections"], 4);
}

/// systemd binds, and passes on; here a few lines of Python do.
fn by_socket_activation(names: &str) -> Command {
    let script = "
import os, socket, sys
names = sys.argv[1].split(':')
sockets = []
for at, name in enumerate(names):
    one = socket.socket()
    one.bind(('127.0.0.1', 0))
    one.listen()
    sockets.append(one)
for at, one in enumerate(sockets):
    os.dup2(one.fileno(), 3 + at + 20)
for at, one in enumerate(sockets):
    os.dup2(3 + at + 20, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
";
    let mut command = Command::new("/usr/bin/env");
    command.args(["python3", "-c", script, names, BINARY]);
    command
}

#[test]
fn sockets_of_systemd_are_used_for_what_they_are_called() {
    let rig = Rig::start();
    for (names, workers) in
        [("portcullis.socket", 3), ("health_check_addr:address", 1), ("address:address:address", 2)]
    {
        let directory = tempfile::tempdir().unwrap();
        // Addresses that nothing listens at, so that only those of systemd can be the ones.
        let settings = format!(
            "workers: {workers}\naddress: 127.0.0.1:9\nstate_dir: {}\nhealth_check_addr: 127.0.0.1:{}",
            directory.path().display(),
            if names.contains("health") { "9" } else { "0" },
        );
        let setup = Setup { settings, ..Setup::default() };
        let path = std::env::var("PATH").unwrap();
        let configuration = rig.configuration(&setup);
        let server = Server::start_by(
            by_socket_activation(names),
            &configuration,
            directory.path(),
            &[("PATH".into(), path)],
        );
        assert_ne!(server.address.port(), 9, "{names}");
        assert_ne!(server.health.port(), 9, "{names}");
        for _ in 0..20 {
            assert_eq!(server.get("open.localhost", "/x", "").status, 200, "{names}");
        }
        assert_eq!(server.health("/readyz"), 200, "{names}");
    }
}

#[test]
fn systemd_is_told_what_happens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let environment = vec![
        ("NOTIFY_SOCKET".to_owned(), path.to_str().unwrap().to_owned()),
        ("WATCHDOG_USEC".to_owned(), "400000".to_owned()),
    ];
    let mut rig = Rig::with(Setup { environment, ..Setup::default() });
    let hear = |wanted: &str| {
        let mut part = [0; 4096];
        loop {
            let count = socket.recv(&mut part).unwrap();
            let text = String::from_utf8_lossy(&part[..count]).into_owned();
            if text.contains(wanted) {
                return text;
            }
            assert!(text.contains("WATCHDOG=1"), "{wanted}: {text}");
        }
    };
    assert!(hear("READY=1").contains("STATUS=serving"));
    let began = Instant::now();
    for _ in 0..3 {
        hear("WATCHDOG=1");
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    rig.server.signal("HUP");
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    rig.server.signal("TERM");
    hear("STOPPING=1");
    assert_eq!(rig.server.wait(Duration::from_secs(5)), Some(0));
}

/// The process is held while they come: the system has accepted them, and it has not.
#[test]
fn what_the_system_has_accepted_already_is_served() {
    let mut rig = Rig::settings("workers: 2");
    rig.server.signal("STOP");
    let mut all: Vec<TcpStream> = (0..400).map(|_| rig.server.connect()).collect();
    for stream in &mut all {
        stream.write_all(OPEN.as_bytes()).unwrap();
    }
    rig.server.signal("TERM");
    rig.server.signal("CONT");
    for (number, stream) in all.iter_mut().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let text = read_all(stream);
        assert_eq!(Answer::parse(&text).status, 200, "{number}: {text}");
    }
    assert_eq!(rig.server.wait(Duration::from_secs(5)), Some(0));
}

//! Attacks in the frames of HTTP/2, written by hand: a well-behaved library would not send them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::client_certificates::authority;
use crate::rig::{HTTPS, Rig, Setup, self_signed};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The server's certificate, which the client believes.
static CERTIFICATE: LazyLock<CertifiedKey<KeyPair>> = LazyLock::new(|| self_signed("open.localhost"));

fn rig() -> Rig {
    rig_with("")
}

fn rig_with(settings: &str) -> Rig {
    let [cert, key] =
        [CERTIFICATE.cert.pem(), CERTIFICATE.signing_key.serialize_pem()].map(|pem| STANDARD.encode(pem));
    Rig::with(Setup {
        settings: format!("{HTTPS}\ncertificate: {cert}\ncertificate_key: {key}\n{settings}"),
        routes: "
  - from: https://open.localhost
    to: http://UPSTREAM
    prefix: /public
    allow_public_unauthenticated_access: true
  - from: https://open.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
  - from: https://other.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
"
        .into(),
        ..Setup::default()
    })
}

/// The pseudo-header fields of a plain request.
const fn get(path: &str) -> [(&str, &str); 4] {
    [(":method", "GET"), (":scheme", "https"), (":authority", "open.localhost"), (":path", path)]
}

#[test]
fn what_must_not_be_in_a_request_is_refused_before_anything_is_forwarded() {
    let rig = rig();
    let usual = get("/public/");
    let with = |more: &[(&'static str, &'static str)]| [&usual[..], more].concat();
    let instead = |name: &str, value: &'static str| -> Vec<(&'static str, &'static str)> {
        usual.iter().map(|field| if field.0 == name { (field.0, value) } else { *field }).collect()
    };
    let without = |name: &str| -> Vec<(&'static str, &'static str)> {
        usual.iter().copied().filter(|field| field.0 != name).collect()
    };

    let mut client = Client::connect(&rig);
    assert_eq!(client.ask(&usual, None), Outcome::Answered(200), "the usual request is served");
    rig.upstream.forget();

    let cases: Vec<Vec<(&str, &str)>> = vec![
        // What would become a second line of HTTP/1.1.
        with(&[("x-a", "b\r\nx-evil: 1")]),
        with(&[("x-a", "b\nx-evil: 1")]),
        with(&[("x-a", "b\0c")]),
        with(&[("x-a: evil", "1")]),
        with(&[("x a", "1")]),
        with(&[("X-Upper", "1")]),
        with(&[("", "1")]),
        // What decides the framing, and belongs to HTTP/1.1 alone (RFC 9113 section 8.2.2).
        with(&[("transfer-encoding", "chunked")]),
        with(&[("connection", "x-forwarded-for")]),
        with(&[("upgrade", "websocket")]),
        with(&[("keep-alive", "timeout=5")]),
        with(&[("proxy-connection", "keep-alive")]),
        with(&[("te", "gzip")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "1")]),
        with(&[("content-length", "0"), ("content-length", "0")]),
        with(&[("content-length", "0, 0")]),
        with(&[("content-length", "+0")]),
        // The request line.
        instead(":path", "/public/ HTTP/1.1\r\nHost: other.localhost"),
        instead(":path", "public/"),
        instead(":path", ""),
        instead(":path", "*"),
        instead(":path", "/public/../secret"),
        instead(":path", "/public/%2e%2e/secret"),
        instead(":method", "GET /secret"),
        instead(":method", ""),
        instead(":method", "TRACE"),
        instead(":method", "CONNECT"),
        instead(":scheme", "ftp"),
        instead(":authority", "open.localhost@other.localhost"),
        instead(":authority", "open.localhost, other.localhost"),
        without(":method"),
        without(":scheme"),
        without(":path"),
        without(":authority"),
        with(&[("host", "other.localhost")]),
        with(&[(":path", "/secret")]),
        with(&[(":status", "200")]),
        with(&[(":unknown", "1")]),
        [&[("x-a", "1")], &usual[..]].concat(),
        // A target of HTTP/1.1's connect.
        [&usual[..], &[(":protocol", "websocket")]].concat(),
    ];
    for case in cases {
        let mut client = Client::connect(&rig);
        let outcome = client.ask(&case, None);
        assert!(!matches!(outcome, Outcome::Answered(200..=299)), "{case:?}: {outcome:?}");
        assert_eq!(rig.upstream.seen(), "", "{case:?}");
    }
    // A body that is longer or shorter than it was said to be reaches the upstream as one that broke off, or not.
    for (length, body) in [("3", "12345"), ("9", "12345")] {
        let mut client = Client::connect(&rig);
        let fields = [&instead(":method", "POST")[..], &[("content-length", length)]].concat();
        let outcome = client.ask(&fields, Some(body.as_bytes()));
        assert!(!matches!(outcome, Outcome::Answered(200..=299)), "{length}: {outcome:?}");
        assert!(!rig.upstream.seen().contains("12345"), "{length}: {}", rig.upstream.seen());
        rig.upstream.forget();
    }
}

/// A fragment is no part of a request target (RFC 9113 section 8.3.1). It cannot move the decision.
#[test]
fn a_fragment_does_not_choose_the_route() {
    let rig = rig();
    let mut client = Client::connect(&rig);
    let outcome = client.ask(&get("/secret#/public/"), None);
    assert!(!matches!(outcome, Outcome::Answered(200..=299)), "{outcome:?}");
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn a_head_that_is_too_large_is_answered_and_recorded() {
    let rig = rig();
    let mut client = Client::connect(&rig);
    let long = "x".repeat(10_000);
    let mut fields = get("/public/wide").to_vec();
    let names: Vec<String> = (0..7).map(|number| format!("x-{number}")).collect();
    fields.extend(names.iter().map(|name| (name.as_str(), long.as_str())));
    let block = head(&fields);
    let mut parts = block.chunks(16_000).peekable();
    client.write(HEADERS, END_STREAM, 1, parts.next().unwrap());
    while let Some(part) = parts.next() {
        client.write(CONTINUATION, if parts.peek().is_none() { END_HEADERS } else { 0 }, 1, part);
    }
    assert_eq!(client.frames(Duration::from_secs(10), |kind, _| kind == HEADERS), Some(()));
    rig.server.raw_log();
    let records = rig.server.records();
    let record = records.iter().find(|record| record["path"] == "/public/wide").unwrap();
    assert_eq!(record["response-code"], 431, "{record}");
    assert_eq!(rig.upstream.seen(), "");
}

/// CVE-2023-44487: streams that are opened and reset at once.
#[test]
fn a_client_that_resets_every_stream_is_cut_off() {
    let rig = rig();
    let mut client = Client::connect(&rig);
    let head = head(&get("/public/"));
    let begun = (0..20_000).take_while(|at| {
        let stream = 1 + 2 * at;
        client.write(HEADERS, END_STREAM | END_HEADERS, stream, &head)
            && client.write(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
    });
    assert!(begun.count() < 20_000, "all of it was accepted");
    let requests = rig.upstream.seen().matches("GET /public/").count();
    assert!(requests < 2_000, "{requests} requests reached the upstream");
    assert_eq!(Client::connect(&rig).get("/public/"), Outcome::Answered(200), "others are served");
}

/// CVE-2024-27316 and its family: a head that never ends.
#[test]
fn a_head_that_never_ends_is_cut_off() {
    let rig = rig();
    let mut client = Client::connect(&rig);
    assert!(client.write(HEADERS, END_STREAM, 1, &head(&[(":method", "GET")])));
    let part = head(&[("x-a", &"a".repeat(4_000))]);
    let sent = (0..20_000).take_while(|_| client.write(CONTINUATION, 0, 1, &part)).count();
    assert!(sent < 20_000, "{sent} pieces were accepted");
    let mut client = Client::connect(&rig);
    assert!(client.write(HEADERS, END_STREAM, 1, &[]));
    let sent = (0..200_000).take_while(|_| client.write(CONTINUATION, 0, 1, &[])).count();
    assert!(sent < 200_000, "{sent} empty pieces were accepted");
    assert_eq!(rig.upstream.seen(), "");
    assert_eq!(Client::connect(&rig).get("/public/"), Outcome::Answered(200), "others are served");
}

/// CVE-2019-9512 and -9515: frames that have to be answered, by a client that never reads.
#[test]
fn frames_that_have_to_be_answered_do_not_fill_the_memory() {
    let rig = rig();
    for (kind, payload) in [(PING, &[0_u8; 8][..]), (SETTINGS, &[0, 4, 0, 0, 255, 255])] {
        let before = resident(&rig);
        let mut client = Client::connect(&rig);
        client.stream.sock.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let began = Instant::now();
        // It ends when the server does not read on, or closes.
        while began.elapsed() < Duration::from_secs(2) && client.write(kind, 0, 0, payload) {}
        let after = resident(&rig);
        assert!(after < before + 32_000, "frame {kind}: from {before} to {after} KB");
        assert_eq!(Client::connect(&rig).get("/public/"), Outcome::Answered(200), "others are served");
    }
}

#[test]
fn an_idle_connection_is_closed() {
    let rig = rig_with("timeout_idle: 1s");
    let mut client = Client::connect(&rig);
    assert_eq!(client.get("/public/"), Outcome::Answered(200));
    assert!(client.frames(Duration::from_secs(30), |kind, _| kind == GO_AWAY).is_some());
    // One that says nothing at all is closed too.
    let mut silent = Client::connect(&rig);
    assert!(silent.frames(Duration::from_secs(30), |_, _| false).is_none());
}

/// A stream whose client does not read is reset when its session ends, and nothing else on the connection is touched.
#[test]
fn a_stream_that_is_not_read_is_reset_when_its_session_ends_and_the_others_go_on() {
    let rig = rig();
    let token = rig.account("one", &[]);
    rig.upstream.script(|stream, head| {
        let mut stream = stream.try_clone().unwrap();
        let is_endless = !head.contains("/public/");
        std::thread::spawn(move || {
            let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nhello");
            while sent.is_ok() && is_endless {
                sent = stream.write_all(&[b'x'; 16384]);
            }
            // The other one says nothing more.
            std::thread::sleep(Duration::from_secs(30));
        });
        true
    });
    let mut client = Client::connect(&rig);
    // The connection may bring more than one stream may.
    assert!(client.write(WINDOW_UPDATE, 0, 0, &10_000_000_u32.to_be_bytes()));
    let bearer = format!("Bearer {token}");
    let authorized = [&get("/")[..], &[("authorization", &*bearer)]].concat();
    assert!(client.write(HEADERS, END_HEADERS | END_STREAM, 1, &head(&authorized)));
    assert!(client.write(HEADERS, END_HEADERS | END_STREAM, 3, &head(&get("/public/"))));
    client.next = 5;
    let mut came = [0, 0];
    while let Some((kind, stream, payload)) = client.frame(Duration::from_secs(2)) {
        assert_ne!(kind, RST_STREAM);
        if kind == DATA {
            came[if stream == 1 { 0 } else { 1 }] += payload.len();
        }
    }
    assert_eq!(came, [65_535, 5], "one window is full, and the other one's answer has begun");
    let mut revoke = std::process::Command::new(crate::rig::BINARY);
    revoke.args(["tokens", "revoke", "one", "-c"]).arg(rig.state().join("config.yaml")).env_clear();
    let began = Instant::now();
    assert!(revoke.status().unwrap().success());
    loop {
        let (kind, stream, _) = client.frame(Duration::from_secs(5)).expect("the connection goes on");
        assert!(kind != GO_AWAY && (kind, stream) != (RST_STREAM, 3), "{kind} {stream}");
        if (kind, stream) == (RST_STREAM, 1) {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(client.get("/public/again"), Outcome::Answered(200), "and takes further requests");
}

/// A client that opens more streams than it was allowed to is refused the surplus.
#[test]
fn more_streams_than_allowed_are_refused() {
    let rig = rig();
    rig.upstream.script(|_, _| {
        std::thread::sleep(Duration::from_secs(2));
        false
    });
    let mut client = Client::connect(&rig);
    let head = head(&get("/public/"));
    for at in 0..400 {
        if !client.write(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * at, &head) {
            break;
        }
    }
    let refused = client.frames(Duration::from_secs(5), |kind, _| kind == RST_STREAM || kind == GO_AWAY);
    assert!(refused.is_some(), "no stream was refused");
}

fn resident(rig: &Rig) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered(u16),
    /// The stream was reset.
    Reset,
    /// The connection was closed, or is being.
    Closed,
}

struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    next: u32,
}

impl Client {
    fn connect(rig: &Rig) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CERTIFICATE.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("open.localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut client = Self { stream: StreamOwned::new(connection, rig.server.connect()), next: 1 };
        client.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        assert!(client.write(SETTINGS, 0, 0, &[]));
        client
    }

    /// Whether the frame could be sent.
    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).and_then(|()| self.stream.flush()).is_ok()
    }

    fn get(&mut self, path: &str) -> Outcome {
        self.ask(&get(path), None)
    }

    fn ask(&mut self, fields: &[(&str, &str)], body: Option<&[u8]>) -> Outcome {
        let id = self.next;
        self.next += 2;
        let end = if body.is_none() { END_STREAM } else { 0 };
        self.write(HEADERS, END_HEADERS | end, id, &head(fields));
        if let Some(body) = body {
            self.write(DATA, END_STREAM, id, body);
        }
        let mut outcome = Outcome::Closed;
        self.frames(Duration::from_secs(10), |kind, payload| {
            outcome = match kind {
                // Of the statuses only some are in the static table; 0 stands for the others.
                HEADERS => Outcome::Answered(match payload[0] & 0x7f {
                    8 => 200,
                    9 => 204,
                    10 => 206,
                    11 => 304,
                    12 => 400,
                    13 => 404,
                    14 => 500,
                    _ => 0,
                }),
                RST_STREAM => Outcome::Reset,
                GO_AWAY => Outcome::Closed,
                _ => return false,
            };
            true
        });
        outcome
    }

    /// Reads frames until one is the one that is looked for. `None`: the connection ended before.
    fn frames(&mut self, limit: Duration, mut wanted: impl FnMut(u8, &[u8]) -> bool) -> Option<()> {
        loop {
            let (kind, _, payload) = self.frame(limit)?;
            if wanted(kind, &payload) {
                return Some(());
            }
        }
    }

    /// The next frame, with its stream. `None`: the connection ended before.
    fn frame(&mut self, limit: Duration) -> Option<(u8, u32, Vec<u8>)> {
        self.stream.sock.set_read_timeout(Some(limit)).unwrap();
        let mut front = [0; 9];
        self.stream.read_exact(&mut front).ok()?;
        let length = u32::from_be_bytes([0, front[0], front[1], front[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        if front[3] == SETTINGS && front[4] == 0 {
            self.write(SETTINGS, 1, 0, &[]);
        }
        Some((front[3], u32::from_be_bytes([front[5], front[6], front[7], front[8]]), payload))
    }
}

/// A head in HPACK, every field a literal without Huffman coding (RFC 7541 section 6.2.2).
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        match u8::try_from(text.len()) {
            Ok(length @ ..=126) => out.push(length),
            _ => {
                out.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    out.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                out.push(u8::try_from(rest).unwrap());
            }
        }
        out.extend(text.as_bytes());
    }
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        text(&mut out, name);
        text(&mut out, value);
    }
    out
}

/// The server is about to stop: whoever is there finishes, and is told to come no more; whoever has just come is answered.
#[test]
fn a_server_that_stops_says_goodbye_and_finishes_what_is_under_way() {
    let rig = rig_with("drain_delay: 1s");
    rig.upstream.script(|stream, _| {
        std::thread::sleep(Duration::from_millis(600));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    let (mut busy, mut new) = (Client::connect(&rig), Client::connect(&rig));
    busy.write(HEADERS, END_HEADERS | END_STREAM, 1, &head(&get("/public/")));
    std::thread::sleep(Duration::from_millis(200));
    rig.server.signal("TERM");
    let told = new.frames(Duration::from_millis(200), |kind, _| kind == GO_AWAY);
    assert!(told.is_none(), "it is not told to go before it has said what it came for");
    new.write(HEADERS, END_HEADERS | END_STREAM, 1, &head(&get("/public/")));
    assert!(
        new.frames(Duration::from_secs(5), |kind, _| kind == DATA).is_some(),
        "it has come, and is answered"
    );
    let (mut goodbyes, mut answered) = (0, false);
    busy.frames(Duration::from_secs(5), |kind, _| {
        goodbyes += usize::from(kind == GO_AWAY);
        answered |= kind == DATA;
        false
    });
    assert!(answered && goodbyes > 0, "{answered} {goodbyes}");
    assert!(new.frames(Duration::from_secs(5), |_, _| false).is_none(), "and then closed");
}

/// The authorities of client certificates change: whoever was not asked for one of theirs is answered, and asked anew.
#[test]
fn a_connection_that_is_to_be_asked_for_another_certificate_is_used_once_more() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, authority("ours").pem()).unwrap();
    let rig = rig_with(&format!("downstream_mtls:\n  ca_file: {}\n  enforcement: policy", file.display()));
    let mut client = Client::connect(&rig);
    assert_eq!(
        (client.get("/public/"), client.get("/public/")),
        (Outcome::Answered(200), Outcome::Answered(200))
    );
    rig.reads(|| std::fs::write(&file, authority("theirs").pem()).unwrap());
    client.write(HEADERS, END_HEADERS | END_STREAM, client.next, &head(&get("/public/")));
    let (mut goodbyes, mut answered) = (0, false);
    client.frames(Duration::from_secs(5), |kind, payload| {
        goodbyes += usize::from(kind == GO_AWAY);
        // The status 200 in the static table.
        answered |= kind == HEADERS && payload[0] & 0x7f == 8;
        false
    });
    assert!(answered && goodbyes > 0, "{answered} {goodbyes}");
    assert_eq!(Client::connect(&rig).get("/public/"), Outcome::Answered(200));
}

//! Envoy's external authorization over gRPC, version 3. The messages are written here by hand, field by field, from
//! `external_auth.proto`; a real Envoy asks in `tests/e2e/doors.test.mjs`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use rcgen::KeyPair;
use serde_json::Value;

use crate::client_certificates::{Authority, authority, params};
use crate::doors::{ROUTES, TRUSTED, rig_with, settled, signed_in};
use crate::rig::{Rig, Setup};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A field of a message: its number and its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 128 {
        out.push(length as u8 & 127 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// The fields of a message, by number.
fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Vec<u8>>> {
    let mut found: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let varint = |bytes: &mut &[u8]| {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                return value;
            }
        }
    };
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = match tag & 7 {
            0 => varint(&mut bytes).to_string().into_bytes(),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
            kind => panic!("wire type {kind}"),
        };
        found.entry(tag >> 3).or_default().push(value);
    }
    found
}

/// The only field with a number, as text.
fn one(message: &BTreeMap<u64, Vec<Vec<u8>>>, number: u64) -> String {
    match message.get(&number).map(Vec::as_slice) {
        None => String::new(),
        Some([one]) => String::from_utf8(one.clone()).unwrap(),
        Some(many) => panic!("{number} occurs {} times", many.len()),
    }
}

/// What Envoy asks about.
#[derive(Clone)]
struct Check {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: Vec<(String, String)>,
    /// As lines, with `encode_raw_headers`.
    raw: bool,
    source: &'static str,
    certificate: String,
}

impl Check {
    fn of(path: &'static str, headers: &[(&str, &str)]) -> Self {
        Self {
            method: "GET",
            host: "app.localhost",
            path,
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            raw: false,
            source: "203.0.113.7",
            certificate: String::new(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let pair = |(name, value): &(String, String)| {
            [field(1, name.as_bytes()), field(2, value.as_bytes())].concat()
        };
        let pseudo = [(":path", self.path), (":method", self.method), (":authority", self.host)];
        let pseudo = pseudo.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all = pseudo.iter().chain(&self.headers);
        let headers: Vec<u8> = if self.raw {
            field(13, &all.flat_map(|one| field(1, &pair(one))).collect::<Vec<_>>())
        } else {
            all.flat_map(|one| field(3, &pair(one))).collect()
        };
        let http = [
            field(2, self.method.as_bytes()),
            headers,
            field(4, self.path.as_bytes()),
            field(5, self.host.as_bytes()),
            field(6, b"http"),
        ]
        .concat();
        let socket = field(1, &field(1, &field(2, self.source.as_bytes())));
        let source = [socket, field(5, self.certificate.as_bytes())].concat();
        field(1, &[field(1, &source), field(4, &field(2, &http))].concat())
    }

    fn ask(&self, rig: &Rig) -> Verdict {
        let reply = call(rig, CHECK, &self.encode());
        assert_eq!(reply.status, "0", "{reply:?}");
        Verdict::read(&reply.message)
    }
}

/// What a call gave.
struct Reply {
    status: String,
    said: String,
    message: Vec<u8>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:.300}", self.status, self.said, String::from_utf8_lossy(&self.message))
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

fn call(rig: &Rig, path: &str, message: &[u8]) -> Reply {
    call_with_bytes(rig, path, &framed(message))
}

/// Calls with curl, which speaks HTTP/2 independently of us.
fn call_with_bytes(rig: &Rig, path: &str, body: &[u8]) -> Reply {
    let address = rig.server.records().into_iter().find(|one| one["message"] == "listening for gRPC");
    let address = address.unwrap()["address"].as_str().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("head");
    let mut curl = Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "--max-time", "10", "--data-binary", "@-"])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-D"])
        .arg(&out)
        .arg(format!("http://{address}{path}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    curl.stdin.take().unwrap().write_all(body).unwrap();
    let done = curl.wait_with_output().unwrap();
    let head = std::fs::read_to_string(out).unwrap();
    let said = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim_start_matches(": ").trim().to_owned()
    };
    if head.is_empty() {
        // The call was broken off while it was still being sent.
        return Reply { status: "broken off".into(), said: String::new(), message: Vec::new() };
    }
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert_eq!(said("content-type"), "application/grpc");
    let message = match done.stdout.split_first_chunk::<5>() {
        Some(([0, length @ ..], message)) => {
            assert_eq!(u32::from_be_bytes(*length) as usize, message.len());
            message.to_vec()
        }
        _ => Vec::new(),
    };
    Reply { status: said("grpc-status"), said: said("grpc-message"), message }
}

/// What was decided.
#[derive(Debug)]
struct Verdict {
    code: String,
    /// 0 when the request passes.
    status: u16,
    /// With whether it is appended.
    set: Vec<(String, String, bool)>,
    removed: Vec<String>,
    body: String,
    told: BTreeMap<String, String>,
}

impl Verdict {
    fn read(message: &[u8]) -> Self {
        let message = fields(message);
        let code = message.get(&1).map(|status| one(&fields(&status[0]), 1)).unwrap();
        let set = |options: Option<&Vec<Vec<u8>>>| {
            let read = |option: &Vec<u8>| {
                let option = fields(option);
                let header = fields(&option[&1][0]);
                let append = one(&fields(&option[&2][0]), 1) == "1";
                (one(&header, 1), one(&header, 2), append)
            };
            options.into_iter().flatten().map(read).collect()
        };
        let told = message[&4].iter().flat_map(|told| fields(told)[&1].clone()).map(|entry| {
            let entry = fields(&entry);
            let value = fields(&entry[&2][0]);
            let text = match value.iter().next().unwrap() {
                (6, list) => fields(&list[0])
                    .get(&1)
                    .into_iter()
                    .flatten()
                    .map(|value| one(&fields(value), 3))
                    .collect::<Vec<_>>()
                    .join(","),
                (_, text) => String::from_utf8(text[0].clone()).unwrap(),
            };
            (one(&entry, 1), text)
        });
        let told = if message[&4][0].is_empty() { BTreeMap::new() } else { told.collect() };
        match (message.get(&2), message.get(&3)) {
            (Some(denied), None) => {
                let denied = fields(&denied[0]);
                Self {
                    code,
                    status: one(&fields(&denied[&1][0]), 1).parse().unwrap(),
                    set: set(denied.get(&2)),
                    removed: Vec::new(),
                    body: one(&denied, 3),
                    told,
                }
            }
            (None, Some(passed)) => {
                let passed = fields(&passed[0]);
                let removed = passed.get(&5).into_iter().flatten();
                Self {
                    code,
                    status: 0,
                    set: set(passed.get(&2)),
                    removed: removed.map(|name| String::from_utf8(name.clone()).unwrap()).collect(),
                    body: String::new(),
                    told,
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.set.iter().filter(|(known, _, append)| known == name && !append);
        let first = found.next().map(|(_, value, _)| value.as_str());
        assert!(found.next().is_none(), "{name} is set twice: {self:?}");
        first
    }
}

/// The message with bytes in it that are no text.
fn not_text(message: &[u8]) -> Vec<u8> {
    let at = message.windows(4).position(|four| four == b"MARK").unwrap();
    [&message[..at], &[0xff, 0xfe, 0xff, 0xfe], &message[at + 4..]].concat()
}

fn rig() -> Rig {
    rig_with(TRUSTED)
}

/// The session cookie of a person who has signed in.
fn session(rig: &Rig) -> String {
    let line = signed_in(rig, "app.localhost").session("app.localhost");
    line.trim_end().trim_start_matches("Cookie: ").to_owned()
}

#[test]
fn what_may_pass_passes_with_identity_set_and_everything_spoofed_removed() {
    let rig = rig();
    let cookie = format!("a=1; {}", session(&rig));
    let headers = [
        ("cookie", cookie.as_str()),
        ("x-pomerium-claim-email", "root@example.com"),
        ("x-pomerium-claim-other", "x"),
        ("remote-user", "root"),
        ("accept", "text/html"),
    ];
    for raw in [false, true] {
        let verdict = Check { raw, ..Check::of("/x?y=1", &headers) }.ask(&rig);
        // Zero is not written.
        assert_eq!((verdict.code.as_str(), verdict.status), ("", 0), "{verdict:?}");
        assert_eq!(verdict.header("x-pomerium-claim-email"), Some("jane@example.com"));
        assert_eq!(verdict.header("x-pomerium-claim-groups"), Some("dev,ops"));
        assert_eq!(verdict.header("x-pomerium-claim-team"), Some(""));
        assert!(verdict.header("x-pomerium-jwt-assertion").unwrap().len() > 100);
        assert_eq!(verdict.header("cookie"), Some("a=1"));
        let mut removed = verdict.removed.clone();
        removed.sort_unstable();
        assert_eq!(removed, ["remote-user", "x-pomerium-claim-other"]);
        assert_eq!(verdict.told["decision"], "allow");
        assert_eq!(verdict.told["email"], "jane@example.com");
        assert_eq!(verdict.told["groups"], "dev,ops");
        assert_eq!(verdict.told["reasons"], "user-ok");
    }
    let token = format!("Bearer {}", rig.account("ci", &["sub=jane-1"]));
    let program = Check::of("/x", &[("authorization", &token)]).ask(&rig);
    assert_eq!((program.status, program.told["user"].as_str()), (0, "jane-1"), "{program:?}");
    assert!(program.removed.contains(&"authorization".to_owned()), "{program:?}");
    let alone = Check::of("/quiet", &[("cookie", &session(&rig))]).ask(&rig);
    assert!(alone.removed.contains(&"cookie".to_owned()), "{alone:?}");
    let nobody = Check::of("/public", &[("x-pomerium-jwt-assertion", "x.y.z")]).ask(&rig);
    assert_eq!((nobody.status, nobody.header("x-pomerium-jwt-assertion")), (0, Some("")), "{nobody:?}");
}

#[test]
fn what_may_not_pass_is_answered_with_our_own_answer() {
    let rig = rig();
    let session = session(&rig);
    let page = Check::of("/x", &[("accept", "text/html")]).ask(&rig);
    assert_eq!((page.code.as_str(), page.status), ("7", 302), "{page:?}");
    assert!(page.header("location").unwrap().starts_with("http://authenticate.localhost/.pomerium/sign_in?"));
    assert!(page.header("set-cookie").is_some());
    let script = Check::of("/x", &[("accept", "application/json")]).ask(&rig);
    assert_eq!(script.status, 401);
    assert_eq!(serde_json::from_str::<Value>(&script.body).unwrap()["error"], "sign-in required");
    let refused = Check::of("/admin", &[("accept", "text/html"), ("cookie", &session)]).ask(&rig);
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("for the group admins"), "{refused:?}");
    assert_eq!((&*refused.told["decision"], &*refused.told["email"]), ("deny", "jane@example.com"));
    assert!(
        refused.header("content-security-policy").is_some() && refused.header("content-length").is_none()
    );
    let posted = Check { method: "POST", ..Check::of("/read", &[("cookie", &session)]) }.ask(&rig);
    assert_eq!(posted.status, 403);
    let lost = Check { host: "nowhere.localhost", ..Check::of("/", &[]) }.ask(&rig);
    assert_eq!(lost.status, 404);
    let near = Check { source: "198.51.100.1", ..Check::of("/near", &[("x-forwarded-for", "203.0.113.7")]) };
    assert_eq!(near.ask(&rig).status, 403);
    assert_eq!(Check::of("/near", &[("x-forwarded-for", "198.51.100.1")]).ask(&rig).status, 0);
    for path in ["/public/../admin", "/public/%2e%2e/admin", "/admin#/public", "/public\\x", "public", ""] {
        let verdict = call(&rig, CHECK, &Check::of(path, &[]).encode());
        let refused = verdict.status == "3" || Verdict::read(&verdict.message).status >= 400;
        assert!(refused, "{path}: {verdict:?}");
    }
}

#[test]
fn pages_of_our_own_are_answered_whole() {
    let rig = rig();
    let session = session(&rig);
    let user = Check::of("/.pomerium/user", &[("cookie", &session)]).ask(&rig);
    assert_eq!(user.status, 200, "{user:?}");
    assert_eq!(serde_json::from_str::<Value>(&user.body).unwrap()["email"], "jane@example.com");
    let keys = Check::of("/.well-known/pomerium/jwks.json", &[]).ask(&rig);
    assert_eq!((keys.code.as_str(), keys.status), ("7", 200));
    assert!(keys.body.contains("\"keys\""));
}

#[test]
fn a_call_that_cannot_be_read_lets_nothing_pass() {
    let rig = rig();
    let sound = Check::of("/public", &[]).encode();
    let longer = [framed(&sound), vec![0]].concat();
    let mut compressed = framed(&sound);
    compressed[0] = 1;
    let bodies: [(&[u8], &str); 6] = [
        (b"", "3"),
        (b"\0\0\0\0", "3"),
        (&framed(&sound)[..20], "3"),
        (&longer, "3"),
        (&compressed, "12"),
        (&framed(&[0xff; 40]), "3"),
    ];
    for (body, status) in bodies {
        let reply = call_with_bytes(&rig, CHECK, body);
        assert_eq!(
            (reply.status.as_str(), reply.message.as_slice()),
            (status, &[][..]),
            "{body:?} {reply:?}"
        );
    }
    let without = [
        Vec::new(),
        field(1, &[]),
        // No source.
        field(
            1,
            &field(
                4,
                &field(2, &[field(2, b"GET"), field(4, b"/public"), field(5, b"app.localhost")].concat()),
            ),
        ),
        Check { source: "", ..Check::of("/public", &[]) }.encode(),
        Check { source: "unknown", ..Check::of("/public", &[]) }.encode(),
        Check { method: "", ..Check::of("/public", &[]) }.encode(),
        Check { method: "G T", ..Check::of("/public", &[]) }.encode(),
        Check { host: "a\nb", ..Check::of("/public", &[]) }.encode(),
        Check::of("/public", &[("a b", "x")]).encode(),
        Check::of("/public", &[("a", "x\ny")]).encode(),
        Check { certificate: "nonsense".into(), ..Check::of("/public", &[]) }.encode(),
        // Bytes that are no text, where a text has to be (CVE-2023-27488).
        not_text(&Check::of("/public", &[("x-foo", "MARK")]).encode()),
        not_text(&Check { method: "MARK", ..Check::of("/public", &[]) }.encode()),
    ];
    for message in without {
        let reply = call(&rig, CHECK, &message);
        assert_eq!((reply.status.as_str(), reply.message.len()), ("3", 0), "{reply:?}");
        assert!(!reply.said.is_empty());
    }
    for path in ["/", "/x", "/public", "/envoy.service.auth.v2.Authorization/Check", "/.pomerium/user"] {
        assert_eq!(call(&rig, path, &sound).status, "12", "{path}");
    }
    let big = Check::of("/public", &[("a", &"x".repeat(1100 * 1024))]).encode();
    let refused = call(&rig, CHECK, &big);
    assert!(
        ["8", "broken off"].contains(&refused.status.as_str()) && refused.message.is_empty(),
        "{refused:?}"
    );
}

#[test]
fn only_named_proxies_are_answered_and_anybody_hears_that_it_is_up() {
    let rig = rig_with("grpc_address: 127.0.0.1:0\ngrpc_insecure: true");
    let refused = call(&rig, CHECK, &Check::of("/public", &[]).encode());
    assert_eq!((refused.status.as_str(), refused.message.len()), ("7", 0), "{refused:?}");
    for (service, status) in [("", "0"), ("envoy.service.auth.v3.Authorization", "0"), ("other", "5")] {
        let reply = call(&rig, HEALTH, &field(1, service.as_bytes()));
        assert_eq!(reply.status, status, "{service}");
        if status == "0" {
            assert_eq!(reply.message, [8, 1], "SERVING");
        }
    }
    let records = settled(&rig);
    assert!(records.iter().all(|record| record["message"] != "authorize-check"));
    assert!(records.iter().any(|one| one["error"] == "127.0.0.1 asks, and is not one of trusted_proxies"));
}

#[test]
fn a_client_certificate_that_envoy_passes_on_counts() {
    let (ours, theirs) = (authority("Ours"), authority("Theirs"));
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, ours.pem()).unwrap();
    let settings = format!("{TRUSTED}\ndownstream_mtls: {{ca_file: {}}}", ca.display());
    let rig = Rig::with(Setup { settings, routes: ROUTES.into(), ..Setup::default() });
    let ask = |certificate: String| Check { certificate, ..Check::of("/public", &[]) }.ask(&rig).status;
    let shown = |by: &Authority| {
        let pem = params(7).signed_by(&KeyPair::generate().unwrap(), by).unwrap().pem();
        url::form_urlencoded::byte_serialize(pem.as_bytes()).collect::<String>().replace('+', "%20")
    };
    assert_eq!(ask(String::new()), 495);
    assert_eq!(ask(shown(&theirs)), 495);
    assert_eq!(ask(shown(&ours)), 0);
}

//! Services in processes of their own: what forwards and what answers asks the one that decides.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::browser::Browser;
use crate::client_certificates::authority;
use crate::provider::Provider;
use crate::rig::{self, Answer, BINARY, Server, Setup, configuration, self_signed, write_certificate};
use crate::upstream::Upstream;

const SECRET: &str = "shared_secret: mPcUJzvJqnuzEGVTs0a2wF4Ds0GEMbpoQYFBdhfWGAU=";

/// The processes, and what they stand between.
struct Split {
    provider: Provider,
    upstream: Upstream,
    decides: Server,
    forwards: Server,
    /// Answers on the authenticate host.
    answers: Server,
    decides_with: Setup,
    directory: tempfile::TempDir,
    elsewhere: tempfile::TempDir,
    _third: tempfile::TempDir,
}

fn calls_at(server: &mut Server) -> SocketAddr {
    server.wait_for("listening for gRPC")["address"].as_str().unwrap().parse().unwrap()
}

/// No provider, no session: what a process needs that only asks.
fn asking(services: &str, calls: &str, more: &str) -> Setup {
    let unset =
        "idp_provider: UNSET\nidp_provider_url: UNSET\nidp_client_id: UNSET\nidp_client_secret: UNSET";
    Setup {
        settings: format!("services: {services}\nauthorize_service_url: {calls}\n{SECRET}\n{unset}\n{more}"),
        ..Setup::default()
    }
}

impl Split {
    fn start() -> Self {
        Self::with("", "")
    }

    /// With further settings of who decides and who asks.
    fn with(decides: &str, asks: &str) -> Self {
        Self::with_routes(decides, asks, rig::ROUTES)
    }

    fn with_routes(decides: &str, asks: &str, routes: &str) -> Self {
        let (provider, upstream) = (Provider::start(), Upstream::start());
        provider.set(|state| state.claims["groups"] = serde_json::json!(["dev"]));
        let [directory, elsewhere, third] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let calls = if decides.contains("grpc_address") {
            ""
        } else {
            "grpc_address: 127.0.0.1:0\ngrpc_insecure: true"
        };
        let decides_with = Setup {
            settings: format!("services: authorize\n{SECRET}\n{calls}\n{decides}"),
            ..Setup::default()
        };
        let start = |setup: &Setup, directory: &tempfile::TempDir| {
            let setup = Setup { routes: routes.into(), ..setup.clone() };
            let text = configuration(&setup, &provider, &upstream, directory.path());
            Server::start(&text, directory.path(), &[])
        };
        let mut decides = start(&decides_with, &directory);
        let calls = calls_at(&mut decides);
        let encrypted = decides_with.settings.contains("certificate_file");
        let at =
            if encrypted { format!("https://localhost:{}", calls.port()) } else { format!("http://{calls}") };
        let forwards = start(&asking("proxy", &at, asks), &elsewhere);
        let answers = start(&asking("authenticate", &at, asks), &third);
        Self {
            provider,
            upstream,
            decides,
            forwards,
            answers,
            decides_with,
            directory,
            elsewhere,
            _third: third,
        }
    }

    fn browser(&self) -> Browser {
        let mut browser = Browser::new(self.forwards.address, self.provider.address);
        browser.elsewhere.insert("authenticate.localhost", self.answers.address);
        browser
    }

    fn signed_in(&self) -> Browser {
        let mut browser = self.browser();
        let page = browser.open("http://app.localhost/");
        assert_eq!(page.status, 200, "{page:?}");
        browser
    }
}

fn records(server: &Server, message: &str) -> Vec<Value> {
    server.raw_log();
    server.records().into_iter().filter(|one| one["message"] == message).collect()
}

#[test]
fn people_sign_in_and_out_through_three_processes() {
    let split = Split::start();
    let mut browser = split.browser();
    browser.headers.push_str("X-Pomerium-Claim-Email: root@example.com\r\nRemote-User: root\r\n");
    let page = browser.open("http://app.localhost/deep?x=1");
    assert_eq!((page.status, page.header("x-upstream")), (200, Some("yes")), "{page:?}");
    assert_eq!(browser.visited.last().unwrap(), "http://app.localhost/deep?x=1");
    let seen = split.upstream.seen();
    assert!(seen.contains("GET /deep?x=1 HTTP/1.1"), "{seen}");
    assert!(!seen.contains("_pomerium=") && !seen.contains("root"), "{seen}");
    for (name, value) in [("x-pomerium-claim-email", "jane@example.com"), ("x-pomerium-claim-groups", "dev")]
    {
        assert_eq!(split.upstream.header(name), [value], "{seen}");
    }
    assert_eq!(split.upstream.header("x-pomerium-jwt-assertion").len(), 1);
    assert_eq!(split.upstream.header("x-forwarded-for"), ["127.0.0.1"]);

    // One decision, where it was made, under the name that the request has everywhere.
    let access = records(&split.forwards, "http-request");
    let access = access.iter().find(|one| one["path"] == "/deep" && one["response-code"] == 200).unwrap();
    let decided = records(&split.decides, "authorize-check");
    let decided: Vec<_> = decided.iter().filter(|one| one["request-id"] == access["request-id"]).collect();
    assert_eq!(decided.len(), 1, "{decided:#?}");
    assert_eq!((&decided[0]["path"], &decided[0]["email"]), (&"/deep".into(), &"jane@example.com".into()));
    assert_eq!(records(&split.forwards, "authorize-check"), Vec::<Value>::new());

    // Our own pages, a refusal, and a host that nobody knows.
    assert_eq!(browser.get("http://app.localhost/.pomerium/user").json()["email"], "jane@example.com");
    let refused = browser.get("http://app.localhost/admin/x");
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("for the group admins"), "{refused:?}");
    assert!(refused.body.contains(refused.header("x-request-id").unwrap()), "{refused:?}");
    assert_eq!(browser.open("http://other.localhost/").status, 200, "the second host asks nobody again");
    assert_eq!(split.forwards.get("nowhere.localhost", "/", "").status, 404);
    assert_eq!(split.answers.get("app.localhost", "/public", "").status, 404);
    assert_eq!(split.decides.get("app.localhost", "/public", "").status, 404);
    let script = split.forwards.get("app.localhost", "/x", "Accept: application/json\r\n");
    assert_eq!((script.status, &script.json()["error"]), (401, &"sign-in required".into()));

    split.upstream.forget();
    let session = browser.session("app.localhost");
    browser.open("http://app.localhost/.pomerium/sign_out");
    assert_eq!(split.forwards.get("app.localhost", "/x", &session).status, 302);
    assert_eq!(split.upstream.seen(), "");
}

#[test]
fn a_form_and_a_tunnel_pass_through_three_processes() {
    let split = Split::start();
    let form = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://app.localhost\r\n";
    let mut browser = split.browser();
    let answer = browser.request("POST", "http://app.localhost/save?x=1", form, "a=1&b=two");
    assert_eq!(answer.status, 302, "{answer:?}");
    let page = browser.open(answer.header("location").unwrap());
    assert!(page.body.contains(r#"action="http://app.localhost/save?x=1""#), "{page:?}");
    assert!(page.body.contains(r#"name="b" value="two""#), "{page:?}");
    assert_eq!(split.upstream.seen(), "");
    // Another site's form is not kept.
    let foreign = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://evil.localhost\r\n";
    assert_eq!(split.browser().request("POST", "http://app.localhost/save", foreign, "a=1").status, 401);
    // One that may pass arrives whole.
    let posted = browser.request("POST", "http://app.localhost/save", form, "a=1&b=two");
    assert_eq!(posted.status, 200);
    assert!(split.upstream.seen().ends_with("a=1&b=two"), "{}", split.upstream.seen());

    split.upstream.script(|stream, _| {
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhello";
        stream.write_all(switch).is_ok()
    });
    let session = browser.session("app.localhost");
    let shake = |origin: &str| {
        split.forwards.send(format!(
            "GET /ws HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: {origin}\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{session}\r\n"
        ))
    };
    let opened = shake("http://app.localhost");
    assert!(opened.starts_with("HTTP/1.1 101") && opened.ends_with("hello"), "{opened}");
    split.upstream.forget();
    assert!(shake("http://evil.localhost").starts_with("HTTP/1.1 403"));
    assert_eq!(split.upstream.seen(), "");
}

#[test]
fn without_an_answer_nobody_passes_and_with_one_again_everybody_does() {
    let mut split = Split::with("", "grpc_client_timeout: 1500ms");
    let session = split.signed_in().session("app.localhost");
    split.upstream.forget();
    let ask = |split: &Split, target: &str| split.forwards.get("app.localhost", target, &session);
    assert_eq!(ask(&split, "/x").status, 200);
    split.upstream.forget();
    let calls = calls_at(&mut split.decides);

    split.decides.kill();
    for target in ["/x", "/public"] {
        let answer = ask(&split, target);
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.body.contains("127.0.0.1"), "nothing internal is named: {answer:?}");
    }
    let said = records(&split.forwards, "http-request");
    assert!(said.iter().any(|one| one["error"].to_string().contains("authorize_service_url")), "{said:#?}");

    // One that accepts and says nothing, and one that talks nonsense.
    let silent = TcpListener::bind(calls).unwrap();
    let began = Instant::now();
    assert_eq!(ask(&split, "/public").status, 503);
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(silent);
    for nonsense in
        [&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], b"\0\0\0\x04\0\0\0\0\0", b"\xff\xff\xff"]
    {
        let listener = TcpListener::bind(calls).unwrap();
        let talks = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut part = [0; 4096];
            let _ = stream.read(&mut part);
            let _ = stream.write_all(nonsense);
            std::thread::sleep(Duration::from_millis(600));
        });
        assert_eq!(ask(&split, "/public").status, 503, "{nonsense:?}");
        talks.join().unwrap();
    }
    assert_eq!(split.upstream.seen(), "");

    let setup = Setup {
        settings: split.decides_with.settings.replace("127.0.0.1:0", &calls.to_string()),
        ..Setup::default()
    };
    let text = configuration(&setup, &split.provider, &split.upstream, split.directory.path());
    split.decides = Server::start(&text, split.directory.path(), &[]);
    assert_eq!(ask(&split, "/x").status, 200, "the session outlived it");
}

#[test]
fn who_has_another_secret_is_told_nothing() {
    let mut split = Split::start();
    let calls = calls_at(&mut split.decides);
    let other = SECRET.replace("mPc", "nPc");
    let setup = asking("proxy", &format!("http://{calls}"), "");
    let setup = Setup { settings: setup.settings.replace(SECRET, &other), ..setup };
    let text = configuration(&setup, &split.provider, &split.upstream, split.elsewhere.path());
    let stranger = Server::start(&text, split.elsewhere.path(), &[]);
    for target in ["/public", "/x"] {
        let answer = stranger.get("app.localhost", target, "");
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    assert_eq!(split.upstream.seen(), "");
    assert_eq!(records(&split.decides, "authorize-check"), Vec::<Value>::new());
    let refused = records(&split.decides, "http-request");
    assert!(refused.iter().all(|one| one["error"] == "127.0.0.1 asks, and is not one of trusted_proxies"));
}

#[test]
fn the_service_is_recognised_by_its_certificate() {
    let files = tempfile::tempdir().unwrap();
    let made = self_signed("localhost");
    let (cert, key) = write_certificate(files.path(), "own", &made);
    let (wrong, _) = write_certificate(files.path(), "wrong", &self_signed("localhost"));
    let decides = format!("grpc_address: 127.0.0.1:0\ncertificate_file: {cert}\ncertificate_key_file: {key}");
    let ask = |asks: &str| {
        let split = Split::with(&decides, asks);
        let answer = split.forwards.get("app.localhost", "/public", "");
        (answer.status, split.upstream.seen().is_empty())
    };
    assert_eq!(ask(&format!("certificate_authority_file: {cert}")), (200, false));
    assert_eq!(ask(""), (503, true));
    assert_eq!(ask(&format!("certificate_authority_file: {wrong}")), (503, true));
    let named = format!("certificate_authority_file: {cert}\noverride_certificate_name: elsewhere.localhost");
    assert_eq!(ask(&named), (503, true));
}

#[test]
fn a_client_certificate_is_decided_on_where_it_is_decided() {
    let files = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority("Ours"), authority("Theirs"));
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, ours.pem()).unwrap();
    let (cert, key) = write_certificate(files.path(), "front", &self_signed("app.localhost"));
    let mtls = format!(
        "authenticate_service_url: https://authenticate.localhost\ndownstream_mtls: {{ca_file: {}}}",
        ca.display()
    );
    let asks =
        format!("{mtls}\ninsecure_server: false\ncertificate_file: {cert}\ncertificate_key_file: {key}");
    // Who asks ends TLS; who decides is reached in cleartext.
    let split = Split::with_routes(&mtls, &asks, &rig::ROUTES.replace("from: http:", "from: https:"));
    let card = |name: &str, by| {
        crate::client_certificates::issue(files.path(), name, &crate::client_certificates::params(7), by, &[])
    };
    let curl = |card: Option<crate::client_certificates::Card>| {
        let port = split.forwards.address.port();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-k", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--resolve"]);
        curl.arg(format!("app.localhost:{port}:127.0.0.1"));
        if let Some(card) = card {
            curl.args(["--cert", &card.chain, "--key", &card.key]);
        }
        let done = curl.arg(format!("https://app.localhost:{port}/public")).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    assert_eq!(curl(None), "495");
    assert_eq!(curl(Some(card("theirs", &theirs))), "495");
    assert_eq!(split.upstream.seen(), "");
    assert_eq!(curl(Some(card("ours", &ours))), "200");
}

#[test]
fn a_configuration_that_could_not_work_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        let done = Command::new(BINARY).args(["check", "-c"]).arg(&file).env_clear().output().unwrap();
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let route = "routes: [{from: https://app.example.com, to: http://127.0.0.1:1, allow_any_authenticated_user: true}]";
    let asks = format!("services: proxy\nauthorize_service_url: https://authorize\n{SECRET}\n{route}");
    assert_eq!(check(&asks), (Some(0), String::new()));
    // What decides has a store that is elsewhere, and what asks has the same configuration.
    let shared = format!(
        "{asks}\ndatabroker_storage_type: redis\njwt_claims_headers: [email, name]\nrequire_claims: [name]\n"
    );
    assert_eq!(check(&shared), (Some(0), String::new()));
    let refused = [
        (shared.replace("redis", "etcd"), "databroker_storage_type"),
        (asks.replace("authorize_service_url: https://authorize\n", ""), "authorize_service_url"),
        (asks.replace(&format!("{SECRET}\n"), ""), "shared_secret"),
        (asks.replace("https://authorize", "http://authorize"), "grpc_insecure"),
        (asks.replace("https://authorize", "https://authorize/path"), "without a path"),
        (asks.replace("proxy", "proxi"), "`proxi` is not one of all, proxy"),
        (asks.replace("proxy", "databroker"), "the sessions are kept where authorize is"),
        (asks.replace("services: proxy", "services: authorize"), "idp_provider_url"),
        (format!("{asks}\naddress: :8443\ngrpc_address: :8443\n"), "a port of its own"),
    ];
    for (text, part) in refused {
        let (status, said) = check(&text);
        assert_eq!(status, Some(2), "{text}");
        assert!(said.contains(part), "{part}: {said}");
    }
    // As the guide for Cognito has it: one process does everything, and asks nobody.
    let provider = "idp_provider_url: https://idp.example.com\nidp_client_id: x\nidp_client_secret: y";
    let all = format!("services: all\nauthorize_service_url: https://authorize\n{provider}\n{route}");
    let (status, said) = check(&all);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("authorize_service_url: this key has no effect here"), "{said}");
    let list = format!(
        "services: [proxy, authenticate, databroker]\nauthorize_service_urls: [https://a, https://b]\n{SECRET}\n{route}"
    );
    assert_eq!(check(&list), (Some(0), String::new()));
}

#[test]
fn the_next_service_is_asked_when_one_is_down() {
    let mut split = Split::start();
    let calls = calls_at(&mut split.decides);
    let closed = std::net::SocketAddr::from(([127, 0, 0, 1], crate::rig::free_port()));
    let setup = asking(
        "proxy",
        "UNSET",
        &format!("authorize_service_urls: [\"http://{closed}\", \"http://{calls}\"]"),
    );
    let text = configuration(&setup, &split.provider, &split.upstream, split.elsewhere.path());
    let asks = Server::start(&text, split.elsewhere.path(), &[]);
    for _ in 0..4 {
        let answer: Answer = asks.get("app.localhost", "/public", "");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn what_lasts_in_the_process_that_forwards_ends_with_its_session() {
    let split = Split::start();
    split.upstream.greets_later(Duration::from_secs(6));
    let (mut jane, mut bob) = (split.browser(), split.browser());
    let open = |browser: &mut Browser| {
        let arrived = browser.until("http://app.localhost/", "/.pomerium/callback/");
        browser.get(&arrived);
        let mut stream = split.forwards.connect();
        let session = browser.session("app.localhost");
        write!(stream, "GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n{session}\r\n")
            .unwrap();
        stream
    };
    let (mut hers, mut his) = (open(&mut jane), open(&mut bob));
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    assert_eq!(jane.get("http://app.localhost/.pomerium/sign_out").status, 302);
    let got = rig::read_to_close(&mut hers);
    let took = began.elapsed();
    assert!(
        got.contains("hello") && !got.contains("world") && took < Duration::from_secs(5),
        "{took:?} {got}"
    );
    let got = rig::read_to_close(&mut his);
    assert!(got.contains("world"), "another one's is not touched: {got}");
}

#[test]
fn what_lasts_in_the_process_that_forwards_ends_when_the_decision_would_be_another() {
    let routes = |more: &str| {
        rig::ROUTES.replacen(
            "to: http://UPSTREAM\n    pass_identity_headers: true\n    allow_any_authenticated_user: true",
            &format!("to: http://UPSTREAM\n    pass_identity_headers: true\n    {more}"),
            1,
        )
    };
    let group = |name: &str| routes(&format!("policy: [{{allow: {{or: [{{groups: {name}}}]}}}}]"));
    let split = Split::with_routes("", "", &group("dev"));
    let mut jane = split.signed_in();
    let mut ann = split.browser();
    split.provider.set(|state| {
        state.claims["sub"] = serde_json::json!("ann-1");
        state.claims["groups"] = serde_json::json!(["dev", "admins", "sales"]);
        state.lifetime = 6;
    });
    assert_eq!(ann.open("http://app.localhost/").status, 200);
    assert_eq!(jane.open("http://other.localhost/").status, 200);
    split.upstream.greets_later(Duration::from_secs(30));
    let open = |host: &str, path: &str, fields: &str| {
        let mut stream = split.forwards.connect();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").unwrap();
        let mut seen = String::new();
        while !seen.contains("hello") {
            let mut part = [0; 1024];
            let count = stream.read(&mut part).unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        stream
    };
    let mut hers = open("app.localhost", "/x", &jane.session("app.localhost"));
    let mut elsewhere = open("other.localhost", "/x", &jane.session("other.localhost"));
    let mut anns = open("app.localhost", "/x", &ann.session("app.localhost"));
    let mut public = open("app.localhost", "/public/x", "");
    let mut nobodys = open("open.localhost", "/x", "");
    let change = |routes: &str| {
        let setup = Setup { routes: routes.into(), ..split.decides_with.clone() };
        let text = configuration(&setup, &split.provider, &split.upstream, split.directory.path());
        std::fs::write(split.directory.path().join("config.yaml"), text).unwrap();
        Instant::now()
    };
    let is_closed_in_time = |stream: &mut std::net::TcpStream, began: Instant, what: &str| {
        let got = rig::read_to_close(stream);
        let took = began.elapsed();
        println!("{what}: {took:?}");
        assert!(!got.contains("world") && took < Duration::from_secs(5), "{what}: {took:?} {got}");
    };
    // It comes back soon, and everything has been asked about once by then.
    std::thread::sleep(Duration::from_secs(2));
    let began = change(&group("admins"));
    is_closed_in_time(&mut hers, began, "another policy");
    let closed = group("admins").replacen("from: http://open", "from: http://opened", 1);
    let began = change(&closed);
    is_closed_in_time(&mut nobodys, began, "no route any more, where it is decided");
    split.provider.set(|state| {
        state.claims["groups"] = serde_json::json!(["dev"]);
        state.lifetime = 3600;
    });
    // When her tokens expire, they are renewed for whom something lasts.
    let got = rig::read_to_close(&mut anns);
    assert!(!got.contains("world"), "a group that was removed: {got}");
    for stream in [&mut elsewhere, &mut public] {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let error = stream.read(&mut [0; 64]).unwrap_err();
        assert!(
            matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
            "{error}"
        );
    }
}

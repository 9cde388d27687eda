//! TLS: certificates by name, HTTP/2, encrypted upstreams.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rig::{self, HTTPS, Rig, Setup, self_signed, write_certificate};

/// Asks with curl; the answer with its head.
fn curl(rig: &Rig, host: &str, path: &str, more: &[&str]) -> (String, String) {
    rig::curl(rig, host, path, &[&["-i"], more].concat())
}

const ROUTES: &str = "
  - from: https://open.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: https://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
";

fn rig(more: &str) -> Rig {
    Rig::with(Setup { settings: format!("{HTTPS}\n{more}"), routes: ROUTES.into(), ..Setup::default() })
}

#[test]
fn http_2_and_http_1_1_are_served_over_tls_1_2_and_1_3() {
    let rig = rig("");
    for (arguments, version) in [
        (&["--http2"][..], "HTTP/2 200"),
        (&["--http1.1"], "HTTP/1.1 200"),
        (&["--tls-max", "1.2"], "HTTP/2 200"),
    ] {
        let (out, err) = curl(&rig, "open.localhost", "/", arguments);
        assert!(out.starts_with(version), "{arguments:?} {out} {err}");
        assert!(out.ends_with("ok"));
    }
    assert_eq!(rig.upstream.header("x-forwarded-proto")[0], "https");
    let (_, err) = curl(&rig, "open.localhost", "/", &["--tls-max", "1.1"]);
    assert!(!err.is_empty());
}

#[test]
fn uploads_and_records_work_over_http_2() {
    let rig = rig("");
    let body = "x".repeat(300_000);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    let (out, err) =
        curl(&rig, "open.localhost", "/up?x=1", &["--http2", "-X", "POST", "--data-binary", &data]);
    assert!(out.starts_with("HTTP/2 200"), "{out} {err}");
    assert!(rig.upstream.seen().contains(&body));
    let (out, _) = curl(&rig, "app.localhost", "/", &["--http2", "-H", "cookie: a=1", "-H", "cookie: b=2"]);
    assert!(out.starts_with("HTTP/2 302"), "{out}");
    rig.server.raw_log();
    let records = rig.server.records();
    let access: Vec<_> = records.iter().filter(|record| record["message"] == "http-request").collect();
    assert_eq!(access.len(), 2);
    assert_eq!(access[0]["protocol"], "HTTP/2");
}

#[test]
fn crumbs_of_cookies_are_joined_for_the_upstream() {
    let rig = rig("");
    let (out, _) = curl(&rig, "open.localhost", "/", &["--http2", "-H", "cookie: a=1", "-H", "cookie: b=2"]);
    assert!(out.starts_with("HTTP/2 200"), "{out}");
    assert_eq!(rig.upstream.header("cookie"), ["a=1; b=2"]);
}

#[test]
fn certificates_are_chosen_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = "certificates:\n".to_owned();
    for (file, name) in [("a", "*.a.localhost"), ("b", "open.localhost")] {
        let (cert, key) = write_certificate(directory.path(), file, &self_signed(name));
        settings.push_str(&format!("  - {{cert: {cert}, key: {key}}}\n"));
    }
    let rig = rig(&settings);
    for (host, file) in [("x.a.localhost", "a"), ("open.localhost", "b"), ("y.a.localhost", "a")] {
        let authority = directory.path().join(format!("{file}.pem"));
        let port = rig.server.address.port();
        let done = Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", authority.to_str().unwrap()])
            .args(["--resolve", &format!("{host}:{port}:127.0.0.1"), &format!("https://{host}:{port}/")])
            .output()
            .unwrap();
        assert!(done.status.success(), "{host}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let (out, _) = curl(&rig, "open.localhost", "/", &[]);
    assert!(out.contains("strict-transport-security"), "{out}");
}

#[test]
fn a_cleartext_request_to_a_tls_port_gets_nothing() {
    let rig = rig("");
    let mut stream = rig.server.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: open.localhost\r\n\r\n").unwrap();
    assert!(!crate::rig::read_all(&mut stream).contains("200"));
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn upstreams_are_verified_by_their_own_roots_and_name() {
    // Our own server, with its own certificate, is the encrypted upstream.
    let directory = tempfile::tempdir().unwrap();
    let (ca, key) = write_certificate(directory.path(), "inner", &self_signed("inner.test"));
    let inner = Rig::with(Setup {
        settings: format!("{HTTPS}\ncertificate_file: {ca}\ncertificate_key_file: {key}"),
        routes: "
  - from: https://inner.test
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
"
        .into(),
        ..Setup::default()
    });
    let to = format!("https://127.0.0.1:{}", inner.server.address.port());
    let route = |host: &str, tls: &str| {
        format!(
            "
  - from: http://{host}.localhost
    to: {to}
    host_rewrite: inner.test
    allow_public_unauthenticated_access: true
{tls}"
        )
    };
    let outer = Rig::routes(
        &[
            route("none", ""),
            route("skip", "    tls_skip_verify: true\n"),
            route("right", &format!("    tls_custom_ca_file: {ca}\n    tls_server_name: inner.test\n")),
            route("name", &format!("    tls_custom_ca_file: {ca}\n    tls_server_name: other.test\n")),
            route("system", "    tls_server_name: inner.test\n"),
        ]
        .concat(),
    );
    for (host, status) in [("none", 502), ("skip", 200), ("right", 200), ("name", 502), ("system", 502)] {
        for _ in 0..2 {
            assert_eq!(outer.server.get(&format!("{host}.localhost"), "/", "").status, status, "{host}");
        }
    }
    // Over HTTP/2, as both sides prefer.
    inner.server.raw_log();
    assert!(inner.server.records().iter().any(|record| record["protocol"] == "HTTP/2"));
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn server_config(
    made: &rcgen::CertifiedKey<rcgen::KeyPair>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
) -> Arc<rustls::ServerConfig> {
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.cert.der().clone()], key);
    Arc::new(config.unwrap())
}

/// A TLS server that demands a client certificate, and answers one request with it.
fn demanding(
    server: &rcgen::CertifiedKey<rcgen::KeyPair>,
    client: &rcgen::CertifiedKey<rcgen::KeyPair>,
) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(client.cert.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider()).build();
    let config = server_config(server, verifier.unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let mut part = [0; 4096];
            // A handshake that fails ends the connection.
            if std::io::Read::read(&mut stream, &mut part).is_ok_and(|count| count > 0) {
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            }
        }
    });
    port
}

#[test]
fn a_route_shows_its_client_certificate_to_the_upstream() {
    let server = self_signed("inner.test");
    let (client, other) = (self_signed("portcullis.test"), self_signed("portcullis.test"));
    let directory = tempfile::tempdir().unwrap();
    let (ca, _) = write_certificate(directory.path(), "inner", &server);
    let port = demanding(&server, &client);
    let route = |host: &str, certificate: &str| {
        format!(
            "
  - from: http://{host}.localhost
    to: https://127.0.0.1:{port}
    tls_custom_ca_file: {ca}
    tls_server_name: inner.test
    allow_public_unauthenticated_access: true
{certificate}"
        )
    };
    let shown = |name: &str, made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        let (cert, key) = write_certificate(directory.path(), name, made);
        format!("    tls_client_cert_file: {cert}\n    tls_client_key_file: {key}\n")
    };
    let rig = Rig::routes(
        &[
            route("right", &shown("right", &client)),
            route("wrong", &shown("wrong", &other)),
            route("none", ""),
        ]
        .concat(),
    );
    for (host, status) in [("right", 200), ("wrong", 502), ("none", 502)] {
        assert_eq!(rig.server.get(&format!("{host}.localhost"), "/", "").status, status, "{host}");
    }
}

/// A TLS server that answers any request with an answer of so many bytes, head included, and in the same record
/// with one that nobody asked for.
pub fn overtalkative(made: &rcgen::CertifiedKey<rcgen::KeyPair>, length: Arc<AtomicUsize>) -> u16 {
    let config = server_config(made, Arc::new(rustls::server::NoClientAuth));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (connection, length) =
                (rustls::ServerConnection::new(config.clone()).unwrap(), length.clone());
            std::thread::spawn(move || {
                let mut stream = rustls::StreamOwned::new(connection, stream);
                let mut part = [0; 4096];
                while std::io::Read::read(&mut stream, &mut part).is_ok_and(|count| count > 0) {
                    let length = length.load(Ordering::Relaxed);
                    let head = |body: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {body:06}\r\n\r\n");
                    let body = length - head(0).len();
                    let answer = format!("{}{}{}strange", head(body), "x".repeat(body), head(7));
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// TLS hands over what it has decrypted piece by piece: what is left inside it is as strange as what is read.
#[test]
fn what_tls_holds_back_is_nobodys_answer() {
    let server = self_signed("inner.test");
    let directory = tempfile::tempdir().unwrap();
    let (ca, _) = write_certificate(directory.path(), "inner", &server);
    let length = Arc::new(AtomicUsize::new(0));
    let port = overtalkative(&server, length.clone());
    let rig = Rig::routes(&format!(
        "
  - from: http://open.localhost
    to: https://127.0.0.1:{port}
    tls_custom_ca_file: {ca}
    tls_server_name: inner.test
    allow_public_unauthenticated_access: true
"
    ));
    // Around every size of which room could be made.
    for room in [1024, 2048, 4096, 8192, 8192 + 4096, 16384 - 80] {
        for size in room - 3..=room + 3 {
            length.store(size, Ordering::Relaxed);
            for _ in 0..2 {
                let answer = rig.server.get("open.localhost", "/", "");
                assert_eq!(answer.status, 200, "{size}");
                assert!(answer.body.bytes().all(|byte| byte == b'x'), "{size}");
            }
        }
    }
}

#[test]
fn a_certificate_that_ends_is_spoken_of_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let mut parameters =
        rcgen::CertificateParams::new(vec!["authenticate.localhost".to_owned(), "app.localhost".to_owned()])
            .unwrap();
    parameters.not_after = rcgen::date_time_ymd(2024, 1, 1);
    let signing_key = rcgen::KeyPair::generate().unwrap();
    let cert = parameters.self_signed(&signing_key).unwrap();
    let (cert, key) = write_certificate(directory.path(), "over", &rcgen::CertifiedKey { cert, signing_key });
    let routes = ROUTES.replace("from: http:", "from: https:");
    let settings = format!(
        "insecure_server: false\nauthenticate_service_url: https://authenticate.localhost\ncertificate_file: {cert}\ncertificate_key_file: {key}"
    );
    let mut rig = Rig::with(Setup { settings, routes, ..Setup::default() });
    let said = rig.server.wait_for("a certificate has ended: renew it");
    assert_eq!(said["until"], "2024-01-01T00:00:00Z");
}

#[test]
fn cleartext_is_sent_to_the_same_place_by_https_and_nowhere_else() {
    let routes = format!(
        "{}\n  - from: https://port.localhost:8443\n    to: http://UPSTREAM\n    allow_public_unauthenticated_access: true\n  - from: https://*.wild.localhost\n    to: http://UPSTREAM\n    allow_public_unauthenticated_access: true\n",
        ROUTES.replace("from: http:", "from: https:")
    );
    let settings = format!("{HTTPS}\nhttp_redirect_addr: 127.0.0.1:0");
    let mut rig = Rig::with(Setup { settings, routes, ..Setup::default() });
    let address = rig.server.wait_for("redirecting to https")["address"].as_str().unwrap().to_owned();
    let send = |text: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        rig::Answer::parse(&rig::read_all(&mut stream))
    };
    for (line, host, status, location) in [
        ("GET /a/b?x=%20y&z", "app.localhost", 301, Some("https://app.localhost/a/b?x=%20y&z")),
        ("HEAD /", "App.Localhost:80", 301, Some("https://app.localhost/")),
        ("POST /form", "app.localhost", 308, Some("https://app.localhost/form")),
        ("GET //evil.test/", "app.localhost", 301, Some("https://app.localhost//evil.test/")),
        ("OPTIONS *", "app.localhost", 400, None),
        ("GET /x", "port.localhost", 301, Some("https://port.localhost:8443/x")),
        ("GET /x", "a.wild.localhost", 301, Some("https://a.wild.localhost/x")),
        (
            "GET /oauth2/callback?code=c",
            "authenticate.localhost",
            301,
            Some("https://authenticate.localhost/oauth2/callback?code=c"),
        ),
        ("GET /x", "evil.test", 404, None),
        ("GET /x", "app.localhost@evil.test", 400, None),
        ("GET /%2e%2e/%2fx", "app.localhost", 400, None),
        ("GET /.pomerium/sign_out", "app.localhost", 301, Some("https://app.localhost/.pomerium/sign_out")),
    ] {
        let answer = send(&format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!((answer.status, answer.header("location")), (status, location), "{line} {host}");
        assert!(answer.all("set-cookie").is_empty());
    }
    assert!(rig.upstream.requests().is_empty(), "nothing goes on from there");
}

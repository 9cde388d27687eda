//! The configuration changes while the server runs: whole, or not at all, and nobody notices who need not.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client_certificates::{authority, issue, params, revocation_list};
use crate::provider::Provider;
use crate::rig::{self, BINARY, HTTPS, ROUTES, Rig, Server, Setup, self_signed, write_certificate};
use crate::upstream::Upstream;

fn with_routes(more: &str) -> Setup {
    Setup { routes: format!("{ROUTES}{more}"), ..Setup::default() }
}

/// A route that was not there before.
const NEW: &str = "
  - from: http://new.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
";

/// From now on until the server answers with this status.
fn time_until(server: &Server, host: &str, status: u16) -> Duration {
    let began = Instant::now();
    while server.get(host, "/", "").status != status {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", server.raw_log());
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

#[test]
fn a_change_is_in_force_within_two_seconds_however_the_file_is_written() {
    let rig = Rig::start();
    let path = rig.state().join("config.yaml");
    let (with, without) = (rig.configuration(&with_routes(NEW)), rig.configuration(&Setup::default()));
    let aside = rig.state().join("aside");
    let ways: [(&str, &dyn Fn(&str)); 4] = [
        ("overwritten", &|text| std::fs::write(&path, text).unwrap()),
        ("mv", &|text| {
            std::fs::write(&aside, text).unwrap();
            std::fs::rename(&aside, &path).unwrap();
        }),
        // As vim does: the old one becomes a backup, and another file takes its place.
        ("saved by an editor", &|text| {
            std::fs::rename(&path, &aside).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            std::fs::write(&path, text).unwrap();
            std::fs::remove_file(&aside).unwrap();
        }),
        ("in pieces", &|text| {
            let mut file = std::fs::File::create(&path).unwrap();
            for piece in text.as_bytes().chunks(200) {
                std::io::Write::write_all(&mut file, piece).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        }),
    ];
    for (way, write) in ways {
        for (text, status) in [(&with, 200), (&without, 404)] {
            write(text);
            let took = time_until(&rig.server, "new.localhost", status);
            println!("{way}: {took:?}");
            assert!(took < Duration::from_secs(2), "{way}: {took:?}");
        }
    }
    let log = rig.server.raw_log();
    assert!(!log.contains("was not replaced"), "no half of a file was read: {log}");
}

#[test]
fn a_mounted_config_map_is_followed_when_kubernetes_swaps_it() {
    let (provider, upstream, state) = (Provider::start(), Upstream::start(), tempfile::tempdir().unwrap());
    let volume = tempfile::tempdir().unwrap();
    let path = |name: &str| volume.path().join(name);
    let text = |more| rig::configuration(&with_routes(more), &provider, &upstream, state.path());
    let swap = |version: &str, text: &str| {
        std::fs::create_dir(path(version)).unwrap();
        std::fs::write(path(version).join("config.yaml"), text).unwrap();
        symlink(version, path("..data_tmp")).unwrap();
        std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    swap("..2026_11_20", &text(""));
    symlink("..data/config.yaml", path("config.yaml")).unwrap();
    let server = Server::start(&text(""), volume.path(), &[]);
    assert_eq!(server.get("new.localhost", "/", "").status, 404);
    swap("..2026_11_21", &text(NEW));
    std::fs::remove_dir_all(path("..2026_11_20")).unwrap();
    let took = time_until(&server, "new.localhost", 200);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_hangup_reads_again_at_once_and_a_file_that_says_the_same_is_not_read() {
    let rig = Rig::start();
    let status = rig.reads(|| rig.server.signal("HUP"));
    assert_eq!((&status["generation"], &status["last_reload"]["success"]), (&json!(2), &json!(true)));
    // Touched, and written again as it was.
    let path = rig.state().join("config.yaml");
    std::fs::write(&path, std::fs::read(&path).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(rig.server.status()["configuration"]["generation"], 2);
    // The environment alone: there is nothing to watch, and HUP does not end the process.
    let status = rig.change(&with_routes(NEW));
    assert_eq!(status["generation"], 3);
}

#[test]
fn a_broken_change_changes_nothing_and_says_where_it_is_broken() {
    let rig = Rig::start();
    let sound = rig.configuration(&Setup::default());
    let lines = sound.lines().count();
    let cases = [
        (format!("{sound}  - from: [\n"), format!("config.yaml:{}:", lines + 2)),
        (format!("{sound}unknown_key: 1\n"), format!("config.yaml:{}:1: unknown_key", lines + 1)),
        (
            format!("{sound}certificate_file: /absent.pem\ncertificate_key_file: /absent.key\n"),
            format!("config.yaml:{}:", lines + 1),
        ),
        (sound.replace("allow_any_authenticated_user", "allow_any_authenticated_usr"), "did you mean".into()),
        (format!("{sound}services: proxy,authorize\n"), "cannot change while the server runs".into()),
        (String::new(), "is empty".into()),
        ("\u{0}\u{1}".into(), "config.yaml:1:1".into()),
    ];
    for (number, (text, expected)) in cases.iter().enumerate() {
        let status = rig.reads(|| std::fs::write(rig.state().join("config.yaml"), text).unwrap());
        let last = &status["last_reload"];
        assert_eq!(
            (&status["generation"], &last["success"]),
            (&json!(number + 1), &json!(false)),
            "{status}"
        );
        assert!(last["problems"].to_string().contains(expected), "{expected}: {status}");
        let record = rig.server.records().pop().unwrap();
        assert_eq!(record["level"], "ERROR");
        assert!(last["problems"].as_array().unwrap().contains(&record["problem"]), "{record}");
        assert_eq!(rig.server.get("open.localhost", "/", "").status, 200);
        assert_eq!(rig.server.get("app.localhost", "/", "").status, 302);
        assert_eq!(rig.server.health("/readyz"), 200);
        let status = rig.change(&with_routes(&"# as it was\n".repeat(number)));
        assert_eq!(
            status["last_reload"],
            json!({ "success": true, "at": status["in_force_since"], "problems": [] })
        );
    }
}

#[test]
fn what_cannot_change_while_the_server_runs_is_named_and_the_rest_changes() {
    let rig = Rig::start();
    let settings = "address: 127.0.0.1:1\nhealth_check_addr: 127.0.0.1:3\nworkers: 3\nlog_format: text\n\
                    state_dir: /elsewhere\ndatabroker_storage_type: memory\ngrpc_address: 127.0.0.1:2\ngrpc_insecure: true";
    let status = rig.change(&Setup { settings: settings.into(), ..with_routes(NEW) });
    let keys = [
        "address",
        "workers",
        "grpc_address",
        "health_check_addr",
        "log_format",
        "state_dir",
        "databroker_storage_type",
    ];
    assert_eq!(status["in_force_after_restart"], json!(keys), "{status}");
    assert_eq!(status["last_reload"]["success"], true);
    let named: Vec<Value> = rig.server.records().iter().map(|record| record["key"].clone()).collect();
    for key in keys {
        assert!(named.contains(&json!(key)), "{key}");
    }
    assert_eq!(rig.server.get("new.localhost", "/", "").status, 200);
    let status = rig.change(&Setup::default());
    assert_eq!(status["in_force_after_restart"], json!([]));
    // A secret that goes away would take every session with it.
    let secret = "shared_secret: 'wVZNlJQpXlqsM4mrWhJPKKKOSGFYAvgmQyOFzfDGfYo='";
    let with_secret = Setup { settings: secret.into(), ..Setup::default() };
    let mut rig = Rig::with(with_secret);
    let mut jane = rig.signed_in();
    let status = rig.change(&Setup::default());
    assert_eq!(status["in_force_after_restart"], json!(["shared_secret"]));
    assert_eq!(jane.open("http://other.localhost/").status, 200);
    rig.server.wait_for("another configuration is in force");
}

#[test]
fn sessions_go_on_and_are_read_by_the_new_configuration() {
    let rig = Rig::start();
    let mut jane = rig.signed_in();
    assert_eq!(jane.get("http://app.localhost/admin").status, 403);
    let admins_are = |claim: &str| {
        let settings = format!("groups_claim: {claim}");
        Setup { settings, routes: ROUTES.replace("groups: admins", "groups: blue"), ..Setup::default() }
    };
    rig.change(&admins_are("team"));
    let page = jane.get("http://app.localhost/admin");
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(
        rig.upstream.header("x-pomerium-claim-groups").pop().unwrap(),
        "dev",
        "the claim is what it was"
    );
    rig.change(&Setup::default());
    assert_eq!(jane.get("http://app.localhost/admin").status, 403);
    assert_eq!(rig.provider.calls("/token").len(), 1, "nobody signed in anew");
    // Another client: its sessions begin anew.
    rig.change(&Setup { settings: "idp_client_id: another".into(), ..Setup::default() });
    assert_eq!(jane.get("http://app.localhost/").status, 302);
    rig.change(&Setup::default());
    assert_eq!(jane.get("http://app.localhost/").status, 200, "and go on when it comes back");
}

#[test]
fn a_sign_in_under_way_ends_well_under_another_configuration() {
    let rig = Rig::start();
    let mut jane = rig.browser();
    let callback = jane.until("http://app.localhost/deep?x=1", "/oauth2/callback");
    rig.change(&with_routes(NEW));
    // The provider knows nothing of that: what it publishes is not asked for again.
    let page = jane.open(&callback);
    assert_eq!(page.status, 200, "{page:?}");
    let asked = rig.provider.calls("/issuer/.well-known/openid-configuration").len();
    rig.change(&Setup::default());
    rig.change(&Setup {
        settings: "idp_client_secret: another-secret-of-the-tests".into(),
        ..Setup::default()
    });
    rig.provider.set(|state| state.keys_down = true);
    let mut bob = rig.browser();
    assert_eq!(bob.open("http://app.localhost/").status, 200, "its documents are known, whatever the secret");
    assert_eq!(rig.provider.calls("/issuer/.well-known/openid-configuration").len(), asked);
    let call = rig.provider.calls("/token").pop().unwrap();
    assert!(
        !call.head.contains("dGhlLXNlY3JldC1vZi10aGUtdGVzdHM"),
        "the new secret is the one that is shown"
    );
}

#[test]
fn connections_to_upstreams_are_kept_unless_their_cluster_changed() {
    let rig = Rig::start();
    let get = |host: &str| assert_eq!(rig.server.get(host, "/", "").status, 200);
    get("open.localhost");
    assert_eq!(rig.upstream.connections(), 1);
    // Another route before it, another policy, another name.
    let moved = format!("{NEW}{}", ROUTES.replace("allow_public", "name: named\n    allow_public"));
    rig.change(&Setup { routes: moved, ..Setup::default() });
    get("open.localhost");
    assert_eq!(rig.upstream.connections(), 1, "the same connection");
    let patient = ROUTES.replacen("allow_public", "timeout: 7s\n    allow_public", 1);
    rig.change(&Setup { routes: patient, ..Setup::default() });
    get("open.localhost");
    assert_eq!(rig.upstream.connections(), 2, "another cluster has connections of its own");
}

#[test]
fn a_stream_under_way_goes_on_when_it_still_may() {
    let rig = Rig::start();
    let jane = rig.signed_in().session("app.localhost");
    rig.upstream.greets_later(Duration::from_secs(3));
    let streams = ["/public/x", "/"].map(|path| {
        let (address, cookie) = (rig.server.address, jane.clone());
        std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let head =
                format!("GET {path} HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n{cookie}\r\n");
            std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
            rig::read_all(&mut stream)
        })
    });
    std::thread::sleep(Duration::from_millis(300));
    rig.change(&with_routes(NEW));
    for stream in streams {
        let answer = stream.join().unwrap();
        assert!(answer.contains("hello") && answer.contains("world"), "{answer}");
    }
}

/// Whether the server shows a certificate that this one vouches for.
fn is_served(rig: &Rig, host: &str, authority: &str) -> bool {
    let port = rig.server.address.port();
    let done = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "--cacert", authority])
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1"), &format!("https://{host}:{port}/")])
        .output();
    done.unwrap().status.success()
}

#[test]
fn every_file_that_the_configuration_names_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let path = |name: &str| at.join(name).display().to_string();
    let new_key = || Command::new(BINARY).args(["keys", "new", "signing-key"]).output().unwrap().stdout;
    let (one, two) = (self_signed("open.localhost"), self_signed("open.localhost"));
    let (cert, key) = write_certificate(at, "cert", &one);
    let ours = authority("ours");
    let card = issue(at, "card", &params(2), &ours, &[]);
    std::fs::write(path("ca.pem"), ours.pem()).unwrap();
    std::fs::write(path("crl.pem"), revocation_list(&ours, &[7], 2090)).unwrap();
    std::fs::write(path("signing"), new_key()).unwrap();
    std::fs::write(path("client"), "the-first-secret-of-the-tests").unwrap();
    // An upstream with TLS, whose certificate is replaced by another authority's.
    let inner = {
        let (cert, key) = write_certificate(at, "inner", &self_signed("inner.test"));
        Rig::with(Setup {
            settings: format!("{HTTPS}\ncertificate_file: {cert}\ncertificate_key_file: {key}"),
            routes: "
  - from: https://inner.test
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
"
            .into(),
            ..Setup::default()
        })
    };
    write_certificate(at, "wrong", &self_signed("inner.test"));
    std::fs::copy(path("wrong.pem"), path("upstream.pem")).unwrap();
    let settings = format!(
        "{HTTPS}\ncertificate_file: {cert}\ncertificate_key_file: {key}\nsigning_key_file: {}\n\
         idp_client_secret_file: {}\nidp_client_secret: UNSET\n\
         downstream_mtls:\n  ca_file: {}\n  crl_file: {}\n  enforcement: policy",
        path("signing"),
        path("client"),
        path("ca.pem"),
        path("crl.pem")
    );
    let routes = format!(
        "
  - from: https://open.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: https://upstream.localhost
    to: https://127.0.0.1:{}
    host_rewrite: inner.test
    tls_server_name: inner.test
    tls_custom_ca_file: {}
    allow_public_unauthenticated_access: true
  - from: https://card.localhost
    to: http://UPSTREAM
    policy: [{{allow: {{and: [{{client_certificate: {{san_dns: laptop.example.test}}}}]}}}}]
",
        inner.server.address.port(),
        path("upstream.pem")
    );
    let rig = Rig::with(Setup { settings, routes, ..Setup::default() });
    let status = |host: &str, more: &[&str]| {
        let out = rig::curl(&rig, host, "/", &[more, &["-o", "/dev/null", "-w", "%{http_code}"]].concat()).0;
        out.parse::<u16>().unwrap()
    };
    let jwks = || rig::curl(&rig, "open.localhost", "/.well-known/pomerium/jwks.json", &[]).0;

    assert_eq!(status("upstream.localhost", &[]), 502);
    rig.reads(|| assert!(std::fs::copy(path("inner.pem"), path("upstream.pem")).is_ok()));
    assert_eq!(status("upstream.localhost", &[]), 200, "tls_custom_ca_file of a route");

    let shown = ["--cert", &card.chain, "--key", &card.key];
    assert_eq!(status("card.localhost", &shown), 200);
    rig.reads(|| std::fs::write(path("crl.pem"), revocation_list(&ours, &[2], 2090)).unwrap());
    assert_eq!(status("card.localhost", &shown), 403, "crl_file");

    let before = jwks();
    rig.reads(|| std::fs::write(path("signing"), new_key()).unwrap());
    assert_ne!(jwks(), before, "signing_key_file");

    std::fs::write(path("one.pem"), one.cert.pem()).unwrap();
    std::fs::write(path("two.pem"), two.cert.pem()).unwrap();
    assert!(is_served(&rig, "open.localhost", &path("one.pem")));
    // One of the two alone does not fit, and changes nothing.
    let said = rig.reads(|| std::fs::write(&cert, two.cert.pem()).unwrap());
    assert!(
        said["last_reload"]["problems"].to_string().contains("does not belong to the certificate"),
        "{said}"
    );
    assert!(is_served(&rig, "open.localhost", &path("one.pem")));
    let said = rig.reads(|| std::fs::write(&key, two.signing_key.serialize_pem()).unwrap());
    assert_eq!(said["last_reload"]["success"], true);
    assert!(is_served(&rig, "open.localhost", &path("two.pem")), "certificate_file");
    assert!(!is_served(&rig, "open.localhost", &path("one.pem")));

    let said = rig.reads(|| std::fs::remove_file(path("client")).unwrap());
    assert!(said["last_reload"]["problems"].to_string().contains("cannot be read"), "{said}");
    let said = rig.reads(|| std::fs::write(path("client"), "the-second-secret-of-the-tests").unwrap());
    assert_eq!(said["last_reload"]["success"], true, "a file that comes back is noticed");
}

#[test]
fn no_change_is_lost_while_files_are_touched_that_say_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "the-secret-of-the-tests").unwrap();
    let settings = format!("idp_client_secret: UNSET\nidp_client_secret_file: {}", secret.display());
    let rig = Rig::with(Setup { settings: settings.clone(), ..Setup::default() });
    let text = rig.configuration(&Setup { settings, ..with_routes(NEW) });
    std::fs::write(rig.state().join("config.yaml"), text).unwrap();
    // Longer than it is waited for that files stay as they are: it is read meanwhile, and thrown away.
    let (began, aside) = (Instant::now(), directory.path().join("aside"));
    while began.elapsed() < Duration::from_millis(2800) {
        std::fs::write(&aside, "the-secret-of-the-tests").unwrap();
        std::fs::rename(&aside, &secret).unwrap();
    }
    time_until(&rig.server, "new.localhost", 200);
}

#[test]
fn secrets_that_were_made_here_are_rotated_without_a_restart() {
    let rig = Rig::start();
    let published = || {
        let jwks = rig.server.get("app.localhost", "/.well-known/pomerium/jwks.json", "").json();
        jwks["keys"].as_array().unwrap().len()
    };
    let mut jane = rig.signed_in();
    assert_eq!(published(), 1);
    rig.reads(|| {
        let config = rig.state().join("config.yaml");
        let done = Command::new(BINARY).args(["keys", "rotate", "-c"]).arg(config).env_clear().status();
        assert!(done.unwrap().success());
    });
    assert_eq!(published(), 2);
    assert_eq!(jane.open("http://other.localhost/").status, 200);
}

#[test]
fn a_certificate_that_was_made_up_stays_for_the_same_names() {
    let setup = |more: &str| Setup {
        settings: HTTPS.into(),
        routes: format!(
            "{}{more}",
            ROUTES
                .replace("http://app", "https://app")
                .replace("http://open", "https://open")
                .replace("http://other", "https://other")
        ),
        ..Setup::default()
    };
    let rig = Rig::with(setup(""));
    let served = || {
        let port = rig.server.address.port();
        let done = Command::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "open.localhost"])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let pem = text.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap();
        pem.split("-----END").next().unwrap().to_owned()
    };
    let first = served();
    rig.change(&setup("# changed\n"));
    assert_eq!(served(), first);
    rig.change(&setup(&NEW.replace("http://new", "https://new")));
    assert_ne!(served(), first, "it is for another name too");
}

#[test]
fn the_level_of_the_log_changes() {
    let rig = Rig::start();
    let warnings_only = Setup { settings: "log_level: warn".into(), ..Setup::default() };
    std::fs::write(rig.state().join("config.yaml"), rig.configuration(&warnings_only)).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while rig.server.status()["configuration"]["generation"] != 2 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(50));
    rig.server.signal("HUP");
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(rig.server.status()["configuration"]["generation"], 3);
    let said = |level: &str| {
        rig.server.records().iter().any(|record| {
            record["level"] == level && record["message"] == "another configuration is in force"
        })
    };
    assert!(!said("INFO"), "{}", rig.server.raw_log());
    assert!(rig.change(&Setup::default())["generation"] == 4 && said("INFO"));
}

#[test]
fn requests_under_way_and_new_ones_succeed_through_many_changes() {
    let rig = Arc::new(Rig::start());
    let session = rig.signed_in().session("app.localhost");
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (rig, stop, served, session) = (rig.clone(), stop.clone(), served.clone(), session.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let (host, cookie) =
                        if number % 2 == 0 { ("open.localhost", "") } else { ("app.localhost", &*session) };
                    let answer = rig.server.get(host, "/", cookie);
                    assert_eq!(answer.status, 200, "{answer:?}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for change in 0..12 {
        rig.change(&with_routes(if change % 2 == 0 { NEW } else { "" }));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    println!("{} requests", served.load(Ordering::Relaxed));
    assert!(served.load(Ordering::Relaxed) > 100);
    assert_eq!(rig.server.status()["configuration"]["generation"], 13);
}

#[test]
fn a_file_that_is_mounted_alone_is_told_once() {
    let (provider, upstream, state) = (Provider::start(), Upstream::start(), tempfile::tempdir().unwrap());
    let path = state.path().join("config.yaml");
    let run = |command: &str, before: &str, settings: &str| {
        let setup = Setup { settings: settings.into(), ..Setup::default() };
        let text = rig::configuration(&setup, &provider, &upstream, state.path());
        std::fs::write(&path, text).unwrap();
        let at = path.display();
        let script =
            format!("{} exec timeout -s INT 2 {BINARY} run -c {at}", before.replace("PATH", &at.to_string()));
        let done = Command::new("sh").args(["-c", &format!("{command} '{script}'")]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(said.contains("\"listening\""), "{said}");
        said.matches("is mounted alone").count()
    };
    assert_eq!(run("sh -c", "", ""), 0);
    // In a container there always is one; elsewhere one can be made.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let secret = points.find(|point| std::fs::read_to_string(point).is_ok_and(|text| text.trim().len() > 3));
    match secret {
        Some(file) => {
            let settings = format!("idp_client_secret: UNSET\nidp_client_secret_file: {file}");
            assert_eq!(run("sh -c", "", &settings), 1);
        }
        None => assert_eq!(run("unshare -rm sh -c", "mount --bind PATH PATH;", ""), 1),
    }
}

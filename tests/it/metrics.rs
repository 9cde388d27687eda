//! What Prometheus reads, checked by its own tool, and that each number moves when it should.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::client_certificates::{Card, authority, issue, params};
use crate::rig::{Answer, HTTPS, ROUTES, Rig, Setup, read_all, self_signed, write_certificate};
use crate::sessions::{lasting_upstream, open_websocket};

const METRICS: &str = "metrics_address: 127.0.0.1:0";

pub fn address(rig: &mut Rig) -> String {
    rig.server.wait_for("metrics")["address"].as_str().unwrap().to_owned()
}

fn ask(address: &str, target: &str, fields: &str) -> Answer {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n{fields}\r\n").unwrap();
    Answer::parse(&read_all(&mut stream))
}

pub fn page(address: &str) -> String {
    // Records and numbers of an answer come after it.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let answer = ask(address, "/metrics", "");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    answer.body
}

/// The value of a series.
#[track_caller]
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
}

/// What `promtool check metrics` says.
fn promtool(page: &str) -> String {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error}; tests/run installs it"));
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

#[test]
fn every_number_moves_when_it_should_and_prometheus_understands_all_of_them() {
    let mut rig = Rig::settings(METRICS);
    let address = address(&mut rig);
    let mut jane = rig.signed_in();
    jane.get("http://app.localhost/");
    jane.get("http://app.localhost/public/x");
    jane.get("http://app.localhost/admin");
    rig.server.send("GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n");
    rig.server.send("GET / HTTP/1.1\r\nHost: nowhere.localhost\r\n\r\n");
    rig.server.send("nonsense\r\n\r\n");
    lasting_upstream(&rig);
    let tunnel = open_websocket(&rig, &jane.session("app.localhost"));
    let text = page(&address);
    assert_eq!(promtool(&text), "");
    for (series, least) in [
        ("portcullis_requests_total{route=\"http://app.localhost\",outcome=\"forwarded\",code=\"2xx\"}", 2.0),
        ("portcullis_requests_total{route=\"http://app.localhost\",outcome=\"sign_in\",code=\"3xx\"}", 1.0),
        (
            "portcullis_requests_total{route=\"http://app.localhost/admin\",outcome=\"refused\",code=\"4xx\"}",
            1.0,
        ),
        (
            "portcullis_requests_total{route=\"http://app.localhost/public\",outcome=\"forwarded\",code=\"2xx\"}",
            1.0,
        ),
        ("portcullis_requests_total{route=\"\",outcome=\"rejected\",code=\"4xx\"}", 2.0),
        ("portcullis_requests_total{route=\"\",outcome=\"own\",code=\"3xx\"}", 1.0),
        ("portcullis_request_duration_seconds_count", 8.0),
        ("portcullis_decision_duration_seconds_count", 5.0),
        ("portcullis_upstream_duration_seconds_count", 3.0),
        ("portcullis_sign_ins_total{provider=\"default\",outcome=\"begun\"}", 1.0),
        ("portcullis_sign_ins_total{provider=\"default\",outcome=\"done\"}", 1.0),
        ("portcullis_provider_duration_seconds_count{provider=\"default\"}", 3.0),
        ("portcullis_provider_known{provider=\"default\"}", 1.0),
        ("portcullis_store_duration_seconds_count{operation=\"insert\"}", 1.0),
        ("portcullis_sessions_open", 1.0),
        ("portcullis_upstream_connections_opened_total", 1.0),
        ("portcullis_config_last_reload_success", 1.0),
        ("portcullis_config_generation", 1.0),
        ("portcullis_ready", 1.0),
        ("process_resident_memory_bytes", 1_000_000.0),
        ("process_open_fds", 10.0),
        ("process_max_fds", 100.0),
        ("process_start_time_seconds", 1_700_000_000.0),
    ] {
        let found = value(&text, series);
        assert!(found >= least, "{series}: {found}");
    }
    let sum = |name: &str, text: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(sum("portcullis_tunnels", &text), 1.0);
    drop(tunnel);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let text = page(&address);
    assert_eq!(sum("portcullis_tunnels", &text), 0.0);
    assert_eq!(sum("portcullis_requests_in_flight", &text), 0.0);
    assert!(sum("portcullis_worker_busy_seconds_total", &text) > 0.0);

    // An upstream that is gone, a sign-in that is refused.
    rig.upstream.script(|_, _| false);
    jane.get("http://app.localhost/");
    let state = rig.browser().until("http://app.localhost/", "/authorize");
    let callback =
        format!("http://authenticate.localhost/oauth2/callback?error=access_denied&state={}", state.len());
    rig.browser().get(&callback);
    let text = page(&address);
    assert!(value(&text, "portcullis_upstream_errors_total{error=\"broken\"}") >= 1.0);
    let failed = "portcullis_requests_total{route=\"http://app.localhost\",outcome=\"failed\",code=\"5xx\"}";
    assert!(value(&text, failed) >= 1.0);
    assert_eq!(value(&text, "portcullis_sign_ins_total{provider=\"default\",outcome=\"person\"}"), 1.0);
    // What is forwarded tells them apart from what the upstream answered.
    assert!(!text.contains("outcome=\"forwarded\",code=\"5xx\""), "{text}");
}

#[test]
fn a_broken_configuration_is_seen_and_numbers_go_on_across_one_that_is_sound() {
    let setup = Setup { settings: METRICS.into(), ..Setup::default() };
    let mut rig = Rig::with(setup.clone());
    let address = address(&mut rig);
    rig.server.get("open.localhost", "/", "");
    let broken = Setup { settings: format!("{METRICS}\nno_such_key: 1"), ..Setup::default() };
    rig.change(&broken);
    let text = page(&address);
    assert_eq!(value(&text, "portcullis_config_last_reload_success"), 0.0);
    assert_eq!(value(&text, "portcullis_config_reloads_total{outcome=\"failed\"}"), 1.0);
    rig.change(&Setup { routes: format!("{ROUTES}\n  - from: http://more.localhost\n    to: http://UPSTREAM\n    allow_any_authenticated_user: true\n"), ..setup });
    rig.server.get("open.localhost", "/", "");
    let text = page(&address);
    assert_eq!(value(&text, "portcullis_config_last_reload_success"), 1.0);
    assert_eq!(value(&text, "portcullis_config_generation"), 2.0);
    assert_eq!(value(&text, "portcullis_routes"), 5.0 + 1.0);
    let series =
        "portcullis_requests_total{route=\"http://open.localhost\",outcome=\"forwarded\",code=\"2xx\"}";
    assert_eq!(value(&text, series), 2.0);
}

#[test]
fn metrics_are_on_their_own_port_alone_and_for_those_who_are_known() {
    let mut rig = Rig::settings(METRICS);
    let plain = address(&mut rig);
    assert_eq!(ask(&plain, "/", "").status, 404);
    assert_eq!(rig.server.get("open.localhost", "/metrics", "").body, "ok", "the application's own");
    assert_eq!(rig.server.get("authenticate.localhost", "/metrics", "").status, 404);
    assert_eq!(rig.server.health("/metrics"), 404);

    // user:password
    let mut rig = Rig::settings(&format!("{METRICS}\nmetrics_basic_auth: dXNlcjpwYXNzd29yZA=="));
    let known = address(&mut rig);
    for (fields, status) in [
        ("", 401),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==\r\n", 200),
        ("Authorization: basic dXNlcjpwYXNzd29yZA==\r\n", 200),
        ("Authorization: Basic dXNlcjp3cm9uZw==\r\n", 401),
        ("Authorization: Basic \r\n", 401),
        ("Authorization: Bearer dXNlcjpwYXNzd29yZA==\r\n", 401),
    ] {
        assert_eq!(ask(&known, "/metrics", fields).status, status, "{fields}");
    }
    assert!(!rig.server.raw_log().contains("dXNlcjpwYXNzd29yZA"));

    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = write_certificate(directory.path(), "metrics", &self_signed("metrics.localhost"));
    let mut rig = Rig::settings(&format!(
        "{METRICS}\nmetrics_certificate_file: {cert}\nmetrics_certificate_key_file: {key}"
    ));
    let encrypted = address(&mut rig);
    let port = encrypted.rsplit(':').next().unwrap();
    let done = Command::new("curl")
        .args(["-s", "--cacert", &cert, "--resolve", &format!("metrics.localhost:{port}:127.0.0.1")])
        .arg(format!("https://metrics.localhost:{port}/metrics"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&done.stdout).contains("portcullis_ready 1"), "{done:?}");
    // Another route's certificate is not one of those that clients are shown.
    assert!(!String::from_utf8_lossy(&done.stdout).contains("metrics.localhost"));
}

#[test]
fn with_an_authority_only_its_certificates_may_read() {
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = write_certificate(directory.path(), "metrics", &self_signed("metrics.localhost"));
    let [wanted, other] = ["wanted", "other"].map(authority);
    let authorities = directory.path().join("ca.pem");
    std::fs::write(&authorities, wanted.pem()).unwrap();
    let known = issue(directory.path(), "known", &params(1), &wanted, &[]);
    let unknown = issue(directory.path(), "unknown", &params(2), &other, &[]);
    let tls = format!("{METRICS}\nmetrics_certificate_file: {cert}\nmetrics_certificate_key_file: {key}");
    let wants = format!("metrics_client_ca_file: {}", authorities.display());
    let mut rig = Rig::settings(&format!("{tls}\n{wants}"));
    let address = address(&mut rig);
    let port = address.rsplit(':').next().unwrap();
    let read = |card: Option<&Card>| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--cacert", &cert, "--resolve", &format!("metrics.localhost:{port}:127.0.0.1")]);
        if let Some(Card { chain, key }) = card {
            curl.args(["--cert", chain, "--key", key]);
        }
        let done = curl.arg(format!("https://metrics.localhost:{port}/metrics")).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stdout).contains("portcullis_ready 1"))
    };
    assert_eq!(read(Some(&known)), (true, true));
    assert_eq!(read(None), (false, false));
    assert_eq!(read(Some(&unknown)), (false, false));
    let settings = format!("{METRICS}\n{wants}");
    let (_, said) = rig.check(&Setup { settings, ..Setup::default() });
    assert!(said.contains("metrics_certificate: is missing: metrics_client_ca needs it"), "{said}");
}

#[test]
fn who_may_read_stays_the_same_when_the_address_is_taken_away_until_the_next_start() {
    let mut rig = Rig::settings(&format!("{METRICS}\nmetrics_basic_auth: dTpw"));
    let address = address(&mut rig);
    let shown = "Authorization: Basic dTpw\r\n";
    let read = || [ask(&address, "/metrics", "").status, ask(&address, "/metrics", shown).status];
    assert_eq!(read(), [401, 200]);
    for settings in ["", "metrics_basic_auth: dTpw", "metrics_address: 127.0.0.2:0"] {
        let status = rig.change(&Setup { settings: settings.into(), ..Setup::default() });
        assert_eq!(status["in_force_after_restart"], serde_json::json!(["metrics_address"]), "{status}");
        assert_eq!(read(), [401, 200]);
    }
    // Another password counts at once.
    rig.change(&Setup { settings: format!("{METRICS}\nmetrics_basic_auth: dTpx"), ..Setup::default() });
    assert_eq!(read(), [401, 401]);
}

#[test]
fn certificates_for_the_same_names_are_one_number_and_made_up_ones_are_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = format!("{HTTPS}\n{METRICS}\ncertificates:\n");
    for (file, year) in [("later", 2091), ("first", 2090)] {
        let mut params = rcgen::CertificateParams::new(vec!["authenticate.localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertifiedKey { cert: params.self_signed(&key).unwrap(), signing_key: key };
        let (cert, key) = write_certificate(directory.path(), file, &made);
        settings.push_str(&format!("  - {{cert: {cert}, key: {key}}}\n"));
    }
    let ends = |settings: &str| {
        let routes = "\n  - from: https://authenticate.localhost\n    to: http://UPSTREAM\n    allow_any_authenticated_user: true\n";
        let mut rig =
            Rig::with(Setup { settings: settings.into(), routes: routes.into(), ..Setup::default() });
        let page = page(&address(&mut rig));
        assert_eq!(promtool(&page), "");
        let start = "portcullis_certificate_not_after_timestamp_seconds{";
        page.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect::<Vec<_>>()
    };
    let found = ends(&settings);
    assert!(found.len() == 1 && found[0].ends_with("} 3786912000"), "{found:?}");
    assert_eq!(ends(&format!("{HTTPS}\n{METRICS}")), Vec::<String>::new());
}

#[test]
fn what_is_wrong_with_who_may_read_is_said_without_the_password() {
    let rig = Rig::start();
    for (settings, expected) in [
        ("metrics_address: nowhere", "metrics_address: `nowhere` is not `host:port`"),
        ("metrics_basic_auth: geheim-geheim", "metrics_basic_auth: base64 of `user:password` was expected"),
        ("metrics_certificate_file: /nowhere.pem", "metrics_certificate_file: "),
        ("metrics_client_ca_file: /nowhere.pem", "metrics_client_ca_file: /nowhere.pem cannot be read"),
        ("metrics_client_ca: bm9uZQ==", "metrics_client_ca: "),
        (
            "metrics_basic_auth: dTpw\nmetrics_basic_auth_file: /x",
            "metrics_basic_auth is set too; set one of them",
        ),
    ] {
        let settings = if settings.contains("metrics_address") {
            settings.to_owned()
        } else {
            format!("{METRICS}\n{settings}")
        };
        let (_, said) = rig.check(&Setup { settings, ..Setup::default() });
        assert!(said.contains(expected) && !said.contains("geheim-geheim"), "{expected}: {said}");
    }
}

#[test]
fn ten_thousand_routes_do_not_make_the_page_long() {
    let mut routes = String::new();
    for number in 0..10_000 {
        routes.push_str(&format!(
            "\n  - from: http://application-number-{number}.department.localhost\n    name: The application with the number {number} of ten thousand\n    to: http://UPSTREAM\n    policy: [{{allow: {{or: [{{http_method: GET}}]}}}}]"
        ));
    }
    let mut rig = Rig::with(Setup {
        settings: format!("{METRICS}\nworkers: 2"),
        routes: format!("{routes}\n"),
        ..Setup::default()
    });
    let address = address(&mut rig);
    // Every route has been used, in two ways.
    let mut threads = Vec::new();
    for part in 0..8 {
        let target = rig.server.address;
        threads.push(std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(target).unwrap();
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            for number in (part..10_000).step_by(8) {
                for method in ["GET", "PUT"] {
                    // In one piece.
                    let request = format!("{method} / HTTP/1.1\r\nHost: application-number-{number}.department.localhost\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(request.as_bytes()).unwrap();
                    skip_answer(&mut reader);
                }
            }
        }));
    }
    for one in threads {
        one.join().unwrap();
    }
    let text = page(&address);
    assert!(text.len() < 5_000_000, "{}", text.len());
    assert!(text.matches("portcullis_requests_total{").count() > 15_000);
    println!(
        "{} bytes for {} series of requests",
        text.len(),
        text.matches("portcullis_requests_total{").count()
    );
    let total: f64 = text
        .lines()
        .filter(|line| line.starts_with("portcullis_requests_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(total, 20_000.0, "none is lost");
    assert_eq!(promtool(&text), "");
}

/// Reads an answer to its end.
fn skip_answer(reader: &mut impl std::io::BufRead) {
    let mut length = 0;
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
}

/// Prometheus itself, reading one page every half second; stopped when it is dropped.
struct Prometheus {
    child: std::process::Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let alerts = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/alerts.yaml");
        let settings = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\nrule_files: [{alerts}]\nscrape_configs:\n  - job_name: portcullis\n    static_configs: [{{targets: [\"{target}\"]}}]\n"
        );
        let path = directory.path().join("prometheus.yml");
        std::fs::write(&path, settings).unwrap();
        let port = crate::rig::free_port();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus: {error}; tests/run installs it"));
        Self { child, address, _directory: directory }
    }

    fn api(&self, target: &str) -> serde_json::Value {
        let Ok(mut stream) = std::net::TcpStream::connect(&self.address) else {
            return serde_json::Value::Null;
        };
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let request = format!("GET {target} HTTP/1.0\r\nHost: p\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let text = read_all(&mut stream);
        serde_json::from_str(text.split_once("\r\n\r\n").map_or("", |(_, body)| body)).unwrap_or_default()
    }

    /// How many series a query gives.
    fn ask(&self, query: &str) -> Result<usize, String> {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let answer = self.api(&format!("/api/v1/query?query={query}"));
        match answer["data"]["result"].as_array() {
            Some(series) => Ok(series.len()),
            None => Err(answer.to_string()),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_dashboards_queries_and_the_alerts_run_in_a_real_prometheus() {
    let mut rig = Rig::settings(METRICS);
    let prometheus = Prometheus::start(&address(&mut rig));
    let mut jane = rig.signed_in();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    // Until there are rates of everything that happens in every deployment.
    while prometheus.ask("rate(portcullis_sign_ins_total[10s])").unwrap_or_default() == 0
        || prometheus.ask("rate(portcullis_upstream_duration_seconds_count[10s]) > 0").unwrap_or_default()
            == 0
    {
        assert!(std::time::Instant::now() < until);
        jane.get("http://app.localhost/");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let text = include_str!("../../deploy/prometheus/dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let (mut asked, mut empty) = (0, Vec::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query =
                query.replace("$__rate_interval", "10s").replace("$job", ".*").replace("$instance", ".*");
            let series = prometheus.ask(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
            asked += 1;
            if series == 0 {
                empty.push(panel["title"].as_str().unwrap().to_owned());
            }
            // What is asked for is what there is.
            for name in query
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .filter(|one| one.starts_with("portcullis_"))
            {
                let name = name.strip_suffix("_bucket").unwrap_or(name);
                let documented = include_str!("../../deploy/metrics.md");
                assert!(documented.contains(&format!("`{name}`")), "{name}");
            }
        }
    }
    println!("{asked} queries; without an answer here: {empty:?}");
    assert!(asked > 30, "{asked}");
    // Nothing has failed, and no certificate is shown in cleartext.
    empty.retain(|title| {
        ![
            "Certificate that ends first",
            "Calls to a provider that failed",
            "Upstreams that did not answer",
            "Operations of the store that failed",
            "Routes that fail most",
            "Renewals",
            "Reloads, and records of the log that were dropped",
        ]
        .contains(&title.as_str())
    });
    assert!(empty.is_empty(), "{empty:?}");
    let rules = prometheus.api("/api/v1/rules");
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 10 && rules.iter().all(|rule| rule["health"] != "err"), "{rules:#?}");
}

#[test]
fn the_alerts_say_what_their_tests_expect() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");
    let done = Command::new("promtool")
        .args(["test", "rules", "alerts.test.yaml"])
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("promtool: {error}; tests/run installs it"));
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn routes_of_one_name_are_counted_together() {
    let route = |host: &str| {
        format!(
            "\n  - from: http://{host}.localhost\n    name: Both \"of\" them\n    to: http://UPSTREAM\n    allow_public_unauthenticated_access: true"
        )
    };
    let setup = Setup {
        settings: METRICS.into(),
        routes: format!("{}{}\n", route("one"), route("two")),
        ..Setup::default()
    };
    let mut rig = Rig::with(setup);
    let address = address(&mut rig);
    rig.server.get("one.localhost", "/", "");
    rig.server.get("two.localhost", "/", "");
    let text = page(&address);
    let series =
        "portcullis_requests_total{route=\"Both \\\"of\\\" them\",outcome=\"forwarded\",code=\"2xx\"}";
    assert_eq!(value(&text, series), 2.0);
    assert_eq!(text.matches("Both").count(), 1, "a series twice would be refused: {text}");
}

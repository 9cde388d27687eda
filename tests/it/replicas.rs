//! Several processes that share a store: real Redis.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::browser::Browser;
use crate::provider::Provider;
use crate::rig::{Server, Setup, configuration};
use crate::upstream::Upstream;

const SECRET: &str = "shared_secret: mPcUJzvJqnuzEGVTs0a2wF4Ds0GEMbpoQYFBdhfWGAU=";

/// Redis, killed when it is dropped. What it was given outlives it.
struct Redis {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let child = Self::spawn(port, directory.path());
        let redis = Self { child, port, directory };
        redis.wait();
        redis
    }

    fn spawn(port: u16, directory: &std::path::Path) -> Child {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--dir"])
            .arg(directory)
            .stdout(Stdio::null())
            .spawn();
        child.unwrap_or_else(|error| panic!("redis-server: {error}; tests/run installs it"))
    }

    fn wait(&self) {
        within(Duration::from_secs(5), || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.port, self.directory.path());
        self.wait();
    }

    fn cli(&self, words: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        let done = cli.args(["-p", &self.port.to_string()]).args(words).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three processes, and what they stand between.
struct Replicas {
    provider: Provider,
    upstream: Upstream,
    redis: Redis,
    all: Vec<Server>,
    directories: Vec<tempfile::TempDir>,
    setup: Setup,
}

impl Replicas {
    fn start(prepare: impl FnOnce(&Provider)) -> Self {
        let (provider, upstream, redis) = (Provider::start(), Upstream::start(), Redis::start());
        prepare(&provider);
        let setup = Setup {
            settings: format!(
                "{SECRET}\ndatabroker_storage_type: redis\ndatabroker_storage_connection_string: redis://127.0.0.1:{}/0",
                redis.port
            ),
            ..Setup::default()
        };
        let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let all = directories.iter().map(|directory| {
            let text = configuration(&setup, &provider, &upstream, directory.path());
            Server::start(&text, directory.path(), &[])
        });
        let all = all.collect();
        Self { provider, upstream, redis, all, directories, setup }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|server| server.address).collect()
    }

    /// A browser behind a balancer: each request goes to the next one.
    fn browser(&self) -> Browser {
        let mut browser = Browser::new(self.all[0].address, self.provider.address);
        browser.balanced = self.addresses();
        browser
    }

    fn signed_in(&self) -> Browser {
        let mut browser = self.browser();
        let page = browser.open("http://app.localhost/");
        assert_eq!((page.status, page.header("x-upstream")), (200, Some("yes")), "{page:?}");
        browser
    }

    /// What each of them answers.
    fn statuses(&self, target: &str, session: &str) -> Vec<u16> {
        self.all.iter().map(|server| server.get("app.localhost", target, session).status).collect()
    }
}

/// Until it holds; how long that took.
fn within(limit: Duration, holds: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}

#[test]
fn a_sign_in_begins_on_one_and_ends_on_another_and_a_sign_out_ends_it_on_all() {
    let replicas = Replicas::start(|_| ());
    let mut browser = replicas.signed_in();
    let session = browser.session("app.localhost");
    assert_eq!(replicas.statuses("/x", &session), [200; 3]);
    // A form that one of them kept is given back by another.
    let mut other = replicas.browser();
    let form = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://app.localhost\r\n";
    let answer = other.request("POST", "http://app.localhost/save", form, "a=1&b=two");
    let page = other.open(answer.header("location").unwrap());
    assert!(page.body.contains(r#"name="b" value="two""#), "{page:?}");

    let everywhere = browser.session("authenticate.localhost");
    browser.open("http://app.localhost/.pomerium/sign_out");
    let took = within(Duration::from_secs(1), || replicas.statuses("/x", &session) == [302; 3]);
    println!("dead on all after {took:?}");
    for server in &replicas.all {
        assert_eq!(server.get("authenticate.localhost", "/.pomerium/user", &everywhere).status, 302);
    }
    // The other person's session is not touched.
    assert_eq!(replicas.statuses("/x", &other.session("app.localhost")), [200; 3]);
}

#[test]
fn what_the_store_holds_is_sealed_and_ends_by_itself() {
    let replicas = Replicas::start(|_| ());
    let browser = replicas.signed_in();
    let keys = replicas.redis.cli(&["--scan"]);
    assert!(keys.contains("portcullis:session:") && keys.contains("portcullis:handle:"), "{keys}");
    for key in keys.lines().filter(|key| !key.contains("events")) {
        let value = replicas.redis.cli(&["get", key]);
        for secret in ["jane", "refresh", "eyJ", "example.com"] {
            assert!(!value.contains(secret), "{key}: {value}");
        }
        let left: i64 = replicas.redis.cli(&["pttl", key]).trim().parse().unwrap();
        assert!(left > 0, "{key} stays for ever");
    }
    let value = browser.cookies["app.localhost"]["__Host-_pomerium"].clone();
    assert!(!keys.contains(&value), "a cookie is not in the store");
}

#[test]
fn two_hundred_requests_to_three_processes_refresh_once() {
    let replicas = Replicas::start(|provider| {
        provider.set(|state| {
            state.lifetime = 2;
            state.rotate = true;
        });
    });
    let session = replicas.signed_in().session("app.localhost");
    let refreshes = || {
        let calls = replicas.provider.calls("/token");
        calls
            .iter()
            .filter(|call| call.form.get("grant_type").is_some_and(|kind| kind == "refresh_token"))
            .count()
    };
    // Until the tokens have expired.
    std::thread::sleep(Duration::from_millis(2200));
    let before = refreshes();
    replicas.provider.set(|state| state.lifetime = 3600);
    let (addresses, session) = (replicas.addresses(), session.as_str());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..200)
            .map(|number| {
                let server = &replicas.all[number % addresses.len()];
                scope.spawn(move || server.get("app.localhost", "/x", session).status)
            })
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(refreshes() - before, 1);
    assert_eq!(replicas.statuses("/x", session), [200; 3]);
    assert_eq!(refreshes() - before, 1);
}

#[test]
fn without_the_store_what_is_known_goes_on_and_nothing_else_does() {
    let mut replicas = Replicas::start(|_| ());
    let browser = replicas.signed_in();
    let known = browser.session("app.localhost");
    let unknown = browser.session("authenticate.localhost");
    assert_eq!(replicas.statuses("/x", &known), [200; 3]);
    replicas.upstream.forget();

    replicas.redis.kill();
    assert_eq!(replicas.statuses("/x", &known), [200; 3], "known to the processes");
    // Which host's handle was opened where depends on the balancer; one that was made just now is nowhere.
    let mut made = unknown.clone();
    let at = made.rfind('=').unwrap() + 1;
    made.replace_range(at..=at, if &made[at..=at] == "A" { "B" } else { "A" });
    let seen = replicas.upstream.seen();
    for status in replicas.statuses("/x", &made.replace("authenticate", "app")) {
        assert_eq!(status, 503);
    }
    assert_eq!(replicas.upstream.seen(), seen, "nobody else is let in");
    assert_eq!(replicas.statuses("/public", ""), [200; 3], "what is public needs no store");
    assert_eq!(replicas.statuses("/x", ""), [302; 3], "a sign-in can begin");

    replicas.redis.restart();
    within(Duration::from_secs(5), || {
        replicas.statuses("/x", &made.replace("authenticate", "app")) == [302; 3]
    });
    assert_eq!(replicas.statuses("/x", &known), [200; 3], "the session outlived it");
    let mut again = replicas.signed_in();
    let session = again.session("app.localhost");
    within(Duration::from_secs(5), || replicas.statuses("/x", &session) == [200; 3]);
    again.open("http://app.localhost/.pomerium/sign_out");
    within(Duration::from_secs(1), || replicas.statuses("/x", &session) == [302; 3]);
}

#[test]
fn a_process_that_is_killed_loses_nobody() {
    let mut replicas = Replicas::start(|_| ());
    let session = replicas.signed_in().session("app.localhost");
    for killed in 0..3 {
        replicas.all[killed].kill();
        let text = configuration(
            &replicas.setup,
            &replicas.provider,
            &replicas.upstream,
            replicas.directories[killed].path(),
        );
        for server in replicas.all.iter().enumerate().filter(|(at, _)| *at != killed).map(|(_, one)| one) {
            assert_eq!(server.get("app.localhost", "/x", &session).status, 200);
        }
        replicas.all[killed] = Server::start(&text, replicas.directories[killed].path(), &[]);
    }
    assert_eq!(replicas.statuses("/x", &session), [200; 3]);
}

//! Several processes that share a store: real Redis, real Valkey, real PostgreSQL.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::browser::Browser;
use crate::provider::Provider;
use crate::rig::{Server, Setup, configuration};
use crate::upstream::Upstream;

const SECRET: &str = "shared_secret: mPcUJzvJqnuzEGVTs0a2wF4Ds0GEMbpoQYFBdhfWGAU=";

/// A store that several processes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Redis,
    Valkey,
    Postgres,
}

/// Its server, killed when it is dropped. What it was given outlives it.
struct Shared {
    kind: Kind,
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

/// One of PostgreSQL's programs. It does not run as root.
fn postgres_program(name: &str) -> Command {
    let places = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = places.map(|version| version.path().join("bin").join(name)).find(|path| path.exists());
    let program = found.unwrap_or_else(|| name.into());
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

impl Shared {
    fn start(kind: Kind) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let port = crate::rig::free_port();
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        if kind == Kind::Postgres {
            let mut make = postgres_program("initdb");
            make.args(["-U", "portcullis", "-A", "trust", "--no-sync", "data"]).current_dir(directory.path());
            let made = make.output().unwrap_or_else(|error| panic!("initdb: {error}; tests/run installs it"));
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let child = Self::spawn(kind, port, directory.path());
        let shared = Self { kind, child, port, directory };
        shared.wait();
        shared
    }

    fn spawn(kind: Kind, port: u16, directory: &std::path::Path) -> Child {
        let port = port.to_string();
        let mut command = match kind {
            Kind::Redis | Kind::Valkey => {
                let program = if kind == Kind::Redis { "redis-server" } else { "valkey-server" };
                let mut redis = Command::new(program);
                redis.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"]);
                redis.args(["--appendfsync", "always", "--dir"]).arg(directory);
                redis
            }
            Kind::Postgres => {
                let mut postgres = postgres_program("postgres");
                postgres.args(["-D", "data", "-p", &port, "-c", "listen_addresses=127.0.0.1"]);
                postgres.args(["-c", "unix_socket_directories="]).current_dir(directory);
                postgres
            }
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        child.unwrap_or_else(|error| panic!("{kind:?}: {error}; tests/run installs it"))
    }

    fn wait(&self) {
        within(Duration::from_secs(10), || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && (self.kind != Kind::Postgres || self.psql("select 1").trim() == "1")
        });
    }

    fn connection(&self) -> String {
        match self.kind {
            Kind::Redis | Kind::Valkey => format!("redis://127.0.0.1:{}/0", self.port),
            Kind::Postgres => format!("postgres://portcullis@127.0.0.1:{}/postgres", self.port),
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.kind, self.port, self.directory.path());
        self.wait();
    }

    fn cli(&self, words: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        let done = cli.args(["-p", &self.port.to_string()]).args(words).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn psql(&self, statement: &str) -> String {
        let done = postgres_program("psql")
            .args([
                "-At",
                "-h",
                "127.0.0.1",
                "-U",
                "portcullis",
                "-p",
                &self.port.to_string(),
                "-c",
                statement,
                "postgres",
            ])
            .current_dir("/")
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three processes, and what they stand between.
struct Replicas {
    provider: Provider,
    upstream: Upstream,
    store: Shared,
    all: Vec<Server>,
    directories: Vec<tempfile::TempDir>,
    setup: Setup,
}

impl Replicas {
    fn start(kind: Kind, prepare: impl FnOnce(&Provider)) -> Self {
        let (provider, upstream, store) = (Provider::start(), Upstream::start(), Shared::start(kind));
        prepare(&provider);
        let setup = Setup {
            settings: format!(
                "{SECRET}\ndatabroker_storage_type: {}\ndatabroker_storage_connection_string: {}",
                if kind == Kind::Postgres { "postgres" } else { "redis" },
                store.connection()
            ),
            ..Setup::default()
        };
        let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let all = directories.iter().map(|directory| {
            let text = configuration(&setup, &provider, &upstream, directory.path());
            Server::start(&text, directory.path(), &[])
        });
        let all = all.collect();
        Self { provider, upstream, store, all, directories, setup }
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

fn a_sign_in_begins_on_one_and_ends_on_another_and_a_sign_out_ends_it_on_all(kind: Kind) {
    let replicas = Replicas::start(kind, |_| ());
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
    // What lasts on each of them ends too.
    replicas.upstream.answer("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello");
    let lasting: Vec<_> = replicas
        .all
        .iter()
        .map(|server| {
            let mut stream = server.connect();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let request = format!("GET /events HTTP/1.1\r\nHost: app.localhost\r\n{session}\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut part = [0; 4096];
            while !part.windows(5).any(|five| five == b"hello") {
                assert!(stream.read(&mut part).unwrap() > 0);
            }
            stream
        })
        .collect();
    browser.open("http://app.localhost/.pomerium/sign_out");
    for mut stream in lasting {
        let error = stream.read_to_end(&mut Vec::new()).err().map(|error| error.kind());
        assert_ne!(error, Some(std::io::ErrorKind::WouldBlock), "it is still open");
    }
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
    let replicas = Replicas::start(Kind::Redis, |_| ());
    let browser = replicas.signed_in();
    let keys = replicas.store.cli(&["--scan"]);
    assert!(keys.contains(":session:") && keys.contains(":handle:") && keys.contains(":tagged:"), "{keys}");
    for key in keys.lines().filter(|key| !key.contains("events")) {
        let value = match key {
            tagged if tagged.contains(":tagged:") => replicas.store.cli(&["smembers", key]),
            sessions if sessions.ends_with(":sessions") => replicas.store.cli(&["zrange", key, "0", "-1"]),
            _ => replicas.store.cli(&["get", key]),
        };
        assert!(!value.contains("WRONGTYPE"), "{key}: {value}");
        for secret in ["jane-1", "refresh", "example.com"] {
            assert!(!value.contains(secret), "{key}: {value}");
        }
        assert_eq!(replicas.provider.token_within(&value), None, "{key}: {value}");
        let left: i64 = replicas.store.cli(&["pttl", key]).trim().parse().unwrap();
        assert!(left > 0, "{key} stays for ever");
    }
    let value = browser.cookies["app.localhost"]["__Host-_pomerium"].clone();
    assert!(!keys.contains(&value), "a cookie is not in the store");
}

fn two_hundred_requests_to_three_processes_refresh_once(kind: Kind) {
    let replicas = Replicas::start(kind, |provider| {
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

fn without_the_store_what_is_known_goes_on_and_nothing_else_does(kind: Kind) {
    let mut replicas = Replicas::start(kind, |_| ());
    let browser = replicas.signed_in();
    let known = browser.session("app.localhost");
    let unknown = browser.session("authenticate.localhost");
    assert_eq!(replicas.statuses("/x", &known), [200; 3]);
    replicas.upstream.forget();

    replicas.store.kill();
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

    replicas.store.restart();
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

fn a_process_that_is_killed_loses_nobody(kind: Kind) {
    let mut replicas = Replicas::start(kind, |_| ());
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

#[test]
fn what_postgres_holds_is_sealed() {
    let replicas = Replicas::start(Kind::Postgres, |_| ());
    replicas.signed_in();
    let all = replicas.store.psql(
        "select convert_from(record, 'utf8') from portcullis.sessions union all \
         select convert_from(record, 'utf8') from portcullis.handles",
    );
    assert!(all.lines().count() >= 3, "{all}");
    for secret in ["jane-1", "refresh", "example.com"] {
        assert!(!all.contains(secret), "{all}");
    }
    assert_eq!(replicas.provider.token_within(&all), None, "{all}");
}

/// Each of these, with each store.
macro_rules! with_each_store {
    ($($test:ident)*) => {
        mod redis {
            $(#[test] fn $test() { super::$test(super::Kind::Redis) })*
        }
        mod valkey {
            $(#[test] fn $test() { super::$test(super::Kind::Valkey) })*
        }
        mod postgres {
            $(#[test] fn $test() { super::$test(super::Kind::Postgres) })*
        }
    };
}

with_each_store! {
    a_sign_in_begins_on_one_and_ends_on_another_and_a_sign_out_ends_it_on_all
    two_hundred_requests_to_three_processes_refresh_once
    without_the_store_what_is_known_goes_on_and_nothing_else_does
    a_process_that_is_killed_loses_nobody
}

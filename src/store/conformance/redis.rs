//! The suite against Redis, and against Valkey, which speaks the same.

use super::*;
use crate::clock::Clock;
use crate::crypto;

/// A server of its own, killed when it is dropped.
struct Redis {
    child: std::process::Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    /// Starts one of these; `more` are further settings, with `DIR` for its directory and `PORT` for its port.
    fn start(program: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let base = format!("bind 127.0.0.1\ndir DIR\nsave \"\"\n{more}");
        let text =
            base.replace("DIR", &directory.path().display().to_string()).replace("PORT", &port.to_string());
        let file = directory.path().join("redis.conf");
        std::fs::write(&file, text).unwrap();
        let mut redis = std::process::Command::new(program);
        if more.contains("sentinel monitor") {
            redis.arg(&file).arg("--sentinel");
        } else {
            redis.arg(&file);
        }
        let child = redis.stdout(std::process::Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
        let server = Self { child, port, _directory: directory };
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{program} does not listen");
    }
}

fn redis(connection: &str, roots: Option<&[u8]>) -> RedisStore {
    RedisStore::new(connection, roots, Clock::held_at(NOW)).unwrap()
}

async fn with_a_password(program: &str) {
    let server = Redis::start(program, "port PORT\nrequirepass open-sesame");
    all(&redis(&format!("redis://:open-sesame@127.0.0.1:{}/3", server.port), None), true).await;
    let wrong = redis(&format!("redis://:wrong@127.0.0.1:{}/3", server.port), None);
    let error = wrong.session(Id::random(), NOW).await.unwrap_err().to_string();
    assert!(!error.contains("wrong@"), "{error}");
}

async fn over_tls(program: &str) {
    crypto::install().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("cert"), made.cert.pem()).unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    let server = Redis::start(
        program,
        &format!(
            "port 0\ntls-port PORT\ntls-cert-file {}\ntls-key-file {}\ntls-auth-clients no",
            path("cert"),
            path("key")
        ),
    );
    let url = format!("rediss://localhost:{}/0", server.port);
    all(&redis(&url, Some(made.cert.pem().as_bytes())), true).await;
    assert!(redis(&url, None).session(Id::random(), NOW).await.is_err(), "an unknown certificate");
}

async fn cluster(program: &str) {
    let server = Redis::start(program, "port PORT\ncluster-enabled yes");
    let slots = ["-p", &server.port.to_string(), "cluster", "addslotsrange", "0", "16383"].map(str::to_owned);
    assert!(std::process::Command::new("redis-cli").args(slots).output().unwrap().status.success());
    let store = redis(&format!("redis+cluster://127.0.0.1:{}", server.port), None);
    for left in (0..100).rev() {
        if store.session(Id::random(), NOW).await.is_ok() {
            break;
        }
        assert!(left > 0, "the cluster does not come up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    all(&store, true).await;
}

async fn sentinel_finds_the_next_primary(program: &str) {
    let primary = Redis::start(program, "port PORT\nrepl-diskless-sync-delay 0");
    let replica = Redis::start(program, &format!("port PORT\nreplicaof 127.0.0.1 {}", primary.port));
    let sentinel = Redis::start(
        program,
        &format!(
            "port PORT\nsentinel monitor mine 127.0.0.1 {} 1\nsentinel down-after-milliseconds mine 500\n\
         sentinel failover-timeout mine 2000",
            primary.port
        ),
    );
    let store = redis(&format!("redis+sentinel://127.0.0.1:{}/mine", sentinel.port), None);
    all(&store, true).await;
    let record = session(LATER);
    store.insert(record.clone(), handle(&record, "a.test")).await.unwrap();
    let cli = |port: u16, words: &[&str]| {
        let mut cli = std::process::Command::new("redis-cli");
        let done = cli.args(["-p", &port.to_string()]).args(words).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    // A sentinel hears of replicas every ten seconds, and a replica is one once it has everything.
    let knows = || {
        !cli(sentinel.port, &["sentinel", "replicas", "mine"]).trim().is_empty()
            && cli(replica.port, &["role"]).contains("connected")
    };
    for left in (0..300).rev() {
        if knows() {
            break;
        }
        assert!(left > 0, "the sentinel does not hear of the replica");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(primary);
    assert!(store.session(record.id, NOW).await.is_err(), "there is no primary now");
    let mut found = store.session(record.id, NOW).await;
    for _ in 0..100 {
        if found.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        found = store.session(record.id, NOW).await;
    }
    assert_eq!(found.unwrap(), Some(record.clone()));
    assert!(store.end(record.id).await.unwrap());
}

/// Each of these, with each server.
macro_rules! on_each_server {
    ($($server:ident: $program:literal),*) => {$(
        mod $server {
            #[tokio::test]
            async fn with_a_password() {
                super::with_a_password($program).await;
            }

            #[tokio::test]
            async fn over_tls() {
                super::over_tls($program).await;
            }

            #[tokio::test]
            async fn cluster() {
                super::cluster($program).await;
            }

            #[tokio::test]
            async fn sentinel_finds_the_next_primary() {
                super::sentinel_finds_the_next_primary($program).await;
            }
        }
    )*};
}

on_each_server! { redis_server: "redis-server", valkey_server: "valkey-server" }

#[test]
fn a_connection_string_that_means_nothing_is_refused() {
    for (text, part) in [
        ("localhost:6379", "redis://host"),
        ("http://localhost", "is not redis://"),
        ("redis+sentinel://localhost", "the name of the service"),
        ("redis+sentinel://localhost/mine/x", "is not a database"),
        ("redis+other://localhost", "is not +sentinel or +cluster"),
    ] {
        let Err(error) = RedisStore::new(text, None, Clock::system()) else { panic!("{text}") };
        assert!(error.contains(part), "{text}: {error}");
    }
}

//! The suite against PostgreSQL.

use super::*;
use crate::crypto;

/// A server of its own, killed when it is dropped.
struct Postgres {
    child: std::process::Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of PostgreSQL's programs. It does not run as root.
fn postgres_program(name: &str) -> std::process::Command {
    let places = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = places.map(|version| version.path().join("bin").join(name)).find(|path| path.exists());
    let program = found.unwrap_or_else(|| name.into());
    let is_root = std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !is_root {
        return std::process::Command::new(program);
    }
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

impl Postgres {
    fn start(more: &[&str]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = directory.path().join("data");
        let made = postgres_program("initdb")
            .args(["-U", "portcullis", "-A", "scram-sha-256", "--no-sync", "--pwfile"])
            .arg({
                let file = directory.path().join("password");
                std::fs::write(&file, "open-sesame").unwrap();
                file
            })
            .arg(&data)
            .current_dir(directory.path())
            .output();
        let made = made.unwrap_or_else(|error| panic!("initdb: {error}; tests/run installs it"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let child = postgres_program("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .args(["-c", "unix_socket_directories="])
            .args(more)
            .current_dir(directory.path())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port, directory };
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("PostgreSQL does not listen");
    }
}

/// Until it takes connections.
async fn up(store: &PostgresStore) {
    for left in (0..100).rev() {
        match store.position().await {
            Ok(_) => return,
            Err(error) => assert!(left > 0, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn with_a_password() {
    crypto::install().unwrap();
    let server = Postgres::start(&[]);
    let closed = free_port();
    // The first host is down: the next one is taken.
    let url = format!(
        "postgres://portcullis:open-sesame@127.0.0.1:{closed},127.0.0.1:{}/postgres?sslmode=disable",
        server.port
    );
    let store = PostgresStore::new(&url, None).unwrap();
    up(&store).await;
    all(&store, false).await;
    // The schema is made once, by however many begin at once.
    let many: Vec<_> = (0..8).map(|_| PostgresStore::new(&url, None).unwrap()).collect();
    let begun: Vec<_> = many.iter().map(Store::position).collect();
    for one in begun {
        one.await.unwrap();
    }
    let wrong = PostgresStore::new(&url.replace("open-sesame", "wrong"), None).unwrap();
    let error = wrong.position().await.unwrap_err().to_string();
    assert!(error.contains("password authentication failed") && !error.contains("wrong@"), "{error}");
}

/// Those who make the schema do not get into the way of those who work already.
#[tokio::test]
async fn takes_many_who_begin_at_once() {
    crypto::install().unwrap();
    let server = Postgres::start(&[]);
    let url = format!("postgres://portcullis:open-sesame@127.0.0.1:{}/postgres?sslmode=disable", server.port);
    for left in (0..100).rev() {
        let mut ready = postgres_program("pg_isready");
        ready.args(["-h", "127.0.0.1", "-p", &server.port.to_string()]).current_dir("/");
        if ready.output().unwrap().status.success() {
            break;
        }
        assert!(left > 0, "PostgreSQL does not come up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut all = tokio::task::JoinSet::new();
    for late in 0..5 {
        let url = url.clone();
        all.spawn(async move {
            tokio::time::sleep(Duration::from_millis(10 * late)).await;
            let store = std::sync::Arc::new(PostgresStore::new(&url, None).unwrap());
            let mut some = tokio::task::JoinSet::new();
            for _ in 0..12 {
                let store = store.clone();
                some.spawn(async move {
                    let record = session(LATER);
                    store.insert(record.clone(), handle(&record, "a.test")).await.unwrap();
                    assert!(store.end(record.id).await.unwrap());
                });
            }
            some.join_all().await;
        });
    }
    all.join_all().await;
    // One who ran into another is tried again, and would not be missed.
    let counted = PostgresStore::new(&url, None).unwrap().deadlocks().await;
    assert_eq!(counted, 0);
}

#[tokio::test]
async fn over_tls() {
    crypto::install().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    std::fs::write(path("cert"), made.cert.pem()).unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    for (name, mode) in [("cert", "644"), ("key", "600")] {
        let done = std::process::Command::new("chmod").args([mode, &path(name)]).status().unwrap();
        assert!(done.success());
        // As root the key belongs to the server's user.
        let _ = std::process::Command::new("chown")
            .args(["postgres", &path(name)])
            .stderr(std::process::Stdio::null())
            .status();
    }
    let (cert, key) = (format!("ssl_cert_file={}", path("cert")), format!("ssl_key_file={}", path("key")));
    let server = Postgres::start(&["-c", "ssl=on", "-c", &cert, "-c", &key]);
    let url =
        format!("postgres://portcullis:open-sesame@localhost:{}/postgres?sslmode=verify-full", server.port);
    let store = PostgresStore::new(&url, Some(made.cert.pem().as_bytes())).unwrap();
    up(&store).await;
    all(&store, false).await;
    let unknown = PostgresStore::new(&url, None).unwrap();
    assert!(unknown.position().await.is_err(), "an unknown certificate");
    let elsewhere = url.replace("localhost", "127.0.0.1");
    let elsewhere = PostgresStore::new(&elsewhere, Some(made.cert.pem().as_bytes())).unwrap();
    assert!(elsewhere.position().await.is_err(), "a certificate for another name");
    assert!(server.directory.path().exists());
}

#[test]
fn a_connection_string_that_means_nothing_is_refused_without_the_password() {
    for text in ["localhost", "postgres://user:secret-word@", "postgres://user:secret-word@host:port/x", ""] {
        let Err(error) = PostgresStore::new(text, None) else { panic!("{text}") };
        assert!(!error.contains("secret-word") && error.contains("postgres://"), "{text}: {error}");
    }
}

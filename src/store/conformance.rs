//! What every store must do, run against each of them.

use std::time::Duration;

use super::*;
use crate::clock::Clock;

const NOW: Timestamp = Timestamp::from_unix_seconds(1_000);
const LATER: Timestamp = Timestamp::from_unix_seconds(2_000);

fn session(expires: Timestamp) -> SessionRecord {
    SessionRecord {
        id: Id::random(),
        revision: 1,
        created: NOW,
        expires,
        tags: Tags { subject: Tag([1; 32]), provider_session: Some(Tag([2; 32])), email: None },
        label: None,
        sealed: vec![0, 159, 146, 150],
    }
}

fn handle(session: &SessionRecord, host: &str) -> HandleRecord {
    HandleRecord {
        id: Id::random(),
        session: session.id,
        host: host.into(),
        expires: session.expires,
        sealed: vec![7; 60],
    }
}

async fn a_session_comes_back_as_it_was_put(store: &dyn Store) {
    let record = session(LATER);
    let first = handle(&record, "a.test");
    store.insert(record.clone(), first.clone()).await.unwrap();
    assert_eq!(store.load(first.id, NOW).await.unwrap(), Some((first, record.clone())));
    assert_eq!(store.session(record.id, NOW).await.unwrap(), Some(record));
    assert_eq!(store.load(Id::random(), NOW).await.unwrap(), None);
}

async fn ending_a_session_ends_every_handle_and_no_other_session(store: &dyn Store) {
    let (one, two) = (session(LATER), session(LATER));
    let handles = [handle(&one, "a.test"), handle(&one, "b.test"), handle(&two, "a.test")];
    store.insert(one.clone(), handles[0].clone()).await.unwrap();
    store.insert(two.clone(), handles[2].clone()).await.unwrap();
    assert!(store.add_handle(handles[1].clone(), NOW).await.unwrap());
    assert!(store.end(one.id).await.unwrap());
    assert!(!store.end(one.id).await.unwrap());
    assert_eq!(store.load(handles[0].id, NOW).await.unwrap(), None);
    assert_eq!(store.load(handles[1].id, NOW).await.unwrap(), None);
    assert!(store.load(handles[2].id, NOW).await.unwrap().is_some());
    assert!(!store.add_handle(handle(&one, "c.test"), NOW).await.unwrap());
}

async fn what_has_expired_is_not_there_and_is_swept(store: &dyn Store, by_itself: bool) {
    let record = session(NOW + Duration::from_secs(10));
    let first = handle(&record, "a.test");
    let key = Id::random();
    store.insert(record.clone(), first.clone()).await.unwrap();
    store.keep(key, vec![1], NOW + Duration::from_secs(10), Keep::HandOff).await.unwrap();
    let after = NOW + Duration::from_secs(10);
    assert_eq!(store.load(first.id, after).await.unwrap(), None);
    assert_eq!(store.session(record.id, after).await.unwrap(), None);
    assert!(!store.add_handle(handle(&record, "b.test"), after).await.unwrap());
    if by_itself {
        // It removes by its own clock, and nobody else is to do so.
        assert_eq!(store.take(key, after).await.unwrap(), None);
        return;
    }
    assert!(store.sweep(after).await.unwrap() >= 3);
    assert_eq!(store.load(first.id, NOW).await.unwrap(), None);
    assert_eq!(store.take(key, NOW).await.unwrap(), None);
}

async fn only_the_next_revision_replaces(store: &dyn Store) {
    let record = session(LATER);
    store.insert(record.clone(), handle(&record, "a.test")).await.unwrap();
    let next = SessionRecord { revision: 2, sealed: vec![9], ..record.clone() };
    assert!(store.replace(next.clone()).await.unwrap());
    assert!(!store.replace(SessionRecord { sealed: vec![8], ..next.clone() }).await.unwrap());
    assert!(!store.replace(SessionRecord { revision: 4, ..next.clone() }).await.unwrap());
    assert_eq!(store.session(record.id, NOW).await.unwrap(), Some(next.clone()));
    store.end(record.id).await.unwrap();
    assert!(!store.replace(SessionRecord { revision: 3, ..next }).await.unwrap());
    assert_eq!(store.session(record.id, NOW).await.unwrap(), None);
}

async fn a_kept_thing_is_taken_once(store: &dyn Store) {
    let key = Id::random();
    store.keep(key, b"x".to_vec(), LATER, Keep::HandOff).await.unwrap();
    let takers = (0..8).map(|_| store.take(key, NOW));
    let mut taken = 0;
    for taker in takers {
        taken += usize::from(taker.await.unwrap().is_some());
    }
    assert_eq!(taken, 1);
    store.keep(key, b"x".to_vec(), LATER, Keep::HandOff).await.unwrap();
    assert_eq!(store.take(key, LATER).await.unwrap(), None);
}

/// What waits is bounded, and does not crowd out hand-offs.
async fn people_who_never_sign_in_cannot_fill_it(store: &dyn Store) {
    let piece = 256 * 1024;
    let mut kept = 0;
    while store.keep(Id::random(), vec![0; piece], LATER, Keep::Waiting).await.is_ok() {
        kept += 1;
        assert!(kept < 1000, "it takes everything");
    }
    assert!(matches!(
        store.keep(Id::random(), vec![0; piece], LATER, Keep::Waiting).await,
        Err(StoreError::Full)
    ));
    let key = Id::random();
    store.keep(key, b"x".to_vec(), LATER, Keep::HandOff).await.unwrap();
    assert!(store.take(key, NOW).await.unwrap().is_some());
    store.sweep(LATER).await.unwrap();
    store.keep(key, vec![0; piece], LATER + Duration::from_secs(1), Keep::Waiting).await.unwrap();
    assert!(store.take(key, LATER).await.unwrap().is_some());
    assert!(store.take(key, LATER).await.unwrap().is_none());
}

async fn a_session_is_found_by_whose_it_is_and_listed(store: &dyn Store) {
    let tag = |of: &Id| Tag(crypto::sha256(&of.0));
    let (person, at_provider) = (Id::random(), Id::random());
    let mut all = Vec::new();
    for number in 0..3 {
        let mut record = session(LATER);
        record.tags.subject = tag(&person);
        record.tags.provider_session = (number == 1).then(|| tag(&at_provider));
        record.label = (number == 2).then(|| "ci".to_owned());
        store.insert(record.clone(), handle(&record, "a.test")).await.unwrap();
        all.push(record);
    }
    let sorted = |mut records: Vec<SessionRecord>| {
        records.sort_by_key(|record| record.id);
        records
    };
    assert_eq!(sorted(store.find(tag(&person), NOW).await.unwrap()), sorted(all.clone()));
    assert_eq!(store.find(tag(&at_provider), NOW).await.unwrap(), [all[1].clone()]);
    assert_eq!(store.find(tag(&Id::random()), NOW).await.unwrap(), []);
    assert_eq!(store.find(tag(&person), LATER).await.unwrap(), []);
    assert!(store.end(all[0].id).await.unwrap());
    assert_eq!(sorted(store.find(tag(&person), NOW).await.unwrap()), sorted(all[1..].to_vec()));
    let (mut from, mut listed) = (None, Vec::new());
    loop {
        let page = store.list(from, NOW).await.unwrap();
        listed.extend(page.records);
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert!(all[1..].iter().all(|record| listed.contains(record)) && !listed.contains(&all[0]));
    // More than one page.
    for _ in 0..1100 {
        let record = session(LATER);
        store.insert(record.clone(), handle(&record, "a.test")).await.unwrap();
    }
    let (mut from, mut ids) = (None, std::collections::HashSet::new());
    loop {
        let page = store.list(from, NOW).await.unwrap();
        ids.extend(page.records.iter().map(|record| record.id));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(ids.len(), listed.len() + 1100);
}

async fn the_last_use_is_the_latest_that_was_told(store: &dyn Store) {
    let record = session(LATER);
    store.insert(record.clone(), handle(&record, "a.test")).await.unwrap();
    assert_eq!(store.last_used(record.id).await.unwrap(), None);
    for (told, known) in [(20, 20), (10, 20), (30, 30)] {
        store.touch(vec![(record.id, NOW + Duration::from_secs(told))]).await.unwrap();
        assert_eq!(store.last_used(record.id).await.unwrap(), Some(NOW + Duration::from_secs(known)));
    }
}

async fn a_key_is_said_first_by_one(store: &dyn Store) {
    let key = Id::random();
    let mut first = 0;
    for _ in 0..4 {
        first += usize::from(store.first(key, LATER, NOW).await.unwrap());
    }
    assert_eq!(first, 1);
    assert!(store.first(Id::random(), LATER, NOW).await.unwrap());
}

/// What one process does, another hears of, in order, and from where it was.
async fn others_hear_of_ends_and_changes(store: &dyn Store) {
    if !store.is_shared() {
        return;
    }
    let start = store.position().await.unwrap();
    let (one, two) = (session(LATER), session(LATER));
    for record in [&one, &two] {
        store.insert(record.clone(), handle(record, "a.test")).await.unwrap();
    }
    assert!(store.replace(SessionRecord { revision: 2, ..two.clone() }).await.unwrap());
    store.end(one.id).await.unwrap();
    let news = store.news(&start).await.unwrap();
    assert_eq!(news.events, [Event::Changed(two.id), Event::Ended(one.id)]);
    assert_eq!(store.position().await.unwrap(), news.position);
    assert_eq!(store.news(&news.position).await.unwrap().events, []);
    // Whoever waits hears at once.
    let (heard, ended) = tokio::join!(store.news(&news.position), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        store.end(two.id).await
    });
    ended.unwrap();
    assert_eq!(heard.unwrap().events, [Event::Ended(two.id)]);
    assert_eq!(store.missing(vec![one.id, two.id]).await.unwrap(), [one.id, two.id]);
    // Replacing twice is replacing once: an answer that was lost is asked for again.
    store.insert(one.clone(), handle(&one, "a.test")).await.unwrap();
    let next = SessionRecord { revision: 2, ..one.clone() };
    assert!(store.replace(next.clone()).await.unwrap());
    assert!(store.replace(next).await.unwrap());
    assert_eq!(store.missing(vec![one.id, two.id]).await.unwrap(), [two.id]);
}

async fn a_lease_is_one_process_own_until_it_is_given_back_or_over(store: &dyn Store) {
    let id = Id::random();
    let lease = store.lease(id, Duration::from_secs(60)).await.unwrap().unwrap();
    if store.is_shared() {
        assert_eq!(store.lease(id, Duration::from_secs(60)).await.unwrap(), None);
    }
    assert!(store.lease(Id::random(), Duration::from_secs(60)).await.unwrap().is_some());
    store.release(lease).await.unwrap();
    let short = store.lease(id, Duration::from_millis(100)).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let next = store.lease(id, Duration::from_secs(60)).await.unwrap().unwrap();
    // Whoever had it has it no more, and cannot give away what is another one's.
    store.release(short).await.unwrap();
    if store.is_shared() {
        assert_eq!(store.lease(id, Duration::from_secs(60)).await.unwrap(), None);
    }
    store.release(next).await.unwrap();
}

/// `by_itself`: what has expired goes without being swept.
async fn all(store: &dyn Store, by_itself: bool) {
    others_hear_of_ends_and_changes(store).await;
    a_lease_is_one_process_own_until_it_is_given_back_or_over(store).await;
    a_session_comes_back_as_it_was_put(store).await;
    ending_a_session_ends_every_handle_and_no_other_session(store).await;
    what_has_expired_is_not_there_and_is_swept(store, by_itself).await;
    only_the_next_revision_replaces(store).await;
    a_kept_thing_is_taken_once(store).await;
    a_key_is_said_first_by_one(store).await;
    the_last_use_is_the_latest_that_was_told(store).await;
    a_session_is_found_by_whose_it_is_and_listed(store).await;
    people_who_never_sign_in_cannot_fill_it(store).await;
}

#[tokio::test]
async fn memory() {
    all(&MemoryStore::new(), false).await;
}

#[tokio::test]
async fn file() {
    let directory = tempfile::tempdir().unwrap();
    all(&FileStore::open(&directory.path().join("sessions.redb")).unwrap(), false).await;
}

#[tokio::test]
async fn a_file_is_read_again_and_belongs_to_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions.redb");
    let record = session(LATER);
    let first = handle(&record, "a.test");
    let store = FileStore::open(&path).unwrap();
    store.insert(record.clone(), first.clone()).await.unwrap();
    assert!(FileStore::open(&path).is_err());
    drop(store);
    let store = FileStore::open(&path).unwrap();
    assert_eq!(store.load(first.id, NOW).await.unwrap(), Some((first, record)));
}

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

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Redis {
    /// Starts one; `more` are further settings, with `DIR` for its directory and `PORT` for its port.
    fn start(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let base = format!("bind 127.0.0.1\ndir DIR\nsave \"\"\n{more}");
        let text =
            base.replace("DIR", &directory.path().display().to_string()).replace("PORT", &port.to_string());
        let file = directory.path().join("redis.conf");
        std::fs::write(&file, text).unwrap();
        let mut redis = std::process::Command::new("redis-server");
        if more.contains("sentinel monitor") {
            redis.arg(&file).arg("--sentinel");
        } else {
            redis.arg(&file);
        }
        let child = redis.stdout(std::process::Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("redis-server: {error}; tests/run installs it"));
        let server = Self { child, port, _directory: directory };
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("redis-server does not listen");
    }
}

fn redis(connection: &str, roots: Option<&[u8]>) -> RedisStore {
    RedisStore::new(connection, roots, Clock::held_at(NOW)).unwrap()
}

#[tokio::test]
async fn redis_with_a_password() {
    let server = Redis::start("port PORT\nrequirepass open-sesame");
    all(&redis(&format!("redis://:open-sesame@127.0.0.1:{}/3", server.port), None), true).await;
    let wrong = redis(&format!("redis://:wrong@127.0.0.1:{}/3", server.port), None);
    let error = wrong.session(Id::random(), NOW).await.unwrap_err().to_string();
    assert!(!error.contains("wrong@"), "{error}");
}

#[tokio::test]
async fn redis_over_tls() {
    crypto::install().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("cert"), made.cert.pem()).unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    let server = Redis::start(&format!(
        "port 0\ntls-port PORT\ntls-cert-file {}\ntls-key-file {}\ntls-auth-clients no",
        path("cert"),
        path("key")
    ));
    let url = format!("rediss://localhost:{}/0", server.port);
    all(&redis(&url, Some(made.cert.pem().as_bytes())), true).await;
    assert!(redis(&url, None).session(Id::random(), NOW).await.is_err(), "an unknown certificate");
}

#[tokio::test]
async fn redis_cluster() {
    let server = Redis::start("port PORT\ncluster-enabled yes");
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

#[tokio::test]
async fn redis_sentinel_finds_the_next_primary() {
    let primary = Redis::start("port PORT\nrepl-diskless-sync-delay 0");
    let replica = Redis::start(&format!("port PORT\nreplicaof 127.0.0.1 {}", primary.port));
    let sentinel = Redis::start(&format!(
        "port PORT\nsentinel monitor mine 127.0.0.1 {} 1\nsentinel down-after-milliseconds mine 500\n\
         sentinel failover-timeout mine 2000",
        primary.port
    ));
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
async fn postgres_with_a_password() {
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
async fn postgres_takes_many_who_begin_at_once() {
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
async fn postgres_over_tls() {
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
fn a_connection_string_for_postgres_that_means_nothing_is_refused_without_the_password() {
    for text in ["localhost", "postgres://user:secret-word@", "postgres://user:secret-word@host:port/x", ""] {
        let Err(error) = PostgresStore::new(text, None) else { panic!("{text}") };
        assert!(!error.contains("secret-word") && error.contains("postgres://"), "{text}: {error}");
    }
}

//! Session stores: operations a second with 64 under way at once, and how long one takes.
//!
//!     cargo bench --bench stores -- [redis://… | postgres://…]…
//!
//! Memory and a file are always measured; `tests/endurance/throughput` starts the servers for the others.
#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a program for people who measure"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::clock::{Clock, Timestamp};
use portcullis::crypto;
use portcullis::store::{
    FileStore, HandleRecord, Id, MemoryStore, PostgresStore, RedisStore, SessionRecord, Store, StoreError,
    Tag, Tags,
};

/// So many operations are under way at once.
const AT_ONCE: usize = 64;
/// So many of each kind are measured.
const EACH: usize = 6400;
/// About what a session of Cognito's with three tokens takes when it is sealed.
const SEALED: usize = 4096;

fn records(clock: &Clock) -> (SessionRecord, HandleRecord) {
    let now = clock.now();
    let expires = now + Duration::from_secs(3600);
    let (id, tag) = (Id::random(), || Tag(crypto::random()));
    let tags = Tags { subject: tag(), provider_session: Some(tag()), email: Some(tag()) };
    let session =
        SessionRecord { id, revision: 1, created: now, expires, tags, label: None, sealed: vec![7; SEALED] };
    let host = "app.example.com".into();
    (session, HandleRecord { id: Id::random(), session: id, host, expires, sealed: vec![7; 60] })
}

/// Runs an operation on each of some things, many at once; operations a second, and the median and the 99th percentile.
async fn measure<T, F>(
    things: &[T],
    operation: impl Fn(Arc<dyn Store>, T) -> F,
    store: &Arc<dyn Store>,
) -> String
where
    T: Clone + Send + 'static,
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let began = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for part in things.chunks(things.len().div_ceil(AT_ONCE)) {
        let jobs: Vec<_> = part.iter().map(|thing| operation(store.clone(), thing.clone())).collect();
        all.spawn(async move {
            let mut times = Vec::with_capacity(jobs.len());
            for job in jobs {
                let began = Instant::now();
                job.await.expect("the store works");
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = all.join_all().await.into_iter().flatten().collect();
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1000.0;
    format!("{rate:8.0}/s {:6.2} {:6.2} ms", at(50), at(99))
}

async fn measure_store(name: &str, store: Arc<dyn Store>) {
    let clock = Clock::system();
    let now: Timestamp = clock.now();
    let things: Vec<_> = (0..EACH).map(|_| records(&clock)).collect();
    let insert = measure(
        &things,
        |store, (session, handle)| async move { store.insert(session, handle).await },
        &store,
    );
    let insert = insert.await;
    let load = measure(
        &things,
        move |store, (_, handle)| async move { store.load(handle.id, now).await.map(drop) },
        &store,
    );
    let load = load.await;
    let replace = measure(
        &things,
        |store, (session, _)| async move {
            let replaced = store.replace(SessionRecord { revision: 2, ..session }).await?;
            assert!(replaced);
            Ok(())
        },
        &store,
    );
    let replace = replace.await;
    let end =
        measure(&things, |store, (session, _)| async move { store.end(session.id).await.map(drop) }, &store);
    println!("{name:9} sign in {insert}   open {load}   renew {replace}   end {}", end.await);
}

fn main() {
    crypto::install().expect("the cryptography works");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        println!("each: operations a second with {AT_ONCE} at once, median and 99th percentile of one");
        measure_store("memory", Arc::new(MemoryStore::new())).await;
        let directory = tempfile::tempdir().expect("a directory");
        let file = FileStore::open(&directory.path().join("sessions.redb")).expect("a file");
        measure_store("file", Arc::new(file)).await;
        let size = std::fs::metadata(directory.path().join("sessions.redb")).map_or(0, |file| file.len());
        println!(
            "          the file holds {:.1} KiB for each session that was in it",
            size as f64 / 1024.0 / EACH as f64
        );
        for url in std::env::args().skip(1).filter(|one| one.contains("://")) {
            if url.starts_with("postgres") {
                let store = PostgresStore::new(&url, None).expect("a connection string");
                measure_store("postgres", Arc::new(store)).await;
            } else {
                let store = RedisStore::new(&url, None, Clock::system()).expect("a connection string");
                measure_store("redis", Arc::new(store)).await;
            }
        }
    });
}

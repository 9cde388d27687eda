//! What every store must do, run against each of them.

use std::time::Duration;

use super::*;

mod postgres;
mod redis;

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
/// Where there is one, everybody finds what was put there last, until it expires.
async fn a_shelf_holds_what_was_put_there_last(store: &dyn Store, by_itself: bool) {
    let Some(shelf) = store.shelf() else {
        assert!(!store.is_shared(), "processes that share it need a shelf");
        return;
    };
    let [name, other] = [Tag(crypto::sha256(&Id::random().0)), Tag(crypto::sha256(&Id::random().0))];
    assert_eq!(shelf.get(name, NOW).await.unwrap(), None);
    shelf.put(name, b"first".to_vec(), LATER).await.unwrap();
    shelf.put(other, b"other".to_vec(), LATER).await.unwrap();
    shelf.put(name, vec![0; 100_000], LATER).await.unwrap();
    assert_eq!(shelf.get(name, NOW).await.unwrap(), Some(vec![0; 100_000]));
    assert_eq!(shelf.get(other, NOW).await.unwrap(), Some(b"other".to_vec()));
    if !by_itself {
        assert_eq!(shelf.get(name, LATER).await.unwrap(), None);
        store.sweep(LATER).await.unwrap();
        assert_eq!(shelf.get(name, NOW).await.unwrap(), None, "it was swept");
    }
}

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
    a_shelf_holds_what_was_put_there_last(store, by_itself).await;
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

/// A port of this machine at which nobody listens, and which the system gives to nobody who asks for any.
fn free_port() -> u16 {
    static NEXT: std::sync::LazyLock<std::sync::atomic::AtomicU16> = std::sync::LazyLock::new(|| {
        std::sync::atomic::AtomicU16::new(u16::try_from(std::process::id() % 16_000).unwrap())
    });
    loop {
        // Below those that the system picks from.
        let port = 12_000 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 16_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

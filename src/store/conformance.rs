//! What every store must do, run against each of them.

use std::time::Duration;

use super::*;

const NOW: Timestamp = Timestamp::from_unix_seconds(1_000);
const LATER: Timestamp = Timestamp::from_unix_seconds(2_000);

fn session(expires: Timestamp) -> SessionRecord {
    SessionRecord {
        id: Id::random(),
        revision: 1,
        created: NOW,
        expires,
        subject: [1; 32],
        provider_session: Some([2; 32]),
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

async fn what_has_expired_is_not_there_and_is_swept(store: &dyn Store) {
    let record = session(NOW + Duration::from_secs(10));
    let first = handle(&record, "a.test");
    let key = Id::random();
    store.insert(record.clone(), first.clone()).await.unwrap();
    store.keep(key, vec![1], NOW + Duration::from_secs(10), Keep::HandOff).await.unwrap();
    let after = NOW + Duration::from_secs(10);
    assert_eq!(store.load(first.id, after).await.unwrap(), None);
    assert_eq!(store.session(record.id, after).await.unwrap(), None);
    assert!(!store.add_handle(handle(&record, "b.test"), after).await.unwrap());
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

async fn all(store: &dyn Store) {
    a_session_comes_back_as_it_was_put(store).await;
    ending_a_session_ends_every_handle_and_no_other_session(store).await;
    what_has_expired_is_not_there_and_is_swept(store).await;
    only_the_next_revision_replaces(store).await;
    a_kept_thing_is_taken_once(store).await;
    people_who_never_sign_in_cannot_fill_it(store).await;
}

#[tokio::test]
async fn memory() {
    all(&MemoryStore::new()).await;
}

#[tokio::test]
async fn file() {
    let directory = tempfile::tempdir().unwrap();
    all(&FileStore::open(&directory.path().join("sessions.redb")).unwrap()).await;
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

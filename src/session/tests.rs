//! Sessions against a real store, on a clock that is held.

use super::*;
use crate::crypto;
use crate::store::{Event, Keep, MemoryStore, News, Page, Pending, Tag};
use ::http::header::COOKIE;
use serde_json::json;

fn content(expires: Option<Timestamp>) -> Content {
    let serde_json::Value::Object(claims) = json!({ "sub": "jane-1", "groups": ["dev"] }) else {
        unreachable!()
    };
    Content {
        provider: "p".into(),
        fingerprint: "f".into(),
        claims,
        from_userinfo: Vec::new(),
        signed_in: Timestamp::default(),
        asked: None,
        nonce: "n".into(),
        tokens: Tokens { refresh: Some("r".into()), expires, ..Tokens::default() },
    }
}

fn settings(fingerprint: &str) -> Settings {
    let origin = Origin { fingerprint: fingerprint.into(), reading: Reading::plain("groups") };
    Settings {
        providers: HashMap::from([("p".to_owned(), origin)]),
        lifetime: Duration::from_secs(3600),
        ..Settings::default()
    }
}

fn request(cookies: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for cookie in cookies {
        headers.append(COOKIE, cookie.split(';').next().unwrap().parse().unwrap());
    }
    headers
}

const TAGS: Tags = Tags { subject: Tag([0; 32]), provider_session: None, email: None };

async fn begun() -> (Sessions, Clock, Arc<dyn Store>, String) {
    let clock = Clock::held_at(Timestamp::from_unix_seconds(1_000_000));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let sessions = Sessions::new(settings("f"), store.clone(), clock.clone());
    let (_, cookie) = sessions.begin(&content(None), TAGS, "a.test").await.unwrap();
    (sessions, clock, store, cookie)
}

async fn found(sessions: &Sessions, host: &str, cookie: &str) -> bool {
    let (request, now, recent) = (request(&[cookie]), sessions.kept.clock.now(), Recent::default());
    let is_found =
        async || matches!(sessions.find_on(&recent, host, &request, now).await.unwrap().0, Found::Session(_));
    let first = is_found().await;
    assert_eq!(is_found().await, first, "the second request on a connection finds what the first one did");
    first
}

#[tokio::test]
async fn a_cookie_opens_its_session_on_its_host_only() {
    let (sessions, _, store, cookie) = begun().await;
    assert!(found(&sessions, "a.test", &cookie).await);
    assert!(!found(&sessions, "b.test", &cookie).await);
    // The same from a process that has not seen it.
    let other = Sessions::new(settings("f"), store, Clock::held_at(Timestamp::from_unix_seconds(1_000_000)));
    assert!(!found(&other, "b.test", &cookie).await);
    assert!(found(&other, "a.test", &cookie).await);
    assert!(!found(&other, "b.test", &cookie).await);
}

#[tokio::test]
async fn every_flipped_bit_of_the_cookie_opens_nothing() {
    let (sessions, _, _, cookie) = begun().await;
    let value = cookie.split(['=', ';']).nth(1).unwrap().to_owned();
    let bytes = crypto::decode(&value).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(
            !found(&sessions, "a.test", &format!("__Host-_pomerium={}", crypto::encode(&bad))).await,
            "{bit}"
        );
    }
    assert!(found(&sessions, "a.test", &cookie).await);
}

#[tokio::test]
async fn what_a_connection_remembers_opens_nothing_else() {
    let (sessions, clock, store, cookie) = begun().await;
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let recent = Recent::default();
    let on = async |sessions: &Sessions, host: &str, cookie: &str| {
        let request = request(&[cookie]);
        let found = sessions.find_on(&recent, host, &request, sessions.kept.clock.now()).await;
        matches!(found.unwrap().0, Found::Session(_))
    };
    assert!(on(&sessions, "a.test", &cookie).await);
    assert!(!on(&sessions, "b.test", &cookie).await, "another host");
    for at in cookie.len() - 64..cookie.len() {
        let mut other = cookie.clone().into_bytes();
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        assert!(!on(&sessions, "a.test", &String::from_utf8(other).unwrap()).await, "another cookie: {at}");
    }
    assert!(!on(&sessions, "a.test", "").await && !on(&sessions, "a.test", "other=1").await, "no cookie");
    assert!(on(&sessions, "a.test", &cookie).await);
    let moved = Sessions::new(settings("other"), store, clock.clone());
    assert!(!on(&moved, "a.test", &cookie).await, "another configuration");
    let Found::Session(session) = sessions.find("a.test", &request(&[&cookie])).await.unwrap() else {
        panic!()
    };
    sessions.end(&session).await.unwrap();
    assert!(!on(&sessions, "a.test", &cookie).await, "a session that has ended");
    let (sessions, clock, _, cookie) = begun().await;
    assert!(on(&sessions, "a.test", &cookie).await);
    clock.advance(Duration::from_secs(3600));
    assert!(!on(&sessions, "a.test", &cookie).await, "a session that is over");
}

#[tokio::test]
async fn what_a_connection_remembers_strips_as_what_is_read_anew() {
    let (sessions, clock, _, cookie) = begun().await;
    let ours = cookie.split(';').next().unwrap();
    for line in [
        ours.to_owned(),
        format!("a=1; {ours}"),
        format!("{ours}; a=1;  b=\"x y\" "),
        format!(";a==;; {ours};__Host-_pomerium_csrf=2; c"),
        format!("_pomerium_old=1; {ours}"),
    ] {
        let recent = Recent::default();
        let mut anew = HeaderMap::from_iter([(COOKIE, line.parse().unwrap())]);
        let brought = anew.clone();
        cookies::remove(&mut anew, |name| sessions.cookie().is_ours(name));
        for round in ["first", "again"] {
            let mut headers = brought.clone();
            let (_, known) = sessions.find_on(&recent, "a.test", &headers, clock.now()).await.unwrap();
            known.unwrap().strip(&mut headers);
            assert_eq!(headers, anew, "{round} {line}");
        }
    }
    // Two lines are not one, and what is long is not kept.
    let recent = Recent::default();
    let mut two = HeaderMap::from_iter([(COOKIE, ours.parse().unwrap())]);
    two.append(COOKIE, "a=1".parse().unwrap());
    let long = HeaderMap::from_iter([(COOKIE, format!("{ours}; a={}", "x".repeat(2048)).parse().unwrap())]);
    for headers in [two, long] {
        let (found, known) = sessions.find_on(&recent, "a.test", &headers, clock.now()).await.unwrap();
        assert!(matches!(found, Found::Session(_)) && known.is_none());
    }
}

#[tokio::test]
async fn two_cookies_of_ours_are_refused() {
    let (sessions, _, _, cookie) = begun().await;
    assert!(matches!(
        sessions.find("a.test", &request(&[&cookie, &cookie])).await,
        Err(SessionError::BadRequest(_))
    ));
}

#[tokio::test]
async fn a_session_ends_with_its_time_everywhere() {
    let (sessions, clock, _, cookie) = begun().await;
    clock.advance(Duration::from_secs(3599));
    assert!(found(&sessions, "a.test", &cookie).await);
    clock.advance(Duration::from_secs(1));
    assert!(!found(&sessions, "a.test", &cookie).await);
}

#[tokio::test]
async fn ending_a_session_ends_all_of_its_handles() {
    let (sessions, _, store, cookie) = begun().await;
    let Found::Session(session) = sessions.find("a.test", &request(&[&cookie])).await.unwrap() else {
        panic!()
    };
    let other = sessions
        .add_host(session.id, sessions.key(&session), session.expires, "b.test")
        .await
        .unwrap()
        .unwrap();
    assert!(found(&sessions, "b.test", &other).await);
    sessions.end(&session).await.unwrap();
    assert!(!found(&sessions, "a.test", &cookie).await);
    assert!(!found(&sessions, "b.test", &other).await);
    assert!(
        sessions
            .add_host(session.id, sessions.key(&session), session.expires, "c.test")
            .await
            .unwrap()
            .is_none()
    );
    let fresh = Sessions::new(settings("f"), store, Clock::held_at(Timestamp::from_unix_seconds(1_000_000)));
    assert!(!found(&fresh, "a.test", &cookie).await);
}

#[tokio::test]
async fn a_session_of_another_client_or_pool_has_ended() {
    let (_, clock, store, cookie) = begun().await;
    let moved = Sessions::new(settings("other"), store, clock);
    assert!(!found(&moved, "a.test", &cookie).await);
}

#[tokio::test]
async fn claims_change_for_every_handle_when_they_are_replaced() {
    let (sessions, _, _, cookie) = begun().await;
    let Found::Session(session) = sessions.find("a.test", &request(&[&cookie])).await.unwrap() else {
        panic!()
    };
    let (record, mut new) = sessions.content(&session).await.unwrap().unwrap();
    new.claims.insert("groups".into(), json!(["none"]));
    assert!(sessions.replace(&session, &record, &new).await.unwrap());
    assert_eq!(session.identity().groups.as_deref(), Some(&["none".into()] as &[Box<str>]));
    // A second one that started from the same record has lost.
    assert!(!sessions.replace(&session, &record, &new).await.unwrap());
}

#[tokio::test]
async fn tokens_are_renewed_before_they_expire_and_must_be_afterwards() {
    let clock = Clock::held_at(Timestamp::from_unix_seconds(1_000_000));
    let sessions = Sessions::new(settings("f"), Arc::new(MemoryStore::new()), clock.clone());
    let mut held = content(Some(clock.now() + Duration::from_secs(300)));
    held.tokens.issued = clock.now();
    let (session, _) = sessions.begin(&held, TAGS, "a.test").await.unwrap();
    assert_eq!(session.freshness(clock.now()), Freshness::Fresh);
    assert_eq!(session.freshness(clock.now() + Duration::from_secs(241)), Freshness::Due);
    assert_eq!(session.freshness(clock.now() + Duration::from_secs(300)), Freshness::Stale);
    let (session, _) = sessions.begin(&content(None), TAGS, "a.test").await.unwrap();
    assert_eq!(session.freshness(clock.now() + Duration::from_secs(3600)), Freshness::Fresh);
}

#[tokio::test]
async fn a_session_that_was_ended_does_not_come_back_whatever_the_store_says() {
    let (sessions, _, store, cookie) = begun().await;
    let Found::Session(session) = sessions.find("a.test", &request(&[&cookie])).await.unwrap() else {
        panic!()
    };
    let (record, content) = sessions.content(&session).await.unwrap().unwrap();
    let (handle, _) = {
        let id = cookie::read(cookie.split(['=', ';']).nth(1).unwrap()).unwrap().0;
        store.load(id, Timestamp::from_unix_seconds(1_000_000)).await.unwrap().unwrap()
    };
    sessions.end(&session).await.unwrap();
    // As if the store had not been told, or another process had written it again.
    store.insert(record, handle).await.unwrap();
    sessions.sweep().await;
    assert!(!found(&sessions, "a.test", &cookie).await);
    assert_eq!(content.provider, "p");
}

#[tokio::test]
async fn a_host_outside_the_cookie_domain_has_a_cookie_of_its_own() {
    let mut settings = settings("f");
    settings.cookie.domain = Some("example.com".into());
    let sessions = Sessions::new(
        settings,
        Arc::new(MemoryStore::new()),
        Clock::held_at(Timestamp::from_unix_seconds(1_000_000)),
    );
    let (_, inside) = sessions.begin(&content(None), TAGS, "a.example.com").await.unwrap();
    assert!(inside.starts_with("__Secure-_pomerium=") && inside.contains("Domain=example.com"), "{inside}");
    assert!(found(&sessions, "b.example.com", &inside).await);
    let (_, outside) = sessions.begin(&content(None), TAGS, "other.org").await.unwrap();
    assert!(outside.starts_with("__Host-_pomerium=") && !outside.contains("Domain"), "{outside}");
    assert!(found(&sessions, "other.org", &outside).await);
}

/// What stays in memory for each session that is in use, with the claims of `tests/bench`'s provider; the tokens
/// stay in the store.
#[tokio::test]
async fn a_session_in_use_takes_little_memory() {
    const SESSIONS: u64 = 100;
    let (store, clock) = (Arc::new(MemoryStore::new()), Clock::system());
    let first = Sessions::new(settings("f"), store.clone(), clock.clone());
    let serde_json::Value::Object(claims) = json!({
        "iss": "http://127.0.0.1:40000", "aud": "bench", "iat": 1_790_000_000, "exp": 1_790_086_400,
        "nonce": "0123456789abcdef0123456789abcdef", "sub": "user-1", "email": "alice@example.com",
        "email_verified": true, "name": "Alice Example", "groups": ["eng", "ops", "oncall"]
    }) else {
        unreachable!()
    };
    let mut cookies = Vec::new();
    for _ in 0..SESSIONS {
        let content = Content { claims: claims.clone(), ..content(None) };
        let (_, cookie) = first.begin(&content, TAGS, "a.test").await.unwrap();
        cookies.push(request(&[&cookie]));
    }
    let sessions = Sessions::new(settings("f"), store, clock);
    let open = async |range: &[HeaderMap]| {
        for cookie in range {
            assert!(matches!(sessions.find("a.test", cookie).await.unwrap(), Found::Session(_)));
        }
    };
    let used = allocation_counter::measure(|| {
        let mut opened = std::pin::pin!(open(&cookies));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(opened.as_mut().poll(&mut cx).is_ready(), "a store in memory answers at once");
    });
    let each = used.bytes_current / i64::try_from(SESSIONS).unwrap();
    assert!(each <= 1600, "{each} bytes");
}

/// A store that other processes use too, and that can be gone.
#[derive(Default)]
struct Shared {
    store: MemoryStore,
    gone: std::sync::atomic::AtomicBool,
    news: std::sync::Mutex<Vec<Event>>,
}

impl Shared {
    fn answer<'a, T: Send + 'a>(&'a self, value: T) -> Pending<'a, T> {
        let gone = self.gone.load(Ordering::Acquire);
        Box::pin(async move { if gone { Err(StoreError::Unavailable("gone".into())) } else { Ok(value) } })
    }
}

impl Store for Shared {
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()> {
        self.store.insert(session, handle)
    }
    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        self.store.add_handle(handle, now)
    }
    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        self.store.load(handle, now)
    }
    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        self.store.session(id, now)
    }
    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        self.store.replace(session)
    }
    fn end(&self, session: Id) -> Pending<'_, bool> {
        self.store.end(session)
    }
    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        self.store.keep(key, value, expires, kind)
    }
    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        self.store.take(key, now)
    }
    fn first(&self, key: Id, expires: Timestamp, now: Timestamp) -> Pending<'_, bool> {
        self.store.first(key, expires, now)
    }
    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>> {
        self.store.find(tag, now)
    }
    fn list(&self, from: Option<String>, now: Timestamp) -> Pending<'_, Page> {
        self.store.list(from, now)
    }
    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()> {
        self.store.touch(used)
    }
    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>> {
        self.store.last_used(session)
    }
    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        self.store.sweep(now)
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn position(&self) -> Pending<'_, String> {
        self.answer("1".into())
    }
    fn news<'a>(&'a self, since: &'a str) -> Pending<'a, News> {
        let events = std::mem::take(&mut *self.news.lock().unwrap());
        self.answer(News { position: since.to_owned(), events })
    }
}

#[tokio::test]
async fn a_session_is_not_used_when_its_end_would_not_be_heard_of() {
    let clock = Clock::held_at(Timestamp::from_unix_seconds(1_000_000));
    let store = Arc::new(Shared::default());
    let sessions = Arc::new(Sessions::new(settings("f"), store.clone(), clock.clone()));
    let (session, cookie) = sessions.begin(&content(None), TAGS, "a.test").await.unwrap();
    let (request, recent) = (request(&[&cookie]), Recent::default());
    let found = async || match sessions.find_on(&recent, "a.test", &request, clock.now()).await {
        Ok((Found::Session(_), _)) => "found",
        Ok((Found::Nobody, _)) => "nobody",
        Err(_) => "cannot be told",
    };
    assert_eq!(found().await, "cannot be told", "it has not been heard from at all");
    sessions.begin_to_listen().await.unwrap();
    assert_eq!((found().await, found().await), ("found", "found"));

    store.gone.store(true, Ordering::Release);
    clock.advance(DEAF - Duration::from_secs(1));
    assert_eq!(found().await, "found", "what is known goes on for a while");
    clock.advance(Duration::from_secs(1));
    assert_eq!((found().await, found().await), ("cannot be told", "cannot be told"));
    assert!(sessions.begin_to_listen().await.is_err());
    assert_eq!(found().await, "cannot be told");
    // Somebody without a cookie needs no store.
    let nobody = sessions.find_on(&Recent::default(), "a.test", &HeaderMap::new(), clock.now()).await;
    assert!(matches!(nobody.unwrap().0, Found::Nobody));

    store.gone.store(false, Ordering::Release);
    sessions.begin_to_listen().await.unwrap();
    assert_eq!(found().await, "found");
    // Another process ended it.
    store.news.lock().unwrap().push(Event::Ended(session.id));
    let listening = tokio::time::timeout(Duration::from_millis(200), sessions.clone().listen());
    assert!(listening.await.is_err(), "it listens for ever");
    assert_eq!(found().await, "nobody");
}

const IDLE: Duration = Duration::from_secs(600);

/// Two processes on one store, with a session and its cookie.
async fn two_with_idle() -> (Arc<Sessions>, Arc<Sessions>, Clock, String) {
    let clock = Clock::held_at(Timestamp::from_unix_seconds(1_000_000));
    let store = Arc::new(Shared::default());
    let settings = Settings { idle: Some(IDLE), ..settings("f") };
    let one = Arc::new(Sessions::new(settings.clone(), store.clone(), clock.clone()));
    let two = Arc::new(Sessions::new(settings, store, clock.clone()));
    for sessions in [&one, &two] {
        sessions.begin_to_listen().await.unwrap();
    }
    let (_, cookie) = one.begin(&content(None), TAGS, "a.test").await.unwrap();
    (one, two, clock, cookie)
}

async fn heard(sessions: &[&Arc<Sessions>]) {
    for sessions in sessions {
        sessions.begin_to_listen().await.unwrap();
    }
}

#[tokio::test]
async fn a_session_that_nobody_used_has_ended() {
    let (one, two, clock, cookie) = two_with_idle().await;
    for _ in 0..5 {
        clock.advance(IDLE - Duration::from_secs(1));
        heard(&[&one]).await;
        assert!(found(&one, "a.test", &cookie).await, "each use counts");
    }
    clock.advance(IDLE);
    heard(&[&one, &two]).await;
    assert!(!found(&one, "a.test", &cookie).await);
    assert!(!found(&two, "a.test", &cookie).await, "it has ended for good");
}

#[tokio::test]
async fn a_session_that_is_idle_here_may_be_in_use_elsewhere() {
    let (one, two, clock, cookie) = two_with_idle().await;
    assert!(found(&two, "a.test", &cookie).await);
    clock.advance(IDLE - Duration::from_secs(2));
    heard(&[&one]).await;
    assert!(found(&one, "a.test", &cookie).await);
    one.tell_last_use().await.unwrap();
    clock.advance(Duration::from_secs(300));
    heard(&[&one, &two]).await;
    assert!(found(&two, "a.test", &cookie).await, "the other one saw it in use");
    // Whoever looks after what is open does not end it either.
    two.tell_last_use().await.unwrap();
    assert!(found(&one, "a.test", &cookie).await);
    clock.advance(IDLE);
    heard(&[&one, &two]).await;
    one.tell_last_use().await.unwrap();
    assert!(!found(&one, "a.test", &cookie).await, "what is open and idle is ended without being asked for");
}

#[tokio::test]
async fn a_process_that_starts_knows_when_a_session_was_used() {
    let clock = Clock::held_at(Timestamp::from_unix_seconds(1_000_000));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let settings = Settings { idle: Some(IDLE), ..settings("f") };
    let first = Sessions::new(settings.clone(), store.clone(), clock.clone());
    let (_, cookie) = first.begin(&content(None), TAGS, "a.test").await.unwrap();
    clock.advance(IDLE / 2);
    assert!(found(&first, "a.test", &cookie).await);
    first.tell_last_use().await.unwrap();
    clock.advance(IDLE - Duration::from_secs(1));
    let next = Sessions::new(settings.clone(), store.clone(), clock.clone());
    assert!(found(&next, "a.test", &cookie).await);
    next.tell_last_use().await.unwrap();
    clock.advance(IDLE);
    let last = Sessions::new(settings, store, clock);
    assert!(!found(&last, "a.test", &cookie).await);
}

async fn opened(sessions: &Sessions, cookie: &str) -> Option<Arc<Session>> {
    match sessions.find("a.test", &request(&[cookie])).await.unwrap() {
        Found::Session(session) => Some(session),
        Found::Nobody => None,
    }
}

#[tokio::test]
async fn sessions_go_on_with_another_configuration_and_are_read_by_it() {
    let (sessions, _, _, cookie) = begun().await;
    let before = opened(&sessions, &cookie).await.unwrap();
    assert_eq!(before.identity().groups.as_deref(), Some(&["dev".into()][..]));
    let same = sessions.with(settings("f"));
    same.take_over();
    assert!(Arc::ptr_eq(&before, &opened(&same, &cookie).await.unwrap()), "nothing is opened again");
    let identity = before.identity();
    same.with(settings("f")).take_over();
    assert!(Arc::ptr_eq(&identity, &before.identity()), "what is read as before is not read again");
    let mut other = settings("f");
    other.providers.get_mut("p").unwrap().reading = Reading::plain("sub");
    let other = same.with(other);
    assert!(Arc::ptr_eq(&identity, &before.identity()), "not before it is in force");
    other.take_over();
    assert_eq!(before.identity().groups.as_deref(), Some(&["jane-1".into()][..]));
    // A request that still holds the configuration of before is decided by that one.
    let session = opened(&same, &cookie).await.unwrap();
    for (sessions, group) in [(&sessions, "dev"), (&same, "dev"), (&other, "jane-1")] {
        assert_eq!(sessions.identity_of(&session).unwrap().groups.as_deref(), Some(&[group.into()][..]));
    }
}

#[tokio::test]
async fn a_session_ends_with_its_client_and_goes_on_when_that_comes_back() {
    for gone in [settings("another client"), Settings { providers: HashMap::new(), ..settings("") }] {
        let (sessions, clock, _, cookie) = begun().await;
        let before = opened(&sessions, &cookie).await.unwrap();
        let over = before.right(clock.now(), clock.instant()).over();
        let without = sessions.with(gone);
        without.take_over();
        over.await;
        assert!(before.has_ended());
        assert!(opened(&without, &cookie).await.is_none());
        // By whatever configuration the request is served that is under way.
        assert!(opened(&sessions, &cookie).await.is_none());
        let again = without.with(settings("f"));
        again.take_over();
        assert!(opened(&again, &cookie).await.is_some());
    }
}

#[tokio::test]
async fn idleness_counts_from_when_it_is_first_noted() {
    let (sessions, clock, _, cookie) = begun().await;
    assert!(found(&sessions, "a.test", &cookie).await);
    clock.advance(Duration::from_secs(1000));
    assert!(found(&sessions, "a.test", &cookie).await);
    let noting = sessions.with(Settings { idle: Some(Duration::from_secs(600)), ..settings("f") });
    noting.take_over();
    clock.advance(Duration::from_secs(599));
    assert!(found(&noting, "a.test", &cookie).await, "its use was not noted before");
    clock.advance(Duration::from_secs(600));
    assert!(!found(&noting, "a.test", &cookie).await);
}

//! From a cookie to a caller.
//!
//! A browser holds, for each host, a *handle*: an identifier and a key. The store keeps the handle's record
//! sealed under that key, and in it the key of the session; so a stolen store opens nothing, and a cookie of
//! one host is worth nothing on another. Opened sessions are kept in a process-wide cache that is read
//! without a lock. The tokens of the provider are not in the cache: they stay in the sealed record, which
//! `authenticate` opens when it renews or ends a session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ::http::HeaderMap;
use arc_swap::ArcSwap;

use crate::clock::{Clock, Timestamp};
use crate::crypto::SealKey;
use crate::http::{BadRequest, cookies};
use crate::identity::{Identity, Reading};
use crate::store::{HandleRecord, Id, SessionRecord, Store, StoreError, Tags};

mod administer;
mod content;
mod cookie;
mod idle;
mod listen;
mod opened;
mod recent;
mod reconfigure;
mod token;

pub use administer::About;
pub use content::{Content, Tokens};
pub use cookie::{CookieSettings, SameSite};
pub use listen::DEAF;
use opened::Handle;
pub use opened::{Freshness, Session};
pub use recent::{Known, Recent};
pub use token::{ACCOUNTS, Made};

/// What a session is read with.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The cookie.
    pub cookie: CookieSettings,
    /// The providers that sessions may come from. A session of any other has ended.
    pub providers: HashMap<String, Origin>,
    /// `cookie_expire`: the longest life of a session.
    pub lifetime: Duration,
    /// `session_idle_timeout`.
    pub idle: Option<Duration>,
}

/// A provider, as far as reading its sessions goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Changes when the provider's URL or client changes: sessions from before have ended then.
    pub fingerprint: String,
    /// How its claims are read.
    pub reading: Reading,
}

/// All sessions, by the settings of one configuration.
pub struct Sessions {
    settings: Settings,
    /// Which of all that were made.
    number: u64,
    /// The first of them by which identities were read as by this one.
    reading: u64,
    /// The session cookie's names: for one host alone, and for a whole domain.
    names: [String; 2],
    kept: Arc<Kept>,
}

/// What every configuration shares.
struct Kept {
    /// The providers that are configured now. Whatever configuration a request holds, an identity is read by these.
    origins: ArcSwap<HashMap<String, Origin>>,
    /// Whose they are.
    reading: AtomicU64,
    /// The longest life that a session may have been given: milliseconds.
    lifetime: AtomicU64,
    /// Whether it is noted when sessions are used.
    are_uses_noted: AtomicBool,
    store: Arc<dyn Store>,
    clock: Clock,
    handles: papaya::HashMap<Id, Arc<Handle>, ById>,
    open: papaya::HashMap<Id, Arc<Session>, ById>,
    /// Sessions that were ended here, until they would have ended anyway: whatever the store still says, they
    /// do not come back.
    tombstones: papaya::HashMap<Id, Tombstone>,
    /// Whether other processes use the store.
    shared: bool,
    /// When the store was last heard from: milliseconds since the epoch.
    heard: AtomicU64,
    /// How far what other processes do has been heard.
    position: tokio::sync::Mutex<Option<String>>,
    /// Told when the store should hear at once that sessions are used.
    used: tokio::sync::Notify,
}

/// A session that was ended here.
#[derive(Clone, Copy)]
struct Tombstone {
    until: Timestamp,
    /// The store has not been told yet.
    untold: bool,
}

/// Identifiers are random, and only ours are in the maps: their own bits are hash enough.
type ById = std::hash::BuildHasherDefault<FirstBits>;

/// The first bits of what is hashed.
#[derive(Default)]
struct FirstBits(u64);

/// Who a request's cookie belongs to.
pub enum Found {
    /// There is no cookie, or it opens nothing.
    Nobody,
    /// A live session.
    Session(Arc<Session>),
}

/// Why a caller cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The request could be read in two ways.
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    /// The store failed; nobody is let in on its behalf.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How many [`Sessions`] were made.
static MADE: AtomicU64 = AtomicU64::new(0);

impl std::hash::Hasher for FirstBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 ^= u64::from_ne_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

impl Sessions {
    /// Sessions in a store.
    pub fn new(settings: Settings, store: Arc<dyn Store>, clock: Clock) -> Self {
        let kept = Kept {
            origins: ArcSwap::from_pointee(settings.providers.clone()),
            reading: AtomicU64::new(0),
            lifetime: AtomicU64::new(0),
            are_uses_noted: AtomicBool::new(settings.idle.is_some()),
            shared: store.is_shared(),
            heard: AtomicU64::new(0),
            position: tokio::sync::Mutex::default(),
            used: tokio::sync::Notify::new(),
            store,
            clock,
            handles: papaya::HashMap::with_hasher(ById::default()),
            open: papaya::HashMap::with_hasher(ById::default()),
            tombstones: papaya::HashMap::new(),
        };
        let this = Self::of(settings, Arc::new(kept));
        this.kept.reading.store(this.reading, Ordering::Release);
        this
    }

    fn of(settings: Settings, kept: Arc<Kept>) -> Self {
        let lifetime = u64::try_from(settings.lifetime.as_millis()).unwrap_or(u64::MAX);
        kept.lifetime.fetch_max(lifetime, Ordering::Relaxed);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self { number, reading: number, names: settings.cookie.session_names(), settings, kept }
    }

    /// The same sessions by other settings; those of providers are in force from [`take_over`](Self::take_over) on.
    pub fn with(&self, settings: Settings) -> Self {
        let reads_alike = settings.providers == self.settings.providers;
        let other = Self::of(settings, self.kept.clone());
        if reads_alike { Self { reading: self.reading, ..other } } else { other }
    }

    /// The cookie's settings.
    pub const fn cookie(&self) -> &CookieSettings {
        &self.settings.cookie
    }

    /// The longest life of a session.
    pub const fn lifetime(&self) -> Duration {
        self.settings.lifetime
    }

    /// How many sessions are open in this process.
    pub fn open(&self) -> usize {
        self.kept.open.len()
    }

    /// The store, for things that are kept once.
    pub fn store(&self) -> &dyn Store {
        &*self.kept.store
    }

    /// Finds the session that a request's cookie opens on this host.
    ///
    /// # Errors
    /// When the cookie occurs twice or the store fails.
    pub async fn find(&self, host: &str, headers: &HeaderMap) -> Result<Found, SessionError> {
        Ok(self.find_on(&Recent::default(), host, headers, self.kept.clock.now()).await?.0)
    }

    /// The same on a connection, which remembers what it found; with the cookies, when they were remembered.
    ///
    /// # Errors
    /// As for [`find`](Self::find).
    pub async fn find_on(
        &self,
        recent: &Recent,
        host: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<(Found, Option<Arc<Known>>), SessionError> {
        let [host_only, domain_wide] = &self.names;
        let (name, scope) = match self.settings.cookie.covering(host) {
            None => (host_only, host),
            Some(domain) => (domain_wide, domain),
        };
        let line = recent::only_line(headers);
        if let Some(known) = line.and_then(|line| recent.known(self, line, scope)) {
            self.check_hearing(now)?;
            return Ok((self.admit(&known.handle, now).await?, Some(known)));
        }
        let opened = match cookies::find(headers, name)?.and_then(cookie::read) {
            Some((id, key)) => self.handle_of(id, &key, scope, now).await?,
            None => None,
        };
        let Some(handle) = opened else { return Ok((Found::Nobody, None)) };
        self.check_hearing(now)?;
        let known = line.and_then(|line| recent.remember(self, line, &handle));
        Ok((self.admit(&handle, now).await?, known))
    }

    /// The session behind a handle, while it lasts and is in use.
    async fn admit(&self, handle: &Handle, now: Timestamp) -> Result<Found, StoreError> {
        let found = handle.admit(now);
        match (&found, self.settings.idle) {
            (Found::Session(session), Some(idle)) if !self.use_now(session, idle, now) => {
                let goes_on = Box::pin(self.was_used_elsewhere(session, idle, now)).await?;
                Ok(if goes_on { found } else { Found::Nobody })
            }
            _ => Ok(found),
        }
    }

    /// The handle that a key opens.
    async fn handle_of(
        &self,
        id: Id,
        key: &SealKey,
        scope: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<Handle>>, StoreError> {
        let known = self.kept.handles.pin().get(&id).cloned();
        let handle = match known {
            Some(handle) => Some(handle),
            // Seldom: the road does not carry what this needs.
            None => Box::pin(self.open_handle(id, key, scope, now)).await?,
        };
        Ok(handle.filter(|handle| handle.is_opened_by(key, scope)))
    }

    async fn open_handle(
        &self,
        id: Id,
        key: &SealKey,
        scope: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<Handle>>, StoreError> {
        let Some((handle, record)) = self.kept.store.load(id, now).await? else { return Ok(None) };
        let opened = key.open(&[b"handle", &id.0, handle.host.as_bytes()], &handle.sealed);
        let Some(session_key) = opened.as_deref().and_then(SealKey::from_bytes) else { return Ok(None) };
        if handle.host != scope {
            return Ok(None);
        }
        let Some(used) = self.last_use(&record, now).await? else { return Ok(None) };
        let Some(session) = self.open_session(&record, session_key, used) else { return Ok(None) };
        let handle = Arc::new(Handle {
            key: key.digest(),
            host: handle.host.into(),
            expires: handle.expires,
            session,
        });
        self.kept.handles.pin().insert(id, handle.clone());
        Ok(Some(handle))
    }

    fn open_session(&self, record: &SessionRecord, key: SealKey, used: Timestamp) -> Option<Arc<Session>> {
        if let Some(session) = self.kept.open.pin().get(&record.id) {
            return Some(session.clone());
        }
        let content = Content::open(record, &key)?;
        let origins = self.kept.origins.load_full();
        let identity = identity(&origins, record.id, &content)?;
        let session = Arc::new(Session::new(record, key, identity, &content, used));
        // Of two that opened it at once, both use the one that is kept.
        let session = self.kept.open.pin().get_or_insert(record.id, session).clone();
        let now = self.kept.origins.load();
        if !Arc::ptr_eq(&origins, &now) {
            reconfigure::read_by(&session, &origins, &now);
        }
        // Ended while it was being opened.
        if self.kept.tombstones.pin().contains_key(&record.id) {
            session.end();
        }
        Some(session)
    }

    /// Begins a session and gives this host its handle: the cookie to set.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begin(
        &self,
        content: &Content,
        tags: Tags,
        host: &str,
    ) -> Result<(Arc<Session>, String), StoreError> {
        let now = self.kept.clock.now();
        let key = SealKey::random();
        let id = Id::random();
        let mut record = SessionRecord {
            id,
            revision: 1,
            created: now,
            expires: now + self.settings.lifetime,
            tags,
            label: None,
            sealed: Vec::new(),
        };
        record.sealed = content.seal(&record, &key);
        let (handle, cookie) = self.handle(id, &key, host, record.expires);
        self.kept.store.insert(record.clone(), handle).await?;
        let session = self
            .open_session(&record, key, now)
            .ok_or_else(|| StoreError::Unavailable("a new session cannot be read".into()))?;
        Ok((session, cookie))
    }

    /// Gives another host a handle to a session; `None` when the session has ended.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn add_host(
        &self,
        id: Id,
        key: &SealKey,
        expires: Timestamp,
        host: &str,
    ) -> Result<Option<String>, StoreError> {
        let (handle, cookie) = self.handle(id, key, host, expires);
        Ok(self.kept.store.add_handle(handle, self.kept.clock.now()).await?.then_some(cookie))
    }

    fn handle(&self, session: Id, key: &SealKey, host: &str, expires: Timestamp) -> (HandleRecord, String) {
        let (handle, value) = token::sealed(session, key, self.settings.cookie.scope(host), expires);
        let cookie = self.settings.cookie.session(host, &value, expires.since(self.kept.clock.now()));
        (handle, cookie)
    }

    /// The key of an opened session, for handing it to another host under seal.
    pub const fn key<'s>(&self, session: &'s Session) -> &'s SealKey {
        &session.key
    }

    /// Opens what a session holds, tokens included; `None` when it is not in the store any more.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn content(&self, session: &Session) -> Result<Option<(SessionRecord, Content)>, StoreError> {
        let Some(record) = self.kept.store.session(session.id, self.kept.clock.now()).await? else {
            return Ok(None);
        };
        Ok(Content::open(&record, &session.key).map(|content| (record, content)))
    }

    /// Replaces what a session holds; `false` when somebody else did so before. What was bought with a
    /// refresh token is used only after this has answered `true`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn replace(
        &self,
        session: &Session,
        old: &SessionRecord,
        content: &Content,
    ) -> Result<bool, StoreError> {
        let mut record = SessionRecord { revision: old.revision + 1, ..old.clone() };
        record.sealed = content.seal(&record, &session.key);
        let replaced = self.kept.store.replace(record).await?;
        if replaced {
            self.adopt(session, content);
        }
        Ok(replaced)
    }

    /// Uses what a session holds now, for all its handles. A session whose identity cannot be read ends.
    pub fn adopt(&self, session: &Session, content: &Content) {
        match identity(&self.kept.origins.load(), session.id, content) {
            Some(identity) => session.renewed(identity, content),
            None => session.end(),
        }
    }

    /// Ends a session on every host, at once in this process.
    ///
    /// # Errors
    /// When the store fails; in this process the session has ended all the same, and the store is told later.
    pub async fn end(&self, session: &Session) -> Result<(), StoreError> {
        self.end_of(session.id, session.expires).await.map(drop)
    }

    /// The same for a session that need not be open here; `false` when it was not in the store.
    async fn end_of(&self, id: Id, expires: Timestamp) -> Result<bool, StoreError> {
        let grave = |untold| Tombstone { until: expires, untold };
        self.kept.tombstones.pin().insert(id, grave(true));
        if let Some(session) = self.kept.open.pin().get(&id) {
            session.end();
        }
        let ended = self.kept.store.end(id).await?;
        self.kept.tombstones.pin().insert(id, grave(false));
        self.kept.open.pin().remove(&id);
        Ok(ended)
    }

    /// Forgets what has expired or ended, and tells the store again what it did not hear.
    pub async fn sweep(&self) {
        let now = self.kept.clock.now();
        let untold: Vec<Id> =
            self.kept.tombstones.pin().iter().filter(|(_, grave)| grave.untold).map(|(id, _)| *id).collect();
        for id in untold {
            if self.kept.store.end(id).await.is_ok() {
                self.kept.tombstones.pin().update(id, |grave| Tombstone { untold: false, ..*grave });
            }
        }
        let gone = |session: &Session| session.expires <= now || session.has_ended();
        self.kept.handles.pin().retain(|_, handle| handle.expires > now && !gone(&handle.session));
        self.kept.open.pin().retain(|_, session| !gone(session));
        self.kept.tombstones.pin().retain(|_, grave| grave.until > now);
    }
}

/// Whose session it is; `None` when it comes from a provider or a client that is not configured any more.
fn identity(origins: &HashMap<String, Origin>, id: Id, content: &Content) -> Option<Identity> {
    let origin = origins.get(&content.provider)?;
    if origin.fingerprint != content.fingerprint {
        return None;
    }
    let mut identity = Identity::read(
        id.to_text().into(),
        content.provider.as_str().into(),
        content.claims.clone(),
        &origin.reading,
        content.signed_in,
    )?;
    identity.asked = content.asked.clone().map(Box::new);
    Some(identity)
}

#[cfg(test)]
mod tests;

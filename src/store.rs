//! Where sessions live.
//!
//! A store keeps sealed records and cannot read them: a *session* is sealed under a key that only its
//! handles hold, and a *handle* (one for each host) under a key that only the browser holds. In clear beside
//! them stand only what ending needs: identifiers, times, hosts and keyed hashes. A store also keeps things
//! that can be taken *once*, for hand-offs and for requests that wait for a sign-in.
//!
//! Every store passes the conformance suite in `store/conformance.rs`.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::clock::Timestamp;
use crate::crypto;

#[cfg(test)]
mod conformance;
mod file;
mod form;
mod measured;
mod memory;
mod postgres;
mod redis;
mod waiting;

pub use file::FileStore;
pub use measured::Measured;
pub use memory::MemoryStore;
pub use postgres::PostgresStore;
pub use redis::RedisStore;

/// An identifier of 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "form::Text", try_from = "form::Text")]
pub struct Id(pub [u8; 16]);

/// A keyed hash, by which a record is found without being opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "form::Text", try_from = "form::Text")]
pub struct Tag(pub [u8; 32]);

/// Whose a session is, for whoever knows already whom to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// Of issuer and `sub`.
    pub subject: Tag,
    /// Of issuer and `sid`, when the provider sends one.
    pub provider_session: Option<Tag>,
    /// Of the e-mail address, by which administrators know people.
    pub email: Option<Tag>,
}

/// A stored session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its name in the store. Not the one in the cookie.
    pub id: Id,
    /// Counts replacements, so that two refreshes cannot overwrite each other.
    pub revision: u64,
    /// When it began.
    pub created: Timestamp,
    /// When it ends at the latest.
    pub expires: Timestamp,
    /// Whose it is.
    pub tags: Tags,
    /// The name of a service account, whose token opens it; `None` for a person's session.
    #[serde(default)]
    pub label: Option<String>,
    /// What is in it, under the session's key.
    #[serde(with = "form::bytes")]
    pub sealed: Vec<u8>,
}

/// Some of the sessions there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The sessions.
    pub records: Vec<SessionRecord>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// A host's way to a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleRecord {
    /// The first half of the cookie.
    pub id: Id,
    /// The session it opens.
    pub session: Id,
    /// The host it is for; on another host it opens nothing.
    pub host: String,
    /// When it ends at the latest.
    pub expires: Timestamp,
    /// The session's key, under the second half of the cookie.
    #[serde(with = "form::bytes")]
    pub sealed: Vec<u8>,
}

/// What is kept to be taken once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// A hand-off, for somebody who has signed in. It survives what sessions survive.
    HandOff,
    /// A request that waits for somebody to sign in. It may end with a process that does not end by itself.
    Waiting,
}

/// Why a store did not do it. Ours to blame, or the operator's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, read or written.
    #[error("the session store failed: {0}")]
    Unavailable(String),
    /// It holds as much as it may.
    #[error("the session store is full")]
    Full,
}

/// An operation under way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A place where sessions live. What has expired at `now` is not there.
pub trait Store: Send + Sync {
    /// Adds a session with its first handle.
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()>;

    /// Adds a handle; `false` when its session is not there (any more).
    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool>;

    /// A handle and its session.
    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>>;

    /// A session.
    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>>;

    /// Replaces a session whose revision is one less than the given one; `false` when it is not, or when
    /// the session is not there. Once this answers `true`, the record survives the process (for stores
    /// that outlive it).
    fn replace(&self, session: SessionRecord) -> Pending<'_, bool>;

    /// Removes a session and all of its handles; `false` when it was not there.
    fn end(&self, session: Id) -> Pending<'_, bool>;

    /// Keeps something that can be taken once. What waits for somebody who has not signed in has a budget of
    /// its own, so that nobody can crowd out the hand-offs of those who have.
    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()>;

    /// Takes it: of any number of callers, one gets it.
    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>>;

    /// Whether nobody has said this key before, of any number of callers who say it until it expires.
    fn first(&self, key: Id, expires: Timestamp, now: Timestamp) -> Pending<'_, bool>;

    /// The sessions with a tag.
    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>>;

    /// All sessions, page by page; `from`: where the last one said to go on.
    fn list(&self, from: Option<String>, now: Timestamp) -> Pending<'_, Page>;

    /// Remembers when sessions were last used; a time before the one that is known is passed over.
    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()>;

    /// When a session was last used, as far as that was remembered.
    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>>;

    /// Removes what has expired; how many things that were.
    fn sweep(&self, now: Timestamp) -> Pending<'_, usize>;

    /// Whether what is in it outlives the process.
    fn outlives(&self) -> bool {
        true
    }

    /// Whether several processes use it, so that each has to hear what the others do.
    fn is_shared(&self) -> bool {
        false
    }

    /// The end of what happened so far, to read on from.
    fn position(&self) -> Pending<'_, String> {
        Box::pin(async { Ok(String::new()) })
    }

    /// What happened since a position; when that is nothing, it waits for a second at the most.
    fn news<'a>(&'a self, since: &'a str) -> Pending<'a, News> {
        Box::pin(async move { Ok(News { position: since.to_owned(), events: Vec::new() }) })
    }

    /// Which of these sessions are not there.
    fn missing(&self, _: Vec<Id>) -> Pending<'_, Vec<Id>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Where processes that share it put what all of them need; `None` when only one process uses it.
    fn shelf(&self) -> Option<&dyn Shelf> {
        None
    }

    /// The right to do something with a session (or something else of this name) that only one process may do, for a while;
    /// `None` when another one has it.
    fn lease(&self, session: Id, _: Duration) -> Pending<'_, Option<Lease>> {
        Box::pin(async move { Ok(Some(Lease::alone(session))) })
    }

    /// Gives it back.
    fn release(&self, _: Lease) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Lets another process have what only one may use. Everything fails then, until it is taken back.
    fn let_go(&self) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// The inverse, when the other one did not want it after all.
    fn take_back(&self) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// The sessions that are ended from now on, for a process that had the store before; `None` when every process hears
    /// of them by [`news`](Self::news), or none has a use for them.
    fn endings(&self) -> Option<broadcast::Receiver<Id>> {
        None
    }

    /// Tells those who listen to [`endings`](Self::endings) of one that ended in the process that has the store now.
    fn was_ended(&self, _: Id) {}
}

/// Where processes that share a store put what all of them need, under names that only they can work out. What is put there
/// is sealed by whoever puts it.
pub trait Shelf: Send + Sync {
    /// Puts something in the place of what was there.
    fn put(&self, name: Tag, value: Vec<u8>, expires: Timestamp) -> Pending<'_, ()>;

    /// What is there.
    fn get(&self, name: Tag, now: Timestamp) -> Pending<'_, Option<Vec<u8>>>;
}

/// What other processes did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// To read on from.
    pub position: String,
    /// In the order in which it happened.
    pub events: Vec<Event>,
}

/// Something that happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was ended.
    Ended(Id),
    /// It was replaced.
    Changed(Id),
}

/// See [`Store::lease`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    session: Id,
    owner: Id,
}

impl Lease {
    /// Where there is only one process.
    const fn alone(session: Id) -> Self {
        Self { session, owner: session }
    }
}

impl Id {
    /// A new random identifier. Its [text](Self::to_text) does not begin with a hyphen, for it is an argument of commands too.
    pub fn random() -> Self {
        loop {
            let made = Self(crypto::random());
            if !made.to_text().starts_with('-') {
                return made;
            }
        }
    }

    /// In base64url, as cookies, URLs and logs show it.
    pub fn to_text(self) -> String {
        crypto::encode(&self.0)
    }

    /// The inverse of [`to_text`](Self::to_text).
    pub fn from_text(text: &str) -> Option<Self> {
        Some(Self(crypto::decode(text)?.try_into().ok()?))
    }
}

impl Tags {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Tag> + use<> {
        [Some(self.subject), self.provider_session, self.email].into_iter().flatten()
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crypto::encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::Id;

    #[test]
    fn no_identifier_looks_like_an_option() {
        for id in std::iter::repeat_with(Id::random).take(2000) {
            assert!(!id.to_text().starts_with('-'), "{id:?}");
            assert_eq!(Id::from_text(&id.to_text()), Some(id));
        }
    }
}

//! The store in Redis or Valkey, which several processes share: one server, Sentinel, or Cluster.
//!
//! A session is one value with its revision in front, a handle another; both end by themselves. Ending a session removes
//! its value alone: a handle without a session opens nothing. What others have to hear of (an end, a change) goes into a
//! stream, which each process reads on from where it was: nothing is missed while a connection is away.
//!
//! An operation ends within [`LIMIT`]. On a connection that broke it is tried once more, on a new one; each is made so that
//! doing it twice is doing it once, but for taking, which then takes nothing.

use std::time::Duration;

use ::redis::{Cmd, FromRedisValue, Value, cmd};

use super::form::{decode, encode};
use super::waiting::{BUDGET, OVERHEAD};
use super::{
    Event, HandleRecord, Id, Keep, Lease, News, Page, Pending, SessionRecord, Shelf, Store, StoreError, Tag,
};
use crate::clock::{Clock, Timestamp};
use crate::crypto;

mod link;

use link::{Kind, Link};

/// How long an operation may take, all attempts together.
const LIMIT: Duration = Duration::from_secs(3);
/// How long to wait for news.
const PATIENCE: Duration = Duration::from_secs(1);
/// What has expired is kept a little longer, for clocks that differ.
const SLACK: Duration = Duration::from_secs(60);
/// For so long it is remembered when a session was last used.
const REMEMBERED: Duration = Duration::from_secs(31 * 24 * 3600);
/// So many events are remembered, and a few more.
const EVENTS: usize = 100_000;

const STREAM: &str = "portcullis:events";
/// All sessions, by the time of their end.
const SESSIONS: &str = "portcullis:2:sessions";
/// So many sessions are on a page.
const PAGE: usize = 500;
/// Waiting things share a slot, so that a script can count them.
const WAITING: &str = "portcullis:{waiting}";

/// Sessions in Redis.
pub struct RedisStore {
    link: Link,
    /// Waits for news; a connection that waits does nothing else.
    listening: Link,
    clock: Clock,
}

impl RedisStore {
    /// A store at a connection string; nothing is asked yet. `roots`: trust roots for TLS, PEM, instead of the system's.
    ///
    /// # Errors
    /// What is wrong with the string.
    pub fn new(connection: &str, roots: Option<&[u8]>, clock: Clock) -> Result<Self, String> {
        let link = || Kind::read(connection, roots).map(Link::new);
        Ok(Self { link: link()?, listening: link()?, clock })
    }

    async fn ask<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, StoreError> {
        self.link.ask(cmd, LIMIT, true).await
    }

    /// How long a value is kept, in milliseconds.
    fn ttl(&self, expires: Timestamp) -> u64 {
        let left = expires.since(self.clock.now()) + SLACK;
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    async fn put(&self, key: String, value: &[u8], expires: Timestamp) -> Result<(), StoreError> {
        self.ask(cmd("SET").arg(key).arg(value).arg("PX").arg(self.ttl(expires))).await
    }

    async fn get(&self, key: String) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(cmd("GET").arg(key)).await
    }

    async fn read(&self, id: Id, now: Timestamp) -> Result<Option<SessionRecord>, StoreError> {
        Ok(self.read_any(id).await?.filter(|session| session.expires > now))
    }

    /// A session that is there, although it may have expired a moment ago.
    async fn read_any(&self, id: Id) -> Result<Option<SessionRecord>, StoreError> {
        let Some(value) = self.get(session_key(id)).await? else { return Ok(None) };
        decode(value.get(8..).unwrap_or_default()).map(Some)
    }

    async fn tell(&self, kind: &str, id: Id) -> Result<(), StoreError> {
        let mut tell = cmd("XADD");
        tell.arg(STREAM).arg("MAXLEN").arg("~").arg(EVENTS).arg("*").arg(kind).arg(&id.0[..]);
        self.ask::<Value>(&tell).await.map(drop)
    }
}

fn session_key(id: Id) -> String {
    format!("portcullis:2:session:{}", id.to_text())
}

fn handle_key(id: Id) -> String {
    format!("portcullis:2:handle:{}", id.to_text())
}

fn kept_key(id: Id) -> String {
    format!("portcullis:kept:{}", id.to_text())
}

fn lease_key(id: Id) -> String {
    format!("portcullis:lease:{}", id.to_text())
}

fn said_key(id: Id) -> String {
    format!("portcullis:said:{}", id.to_text())
}

fn shelf_key(name: Tag) -> String {
    format!("portcullis:shelf:{}", crypto::encode(&name.0))
}

fn used_key(id: Id) -> String {
    format!("portcullis:2:used:{}", id.to_text())
}

fn tag_key(tag: Tag) -> String {
    format!("portcullis:2:tagged:{}", crypto::encode(&tag.0))
}

/// A session's value: the revision, where a script finds it, and the record.
fn session_value(session: &SessionRecord) -> Result<Vec<u8>, StoreError> {
    let mut value = session.revision.to_be_bytes().to_vec();
    value.extend_from_slice(&encode(session)?);
    Ok(value)
}

/// Replaces a value whose revision is the one given; done twice, it is done.
const REPLACE: &str = "
local old = redis.call('GET', KEYS[1])
if not old then return 0 end
if old == ARGV[2] then return 1 end
if string.sub(old, 1, 8) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1";

/// Adds to a set that lasts as long as what lasts longest in it.
const ADD: &str = "
if ARGV[3] then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) else redis.call('SADD', KEYS[1], ARGV[1]) end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1";

/// Remembers the later of two times.
const TOUCH: &str = "
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
if known < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1";

/// Keeps something that waits, within the budget. What has expired is forgotten first.
const KEEP_WAITING: &str = "
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])) do
  redis.call('ZREM', KEYS[2], member)
  redis.call('DECRBY', KEYS[3], string.match(member, ' (%d+)$'))
end
local cost = #ARGV[3] + tonumber(ARGV[5])
if tonumber(redis.call('GET', KEYS[3]) or '0') + cost > tonumber(ARGV[6]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[2], KEYS[1] .. ' ' .. cost)
redis.call('INCRBY', KEYS[3], cost)
return 1";

/// Forgets what waits and has expired; Redis removes the values by itself.
const SWEEP_WAITING: &str = "
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
for _, member in ipairs(gone) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('DECRBY', KEYS[2], string.match(member, ' (%d+)$'))
end
return #gone";

/// Takes something that waits.
const TAKE_WAITING: &str = "
local value = redis.call('GETDEL', KEYS[1])
if not value then return false end
local cost = #value + tonumber(ARGV[1])
local member = KEYS[1] .. ' ' .. cost
local expires = redis.call('ZSCORE', KEYS[2], member)
if redis.call('ZREM', KEYS[2], member) == 1 then redis.call('DECRBY', KEYS[3], cost) end
if not expires or tonumber(expires) <= tonumber(ARGV[2]) then return false end
return value";

/// Removes a lease that is still one's own.
const RELEASE: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

fn waiting_keys(key: Id) -> [String; 3] {
    [format!("{WAITING}:{}", key.to_text()), format!("{WAITING}:index"), format!("{WAITING}:bytes")]
}

impl Store for RedisStore {
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()> {
        Box::pin(async move {
            // What finds it comes first: a session that is there is found.
            let add = |key: String| {
                let mut add = cmd("EVAL");
                add.arg(ADD).arg(1).arg(key).arg(session.id.to_text()).arg(self.ttl(session.expires));
                add
            };
            for tag in session.tags.iter() {
                self.ask::<Value>(&add(tag_key(tag))).await?;
            }
            let at_its_end = session.expires.as_unix_millis();
            self.ask::<Value>(add(SESSIONS.into()).arg(at_its_end)).await?;
            self.put(session_key(session.id), &session_value(&session)?, session.expires).await?;
            self.put(handle_key(handle.id), &encode(&handle)?, handle.expires).await
        })
    }

    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        Box::pin(async move {
            let there = self.read(handle.session, now).await?.is_some();
            if there {
                self.put(handle_key(handle.id), &encode(&handle)?, handle.expires).await?;
            }
            Ok(there)
        })
    }

    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        Box::pin(async move {
            let Some(value) = self.get(handle_key(handle)).await? else { return Ok(None) };
            let handle: HandleRecord = decode(&value)?;
            if handle.expires <= now {
                return Ok(None);
            }
            Ok(self.read(handle.session, now).await?.map(|session| (handle, session)))
        })
    }

    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        Box::pin(self.read(id, now))
    }

    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        Box::pin(async move {
            let before = session.revision.wrapping_sub(1).to_be_bytes();
            let mut replace = cmd("EVAL");
            replace.arg(REPLACE).arg(1).arg(session_key(session.id));
            replace.arg(&before[..]).arg(session_value(&session)?);
            let replaced: bool = self.ask(&replace).await?;
            if replaced && let Err(error) = self.tell("changed", session.id).await {
                // Others find out when their copy is due.
                tracing::debug!(%error, "other processes were not told of a change");
            }
            Ok(replaced)
        })
    }

    fn end(&self, session: Id) -> Pending<'_, bool> {
        Box::pin(async move {
            let removed: usize = self.ask(cmd("DEL").arg(session_key(session))).await?;
            // Again when it was not there: whoever removed it may not have got so far.
            self.tell("ended", session).await?;
            self.ask::<Value>(cmd("ZREM").arg(SESSIONS).arg(session.to_text())).await?;
            Ok(removed > 0)
        })
    }

    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        Box::pin(async move {
            match kind {
                Keep::HandOff => {
                    let mut dated = expires.as_unix_millis().to_be_bytes().to_vec();
                    dated.extend_from_slice(&value);
                    self.put(kept_key(key), &dated, expires).await
                }
                Keep::Waiting => {
                    let mut keep = cmd("EVAL");
                    keep.arg(KEEP_WAITING).arg(3).arg(&waiting_keys(key)[..]);
                    keep.arg(self.clock.now().as_unix_millis()).arg(expires.as_unix_millis()).arg(value);
                    keep.arg(self.ttl(expires)).arg(OVERHEAD).arg(BUDGET);
                    let kept: bool = self.link.ask(&keep, LIMIT, false).await?;
                    if kept { Ok(()) } else { Err(StoreError::Full) }
                }
            }
        })
    }

    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        Box::pin(async move {
            let taken: Option<Vec<u8>> =
                self.link.ask(cmd("GETDEL").arg(kept_key(key)), LIMIT, false).await?;
            if let Some((expires, value)) = taken.as_deref().and_then(|taken| taken.split_first_chunk::<8>())
            {
                let expires = Timestamp::from_unix_millis(u64::from_be_bytes(*expires));
                return Ok((expires > now).then(|| value.to_vec()));
            }
            let mut take = cmd("EVAL");
            take.arg(TAKE_WAITING).arg(3).arg(&waiting_keys(key)[..]);
            take.arg(OVERHEAD).arg(now.as_unix_millis());
            self.link.ask(&take, LIMIT, false).await
        })
    }

    fn first(&self, key: Id, expires: Timestamp, _: Timestamp) -> Pending<'_, bool> {
        Box::pin(async move {
            let mut say = cmd("SET");
            say.arg(said_key(key)).arg(1).arg("NX").arg("PX").arg(self.ttl(expires));
            let said: Option<String> = self.link.ask(&say, LIMIT, false).await?;
            Ok(said.is_some())
        })
    }

    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>> {
        Box::pin(async move {
            let ids: Vec<String> = self.ask(cmd("SMEMBERS").arg(tag_key(tag))).await?;
            let mut found = Vec::new();
            for text in ids {
                let Some(id) = Id::from_text(&text) else { continue };
                match self.read_any(id).await? {
                    Some(session) => found.extend(Some(session).filter(|session| session.expires > now)),
                    // Ended since.
                    None => drop(self.ask::<Value>(cmd("SREM").arg(tag_key(tag)).arg(text)).await?),
                }
            }
            Ok(found)
        })
    }

    fn list(&self, from: Option<String>, now: Timestamp) -> Pending<'_, Page> {
        Box::pin(async move {
            let from: usize = from.and_then(|from| from.parse().ok()).unwrap_or_default();
            let mut range = cmd("ZRANGE");
            range.arg(SESSIONS).arg(from).arg(from + PAGE - 1);
            let ids: Vec<String> = self.ask(&range).await?;
            let next = (ids.len() == PAGE).then(|| (from + PAGE).to_string());
            let mut page = Page { records: Vec::with_capacity(ids.len()), next };
            for id in ids.iter().filter_map(|text| Id::from_text(text)) {
                page.records.extend(self.read(id, now).await?);
            }
            Ok(page)
        })
    }

    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()> {
        Box::pin(async move {
            for (id, time) in used {
                let mut touch = cmd("EVAL");
                touch.arg(TOUCH).arg(1).arg(used_key(id)).arg(time.as_unix_millis());
                touch.arg(REMEMBERED.as_millis() as u64);
                self.ask::<Value>(&touch).await?;
            }
            Ok(())
        })
    }

    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>> {
        Box::pin(async move {
            let used: Option<u64> = self.ask(cmd("GET").arg(used_key(session))).await?;
            Ok(used.map(Timestamp::from_unix_millis))
        })
    }

    /// Redis removes what has expired by itself; only what waits is counted.
    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        Box::pin(async move {
            let mut forget = cmd("ZREMRANGEBYSCORE");
            forget.arg(SESSIONS).arg("-inf").arg(now.as_unix_millis());
            self.ask::<Value>(&forget).await?;
            let mut sweep = cmd("EVAL");
            let [_, index, bytes] = waiting_keys(Id([0; 16]));
            sweep.arg(SWEEP_WAITING).arg(2).arg(index).arg(bytes).arg(now.as_unix_millis());
            self.ask(&sweep).await
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn position(&self) -> Pending<'_, String> {
        Box::pin(async move {
            type Entries = Vec<(String, Value)>;
            let last: Entries =
                self.ask(cmd("XREVRANGE").arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1)).await?;
            Ok(last.into_iter().next().map_or_else(|| "0-0".to_owned(), |(at, _)| at))
        })
    }

    fn news<'a>(&'a self, since: &'a str) -> Pending<'a, News> {
        Box::pin(async move {
            type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(1000).arg("BLOCK").arg(PATIENCE.as_millis() as u64);
            read.arg("STREAMS").arg(STREAM).arg(since);
            let read: Option<Vec<(String, Entries)>> =
                self.listening.ask(&read, PATIENCE + LIMIT, false).await?;
            let mut news = News { position: since.to_owned(), events: Vec::new() };
            for (at, fields) in read.into_iter().flatten().flat_map(|(_, entries)| entries) {
                for (kind, id) in fields {
                    match (kind.as_str(), id.try_into().map(Id)) {
                        ("ended", Ok(id)) => news.events.push(Event::Ended(id)),
                        ("changed", Ok(id)) => news.events.push(Event::Changed(id)),
                        _ => {}
                    }
                }
                news.position = at;
            }
            Ok(news)
        })
    }

    fn missing(&self, ids: Vec<Id>) -> Pending<'_, Vec<Id>> {
        Box::pin(async move {
            let mut missing = Vec::new();
            for id in ids {
                let there: bool = self.ask(cmd("EXISTS").arg(session_key(id))).await?;
                if !there {
                    missing.push(id);
                }
            }
            Ok(missing)
        })
    }

    fn shelf(&self) -> Option<&dyn Shelf> {
        Some(self)
    }

    fn lease(&self, session: Id, span: Duration) -> Pending<'_, Option<Lease>> {
        Box::pin(async move {
            let lease = Lease { session, owner: Id::random() };
            let mut take = cmd("SET");
            take.arg(lease_key(session)).arg(&lease.owner.0[..]);
            take.arg("NX").arg("PX").arg(span.as_millis() as u64);
            let taken: Option<String> = self.link.ask(&take, LIMIT, false).await?;
            Ok(taken.map(|_| lease))
        })
    }

    fn release(&self, lease: Lease) -> Pending<'_, ()> {
        Box::pin(async move {
            let mut release = cmd("EVAL");
            release.arg(RELEASE).arg(1).arg(lease_key(lease.session)).arg(&lease.owner.0[..]);
            self.ask::<Value>(&release).await.map(drop)
        })
    }
}

/// Redis removes what has expired by itself, by its own clock.
impl Shelf for RedisStore {
    fn put(&self, name: Tag, value: Vec<u8>, expires: Timestamp) -> Pending<'_, ()> {
        Box::pin(async move { Self::put(self, shelf_key(name), &value, expires).await })
    }

    fn get(&self, name: Tag, _: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        Box::pin(async move { Self::get(self, shelf_key(name)).await })
    }
}

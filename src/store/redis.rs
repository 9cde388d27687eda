//! The store in Redis or Valkey, which several processes share: one server, Sentinel, or Cluster.
//!
//! A session is one value with its revision in front, a handle another; both end by themselves. Ending a session removes
//! its value alone: a handle without a session opens nothing. What others have to hear of (an end, a change) goes into a
//! stream, which each process reads on from where it was: nothing is missed while a connection is away.
//!
//! An operation ends within [`LIMIT`]. On a connection that broke it is tried once more, on a new one; each is made so that
//! doing it twice is doing it once, but for taking, which then takes nothing.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisError, RedisFuture, TlsCertificates, TlsMode, Value, cmd,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::{Event, HandleRecord, Id, Keep, Lease, News, Pending, SessionRecord, Store, StoreError};
use crate::clock::{Clock, Timestamp};

/// How long an operation may take, all attempts together.
const LIMIT: Duration = Duration::from_secs(3);
/// How long a new connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait for news.
const PATIENCE: Duration = Duration::from_secs(1);
/// What has expired is kept a little longer, for clocks that differ.
const SLACK: Duration = Duration::from_secs(60);
/// Bytes that may wait in all, and what an entry costs besides its value.
const BUDGET: usize = 16 * 1024 * 1024;
const OVERHEAD: usize = 128;
/// So many events are remembered, and a few more.
const EVENTS: usize = 100_000;

const STREAM: &str = "portcullis:events";
/// Waiting things share a slot, so that a script can count them.
const WAITING: &str = "portcullis:{waiting}";

/// Sessions in Redis.
pub struct RedisStore {
    link: Link,
    /// Waits for news; a connection that waits does nothing else.
    listening: Link,
    clock: Clock,
}

/// Where the servers are.
enum Kind {
    One(Box<Client>),
    Sentinel(Box<Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

/// A connection, made when it is needed and again when it broke.
struct Link {
    kind: Kind,
    line: Mutex<Option<Line>>,
}

#[derive(Clone)]
enum Line {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Line {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(line) => line.req_packed_command(cmd),
            Self::Cluster(line) => line.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(line) => line.req_packed_commands(pipeline, offset, count),
            Self::Cluster(line) => line.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(line) => line.get_db(),
            Self::Cluster(line) => line.get_db(),
        }
    }
}

impl Kind {
    /// Reads a connection string: `redis://`, `rediss://` (TLS), and with `+sentinel` or `+cluster` a list of hosts.
    fn read(text: &str, roots: Option<&[u8]>) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(
            "redis://host:6379/0, rediss://… (TLS), redis+sentinel://host,host/name/0 or redis+cluster://host,host was expected",
        )?;
        let certificates =
            || roots.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem.to_vec()) });
        let plain = |error: RedisError| error.to_string();
        let (base, way) = scheme.split_once('+').unwrap_or((scheme, ""));
        let encrypted = match base {
            "redis" => false,
            "rediss" => true,
            other => return Err(format!("`{other}://` is not redis:// or rediss://")),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let nodes = || -> Result<Vec<ConnectionInfo>, String> {
            let at = if user.is_empty() { String::new() } else { format!("{user}@") };
            let each = hosts.split(',').filter(|host| !host.is_empty());
            each.map(|host| format!("{base}://{at}{host}").into_connection_info().map_err(plain)).collect()
        };
        match way {
            "" => {
                let client = match certificates().filter(|_| encrypted) {
                    Some(certificates) => Client::build_with_tls(text, certificates),
                    None => Client::open(text),
                };
                Ok(Self::One(Box::new(client.map_err(plain)?)))
            }
            "sentinel" => {
                let (name, database) = path.split_once('/').unwrap_or((path, "0"));
                if name.is_empty() {
                    return Err(
                        "the name of the service was expected: redis+sentinel://host:26379,host:26379/NAME"
                            .into(),
                    );
                }
                let nodes = nodes()?;
                let own = nodes.first().map(ConnectionInfo::redis_settings);
                let (username, password) =
                    (own.and_then(|own| own.username()), own.and_then(|own| own.password()));
                let addresses: Vec<ConnectionAddr> = nodes.iter().map(|node| sentinel(node.addr())).collect();
                let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)
                    .map_err(plain)?
                    .set_client_to_redis_db(
                        database.parse().map_err(|_| format!("`{database}` is not a database"))?,
                    );
                if let Some(username) = username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = password {
                    builder = builder.set_client_to_redis_password(password);
                }
                if encrypted {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                    if let Some(certificates) = certificates() {
                        builder = builder.set_client_to_redis_certificates(certificates);
                    }
                }
                Ok(Self::Sentinel(Box::new(Mutex::new(builder.build().map_err(plain)?))))
            }
            "cluster" => {
                let mut builder = ClusterClient::builder(nodes()?)
                    .retries(3)
                    .connection_timeout(CONNECT)
                    .response_timeout(LIMIT);
                if let Some(certificates) = certificates().filter(|_| encrypted) {
                    builder = builder.certs(certificates);
                }
                Ok(Self::Cluster(Box::new(builder.build().map_err(plain)?)))
            }
            other => Err(format!("`+{other}` is not +sentinel or +cluster")),
        }
    }

    async fn connect(&self) -> Result<Line, RedisError> {
        let settings = || {
            // The whole operation is timed.
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None)
        };
        Ok(match self {
            Self::One(client) => {
                Line::One(client.get_multiplexed_async_connection_with_config(&settings()).await?)
            }
            Self::Sentinel(client) => {
                Line::One(client.lock().await.get_async_connection_with_config(&settings()).await?)
            }
            Self::Cluster(client) => Line::Cluster(client.get_async_connection().await?),
        })
    }
}

/// Sentinels listen on a port of their own.
fn sentinel(address: &ConnectionAddr) -> ConnectionAddr {
    let port = |port: u16| if port == 6379 { 26379 } else { port };
    match address {
        ConnectionAddr::Tcp(host, given) => ConnectionAddr::Tcp(host.clone(), port(*given)),
        ConnectionAddr::TcpTls { host, port: given, .. } => ConnectionAddr::Tcp(host.clone(), port(*given)),
        other => other.clone(),
    }
}

impl Link {
    const fn new(kind: Kind) -> Self {
        Self { kind, line: Mutex::const_new(None) }
    }

    async fn line(&self) -> Result<Line, RedisError> {
        let mut held = self.line.lock().await;
        match &*held {
            Some(line) => Ok(line.clone()),
            None => {
                let line = self.kind.connect().await?;
                *held = Some(line.clone());
                Ok(line)
            }
        }
    }

    async fn ask<T: FromRedisValue>(&self, cmd: &Cmd, limit: Duration, again: bool) -> Result<T, StoreError> {
        let asked = tokio::time::timeout(limit, async {
            let mut left = usize::from(again);
            loop {
                let answered = match self.line().await {
                    Ok(mut line) => cmd.query_async::<T>(&mut line).await,
                    Err(error) => Err(error),
                };
                match answered {
                    // A primary that became a replica is no use, although its connection is sound.
                    Err(error) if is_about_connection(&error) => {
                        *self.line.lock().await = None;
                        if left == 0 {
                            return Err(failed(error));
                        }
                        left -= 1;
                    }
                    answered => return answered.map_err(failed),
                }
            }
        });
        match asked.await {
            Ok(answered) => answered,
            Err(_) => {
                *self.line.lock().await = None;
                Err(StoreError::Unavailable(format!("Redis did not answer within {limit:?}")))
            }
        }
    }
}

fn is_about_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_timeout()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN"))
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
        let Some(value) = self.get(session_key(id)).await? else { return Ok(None) };
        let session: SessionRecord = decode(value.get(8..).unwrap_or_default())?;
        Ok(Some(session).filter(|session| session.expires > now))
    }

    async fn tell(&self, kind: &str, id: Id) -> Result<(), StoreError> {
        let mut tell = cmd("XADD");
        tell.arg(STREAM).arg("MAXLEN").arg("~").arg(EVENTS).arg("*").arg(kind).arg(&id.0[..]);
        self.ask::<Value>(&tell).await.map(drop)
    }
}

fn session_key(id: Id) -> String {
    format!("portcullis:session:{}", id.to_text())
}

fn handle_key(id: Id) -> String {
    format!("portcullis:handle:{}", id.to_text())
}

fn kept_key(id: Id) -> String {
    format!("portcullis:kept:{}", id.to_text())
}

fn lease_key(id: Id) -> String {
    format!("portcullis:lease:{}", id.to_text())
}

/// A session's value: the revision, where a script finds it, and the record.
fn session_value(session: &SessionRecord) -> Result<Vec<u8>, StoreError> {
    let mut value = session.revision.to_be_bytes().to_vec();
    value.extend_from_slice(&encode(session)?);
    Ok(value)
}

fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(failed)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// Replaces a value whose revision is the one given; done twice, it is done.
const REPLACE: &str = "
local old = redis.call('GET', KEYS[1])
if not old then return 0 end
if old == ARGV[2] then return 1 end
if string.sub(old, 1, 8) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
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

    /// Redis removes what has expired by itself; only what waits is counted.
    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        Box::pin(async move {
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

//! The store in PostgreSQL, which several processes share.
//!
//! The schema is made, and brought up to date, when a connection is first made. What one process ends or changes stands
//! in a table that each reads on from where it was; `NOTIFY` wakes those who wait, and they look by themselves every
//! second. With several hosts in the connection string the one that takes writes is used, and found anew after a failure.
//!
//! An operation ends within [`LIMIT`]; on a connection that broke it is tried once more, on a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use tokio::sync::{Mutex, Notify};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::form::{encode, failed};
use super::waiting::{BUDGET, OVERHEAD};
use super::{
    Event, HandleRecord, Id, Keep, Lease, News, Page, Pending, SessionRecord, Shelf, Store, StoreError, Tag,
    form,
};
use crate::clock::Timestamp;
use crate::crypto;

/// How long an operation may take, all attempts together.
const LIMIT: Duration = Duration::from_secs(3);
/// How long a new connection to one host may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait for news.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many connections share the work.
const CONNECTIONS: usize = 4;
/// So many sessions are on a page.
const PAGE: usize = 500;

const SCHEMA: &str = include_str!("postgres.sql");
/// The number that the schema ends with.
const VERSION: i32 = 3;

type Parameters<'a> = [&'a (dyn ToSql + Sync)];

/// Sessions in PostgreSQL.
pub struct PostgresStore {
    config: Config,
    tls: MakeRustlsConnect,
    lines: Vec<Mutex<Option<Arc<Client>>>>,
    next: AtomicUsize,
    /// The connection that listens.
    listening: Mutex<Option<Arc<Client>>>,
    told: Arc<Notify>,
    /// Whether the schema is as it should be.
    prepared: Mutex<bool>,
}

impl PostgresStore {
    /// A store at a connection string, a URL or `key=value` pairs; nothing is asked yet. `roots`: trust roots for TLS, PEM,
    /// instead of the system's.
    ///
    /// # Errors
    /// What is wrong with the string.
    pub fn new(connection: &str, roots: Option<&[u8]>) -> Result<Self, String> {
        // What `sslmode` means to others: here an encrypted connection is always verified.
        let (connection, verified) = match connection {
            text if text.contains("sslmode=verify-full") => {
                (text.replace("sslmode=verify-full", "sslmode=require"), true)
            }
            text if text.contains("sslmode=verify-ca") => {
                (text.replace("sslmode=verify-ca", "sslmode=require"), true)
            }
            text => (text.to_owned(), false),
        };
        let mut config: Config = connection.parse().map_err(|_| {
            // The error repeats the string, and in it the password.
            "postgres://user:password@host:5432/database was expected, or host=… user=… dbname=…".to_owned()
        })?;
        if config.get_hosts().is_empty() {
            return Err("a host was expected: postgres://user:password@host:5432/database".into());
        }
        if verified {
            config.ssl_mode(SslMode::Require);
        }
        config.connect_timeout(CONNECT).target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.application_name("portcullis");
        let roots = match roots {
            Some(pem) => {
                let mut own = RootCertStore::empty();
                crypto::read_roots(pem, &mut own).map_err(|error| error.to_string())?;
                Arc::new(own)
            }
            None => crypto::system_roots(),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(tls),
            lines: (0..CONNECTIONS).map(|_| Mutex::new(None)).collect(),
            next: AtomicUsize::new(0),
            listening: Mutex::new(None),
            told: Arc::new(Notify::new()),
            prepared: Mutex::new(false),
        })
    }

    async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        let told = self.told.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    told.notify_waiters();
                }
            }
        });
        Ok(client)
    }

    /// A connection, made when it is needed.
    async fn client(
        &self,
        line: &Mutex<Option<Arc<Client>>>,
        listens: bool,
    ) -> Result<Arc<Client>, tokio_postgres::Error> {
        let mut held = line.lock().await;
        if let Some(client) = held.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        self.prepare(&client).await?;
        if listens {
            client.batch_execute("LISTEN portcullis").await?;
        }
        let client = Arc::new(client);
        *held = Some(client.clone());
        Ok(client)
    }

    /// Makes the schema, or brings it up to date. Where it is as it should be nothing is touched: the locks that making an
    /// index takes would get into the way of those who work already.
    async fn prepare(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let mut prepared = self.prepared.lock().await;
        if !*prepared && version(client).await? < VERSION {
            // Of those who start at once the first one makes it, and the others see afterwards that it is there.
            // The lock is not a transaction's: one that began before would not see what others made meanwhile.
            client.batch_execute("SELECT pg_advisory_lock(8246346)").await?;
            if version(client).await? < VERSION {
                client.batch_execute(&format!("BEGIN;\n{SCHEMA}\nCOMMIT;")).await?;
            }
            client.batch_execute("SELECT pg_advisory_unlock(8246346)").await?;
        }
        *prepared = true;
        Ok(())
    }

    async fn ask_on(
        &self,
        line: &Mutex<Option<Arc<Client>>>,
        listens: bool,
        (statement, parameters): (&str, &Parameters<'_>),
        again: bool,
    ) -> Result<Vec<Row>, StoreError> {
        let asked = tokio::time::timeout(LIMIT, async {
            let mut left = usize::from(again);
            loop {
                let answered = match self.client(line, listens).await {
                    Ok(client) => client.query(statement, parameters).await,
                    Err(error) => Err(error),
                };
                match answered {
                    // A server that became a replica refuses writes on a sound connection.
                    Err(error) if error.is_closed() || error.code().is_none_or(is_about_server) => {
                        // A database that was made anew has no schema.
                        *self.prepared.lock().await = false;
                        *line.lock().await = None;
                        if left == 0 {
                            return Err(failed(describe(&error)));
                        }
                        left -= 1;
                    }
                    answered => return answered.map_err(|error| failed(describe(&error))),
                }
            }
        });
        match asked.await {
            Ok(answered) => answered,
            Err(_) => {
                *line.lock().await = None;
                Err(StoreError::Unavailable(format!("PostgreSQL did not answer within {LIMIT:?}")))
            }
        }
    }

    async fn ask(&self, statement: &str, parameters: &Parameters<'_>) -> Result<Vec<Row>, StoreError> {
        self.ask_as(statement, parameters, true).await
    }

    async fn ask_as(
        &self,
        statement: &str,
        parameters: &Parameters<'_>,
        again: bool,
    ) -> Result<Vec<Row>, StoreError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.lines.len().max(1);
        let Some(line) = self.lines.get(turn) else { return Err(failed("there is no connection")) };
        self.ask_on(line, false, (statement, parameters), again).await
    }

    /// How many transactions the server ended because they waited for each other.
    #[cfg(test)]
    pub(super) async fn deadlocks(&self) -> i64 {
        // A connection says so when it ends.
        let others = "SELECT count(*) FROM pg_stat_activity WHERE usename IS NOT NULL AND backend_type = 'client backend' \
                      AND pid <> pg_backend_pid()";
        while self.ask_as(others, &[], false).await.unwrap()[0].get::<_, i64>(0) > (CONNECTIONS - 1) as i64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let rows = self.ask("SELECT sum(deadlocks)::bigint FROM pg_stat_database", &[]).await.unwrap();
        rows[0].get(0)
    }

    async fn since(&self, number: i64) -> Result<Vec<Row>, StoreError> {
        let statement = "SELECT number, ended, session FROM portcullis.events WHERE number > $1 ORDER BY number LIMIT 1000";
        self.ask_on(&self.listening, true, (statement, &[&number]), true).await
    }
}

/// The number of the schema that is there, 0 if there is none.
async fn version(client: &Client) -> Result<i32, tokio_postgres::Error> {
    let there = client.query_one("SELECT to_regclass('portcullis.version') IS NOT NULL", &[]).await?;
    match there.try_get(0)? {
        true => {
            let number = "SELECT coalesce(max(number), 0) FROM portcullis.version";
            client.query_one(number, &[]).await?.try_get(0)
        }
        false => Ok(0),
    }
}

/// Whether an error is about the server and not about what was asked (classes 08, 25 and 57 of SQLSTATE), about others who
/// work at the same time (40: nothing was done), or about a schema that is not there (3F, 42P01).
fn is_about_server(code: &tokio_postgres::error::SqlState) -> bool {
    ["08", "25", "40", "57", "3F", "42P01"].iter().any(|class| code.code().starts_with(class))
}

/// An error with what is behind it; none repeats the connection string.
fn describe(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn decode<T: DeserializeOwned>(row: &Row, column: usize) -> Result<T, StoreError> {
    form::decode(row.try_get(column).map_err(failed)?)
}

fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_unix_millis()).unwrap_or(i64::MAX)
}

/// What a function or `EXISTS` said.
fn said(rows: &[Row]) -> Result<bool, StoreError> {
    rows.first().map_or(Ok(false), |row| row.try_get(0).map_err(failed))
}

impl Store for PostgresStore {
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()> {
        Box::pin(async move {
            let revision = i64::try_from(session.revision).map_err(failed)?;
            // One statement: both or neither; done twice, it is done.
            let statement = "WITH session AS (INSERT INTO portcullis.sessions (id, revision, expires, record, tags) \
                VALUES ($1, $2, $3, $4, $8) ON CONFLICT (id) DO NOTHING) \
                INSERT INTO portcullis.handles (id, session, expires, record) VALUES ($5, $1, $6, $7) \
                ON CONFLICT (id) DO NOTHING";
            let (record, own) = (encode(&session)?, encode(&handle)?);
            let (id, handle_id) = (&session.id.0[..], &handle.id.0[..]);
            let (expires, until) = (millis(session.expires), millis(handle.expires));
            let tags: Vec<Tag> = session.tags.iter().collect();
            let tags: Vec<&[u8]> = tags.iter().map(|tag| &tag.0[..]).collect();
            self.ask(statement, &[&id, &revision, &expires, &record, &handle_id, &until, &own, &tags])
                .await
                .map(drop)
        })
    }

    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        Box::pin(async move {
            let statement = "INSERT INTO portcullis.handles (id, session, expires, record) \
                SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT 1 FROM portcullis.sessions WHERE id = $2 AND expires > $5) \
                ON CONFLICT (id) DO UPDATE SET record = $4 RETURNING true";
            let (id, session) = (&handle.id.0[..], &handle.session.0[..]);
            let record = encode(&handle)?;
            let rows =
                self.ask(statement, &[&id, &session, &millis(handle.expires), &record, &millis(now)]).await?;
            said(&rows)
        })
    }

    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        Box::pin(async move {
            let statement = "SELECT h.record, s.record FROM portcullis.handles h \
                JOIN portcullis.sessions s ON s.id = h.session WHERE h.id = $1 AND h.expires > $2 AND s.expires > $2";
            let rows = self.ask(statement, &[&&handle.0[..], &millis(now)]).await?;
            rows.first().map(|row| Ok((decode(row, 0)?, decode(row, 1)?))).transpose()
        })
    }

    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        Box::pin(async move {
            let statement = "SELECT record FROM portcullis.sessions WHERE id = $1 AND expires > $2";
            let rows = self.ask(statement, &[&&id.0[..], &millis(now)]).await?;
            rows.first().map(|row| decode(row, 0)).transpose()
        })
    }

    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        Box::pin(async move {
            let revision = i64::try_from(session.revision).map_err(failed)?;
            let record = encode(&session)?;
            let statement = "SELECT portcullis.replace_session($1, $2, $3)";
            said(&self.ask(statement, &[&&session.id.0[..], &revision, &record]).await?)
        })
    }

    fn end(&self, session: Id) -> Pending<'_, bool> {
        Box::pin(
            async move { said(&self.ask("SELECT portcullis.end_session($1)", &[&&session.0[..]]).await?) },
        )
    }

    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        Box::pin(async move {
            let (id, until) = (&key.0[..], millis(expires));
            match kind {
                Keep::HandOff => {
                    let statement = "INSERT INTO portcullis.kept (id, waiting, expires, value) \
                        VALUES ($1, false, $2, $3) ON CONFLICT (id) DO UPDATE SET expires = $2, value = $3";
                    self.ask(statement, &[&id, &until, &value]).await.map(drop)
                }
                Keep::Waiting => {
                    let statement = "SELECT portcullis.keep_waiting($1, $2, $3, $4, $5)";
                    let rows = self
                        .ask(statement, &[&id, &until, &value, &i64::from(OVERHEAD), &i64::from(BUDGET)])
                        .await?;
                    if said(&rows)? { Ok(()) } else { Err(StoreError::Full) }
                }
            }
        })
    }

    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        Box::pin(async move {
            let statement = "DELETE FROM portcullis.kept WHERE id = $1 RETURNING expires, value";
            let rows = self.ask_as(statement, &[&&key.0[..]], false).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let expires: i64 = row.try_get(0).map_err(failed)?;
            let value: Vec<u8> = row.try_get(1).map_err(failed)?;
            Ok((expires > millis(now)).then_some(value))
        })
    }

    fn first(&self, key: Id, expires: Timestamp, now: Timestamp) -> Pending<'_, bool> {
        Box::pin(async move {
            let statement = "INSERT INTO portcullis.said (id, expires) VALUES ($1, $2) \
                ON CONFLICT (id) DO UPDATE SET expires = $2 WHERE portcullis.said.expires <= $3 RETURNING true";
            said(&self.ask_as(statement, &[&&key.0[..], &millis(expires), &millis(now)], false).await?)
        })
    }

    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>> {
        Box::pin(async move {
            let statement = "SELECT record FROM portcullis.sessions WHERE tags @> $1 AND expires > $2";
            let rows = self.ask(statement, &[&vec![&tag.0[..]], &millis(now)]).await?;
            rows.iter().map(|row| decode(row, 0)).collect()
        })
    }

    fn list(&self, from: Option<String>, now: Timestamp) -> Pending<'_, Page> {
        Box::pin(async move {
            let after = from.as_deref().and_then(Id::from_text).map_or_else(Vec::new, |id| id.0.to_vec());
            let statement =
                "SELECT record FROM portcullis.sessions WHERE id > $1 AND expires > $2 ORDER BY id LIMIT $3";
            let rows = self.ask(statement, &[&after, &millis(now), &(PAGE as i64)]).await?;
            let records: Result<Vec<SessionRecord>, _> = rows.iter().map(|row| decode(row, 0)).collect();
            let records = records?;
            let last = records.last().filter(|_| records.len() == PAGE);
            Ok(Page { next: last.map(|last| last.id.to_text()), records })
        })
    }

    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()> {
        Box::pin(async move {
            let ids: Vec<&[u8]> = used.iter().map(|(id, _)| &id.0[..]).collect();
            let times: Vec<i64> = used.iter().map(|(_, time)| millis(*time)).collect();
            let statement = "UPDATE portcullis.sessions s SET used = greatest(s.used, u.time) \
                FROM unnest($1::bytea[], $2::bigint[]) AS u (id, time) WHERE s.id = u.id";
            self.ask(statement, &[&ids, &times]).await.map(drop)
        })
    }

    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>> {
        Box::pin(async move {
            let statement = "SELECT used FROM portcullis.sessions WHERE id = $1";
            let rows = self.ask(statement, &[&&session.0[..]]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let used: Option<i64> = row.try_get(0).map_err(failed)?;
            Ok(used.and_then(|used| u64::try_from(used).ok()).map(Timestamp::from_unix_millis))
        })
    }

    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        Box::pin(async move {
            let statement = "WITH s AS (DELETE FROM portcullis.sessions WHERE expires <= $1 RETURNING 1), \
                h AS (DELETE FROM portcullis.handles WHERE expires <= $1 RETURNING 1), \
                k AS (DELETE FROM portcullis.kept WHERE expires <= $1 RETURNING 1), \
                w AS (DELETE FROM portcullis.said WHERE expires <= $1), \
                p AS (DELETE FROM portcullis.shelf WHERE expires <= $1), \
                l AS (DELETE FROM portcullis.leases WHERE until < clock_timestamp()), \
                e AS (DELETE FROM portcullis.events WHERE at < clock_timestamp() - interval '1 hour') \
                SELECT (SELECT count(*) FROM s) + (SELECT count(*) FROM h) + (SELECT count(*) FROM k)";
            let rows = self.ask(statement, &[&millis(now)]).await?;
            let swept: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(failed)?;
            Ok(usize::try_from(swept).unwrap_or_default())
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn position(&self) -> Pending<'_, String> {
        Box::pin(async move {
            let rows = self.ask("SELECT coalesce(max(number), 0) FROM portcullis.events", &[]).await?;
            let last: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(failed)?;
            Ok(last.to_string())
        })
    }

    fn news<'a>(&'a self, since: &'a str) -> Pending<'a, News> {
        Box::pin(async move {
            let number: i64 = since.parse().map_err(failed)?;
            let told = self.told.notified();
            let mut rows = self.since(number).await?;
            if rows.is_empty() {
                // Woken or not, it looks again.
                let _ = tokio::time::timeout(PATIENCE, told).await;
                rows = self.since(number).await?;
            }
            let mut news = News { position: since.to_owned(), events: Vec::with_capacity(rows.len()) };
            for row in rows {
                let (number, ended): (i64, bool) =
                    (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
                let id: &[u8] = row.try_get(2).map_err(failed)?;
                if let Ok(id) = id.try_into().map(Id) {
                    news.events.push(if ended { Event::Ended(id) } else { Event::Changed(id) });
                }
                news.position = number.to_string();
            }
            Ok(news)
        })
    }

    fn missing(&self, ids: Vec<Id>) -> Pending<'_, Vec<Id>> {
        Box::pin(async move {
            let mut missing = Vec::new();
            for some in ids.chunks(1000) {
                let asked: Vec<&[u8]> = some.iter().map(|id| &id.0[..]).collect();
                let statement = "SELECT id FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (id, place) \
                    WHERE NOT EXISTS (SELECT 1 FROM portcullis.sessions s WHERE s.id = asked.id) ORDER BY place";
                for row in self.ask(statement, &[&asked]).await? {
                    let id: &[u8] = row.try_get(0).map_err(failed)?;
                    missing.extend(id.try_into().map(Id).ok());
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
            let statement = "INSERT INTO portcullis.leases (session, owner, until) \
                VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond') \
                ON CONFLICT (session) DO UPDATE SET owner = $2, until = excluded.until \
                WHERE portcullis.leases.until < clock_timestamp() RETURNING true";
            #[allow(clippy::cast_precision_loss, reason = "a lease is short")]
            let span = span.as_millis() as f64;
            let rows = self.ask_as(statement, &[&&session.0[..], &&lease.owner.0[..], &span], false).await?;
            Ok(said(&rows)?.then_some(lease))
        })
    }

    fn release(&self, lease: Lease) -> Pending<'_, ()> {
        Box::pin(async move {
            let statement = "DELETE FROM portcullis.leases WHERE session = $1 AND owner = $2";
            self.ask(statement, &[&&lease.session.0[..], &&lease.owner.0[..]]).await.map(drop)
        })
    }
}

impl Shelf for PostgresStore {
    fn put(&self, name: Tag, value: Vec<u8>, expires: Timestamp) -> Pending<'_, ()> {
        Box::pin(async move {
            let statement = "INSERT INTO portcullis.shelf (name, expires, value) VALUES ($1, $2, $3) \
                ON CONFLICT (name) DO UPDATE SET expires = $2, value = $3";
            self.ask(statement, &[&&name.0[..], &millis(expires), &value]).await.map(drop)
        })
    }

    fn get(&self, name: Tag, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        Box::pin(async move {
            let statement = "SELECT value FROM portcullis.shelf WHERE name = $1 AND expires > $2";
            let rows = self.ask(statement, &[&&name.0[..], &millis(now)]).await?;
            rows.first().map(|row| row.try_get(0)).transpose().map_err(failed)
        })
    }
}

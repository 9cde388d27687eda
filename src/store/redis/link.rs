//! A connection to Redis, one server, Sentinel or Cluster, made anew when it broke.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisError, RedisFuture, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

use super::super::StoreError;
use super::super::form::failed;
use super::LIMIT;

/// How long a new connection may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Where the servers are.
pub(super) enum Kind {
    One(Box<Client>),
    Sentinel(Box<Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

/// A connection, made when it is needed and again when it broke.
pub(super) struct Link {
    kind: Kind,
    line: Mutex<Option<Line>>,
}

#[derive(Clone)]
pub(super) enum Line {
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
    pub(super) fn read(text: &str, roots: Option<&[u8]>) -> Result<Self, String> {
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
    pub(super) const fn new(kind: Kind) -> Self {
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

    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        cmd: &Cmd,
        limit: Duration,
        again: bool,
    ) -> Result<T, StoreError> {
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

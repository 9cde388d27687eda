//! Whether what outlives a process can be used, before one starts.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::state;
use crate::authenticate::Finding;
use crate::clock::Clock;
use crate::config::{CONTROL_SOCKET, Connection, Settings, Storage};
use crate::store::{Id, Keep, PostgresStore, RedisStore, Store, StoreError};

/// How long a store may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// What is kept to try it ends by itself, should it not be taken.
const KEPT: Duration = Duration::from_secs(10);

/// What is wrong with the session store and the state directory.
pub async fn examine_state(settings: &Settings) -> Vec<Finding> {
    if !settings.services.authorize {
        return Vec::new();
    }
    let found = match &settings.storage {
        Some(Storage::Memory) => None,
        Some(Storage::Redis(Connection { text, roots })) => {
            match RedisStore::new(text.expose(), roots.as_deref(), Clock::system()) {
                Ok(store) => shared(&store, "redis").await,
                Err(error) => Some(broken("redis", &error)),
            }
        }
        Some(Storage::Postgres(Connection { text, roots })) => {
            match PostgresStore::new(text.expose(), roots.as_deref()) {
                Ok(store) => shared(&store, "postgres").await,
                Err(error) => Some(broken("postgres", &error)),
            }
        }
        Some(Storage::File) => directory(&settings.state_dir, true).await,
        None => directory(&settings.state_dir, false).await,
    };
    found.into_iter().collect()
}

/// Whether a store that is shared answers, and keeps what it is given.
async fn shared(store: &dyn Store, kind: &str) -> Option<Finding> {
    let now = Clock::system().now();
    let id = Id::random();
    let tried = async {
        store.position().await?;
        store.keep(id, b"portcullis doctor".to_vec(), now + KEPT, Keep::HandOff).await?;
        store.take(id, now).await
    };
    match tokio::time::timeout(PATIENCE, tried).await {
        Ok(Ok(Some(_))) => None,
        Ok(Ok(None)) => Some(broken(kind, &"it does not keep what it is given")),
        Ok(Err(StoreError::Full)) => Some(broken(kind, &"it is full")),
        Ok(Err(error)) => Some(broken(kind, &error)),
        Err(_) => Some(broken(kind, &format!("it does not answer within {PATIENCE:?}"))),
    }
}

fn broken(kind: &str, error: &dyn std::fmt::Display) -> Finding {
    Finding::grave(
        format!("session store ({kind})"),
        format!(
            "{error}: nobody can sign in; correct databroker_storage_connection_string, or mend the store"
        ),
    )
}

/// Whether the state directory can be written; a running process is not disturbed.
async fn directory(path: &Path, is_needed: bool) -> Option<Finding> {
    if UnixStream::connect(path.join(CONTROL_SOCKET)).await.is_ok() {
        return None;
    }
    // What does not exist would be made within the first that does.
    let there = path.ancestors().find(|one| one.exists())?;
    let error = state::write_probe(there).err()?;
    let text = format!("{} cannot be written: {error}", there.display());
    Some(if is_needed {
        Finding::grave(
            "state_dir",
            format!("{text}; the process cannot start: give it to its user, or set state_dir"),
        )
    } else {
        Finding::slight(
            "state_dir",
            format!(
                "{text}; sessions would be kept in memory and end with the process: give it to its user, or set state_dir or \
                 databroker_storage_type"
            ),
        )
    })
}

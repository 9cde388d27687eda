//! What outlives a process: its store, its secret; and the socket by which an administrator reaches it.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};

use super::RuntimeError;
use crate::clock::Clock;
use crate::config::{Connection, Files, KEPT_SECRET, Settings, Storage};
use crate::crypto::{self, KeyRing};
use crate::store::{FileStore, MemoryStore, PostgresStore, RedisStore, Store};

/// What outlives a restart, where it can.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Store>,
    /// The secrets: the first makes.
    pub(super) keys: KeyRing,
    /// The kind of store, for the log.
    pub(super) kind: &'static str,
    /// Where secrets are kept that were made because none was set.
    pub(super) kept_secrets: Option<PathBuf>,
}

/// Opens the store, and finds or makes the server's secret.
pub(super) fn open(settings: &Settings) -> Result<Opened, RuntimeError> {
    let configured = KeyRing::of(settings.secrets.iter().copied());
    let typed = || configured.clone().unwrap_or_else(KeyRing::random);
    if !settings.services.authorize {
        // Sessions are where it is decided.
        return Ok(Opened {
            store: Arc::new(MemoryStore::new()),
            keys: typed(),
            kind: "none",
            kept_secrets: None,
        });
    }
    let directory = &settings.state_dir;
    let usable = make_directory(directory);
    let memory =
        || Opened { store: Arc::new(MemoryStore::new()), keys: typed(), kind: "memory", kept_secrets: None };
    let fail = |what: String| {
        move |error: &dyn std::fmt::Display| RuntimeError::State {
            what: what.clone(),
            error: error.to_string(),
        }
    };
    let elsewhere = |store: Result<Arc<dyn Store>, String>, kind| {
        let what = "databroker_storage_connection_string".to_owned();
        let store = store.map_err(|error| RuntimeError::State { what, error })?;
        Ok(Opened { store, kind, ..memory() })
    };
    match (&settings.storage, usable) {
        (Some(Storage::Memory), _) => Ok(memory()),
        (Some(Storage::Redis(Connection { text, roots })), _) => {
            let store = RedisStore::new(text.expose(), roots.as_deref(), Clock::system());
            elsewhere(store.map(|store| Arc::new(store) as _), "redis")
        }
        (Some(Storage::Postgres(Connection { text, roots })), _) => {
            let store = PostgresStore::new(text.expose(), roots.as_deref());
            elsewhere(store.map(|store| Arc::new(store) as _), "postgres")
        }
        (None, Err(error)) => {
            tracing::warn!(
                state_dir = %directory.display(), %error,
                "state_dir cannot be written: sessions are kept in memory and end with the process"
            );
            Ok(memory())
        }
        (Some(Storage::File), Err(error)) => {
            Err(fail(format!("state_dir {} cannot be used", directory.display()))(&error))
        }
        (_, Ok(())) => {
            let path = directory.join("sessions.redb");
            let store = FileStore::open(&path);
            let store =
                store.map_err(|error| fail(format!("{} cannot be opened", path.display()))(&error))?;
            let (keys, kept_secrets) = match configured {
                Some(keys) => (keys, None),
                None => {
                    let path = directory.join(KEPT_SECRET);
                    (kept_secrets(&path)?, Some(path))
                }
            };
            Ok(Opened { store: Arc::new(store), keys, kind: "file", kept_secrets })
        }
    }
}

pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    write_probe(directory)
}

/// Whether a directory can be written.
pub(super) fn write_probe(directory: &Path) -> io::Result<()> {
    let probe = directory.join(".writable");
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&probe)?;
    std::fs::remove_file(&probe)
}

/// The secrets of an earlier start, or a new one that the next start finds: 32 bytes each, the first one makes.
fn kept_secrets(path: &Path) -> Result<KeyRing, RuntimeError> {
    let fail = |error: &dyn std::fmt::Display| unusable(path, error);
    match std::fs::read(path) {
        Ok(bytes) => ring_of(path, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret: [u8; 32] = crypto::random();
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(|error| fail(&error))?;
            io::Write::write_all(&mut file, &secret)
                .and_then(|()| file.sync_all())
                .map_err(|error| fail(&error))?;
            Ok(KeyRing::new(secret))
        }
        Err(error) => Err(fail(&error)),
    }
}

/// The same, once there are some; `None`: they were removed, and those of before go on until the next start.
pub(super) fn read_kept_secrets(path: &Path, files: &mut Files) -> Result<Option<KeyRing>, RuntimeError> {
    match files.read(path) {
        Ok(bytes) => ring_of(path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn ring_of(path: &Path, bytes: &[u8]) -> Result<KeyRing, RuntimeError> {
    let (secrets, rest) = bytes.as_chunks::<32>();
    KeyRing::of(secrets.iter().copied())
        .filter(|_| rest.is_empty())
        .ok_or_else(|| unusable(path, &"it does not hold 32 bytes; remove it to have a new one made"))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::State { what: path.display().to_string(), error: error.to_string() }
}

/// A socket in `state_dir` that only the owner may use; `None` when it cannot be had, which is said, with what that means.
pub(super) async fn open_socket(
    directory: &Path,
    name: &str,
    meaning: &str,
) -> Option<(Arc<UnixListener>, PathBuf)> {
    let path = directory.join(name);
    let without =
        |why: &str| tracing::warn!(socket = %path.display(), why, "there is no such socket: {meaning}");
    if UnixStream::connect(&path).await.is_ok() {
        without("another process answers there");
        return None;
    }
    // Nobody answers: it was left by one that is gone.
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            without(&error.to_string());
            return None;
        }
    }
    let bound = UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    match bound {
        Ok(listener) => Some((Arc::new(listener), path)),
        Err(error) => {
            without(&error.to_string());
            None
        }
    }
}

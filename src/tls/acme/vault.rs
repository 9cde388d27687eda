//! Where certificates, accounts and challenges are kept: in files of this machine, or in the store that processes share.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::clock::Timestamp;
use crate::crypto::{self, KeyRing, Purpose};
use crate::store::{Id, Lease, Store, Tag};

/// Who has a lock and dies has it for so long.
const LOCKED: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Clone)]
pub enum Vault {
    /// Files below this directory, which their owner alone may read.
    Files(PathBuf),
    /// A store with a shelf. What is put there is sealed.
    Shared(Arc<dyn Store>),
}

/// The right to order, which one process has.
pub(super) enum Lock {
    /// Closing it unlocks it.
    File {
        _file: fs::File,
    },
    Lease(Arc<dyn Store>, Option<Lease>),
}

impl Vault {
    /// What has this name, and whether it is sealed with a secret that is not the first one.
    pub(super) async fn read(
        &self,
        name: &str,
        keys: Option<&KeyRing>,
        now: Timestamp,
    ) -> Result<Option<(Vec<u8>, bool)>, String> {
        match self {
            Self::Files(directory) => {
                let path = directory.join(name);
                let text = path.display().to_string();
                match blocking(move || fs::read(path)).await {
                    Ok(value) => Ok(Some((value, false))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(format!("{text} cannot be read: {error}")),
                }
            }
            Self::Shared(store) => {
                let (Some(shelf), Some(keys)) = (store.shelf(), keys) else { return Ok(None) };
                for (at, tag) in keys.tags(Purpose::Certificate, &[name.as_bytes()]).into_iter().enumerate() {
                    if let Some(sealed) = shelf.get(Tag(tag), now).await.map_err(|error| error.to_string())? {
                        // What was sealed with a secret that is not known any more is not there.
                        let opened = keys.open(Purpose::Certificate, &[name.as_bytes()], &sealed);
                        return Ok(opened.map(|value| (value, at > 0)));
                    }
                }
                Ok(None)
            }
        }
    }

    pub(super) async fn write(
        &self,
        name: &str,
        value: Vec<u8>,
        keys: Option<&KeyRing>,
        expires: Timestamp,
    ) -> Result<(), String> {
        match self {
            Self::Files(directory) => {
                let (root, path) = (directory.clone(), directory.join(name));
                let text = path.display().to_string();
                let written = blocking(move || write_file(&root, &path, &value)).await;
                written.map_err(|error| format!("{text} cannot be written: {error}"))
            }
            Self::Shared(store) => {
                let (Some(shelf), Some(keys)) = (store.shelf(), keys) else { return Ok(()) };
                let tag = Tag(keys.tag(Purpose::Certificate, &[name.as_bytes()]));
                let sealed = keys.seal(Purpose::Certificate, &[name.as_bytes()], &value);
                shelf.put(tag, sealed, expires).await.map_err(|error| error.to_string())
            }
        }
    }

    pub(super) async fn remove(
        &self,
        name: &str,
        keys: Option<&KeyRing>,
        now: Timestamp,
    ) -> Result<(), String> {
        match self {
            Self::Files(directory) => {
                let path = directory.join(name);
                let text = path.display().to_string();
                match blocking(move || fs::remove_file(path)).await {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(format!("{text} cannot be removed: {error}"))
                    }
                    _ => Ok(()),
                }
            }
            // What is there in its place is nothing, and soon gone.
            Self::Shared(_) => self.write(name, Vec::new(), keys, now).await,
        }
    }

    /// The right to order what has this name; `None` when another process has it.
    pub(super) async fn lock(&self, name: &str) -> Result<Option<Lock>, String> {
        match self {
            Self::Files(directory) => {
                let (root, path) = (directory.clone(), directory.join(".locks").join(name));
                let text = path.display().to_string();
                let locked = blocking(move || {
                    make_parent(&root, &path)?;
                    let file = private().create(true).truncate(false).write(true).open(&path)?;
                    match file.try_lock() {
                        Ok(()) => Ok(Some(Lock::File { _file: file })),
                        Err(fs::TryLockError::WouldBlock) => Ok(None),
                        Err(fs::TryLockError::Error(error)) => Err(error),
                    }
                });
                locked.await.map_err(|error| format!("{text} cannot be locked: {error}"))
            }
            Self::Shared(store) => {
                let hash = crypto::sha256(format!("portcullis acme {name}").as_bytes());
                let id = hash.first_chunk().map_or_else(Id::random, |half| Id(*half));
                let lease = store.lease(id, LOCKED).await.map_err(|error| error.to_string())?;
                Ok(lease.map(|lease| Lock::Lease(store.clone(), Some(lease))))
            }
        }
    }
}

impl Lock {
    /// Gives the right back.
    pub(super) async fn release(mut self) {
        if let Self::Lease(store, lease) = &mut self
            && let Some(lease) = lease.take()
            && let Err(error) = store.release(lease).await
        {
            tracing::warn!(%error, "a lock of ACME is held until it is over");
        }
    }
}

/// An order that is broken off gives it back too.
impl Drop for Lock {
    fn drop(&mut self) {
        if let Self::Lease(store, lease) = self
            && let Some(lease) = lease.take()
            && let Ok(control) = tokio::runtime::Handle::try_current()
        {
            let store = store.clone();
            // Without it the lock ends by itself, later.
            control.spawn(async move { store.release(lease).await });
        }
    }
}

fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.mode(0o600);
    options
}

fn make_parent(root: &Path, path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(root);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)
}

/// The old value or the new one is there, whatever happens meanwhile.
fn write_file(root: &Path, path: &Path, value: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    make_parent(root, path)?;
    let beside = root.join(".new").join(crypto::random_name::<12>());
    make_parent(root, &beside)?;
    let written = (|| {
        let mut file = private().create(true).truncate(true).write(true).open(&beside)?;
        file.write_all(value)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if let Err(error) = written {
        // A part of it helps nobody.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    fs::File::open(path.parent().unwrap_or(root))?.sync_all()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

//! The store in one file: sessions outlive the process, a crash included.
//!
//! redb writes whole transactions and syncs them to the disk before it answers. It blocks, so one thread of
//! its own does it, fed through a bounded queue; what waits in the queue together is committed together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{
    Database, MultimapTableDefinition, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::form::{decode, encode, failed};
use super::waiting::Waiting;
use super::{HandleRecord, Id, Keep, Lease, Page, Pending, SessionRecord, Store, StoreError, Tag};
use crate::clock::Timestamp;

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions-2");
const HANDLES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("handles-2");
/// The handles of a session, so that ending one does not read them all.
const HANDLES_OF: MultimapTableDefinition<'_, &[u8], &[u8]> = MultimapTableDefinition::new("handles-of-2");
/// The sessions with a tag.
const TAGGED: MultimapTableDefinition<'_, &[u8], &[u8]> = MultimapTableDefinition::new("tagged-2");
/// When sessions were last used.
const USED: TableDefinition<'_, &[u8], u64> = TableDefinition::new("used-2");
const KEPT: TableDefinition<'_, &[u8], (u64, &[u8])> = TableDefinition::new("kept-1");
/// What was said once.
const SAID: TableDefinition<'_, &[u8], u64> = TableDefinition::new("said-1");

/// So many operations may wait; then callers do.
const QUEUE: usize = 1024;
/// So many operations share one commit.
const BATCH: usize = 64;
/// redb's own cache of pages.
const CACHE: usize = 8 * 1024 * 1024;
/// So many sessions are on a page.
const PAGE: usize = 500;
/// So many endings may wait to be told to another process.
const ENDINGS: usize = 4096;

/// Sessions in a file.
pub struct FileStore {
    queue: mpsc::Sender<Operation>,
    thread: Option<JoinHandle<()>>,
    waiting: Arc<Waiting>,
    /// Whether another process may use the file now.
    is_away: AtomicBool,
    ended: broadcast::Sender<Id>,
}

/// What the thread is asked for, with the way back.
enum Operation {
    Read(Box<dyn FnOnce(&ReadTransaction) + Send>),
    Write(Change),
    /// To close the file, or to open it again.
    Hold(bool, oneshot::Sender<Result<(), StoreError>>),
}

/// The thread's side.
struct Worker {
    path: PathBuf,
    /// `None`: the file is closed.
    database: Option<Database>,
    waiting: Arc<Waiting>,
}

/// Changes something within a transaction, and says how that ended once it is known whether the commit succeeded.
type Change = Box<dyn FnOnce(&WriteTransaction) -> Answer + Send>;

/// Tells whoever asked for a write how it ended.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

impl FileStore {
    /// Opens the file, or makes it. Only this process may use it.
    ///
    /// # Errors
    /// When it cannot be opened or written, is no store, or is in use.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let waiting = Arc::new(Waiting::default());
        let mut worker =
            Worker { path: path.to_owned(), database: Some(open(path)?), waiting: waiting.clone() };
        let (queue, mut operations) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || worker.work(&mut operations))
            .map_err(failed)?;
        let (ended, is_away) = (broadcast::channel(ENDINGS).0, AtomicBool::new(false));
        Ok(Self { queue, thread: Some(thread), waiting, is_away, ended })
    }

    /// Answers from what was committed last.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Pending<'_, T> {
        let (answer, answered) = oneshot::channel();
        // The caller may have gone; then nobody needs the answer.
        let read = move |transaction: &ReadTransaction| drop(answer.send(read(transaction)));
        self.ask(Operation::Read(Box::new(read)), answered)
    }

    /// Changes something; answered once it is on the disk.
    fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Pending<'_, T> {
        let (answer, answered) = oneshot::channel();
        let write = move |transaction: &WriteTransaction| -> Answer {
            let outcome = write(transaction);
            Box::new(move |committed: Result<(), StoreError>| drop(answer.send(committed.and(outcome))))
        };
        self.ask(Operation::Write(Box::new(write)), answered)
    }

    fn ask<T: Send + 'static>(
        &self,
        operation: Operation,
        answered: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Pending<'_, T> {
        Box::pin(async move {
            self.check_here()?;
            self.queue.send(operation).await.map_err(failed)?;
            answered.await.map_err(failed)?
        })
    }

    fn check_here(&self) -> Result<(), StoreError> {
        if self.is_away.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("another process uses the file now".into()));
        }
        Ok(())
    }

    /// Closes the file, or opens it again.
    fn hold(&self, held: bool) -> Pending<'_, ()> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            if !held {
                self.is_away.store(true, Ordering::Release);
            }
            self.queue.send(Operation::Hold(held, answer)).await.map_err(failed)?;
            answered.await.map_err(failed)??;
            self.is_away.store(!held, Ordering::Release);
            Ok(())
        })
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        // Closing the queue ends the thread once it has done what was asked; the file is then closed.
        self.queue = mpsc::channel(1).0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Store for FileStore {
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()> {
        self.write(move |transaction| {
            put(transaction, SESSIONS, session.id, &session)?;
            let mut tagged = transaction.open_multimap_table(TAGGED).map_err(failed)?;
            for tag in session.tags.iter() {
                tagged.insert(&tag.0[..], &session.id.0[..]).map_err(failed)?;
            }
            put_handle(transaction, &handle)
        })
    }

    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        self.write(move |transaction| {
            let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
            let there = live(get(&sessions, handle.session)?, now).is_some();
            drop(sessions);
            if there {
                put_handle(transaction, &handle)?;
            }
            Ok(there)
        })
    }

    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        self.read(move |transaction| {
            let handles = transaction.open_table(HANDLES).map_err(failed)?;
            let handle = get::<HandleRecord>(&handles, handle)?.filter(|handle| handle.expires > now);
            let Some(handle) = handle else { return Ok(None) };
            let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
            Ok(live(get(&sessions, handle.session)?, now).map(|session| (handle, session)))
        })
    }

    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        self.read(move |transaction| {
            Ok(live(get(&transaction.open_table(SESSIONS).map_err(failed)?, id)?, now))
        })
    }

    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        self.write(move |transaction| {
            let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
            let old: Option<SessionRecord> = get(&sessions, session.id)?;
            drop(sessions);
            let fits = old.is_some_and(|old| old.revision + 1 == session.revision);
            if fits {
                put(transaction, SESSIONS, session.id, &session)?;
            }
            Ok(fits)
        })
    }

    fn end(&self, session: Id) -> Pending<'_, bool> {
        let done = self.write(move |transaction| end(transaction, session));
        Box::pin(async move {
            let was_there = done.await?;
            // Nobody may want to know.
            let _ = self.ended.send(session);
            Ok(was_there)
        })
    }

    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        match kind {
            Keep::HandOff => self.write(move |transaction| {
                let mut table = transaction.open_table(KEPT).map_err(failed)?;
                table.insert(&key.0[..], (expires.as_unix_millis(), &value[..])).map_err(failed)?;
                Ok(())
            }),
            Keep::Waiting => {
                let kept = self.waiting.keep(key, value, expires);
                Box::pin(async move { kept })
            }
        }
    }

    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        if let Some(value) = self.waiting.take(key, now) {
            return Box::pin(async move { Ok(Some(value)) });
        }
        self.write(move |transaction| {
            let mut table = transaction.open_table(KEPT).map_err(failed)?;
            let taken = table.remove(&key.0[..]).map_err(failed)?;
            Ok(taken.and_then(|taken| {
                let (expires, value) = taken.value();
                (Timestamp::from_unix_millis(expires) > now).then(|| value.to_vec())
            }))
        })
    }

    fn first(&self, key: Id, expires: Timestamp, now: Timestamp) -> Pending<'_, bool> {
        self.write(move |transaction| {
            let mut said = transaction.open_table(SAID).map_err(failed)?;
            let before = said.get(&key.0[..]).map_err(failed)?.map(|until| until.value());
            if before.is_some_and(|until| Timestamp::from_unix_millis(until) > now) {
                return Ok(false);
            }
            said.insert(&key.0[..], expires.as_unix_millis()).map_err(failed)?;
            Ok(true)
        })
    }

    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>> {
        self.read(move |transaction| {
            let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
            let tagged = transaction.open_multimap_table(TAGGED).map_err(failed)?;
            let mut found = Vec::new();
            for id in tagged.get(&tag.0[..]).map_err(failed)? {
                let id = id.map_err(failed)?;
                if let Some(bytes) = sessions.get(id.value()).map_err(failed)? {
                    found.extend(live(Some(decode(bytes.value())?), now));
                }
            }
            Ok(found)
        })
    }

    fn list(&self, from: Option<String>, now: Timestamp) -> Pending<'_, Page> {
        self.read(move |transaction| {
            let after = from.as_deref().and_then(Id::from_text).map_or([0; 16], |id| id.0);
            let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
            let mut page = Page::default();
            for entry in sessions.range(&after[..]..).map_err(failed)? {
                let (id, bytes) = entry.map_err(failed)?;
                if page.records.len() == PAGE {
                    page.next = id.value().try_into().ok().map(|id| Id(id).to_text());
                    break;
                }
                page.records.extend(live(Some(decode(bytes.value())?), now));
            }
            Ok(page)
        })
    }

    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()> {
        self.write(move |transaction| {
            let mut table = transaction.open_table(USED).map_err(failed)?;
            for (id, time) in used {
                let time = time.as_unix_millis();
                let known = table.get(&id.0[..]).map_err(failed)?.map_or(0, |known| known.value());
                table.insert(&id.0[..], known.max(time)).map_err(failed)?;
            }
            Ok(())
        })
    }

    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>> {
        self.read(move |transaction| {
            let table = transaction.open_table(USED).map_err(failed)?;
            let used = table.get(&session.0[..]).map_err(failed)?;
            Ok(used.map(|used| Timestamp::from_unix_millis(used.value())))
        })
    }

    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        let waiting = self.waiting.sweep(now);
        let swept = self.write(move |transaction| sweep(transaction, now));
        Box::pin(async move { Ok(waiting + swept.await?) })
    }

    fn lease(&self, session: Id, _: Duration) -> Pending<'_, Option<Lease>> {
        // What another process may be doing already must not be begun here.
        Box::pin(async move { self.check_here().map(|()| Some(Lease::alone(session))) })
    }

    fn let_go(&self) -> Pending<'_, ()> {
        self.hold(false)
    }

    fn take_back(&self) -> Pending<'_, ()> {
        self.hold(true)
    }

    fn endings(&self) -> Option<broadcast::Receiver<Id>> {
        Some(self.ended.subscribe())
    }

    fn was_ended(&self, id: Id) {
        // Nobody may listen.
        let _ = self.ended.send(id);
    }
}

impl Worker {
    fn work(&mut self, operations: &mut mpsc::Receiver<Operation>) {
        let mut batch = Vec::with_capacity(BATCH);
        while operations.blocking_recv_many(&mut batch, BATCH) > 0 {
            let (mut reads, mut writes, mut holds) = (Vec::new(), Vec::new(), Vec::new());
            for operation in batch.drain(..) {
                match operation {
                    Operation::Read(read) => reads.push(read),
                    Operation::Write(write) => writes.push(write),
                    Operation::Hold(held, answer) => holds.push((held, answer)),
                }
            }
            if let Some(database) = &self.database {
                write(database, writes);
                if !reads.is_empty() {
                    match database.begin_read() {
                        Ok(transaction) => reads.into_iter().for_each(|read| read(&transaction)),
                        // Whoever waits for an answer hears that there will be none.
                        Err(error) => tracing::error!(%error, "the session file cannot be read"),
                    }
                }
            }
            for (held, answer) in holds {
                let done = if held { self.reopen() } else { self.close() };
                // Whoever asked may be gone.
                let _ = answer.send(done);
            }
        }
        if let Err(error) = self.close() {
            tracing::warn!(%error, "sign-ins that had begun have to begin again");
        }
    }

    /// Closes the file; what waits in memory is put into it, for whoever opens it next.
    fn close(&mut self) -> Result<(), StoreError> {
        let Some(database) = self.database.take() else { return Ok(()) };
        let things = self.waiting.take_all();
        if things.is_empty() {
            return Ok(());
        }
        let transaction = database.begin_write().map_err(failed)?;
        {
            let mut kept = transaction.open_table(KEPT).map_err(failed)?;
            for (key, expires, value) in things {
                kept.insert(&key.0[..], (expires.as_unix_millis(), &value[..])).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.database.is_none() {
            self.database = Some(open(&self.path)?);
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let database = Database::builder().set_cache_size(CACHE).create(path).map_err(failed)?;
    restrict(path)?;
    let tables = database.begin_write().map_err(failed)?;
    tables.open_table(SESSIONS).map_err(failed)?;
    tables.open_table(HANDLES).map_err(failed)?;
    tables.open_table(USED).map_err(failed)?;
    tables.open_table(KEPT).map_err(failed)?;
    tables.open_table(SAID).map_err(failed)?;
    tables.open_multimap_table(HANDLES_OF).map_err(failed)?;
    tables.open_multimap_table(TAGGED).map_err(failed)?;
    tables.commit().map_err(failed)?;
    Ok(database)
}

/// Does all writes in one transaction, and answers only when it is on the disk.
fn write(database: &Database, operations: Vec<Change>) {
    if operations.is_empty() {
        return;
    }
    let mut answers: Vec<Answer> = Vec::with_capacity(operations.len());
    let done = database.begin_write().map_err(failed).and_then(|transaction| {
        for operation in operations {
            answers.push(operation(&transaction));
        }
        transaction.commit().map_err(failed)
    });
    for answer in answers {
        answer(done.clone());
    }
}

fn put<T: Serialize>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &[u8], &[u8]>,
    id: Id,
    record: &T,
) -> Result<(), StoreError> {
    let bytes = encode(record)?;
    transaction.open_table(table).map_err(failed)?.insert(&id.0[..], &bytes[..]).map_err(failed)?;
    Ok(())
}

fn put_handle(transaction: &WriteTransaction, handle: &HandleRecord) -> Result<(), StoreError> {
    let mut handles = transaction.open_multimap_table(HANDLES_OF).map_err(failed)?;
    handles.insert(&handle.session.0[..], &handle.id.0[..]).map_err(failed)?;
    put(transaction, HANDLES, handle.id, handle)
}

fn get<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    id: Id,
) -> Result<Option<T>, StoreError> {
    table.get(&id.0[..]).map_err(failed)?.map(|bytes| decode(bytes.value())).transpose()
}

fn live(session: Option<SessionRecord>, now: Timestamp) -> Option<SessionRecord> {
    session.filter(|session| session.expires > now)
}

/// Removes a session with everything that is about it.
fn end(transaction: &WriteTransaction, id: Id) -> Result<bool, StoreError> {
    let removed = {
        let mut sessions = transaction.open_table(SESSIONS).map_err(failed)?;
        let removed = sessions.remove(&id.0[..]).map_err(failed)?;
        removed.map(|bytes| decode::<SessionRecord>(bytes.value())).transpose()?
    };
    if let Some(session) = &removed {
        let mut tagged = transaction.open_multimap_table(TAGGED).map_err(failed)?;
        for tag in session.tags.iter() {
            tagged.remove(&tag.0[..], &id.0[..]).map_err(failed)?;
        }
    }
    transaction.open_table(USED).map_err(failed)?.remove(&id.0[..]).map_err(failed)?;
    let mut handles = transaction.open_table(HANDLES).map_err(failed)?;
    let mut of = transaction.open_multimap_table(HANDLES_OF).map_err(failed)?;
    for handle in of.remove_all(&id.0[..]).map_err(failed)? {
        handles.remove(handle.map_err(failed)?.value()).map_err(failed)?;
    }
    Ok(removed.is_some())
}

fn sweep(transaction: &WriteTransaction, now: Timestamp) -> Result<usize, StoreError> {
    let mut swept = 0;
    let mut count = |keep: bool| {
        swept += usize::from(!keep);
        keep
    };
    let mut handles = transaction.open_table(HANDLES).map_err(failed)?;
    let lasts = |handle: HandleRecord| handle.expires > now;
    handles.retain(|_, bytes| count(decode(bytes).is_ok_and(lasts))).map_err(failed)?;
    drop(handles);
    let mut kept = transaction.open_table(KEPT).map_err(failed)?;
    kept.retain(|_, (expires, _)| count(Timestamp::from_unix_millis(expires) > now)).map_err(failed)?;
    let mut said = transaction.open_table(SAID).map_err(failed)?;
    said.retain(|_, expires| count(Timestamp::from_unix_millis(expires) > now)).map_err(failed)?;
    let mut dead: Vec<Id> = Vec::new();
    for entry in transaction.open_table(SESSIONS).map_err(failed)?.iter().map_err(failed)? {
        let (id, bytes) = entry.map_err(failed)?;
        if !decode::<SessionRecord>(bytes.value()).is_ok_and(|session| session.expires > now) {
            dead.extend(id.value().try_into().map(Id));
        }
    }
    swept += dead.len();
    for id in dead {
        end(transaction, id)?;
    }
    Ok(swept)
}

/// Only the owner may read the file.
fn restrict(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)
}

//! The store in one file: sessions outlive the process, a crash included.
//!
//! redb writes whole transactions and syncs them to the disk before it answers. It blocks, so one thread of
//! its own does it, fed through a bounded queue; what waits in the queue together is committed together.

use std::path::Path;
use std::thread::JoinHandle;

use redb::{
    Database, MultimapTableDefinition, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::waiting::Waiting;
use super::{HandleRecord, Id, Keep, Pending, SessionRecord, Store, StoreError};
use crate::clock::Timestamp;

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions-1");
const HANDLES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("handles-1");
/// The handles of a session, so that ending one does not read them all.
const HANDLES_OF: MultimapTableDefinition<'_, &[u8], &[u8]> = MultimapTableDefinition::new("handles-of-1");
const KEPT: TableDefinition<'_, &[u8], (u64, &[u8])> = TableDefinition::new("kept-1");

/// So many operations may wait; then callers do.
const QUEUE: usize = 1024;
/// So many operations share one commit.
const BATCH: usize = 64;
/// redb's own cache of pages.
const CACHE: usize = 8 * 1024 * 1024;

type Answered<T> = oneshot::Sender<Result<T, StoreError>>;

/// Sessions in a file.
pub struct FileStore {
    queue: mpsc::Sender<Operation>,
    thread: Option<JoinHandle<()>>,
    waiting: Waiting,
}

enum Operation {
    Insert(SessionRecord, HandleRecord, Answered<()>),
    AddHandle(HandleRecord, Timestamp, Answered<bool>),
    Load(Id, Timestamp, Answered<Option<(HandleRecord, SessionRecord)>>),
    Session(Id, Timestamp, Answered<Option<SessionRecord>>),
    Replace(SessionRecord, Answered<bool>),
    End(Id, Answered<bool>),
    Keep(Id, Vec<u8>, Timestamp, Answered<()>),
    Take(Id, Timestamp, Answered<Option<Vec<u8>>>),
    Sweep(Timestamp, Answered<usize>),
}

impl FileStore {
    /// Opens the file, or makes it. Only this process may use it.
    ///
    /// # Errors
    /// When it cannot be opened or written, is no store, or is in use.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE).create(path).map_err(failed)?;
        restrict(path)?;
        let tables = database.begin_write().map_err(failed)?;
        tables.open_table(SESSIONS).map_err(failed)?;
        tables.open_table(HANDLES).map_err(failed)?;
        tables.open_table(KEPT).map_err(failed)?;
        tables.open_multimap_table(HANDLES_OF).map_err(failed)?;
        tables.commit().map_err(failed)?;
        let (queue, mut operations) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || work(&database, &mut operations))
            .map_err(failed)?;
        Ok(Self { queue, thread: Some(thread), waiting: Waiting::default() })
    }

    fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(Answered<T>) -> Operation + Send + 'static,
    ) -> Pending<'_, T> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.queue.send(operation(answer)).await.map_err(failed)?;
            answered.await.map_err(failed)?
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
        self.ask(|answer| Operation::Insert(session, handle, answer))
    }

    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        self.ask(move |answer| Operation::AddHandle(handle, now, answer))
    }

    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        self.ask(move |answer| Operation::Load(handle, now, answer))
    }

    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        self.ask(move |answer| Operation::Session(id, now, answer))
    }

    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        self.ask(|answer| Operation::Replace(session, answer))
    }

    fn end(&self, session: Id) -> Pending<'_, bool> {
        self.ask(move |answer| Operation::End(session, answer))
    }

    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        match kind {
            Keep::HandOff => self.ask(move |answer| Operation::Keep(key, value, expires, answer)),
            Keep::Waiting => {
                let kept = self.waiting.keep(key, value, expires);
                Box::pin(async move { kept })
            }
        }
    }

    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        match self.waiting.take(key, now) {
            Some(value) => Box::pin(async move { Ok(Some(value)) }),
            None => self.ask(move |answer| Operation::Take(key, now, answer)),
        }
    }

    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        let waiting = self.waiting.sweep(now);
        let swept = self.ask(move |answer| Operation::Sweep(now, answer));
        Box::pin(async move { Ok(waiting + swept.await?) })
    }
}

fn work(database: &Database, operations: &mut mpsc::Receiver<Operation>) {
    let mut batch = Vec::with_capacity(BATCH);
    while operations.blocking_recv_many(&mut batch, BATCH) > 0 {
        let (reads, writes): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .partition(|operation| matches!(operation, Operation::Load(..) | Operation::Session(..)));
        write(database, writes);
        for operation in reads {
            match operation {
                // The caller may have gone; then nobody needs the answer.
                Operation::Load(id, now, answer) => drop(answer.send(load(database, id, now))),
                Operation::Session(id, now, answer) => drop(answer.send(session(database, id, now))),
                _ => {}
            }
        }
    }
}

/// Tells whoever asked for a write how it ended.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

/// Does all writes in one transaction, and answers only when it is on the disk.
fn write(database: &Database, operations: Vec<Operation>) {
    if operations.is_empty() {
        return;
    }
    let mut answers: Vec<Answer> = Vec::with_capacity(operations.len());
    let done = database.begin_write().map_err(failed).and_then(|transaction| {
        for operation in operations {
            answers.push(apply(&transaction, operation));
        }
        transaction.commit().map_err(failed)
    });
    for answer in answers {
        answer(done.clone());
    }
}

/// Applies one write; what comes back tells the caller, once it is known whether the commit succeeded.
fn apply(transaction: &WriteTransaction, operation: Operation) -> Answer {
    fn later<T: 'static>(answer: Answered<T>, outcome: Result<T, StoreError>) -> Answer {
        Box::new(move |committed| drop(answer.send(committed.and(outcome))))
    }
    match operation {
        Operation::Insert(session, handle, answer) => later(
            answer,
            put(transaction, SESSIONS, session.id, &session).and_then(|()| put_handle(transaction, &handle)),
        ),
        Operation::AddHandle(handle, now, answer) => later(answer, add_handle(transaction, &handle, now)),
        Operation::Replace(session, answer) => later(answer, replace(transaction, &session)),
        Operation::End(id, answer) => later(answer, end(transaction, id)),
        Operation::Keep(key, value, expires, answer) => {
            later(answer, keep(transaction, key, &value, expires))
        }
        Operation::Take(key, now, answer) => later(answer, take(transaction, key, now)),
        Operation::Sweep(now, answer) => later(answer, sweep(transaction, now)),
        Operation::Load(_, _, answer) => later(answer, Ok(None)),
        Operation::Session(_, _, answer) => later(answer, Ok(None)),
    }
}

fn put<T: Serialize>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &[u8], &[u8]>,
    id: Id,
    record: &T,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).map_err(failed)?;
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
    match table.get(&id.0[..]).map_err(failed)? {
        Some(bytes) => Ok(Some(serde_json::from_slice(bytes.value()).map_err(failed)?)),
        None => Ok(None),
    }
}

fn live(session: Option<SessionRecord>, now: Timestamp) -> Option<SessionRecord> {
    session.filter(|session| session.expires > now)
}

fn session(database: &Database, id: Id, now: Timestamp) -> Result<Option<SessionRecord>, StoreError> {
    let table = database.begin_read().map_err(failed)?.open_table(SESSIONS).map_err(failed)?;
    Ok(live(get(&table, id)?, now))
}

fn load(
    database: &Database,
    id: Id,
    now: Timestamp,
) -> Result<Option<(HandleRecord, SessionRecord)>, StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let handles = transaction.open_table(HANDLES).map_err(failed)?;
    let Some(handle) = get::<HandleRecord>(&handles, id)?.filter(|handle| handle.expires > now) else {
        return Ok(None);
    };
    let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
    Ok(live(get(&sessions, handle.session)?, now).map(|session| (handle, session)))
}

fn add_handle(
    transaction: &WriteTransaction,
    handle: &HandleRecord,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let there = live(get(&transaction.open_table(SESSIONS).map_err(failed)?, handle.session)?, now).is_some();
    if there {
        put_handle(transaction, handle)?;
    }
    Ok(there)
}

fn replace(transaction: &WriteTransaction, session: &SessionRecord) -> Result<bool, StoreError> {
    let old: Option<SessionRecord> = get(&transaction.open_table(SESSIONS).map_err(failed)?, session.id)?;
    let fits = old.is_some_and(|old| old.revision + 1 == session.revision);
    if fits {
        put(transaction, SESSIONS, session.id, session)?;
    }
    Ok(fits)
}

fn end(transaction: &WriteTransaction, id: Id) -> Result<bool, StoreError> {
    let ended =
        transaction.open_table(SESSIONS).map_err(failed)?.remove(&id.0[..]).map_err(failed)?.is_some();
    let mut handles = transaction.open_table(HANDLES).map_err(failed)?;
    let mut of = transaction.open_multimap_table(HANDLES_OF).map_err(failed)?;
    for handle in of.remove_all(&id.0[..]).map_err(failed)? {
        handles.remove(handle.map_err(failed)?.value()).map_err(failed)?;
    }
    Ok(ended)
}

fn keep(transaction: &WriteTransaction, key: Id, value: &[u8], expires: Timestamp) -> Result<(), StoreError> {
    let mut table = transaction.open_table(KEPT).map_err(failed)?;
    table.insert(&key.0[..], (expires.as_unix_millis(), value)).map_err(failed)?;
    Ok(())
}

fn take(transaction: &WriteTransaction, key: Id, now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
    let mut table = transaction.open_table(KEPT).map_err(failed)?;
    let taken = table.remove(&key.0[..]).map_err(failed)?;
    Ok(taken.and_then(|taken| {
        let (expires, value) = taken.value();
        (Timestamp::from_unix_millis(expires) > now).then(|| value.to_vec())
    }))
}

fn sweep(transaction: &WriteTransaction, now: Timestamp) -> Result<usize, StoreError> {
    let mut swept = 0;
    let mut count = |keep: bool| {
        swept += usize::from(!keep);
        keep
    };
    let mut sessions = transaction.open_table(SESSIONS).map_err(failed)?;
    let mut of = transaction.open_multimap_table(HANDLES_OF).map_err(failed)?;
    let gone = |bytes: &[u8]| {
        !serde_json::from_slice::<SessionRecord>(bytes).is_ok_and(|session| session.expires > now)
    };
    let mut dead: Vec<Vec<u8>> = Vec::new();
    for entry in sessions.iter().map_err(failed)? {
        let (id, bytes) = entry.map_err(failed)?;
        if gone(bytes.value()) {
            dead.push(id.value().to_vec());
        }
    }
    for id in &dead {
        of.remove_all(&id[..]).map_err(failed)?;
    }
    sessions
        .retain(|_, bytes| {
            count(serde_json::from_slice::<SessionRecord>(bytes).is_ok_and(|session| session.expires > now))
        })
        .map_err(failed)?;
    let mut handles = transaction.open_table(HANDLES).map_err(failed)?;
    handles
        .retain(|_, bytes| {
            count(serde_json::from_slice::<HandleRecord>(bytes).is_ok_and(|handle| {
                handle.expires > now && matches!(sessions.get(&handle.session.0[..]), Ok(Some(_)))
            }))
        })
        .map_err(failed)?;
    let mut kept = transaction.open_table(KEPT).map_err(failed)?;
    kept.retain(|_, (expires, _)| count(Timestamp::from_unix_millis(expires) > now)).map_err(failed)?;
    Ok(swept)
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// Only the owner may read the file.
fn restrict(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)
}

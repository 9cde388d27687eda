//! Where the records of requests go: a buffer for each worker, and one thread that writes.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Format, Line};
use crate::clock::Timestamp;

/// How long a record may wait for others to be written with it.
const PATIENCE: Duration = Duration::from_millis(10);
/// A buffer of this size is handed over at once.
const FULL: usize = 64 * 1024;
/// So many handed-over buffers may wait for the writer; then a worker waits, because a record of a decision
/// must not be lost.
const BACKLOG: usize = 64;

/// The thread that writes to standard error.
pub struct Sink {
    chunks: SyncSender<Vec<u8>>,
    thread: JoinHandle<()>,
}

/// A worker's buffer. Clones share it.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    format: Format,
    buffer: Mutex<Vec<u8>>,
    armed: AtomicBool,
    chunks: SyncSender<Vec<u8>>,
}

impl Sink {
    /// Starts the writer.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let (chunks, incoming) = sync_channel(BACKLOG);
        let thread =
            std::thread::Builder::new().name("journal".into()).spawn(move || write_all(&incoming))?;
        Ok(Self { chunks, thread })
    }

    /// A buffer for one worker. It flushes itself on the runtime that it is used on.
    pub fn journal(&self, format: Format) -> Journal {
        Journal(Arc::new(Inner {
            format,
            buffer: Mutex::default(),
            armed: AtomicBool::new(false),
            chunks: self.chunks.clone(),
        }))
    }

    /// Waits until everything is written. Every [`Journal`] must be gone by then.
    pub fn finish(self) {
        drop(self.chunks);
        // The writer has nothing to report: it cannot write that it cannot write.
        let _ = self.thread.join();
    }
}

fn write_all(incoming: &Receiver<Vec<u8>>) {
    while let Ok(chunk) = incoming.recv() {
        // Standard error may be closed; then there is nobody to tell.
        let _ = std::io::stderr().lock().write_all(&chunk);
    }
}

impl Journal {
    /// Writes one record. `fill` adds the fields.
    pub fn record(&self, now: Timestamp, message: &str, fill: impl FnOnce(&mut Line<'_>)) {
        let mut buffer = self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = Line::begin(&mut buffer, self.0.format, now, message);
        fill(&mut line);
        line.end();
        if buffer.len() >= FULL {
            let chunk = std::mem::take(&mut *buffer);
            drop(buffer);
            let _ = self.0.chunks.send(chunk);
        } else if !self.0.armed.swap(true, Ordering::AcqRel) {
            drop(buffer);
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    let journal = self.clone();
                    runtime.spawn(async move {
                        tokio::time::sleep(PATIENCE).await;
                        journal.flush();
                    });
                }
                Err(_) => self.flush(),
            }
        }
    }

    /// Hands the buffer to the writer.
    pub fn flush(&self) {
        self.0.armed.store(false, Ordering::Release);
        let chunk = std::mem::take(&mut *self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner));
        if !chunk.is_empty() {
            let _ = self.0.chunks.send(chunk);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let chunk = std::mem::take(self.buffer.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !chunk.is_empty() {
            let _ = self.chunks.send(chunk);
        }
    }
}

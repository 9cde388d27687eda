//! Where the records of requests go: a buffer for each worker, and one thread that writes.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::line::{Stamp, key};
use super::metrics::DROPPED;
use super::{Format, Line};
use crate::clock::Timestamp;

/// How long a record may wait for others to be written with it.
const PATIENCE: Duration = Duration::from_millis(10);
/// A buffer of this size is handed over at once. Waking the writer costs what many records cost.
const FULL: usize = 256 * 1024;
/// So many handed-over buffers may wait for the writer (4 MiB). What does not fit any more is dropped and
/// counted: whoever reads the log does not hold up requests.
const BACKLOG: usize = 16;

/// A buffer that was written and can be filled again: a new one of this size is a call to the system each time.
type Spare = Arc<Mutex<Option<Vec<u8>>>>;

/// The thread that writes to standard error.
pub struct Sink {
    chunks: SyncSender<Vec<u8>>,
    spare: Spare,
    thread: JoinHandle<()>,
}

/// A worker's buffer. Clones share it.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    format: Format,
    buffer: Mutex<Buffer>,
    armed: AtomicBool,
    chunks: SyncSender<Vec<u8>>,
    spare: Spare,
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    stamp: Stamp,
    /// Records in `bytes`.
    records: u64,
    /// Records that the writer had no room for.
    dropped: u64,
}

impl Sink {
    /// Starts the writer.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let (chunks, incoming) = sync_channel(BACKLOG);
        let spare = Spare::default();
        let back = spare.clone();
        let thread =
            std::thread::Builder::new().name("journal".into()).spawn(move || write_all(&incoming, &back))?;
        Ok(Self { chunks, spare, thread })
    }

    /// A buffer for one worker. It flushes itself on the runtime that it is used on.
    pub fn journal(&self, format: Format) -> Journal {
        Journal(Arc::new(Inner {
            format,
            buffer: Mutex::default(),
            armed: AtomicBool::new(false),
            chunks: self.chunks.clone(),
            spare: self.spare.clone(),
        }))
    }

    /// Waits until everything is written. Every [`Journal`] must be gone by then.
    pub fn finish(self) {
        drop(self.chunks);
        // The writer has nothing to report: it cannot write that it cannot write.
        let _ = self.thread.join();
    }
}

fn write_all(incoming: &Receiver<Vec<u8>>, spare: &Spare) {
    while let Ok(mut chunk) = incoming.recv() {
        // Standard error may be closed; then there is nobody to tell.
        let _ = std::io::stderr().lock().write_all(&chunk);
        chunk.clear();
        *spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(chunk);
    }
}

impl Journal {
    /// Writes one record. `fill` adds the fields.
    pub fn record(&self, now: Timestamp, message: &'static str, fill: impl FnOnce(&mut Line<'_>)) {
        let mut buffer = self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.write(&mut buffer, now, message, fill);
        if buffer.bytes.len() >= FULL {
            self.0.hand_over(&mut buffer, now);
        } else if !self.0.armed.load(Ordering::Acquire) && !self.0.armed.swap(true, Ordering::AcqRel) {
            drop(buffer);
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    let journal = self.clone();
                    runtime.spawn(async move {
                        tokio::time::sleep(PATIENCE).await;
                        journal.flush(now);
                    });
                }
                Err(_) => self.flush(now),
            }
        }
    }

    /// Hands the buffer to the writer. `now` is written where records were lost.
    pub fn flush(&self, now: Timestamp) {
        self.0.armed.store(false, Ordering::Release);
        let mut buffer = self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.hand_over(&mut buffer, now);
    }
}

impl Inner {
    fn write(
        &self,
        buffer: &mut Buffer,
        now: Timestamp,
        message: &'static str,
        fill: impl FnOnce(&mut Line<'_>),
    ) {
        let Buffer { bytes, stamp, records, .. } = buffer;
        let mut line = Line::begin(bytes, stamp, self.format, now, message);
        fill(&mut line);
        line.end();
        *records += 1;
    }

    fn hand_over(&self, buffer: &mut Buffer, now: Timestamp) {
        if buffer.dropped > 0 {
            let dropped = buffer.dropped;
            self.write(buffer, now, "records-dropped", |line| {
                line.number(key!("count"), dropped);
            });
            buffer.records -= 1;
        }
        if buffer.bytes.is_empty() {
            return;
        }
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The next one will be about as large.
        let next =
            spare.unwrap_or_else(|| Vec::with_capacity(buffer.bytes.len().next_power_of_two().min(2 * FULL)));
        let chunk = std::mem::replace(&mut buffer.bytes, next);
        let records = std::mem::take(&mut buffer.records);
        match self.chunks.try_send(chunk) {
            Ok(()) => buffer.dropped = 0,
            Err(_) => {
                buffer.dropped += records;
                DROPPED.add(records);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let buffer = self.buffer.get_mut().unwrap_or_else(PoisonError::into_inner);
        let chunk = std::mem::take(&mut buffer.bytes);
        if !chunk.is_empty() {
            // The last one may be waited for.
            let _ = self.chunks.send(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_does_not_keep_up_holds_nobody_up_and_the_loss_is_counted() {
        let (chunks, incoming) = sync_channel(1);
        let journal = Journal(Arc::new(Inner {
            format: Format::Json,
            buffer: Mutex::default(),
            armed: AtomicBool::new(true),
            chunks,
            spare: Spare::default(),
        }));
        let now = Timestamp::from_unix_seconds(1_790_000_000);
        for name in ["first", "second", "third"] {
            journal.record(now, name, |_| ());
            journal.record(now, name, |_| ());
            journal.flush(now);
        }
        assert!(String::from_utf8(incoming.recv().unwrap()).unwrap().contains("first"));
        journal.record(now, "fourth", |_| ());
        journal.flush(now);
        let next = String::from_utf8(incoming.recv().unwrap()).unwrap();
        assert!(next.contains("fourth") && !next.contains("second"), "{next}");
        assert!(next.contains(r#""message":"records-dropped","count":4"#), "{next}");
        journal.record(now, "fifth", |_| ());
        journal.flush(now);
        assert!(!String::from_utf8(incoming.recv().unwrap()).unwrap().contains("dropped"));
    }
}

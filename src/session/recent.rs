//! What a connection remembers of the session that it was last used with.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Handle, Sessions};
use crate::crypto;

/// The cookie that last opened something on a connection: the next request on it nearly always brings the
/// same one. Whether the session still lasts is asked each time.
#[derive(Default)]
pub struct Recent(Mutex<Option<Opened>>);

struct Opened {
    /// Whose sessions: a reload makes new ones.
    sessions: u64,
    cookie: Box<str>,
    handle: Arc<Handle>,
}

impl Recent {
    pub(super) fn handle(&self, sessions: &Sessions, cookie: &str, scope: &str) -> Option<Arc<Handle>> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = recent.as_ref().filter(|opened| {
            opened.sessions == sessions.number
                && *opened.handle.host == *scope
                && crypto::equal(opened.cookie.as_bytes(), cookie.as_bytes())
        });
        opened.map(|opened| opened.handle.clone())
    }

    pub(super) fn remember(&self, sessions: &Sessions, cookie: &str, handle: &Arc<Handle>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Opened { sessions: sessions.number, cookie: cookie.into(), handle: handle.clone() });
    }
}

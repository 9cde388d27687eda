//! What a connection remembers of the session that it was last used with.

use std::sync::{Arc, Mutex, PoisonError};

use ::http::HeaderMap;
use ::http::header::{COOKIE, HeaderValue};

use super::{Handle, Sessions};
use crate::crypto;
use crate::http::{cookies, headers::single};

/// A longer line is read anew each time: it would be held for as long as its connection.
const LONGEST: usize = 2048;

/// The cookies that last opened something on a connection: the next request on it nearly always brings the
/// same ones. Whether the session still lasts is asked each time.
#[derive(Default)]
pub struct Recent(Mutex<Option<Arc<Known>>>);

/// A line of cookies that was read before.
pub struct Known {
    /// Whose sessions: a reload makes new ones.
    sessions: u64,
    line: Box<[u8]>,
    /// The line without the cookies that are ours.
    rest: Option<HeaderValue>,
    pub(super) handle: Arc<Handle>,
}

impl Recent {
    pub(super) fn known(&self, sessions: &Sessions, line: &HeaderValue, scope: &str) -> Option<Arc<Known>> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&Arc<Known>| {
            known.sessions == sessions.number
                && *known.handle.host == *scope
                && crypto::equal(&known.line, line.as_bytes())
        };
        recent.as_ref().filter(same).cloned()
    }

    pub(super) fn remember(
        &self,
        sessions: &Sessions,
        line: &HeaderValue,
        handle: &Arc<Handle>,
    ) -> Option<Arc<Known>> {
        if line.len() > LONGEST {
            return None;
        }
        let mut rest = HeaderMap::from_iter([(COOKIE, line.clone())]);
        cookies::remove(&mut rest, |name| sessions.cookie().is_ours(name));
        // Copied: what is left untouched still shares the buffer that it was read into.
        let rest = rest.remove(COOKIE).and_then(|rest| HeaderValue::from_bytes(rest.as_bytes()).ok());
        let (sessions, line, handle) = (sessions.number, line.as_bytes().into(), handle.clone());
        let known = Arc::new(Known { sessions, line, rest, handle });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        Some(known)
    }
}

impl Known {
    /// Takes our cookies out of the request that brought this line.
    pub fn strip(&self, headers: &mut HeaderMap) {
        match &self.rest {
            Some(rest) => drop(headers.insert(COOKIE, rest.clone())),
            None => drop(headers.remove(COOKIE)),
        }
    }
}

/// The line of cookies, when there is just one.
pub(super) fn only_line(headers: &HeaderMap) -> Option<&HeaderValue> {
    single(headers, &COOKIE).ok().flatten()
}

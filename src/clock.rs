//! Time as a value.
//!
//! Nothing in the crate asks the operating system for the time: it asks a [`Clock`] that it was given,
//! so that a test can hold time still or move it. Points in time that are stored or compared with a
//! token's claims are [`Timestamp`]s (wall clock); spans on the road are measured with [`Clock::instant`].

use std::cell::Cell;
use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// For so long it is known what time it is.
const KNOWN: Duration = Duration::from_millis(100);

/// A point in time: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

/// Where the time comes from: the system, or a test.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    held: Option<Arc<AtomicU64>>,
}

impl Timestamp {
    /// A `NumericDate` of a token (RFC 7519 §2): seconds since the epoch.
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Milliseconds since the epoch, as stored.
    pub const fn from_unix_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// RFC 3339: `2026-01-31T18:00:00+01:00`. UTC when no zone is named, midnight when no time is. `None` for
    /// anything else, and for what lies before 1970.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let time = text.parse::<jiff::Timestamp>().or_else(|_| {
            // A zone that cannot be read is not passed over.
            let time: jiff::civil::DateTime = text.parse()?;
            time.to_zoned(jiff::tz::TimeZone::UTC).map(|time| time.timestamp())
        });
        u64::try_from(time.ok()?.as_millisecond()).ok().map(Self)
    }

    /// Whole seconds since the epoch.
    pub const fn as_unix_seconds(self) -> u64 {
        self.0 / 1000
    }

    /// Milliseconds since the epoch.
    pub const fn as_unix_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339, UTC, to the second: `2026-11-20T09:30:00Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.as_unix_seconds()).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_second(seconds) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "@{seconds}"),
        }
    }
}

thread_local! {
    /// When the system was asked for the time last, and what it said.
    static LAST: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
}

impl Clock {
    /// The system's clock.
    pub const fn system() -> Self {
        Self { held: None }
    }

    /// A clock that stands still until it is moved.
    pub fn held_at(time: Timestamp) -> Self {
        Self { held: Some(Arc::new(AtomicU64::new(time.0))) }
    }

    /// Moves a held clock on; the system's clock is not moved.
    pub fn advance(&self, span: Duration) {
        if let Some(held) = &self.held {
            held.store((Timestamp(held.load(Ordering::Relaxed)) + span).0, Ordering::Relaxed);
        }
    }

    /// The time now. A system clock before 1970 reads as the epoch, at which every session has yet to begin.
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
    pub fn now(&self) -> Timestamp {
        match &self.held {
            Some(held) => Timestamp(held.load(Ordering::Relaxed)),
            None => {
                let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }

    /// The time at an instant that was read just now. The system is asked for it ten times a second; a clock
    /// that is set is heard of that late.
    #[inline]
    pub fn at(&self, instant: Instant) -> Timestamp {
        if self.held.is_some() {
            return self.now();
        }
        if let Some((then, time)) = LAST.get()
            && let Some(since) = instant.checked_duration_since(then)
            && since < KNOWN
        {
            return time + since;
        }
        self.at_anew(instant)
    }

    #[cold]
    fn at_anew(&self, instant: Instant) -> Timestamp {
        // Read together: what passed since the instant was read would be added to all that follow.
        let (then, time) = (self.instant(), self.now());
        LAST.set(Some((then, time)));
        time - then.saturating_duration_since(instant)
    }

    /// A monotonic reading, for measuring how long something took.
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A span as Go writes it: `30s`, `13h15m0.5s`, `250ms`; `0` without a unit.
pub fn span(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        let tail = rest.get(digits..)?;
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let seconds = match tail.get(..unit)? {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * seconds;
        rest = tail.get(unit..)?;
    }
    // As in Go: about 292 years.
    Duration::try_from_secs_f64(total).ok().filter(|span| span.as_nanos() <= i64::MAX as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_gos_durations() {
        for (text, seconds) in
            [("0", 0.0), ("30s", 30.0), ("13h15m0.5s", 47_700.5), ("250ms", 0.25), ("1h", 3600.0)]
        {
            assert_eq!(span(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "30", "s", "1d", "-1s", "1h30", "x", "1 h", "4000000000000000h"] {
            assert_eq!(span(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_held_clock_moves_only_when_it_is_moved() {
        let clock = Clock::held_at(Timestamp::from_unix_seconds(100));
        let other = clock.clone();
        clock.advance(Duration::from_secs(5));
        assert_eq!(other.now(), Timestamp::from_unix_seconds(105));
    }

    #[test]
    fn a_timestamp_prints_as_rfc_3339() {
        assert_eq!(Timestamp::from_unix_seconds(1_790_000_000).to_string(), "2026-09-21T14:13:20Z");
    }

    #[test]
    fn a_timestamp_is_read_with_and_without_zone_and_time() {
        let at = |text: &str| Timestamp::parse(text).map(|time| time.to_string());
        for (text, time) in [
            ("2026-01-31T18:00:00+01:00", "2026-01-31T17:00:00Z"),
            ("2026-01-31T18:00:00Z", "2026-01-31T18:00:00Z"),
            ("2026-01-31T18:00:00.5", "2026-01-31T18:00:00Z"),
            ("2026-01-31 18:00:00", "2026-01-31T18:00:00Z"),
            ("2026-01-31T18:00", "2026-01-31T18:00:00Z"),
            (" 2026-01-31 ", "2026-01-31T00:00:00Z"),
        ] {
            assert_eq!(at(text).as_deref(), Some(time), "{text}");
        }
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "31.1.2026",
            "2026-01-31T18:00:00+1x",
            "1969-12-31",
            "now",
            "1790000000",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_time_at_an_instant_is_the_time_then() {
        let clock = Clock::system();
        for pause in [0, 5, 0, 120, 5] {
            std::thread::sleep(Duration::from_millis(pause));
            let (before, at, after) = (clock.now(), clock.at(clock.instant()), clock.now());
            // Each reading is cut off to a millisecond.
            assert!(before - Duration::from_millis(2) <= at && at <= after, "{before:?} {at:?} {after:?}");
        }
        let held = Clock::held_at(Timestamp::from_unix_seconds(7));
        assert_eq!(held.at(held.instant()), Timestamp::from_unix_seconds(7));
        held.advance(Duration::from_secs(1));
        assert_eq!(held.at(held.instant()), Timestamp::from_unix_seconds(8));
    }

    #[test]
    fn time_before_the_epoch_saturates() {
        assert_eq!(Timestamp::from_unix_seconds(1) - Duration::from_secs(2), Timestamp::default());
    }
}

//! Criteria about when: dates, times of day, days of the week.
//!
//! A range holds from its `after`, which belongs to it, to its `before`, which does not. There is no zone but
//! UTC unless one is named, so that a rule means the same on every machine.

use jiff::Zoned;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::authorize::compile::{At, PolicyError};
use crate::authorize::matcher::scalar_text;
use crate::clock::Timestamp;

/// A span of dates.
#[derive(Clone, Debug)]
pub(in crate::authorize) struct DateRange {
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

/// A span of every day, which may go past midnight. Seconds since midnight.
#[derive(Clone, Debug)]
pub(in crate::authorize) struct TimeOfDay {
    zone: TimeZone,
    after: Option<u32>,
    before: Option<u32>,
}

/// Days of the week.
#[derive(Clone, Debug)]
pub(in crate::authorize) struct DayOfWeek {
    zone: TimeZone,
    /// A bit a day, Monday the lowest.
    days: u8,
}

const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

impl DateRange {
    pub(super) fn compile(data: &Value, at: &At<'_>) -> Result<Self, PolicyError> {
        let bounds = Bounds::read(data, at, false)?;
        let point = |bound: Option<(&Value, At<'_>)>| {
            let read = |(value, at): (&Value, At<'_>)| {
                let found = value.as_str().and_then(Timestamp::parse);
                found.ok_or_else(|| {
                    at.error(
                        "a point in time was expected, such as `2026-01-31` or `2026-01-31T18:00:00+01:00`",
                    )
                })
            };
            bound.map(read).transpose()
        };
        let range = Self { after: point(bounds.after)?, before: point(bounds.before)? };
        if let (Some(after), Some(before)) = (range.after, range.before)
            && after >= before
        {
            return Err(at.error("`after` must lie before `before`: no time is in this range"));
        }
        Ok(range)
    }

    pub(in crate::authorize) fn words(&self) -> String {
        between(self.after.map(|time| time.to_string()), self.before.map(|time| time.to_string()))
    }

    pub(super) fn holds(&self, now: Timestamp) -> bool {
        self.after.is_none_or(|after| after <= now) && self.before.is_none_or(|before| now < before)
    }
}

impl TimeOfDay {
    pub(super) fn compile(data: &Value, at: &At<'_>) -> Result<Self, PolicyError> {
        let bounds = Bounds::read(data, at, true)?;
        let Some(zone) = bounds.zone else {
            return Err(at.error("`timezone` is missing, such as `timezone: Europe/Berlin` or `UTC`"));
        };
        let time = |bound: Option<(&Value, At<'_>)>| {
            let read = |(value, at): (&Value, At<'_>)| {
                let found = value.as_str().and_then(time_of_day);
                found.ok_or_else(|| {
                    at.error("a time of day was expected, such as `9:00`, `17:30:00` or `5PM`")
                })
            };
            bound.map(read).transpose()
        };
        let range = Self { zone, after: time(bounds.after)?, before: time(bounds.before)? };
        if range.after.is_some() && range.after == range.before {
            return Err(at.error("`after` and `before` are the same: no time is in this range"));
        }
        Ok(range)
    }

    pub(super) fn holds(&self, now: Timestamp) -> bool {
        let Some(local) = local(now, &self.zone) else { return false };
        let now = seconds(local.time());
        match (self.after, self.before) {
            (Some(after), Some(before)) if after > before => after <= now || now < before,
            (after, before) => {
                after.is_none_or(|after| after <= now) && before.is_none_or(|before| now < before)
            }
        }
    }

    pub(in crate::authorize) fn words(&self) -> String {
        let clock = |seconds: u32| format!("{}:{:02}", seconds / 3600, seconds / 60 % 60);
        format!("{} ({})", between(self.after.map(clock), self.before.map(clock)), name(&self.zone))
    }

    /// The time that it looks at.
    pub(in crate::authorize) fn sees(&self, now: Timestamp) -> String {
        local(now, &self.zone)
            .map_or_else(String::new, |local| format!("{} {}", local.strftime("%H:%M:%S"), name(&self.zone)))
    }
}

impl DayOfWeek {
    pub(super) fn compile(data: &Value, at: &At<'_>) -> Result<Self, PolicyError> {
        let Value::Object(keys) = data else {
            return Ok(Self { zone: TimeZone::UTC, days: days(data, at)? });
        };
        let (mut found, mut zone_named) = (None, TimeZone::UTC);
        for (key, value) in keys {
            let at = at.key(key);
            match key.as_str() {
                "is" => found = Some(days(value, &at)?),
                "timezone" => zone_named = zone(value, &at)?,
                other => return Err(at.unknown("key", other, &["is", "timezone"])),
            }
        }
        let days = found.ok_or_else(|| at.error("`is` is missing: which days, such as `is: mon-fri`"))?;
        Ok(Self { zone: zone_named, days })
    }

    pub(super) fn holds(&self, now: Timestamp) -> bool {
        local(now, &self.zone)
            .is_some_and(|local| self.days >> local.weekday().to_monday_zero_offset() & 1 == 1)
    }

    pub(in crate::authorize) fn words(&self) -> String {
        let days = DAYS.iter().enumerate().filter(|(at, _)| self.days >> at & 1 == 1);
        let days: Vec<_> = days.map(|(_, day)| *day).collect();
        format!("{} ({})", days.join(", "), name(&self.zone))
    }

    /// The day that it looks at.
    pub(in crate::authorize) fn sees(&self, now: Timestamp) -> String {
        local(now, &self.zone)
            .map_or_else(String::new, |local| format!("{} {}", local.strftime("%A"), name(&self.zone)))
    }
}

fn between(after: Option<String>, before: Option<String>) -> String {
    match (after, before) {
        (Some(after), Some(before)) => format!("the time from {after} to {before}"),
        (Some(after), None) => format!("the time from {after} on"),
        (None, Some(before)) => format!("the time before {before}"),
        (None, None) => "any time".into(),
    }
}

/// `after`, `before` and, where there may be one, `timezone`.
struct Bounds<'a> {
    after: Option<(&'a Value, At<'a>)>,
    before: Option<(&'a Value, At<'a>)>,
    zone: Option<TimeZone>,
}

impl<'a> Bounds<'a> {
    fn read(data: &'a Value, at: &'a At<'a>, has_zone: bool) -> Result<Self, PolicyError> {
        let Value::Object(keys) = data else {
            return Err(at.error("an object with `after`, `before` or both was expected"));
        };
        let mut bounds = Self { after: None, before: None, zone: None };
        for (key, value) in keys {
            let below = at.key(key);
            match key.as_str() {
                "after" => bounds.after = Some((value, below)),
                "before" => bounds.before = Some((value, below)),
                "timezone" if has_zone => bounds.zone = Some(zone(value, &below)?),
                other if has_zone => {
                    return Err(below.unknown("key", other, &["after", "before", "timezone"]));
                }
                other => return Err(below.unknown("key", other, &["after", "before"])),
            }
        }
        if bounds.after.is_none() && bounds.before.is_none() {
            return Err(at.error("`after` or `before` is missing: every time would match"));
        }
        Ok(bounds)
    }
}

fn local(now: Timestamp, zone: &TimeZone) -> Option<Zoned> {
    let seconds = i64::try_from(now.as_unix_seconds()).ok()?;
    Some(jiff::Timestamp::from_second(seconds).ok()?.to_zoned(zone.clone()))
}

/// Since midnight.
fn seconds(time: Time) -> u32 {
    let part = |value: i8| u32::from(value.unsigned_abs());
    part(time.hour()) * 3600 + part(time.minute()) * 60 + part(time.second())
}

fn name(zone: &TimeZone) -> &str {
    zone.iana_name().unwrap_or("UTC")
}

fn zone(value: &Value, at: &At<'_>) -> Result<TimeZone, PolicyError> {
    let name = value.as_str().unwrap_or_default();
    TimeZone::get(name).map_err(|_| {
        at.error("the name of a time zone was expected, such as `Europe/Berlin`, `America/New_York` or `UTC`")
    })
}

/// Seconds since midnight of `9:00`, `14:20:00`, `4:30PM`, `9:30 AM`, `5PM`.
fn time_of_day(text: &str) -> Option<u32> {
    let folded = text.trim().to_ascii_lowercase();
    let (clock, half) = match (folded.strip_suffix("am"), folded.strip_suffix("pm")) {
        (Some(clock), _) => (clock.trim_end(), Some(0)),
        (_, Some(clock)) => (clock.trim_end(), Some(12)),
        (None, None) => (folded.as_str(), None),
    };
    let mut parts = clock.split(':').map(|part| {
        let is_number = (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { part.parse::<u32>().ok() } else { None }
    });
    let hour = parts.next()??;
    let minute = parts.next();
    let (hour, minute) = match (half, minute) {
        // A number alone is a time only with its half of the day.
        (None, None) => return None,
        (None, Some(minute)) => (hour, minute?),
        (Some(half), minute) if (1..=12).contains(&hour) => (hour % 12 + half, minute.unwrap_or(Some(0))?),
        (Some(_), _) => return None,
    };
    let second = parts.next().unwrap_or(Some(0))?;
    let is_sound = hour < 24 && minute < 60 && second < 60 && parts.next().is_none();
    is_sound.then_some(hour * 3600 + minute * 60 + second)
}

/// A bit a day.
fn days(value: &Value, at: &At<'_>) -> Result<u8, PolicyError> {
    if let Value::Array(values) = value {
        return values.iter().enumerate().try_fold(0, |all, (index, value)| {
            let at = at.index(index);
            Ok(all | days_of(value, &at)?)
        });
    }
    days_of(value, at)
}

fn days_of(value: &Value, at: &At<'_>) -> Result<u8, PolicyError> {
    let expected =
        || at.error("days of the week were expected, such as `mon-fri`, `sat,sun`, `[mon, wed]` or `*`");
    let text = scalar_text(value).ok_or_else(expected)?;
    text.split(',').try_fold(0, |all, part| {
        let part = part.trim();
        let some = match part.split_once('-') {
            None if part == "*" => Some(0x7f),
            None => day(part).map(|day| 1 << day),
            // From one day to another, past Sunday if need be.
            Some((from, to)) => day(from).zip(day(to)).map(|(from, to)| {
                let many = (to + 7 - from) % 7;
                (0..=many).fold(0, |all, step| all | 1 << ((from + step) % 7))
            }),
        };
        some.map(|some| all | some).ok_or_else(expected)
    })
}

fn day(name: &str) -> Option<u8> {
    let name = name.trim().to_ascii_lowercase();
    let at = DAYS.iter().position(|day| name.len() >= 3 && day.starts_with(&name))?;
    u8::try_from(at).ok()
}

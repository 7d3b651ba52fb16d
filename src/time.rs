//! Timestamps: UTC microseconds since 1970, and the clock.
//!
//! Both databases, tokens, cursors and the `DateTime` scalar use this precision, so nothing is
//! rounded. All code reads the time from a [`Clock`], which tests can set.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Datelike, Timelike, Utc};
use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;

/// Rounds up to whole seconds, at least one, so that a client that waits this long is not too
/// early.
pub fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
        .max(1)
}

/// A UTC timestamp with microsecond precision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, AsExpression, FromSqlRow)]
#[diesel(sql_type = crate::db::types::sql::Instant)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Later than any timestamp that a client can send. Missing due dates sort as this value.
    pub const MAX: Self = Self(i64::MAX);
    /// The range of RFC 3339 (years 0000–9999). Input outside it is rejected.
    const FIRST: i64 = -62_167_219_200_000_000;
    const LAST: i64 = 253_402_300_799_999_999;

    /// From microseconds since 1970-01-01T00:00:00Z.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From an untrusted number: `None` unless it is [`Timestamp::MAX`] or in the range of RFC
    /// 3339.
    pub fn from_untrusted_micros(micros: i64) -> Option<Self> {
        (micros == Self::MAX.0 || (Self::FIRST..=Self::LAST).contains(&micros))
            .then_some(Self(micros))
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970-01-01T00:00:00Z, the unit of JWT claims.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Parses an RFC 3339 date-time with any offset. Digits beyond microseconds are truncated.
    pub fn parse(text: &str) -> Option<Self> {
        // chrono reads a leap second as the following second, which RFC 3339 allows.
        let micros = DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros();
        (Self::FIRST..=Self::LAST)
            .contains(&micros)
            .then_some(Self(micros))
    }

    /// Formats as RFC 3339 in UTC with microseconds. Values outside its range are clamped.
    pub fn text(self) -> [u8; 27] {
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let moment = DateTime::from_timestamp_micros(self.0.clamp(Self::FIRST, Self::LAST))
            .unwrap_or_default();
        let parts = [
            (0..4, u32::try_from(moment.year()).unwrap_or_default()),
            (5..7, moment.month()),
            (8..10, moment.day()),
            (11..13, moment.hour()),
            (14..16, moment.minute()),
            (17..19, moment.second()),
            (20..26, moment.timestamp_subsec_micros()),
        ];
        for (place, mut number) in parts {
            for digit in text[place].iter_mut().rev() {
                *digit = b"0123456789"[number as usize % 10];
                number /= 10;
            }
        }
        text
    }

    pub fn plus(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    pub fn minus(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// The duration since `earlier`, or zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 date-time"))
    }
}

/// A source of the current time: the system, or a fixed time that a test sets and advances.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stays at `start` until it is advanced.
    pub fn fixed(start: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(start.0))))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the only place that reads the system clock"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => Timestamp(Utc::now().timestamp_micros()),
            Some(fixed) => Timestamp(fixed.load(Ordering::SeqCst)),
        }
    }

    /// Advances a fixed clock. The system clock is not affected.
    pub fn advance(&self, span: Duration) {
        if let Some(fixed) = &self.0 {
            fixed.fetch_add(
                i64::try_from(span.as_micros()).unwrap_or(i64::MAX),
                Ordering::SeqCst,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::SecondsFormat;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        for (wait, seconds) in [
            (0, 1),
            (1, 1),
            (1_000_000_000, 1),
            (1_000_000_001, 2),
            (1_999_999_999, 2),
        ] {
            assert_eq!(whole_seconds(Duration::from_nanos(wait)), seconds, "{wait}");
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_moment_is_read_with_any_offset_and_written_in_utc_with_microseconds() {
        let moment = Timestamp::parse("2026-11-21T09:30:00.1234567+02:00").expect("valid");
        assert_eq!(moment.to_string(), "2026-11-21T07:30:00.123456Z");
        assert_eq!(Timestamp::parse(&moment.to_string()), Some(moment));
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
    }

    proptest! {
        #[test]
        fn a_moment_is_written_as_chrono_writes_it(micros in Timestamp::FIRST..=Timestamp::LAST) {
            let by_chrono = DateTime::from_timestamp_micros(micros).expect("in range");
            let by_chrono = by_chrono.to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(Timestamp(micros).to_string(), by_chrono);
        }
    }

    #[test]
    fn what_is_not_rfc_3339_is_refused() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T09:30:00",
            "2026-13-01T00:00:00Z",
            "+12026-01-01T00:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}

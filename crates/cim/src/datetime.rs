//! The CIM datetime (DSP0004 5.2.4): a timestamp with its UTC offset in minutes, or an interval.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil;
use jiff::tz::{Offset, TimeZone};

/// A point in time or a span of time, to the microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Datetime {
    /// Microseconds since 1970-01-01 UTC, and the offset from UTC in minutes to show it in.
    Timestamp {
        /// Microseconds since the Unix epoch; negative before it.
        micros: i64,
        /// Offset of the local time shown, in minutes east of UTC.
        offset: i16,
    },
    /// A span, in microseconds.
    Interval {
        /// Length in microseconds, at most 99,999,999 days.
        micros: u64,
    },
}

/// Why a text is not a CIM datetime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a CIM datetime ({reason})")]
pub struct DatetimeError {
    text: String,
    reason: &'static str,
}

const MICROS_PER_DAY: u64 = 86_400_000_000;
/// The longest interval eight digits of days can hold.
const LONGEST: u64 = 99_999_999 * MICROS_PER_DAY + MICROS_PER_DAY - 1;

/// The instant, or the nearest one four digits of a year can hold: formatting must not fail.
fn nearest(micros: i64) -> jiff::Timestamp {
    let (first, last) = (
        -62_135_596_800_000_000,
        jiff::Timestamp::MAX.as_microsecond(),
    );
    jiff::Timestamp::from_microsecond(micros.clamp(first, last)).unwrap_or(jiff::Timestamp::MAX)
}

impl Datetime {
    /// The current time, in UTC.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// A span of `duration`, rounded down to the microsecond and cut at what the format can hold.
    pub fn interval(duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros())
            .unwrap_or(LONGEST)
            .min(LONGEST);
        Datetime::Interval { micros }
    }

    /// The span, if this is an interval.
    pub fn as_duration(&self) -> Option<Duration> {
        match self {
            Datetime::Interval { micros } => Some(Duration::from_micros(*micros)),
            Datetime::Timestamp { .. } => None,
        }
    }

    /// The instant, if this is a timestamp not before 1970.
    pub fn as_system_time(&self) -> Option<SystemTime> {
        match self {
            Datetime::Timestamp { micros, .. } => {
                let since = u64::try_from(*micros).ok()?;
                UNIX_EPOCH.checked_add(Duration::from_micros(since))
            }
            Datetime::Interval { .. } => None,
        }
    }

    /// The XML Schema form WS-Management uses: `2013-03-09T02:57:32Z`, with a fraction when there is
    /// one, or `P1DT2H3M4.5S` for an interval.
    pub fn to_xsd(self) -> String {
        match self {
            Datetime::Timestamp { micros, .. } => nearest(micros).to_string(),
            Datetime::Interval { micros } => {
                let (days, rest) = (micros / MICROS_PER_DAY, micros % MICROS_PER_DAY);
                let (s, us) = (rest / 1_000_000, rest % 1_000_000);
                let fraction = if us == 0 {
                    String::new()
                } else {
                    format!(".{us:06}")
                };
                format!(
                    "P{days}DT{}H{}M{}{fraction}S",
                    s / 3600,
                    s / 60 % 60,
                    s % 60
                )
            }
        }
    }

    /// Reads the XML Schema `dateTime` or `duration` forms (years and months are refused: CIM
    /// intervals cannot hold them), or the CIM form.
    pub fn parse_lenient(text: &str) -> Result<Self, DatetimeError> {
        let text = text.trim();
        if let Ok(datetime) = text.parse() {
            return Ok(datetime);
        }
        let bad = |reason| DatetimeError {
            text: text.to_owned(),
            reason,
        };
        if text.starts_with('P') {
            let span: jiff::SignedDuration = text
                .parse::<jiff::Span>()
                .and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()))
                .map_err(|_| bad("not a duration of days and less"))?;
            let micros =
                u64::try_from(span.as_micros()).map_err(|_| bad("the interval is negative"))?;
            if micros > LONGEST {
                return Err(bad("the interval is longer than 99,999,999 days"));
            }
            return Ok(Datetime::Interval { micros });
        }
        if let Ok(at) = text.parse::<jiff::Timestamp>() {
            return Ok(Datetime::Timestamp {
                micros: at.as_microsecond(),
                offset: 0,
            });
        }
        let civil: civil::DateTime = text.parse().map_err(|_| bad("unknown form"))?;
        let at = civil
            .to_zoned(TimeZone::UTC)
            .map_err(|_| bad("out of range"))?;
        Ok(Datetime::Timestamp {
            micros: at.timestamp().as_microsecond(),
            offset: 0,
        })
    }
}

impl From<SystemTime> for Datetime {
    fn from(at: SystemTime) -> Self {
        let micros = match at.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Datetime::Timestamp { micros, offset: 0 }
    }
}

impl From<Duration> for Datetime {
    fn from(duration: Duration) -> Self {
        Datetime::interval(duration)
    }
}

impl fmt::Display for Datetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Datetime::Timestamp { micros, offset } => {
                let zone = Offset::from_seconds(i32::from(offset) * 60).unwrap_or(Offset::UTC);
                let c = zone.to_datetime(nearest(micros));
                write!(
                    f,
                    "{:04}{:02}{:02}{:02}{:02}{:02}.{:06}{}{:03}",
                    c.year(),
                    c.month(),
                    c.day(),
                    c.hour(),
                    c.minute(),
                    c.second(),
                    c.subsec_nanosecond() / 1000,
                    if offset < 0 { '-' } else { '+' },
                    offset.unsigned_abs()
                )
            }
            Datetime::Interval { micros } => {
                let (days, rest) = (micros / MICROS_PER_DAY, micros % MICROS_PER_DAY);
                let (s, us) = (rest / 1_000_000, rest % 1_000_000);
                write!(
                    f,
                    "{days:08}{:02}{:02}{:02}.{us:06}:000",
                    s / 3600,
                    s / 60 % 60,
                    s % 60
                )
            }
        }
    }
}

impl FromStr for Datetime {
    type Err = DatetimeError;

    /// Reads the 25 character CIM form. Asterisks (unknown digits) count as zero, or as one in month and day.
    fn from_str(text: &str) -> Result<Self, DatetimeError> {
        let bad = |reason| DatetimeError {
            text: text.chars().take(64).collect(),
            reason,
        };
        let bytes = text.as_bytes();
        if bytes.len() != 25 || !text.is_ascii() || bytes.get(14) != Some(&b'.') {
            return Err(bad("not 25 characters with a dot at the fifteenth"));
        }
        let number = |from: usize, to: usize, unknown: i64| -> Result<i64, DatetimeError> {
            let digits = text.get(from..to).unwrap_or_default();
            if digits.bytes().all(|b| b == b'*') {
                return Ok(unknown);
            }
            let digits = digits.replace('*', "0");
            if !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad("a digit was expected"));
            }
            digits.parse().map_err(|_| bad("a digit was expected"))
        };
        let micros = number(15, 21, 0)?;
        let narrow = |n: i64| i8::try_from(n).unwrap_or(i8::MAX);
        match bytes.get(21) {
            Some(b':') => {
                let (h, m, s) = (number(8, 10, 0)?, number(10, 12, 0)?, number(12, 14, 0)?);
                if h > 23 || m > 59 || s > 59 {
                    return Err(bad("hours, minutes or seconds out of range"));
                }
                let seconds = ((number(0, 8, 0)? * 24 + h) * 60 + m) * 60 + s;
                let micros = u64::try_from(seconds * 1_000_000 + micros)
                    .map_err(|_| bad("the interval is negative"))?;
                Ok(Datetime::Interval { micros })
            }
            Some(sign @ (b'+' | b'-')) => {
                let civil = civil::DateTime::new(
                    i16::try_from(number(0, 4, 1)?).unwrap_or(i16::MAX),
                    narrow(number(4, 6, 1)?),
                    narrow(number(6, 8, 1)?),
                    narrow(number(8, 10, 0)?),
                    narrow(number(10, 12, 0)?),
                    narrow(number(12, 14, 0)?),
                    i32::try_from(micros * 1000).unwrap_or(0),
                )
                .map_err(|_| bad("no such date or time"))?;
                let minutes = number(22, 25, 0)? * if *sign == b'-' { -1 } else { 1 };
                let at = civil
                    .to_zoned(TimeZone::UTC)
                    .map_err(|_| bad("out of range"))?;
                let micros = at.timestamp().as_microsecond() - minutes * 60_000_000;
                if nearest(micros).as_microsecond() != micros {
                    return Err(bad("out of range"));
                }
                Ok(Datetime::Timestamp {
                    micros,
                    offset: i16::try_from(minutes).unwrap_or(0),
                })
            }
            _ => Err(bad("the twenty-second character must be ':', '+' or '-'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_a_round_trip() {
        for text in [
            "20261120184500.123456+000",
            "20261120184500.000000-300",
            "20240229235959.999999+060",
            "00000000000500.000000:000",
            "12345678235959.000001:000",
        ] {
            assert_eq!(text.parse::<Datetime>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn xml_schema_forms_are_read_and_written() {
        let at = Datetime::parse_lenient("2013-03-09T02:57:32Z").expect("timestamp");
        assert_eq!(at.to_string(), "20130309025732.000000+000");
        assert_eq!(at.to_xsd(), "2013-03-09T02:57:32Z");
        let span = Datetime::parse_lenient("P1DT2H3M4.5S").expect("interval");
        assert_eq!(span.to_string(), "00000001020304.500000:000");
        assert_eq!(span.to_xsd(), "P1DT2H3M4.500000S");
    }

    #[test]
    fn what_is_no_datetime_is_refused() {
        for text in [
            "",
            "20261320184500.123456+000",
            "x",
            "0000000000050.0000000:000",
            "P1Y",
        ] {
            assert!(Datetime::parse_lenient(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_the_format_cannot_hold_are_shown_as_the_nearest_one() {
        for (micros, year) in [(i64::MAX, "9999"), (i64::MIN, "0001")] {
            let at = Datetime::Timestamp { micros, offset: 0 };
            assert!(at.to_string().starts_with(year) && at.to_xsd().starts_with(year));
        }
        assert!("99991231235959.999999-999".parse::<Datetime>().is_err());
        let longest = Datetime::interval(Duration::MAX);
        assert_eq!(longest.to_string(), "99999999235959.999999:000");
    }
}

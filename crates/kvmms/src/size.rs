//! Sizes and spans of time as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes. Units are binary: `1K` is 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no size: {why}")]
pub(crate) struct SizeError {
    text: String,
    why: &'static str,
}

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

impl FromStr for Size {
    type Err = SizeError;

    /// Reads `10G`, `1.5GiB`, `512 MB`, `4096`, `4096B`; the result is a whole number of bytes.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let bad = |why| SizeError {
            text: text.chars().take(40).collect(),
            why,
        };
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let mut unit = unit.trim().to_ascii_uppercase();
        for ending in ["IB", "B"] {
            if let Some(rest) = unit.strip_suffix(ending) {
                unit = rest.to_owned();
                break;
            }
        }
        let shift = match unit.as_str() {
            "" => 0,
            one => UNITS
                .iter()
                .find(|(letter, _)| one.chars().eq([*letter]))
                .map(|(_, shift)| *shift)
                .ok_or_else(|| bad("the units are K, M, G, T and P"))?,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(bad("a number was expected, as in 10G"));
        }
        let too_large = || bad("it is too large");
        let part = |digits: &str| match digits {
            "" => Ok(0),
            digits if digits.len() > 18 => Err(too_large()),
            digits => digits
                .parse::<u128>()
                .map_err(|_| bad("a number was expected, as in 10G")),
        };
        let scale = 10u128.pow(u32::try_from(fraction.len().min(18)).unwrap_or(18));
        let bytes = (part(whole)? * scale + part(fraction)?) << shift;
        if bytes % scale != 0 {
            return Err(bad("it is no whole number of bytes"));
        }
        u64::try_from(bytes / scale)
            .map(Size)
            .map_err(|_| too_large())
    }
}

impl fmt::Display for Size {
    /// The largest unit that leaves at least one, with a decimal where it says something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, shift)| self.0 >> shift > 0);
        let Some((letter, shift)) = unit else {
            return write!(f, "{} B", self.0);
        };
        let tenths = (u128::from(self.0) * 10 + (1 << shift) / 2) >> shift;
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(f, "{whole} {letter}iB"),
            (whole, tenth) => write!(f, "{whole}.{tenth} {letter}iB"),
        }
    }
}

/// A span of time in its two largest units.
pub(crate) fn span(duration: Duration) -> String {
    let s = duration.as_secs();
    let (days, hours, minutes, seconds) = (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60);
    if days > 0 {
        format!("{days}d{hours:02}h")
    } else if hours > 0 {
        format!("{hours}h{minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m{seconds:02}s")
    } else {
        format!("{seconds}.{}s", duration.subsec_millis() / 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("512 MiB", 512 << 20),
            ("1.5G", 3 << 29),
            ("1.5GB", 3 << 29),
            (".5K", 512),
            ("2T", 2 << 40),
            (" 10g ", 10 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1X",
            "1.2.3G",
            "1.3",
            "99999P",
            "1GG",
            "1 0",
            "0.1K",
            "99999999999999999999999999999",
            ".",
            "１G",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn spans_show_two_units() {
        for (seconds, text) in [
            (0.25, "0.2s"),
            (59.0, "59.0s"),
            (61.0, "1m01s"),
            (3_660.0, "1h01m"),
            (90_000.0, "1d01h"),
        ] {
            assert_eq!(span(Duration::from_secs_f64(seconds)), text);
        }
    }
}

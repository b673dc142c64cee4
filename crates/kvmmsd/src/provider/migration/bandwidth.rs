//! Bandwidth and BandwidthUnit of a move: a number and a unit as DMTF's programmatic units write it
//! (`byte / second * 2^20`, `bit / second * 10^9`), or as people do (`MB/s`, `Mbit/s`).

use cim::Instance;
use vmms::fault;

use crate::provider::{given, given_text};
use crate::view::CallError;

/// Units as people write them, in lower case, in bytes per second. Those of bits are told by their name.
const PLAIN: [(&str, u64, bool); 8] = [
    ("b/s", 1, false),
    ("kb/s", 1_000, false),
    ("mb/s", 1_000_000, false),
    ("gb/s", 1_000_000_000, false),
    ("mib/s", 1 << 20, false),
    ("kbit/s", 1_000, true),
    ("mbit/s", 1_000_000, true),
    ("gbit/s", 1_000_000_000, true),
];

/// The most bytes per second that settings allow; `None` where they say nothing.
pub(super) fn of(settings: &Instance) -> Result<Option<u64>, CallError> {
    let number = given::<u16>(settings, "Bandwidth")?.filter(|n| *n > 0);
    let unit = given_text(settings, "BandwidthUnit");
    match (number, unit) {
        (None, _) => Ok(None),
        (Some(_), None) => Err(fault!(MissingValue, "BandwidthUnit beside Bandwidth").into()),
        (Some(number), Some(unit)) => {
            let (factor, bits) = factor(unit).ok_or_else(|| {
                let why = "units are such as \"byte / second * 2^20\", \"bit / second * 10^6\", \"MB/s\" and \"Mbit/s\"";
                fault!(InvalidValue, "BandwidthUnit", unit, why)
            })?;
            let all = u64::from(number).saturating_mul(factor);
            let bytes = if bits { all / 8 } else { all };
            Ok(Some(bytes.max(1)))
        }
    }
}

/// What one of the unit is, and whether it counts bits.
fn factor(unit: &str) -> Option<(u64, bool)> {
    let text: String = unit.to_lowercase().split_whitespace().collect();
    if let Some((_, factor, bits)) = PLAIN.iter().find(|(name, ..)| *name == text) {
        return Some((*factor, *bits));
    }
    let text = text.replace("persecond", "/second");
    let (what, rest) = text.split_once("/second")?;
    let bits = match what {
        "byte" | "bytes" => false,
        "bit" | "bits" => true,
        _ => return None,
    };
    let factor = match rest {
        "" => 1,
        rest => {
            let (base, exponent) = rest.strip_prefix('*')?.split_once('^')?;
            let base = base.parse::<u64>().ok().filter(|b| [2, 10].contains(b))?;
            base.checked_pow(exponent.parse().ok()?)?
        }
    };
    Some((factor, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: u16, unit: Option<&str>) -> Option<Option<u64>> {
        let class = msvm::class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SETTING_DATA;
        let mut settings = Instance::new(class).with("Bandwidth", number);
        settings.set("BandwidthUnit", unit);
        of(&settings).ok()
    }

    #[test]
    fn units_of_programs_and_of_people_are_bytes_per_second() {
        for (number, unit, bytes) in [
            (10, "byte / second * 2^20", 10 << 20),
            (8, "bit / second * 10^6", 1_000_000),
            (3, "bytes per second", 3),
            (2, "MB/s", 2_000_000),
            (80, "Mbit/s", 10_000_000),
        ] {
            assert_eq!(told(number, Some(unit)), Some(Some(bytes)), "{unit}");
        }
    }

    #[test]
    fn a_number_without_a_unit_or_with_one_nobody_knows_is_refused() {
        assert_eq!(told(10, None), None);
        for unit in [
            "furlong / fortnight",
            "byte / second * 3^2",
            "byte / second * 10^99",
            "byte",
        ] {
            assert_eq!(told(10, Some(unit)), None, "{unit}");
        }
        assert_eq!(told(0, None), Some(None));
    }
}

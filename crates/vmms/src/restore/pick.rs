//! Which of the exports in a directory is meant.

use std::path::{Path, PathBuf};

use disk::manifest::Manifest;
use uuid::Uuid;

use crate::restore::verify::{chain_of, exports_below};
use crate::{Fault, Result, fault};

/// A list of exports in an error names that many.
const LISTED: usize = 20;

/// Shortest beginning of a GUID that is taken for one.
pub(crate) const BEGINNING: usize = 6;

/// An export.
pub(crate) struct Found {
    /// The directory with its manifest.
    pub(crate) dir: PathBuf,
    /// Which says what it is.
    pub(crate) manifest: Manifest,
}

/// Every export in `directory`, below it, and beneath those; each once.
pub(crate) fn all(directory: &Path) -> Result<Vec<Found>> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in exports_below(directory)? {
        // Where a chain is broken, what is there can be meant all the same.
        let beneath = chain_of(&dir).map_or_else(
            |_| vec![dir.clone()],
            |chain| chain.into_iter().map(|e| e.dir).collect(),
        );
        for dir in beneath {
            let dir = dir.canonicalize().unwrap_or(dir);
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
    }
    let found: Vec<Found> = dirs
        .into_iter()
        .filter_map(|dir| {
            let (manifest, _) = Manifest::load(&dir).ok()?;
            Some(Found { dir, manifest })
        })
        .collect();
    if found.is_empty() {
        return Err(fault!(ManifestUnusable, directory.display()));
    }
    Ok(found)
}

/// The export of the point that `at` means: its GUID (or the beginning of it), its name, or its instant (or the beginning of it, in UTC).
pub(crate) fn one(directory: &Path, at: &str) -> Result<PathBuf> {
    let found = all(directory)?;
    let mut meant = meant(&found, at);
    match meant.len() {
        0 => Err(missing(directory, at, &found)),
        1 => Ok(meant.remove(0).dir.clone()),
        _ => Err(unclear(directory, at, &meant)),
    }
}

/// One export of each machine in `directory`: that of the point `at` (see [`one`]), without it the newest.
pub(crate) fn of_each_machine(directory: &Path, at: Option<&str>) -> Result<Vec<PathBuf>> {
    let found = all(directory)?;
    let mut fits: Vec<&Found> = match at {
        Some(at) => meant(&found, at),
        None => found.iter().collect(),
    };
    if fits.is_empty() {
        return Err(missing(directory, at.unwrap_or_default(), &found));
    }
    let machine = |f: &Found| f.manifest.machine.id.to_ascii_uppercase();
    // Instants of one form compare as texts.
    fits.sort_by_key(|f| {
        (
            machine(f),
            std::cmp::Reverse(f.manifest.point.instant.clone()),
        )
    });
    if let Some(at) = at
        && let Some(pair) = fits
            .windows(2)
            .find(|w| w.first().map(|f| machine(f)) == w.last().map(|f| machine(f)))
    {
        return Err(unclear(directory, at, pair));
    }
    fits.dedup_by_key(|f| machine(f));
    Ok(fits.into_iter().map(|f| f.dir.clone()).collect())
}

/// The identifiers a point has: its own, and that of the collection's point it is a part of.
fn ids(m: &Manifest) -> impl Iterator<Item = &str> {
    let collection = m.collection.as_ref().map(|c| c.point.as_str());
    std::iter::once(m.point.id.as_str()).chain(collection)
}

/// Its names, likewise.
fn names(m: &Manifest) -> impl Iterator<Item = &str> {
    let collection = m.collection.as_ref().map(|c| c.point_name.as_str());
    m.point.name.as_deref().into_iter().chain(collection)
}

/// The exports whose point `at` means, one of each point.
fn meant<'a>(found: &'a [Found], at: &str) -> Vec<&'a Found> {
    let at = at.trim();
    let id = at.rsplit(['\\', ':']).next().unwrap_or(at);
    let guid = Uuid::parse_str(id.trim_matches(['{', '}'])).ok();
    let moment = at.parse::<jiff::Timestamp>().ok();
    let day = at.replacen(' ', "T", 1);
    let day = day.trim_end_matches(" UTC");
    let begins_like_an_instant = at.len() >= 10 && at.starts_with(|c: char| c.is_ascii_digit());
    let ways: [&dyn Fn(&Manifest) -> bool; 5] = [
        &|m| guid.is_some() && ids(m).any(|i| Uuid::parse_str(i).ok() == guid),
        &|m| names(m).any(|n| n == at),
        &|m| {
            let exact = moment.is_some() && m.point.instant.parse().ok() == moment;
            exact
                || (begins_like_an_instant
                    && m.point.instant.starts_with(day.trim_end_matches('Z')))
        },
        &|m| names(m).any(|n| n.eq_ignore_ascii_case(at)),
        &|m| {
            let start = m.point.id.get(..id.len());
            id.len() >= BEGINNING && start.is_some_and(|s| s.eq_ignore_ascii_case(id))
        },
    ];
    for way in ways {
        let mut fits: Vec<&Found> = Vec::new();
        for f in found.iter().filter(|f| way(&f.manifest)) {
            // Two exports of one point hold the same.
            let same = |g: &&Found| {
                (&g.manifest.point.id, &g.manifest.machine.id)
                    == (&f.manifest.point.id, &f.manifest.machine.id)
            };
            if !fits.iter().any(same) {
                fits.push(f);
            }
        }
        if !fits.is_empty() {
            return fits;
        }
    }
    Vec::new()
}

fn missing(directory: &Path, at: &str, found: &[Found]) -> Fault {
    let all: Vec<&Found> = found.iter().collect();
    fault!(PointNotExported, directory.display(), at, list(&all))
}

fn unclear(directory: &Path, at: &str, fits: &[&Found]) -> Fault {
    fault!(PointUnclear, directory.display(), at, list(fits))
}

/// The points of exports for people: name, GUID, instant, machine.
fn list(found: &[&Found]) -> String {
    let mut lines: Vec<(String, String)> = found
        .iter()
        .map(|f| {
            let point = &f.manifest.point;
            let name = point.name.as_deref().unwrap_or("a point");
            let machine = &f.manifest.machine.name;
            let line = format!("{name} ({}, {}, of {machine})", point.id, point.instant);
            (point.instant.clone(), line)
        })
        .collect();
    lines.sort();
    lines.dedup();
    let more = lines.len().saturating_sub(LISTED);
    let mut words: Vec<String> = lines.into_iter().take(LISTED).map(|(_, l)| l).collect();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use disk::manifest::{Consistency, MachineIdentity, PointIdentity, PointType};

    use super::*;

    fn export(machine: u128, point: u128, name: &str, instant: &str) -> Found {
        let machine = MachineIdentity {
            id: crate::guid(Uuid::from_u128(machine)),
            name: format!("m{machine}"),
        };
        let point = PointIdentity {
            id: crate::guid(Uuid::from_u128(point << 64 | point)),
            name: Some(name.to_owned()).filter(|n| !n.is_empty()),
            instant: instant.to_owned(),
            consistency: Consistency::Crash,
            kind: PointType::LogBased,
            base_id: None,
            base_manifest: None,
        };
        Found {
            dir: format!("/{name}{instant}").into(),
            manifest: Manifest::new("t", machine, point),
        }
    }

    fn two() -> Vec<Found> {
        vec![
            export(1, 0xabcd, "monday", "2026-11-20T19:00:00.123456Z"),
            export(1, 0xabce, "tuesday", "2026-11-21T07:30:00.000000Z"),
        ]
    }

    fn meant_by(found: &[Found], at: &str) -> Vec<String> {
        let names = meant(found, at).into_iter();
        names
            .filter_map(|f| f.manifest.point.name.clone())
            .collect()
    }

    #[test]
    fn a_point_is_meant_by_guid_name_and_instant() {
        let found = two();
        for at in [
            "00000000-0000-ABCE-0000-00000000ABCE",
            "{00000000-0000-abce-0000-00000000abce}",
            "Microsoft:00000000-0000-ABCE-0000-00000000ABCE",
            "00000000-0000-ABCE",
            "tuesday",
            "TUESDAY",
            "2026-11-21",
            "2026-11-21 07:30",
            "2026-11-21T07:30:00Z",
            "2026-11-21 07:30:00 UTC",
            "2026-11-21T08:30:00+01:00",
        ] {
            assert_eq!(meant_by(&found, at), ["tuesday"], "{at}");
        }
        assert_eq!(meant_by(&found, "wednesday"), [""; 0]);
        assert_eq!(
            meant_by(&found, "2026"),
            [""; 0],
            "a year alone is no instant"
        );
        assert_eq!(meant_by(&found, "2026-11-2").len(), 0);
        assert_eq!(meant_by(&found, "00000000").len(), 2);
    }

    #[test]
    fn two_exports_of_one_point_are_one_and_two_points_of_one_name_are_two() {
        let mut found = two();
        found.push(export(1, 0xabcd, "monday", "2026-11-20T19:00:00.123456Z"));
        assert_eq!(meant_by(&found, "monday").len(), 1);
        found.push(export(2, 0xabcd, "monday", "2026-11-20T19:00:00.123456Z"));
        assert_eq!(meant_by(&found, "monday").len(), 2, "of another machine");
    }
}

//! Exports that were begun and never finished, in the directories that points and jobs know.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use disk::atomic::PARTIAL_SUFFIX;
use disk::manifest::MANIFEST_NAME;
use uuid::Uuid;

use super::known::{Known, Opened};
use super::{Finding, FindingKind, begins_with, entries, is_dir, is_plain, name_of};
use crate::Vmms;
use crate::export::layout;
use crate::job::Job;
use crate::point::Point;
use crate::snapshot::Snapshot;

/// A directory of an export: of a machine, or of a further point in it.
pub(super) struct Listed {
    dir: PathBuf,
    machine: String,
    files: Vec<PathBuf>,
}

pub(super) fn list(vmms: &Vmms) -> Vec<Listed> {
    let mut tops: BTreeSet<PathBuf> = BTreeSet::new();
    let exports = |list: &[PathBuf], out: &mut BTreeSet<PathBuf>| {
        for root in list {
            // The machine's directory, or that of a further point beneath it.
            let above = root.ancestors().skip(1).take(2).map(Path::to_owned);
            out.extend(above);
        }
    };
    for point in vmms.db.all::<Point>() {
        exports(&point.exports, &mut tops);
    }
    for snapshot in vmms.db.all::<Snapshot>() {
        exports(&snapshot.exports, &mut tops);
    }
    for job in vmms.db.all::<Job>() {
        tops.extend(job.task.exports_to().map(Path::to_owned));
    }
    let mut out = Vec::new();
    for top in tops {
        for dir in entries(&top) {
            let Some(machine) = guid_name(&dir).filter(|_| is_dir(&dir)) else {
                continue;
            };
            for point in entries(&dir) {
                if guid_name(&point).is_some() && is_dir(&point) {
                    out.push(of(point, &machine));
                }
            }
            out.push(of(dir, &machine));
        }
    }
    out.sort_by(|a, b| a.dir.cmp(&b.dir));
    out.dedup_by(|a, b| a.dir == b.dir);
    out
}

fn of(dir: PathBuf, machine: &str) -> Listed {
    let below = [layout::MACHINES, layout::DISKS].map(|d| entries(&dir.join(d)));
    let files = below.into_iter().flatten().chain(entries(&dir));
    Listed {
        files: files.filter(|f| is_plain(f)).collect(),
        machine: machine.to_owned(),
        dir,
    }
}

/// The name of a directory that is a GUID as we write it.
fn guid_name(path: &Path) -> Option<String> {
    let name = name_of(path);
    let id: Uuid = name.parse().ok()?;
    (crate::guid(id) == name).then(|| name.to_owned())
}

pub(super) fn judge(listed: Vec<Listed>, known: &Known, opened: &Opened) -> Vec<Finding> {
    // Exports and imports are being written, or undone.
    let writing = known.running.iter().any(|j| j.task.exports_to().is_some());
    if writing {
        return Vec::new();
    }
    let found = listed.into_iter().filter_map(|export| {
        let whole = export.dir.join(MANIFEST_NAME).exists();
        let ours: Vec<PathBuf> = export
            .files
            .iter()
            .filter(|f| f.exists() && is_ours(f, &export.machine))
            .filter(|f| !whole || name_of(f).ends_with(PARTIAL_SUFFIX))
            .filter(|f| !known.names(f))
            .cloned()
            .collect();
        if ours.is_empty() {
            return None;
        }
        let why = match whole {
            true => "files beside a finished export that were never finished themselves",
            false => "an export without manifest, which no job is writing",
        };
        let dirs = vec![
            export.dir.join(layout::MACHINES),
            export.dir.join(layout::DISKS),
            export.dir.clone(),
        ];
        let found = Finding::new(FindingKind::Export, export.dir.display(), why);
        Some(found.files(ours, if whole { Vec::new() } else { dirs }, opened))
    });
    found.collect()
}

/// Whether a file of an export has a name that only we give, and begins as it should where it is finished.
fn is_ours(path: &Path, machine: &str) -> bool {
    let name = name_of(path);
    let (name, partial) = match name.strip_suffix(PARTIAL_SUFFIX) {
        Some(name) => (name, true),
        None => (name, false),
    };
    if name == MANIFEST_NAME {
        return partial;
    }
    if name.starts_with(".kvmms-probe-") {
        return partial;
    }
    if let Some(rest) = name.strip_prefix(machine) {
        return [".json", ".guest.json", ".firmware.fd", ".vmstate"].contains(&rest);
    }
    let (stem, magic): (_, &[u8]) = match (name.strip_suffix(".qcow2"), name.strip_suffix(".map")) {
        (Some(stem), _) => (stem, b"QFI\xfb"),
        (_, Some(stem)) => (stem, b"KVMMSBLK"),
        _ => return false,
    };
    // <name>-<8 digits of the disk>-<GUID of the point>
    let Some((rest, point)) = stem
        .len()
        .checked_sub(36)
        .and_then(|at| stem.split_at_checked(at))
    else {
        return false;
    };
    let digits = rest
        .strip_suffix('-')
        .and_then(|r| r.rsplit_once('-'))
        .map(|(_, digits)| digits);
    let named = point
        .parse::<Uuid>()
        .is_ok_and(|id| crate::guid(id) == point)
        && digits.is_some_and(|d| d.len() == 8 && d.chars().all(|c| c.is_ascii_hexdigit()));
    named && (partial || begins_with(path, magic))
}

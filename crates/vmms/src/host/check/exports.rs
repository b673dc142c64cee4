//! Exports that were begun and never finished, in the directories that points and jobs know, those of the past too.

use engine::Task as _;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use disk::atomic::PARTIAL_SUFFIX;
use disk::confined::Dir;
use disk::manifest::MANIFEST_NAME;
use uuid::Uuid;

use super::known::{Known, Opened};
use super::{Finding, FindingKind, begins_with, entries, is_dir, is_plain, name_of};
use crate::Vmms;
use crate::export::{SNAPSHOTS, layout, own};
use crate::job::Job;
use crate::point::Point;
use crate::snapshot::Snapshot;

/// A directory of an export: of a machine, of a further point in it, of a snapshot, or the one that was named.
pub(super) struct Listed {
    dir: PathBuf,
    /// None for one that may hold the files of any.
    machine: Option<String>,
    files: Vec<PathBuf>,
    /// Directories under a temporary name, the innermost first.
    temporary: Vec<PathBuf>,
}

/// The directories that a job may have exported to.
pub(super) fn places_of(job: &Job, out: &mut BTreeSet<PathBuf>) {
    let written = job.task.claims().writes_to;
    if written.is_empty() {
        return;
    }
    out.extend(written);
    for notes in own::all_checkpoints(job.notes.clone()) {
        // Without links, and the one above where not even the directory was finished.
        out.extend(notes.root.ancestors().skip(1).take(3).map(Path::to_owned));
    }
}

/// `past`: where jobs exported to that vanished from view.
pub(super) fn list(vmms: &Vmms, past: BTreeSet<PathBuf>) -> Vec<Listed> {
    let mut tops = past;
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
        places_of(&job, &mut tops);
    }
    tops.retain(|top| top.parent().is_some());
    let mut out = Vec::new();
    for top in tops {
        for dir in entries(&top) {
            let Some(machine) = guid_name(&dir).filter(|_| is_dir(&dir)) else {
                continue;
            };
            let further = entries(&dir)
                .into_iter()
                .chain(entries(&dir.join(SNAPSHOTS)));
            for point in further.filter(|p| guid_name(p).is_some() && is_dir(p)) {
                out.push(of(point, Some(&machine)));
            }
            out.push(of(dir, Some(&machine)));
        }
        out.push(of(top, None));
    }
    out.retain(|l| !l.files.is_empty() || !l.temporary.is_empty());
    // Of a directory that is both, what is known of it counts.
    out.sort_by(|a, b| (&a.dir, a.machine.is_none()).cmp(&(&b.dir, b.machine.is_none())));
    out.dedup_by(|a, b| a.dir == b.dir);
    out
}

fn of(dir: PathBuf, machine: Option<&String>) -> Listed {
    let below = [layout::MACHINES, layout::DISKS].map(|d| entries(&dir.join(d)));
    let files = below.into_iter().flatten().chain(entries(&dir));
    let mut temporary = Vec::new();
    let unfinished = entries(&dir).into_iter();
    for found in unfinished.filter(|d| own::is_temporary(name_of(d)) && is_dir(d)) {
        tree(found, &mut temporary);
    }
    Listed {
        files: files.filter(|f| is_plain(f)).collect(),
        temporary,
        machine: machine.cloned(),
        dir,
    }
}

/// A directory and those in it, the innermost first.
fn tree(dir: PathBuf, out: &mut Vec<PathBuf>) {
    for inner in entries(&dir).into_iter().filter(|d| is_dir(d)) {
        tree(inner, out);
    }
    out.push(dir);
}

/// The name of a directory that is a GUID as we write it.
fn guid_name(path: &Path) -> Option<String> {
    let name = name_of(path);
    let id: Uuid = name.parse().ok()?;
    (crate::guid(id) == name).then(|| name.to_owned())
}

pub(super) fn judge(listed: Vec<Listed>, known: &Known, opened: &Opened) -> Vec<Finding> {
    // What jobs are writing, or taking back.
    let running: Vec<own::Checkpoint> = known
        .running
        .iter()
        .filter(|j| !j.claims().writes_to.is_empty())
        .flat_map(|j| own::all_checkpoints(j.notes.clone()))
        .collect();
    let found = listed.into_iter().filter_map(|export| {
        let dir = Dir::open(&export.dir).ok()?;
        let here = dir.identity().ok()?;
        let written = running.iter().any(|notes| {
            notes.claimed().is_some_and(|claimed| claimed.is(&here)) || notes.root == dir.path()
        });
        // Or another service is at it.
        if written || !dir.take() {
            return None;
        }
        let whole = export.dir.join(MANIFEST_NAME).exists();
        let of_running = |f: &Path| running.iter().any(|notes| notes.named(name_of(f)));
        let ours: Vec<PathBuf> = export
            .files
            .iter()
            .filter(|f| f.exists() && is_ours(f, export.machine.as_deref()))
            .filter(|f| !whole || name_of(f).ends_with(PARTIAL_SUFFIX))
            .filter(|f| !known.names(f) && !of_running(f))
            .cloned()
            .collect();
        let mut dirs: Vec<PathBuf> = export.temporary;
        dirs.retain(|d| is_dir(d) && !d.ancestors().any(of_running));
        if ours.is_empty() && dirs.is_empty() {
            return None;
        }
        let why = match whole {
            true => "files beside a finished export that were never finished themselves",
            false => "an export without manifest, which no job is writing",
        };
        if !whole && export.machine.is_some() {
            dirs.extend([
                export.dir.join(layout::MACHINES),
                export.dir.join(layout::DISKS),
                export.dir.clone(),
            ]);
        }
        let found = Finding::new(FindingKind::Export, export.dir.display(), why);
        Some(found.files(ours, dirs, opened))
    });
    found.collect()
}

/// Whether a file of an export has a name that only we give, and begins as it should where it is finished.
fn is_ours(path: &Path, machine: Option<&str>) -> bool {
    let name = name_of(path);
    if own::is_temporary(name) {
        return true;
    }
    let (name, partial) = match name.strip_suffix(PARTIAL_SUFFIX) {
        Some(name) => (name, true),
        None => (name, false),
    };
    if name == MANIFEST_NAME {
        return partial;
    }
    let of_machine = name.split_at_checked(36).filter(|(id, _)| match machine {
        Some(machine) => *id == machine,
        None => id
            .parse::<Uuid>()
            .is_ok_and(|found| crate::guid(found) == *id),
    });
    if let Some((_, rest)) = of_machine {
        return [
            ".json",
            ".guest.json",
            ".firmware.fd",
            ".vmstate",
            ".snapshot.json",
        ]
        .contains(&rest);
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

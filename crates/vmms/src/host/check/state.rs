//! The state directory: maps, directories of points and machines, and temporary files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::atomic::PARTIAL_SUFFIX;
use uuid::Uuid;

use super::known::{Known, Opened};
use super::{Finding, FindingKind, begins_with, entries, is_dir, is_plain, name_of};
use crate::Vmms;
use crate::host::check::CleanHost;
use crate::job::Job;
use crate::job::Kind as _;
use crate::point::{FIRMWARE_VARS, load_config};

/// What a change map begins with.
const MAP: &[u8] = b"KVMMSMAP";
/// How deep temporary files are looked for.
const DEPTH: usize = 3;

pub(super) struct Listed {
    maps: Vec<PathBuf>,
    points: Vec<PathBuf>,
    machines: Vec<PathBuf>,
    partial: Vec<PathBuf>,
}

pub(super) fn list(vmms: &Vmms) -> Listed {
    let state = &vmms.dirs.state;
    let mut partial = Vec::new();
    temporary(state, DEPTH, &mut partial);
    Listed {
        maps: entries(&state.join("maps"))
            .iter()
            .flat_map(|dir| entries(dir))
            .collect(),
        points: entries(&state.join("points")),
        machines: entries(&state.join("vm")),
        partial,
    }
}

fn temporary(dir: &Path, depth: usize, out: &mut Vec<PathBuf>) {
    for path in entries(dir) {
        if is_dir(&path) && depth > 0 {
            temporary(&path, depth - 1, out);
        } else if is_plain(&path) && name_of(&path).ends_with(PARTIAL_SUFFIX) {
            out.push(path);
        }
    }
}

/// A name that is an identifier in our spelling.
fn id_of(text: &str) -> Option<Uuid> {
    text.parse().ok().filter(|id: &Uuid| id.to_string() == text)
}

pub(super) fn judge(listed: Listed, known: &Known, opened: &Opened) -> Vec<Finding> {
    let mut out = Vec::new();
    out.extend(listed.maps.iter().filter_map(|m| map(m, known, opened)));
    for dir in &listed.points {
        out.extend(point(dir, known, opened));
    }
    for dir in &listed.machines {
        out.extend(machine(dir, known, opened));
    }
    // Who writes one is a running job, but for moments.
    let writes = |job: &Arc<Job>| CleanHost::of(&job.task).is_none();
    if !known.running.iter().any(writes) {
        let there = listed.partial.iter().filter(|p| p.exists());
        out.extend(there.map(|path| {
            let why = "it has a temporary name, and nothing is being written";
            Finding::new(FindingKind::Temporary, path.display(), why).files(
                vec![path.clone()],
                Vec::new(),
                opened,
            )
        }));
    }
    // What lies in a directory that goes as a whole is told once.
    let gone: Vec<PathBuf> = out
        .iter()
        .filter(|f| f.kind != FindingKind::Temporary)
        .map(|f| PathBuf::from(&f.subject))
        .collect();
    out.retain(|f| {
        let path = Path::new(&f.subject);
        f.kind != FindingKind::Temporary || !gone.iter().any(|dir| path.starts_with(dir))
    });
    out
}

fn map(path: &Path, known: &Known, opened: &Opened) -> Option<Finding> {
    if name_of(path).ends_with(PARTIAL_SUFFIX) {
        return None;
    }
    let foreign = |why: &str| {
        Finding::new(FindingKind::Map, path.display(), why)
            .bytes(super::allocated(path))
            .left_to("Look what it is; kvmms never touches it.")
    };
    let Some(node) = name_of(path).strip_suffix(".map").and_then(id_of) else {
        return Some(foreign(
            "it lies among change maps, but is none: it is not ours",
        ));
    };
    if known.nodes.contains(&node) || known.is_spoken_of(node) || !path.exists() {
        return None;
    }
    if !is_plain(path) || !begins_with(path, MAP) {
        return Some(foreign(
            "it has the name of a change map, but not the content of one: it is not ours",
        ));
    }
    let dirs = path.parent().map(Path::to_owned).into_iter().collect();
    let why = "no disk has the instant it leads to";
    let found = Finding::new(FindingKind::Map, path.display(), why);
    Some(found.files(vec![path.to_owned()], dirs, opened))
}

fn point(dir: &Path, known: &Known, opened: &Opened) -> Option<Finding> {
    let kind = FindingKind::PointFiles;
    let Some(id) = id_of(name_of(dir)).filter(|_| is_dir(dir)) else {
        return Some(stranger(kind, dir));
    };
    let named =
        known.points.iter().any(|p| p.id == id) || known.snapshots.iter().any(|s| s.id == id);
    if named || known.is_spoken_of(id) || !dir.exists() {
        return None;
    }
    let config = dir.join("machine.json");
    let ours = |path: &Path| {
        let name = name_of(path);
        let name = name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(name);
        // <disk>.blocks, or <disk>.<random>.blocks before it is whole.
        let hashes = name
            .strip_suffix(".blocks")
            .and_then(|n| n.split('.').next());
        ["machine.json", FIRMWARE_VARS, "memory.vmstate"].contains(&name)
            || hashes.and_then(id_of).is_some()
    };
    let proven = !config.exists() || load_config(&config).is_ok();
    let why = "there is no point and no snapshot of this identifier";
    Some(directory(kind, dir, why, proven, &ours, known, opened))
}

fn machine(dir: &Path, known: &Known, opened: &Opened) -> Option<Finding> {
    let kind = FindingKind::MachineFiles;
    let Some(id) = id_of(name_of(dir)).filter(|_| is_dir(dir)) else {
        return Some(stranger(kind, dir));
    };
    let named = known.vms.iter().any(|vm| vm.id == id);
    if named || known.is_spoken_of(id) || !dir.exists() {
        return None;
    }
    let ours = |path: &Path| {
        let name = name_of(path);
        let name = name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(name);
        ["console.log", "console.log.1", FIRMWARE_VARS].contains(&name)
            || name.ends_with(".vmstate")
    };
    let why = "there is no machine of this identifier";
    Some(directory(kind, dir, why, true, &ours, known, opened))
}

fn stranger(kind: FindingKind, path: &Path) -> Finding {
    let why = "it lies among ours, but its name is not one we give: it is not ours";
    Finding::new(kind, path.display(), why)
        .bytes(super::allocated(path))
        .left_to("Look what it is; kvmms never touches it.")
}

/// A directory whose every file must be one that we make.
fn directory(
    kind: FindingKind,
    dir: &Path,
    why: &str,
    proven: bool,
    ours: &dyn Fn(&Path) -> bool,
    known: &Known,
    opened: &Opened,
) -> Finding {
    let files = entries(dir);
    let foreign = files
        .iter()
        .find(|f| !proven || !is_plain(f) || !ours(f) || known.names(f));
    let found = Finding::new(kind, dir.display(), why);
    match foreign {
        None => found.files(files.clone(), vec![dir.to_owned()], opened),
        Some(file) => {
            let bytes = files.iter().map(|f| super::allocated(f)).sum();
            let action = format!(
                "{} is not, or not only, ours: look what it is.",
                file.display()
            );
            found.bytes(bytes).left_to(action)
        }
    }
}

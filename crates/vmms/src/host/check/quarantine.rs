//! Where cleaning puts what it takes away: into a directory beside it, on the same file system, from which a person can take it back
//! until its time is over.
//!
//! A note in the state directory is durable before anything is moved. What is moved keeps its path below the quarantine's directory.
//! When its time is over exactly the noted files go, if they are still the ones that were moved; whatever else is there stays.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use disk::atomic::AtomicFile;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Finding, FindingKind, allocated, entries};
use crate::host::owner::sync_dir;
use crate::{Fault, Result, Vmms, fault};

/// The directory beside what was cleaned.
pub(super) const DIRECTORY: &str = ".kvmms-quarantine";

/// What was moved at one time.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    id: Uuid,
    /// Where it lies.
    dir: PathBuf,
    /// What it was moved out of; what was below keeps its path.
    base: PathBuf,
    files: Vec<Moved>,
    kind: FindingKind,
    why: String,
    at: SystemTime,
    until: SystemTime,
}

/// A moved file: whatever its name, by device and inode.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Moved {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Moved {
    fn is(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(path)
            .is_ok_and(|m| (m.dev(), m.ino()) == (self.device, self.inode))
    }
}

fn notes_dir(vmms: &Vmms) -> PathBuf {
    vmms.dirs.state.join("quarantine")
}

fn note_path(vmms: &Vmms, id: Uuid) -> PathBuf {
    notes_dir(vmms).join(format!("{id}.json"))
}

/// A directory only we can write in; refused where somebody else made one of that name.
fn private_dir(dir: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(Fault::io("create", dir, &e)),
    }
    let meta = std::fs::symlink_metadata(dir).map_err(|e| Fault::io("look at", dir, &e))?;
    let own = std::fs::metadata("/proc/self").map_or(u32::MAX, |m| m.uid());
    match meta.is_dir() && meta.uid() == own && meta.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(fault!(QuarantineUnusable, dir.display())),
    }
}

/// Moves these files into quarantine and removes directories that are empty then.
pub(super) fn put(vmms: &Vmms, found: &Finding, files: &[PathBuf], dirs: &[PathBuf]) -> Result<()> {
    let of = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let own = &vmms.dirs.state;
    let beside = dirs.last().or(files.first()).map(|p| of(p));
    // Beside, but never in a directory of ours that goes as a whole one day.
    let Some(base) = beside.map(|b| if b.starts_with(own) { own.clone() } else { b }) else {
        return Ok(());
    };
    let outer = base.join(DIRECTORY);
    let id = Uuid::new_v4();
    let dir = outer.join(id.to_string());
    let at = SystemTime::now();
    let mut note = Note {
        id,
        dir: dir.clone(),
        base: base.clone(),
        files: Vec::new(),
        kind: found.kind,
        why: found.why.clone(),
        at,
        until: at.checked_add(vmms.options.quarantine).unwrap_or(at),
    };
    for file in files {
        let meta = std::fs::symlink_metadata(file).map_err(|e| Fault::io("look at", file, &e))?;
        note.files.push(Moved {
            path: file.clone(),
            device: meta.dev(),
            inode: meta.ino(),
        });
    }
    private_dir(&outer)?;
    private_dir(&dir)?;
    let text = serde_json::to_vec_pretty(&note).map_err(|e| fault!(Internal, e))?;
    // Once for the service, once for whoever finds the directory.
    std::fs::create_dir_all(notes_dir(vmms))
        .map_err(|e| Fault::io("create", &notes_dir(vmms), &e))?;
    AtomicFile::replace(&note_path(vmms, id), &text)?;
    AtomicFile::replace(&dir.join("origin.json"), &text)?;
    sync_dir(&outer)?;
    for moved in &note.files {
        let to = dir.join(moved.path.strip_prefix(&base).unwrap_or(&moved.path));
        let parent = of(&to);
        std::fs::create_dir_all(&parent).map_err(|e| Fault::io("create", &parent, &e))?;
        if !moved.is(&moved.path) {
            continue;
        }
        std::fs::rename(&moved.path, &to).map_err(|e| Fault::io("move", &moved.path, &e))?;
        sync_dir(&parent)?;
        sync_dir(&of(&moved.path))?;
    }
    for dir in dirs {
        // One that others put files into meanwhile stays.
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// Where a moved file lies now.
fn place(note: &Note, moved: &Moved) -> PathBuf {
    note.dir
        .join(moved.path.strip_prefix(&note.base).unwrap_or(&moved.path))
}

fn notes(vmms: &Vmms) -> Vec<Note> {
    let files = entries(&notes_dir(vmms)).into_iter();
    let files = files.filter(|f| f.extension().is_some_and(|e| e == "json"));
    let notes = files.filter_map(|file| {
        let bytes = std::fs::read(&file).ok()?;
        match serde_json::from_slice::<Note>(&bytes) {
            Ok(note) => Some(note),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a note of what was cleaned cannot be read");
                None
            }
        }
    });
    notes.collect()
}

/// What lies in quarantine.
pub(super) fn list(vmms: &Vmms) -> Vec<Finding> {
    let shown = |at: SystemTime| {
        let at = jiff::Timestamp::try_from(at).unwrap_or_default();
        format!("{at:.0}")
    };
    let found = notes(vmms).into_iter().filter_map(|note| {
        let there: Vec<(&Moved, PathBuf)> = note
            .files
            .iter()
            .map(|m| (m, place(&note, m)))
            .filter(|(m, p)| m.is(p))
            .collect();
        let (first, path) = there.first()?;
        let more = match there.len() {
            1 => String::new(),
            n => format!(" and {} more files", n - 1),
        };
        let why = format!(
            "cleaning took {}{more} away on {} ({}: {})",
            first.path.display(),
            shown(note.at),
            note.kind,
            note.why
        );
        let action = format!(
            "It is deleted after {}. To have it back: mv '{}' '{}'",
            shown(note.until),
            path.display(),
            first.path.display()
        );
        let bytes = there.iter().map(|(_, p)| allocated(p)).sum();
        let kind = FindingKind::Quarantine;
        Some(
            Finding::new(kind, note.dir.display(), why)
                .bytes(bytes)
                .left_to(action),
        )
    });
    found.collect()
}

/// Deletes what has been in quarantine for its time.
pub(crate) fn expire(vmms: &Vmms, now: SystemTime) {
    for note in notes(vmms) {
        let over = now >= note.until;
        let there = note.files.iter().any(|m| m.is(&place(&note, m)));
        // A note without files: taken back, or the service died before it moved anything.
        let idle = now
            .duration_since(note.at)
            .is_ok_and(|d| d > Duration::from_secs(60));
        if !over && (there || !idle) {
            continue;
        }
        for moved in &note.files {
            let path = place(&note, moved);
            if moved.is(&path)
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(file = %path.display(), %error, "a file in quarantine stays");
            }
            let mut above = path.parent();
            while let Some(dir) = above.filter(|d| d.starts_with(&note.dir) && *d != note.dir) {
                let _ = std::fs::remove_dir(dir);
                above = dir.parent();
            }
        }
        let left = note.files.iter().any(|m| m.is(&place(&note, m)));
        if left {
            continue;
        }
        tracing::info!(dir = %note.dir.display(), "what was cleaned is deleted, its time is over");
        let _ = std::fs::remove_file(note.dir.join("origin.json"));
        let _ = std::fs::remove_dir(&note.dir);
        let _ = note.dir.parent().map(std::fs::remove_dir);
        let _ = std::fs::remove_file(note_path(vmms, note.id));
    }
}

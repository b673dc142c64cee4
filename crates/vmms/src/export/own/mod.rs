//! What an export touches: the directory it claims, what it creates there, and how that is taken back.
//!
//! # Model
//! Everything stands in the job's notes before it is relied on. First a secret of the part (its `token`), from which all temporary names
//! are made; then what was created under such a name, by device, inode and time of birth; then it gets its real name, which replaces
//! nothing. So after a crash between any two effects it is known what is ours: what is noted, and what has a name that only we
//! could have chosen. Taking back deletes just that.
//!
//! A directory with a manifest is claimed by device and inode, whatever it is called, from before the first file until the job is final,
//! which it is after its undo. Services that know nothing of each other see each other's lock on it.

mod claim;
mod undo;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::atomic::{PARTIAL_SUFFIX, Slot};
use disk::confined::{Dir, Identity};
use disk::manifest::{self, DiskEntry, MANIFEST_NAME};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use uuid::Uuid;

pub(crate) use claim::{Held, Wanted};
pub(crate) use undo::undo;

use crate::db::Draft;
use crate::job::{Job, JobContext};
use crate::{Fault, Result, Vmms, fault};

/// How every temporary name of an export begins.
pub(crate) const PREFIX: &str = ".kvmms-";
/// Times that somebody else may be first with a directory, or remove one, before it is told.
const TRIES: usize = 32;

/// What an export, of one machine, has noted of its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// The directory with the manifest.
    pub(crate) root: PathBuf,
    /// Files it writes, relative to the root.
    files: Vec<PathBuf>,
    /// The instant it exports.
    #[serde(default)]
    pub(crate) point: Uuid,
    /// What its temporary names are made of.
    #[serde(default)]
    token: String,
    /// The directories it holds.
    #[serde(default)]
    claim: Option<Claim>,
    /// Directories it made.
    #[serde(default)]
    dirs: Vec<OwnDir>,
    /// Files it made.
    #[serde(default)]
    created: Vec<OwnFile>,
    /// Disks that are whole.
    #[serde(default)]
    finished: Vec<Finished>,
    /// How far the disk is that is being written.
    #[serde(default)]
    mark: Option<(Uuid, disk::Mark)>,
}

/// A directory that no other export may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// The directory that was asked for.
    target: Identity,
    /// The directory for the manifest.
    root: Identity,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OwnDir {
    path: PathBuf,
    /// Where it was made.
    before: PathBuf,
    identity: Identity,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OwnFile {
    /// Relative to the root.
    path: PathBuf,
    /// Its temporary name, in the same directory.
    partial: String,
    identity: Identity,
}

/// A disk that was exported before the job was interrupted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    /// Its uid.
    pub(super) disk: Uuid,
    /// The base it differs from.
    pub(super) base: Option<Uuid>,
    /// Its entry in the manifest.
    pub(super) entry: DiskEntry,
    /// The block lists that together tell all its blocks.
    pub(super) lists: Vec<PathBuf>,
    /// What was decided while it was written.
    pub(super) decisions: Vec<manifest::Decision>,
}

/// The notes of all parts of an export job.
pub(crate) fn all_checkpoints(notes: serde_json::Value) -> Vec<Checkpoint> {
    match notes {
        list @ serde_json::Value::Array(_) => serde_json::from_value(list).unwrap_or_default(),
        one => serde_json::from_value(one).into_iter().collect(),
    }
}

/// The notes of one part of a job, kept where they survive.
#[derive(Clone)]
pub(crate) struct Ledger {
    vmms: Arc<Vmms>,
    handle: Handle,
    job: Uuid,
    point: Uuid,
}

impl Ledger {
    pub(crate) fn new(vmms: &Arc<Vmms>, ctx: &JobContext, point: Uuid) -> Self {
        Ledger {
            vmms: Arc::clone(vmms),
            handle: Handle::current(),
            job: ctx.job(),
            point,
        }
    }

    /// What is noted; `None` before the first note.
    pub(crate) fn noted(&self) -> Option<Checkpoint> {
        let job = self.vmms.db.get::<Job>(self.job).ok()?;
        let mut all = all_checkpoints(job.notes.clone());
        all.retain(|n| n.point == self.point);
        all.pop()
    }

    pub(super) fn notes(&self) -> Result<Checkpoint> {
        self.noted()
            .ok_or_else(|| fault!(Internal, "an export without notes"))
    }

    /// Changes the notes durably; `change` also sees what other jobs noted. On a thread for blocking work.
    fn change<T: Send>(
        &self,
        change: impl FnOnce(&mut Checkpoint, &mut Draft<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        let (job, point) = (self.job, self.point);
        let work = self.vmms.db.change(move |draft| {
            let mut all = all_checkpoints(draft.get_mut::<Job>(job)?.notes.clone());
            let place = all.iter().position(|n| n.point == point);
            let mut own = match place {
                Some(place) => all.remove(place),
                None => Checkpoint::new(point),
            };
            let out = change(&mut own, draft)?;
            all.insert(place.unwrap_or(all.len()), own);
            draft.get_mut::<Job>(job)?.notes =
                serde_json::to_value(&all).map_err(|e| fault!(Internal, e))?;
            Ok(out)
        });
        self.handle.block_on(work)
    }

    fn edit(&self, change: impl FnOnce(&mut Checkpoint) + Send) -> Result<()> {
        self.change(|notes, _| {
            change(notes);
            Ok(())
        })
    }

    /// A file to be written, under a temporary name that is noted; with what was written to it before, where the job goes on.
    pub(crate) fn slot(&self, root: &Dir, path: &Path) -> Result<Slot> {
        let mut slots = self.slots(root, &[path])?;
        slots
            .pop()
            .ok_or_else(|| fault!(Internal, "a file without a slot"))
    }

    /// As [`Ledger::slot`], for several files at once.
    pub(crate) fn slots(&self, root: &Dir, paths: &[&Path]) -> Result<Vec<Slot>> {
        let notes = self.notes()?;
        let (mut slots, mut fresh) = (Vec::new(), Vec::new());
        for path in paths {
            let (parent, name) = split(path)?;
            let dir = self.directory(root, parent)?;
            let known = notes.created.iter().find(|c| c.path == *path);
            if let Some(known) = known {
                let partial = OsStr::new(&known.partial);
                if dir.look(partial)?.is_some_and(|f| f.is(&known.identity)) {
                    let file = dir.open_file_to_write(Path::new(partial))?;
                    slots.push(Slot::kept(&dir, name, partial, file));
                    continue;
                }
                // It was whole already, and what it belongs to was not: it is written again.
                if dir.remove(name, &known.identity)? {
                    dir.sync()?;
                }
            }
            let place = notes.files.iter().position(|f| f == path);
            let number = place.map_or_else(|| "m".to_owned(), |n| n.to_string());
            let partial = format!("{PREFIX}{}-{number}{PARTIAL_SUFFIX}", notes.token);
            let partial_name = OsStr::new(&partial);
            let file = match dir.create_file(partial_name) {
                // Created before it could be noted: only we know the name.
                Err(e) if e.kind() == disk::ErrorKind::Exists => {
                    if let Some(left) = dir.look(partial_name)? {
                        dir.remove(partial_name, &left)?;
                    }
                    dir.create_file(partial_name)?
                }
                other => other?,
            };
            let identity = Identity::of(&file, path)?;
            slots.push(Slot::kept(&dir, name, partial_name, file));
            fresh.push(OwnFile {
                path: path.to_path_buf(),
                partial,
                identity,
            });
        }
        if !fresh.is_empty() {
            self.edit(|notes| {
                let again = |c: &OwnFile| fresh.iter().any(|f| f.path == c.path);
                notes.created.retain(|c| !again(c));
                notes.created.extend(fresh.iter().cloned());
            })?;
        }
        Ok(slots)
    }

    /// A directory for files below the root, made if need be.
    fn directory(&self, root: &Dir, parent: &Path) -> Result<Dir> {
        for _ in 0..TRIES {
            if let Some(dir) = below(root, parent)? {
                if !self.vmms.options.places.allow_foreign {
                    dir.check_owner()?;
                }
                return Ok(dir);
            }
            let notes = self.notes()?;
            let temporary = format!(
                "{PREFIX}{}-d{}{PARTIAL_SUFFIX}",
                notes.token,
                notes.dirs.len()
            );
            let temporary = OsStr::new(&temporary);
            let made = undo::fresh_dir(root, temporary)?;
            let own = OwnDir {
                path: root.path().join(parent),
                before: root.path().join(temporary),
                identity: made.identity()?,
            };
            let identity = own.identity;
            self.edit(|notes| notes.dirs.push(own))?;
            if let Err(e) = root.rename(temporary, parent.as_os_str()) {
                root.remove_dir(temporary, &identity)?;
                if e.kind() != disk::ErrorKind::Exists {
                    return Err(e.into());
                }
            }
            root.sync()?;
        }
        Err(fault!(
            PathNotUsable,
            root.path().join(parent).display(),
            "others keep making and removing directories there"
        ))
    }

    /// The disks that are whole, and the mark of the one that is not.
    pub(super) fn progress(&self, disk: Uuid) -> Result<(Option<Finished>, Option<disk::Mark>)> {
        let notes = self.notes()?;
        let finished = notes.finished.into_iter().find(|f| f.disk == disk);
        let mark = notes.mark.filter(|(of, _)| *of == disk).map(|(_, m)| m);
        Ok((finished, mark))
    }

    /// Notes a mark of the disk that is being written.
    pub(super) fn mark(&self, disk: Uuid, mark: disk::Mark) -> Result<()> {
        self.edit(|notes| notes.mark = Some((disk, mark)))
    }

    /// Notes a disk that is whole.
    pub(super) fn finished(&self, finished: Finished) -> Result<()> {
        self.edit(|notes| {
            notes.mark = None;
            notes.finished.retain(|f| f.disk != finished.disk);
            notes.finished.push(finished);
        })
    }

    /// Whether a disk that is noted as whole lies there as it was written.
    pub(super) fn is_there(&self, root: &Dir, entry: &DiskEntry) -> Result<bool> {
        let notes = self.notes()?;
        for (path, bytes) in [
            (&entry.file, entry.file_bytes),
            (&entry.block_list.file, entry.block_list.bytes),
        ] {
            let path: &Path = path.as_ref();
            let Some(known) = notes.created.iter().find(|c| c.path == path) else {
                return Ok(false);
            };
            let Ok(file) = root.open_file(path) else {
                return Ok(false);
            };
            let whole = root.path().join(path);
            let length = file.metadata().map_err(|e| Fault::io("read", &whole, &e))?;
            if !Identity::of(&file, &whole)?.is(&known.identity) || length.len() != bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes that lie in unfinished files already.
    pub(super) fn written(&self, root: &Dir) -> u64 {
        let created = self.noted().map(|n| n.created).unwrap_or_default();
        let bytes = |c: &OwnFile| {
            let partial = c.path.with_file_name(&c.partial);
            let file = [partial, c.path.clone()]
                .iter()
                .find_map(|p| root.open_file(p).ok())?;
            file.metadata().ok().map(|m| m.len())
        };
        created.iter().filter_map(bytes).sum()
    }
}

impl Checkpoint {
    fn new(point: Uuid) -> Self {
        Checkpoint {
            root: PathBuf::new(),
            files: Vec::new(),
            point,
            token: String::new(),
            claim: None,
            dirs: Vec::new(),
            created: Vec::new(),
            finished: Vec::new(),
            mark: None,
        }
    }

    /// Whether its manifest is there, and its own.
    pub(crate) fn is_whole(&self, root: &Dir) -> bool {
        let found = root.look(OsStr::new(MANIFEST_NAME)).ok().flatten();
        let known = self
            .created
            .iter()
            .find(|c| c.path == Path::new(MANIFEST_NAME));
        matches!((found, known), (Some(found), Some(known)) if known.identity.is(&found))
    }

    /// The directory it claims, while it does.
    pub(crate) fn claimed(&self) -> Option<Identity> {
        self.claim.map(|c| c.root)
    }

    /// Whether a name is one of its temporary ones.
    pub(crate) fn named(&self, name: &str) -> bool {
        let rest = name.strip_prefix(PREFIX);
        !self.token.is_empty() && rest.is_some_and(|r| r.starts_with(&self.token))
    }
}

/// A failure of the data plane; a name that somebody else took meanwhile is told as that.
pub(super) fn named(error: disk::Error) -> Fault {
    match &error {
        disk::Error::Io { path, .. } if error.kind() == disk::ErrorKind::Exists => {
            fault!(ForeignFile, path.display())
        }
        _ => error.into(),
    }
}

fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(fault!(
            Internal,
            format!("{} is no file name", path.display())
        )),
    }
}

/// A directory of files in the root, or the root itself; `None` where it is not there.
fn below(root: &Dir, parent: &Path) -> Result<Option<Dir>> {
    if parent.as_os_str().is_empty() {
        return Ok(Some(root.clone()));
    }
    match root.look(parent.as_os_str())? {
        Some(_) => Ok(Some(root.enter(parent)?)),
        None => Ok(None),
    }
}

/// Whether a name is one that only exports give.
pub(crate) fn is_temporary(name: &str) -> bool {
    let middle = name
        .strip_prefix(PREFIX)
        .and_then(|n| n.strip_suffix(PARTIAL_SUFFIX));
    middle
        .and_then(|m| m.split_once('-'))
        .is_some_and(|(token, _)| token.len() == 32 && token.chars().all(|c| c.is_ascii_hexdigit()))
}

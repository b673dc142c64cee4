//! Claiming the directory of an export, and making it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disk::atomic::PARTIAL_SUFFIX;
use disk::confined::Dir;
use disk::manifest::MANIFEST_NAME;
use uuid::Uuid;

use super::undo::{fresh_dir, remove_dir};
use super::{Checkpoint, Claim, Ledger, OwnDir, PREFIX, TRIES, all_checkpoints, below, split};
use crate::db::Draft;
use crate::export::layout;
use crate::job::Job;
use crate::point::Point;
use crate::{Fault, Message, Result, Use, fault, guid};

/// How long a lock on a directory may be held by someone who only looks.
const GLANCE: Duration = Duration::from_millis(40);

/// What is to be claimed.
pub(crate) struct Wanted {
    /// The instant.
    pub(crate) point: Arc<Point>,
    /// The directory the user named.
    pub(crate) directory: PathBuf,
    /// Where the manifest may go, the first choice first.
    pub(crate) roots: Vec<PathBuf>,
    /// Files that will be written, relative to it, without the manifest.
    pub(crate) files: Vec<PathBuf>,
}

/// A claimed directory, open.
pub(crate) struct Held {
    /// The directory for the manifest; its lock goes with the last handle.
    pub(crate) dir: Dir,
}

impl Ledger {
    /// Claims a directory for the manifest and makes it, with those above it that are missing. Nothing of others is in it
    /// that has the name of one of our files. A job that goes on gets what it had.
    pub(crate) fn claim(&self, wanted: &Wanted) -> Result<Held> {
        let (vm, point) = (wanted.point.vm, wanted.point.id);
        let free = || {
            let there = layout::exports_in(&wanted.directory, vm);
            match layout::find(there, &guid(vm), &guid(point)) {
                Some(_) => Err(exists(wanted)),
                None => Ok(()),
            }
        };
        if let Some(notes) = self.noted().filter(|n| n.claim.is_some()) {
            finish_renames(&notes)?;
            let again = !notes.created.is_empty();
            match open_own(&notes) {
                Ok(dir) if again || notes.made(&dir)? => {
                    // The claim is older than any lock that another service may have now.
                    let _ = dir.take();
                    if !again {
                        free()?;
                        self.no_foreign(&notes, &dir)?;
                    }
                    return Ok(Held { dir });
                }
                Err(cause) if again => return Err(cause),
                // The service may have ended before it looked at what lies there: another export, or somebody else's directory.
                _ => self.edit(|notes| notes.claim = None)?,
            }
        }
        free()?;
        let unusable = |cause: Fault| match cause.message {
            Message::Os | Message::ImageMissing | Message::FileDenied | Message::NoSpace => {
                fault!(ExportDirectory, wanted.directory.display()).caused_by(cause)
            }
            _ => cause,
        };
        for root in &wanted.roots {
            self.edit(|notes| {
                notes.root.clone_from(root);
                notes.files.clone_from(&wanted.files);
                if notes.token.is_empty() {
                    notes.token = Uuid::new_v4().simple().to_string();
                }
            })?;
            let Some(dir) = self.establish(wanted, root).map_err(unusable)? else {
                continue;
            };
            if dir.look(OsStr::new(MANIFEST_NAME))?.is_some() || hold(&dir).is_err() {
                self.edit(|notes| notes.claim = None)?;
                continue;
            }
            // What was finished between the first look and the claim is seen now.
            free()?;
            self.no_foreign(&self.notes()?, &dir)?;
            return Ok(Held { dir });
        }
        Err(exists(wanted))
    }

    /// Opens or makes the directory and claims it; `None` where another job has it.
    fn establish(&self, wanted: &Wanted, root: &Path) -> Result<Option<Dir>> {
        for _ in 0..TRIES {
            let (dir, missing) = Dir::open_nearest(root)?;
            self.allowed(wanted, &dir, &missing)?;
            if missing.is_empty() {
                let target = Dir::open(&wanted.directory)?.identity()?;
                let claim = Claim {
                    target,
                    root: dir.identity()?,
                };
                return Ok(self.take(claim, wanted, dir.path())?.then_some(dir));
            }
            if self.make(wanted, &dir, &missing)? {
                return Dir::open(root).map(Some).map_err(Fault::from);
            }
        }
        Err(fault!(
            PathNotUsable,
            root.display(),
            "others keep making and removing directories there"
        ))
    }

    /// Whether exports may go there, and nobody else can exchange what lies there.
    fn allowed(&self, wanted: &Wanted, dir: &Dir, missing: &[OsString]) -> Result<()> {
        let places = &self.vmms.options.places;
        let mut real = dir.path().to_owned();
        real.extend(missing);
        places.check(Use::Export, &real, &self.vmms.dirs)?;
        if places.allow_foreign {
            return Ok(());
        }
        // What lies above the directory that was named is not ours to judge: no link of a stranger's is followed there.
        let (top, _) = Dir::open_nearest(&wanted.directory)?;
        let mut level = top.clone();
        level.check_owner()?;
        let below = dir.path().strip_prefix(top.path()).unwrap_or(Path::new(""));
        for name in below {
            level = level.enter(Path::new(name))?;
            level.check_owner()?;
        }
        Ok(())
    }

    /// Notes the claim, unless another job has one that excludes it.
    fn take(&self, claim: Claim, wanted: &Wanted, real: &Path) -> Result<bool> {
        let (job, point) = (self.job, wanted.point.id);
        self.change(|notes, draft| {
            if taken(draft, job, point, claim, &wanted.directory)? {
                return Ok(false);
            }
            notes.claim = Some(claim);
            // Without links, from here on.
            notes.root = real.to_owned();
            Ok(true)
        })
    }

    /// Makes the missing directories, the two for files included: whole under a temporary name first, then renamed. `false` where
    /// somebody else was first.
    fn make(&self, wanted: &Wanted, dir: &Dir, missing: &[OsString]) -> Result<bool> {
        let notes = self.notes()?;
        let temporary: OsString = format!(
            "{PREFIX}{}-d{}{PARTIAL_SUFFIX}",
            notes.token,
            notes.dirs.len()
        )
        .into();
        let top = dir.path().to_owned();
        let mut own = Vec::new();
        let mut made: Vec<Dir> = Vec::new();
        let (mut path, mut before) = (top.clone(), top.clone());
        let (mut target, mut root) = (None, None);
        let asked = real_of(&wanted.directory)?;
        for (n, name) in missing.iter().enumerate() {
            path.push(name);
            let here = if n == 0 { &temporary } else { name };
            before.push(here);
            let inner = match made.last() {
                Some(above) => above.create_dir(here)?,
                None => fresh_dir(dir, here)?,
            };
            let identity = inner.identity()?;
            if path == asked {
                target = Some(identity);
            }
            root = Some(identity);
            own.push(OwnDir {
                path: path.clone(),
                before: before.clone(),
                identity,
            });
            made.push(inner);
        }
        let (Some(last), Some(root)) = (made.last(), root) else {
            return Ok(true);
        };
        for name in [layout::MACHINES, layout::DISKS] {
            let inner = last.create_dir(OsStr::new(name))?;
            own.push(OwnDir {
                path: path.join(name),
                before: before.join(name),
                identity: inner.identity()?,
            });
        }
        for made in made.iter().rev() {
            made.sync()?;
        }
        let target = match target {
            Some(target) => target,
            None => Dir::open(&wanted.directory)?.identity()?,
        };
        let claim = Claim { target, root };
        let (job, point) = (self.job, wanted.point.id);
        self.change(|notes, draft| {
            // A directory that was just made is nobody else's; the point may be.
            taken(draft, job, point, claim, &wanted.directory)?;
            notes.claim = Some(claim);
            notes.dirs.extend(own.iter().cloned());
            notes.root.clone_from(&path);
            Ok(())
        })?;
        let first = missing.first().map_or(OsStr::new(""), OsString::as_os_str);
        match dir.rename(&temporary, first) {
            Ok(()) => {
                dir.sync()?;
                Ok(true)
            }
            Err(e) => {
                // Ours is of no use.
                for made in own.iter().rev() {
                    remove_dir(&made.before, &made.identity)?;
                }
                self.edit(|notes| {
                    notes.claim = None;
                    notes
                        .dirs
                        .retain(|d| !own.iter().any(|o| o.identity == d.identity));
                })?;
                match e.kind() {
                    // Somebody else was first, or the directory above was removed meanwhile.
                    disk::ErrorKind::Exists | disk::ErrorKind::NotFound => Ok(false),
                    _ => Err(e.into()),
                }
            }
        }
    }

    /// Nothing in the directory has the name of a file that is to be written.
    fn no_foreign(&self, notes: &Checkpoint, root: &Dir) -> Result<()> {
        for path in notes.files.iter().map(PathBuf::as_path) {
            let (parent, name) = split(path)?;
            let Some(dir) = below(root, parent)? else {
                continue;
            };
            if !self.vmms.options.places.allow_foreign {
                dir.check_owner()?;
            }
            if let Some(found) = dir.look(name)?
                && !notes.created.iter().any(|c| c.identity.is(&found))
            {
                return Err(fault!(ForeignFile, root.path().join(path).display()));
            }
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Whether it made this directory.
    fn made(&self, dir: &Dir) -> Result<bool> {
        let found = dir.identity()?;
        Ok(self.dirs.iter().any(|own| own.identity.is(&found)))
    }
}

/// Gives directories their names that were made and noted when the service ended.
fn finish_renames(notes: &Checkpoint) -> Result<()> {
    for own in &notes.dirs {
        let (parent, name) = split(&own.path)?;
        let (there, temporary) = split(&own.before)?;
        if parent != there || name == temporary {
            continue;
        }
        let (dir, missing) = Dir::open_nearest(parent)?;
        if missing.is_empty() && dir.look(temporary)?.is_some_and(|f| f.is(&own.identity)) {
            match dir.rename(temporary, name) {
                Err(e) if e.kind() != disk::ErrorKind::Exists => return Err(e.into()),
                _ => dir.sync()?,
            }
        }
    }
    Ok(())
}

/// The directory of a job that goes on: the very one it claimed.
fn open_own(notes: &Checkpoint) -> Result<Dir> {
    let dir = Dir::open(&notes.root)?;
    let found = dir.identity()?;
    if notes.claim.is_some_and(|c| c.root.is(&found)) {
        return Ok(dir);
    }
    Err(fault!(
        PathNotUsable,
        notes.root.display(),
        "it is another directory than when the export began"
    ))
}

/// Takes the lock that other services see.
fn hold(dir: &Dir) -> Result<()> {
    for _ in 0..TRIES {
        if dir.take() {
            return Ok(());
        }
        std::thread::sleep(GLANCE);
    }
    Err(fault!(
        PathNotUsable,
        dir.path().display(),
        "another service is exporting into it"
    ))
}

/// Whether another job holds that directory. Fails where one exports the same point into the same target.
fn taken(
    draft: &mut Draft<'_>,
    job: Uuid,
    point: Uuid,
    claim: Claim,
    directory: &Path,
) -> Result<bool> {
    let mut taken = false;
    for other in draft.all::<Job>() {
        if other.id == job || other.is_over() {
            continue;
        }
        for notes in all_checkpoints(other.notes.clone()) {
            let Some(held) = notes.claim else { continue };
            if notes.point == point && held.target.is(&claim.target) {
                return Err(fault!(
                    ExportBusy,
                    guid(point),
                    directory.display(),
                    guid(other.id)
                ));
            }
            taken |= held.root.is(&claim.root);
        }
    }
    Ok(taken)
}

fn exists(wanted: &Wanted) -> Fault {
    fault!(
        ExportExists,
        wanted.directory.display(),
        guid(wanted.point.id)
    )
}

/// A path without links, as far as it is there.
fn real_of(path: &Path) -> Result<PathBuf> {
    let (dir, missing) = Dir::open_nearest(path)?;
    let mut real = dir.path().to_owned();
    real.extend(missing);
    Ok(real)
}

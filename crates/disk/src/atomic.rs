//! Files that appear whole or not at all: temporary name, fsync, rename, fsync of the directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::confined::Dir;
use crate::error::{Error, Result};

/// What is appended to a file's name while it is unfinished.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// The temporary name of `path`.
#[must_use]
pub fn partial_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(PARTIAL_SUFFIX);
    PathBuf::from(name)
}

/// Makes renames and creations in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let handle = File::open(dir).map_err(|e| Error::io("open directory", dir, e))?;
    handle
        .sync_all()
        .map_err(|e| Error::io("sync directory", dir, e))
}

fn rename_plainly(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Some network file systems know no such flag: look first, then rename.
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to).map_err(|e| Error::io("rename to", to, e))
        }
        Err(e) => Err(Error::io("rename to", to, e.into())),
    }
}

/// Gives a finished file another name, durably; an existing file of that name is not replaced.
///
/// # Errors
/// [`Error::Io`].
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    rename_plainly(from, to)?;
    sync_parent(to)
}

/// Where a file is to appear, and what it is written to until it is whole.
#[derive(Debug, Clone)]
pub struct Slot {
    target: PathBuf,
    kept: Option<Kept>,
}

/// A temporary file that its maker knows of.
#[derive(Debug, Clone)]
struct Kept {
    dir: Dir,
    name: OsString,
    partial: OsString,
    file: Arc<File>,
}

impl Slot {
    /// In a directory held open: `file` was created there under the name `partial`. Whoever created it knows it, and deletes it when
    /// the work is given up; it stays when the work fails, so that it can be gone on with.
    #[must_use]
    pub fn kept(dir: &Dir, name: &OsStr, partial: &OsStr, file: File) -> Self {
        Self {
            target: dir.path().join(name),
            kept: Some(Kept {
                dir: dir.clone(),
                name: name.to_owned(),
                partial: partial.to_owned(),
                file: Arc::new(file),
            }),
        }
    }

    /// The file that is to appear.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether what was written before a failure stays.
    pub(crate) fn stays(&self) -> bool {
        self.kept.is_some()
    }
}

/// By its path, in a directory that is trusted: `<path>.partial` is made for it, and goes when the work fails.
impl From<PathBuf> for Slot {
    fn from(target: PathBuf) -> Self {
        Self { target, kept: None }
    }
}

impl From<&PathBuf> for Slot {
    fn from(target: &PathBuf) -> Self {
        target.clone().into()
    }
}

impl From<&Path> for Slot {
    fn from(target: &Path) -> Self {
        target.to_owned().into()
    }
}

/// A file under its temporary name. Dropped without [`AtomicFile::commit`], it is removed, unless its [`Slot`] is kept.
#[derive(Debug)]
pub struct AtomicFile {
    file: Arc<File>,
    partial: PathBuf,
    target: PathBuf,
    kept: Option<Kept>,
    done: bool,
}

impl AtomicFile {
    /// Creates `<target>.partial`.
    ///
    /// # Errors
    /// [`Error::Io`], among others when the target or an unfinished file of that name exists already.
    pub fn create(target: &Path) -> Result<Self> {
        if fs::symlink_metadata(target).is_ok() {
            return Err(Error::io("create", target, Errno::EXIST.into()));
        }
        let partial = partial_name(target);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&partial)
            .map_err(|e| Error::io("create", &partial, e))?;
        Ok(Self {
            file: Arc::new(file),
            partial,
            target: target.to_owned(),
            kept: None,
            done: false,
        })
    }

    /// An empty file for this slot.
    ///
    /// # Errors
    /// As [`AtomicFile::create`].
    pub fn start(slot: &Slot) -> Result<Self> {
        let Some(this) = Self::go_on(slot) else {
            return Self::create(&slot.target);
        };
        this.file
            .set_len(0)
            .map_err(|e| Error::io("empty", &this.partial, e))?;
        Ok(this)
    }

    /// The file of a slot that is kept, with what was written to it before.
    pub(crate) fn go_on(slot: &Slot) -> Option<Self> {
        let kept = slot.kept.clone()?;
        Some(Self {
            file: Arc::clone(&kept.file),
            partial: kept.dir.path().join(&kept.partial),
            target: slot.target.clone(),
            kept: Some(kept),
            done: false,
        })
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name the file has now, for error texts.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Makes the content durable and gives the file its name; an existing file of that name is not replaced.
    ///
    /// # Errors
    /// [`Error::Io`]; the temporary file is then removed, unless its slot is kept.
    pub fn commit(mut self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|e| Error::io("sync", &self.partial, e))?;
        if let Some(kept) = &self.kept {
            kept.dir.rename(&kept.partial, &kept.name)?;
            return kept.dir.sync();
        }
        rename_plainly(&self.partial, &self.target)?;
        self.done = true;
        let durable = sync_parent(&self.target);
        if durable.is_err() {
            // Failed means: no file. One that might be gone after a crash is worse than none.
            let _ = fs::remove_file(&self.target);
        }
        durable
    }

    /// Writes a small file whole into its slot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn fill(slot: &Slot, bytes: &[u8]) -> Result<()> {
        let this = Self::start(slot)?;
        let mut handle = this.file();
        // Another handle of the file may have moved where it is written.
        std::io::Seek::rewind(&mut handle)
            .and_then(|()| handle.write_all(bytes))
            .map_err(|e| Error::io("write", this.path(), e))?;
        this.commit()
    }

    /// Writes a small file whole, replacing an older one in one step.
    ///
    /// # Errors
    /// [`Error::Io`]; an older file is then untouched.
    pub fn replace(target: &Path, bytes: &[u8]) -> Result<()> {
        let partial = partial_name(target);
        // A left-over of a crash is of no use; what it may be a link to is not ours to write to.
        match fs::remove_file(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &partial, e));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&partial)
            .map_err(|e| Error::io("create", &partial, e))?;
        let mut this = Self {
            file: Arc::new(file),
            partial,
            target: target.to_owned(),
            kept: None,
            done: false,
        };
        let mut handle = this.file();
        handle
            .write_all(bytes)
            .map_err(|e| Error::io("write", &this.partial, e))?;
        this.file
            .sync_all()
            .map_err(|e| Error::io("sync", &this.partial, e))?;
        fs::rename(&this.partial, target).map_err(|e| Error::io("rename to", target, e))?;
        this.done = true;
        sync_parent(target)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.done
            && self.kept.is_none()
            && let Err(error) = fs::remove_file(&self.partial)
        {
            tracing::warn!(path = %self.partial.display(), %error, "an unfinished file stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(AtomicFile::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_target_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = AtomicFile::create(&path).unwrap();
        fs::write(&path, b"someone else's").unwrap();
        assert!(file.commit().is_err());
        assert!(AtomicFile::create(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"someone else's");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

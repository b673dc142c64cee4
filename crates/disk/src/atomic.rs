//! Files that appear whole or not at all: temporary name, fsync, rename, fsync of the directory.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

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

/// A file under its temporary name. Dropped without [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    partial: PathBuf,
    target: PathBuf,
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
            file,
            partial,
            target: target.to_owned(),
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
    /// [`Error::Io`]; the temporary file is then removed.
    pub fn commit(mut self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|e| Error::io("sync", &self.partial, e))?;
        let renamed = renameat_with(
            CWD,
            &self.partial,
            CWD,
            &self.target,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            Ok(()) => {}
            // Some network file systems know no such flag: look first, then rename.
            Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(&self.target).is_err() => {
                fs::rename(&self.partial, &self.target)
                    .map_err(|e| Error::io("rename to", &self.target, e))?;
            }
            Err(e) => return Err(Error::io("rename to", &self.target, e.into())),
        }
        self.done = true;
        let durable = sync_parent(&self.target);
        if durable.is_err() {
            // Failed means: no file. One that might be gone after a crash is worse than none.
            let _ = fs::remove_file(&self.target);
        }
        durable
    }

    /// Writes a small file whole, replacing an older one in one step.
    ///
    /// # Errors
    /// [`Error::Io`]; an older file is then untouched.
    pub fn replace(target: &Path, bytes: &[u8]) -> Result<()> {
        let partial = partial_name(target);
        // A left-over of a crash is of no use: it is overwritten.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&partial)
            .map_err(|e| Error::io("create", &partial, e))?;
        let mut this = Self {
            file,
            partial,
            target: target.to_owned(),
            done: false,
        };
        this.file
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

//! A directory held open, and what lies in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, flock, mkdirat, openat,
    openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::walk::{downwards, single, walk};
use super::{Facts, Identity, Refused, plain};
use crate::error::{Error, Result};
use crate::target::Space;

/// Mode of files that only the service reads.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of directories that only the service reads.
pub const PRIVATE_DIR: u32 = 0o700;

/// Times an interrupted resolution is tried again: the kernel gives up where something above is renamed meanwhile.
const TRIES: usize = 16;

/// A directory, held open. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Dir {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl Dir {
    /// Opens a directory by its absolute path; links on the way only where nobody else could have made them.
    ///
    /// # Errors
    /// [`Error::Refused`] for such a link; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let (dir, missing) = Self::open_nearest(path)?;
        if missing.is_empty() {
            Ok(dir)
        } else {
            Err(Error::io("open directory", path, Errno::NOENT.into()))
        }
    }

    /// Opens the last directory of an absolute path that is there; returns the names that are not, outermost first.
    ///
    /// # Errors
    /// As [`Dir::open`].
    pub fn open_nearest(path: &Path) -> Result<(Self, Vec<OsString>)> {
        let reached = walk(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&reached.fd, ".", flags, Mode::empty())
            .map_err(|e| Error::io("open directory", &reached.path, e.into()))?;
        let dir = Self {
            fd: Arc::new(fd),
            path: reached.path,
        };
        Ok((dir, reached.missing))
    }

    /// Its path, without links, as it was when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which one it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn identity(&self) -> Result<Identity> {
        Identity::of(&self.fd, &self.path)
    }

    /// Whether nobody but root and us can exchange what lies in it.
    ///
    /// # Errors
    /// [`Error::Refused`] where somebody can.
    pub fn check_owner(&self) -> Result<()> {
        match Facts::of(self.fd.as_fd(), "", &self.path)?.doubt() {
            Some(why) => Err(Error::refused(&self.path, why)),
            None => Ok(()),
        }
    }

    /// A directory below it. No link is followed.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Io`].
    pub fn enter(&self, relative: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: Arc::new(self.beneath(relative, flags, "open directory")?),
            path: self.path.join(relative),
        })
    }

    /// Opens a plain file below it for reading. No link is followed, and nothing but a plain file is opened.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Io`].
    pub fn open_file(&self, relative: &Path) -> Result<File> {
        self.open_as(relative, OFlags::RDONLY)
    }

    /// Opens a plain file below it for writing too.
    ///
    /// # Errors
    /// As [`Dir::open_file`].
    pub fn open_file_to_write(&self, relative: &Path) -> Result<File> {
        self.open_as(relative, OFlags::RDWR)
    }

    fn open_as(&self, relative: &Path, mode: OFlags) -> Result<File> {
        // A FIFO would keep us waiting, a terminal would become ours.
        let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = self.path.join(relative);
        let file = match self.beneath(relative, flags, "open") {
            Err(Error::Io { source, .. })
                if source.raw_os_error() == Some(Errno::NXIO.raw_os_error()) =>
            {
                return Err(Error::refused(&path, Refused::NotPlain));
            }
            other => other?,
        };
        plain(File::from(file), &path)
    }

    /// Opens what lies below, by names that only go down and are no links.
    fn beneath(&self, relative: &Path, flags: OFlags, action: &'static str) -> Result<OwnedFd> {
        let path = self.path.join(relative);
        let names = downwards(relative, &self.path)?;
        let flags = flags | OFlags::NOFOLLOW;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut found = Err(Errno::AGAIN);
        for _ in 0..TRIES {
            found = openat2(&self.fd, relative, flags, Mode::empty(), resolve);
            if !matches!(found, Err(Errno::AGAIN)) {
                break;
            }
        }
        if matches!(found, Err(Errno::NOSYS)) {
            found = self.step_by_step(&names, flags);
        }
        found.map_err(|e| match e {
            Errno::LOOP => Error::refused(&path, Refused::Symlink),
            // A link where a directory is asked for.
            Errno::NOTDIR if self.is_link(relative) => Error::refused(&path, Refused::Symlink),
            e => Error::io(action, &path, e.into()),
        })
    }

    /// The same where the kernel has no `openat2`.
    fn step_by_step(&self, names: &[&OsStr], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let by_path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Some((last, above)) = names.split_last() else {
            return openat(&self.fd, ".", flags, Mode::empty());
        };
        let mut dir: Option<OwnedFd> = None;
        for name in above {
            let here = dir.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            dir = Some(openat(here, *name, by_path, Mode::empty())?);
        }
        let here = dir.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
        openat(here, *last, flags, Mode::empty())
    }

    fn is_link(&self, relative: &Path) -> bool {
        let facts = Facts::of(self.fd.as_fd(), relative, &self.path);
        facts.is_ok_and(|f| f.kind == rustix::fs::FileType::Symlink)
    }

    /// What a name in this directory means; `None` where there is nothing. A link is told as such, not followed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn look(&self, name: &OsStr) -> Result<Option<Identity>> {
        Ok(self.facts(name)?.map(|f| f.identity))
    }

    fn facts(&self, name: &OsStr) -> Result<Option<Facts>> {
        let path = self.path.join(single(name, &self.path)?);
        match Facts::of(self.fd.as_fd(), name, &path) {
            Ok(facts) => Ok(Some(facts)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Creates a private file; whatever has the name already is an error.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_file(&self, name: &OsStr) -> Result<File> {
        let path = self.path.join(single(name, &self.path)?);
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::from_raw_mode(PRIVATE_FILE))
            .map_err(|e| Error::io("create", &path, e.into()))?;
        Ok(File::from(file))
    }

    /// Creates a private directory; whatever has the name already is an error. Not durable before [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_dir(&self, name: &OsStr) -> Result<Self> {
        let path = self.path.join(single(name, &self.path)?);
        mkdirat(&self.fd, name, Mode::from_raw_mode(PRIVATE_DIR))
            .map_err(|e| Error::io("create directory", &path, e.into()))?;
        self.enter(Path::new(name))
    }

    /// Gives a file or directory in it another name in it; nothing of that name is replaced.
    ///
    /// # Errors
    /// [`Error::Io`], with "file exists" where something has the name.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        single(from, &self.path)?;
        let path = self.path.join(single(to, &self.path)?);
        let failed = |e: Errno| Error::io("rename to", &path, e.into());
        match renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Some network file systems know no such flag: look first, then rename.
            Err(Errno::INVAL | Errno::NOSYS) if self.look(to)?.is_none() => {
                renameat_with(&self.fd, from, &self.fd, to, RenameFlags::empty()).map_err(failed)
            }
            Err(Errno::INVAL | Errno::NOSYS) => Err(failed(Errno::EXIST)),
            Err(e) => Err(failed(e)),
        }
    }

    /// Deletes a file in it if it is this one; returns whether it did. Everything else of the name stays. Not durable before
    /// [`Dir::sync`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &OsStr, which: &Identity) -> Result<bool> {
        match self.facts(name)? {
            Some(facts) if facts.identity.is(which) && !facts.is_dir() => {
                self.unlink(name, AtFlags::empty())
            }
            _ => Ok(false),
        }
    }

    /// Deletes a directory in it if it is this one and empty; returns whether it did.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_dir(&self, name: &OsStr, which: &Identity) -> Result<bool> {
        match self.facts(name)? {
            Some(facts) if facts.identity.is(which) && facts.is_dir() => {
                self.unlink(name, AtFlags::REMOVEDIR)
            }
            _ => Ok(false),
        }
    }

    fn unlink(&self, name: &OsStr, flags: AtFlags) -> Result<bool> {
        let path = self.path.join(name);
        match unlinkat(&self.fd, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(e) => Err(Error::io("remove", &path, e.into())),
        }
    }

    /// Makes what was created, renamed and deleted in it durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).map_err(|e| Error::io("sync directory", &self.path, e.into()))
    }

    /// The names in it, sorted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn names(&self) -> Result<Vec<OsString>> {
        let failed = |e: Errno| Error::io("list", &self.path, e.into());
        let mut out = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                out.push(name.to_owned());
            }
        }
        out.sort();
        Ok(out)
    }

    /// The room on its file system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn space(&self) -> Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.fd)
            .map_err(|e| Error::io("measure", &self.path, e.into()))?;
        Ok(Space::of(&stat))
    }

    /// Takes the directory for as long as this handle, or a clone of it, is open: `false` where another process has it. File systems
    /// without locks give it to everybody.
    #[must_use]
    pub fn take(&self) -> bool {
        !matches!(
            flock(&self.fd, FlockOperation::NonBlockingLockExclusive),
            Err(Errno::WOULDBLOCK)
        )
    }
}

#[cfg(test)]
impl Dir {
    pub(super) fn step_by_step_for_test(&self, relative: &Path) -> rustix::io::Result<OwnedFd> {
        let names: Vec<&OsStr> = relative.iter().collect();
        self.step_by_step(&names, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }
}

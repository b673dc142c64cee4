//! Directories and files reached without trusting whoever can write to a directory on the way.
//!
//! # Model
//! [`Dir::open`] walks an absolute path component by component. A symbolic link is followed only where root or this process's own
//! user made it *and* nobody else could have put it there (the directory that holds it is theirs, and others cannot write to it, or it
//! is sticky). What is reached is held open: everything below goes by descriptor, and below it no symbolic link is followed at all
//! (`openat2`: beneath, no symlinks), no name leaves the directory, and only plain files are opened, so that neither a link nor a FIFO
//! nor a device can stand in for one.
//!
//! # Ownership
//! [`Identity`] tells a file from every other one, also from a later one of the same name: device, inode and time of birth. What was
//! created is deleted only where its name still means the same [`Identity`] ([`Dir::remove`], [`Dir::remove_dir`]).

mod dir;
mod walk;

pub use dir::{Dir, PRIVATE_DIR, PRIVATE_FILE};

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Why a name is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A symbolic link that someone else could have made.
    #[error("it is a symbolic link, which is not followed here")]
    Symlink,
    /// A directory that belongs to someone else.
    #[error("the directory belongs to user {0}, who could exchange what lies in it")]
    Foreign(u32),
    /// A directory that others may write to.
    #[error(
        "the directory has mode {0:04o}: others may exchange what lies in it, since it is not sticky"
    )]
    Writable(u32),
    /// No plain file.
    #[error("it is no plain file")]
    NotPlain,
    /// A name that leads out of the directory.
    #[error("the name leads out of its directory")]
    Leaves,
}

/// Which file or directory it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The device of the file system.
    pub device: u64,
    /// The inode there.
    pub inode: u64,
    /// When it was born, in nanoseconds since 1970, where the file system tells: an inode's number is given to another file later.
    #[serde(default)]
    pub born: Option<i64>,
}

impl Identity {
    /// Of an open file or directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(file: impl AsFd, path: &Path) -> Result<Self> {
        Ok(Facts::of(file.as_fd(), "", path)?.identity)
    }

    /// Whether it is the same file: by birth, where both tell it, since the number of a device may be another after a restart of the
    /// host; else by the device too.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let born = match (self.born, other.born) {
            (Some(one), Some(two)) => one == two,
            _ => self.device == other.device,
        };
        self.inode == other.inode && born
    }
}

/// What is asked of a file at once.
#[derive(Debug, Clone, Copy)]
struct Facts {
    identity: Identity,
    kind: FileType,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Facts {
    /// Of a name below a directory, or of the descriptor itself where the name is empty. Links are not followed.
    fn of(dir: BorrowedFd<'_>, name: impl rustix::path::Arg, path: &Path) -> Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = rustix::fs::statx(dir, name, flags, wanted);
        Ok(Self::from(
            &found.map_err(|e| Error::io("look at", path, e.into()))?,
        ))
    }

    fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether it belongs to root or to us.
    fn is_ours(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }

    /// Why what lies in this directory may be another's.
    fn doubt(&self) -> Option<Refused> {
        if !self.is_ours() {
            return Some(Refused::Foreign(self.uid));
        }
        // A group of one's own is nobody else.
        let own = self.gid == 0 || self.gid == rustix::process::getegid().as_raw();
        let open = self.mode & 0o002 != 0 || (self.mode & 0o020 != 0 && !own);
        (open && self.mode & 0o1000 == 0).then_some(Refused::Writable(self.mode & 0o7777))
    }
}

impl From<&Statx> for Facts {
    fn from(found: &Statx) -> Self {
        let told = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = &found.stx_btime;
        let nanos = born.tv_sec.saturating_mul(1_000_000_000);
        let mode = u32::from(found.stx_mode);
        Self {
            identity: Identity {
                device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
                inode: found.stx_ino,
                born: told.then(|| nanos.saturating_add(i64::from(born.tv_nsec))),
            },
            kind: FileType::from_raw_mode(mode),
            mode,
            uid: found.stx_uid,
            gid: found.stx_gid,
        }
    }
}

/// Opens a plain file for reading by its absolute path, as [`Dir::open`] walks it; the file itself may be no link.
///
/// # Errors
/// [`Error::Refused`], [`Error::Io`].
pub fn open_file(path: &Path) -> Result<File> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::refused(path, Refused::NotPlain));
    };
    Dir::open(parent)?.open_file(Path::new(name))
}

/// Whether a file that was opened without trust is a plain one.
pub(crate) fn plain(file: File, path: &Path) -> Result<File> {
    match Facts::of(file.as_fd(), "", path)?.kind {
        FileType::RegularFile => Ok(file),
        _ => Err(Error::refused(path, Refused::NotPlain)),
    }
}

#[cfg(test)]
mod tests;

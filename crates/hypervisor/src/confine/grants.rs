//! Which files a machine's user may open, from its start to its end.
//!
//! A grant is noted in the machine's journal before it is made, so that whoever comes after a crash can take it back. The user of a machine
//! is nobody else's, ever: an entry that stays behind gives nobody anything.
//!
//! A file gets an entry in its access list, and so does each directory on the way that lets nobody through. Where a file system has no
//! lists the file belongs to the user meanwhile; a directory is given to nobody.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::acl::{self, Left, READ, SEARCH, WRITE};
use super::walk::{Place, anything, walk};
use crate::error::{Error, Result};

/// What a machine may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

impl Access {
    fn permissions(self) -> u16 {
        match self {
            Self::Read => READ,
            Self::Write => READ | WRITE,
        }
    }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Granted {
    path: PathBuf,
    user: u32,
    /// Owner, group and mode of a file that was given away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    was: Option<(u32, u32, u32)>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the processes of a machine: the end of an earlier one takes nothing from a later.
    epoch: u64,
}

/// The grants of one process.
#[derive(Debug, Clone)]
pub(crate) struct Grants {
    user: u32,
    journal: PathBuf,
    epoch: u64,
    state: Arc<Mutex<State>>,
}

impl Grants {
    /// For a process that is about to start; what an earlier one left is taken back.
    pub(crate) fn begin(user: u32, journal: &Path) -> Result<Self> {
        let state = state_of(journal);
        let epoch = {
            let mut state = locked(&state);
            state.epoch += 1;
            take_back(journal)?;
            state.epoch
        };
        Ok(Self {
            user,
            journal: journal.to_owned(),
            epoch,
            state,
        })
    }

    /// For a process that runs already.
    pub(crate) fn adopt(user: u32, journal: &Path) -> Self {
        let state = state_of(journal);
        let epoch = {
            let mut state = locked(&state);
            state.epoch += 1;
            state.epoch
        };
        Self {
            user,
            journal: journal.to_owned(),
            epoch,
            state,
        }
    }

    /// Lets the user open these files, no more and no less than asked for.
    pub(crate) fn grant<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a Path, Access)>,
    ) -> Result<()> {
        let _state = locked(&self.state);
        let mut noted = load(&self.journal)?;
        for (path, access) in files {
            let walk = walk(path)?;
            if !matches!(
                walk.file.kind(),
                FileType::RegularFile | FileType::BlockDevice
            ) {
                return Err(Error::config(format!(
                    "{} is neither a plain file nor a block device",
                    path.display()
                )));
            }
            for directory in &walk.directories {
                self.open_up(directory, SEARCH, &mut noted)?;
            }
            self.open_up(&walk.file, access.permissions(), &mut noted)?;
        }
        Ok(())
    }

    fn open_up(&self, place: &Place, wanted: u16, noted: &mut Vec<Granted>) -> Result<()> {
        let failed =
            |errno: Errno| Error::io("open to the machine's user", &place.path, errno.into());
        let is_directory = place.kind() == FileType::Directory;
        let _guard = one_at_a_time(place);
        let ours = noted.iter().any(|granted| granted.path == place.path);
        // Read under the lock, not what was seen on the way.
        let mode = rustix::fs::stat(place.handle()).map_err(failed)?.st_mode;
        let list = acl::read(&place.handle(), mode).map_err(failed)?;
        let has = list.allows(self.user);
        // A file that all the world may write is left alone; one that the machine may write by an entry of ours, and shall not, is not.
        let enough = has & wanted == wanted;
        if enough && (!ours || has == wanted || is_directory) {
            return Ok(());
        }
        let granted = Granted {
            path: place.path.clone(),
            user: self.user,
            was: None,
        };
        if !ours {
            noted.push(granted.clone());
            store(&self.journal, noted)?;
        }
        match acl::write(&place.handle(), &list.with(self.user, wanted)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) if is_directory => Err(Error::Unsupported {
                what: format!(
                    "a way through the private directory {} for an unprivileged QEMU: its file system has no access lists",
                    place.path.display()
                ),
                remedy: format!(
                    "let everybody search it (chmod o+x {}), or set confinement = \"sandbox\"",
                    place.path.display()
                ),
            }),
            Err(Errno::OPNOTSUPP) => self.give(place, granted, noted),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// The file belongs to the user meanwhile.
    fn give(&self, place: &Place, granted: Granted, noted: &mut Vec<Granted>) -> Result<()> {
        let stat = &place.stat;
        if stat.st_uid == self.user {
            return Ok(());
        }
        noted.retain(|other| other.path != granted.path);
        noted.push(Granted {
            was: Some((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)),
            ..granted
        });
        store(&self.journal, noted)?;
        rustix::fs::chown(place.handle(), Some(Uid::from_raw(self.user)), None).map_err(|errno| {
            Error::Unsupported {
                what: format!(
                    "{} for an unprivileged QEMU: its file system has no access lists, and its owner cannot be changed ({errno})",
                    place.path.display()
                ),
                remedy: "put the disk on a file system with access lists (ext4, xfs, btrfs), or set confinement = \"sandbox\"".into(),
            }
        })
    }

    /// The process has ended: nothing stays open. Nothing happens where a later process has begun.
    pub(crate) fn end(&self) -> Result<()> {
        let state = locked(&self.state);
        if state.epoch == self.epoch {
            take_back(&self.journal)?;
        }
        Ok(())
    }
}

/// Takes back what a process left that is gone. The caller knows that it is.
pub(crate) fn end_left(journal: &Path) -> Result<()> {
    if !journal.exists() {
        return Ok(());
    }
    let state = state_of(journal);
    let _state = locked(&state);
    take_back(journal)
}

/// One state for all who deal with a machine in this process.
fn state_of(journal: &Path) -> Arc<Mutex<State>> {
    static STATES: OnceLock<Mutex<HashMap<PathBuf, Arc<Mutex<State>>>>> = OnceLock::new();
    let states = STATES.get_or_init(Mutex::default);
    Arc::clone(locked(states).entry(journal.to_owned()).or_default())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A list is read, changed and written: machines, also of other services, share directories and bases.
fn one_at_a_time(place: &Place) -> impl Drop {
    struct Guard {
        _here: MutexGuard<'static, ()>,
        _elsewhere: Option<std::os::fd::OwnedFd>,
    }
    impl Drop for Guard {
        fn drop(&mut self) {}
    }
    static HERE: Mutex<()> = Mutex::new(());
    let here = locked(&HERE);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let elsewhere = (place.kind() != FileType::BlockDevice)
        .then(|| rustix::fs::open(place.handle(), flags, Mode::empty()).ok())
        .flatten()
        // Where there are no such locks, nobody is kept out.
        .inspect(|fd| {
            if let Err(error) = rustix::fs::flock(fd.as_fd(), FlockOperation::LockExclusive) {
                tracing::debug!(%error, path = %place.path.display(), "no lock while its access list changes");
            }
        });
    Guard {
        _here: here,
        _elsewhere: elsewhere,
    }
}

fn load(journal: &Path) -> Result<Vec<Granted>> {
    match std::fs::read(journal) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, journal = %journal.display(), "what a machine was granted cannot be read; entries of its user may stay on its disks");
            Vec::new()
        })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::io("read", journal, source)),
    }
}

fn store(journal: &Path, noted: &[Granted]) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let partial = journal.with_extension("partial");
    let text =
        serde_json::to_vec(noted).map_err(|error| Error::io("write", journal, error.into()))?;
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&partial, journal)
    };
    write().map_err(|source| Error::io("write", journal, source))
}

/// Takes back all that the journal names; what is not there any more needs nothing. What fails stays noted.
fn take_back(journal: &Path) -> Result<()> {
    let noted = load(journal)?;
    let mut left = Vec::new();
    for granted in noted {
        match take_one(&granted) {
            Ok(()) => {}
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %granted.path.display(), user = granted.user, %error, "a machine's access to a file stays");
                left.push(granted);
            }
        }
    }
    if !left.is_empty() {
        return store(journal, &left);
    }
    match std::fs::remove_file(journal) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", journal, error))
        }
        _ => Ok(()),
    }
}

fn take_one(granted: &Granted) -> Result<()> {
    let failed = |errno: Errno| Error::io("close to a machine's user", &granted.path, errno.into());
    let place = anything(&granted.path)?;
    if let Some((owner, group, mode)) = granted.was {
        // Somebody else's by now: a new file of that name.
        if place.stat.st_uid != granted.user {
            return Ok(());
        }
        let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
        rustix::fs::chown(place.handle(), Some(owner), Some(group)).map_err(failed)?;
        return rustix::fs::chmod(place.handle(), Mode::from_raw_mode(mode)).map_err(failed);
    }
    close(&place, granted.user).map_err(failed)
}

fn close(place: &Place, user: u32) -> std::result::Result<(), Errno> {
    let _guard = one_at_a_time(place);
    // Read under the lock, not what was seen on the way.
    let mode = rustix::fs::stat(place.handle())?.st_mode;
    match acl::read(&place.handle(), mode)?.without(user) {
        Left::Unchanged => Ok(()),
        Left::List(list) => acl::write(&place.handle(), &list),
        Left::Group(group) => acl::clear(&place.handle(), mode, group),
    }
}

//! Walking an absolute path.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::{Facts, Refused};
use crate::error::{Error, Result};

/// Links followed on one way, as the kernel has it.
const MOST_LINKS: usize = 40;

/// How far a path goes.
pub(super) struct Reached {
    /// The last directory that is there (opened for its path only).
    pub(super) fd: OwnedFd,
    /// Its path, without links.
    pub(super) path: PathBuf,
    /// What of the path is not there.
    pub(super) missing: Vec<OsString>,
}

enum Step {
    Root,
    Up,
    Down(OsString),
}

/// Steps in order, as they are to be taken.
fn steps(path: &Path) -> impl DoubleEndedIterator<Item = Step> {
    path.components()
        .filter_map(|part| match part {
            Component::RootDir => Some(Step::Root),
            Component::ParentDir => Some(Step::Up),
            Component::Normal(name) => Some(Step::Down(name.to_owned())),
            Component::CurDir | Component::Prefix(_) => None,
        })
        .collect::<Vec<_>>()
        .into_iter()
}

const BY_PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn root() -> Result<OwnedFd> {
    let path = Path::new("/");
    rustix::fs::open(path, BY_PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(|e| Error::io("open directory", path, e.into()))
}

/// Follows an absolute path as far as it is there.
pub(super) fn walk(path: &Path) -> Result<Reached> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "{} is no absolute path",
            path.display()
        )));
    }
    let mut todo: VecDeque<Step> = steps(path).collect();
    let (mut fd, mut real) = (root()?, PathBuf::from("/"));
    let mut links = 0;
    while let Some(step) = todo.pop_front() {
        let name = match step {
            Step::Root => {
                (fd, real) = (root()?, PathBuf::from("/"));
                continue;
            }
            Step::Up => {
                // Without links on the way what lies above is what the path says.
                let above = openat(&fd, "..", BY_PATH | OFlags::DIRECTORY, Mode::empty());
                fd = above.map_err(|e| Error::io("open directory", &real, e.into()))?;
                real.pop();
                continue;
            }
            Step::Down(name) => name,
        };
        let here = real.join(&name);
        let next = match openat(&fd, &name, BY_PATH, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                let mut missing = vec![name];
                for step in todo {
                    match step {
                        Step::Down(name) => missing.push(name),
                        // What is not there yet has nothing above it.
                        Step::Up | Step::Root => {
                            return Err(Error::refused(&here, Refused::Leaves));
                        }
                    }
                }
                return Ok(Reached {
                    fd,
                    path: real,
                    missing,
                });
            }
            Err(e) => return Err(Error::io("open directory", &here, e.into())),
        };
        let facts = Facts::of(next.as_fd(), "", &here)?;
        match facts.kind {
            FileType::Directory => (fd, real) = (next, here),
            FileType::Symlink => {
                let holder = Facts::of(fd.as_fd(), "", &real)?;
                if !facts.is_ours() || holder.doubt().is_some() {
                    return Err(Error::refused(&here, Refused::Symlink));
                }
                links += 1;
                if links > MOST_LINKS {
                    return Err(Error::io("open directory", &here, Errno::LOOP.into()));
                }
                let target = rustix::fs::readlinkat(&next, "", Vec::new())
                    .map_err(|e| Error::io("read the link", &here, e.into()))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                steps(&target).rev().for_each(|step| todo.push_front(step));
            }
            _ => return Err(Error::io("open directory", &here, Errno::NOTDIR.into())),
        }
    }
    Ok(Reached {
        fd,
        path: real,
        missing: Vec::new(),
    })
}

/// One name, which stays where it is.
pub(super) fn single<'a>(name: &'a OsStr, path: &Path) -> Result<&'a OsStr> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(name),
        _ => Err(Error::refused(&path.join(name), Refused::Leaves)),
    }
}

/// Names that only go down.
pub(super) fn downwards<'a>(relative: &'a Path, path: &Path) -> Result<Vec<&'a OsStr>> {
    relative
        .components()
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            _ => Err(Error::refused(&path.join(relative), Refused::Leaves)),
        })
        .collect()
}

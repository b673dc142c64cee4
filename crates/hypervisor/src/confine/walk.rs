//! From a path to an open file, by way of directories that nobody else can have bent.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::error::{Error, Result};

/// Links followed before it is called a circle, as the kernel does.
const LINKS: usize = 40;

/// A file or directory, open but for reading and writing.
#[derive(Debug)]
pub(crate) struct Place {
    /// Where it is, without links.
    pub(crate) path: PathBuf,
    fd: OwnedFd,
    /// What it is.
    pub(crate) stat: Stat,
}

impl Place {
    /// A name for the open file itself, whatever becomes of its path.
    pub(crate) fn handle(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// The file, and the directories on the way to it, from the root.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) directories: Vec<Place>,
    pub(crate) file: Place,
}

/// Opens the file of an absolute path. A symbolic link is followed only where nobody but root or the service itself can have put it there.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] for a link of somebody else.
pub(crate) fn walk(path: &Path) -> Result<Walk> {
    match follow(path)? {
        (directories, Some(file)) => Ok(Walk { directories, file }),
        (_, None) => Err(Error::io("reach", path, rustix::io::Errno::ISDIR.into())),
    }
}

/// Opens whatever is there, a directory too.
///
/// # Errors
/// As [`walk`].
pub(crate) fn anything(path: &Path) -> Result<Place> {
    let (mut directories, file) = follow(path)?;
    let last = file.or_else(|| directories.pop());
    last.ok_or_else(|| Error::io("reach", path, rustix::io::Errno::NOENT.into()))
}

fn follow(path: &Path) -> Result<(Vec<Place>, Option<Place>)> {
    let io = |errno: rustix::io::Errno| Error::io("reach", path, errno.into());
    let open = |parent: Option<&Place>, name: &OsStr| -> Result<Place> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, path) = match parent {
            Some(parent) => (
                rustix::fs::openat(&parent.fd, name, flags, Mode::empty()).map_err(io)?,
                parent.path.join(name),
            ),
            None => (
                rustix::fs::open("/", flags, Mode::empty()).map_err(io)?,
                "/".into(),
            ),
        };
        let stat = rustix::fs::fstat(&fd).map_err(io)?;
        Ok(Place { path, fd, stat })
    };
    let names = |path: &Path| -> VecDeque<OsString> {
        path.components()
            .filter(|part| !matches!(part, std::path::Component::RootDir))
            .map(|part| part.as_os_str().to_owned())
            .collect()
    };
    let mut directories = vec![open(None, OsStr::new("/"))?];
    let (mut rest, mut links) = (names(path), 0);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            if directories.len() > 1 {
                directories.pop();
            }
            continue;
        }
        let found = open(directories.last(), &name)?;
        match found.kind() {
            FileType::Symlink => {
                links += 1;
                if links > LINKS {
                    return Err(io(rustix::io::Errno::LOOP));
                }
                if !directories
                    .last()
                    .is_some_and(|parent| trusted(&found.stat, &parent.stat))
                {
                    return Err(Error::config(format!(
                        "{} is a symbolic link that others could have made; name the file it leads to, or give the link and its directory to root",
                        found.path.display()
                    )));
                }
                let target = rustix::fs::readlinkat(&found.fd, "", Vec::new()).map_err(io)?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    directories.truncate(1);
                }
                let mut ahead = names(&target);
                ahead.append(&mut rest);
                rest = ahead;
            }
            FileType::Directory => directories.push(found),
            _ if rest.is_empty() => {
                return Ok((directories, Some(found)));
            }
            _ => return Err(io(rustix::io::Errno::NOTDIR)),
        }
    }
    Ok((directories, None))
}

/// Whether only root or we ourselves can have put this link into this directory.
fn trusted(link: &Stat, parent: &Stat) -> bool {
    let own = |uid: u32| uid == 0 || uid == rustix::process::geteuid().as_raw();
    let open_to_others = parent.st_mode & 0o022 != 0 && parent.st_mode & 0o1000 == 0;
    own(link.st_uid) && own(parent.st_uid) && !open_to_others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_links_are_followed_and_the_path_is_told_without_them() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("images")).unwrap();
        std::fs::write(real.join("images/disk"), "x").unwrap();
        std::os::unix::fs::symlink("images/../images/disk", real.join("relative")).unwrap();
        std::os::unix::fs::symlink(real.join("images"), real.join("absolute")).unwrap();
        for name in ["images/disk", "relative", "absolute/disk"] {
            let walk = walk(&real.join(name)).unwrap();
            assert_eq!(walk.file.path, real.join("images/disk"), "{name}");
            assert_eq!(walk.directories.last().unwrap().path, real.join("images"));
        }
        std::os::unix::fs::symlink("circle", real.join("circle")).unwrap();
        assert!(walk(&real.join("circle")).is_err());
        assert!(
            walk(&real.join("images")).is_err(),
            "a directory is no disk"
        );
    }

    #[test]
    fn a_link_where_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&open, mode).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", open.join("disk")).unwrap();
        let error = walk(&open.join("disk")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }
}

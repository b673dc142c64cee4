//! The directory an export goes to: is it there, may we write, is there room, and what did a crash leave behind.

use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic::{PARTIAL_SUFFIX, sync_parent};
use crate::error::{Error, Result};

/// How deep below an export directory its files lie.
const DEPTH: u32 = 4;

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this process may still use.
    pub available: u64,
    /// The whole file system.
    pub total: u64,
}

/// The room on the file system that holds `path`.
///
/// # Errors
/// [`Error::Io`].
pub fn space(path: &Path) -> Result<Space> {
    let stat = rustix::fs::statvfs(path).map_err(|e| Error::io("measure", path, e.into()))?;
    Ok(Space::of(&stat))
}

impl Space {
    pub(crate) fn of(stat: &rustix::fs::StatVfs) -> Self {
        Self {
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        }
    }
}

/// Creates a directory and those above it that are missing, durably.
///
/// # Errors
/// [`Error::Io`].
pub fn create_dirs(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dirs(parent)?;
    }
    match fs::create_dir(dir) {
        // Someone else may have made it meanwhile.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(e) => return Err(Error::io("create directory", dir, e)),
        Ok(()) => {}
    }
    sync_parent(dir)
}

/// Proves that files can be created in a directory, by creating one.
///
/// # Errors
/// [`Error::Io`]: the directory is missing, is none, or must not be written to.
pub fn check_writable(dir: &Path) -> Result<()> {
    let meta = fs::metadata(dir).map_err(|e| Error::io("open directory", dir, e))?;
    if !meta.is_dir() {
        return Err(Error::io(
            "open directory",
            dir,
            std::io::ErrorKind::NotADirectory.into(),
        ));
    }
    let probe = dir.join(format!(
        ".kvmms-probe-{}{PARTIAL_SUFFIX}",
        std::process::id()
    ));
    fs::write(&probe, b"").map_err(|e| Error::io("create a file in", dir, e))?;
    fs::remove_file(&probe).map_err(|e| Error::io("remove", &probe, e))
}

/// Proves that a directory can take `needed` bytes more.
///
/// # Errors
/// As [`check_writable`]; [`Error::Io`] with "no space left on device" as source when there is less room.
pub fn check(dir: &Path, needed: u64) -> Result<Space> {
    check_writable(dir)?;
    let space = space(dir)?;
    if space.available < needed {
        return Err(Error::io(
            "find room in",
            dir,
            rustix::io::Errno::NOSPC.into(),
        ));
    }
    Ok(space)
}

/// Removes the unfinished files a crash left in an export directory and the directories below it. Nothing may be exporting into it
/// meanwhile. Links are not followed. Returns what was removed.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_leftovers(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    sweep(dir, DEPTH, &mut removed)?;
    for path in &removed {
        sync_parent(path)?;
    }
    Ok(removed)
}

fn sweep(dir: &Path, depth: u32, removed: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(|e| Error::io("look at", &path, e))?;
        if kind.is_dir() && depth > 0 {
            sweep(&path, depth - 1, removed)?;
        } else if kind.is_file()
            && entry
                .file_name()
                .as_encoded_bytes()
                .ends_with(PARTIAL_SUFFIX.as_bytes())
        {
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            removed.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn only_unfinished_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disks = dir.path().join("Virtual Hard Disks");
        fs::create_dir(&disks).unwrap();
        for name in ["a.qcow2", "b.qcow2.partial", "b.map.partial", "partial"] {
            fs::write(disks.join(name), "x").unwrap();
        }
        fs::create_dir(disks.join("dir.partial")).unwrap();
        std::os::unix::fs::symlink(disks.join("a.qcow2"), disks.join("link.partial")).unwrap();
        assert_eq!(remove_leftovers(dir.path()).unwrap().len(), 2);
        assert_eq!(fs::read_dir(&disks).unwrap().count(), 4);
        assert!(remove_leftovers(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dirs(&deep).unwrap();
        create_dirs(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(dir.path().join("f"), "").unwrap();
        assert!(create_dirs(&dir.path().join("f/x")).is_err());
    }

    #[test]
    fn a_target_without_room_or_that_is_no_directory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let room = check(dir.path(), 1).unwrap();
        assert!(room.available <= room.total);
        assert_eq!(
            check(dir.path(), u64::MAX).unwrap_err().kind(),
            ErrorKind::NoSpace
        );
        assert_eq!(
            check(&dir.path().join("none"), 1).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(check(&file, 1).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

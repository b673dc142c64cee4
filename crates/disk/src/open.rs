//! Opening files that others made: without being led elsewhere, held up, or fed without end.
//!
//! Nothing here blocks on a FIFO, and nothing but a regular file (as a disk also a block device) is ever read. Below the directory of
//! an export no link is followed, whoever makes one and whenever.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::confined::Dir;
use crate::error::{Error, Result};
use crate::manifest::RelativePath;

/// Opening must neither wait for a writer nor take a terminal over.
const HARMLESS: OFlags = OFlags::NONBLOCK
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Opens a regular file for reading.
///
/// # Errors
/// [`Error::Io`]; [`Error::NotAFile`] for anything else than a regular file.
pub fn regular(path: &Path) -> Result<File> {
    let file = plainly(path)?;
    expect(&file, path, false)?;
    Ok(file)
}

/// Opens a disk image for reading: a regular file, or a block device that is named below `/dev`.
///
/// # Errors
/// [`Error::Io`]; [`Error::NotAFile`] for anything else, also for a link from elsewhere to a device.
pub fn disk(path: &Path) -> Result<File> {
    let file = plainly(path)?;
    expect(&file, path, path.starts_with("/dev"))?;
    Ok(file)
}

/// Opens a regular file below `root`, an absolute path, through no link at all.
///
/// # Errors
/// As [`Dir::open_file`].
pub fn below(root: &Path, file: &RelativePath) -> Result<File> {
    Dir::open(root)?.open_file(Path::new(file.as_str()))
}

/// The whole of a file of at most `most` bytes.
///
/// # Errors
/// [`Error::Io`]; [`Error::TooLarge`].
pub fn whole(file: File, path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > most {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            most,
        });
    }
    Ok(bytes)
}

fn plainly(path: &Path) -> Result<File> {
    let flags = i32::try_from(HARMLESS.bits()).unwrap_or_default();
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| match e.raw_os_error().map(Errno::from_raw_os_error) {
            // What opening a socket says.
            Some(Errno::NXIO) => Error::NotAFile {
                path: path.to_owned(),
                found: "a socket or a device without driver",
            },
            _ => Error::io("open", path, e),
        })
}

fn expect(file: &File, path: &Path, device: bool) -> Result<()> {
    let kind = file
        .metadata()
        .map_err(|e| Error::io("look at", path, e))?
        .file_type();
    if kind.is_file() || (device && kind.is_block_device()) {
        return Ok(());
    }
    Err(Error::NotAFile {
        path: path.to_owned(),
        found: name_of(kind),
    })
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device reached through a link"
    } else {
        "no file"
    }
}

/// That a file does not exist.
#[must_use]
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode};
    use std::os::unix::fs::symlink;

    fn name(text: &str) -> RelativePath {
        RelativePath::new(text).unwrap()
    }

    fn fifo(path: &Path) {
        rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    #[test]
    fn nothing_but_a_file_is_opened_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        fifo(&at("fifo"));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zeros")).unwrap();
        std::fs::write(at("file"), b"x").unwrap();
        for bad in ["fifo", "socket", "zeros", "."] {
            for opened in [disk(&at(bad)), regular(&at(bad))] {
                assert!(matches!(opened, Err(Error::NotAFile { .. })), "{bad}");
            }
        }
        for device in ["/dev/zero", "/dev/null"] {
            assert!(disk(Path::new(device)).is_err(), "{device}");
        }
        disk(&at("file")).unwrap();
        regular(&at("file")).unwrap();
    }

    #[test]
    fn below_a_directory_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/f"), b"inside").unwrap();
        std::fs::write(dir.path().join("secret"), b"outside").unwrap();
        symlink("../../secret", root.join("a/out")).unwrap();
        symlink("b", root.join("a/link")).unwrap();
        symlink("f", root.join("a/b/g")).unwrap();
        fifo(&root.join("a/fifo"));
        let read = |n: &str| below(&root, &name(n)).and_then(|f| whole(f, &root, 100));
        assert_eq!(read("a/b/f").unwrap(), b"inside");
        for bad in ["a/out", "a/link/f", "a/b/g", "a/fifo", "a/b", "a/none"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_larger_than_expected_is_not_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [0u8; 11]).unwrap();
        let read = |most| whole(regular(&path).unwrap(), &path, most);
        assert_eq!(read(11).unwrap().len(), 11);
        assert!(matches!(read(10), Err(Error::TooLarge { most: 10, .. })));
    }
}

//! A raw image or block device.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::open;
use crate::qcow2::ReadAt;

/// A raw image or block device, opened for reading.
#[derive(Debug)]
pub struct RawLayer {
    path: PathBuf,
    file: File,
    size: u64,
}

impl RawLayer {
    /// Opens a file or block device.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = open::disk(path)?;
        let size = ReadAt::size(&file).map_err(|e| Error::io("measure", path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| Error::io_at("read", &self.path, offset, e))
    }

    /// Whether the bytes at `offset` are a hole, and for how many bytes that holds (at least 1, inside the file).
    pub(crate) fn hole_at(&self, offset: u64) -> Result<(bool, u64)> {
        let rest = self.size.saturating_sub(offset).max(1);
        let fault = |e: Errno| Error::io_at("find holes in", &self.path, offset, e.into());
        // The shared seek position does not matter: all reads are positioned.
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((true, (data - offset).min(rest))),
            Ok(_) => match seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok((false, (hole - offset).min(rest))),
                Ok(_) => Ok((false, rest)),
                Err(e) => Err(fault(e)),
            },
            Err(Errno::NXIO) => Ok((true, rest)),
            // Block devices and some file systems cannot tell: then everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => Ok((false, rest)),
            Err(e) => Err(fault(e)),
        }
    }
}

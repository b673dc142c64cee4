//! One qcow2 file, walked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::ReadAt;
use super::header::{FormatError, Header};
use super::walk::{Extent, ExtentKind, SliceBytes, Walk};
use crate::error::{Error, Result};
use crate::map::ChangeMap;
use crate::open;

/// Bytes of an L2 table that are read and kept at a time.
pub(super) const SLICE: u64 = 8 << 10;
/// Slices kept per layer: with [`SLICE`] 128 KiB, so that a chain of 64 layers stays at 8 MiB.
const SLICES_KEPT: usize = 16;

/// One qcow2 file, opened for reading. Shared freely between threads.
///
/// The file must not change while it is open: use it on frozen layers, never on the layer QEMU writes to.
pub struct Qcow2Layer {
    path: PathBuf,
    data_path: PathBuf,
    pub(super) header: Header,
    file: Box<dyn ReadAt>,
    pub(super) data: Option<Box<dyn ReadAt>>,
    pub(super) data_len: u64,
    pub(super) l1: Vec<u64>,
    slices: Mutex<Vec<(u64, SliceBytes)>>,
}

impl std::fmt::Debug for Qcow2Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Layer")
            .field("path", &self.path)
            .field("header", &self.header)
            .finish()
    }
}

impl Qcow2Layer {
    /// Opens an image. An external data file is not opened: the map can be asked for, the content not.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Qcow2`] for what is damaged or not served.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with_data_file(path, None)
    }

    /// Opens an image together with the external data file the caller vouches for. The name inside the image is never
    /// followed, so that no image can point at a file it should not see.
    ///
    /// # Errors
    /// As [`Qcow2Layer::open`]; also when a data file is given for an image without one.
    pub fn open_with_data_file(path: &Path, data_file: Option<&Path>) -> Result<Self> {
        let file = open::disk(path)?;
        let data: Option<Box<dyn ReadAt>> = match data_file {
            Some(p) => Some(Box::new(open::disk(p)?)),
            None => None,
        };
        Self::from_parts(path, Box::new(file), data_file.unwrap_or(path), data)
    }

    /// An image that is open already; `path` is for messages.
    ///
    /// # Errors
    /// As [`Qcow2Layer::open`].
    pub(crate) fn from_file(path: &Path, file: File) -> Result<Self> {
        Self::from_parts(path, Box::new(file), path, None)
    }

    /// An image in memory, for fuzzing.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let path = Path::new("memory");
        Self::from_parts(path, Box::new(bytes), path, None)
    }

    fn from_parts(
        path: &Path,
        file: Box<dyn ReadAt>,
        data_path: &Path,
        data: Option<Box<dyn ReadAt>>,
    ) -> Result<Self> {
        let bad = |source| Error::Qcow2 {
            path: path.to_owned(),
            source,
        };
        let len = file.size().map_err(|e| Error::io("measure", path, e))?;
        let mut prefix = vec![0u8; len.min(Header::PREFIX as u64) as usize];
        file.read_exact_at(&mut prefix, 0)
            .map_err(|e| Error::io_at("read", path, 0, e))?;
        let header = Header::parse(&prefix).map_err(bad)?;
        let data_len = match &data {
            Some(data) if header.data_file.is_some() => data
                .size()
                .map_err(|e| Error::io("measure", data_path, e))?,
            Some(_) => {
                return Err(Error::invalid(format!(
                    "{} has no external data file, but one was given",
                    path.display()
                )));
            }
            None => len,
        };
        // The header bounds the table to 32 MiB; the file must hold it before memory is taken for it.
        let l1_bytes = header.l1_entries * 8;
        if header
            .l1_offset
            .checked_add(l1_bytes)
            .is_none_or(|end| end > len)
        {
            return Err(bad(FormatError::Truncated("L1 table")));
        }
        let mut raw = vec![0u8; l1_bytes as usize];
        file.read_exact_at(&mut raw, header.l1_offset)
            .map_err(|e| Error::io_at("read", path, header.l1_offset, e))?;
        let l1 = raw
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            data_path: data_path.to_owned(),
            header,
            file,
            data,
            data_len,
            l1,
            slices: Mutex::new(Vec::with_capacity(SLICES_KEPT)),
        })
    }

    /// The file's path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checked header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Size of the virtual disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    /// Size of a cluster in bytes.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// The backing file name as the image has it. Information only: this crate never follows it.
    #[must_use]
    pub fn backing(&self) -> Option<&str> {
        self.header.backing.as_deref()
    }

    /// The format of the backing file, where the image names it.
    #[must_use]
    pub fn backing_format(&self) -> Option<&str> {
        self.header.backing_format.as_deref()
    }

    /// True when the image was not closed properly: reference counts may be stale, the mapping is not affected.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.header.dirty
    }

    pub(super) fn bad(&self, source: FormatError) -> Error {
        Error::Qcow2 {
            path: self.path.clone(),
            source,
        }
    }

    /// The meaning of the bytes from `offset` on, merged as far as it goes on unchanged.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] at or beyond the virtual size; [`Error::Io`] and [`Error::Qcow2`] from the tables.
    pub fn map(&self, offset: u64) -> Result<Extent> {
        self.map_limited(offset, u64::MAX)
    }

    /// As [`Qcow2Layer::map`], but looks no further than `limit` bytes (at least 1).
    ///
    /// # Errors
    /// As [`Qcow2Layer::map`].
    pub fn map_limited(&self, offset: u64, limit: u64) -> Result<Extent> {
        let size = self.virtual_size();
        if offset >= size {
            return Err(Error::OutOfRange {
                offset,
                len: 1,
                size,
            });
        }
        let end = offset.saturating_add(limit.max(1)).min(size);
        let mut walk = Walk::new(self, offset, end);
        let mut found = walk.step()?;
        while walk.at < end {
            if matches!(found.kind, ExtentKind::Compressed { .. }) || !found.absorb(walk.step()?) {
                break;
            }
        }
        Ok(found)
    }

    /// The bytes this layer itself defines (data or zeros), precise to the subcluster.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Qcow2`] from the tables.
    pub fn allocation(&self) -> Result<ChangeMap> {
        let size = self.virtual_size();
        let mut walk = Walk::new(self, 0, size);
        let mut ranges = Vec::new();
        let mut open: Option<std::ops::Range<u64>> = None;
        while walk.at < size {
            let start = walk.at;
            let defined = walk.step()?.kind != ExtentKind::Unallocated;
            match &mut open {
                Some(range) if defined => range.end = walk.at,
                _ if defined => open = Some(start..walk.at),
                _ => ranges.extend(open.take()),
            }
        }
        ranges.extend(open);
        Ok(ChangeMap::from_ranges(ranges))
    }

    /// Reads plain data found by [`Qcow2Layer::map`]. Bytes beyond the end of the file (its last cluster may be cut short)
    /// are zeros.
    pub(crate) fn read_data(&self, buf: &mut [u8], host_offset: u64) -> Result<()> {
        let file = match (&self.data, &self.header.data_file) {
            (Some(data), _) => data,
            (None, None) => &self.file,
            (None, Some(name)) => {
                return Err(self.bad(FormatError::DataFileMissing(name.clone())));
            }
        };
        let there = self
            .data_len
            .saturating_sub(host_offset)
            .min(buf.len() as u64) as usize;
        let (stored, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        file.read_exact_at(stored, host_offset)
            .map_err(|e| Error::io_at("read", &self.data_path, host_offset, e))
    }

    /// Unpacks the compressed cluster that holds `guest_offset`.
    pub(crate) fn read_compressed(
        &self,
        guest_offset: u64,
        host_offset: u64,
        stored: u32,
    ) -> Result<Vec<u8>> {
        let damaged = || {
            let guest_offset = guest_offset & !(self.cluster_size() - 1);
            self.bad(FormatError::Compressed { guest_offset })
        };
        // The stored length is rounded up to sectors and may point beyond the end of the file.
        let there = self
            .data_len
            .saturating_sub(host_offset)
            .min(u64::from(stored));
        let mut packed = vec![0u8; there as usize];
        self.file
            .read_exact_at(&mut packed, host_offset)
            .map_err(|e| Error::io_at("read", &self.path, host_offset, e))?;
        let mut cluster = vec![0u8; self.cluster_size() as usize];
        super::inflate(self.header.compression, &packed, &mut cluster).ok_or_else(damaged)?;
        Ok(cluster)
    }

    /// A slice of an L2 table, from the cache or the file.
    pub(super) fn slice(&self, offset: u64, len: u64) -> Result<SliceBytes> {
        let mut kept = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = kept.iter().position(|(at, _)| *at == offset) {
            let hit = kept.remove(index);
            let bytes = Arc::clone(&hit.1);
            kept.push(hit);
            return Ok(bytes);
        }
        drop(kept);
        let mut bytes = vec![0u8; len as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                self.bad(FormatError::Truncated("L2 table"))
            } else {
                Error::io_at("read", &self.path, offset, e)
            }
        })?;
        let bytes: SliceBytes = bytes.into();
        let mut kept = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= SLICES_KEPT {
            kept.remove(0);
        }
        kept.push((offset, Arc::clone(&bytes)));
        Ok(bytes)
    }
}

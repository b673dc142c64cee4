//! A disk as the stack of its layers.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{RawLayer, Source, SourceExtent, check_range, push_extent};
use crate::error::{Error, Result};
use crate::manifest::RelativePath;
use crate::open;
use crate::qcow2::{Extent, ExtentKind, Qcow2Layer};

/// Unpacked clusters kept per chain (at most 2 MiB each).
const UNPACKED_KEPT: usize = 4;

/// Layers of one chain at most; far more than a machine may have, and few enough to recurse over.
const MAX_LAYERS: usize = 256;

/// How the file of a layer is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFormat {
    /// qcow2, version 2 or 3.
    Qcow2,
    /// The bytes themselves.
    Raw,
}

/// One layer of a chain. The format is said, never guessed: a guest could write a qcow2 header into a raw disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// The image.
    pub path: PathBuf,
    /// Its format.
    pub format: LayerFormat,
    /// The external data file of a qcow2 image that has one.
    pub data_file: Option<PathBuf>,
    /// The directory of somebody else it belongs to: below it no link is followed. `path` lies in it.
    pub within: Option<(PathBuf, RelativePath)>,
}

impl LayerSpec {
    /// A qcow2 layer.
    #[must_use]
    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: LayerFormat::Qcow2,
            data_file: None,
            within: None,
        }
    }

    /// A qcow2 layer in a directory of somebody else.
    #[must_use]
    pub fn inside(dir: &Path, file: &RelativePath) -> Self {
        Self {
            within: Some((dir.to_owned(), file.clone())),
            ..Self::qcow2(dir.join(file))
        }
    }

    /// A raw layer.
    #[must_use]
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: LayerFormat::Raw,
            data_file: None,
            within: None,
        }
    }

    /// The same layer with the external data file that holds its content.
    #[must_use]
    pub fn with_data_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_file = Some(path.into());
        self
    }
}

impl LayerSpec {
    fn open_within(&self) -> Result<Qcow2Layer> {
        let Some((dir, file)) = &self.within else {
            return Qcow2Layer::open(&self.path);
        };
        Qcow2Layer::from_file(&self.path, open::below(dir, file)?)
    }
}

#[derive(Debug)]
enum Layer {
    Qcow2(Box<Qcow2Layer>),
    Raw(RawLayer),
}

impl Layer {
    fn size(&self) -> u64 {
        match self {
            Self::Qcow2(layer) => layer.virtual_size(),
            Self::Raw(layer) => layer.size(),
        }
    }
}

/// Where a run of bytes of the chain is.
enum Place<'a> {
    Zero,
    Raw(&'a RawLayer),
    Plain(&'a Qcow2Layer, u64),
    Packed {
        layer: &'a Qcow2Layer,
        index: usize,
        host_offset: u64,
        stored: u32,
    },
}

type Unpacked = (usize, u64, Arc<[u8]>);

/// A disk made of frozen layers, topmost last.
///
/// The list is explicit; backing file names inside the images are ignored, so that no image can point the reader elsewhere. The
/// disk has the size of the topmost layer. A layer shorter than the one above reads as zeros above its own end, and hides there what
/// lies beneath it, as QEMU has it.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    size: u64,
    unpacked: Mutex<VecDeque<Unpacked>>,
}

impl Chain {
    /// Opens the layers, topmost LAST.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty list or one of more than 256 layers, else as the layers' own open.
    pub fn open(specs: &[LayerSpec]) -> Result<Self> {
        if specs.len() > MAX_LAYERS {
            let reason = format!("{} layers are more than {MAX_LAYERS}", specs.len());
            return Err(Error::invalid(reason));
        }
        let mut layers = Vec::with_capacity(specs.len());
        for spec in specs {
            layers.push(match spec.format {
                LayerFormat::Qcow2 if spec.within.is_some() => {
                    Layer::Qcow2(Box::new(spec.open_within()?))
                }
                LayerFormat::Qcow2 => Layer::Qcow2(Box::new(Qcow2Layer::open_with_data_file(
                    &spec.path,
                    spec.data_file.as_deref(),
                )?)),
                LayerFormat::Raw => Layer::Raw(RawLayer::open(&spec.path)?),
            });
        }
        let Some(top) = layers.last() else {
            return Err(Error::invalid("a chain needs at least one layer"));
        };
        let size = top.size();
        Ok(Self {
            layers,
            size,
            unpacked: Mutex::new(VecDeque::new()),
        })
    }

    /// A chain of one layer.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn single(path: &Path, format: LayerFormat) -> Result<Self> {
        Self::open(&[LayerSpec {
            path: path.to_owned(),
            format,
            data_file: None,
            within: None,
        }])
    }

    /// The name of what the lowest layer lies on, as its header has it; never followed.
    #[must_use]
    pub fn backing(&self) -> Option<&str> {
        match self.layers.first() {
            Some(Layer::Qcow2(layer)) => layer.backing(),
            _ => None,
        }
    }

    /// Number of layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Tells `tell` of every run of `range`, ascending, as the `depth` lowest layers see it. What a layer leaves open is asked of
    /// the layers beneath, so each table is walked once per call.
    fn visit<'a>(
        &'a self,
        depth: usize,
        range: Range<u64>,
        find_holes: bool,
        tell: &mut dyn FnMut(Place<'a>, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let index = depth.wrapping_sub(1);
        let Some(layer) = self.layers.get(index) else {
            return tell(Place::Zero, range);
        };
        let end = range.end.min(layer.size());
        let mut at = range.start;
        while at < end {
            let len = match layer {
                Layer::Raw(raw) => {
                    let (hole, run) = if find_holes {
                        raw.hole_at(at)?
                    } else {
                        (false, end - at)
                    };
                    let run = run.min(end - at);
                    tell(
                        if hole { Place::Zero } else { Place::Raw(raw) },
                        at..at + run,
                    )?;
                    run
                }
                Layer::Qcow2(layer) => {
                    let Extent { len, kind } = layer.map_limited(at, end - at)?;
                    let run = at..at + len;
                    match kind {
                        ExtentKind::Unallocated => self.visit(index, run, find_holes, tell)?,
                        ExtentKind::Zero => tell(Place::Zero, run)?,
                        ExtentKind::Data { host_offset } => {
                            tell(Place::Plain(layer, host_offset), run)?;
                        }
                        ExtentKind::Compressed {
                            host_offset,
                            stored,
                        } => {
                            tell(
                                Place::Packed {
                                    layer,
                                    index,
                                    host_offset,
                                    stored,
                                },
                                run,
                            )?;
                        }
                    }
                    len
                }
            };
            at += len;
        }
        if at < range.end {
            tell(Place::Zero, at..range.end)
        } else {
            Ok(())
        }
    }

    fn read_packed(&self, place: &Place<'_>, buf: &mut [u8], offset: u64) -> Result<()> {
        let Place::Packed {
            layer,
            index,
            host_offset,
            stored,
        } = *place
        else {
            return Ok(());
        };
        let cluster = offset & !(layer.cluster_size() - 1);
        let kept = {
            let list = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
            list.iter()
                .find(|(i, c, _)| (*i, *c) == (index, cluster))
                .map(|k| Arc::clone(&k.2))
        };
        let bytes = match kept {
            Some(bytes) => bytes,
            None => {
                let bytes: Arc<[u8]> = layer.read_compressed(offset, host_offset, stored)?.into();
                let mut list = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
                if list.len() >= UNPACKED_KEPT {
                    list.pop_front();
                }
                list.push_back((index, cluster, Arc::clone(&bytes)));
                bytes
            }
        };
        let within = (offset - cluster) as usize;
        // The extent ends with its cluster, so the bytes are there.
        let part = bytes.get(within..within + buf.len()).unwrap_or_default();
        if part.len() != buf.len() {
            return Err(Error::OutOfRange {
                offset,
                len: buf.len() as u64,
                size: self.size,
            });
        }
        buf.copy_from_slice(part);
        Ok(())
    }
}

impl Source for Chain {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        let mut rest = buf;
        let range = offset..offset + rest.len() as u64;
        self.visit(self.layers.len(), range, false, &mut |place, run| {
            let (part, after) =
                std::mem::take(&mut rest).split_at_mut((run.end - run.start) as usize);
            rest = after;
            match &place {
                Place::Zero => part.fill(0),
                Place::Raw(raw) => raw.read_at(part, run.start)?,
                Place::Plain(layer, host_offset) => layer.read_data(part, *host_offset)?,
                Place::Packed { .. } => self.read_packed(&place, part, run.start)?,
            }
            Ok(())
        })
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>> {
        check_range(
            range.start,
            range.end.saturating_sub(range.start),
            self.size,
        )?;
        let mut list = Vec::new();
        self.visit(self.layers.len(), range, true, &mut |place, run| {
            let (start, len) = (run.start, run.end - run.start);
            push_extent(
                &mut list,
                SourceExtent {
                    start,
                    len,
                    zero: matches!(place, Place::Zero),
                },
            );
            Ok(())
        })?;
        Ok(list)
    }
}

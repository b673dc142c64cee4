//! The parts of a manifest.

use serde::{Deserialize, Serialize};

use super::{HexHash, RelativePath};
use crate::error::{Error, Result};
use crate::export::DiskReport;
use crate::zero::BLOCK_SIZE;

/// Which machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineIdentity {
    /// Identifier (a GUID).
    pub id: String,
    /// Name at the instant of the export.
    pub name: String,
}

/// How far the guest took part in making the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// The guest's agent froze its file systems.
    Application,
    /// As after a power cut.
    Crash,
}

/// The two kinds of reference point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointType {
    /// Log-based.
    #[serde(rename = "log-based")]
    LogBased,
    /// Based on resilient change tracking.
    #[serde(rename = "rct-based")]
    RctBased,
}

/// Which point, and which base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointIdentity {
    /// Identifier of the point.
    pub id: String,
    /// Its name for people, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The instant the disks are of, RFC 3339 in UTC (`2026-01-02T03:04:05.678Z`).
    pub instant: String,
    /// Consistency reached.
    pub consistency: Consistency,
    /// Kind of point.
    #[serde(rename = "type")]
    pub kind: PointType,
    /// For a differential export: the point it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_id: Option<String>,
    /// For a differential export: the hash of the base's `manifest.json`, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_manifest: Option<HexHash>,
}

/// The reference point of a collection that the exported point is one machine's part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectionIdentity {
    /// Identifier of the collection's point (a GUID).
    pub point: String,
    /// Its name.
    pub point_name: String,
    /// Identifier of the collection (a GUID).
    pub id: String,
    /// Name of the collection at the instant of the export.
    pub name: String,
    /// The machines the point is of: one whose export is missing is missed.
    pub machines: Vec<MachineIdentity>,
    /// How far apart the guests stood still, in microseconds.
    pub skew_us: u64,
}

/// A file that is no disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainFile {
    /// What it is: `configuration`, `runtime-state`, `guest-state`.
    pub role: String,
    /// The file.
    pub path: RelativePath,
    /// Its length.
    pub bytes: u64,
    /// Its hash.
    pub blake3: HexHash,
}

/// Format of an exported image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// qcow2.
    Qcow2,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// Identifier of the disk in its machine; the same through all exports of a chain.
    pub instance_id: String,
    /// The image.
    pub file: RelativePath,
    /// Its format.
    pub format: ImageFormat,
    /// Its length in bytes.
    pub file_bytes: u64,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// For a differential image: the name of the base image's file, without directories. Its directory is that of the base's
    /// manifest; the image itself names it relative to its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_file: Option<RelativePath>,
    /// Ranges of data in the image.
    pub extents: u64,
    /// Blocks the image holds as data.
    pub data_blocks: u64,
    /// Exported blocks that are zero.
    pub zero_blocks: u64,
    /// Size of a hashed block; always [`BLOCK_SIZE`].
    pub block_size: u64,
    /// The block list.
    pub block_list: BlockListEntry,
    /// BLAKE3 over the hashes of all blocks of the whole disk. May be absent in a differential export only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<HexHash>,
}

impl DiskEntry {
    /// The entry of a disk that was just exported. `file` and `list` are relative to the export's directory; `base_file` is the plain
    /// name of the base image.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the report is of an export without a block list.
    pub fn of(
        instance_id: impl Into<String>,
        file: RelativePath,
        list: RelativePath,
        base_file: Option<RelativePath>,
        report: &DiskReport,
    ) -> Result<Self> {
        let info = report.block_list.as_ref();
        let info =
            info.ok_or_else(|| Error::invalid("a manifest needs the block list of the disk"))?;
        Ok(Self {
            instance_id: instance_id.into(),
            file,
            format: ImageFormat::Qcow2,
            file_bytes: report.bytes_written,
            virtual_size: report.virtual_size,
            base_file,
            extents: report.extents,
            data_blocks: report.data_blocks,
            zero_blocks: report.zero_blocks,
            block_size: BLOCK_SIZE,
            block_list: BlockListEntry {
                file: list,
                bytes: info.bytes,
                blocks: info.blocks,
                blake3: HexHash(info.hash),
            },
            digest: report.digest.map(HexHash),
        })
    }
}

/// The block list of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockListEntry {
    /// The file.
    pub file: RelativePath,
    /// Its length in bytes.
    pub bytes: u64,
    /// Blocks listed.
    pub blocks: u64,
    /// Its hash.
    pub blake3: HexHash,
}

/// Something decided on the caller's behalf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The disk it concerns; none for the whole export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// What was done instead of what was asked for.
    pub decision: String,
    /// Why.
    pub reason: String,
}

//! What images are made of, and what is said of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ImageFormat;

/// What a new image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewImage {
    /// Where; must not exist yet.
    pub path: PathBuf,
    /// Format.
    pub format: ImageFormat,
    /// Virtual size in bytes; may be left out where there is a backing file.
    pub size: Option<u64>,
    /// All space allocated at once ("fixed").
    pub fixed: bool,
    /// Recorded backing file and its format. The name is recorded as given, so relative stays relative.
    pub backing: Option<(String, ImageFormat)>,
    /// qcow2 only: allocation in parts of a cluster, so that the change map is fine.
    pub extended_l2: bool,
    /// qcow2 only: a line in its own header that says whose it is.
    #[serde(default)]
    pub owner: Option<String>,
}

impl NewImage {
    /// An empty dynamic image.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, format: ImageFormat, size: u64) -> Self {
        Self {
            path: path.into(),
            format,
            size: Some(size),
            fixed: false,
            backing: None,
            extended_l2: false,
            owner: None,
        }
    }

    /// An empty layer that records `backing` beneath it.
    #[must_use]
    pub fn overlay(
        path: impl Into<PathBuf>,
        backing: impl Into<String>,
        format: ImageFormat,
        size: u64,
    ) -> Self {
        Self {
            backing: Some((backing.into(), format)),
            extended_l2: true,
            ..Self::new(path, ImageFormat::Qcow2, size)
        }
    }
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Format.
    pub format: String,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Bytes allocated on the host.
    pub actual_size: u64,
    /// Recorded backing file, as recorded.
    pub backing: Option<String>,
    /// Recorded format of the backing file.
    pub backing_format: Option<String>,
    /// Cluster or block size in bytes.
    pub cluster_size: Option<u64>,
    /// The image was not closed properly.
    pub dirty: bool,
    /// QEMU found it corrupt.
    pub corrupt: bool,
    /// Encrypted.
    pub encrypted: bool,
    /// qcow2 with allocation in parts of a cluster.
    pub extended_l2: bool,
    /// Everything the tool said.
    pub raw: Value,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Damage: contents may be wrong.
    pub corruptions: u64,
    /// Space that is lost, harmless otherwise.
    pub leaks: u64,
    /// Errors of the check itself.
    pub check_errors: u64,
    /// Allocated clusters (qcow2).
    pub allocated_clusters: u64,
}

/// How a conversion writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConvertOptions {
    /// All space allocated at once.
    pub fixed: bool,
    /// Compressed clusters (qcow2).
    pub compressed: bool,
    /// Look past a lock on the source. Only right for a source that nobody writes.
    pub share: bool,
}

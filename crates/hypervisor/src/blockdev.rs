//! Layers and devices as QEMU's JSON, for the command line and for hot adding alike.
//!
//! Every layer is two named nodes, format over file, and names the node beneath it (or null), so that the names
//! recorded inside image files never decide what is opened.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{Controller, DriveConfig, DriveKind, ImageFormat, LayerFile, path_text};
use crate::error::{Error, Result};
use crate::names;

/// Facts about files that decide how QEMU opens them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileFacts {
    /// Those paths that are block devices.
    pub block_devices: BTreeSet<PathBuf>,
}

impl FileFacts {
    /// Looks at the layers' files. What cannot be looked at is taken for a file; QEMU will say what is wrong.
    #[must_use]
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a LayerFile>) -> Self {
        let is_device = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
        };
        let block_devices = layers
            .into_iter()
            .map(|layer| &layer.path)
            .filter(|path| is_device(path))
            .cloned()
            .collect();
        Self { block_devices }
    }
}

/// The nodes of a drive, in the order they must be added: base first, each file before its format.
pub(crate) fn chain_nodes(drive: &DriveConfig, facts: &FileFacts) -> Result<Vec<Value>> {
    let mut nodes = Vec::with_capacity(drive.chain.len() * 2);
    let mut below: Option<&str> = None;
    let top = drive.chain.len().saturating_sub(1);
    for (depth, layer) in drive.chain.iter().enumerate() {
        let read_only = depth < top || drive.read_only || drive.kind == DriveKind::Cdrom;
        nodes.extend(layer_nodes(layer, below, read_only, facts)?);
        below = Some(&layer.node_name);
    }
    Ok(nodes)
}

/// The two nodes of one layer.
pub(crate) fn layer_nodes(
    layer: &LayerFile,
    below: Option<&str>,
    read_only: bool,
    facts: &FileFacts,
) -> Result<[Value; 2]> {
    layer.check()?;
    let file_node = names::file_node(&layer.node_name);
    let driver = if facts.block_devices.contains(&layer.path) {
        "host_device"
    } else {
        "file"
    };
    let file = json!({
        "driver": driver,
        "node-name": file_node,
        "filename": path_text(&layer.path)?,
        "discard": "unmap",
        // A frozen layer's file is opened for writing only while something is committed into it.
        "auto-read-only": read_only,
    });
    let mut format = Map::new();
    format.insert("driver".into(), layer.format.as_str().into());
    format.insert("node-name".into(), layer.node_name.as_str().into());
    format.insert("file".into(), file_node.into());
    format.insert("read-only".into(), read_only.into());
    format.insert("discard".into(), "unmap".into());
    format.insert("detect-zeroes".into(), "off".into());
    match (layer.format, below) {
        // Also with nothing beneath: a name recorded in the file must not be followed.
        (ImageFormat::Qcow2, below) => drop(format.insert("backing".into(), json!(below))),
        (ImageFormat::Vmdk, None) => drop(format.insert("backing".into(), Value::Null)),
        (_, Some(_)) => {
            return Err(Error::config(format!(
                "{} cannot lie on another layer",
                layer.path.display()
            )));
        }
        (_, None) => {}
    }
    Ok([file, Value::Object(format)])
}

/// The device of a drive.
pub(crate) fn device(drive: &DriveConfig, boot_index: Option<usize>) -> Result<Value> {
    let mut device = Map::new();
    let (bus, disk, cdrom) = match drive.controller {
        Controller::Ide(n) => {
            if drive.read_only && drive.kind == DriveKind::Disk {
                return Err(Error::config(format!(
                    "IDE disk `{}` cannot be read-only: use SCSI",
                    drive.id
                )));
            }
            device.insert("unit".into(), drive.slot.into());
            (format!("ide.{n}"), "ide-hd", "ide-cd")
        }
        Controller::Scsi(n) => {
            device.insert("scsi-id".into(), drive.slot.into());
            device.insert("lun".into(), 0.into());
            (format!("scsi{n}.0"), "scsi-hd", "scsi-cd")
        }
    };
    let driver = if drive.kind == DriveKind::Disk {
        disk
    } else {
        cdrom
    };
    device.insert("driver".into(), driver.into());
    device.insert("id".into(), names::device(&drive.id).into());
    device.insert("bus".into(), bus.into());
    if let Some(active) = drive.chain.last() {
        device.insert("drive".into(), active.node_name.as_str().into());
    }
    if drive.kind == DriveKind::Disk {
        // A write that fails is neither lost nor told to the guest, which could only give up its file systems: the
        // guest stands still and repeats it. A sector that cannot be read is the guest's to deal with.
        device.insert("werror".into(), "stop".into());
        device.insert("rerror".into(), "report".into());
    }
    if let Some(index) = boot_index {
        device.insert("bootindex".into(), index.into());
    }
    Ok(Value::Object(device))
}

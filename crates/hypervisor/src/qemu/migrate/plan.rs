//! What a destination must have of each disk.

use std::collections::HashMap;

use serde_json::json;

use super::super::graph;
use super::super::machine::QemuMachine;
use crate::error::{Error, Result};
use crate::migration::MovingDisk;
use crate::qmp::codec::{items, text};

pub(super) async fn disks(machine: &QemuMachine) -> Result<Vec<MovingDisk>> {
    let state = graph::reconcile(machine).await?;
    let mut bitmaps = bitmaps(machine).await?;
    let mut disks = Vec::new();
    for drive in state.drives {
        let mut chain = drive.chain;
        let Some(active) = chain.pop().filter(|active| !active.read_only) else {
            continue;
        };
        let untold =
            |node: &str| Error::conflict(format!("QEMU does not tell the file of layer `{node}`"));
        for node in chain.iter().chain([&active]) {
            if node.path.is_none() || node.format.is_none() {
                return Err(untold(&node.node_name));
            }
        }
        disks.push(MovingDisk {
            drive_id: drive.id,
            frozen: chain,
            bitmaps: bitmaps.remove(&active.node_name).unwrap_or_default(),
            active,
        });
    }
    Ok(disks)
}

/// Named bitmaps by node. A mirror has one without a name.
async fn bitmaps(machine: &QemuMachine) -> Result<HashMap<String, Vec<String>>> {
    let nodes = machine
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    let of = |node| {
        let bitmaps = items(node).iter().filter_map(|bitmap| text(bitmap, "name"));
        let named = bitmaps.filter(|name| !name.is_empty()).map(str::to_owned);
        named.collect::<Vec<_>>()
    };
    let found = items(&nodes).iter().filter_map(|node| {
        let name = text(node, "node-name")?.to_owned();
        Some((name, of(node.get("dirty-bitmaps")?)))
    });
    Ok(found.filter(|(_, names)| !names.is_empty()).collect())
}

//! Drives that come, go and change while the machine runs.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::graph::Graph;
use super::machine::QemuMachine;
use crate::blockdev::{FileFacts, chain_nodes, device};
use crate::config::{Controller, DriveConfig, DriveKind, LayerFile};
use crate::error::{Error, Result};
use crate::names;

/// A guest that is starting may take its time to let go of a disk.
const UNPLUG_DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn add(machine: &QemuMachine, drive: &DriveConfig) -> Result<()> {
    let Controller::Scsi(controller) = drive.controller else {
        return Err(Error::config(format!(
            "drive `{}` is on an IDE controller; only SCSI drives can be added while the machine runs",
            drive.id
        )));
    };
    machine.check_drive(drive)?;
    let graph = Graph::read(machine).await?;
    if graph.has_drive(&drive.id) {
        let there = graph.chain(&drive.id)?;
        if there
            .iter()
            .eq(drive.chain.iter().map(|layer| &layer.node_name))
        {
            return Ok(());
        }
        return Err(Error::conflict(format!(
            "drive `{}` is there already with other layers",
            drive.id
        )));
    }
    if machine.has_bus(&format!("scsi{controller}")).await? {
        add_nodes(machine, &graph, drive).await?;
        let plugged = match device(drive, None) {
            Ok(device) => machine.execute("device_add", device).await.map(drop),
            Err(error) => Err(error),
        };
        if plugged.is_err() {
            remove_nodes(machine, drive).await;
        }
        return plugged;
    }
    Err(Error::conflict(format!(
        "the running machine has no SCSI controller {controller}"
    )))
}

/// Adds the nodes of a chain; what an interrupted attempt left of them is replaced.
async fn add_nodes(machine: &QemuMachine, graph: &Graph, drive: &DriveConfig) -> Result<()> {
    let used = graph.used();
    for layer in drive.chain.iter().rev() {
        if used.contains(&layer.node_name) {
            return Err(Error::conflict(format!(
                "layer `{}` is in use by another drive",
                layer.node_name
            )));
        }
        let file_node = names::file_node(&layer.node_name);
        if graph.has_node(&layer.node_name) || graph.has_node(&file_node) {
            machine.delete_layer(&layer.node_name).await?;
        }
    }
    machine.grant_drive(drive)?;
    for node in chain_nodes(drive, &FileFacts::of(&drive.chain))? {
        if let Err(error) = machine.execute("blockdev-add", node).await {
            remove_nodes(machine, drive).await;
            return Err(error);
        }
    }
    for layer in &drive.chain {
        machine.owners().set(&layer.node_name, &drive.id);
    }
    Ok(())
}

/// After a failure that is being reported already.
async fn remove_nodes(machine: &QemuMachine, drive: &DriveConfig) {
    for layer in drive.chain.iter().rev() {
        if let Err(error) = machine.delete_layer(&layer.node_name).await {
            tracing::warn!(%error, layer = %layer.node_name, "a node stays behind");
        }
    }
}

pub(super) async fn remove(machine: &QemuMachine, drive: &str) -> Result<()> {
    let graph = Graph::read(machine).await?;
    if !graph.has_drive(drive) {
        return Ok(());
    }
    let mut nodes = graph.chain(drive)?;
    nodes.reverse();
    machine
        .execute("device_del", json!({ "id": names::device(drive) }))
        .await?;
    let deadline = Instant::now() + UNPLUG_DEADLINE;
    let nap = || tokio::time::sleep(Duration::from_millis(10));
    while Graph::read(machine).await?.has_drive(drive) {
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "device_del".into(),
                after: UNPLUG_DEADLINE,
            });
        }
        nap().await;
    }
    // The device lets go of its node a little after it has left the list of devices.
    loop {
        match close_unused(machine, &nodes).await {
            Err(Error::Qmp { .. }) if Instant::now() < deadline => nap().await,
            result => return result,
        }
    }
}

/// Closes layers, topmost first, except those that something still uses: two drives may stand on one base.
async fn close_unused(machine: &QemuMachine, nodes: &[String]) -> Result<()> {
    let graph = Graph::read(machine).await?;
    let used = graph.used();
    for node in nodes.iter().filter(|node| !used.contains(*node)) {
        machine.delete_layer(node).await?;
    }
    Ok(())
}

pub(super) async fn close_nodes(machine: &QemuMachine, nodes: &[String]) -> Result<()> {
    let graph = Graph::read(machine).await?;
    let used = graph.used();
    if let Some(node) = nodes.iter().find(|node| used.contains(*node)) {
        return Err(Error::conflict(format!(
            "layer `{node}` is in use by a drive"
        )));
    }
    // Those above before those beneath.
    let mut ordered: Vec<&String> = nodes.iter().filter(|node| graph.has_node(node)).collect();
    ordered.sort_by_key(|node| std::cmp::Reverse(graph.downwards(node).len()));
    for node in ordered {
        machine.delete_layer(node).await?;
    }
    Ok(())
}

pub(super) async fn change_medium(
    machine: &QemuMachine,
    drive: &str,
    medium: Option<&LayerFile>,
) -> Result<()> {
    let graph = Graph::read(machine).await?;
    if !graph.is_cdrom(drive)? {
        return Err(Error::conflict(format!(
            "drive `{drive}` is not a DVD drive"
        )));
    }
    let there = graph.chain(drive)?;
    let wanted: Vec<String> = medium.iter().map(|layer| layer.node_name.clone()).collect();
    let device = json!({ "id": names::device(drive) });
    if there != wanted {
        // Forced: a guest's lock must not keep the operator out.
        machine
            .execute(
                "blockdev-open-tray",
                json!({ "id": names::device(drive), "force": true }),
            )
            .await?;
        machine
            .execute("blockdev-remove-medium", device.clone())
            .await?;
        close_unused(machine, &there).await?;
        if let Some(layer) = medium {
            let chain = DriveConfig {
                id: drive.to_owned(),
                controller: Controller::Scsi(0),
                slot: 0,
                kind: DriveKind::Cdrom,
                chain: vec![layer.clone()],
                read_only: true,
            };
            let graph = Graph::read(machine).await?;
            add_nodes(machine, &graph, &chain).await?;
            let insert = json!({ "id": names::device(drive), "node-name": layer.node_name });
            if let Err(error) = machine.execute("blockdev-insert-medium", insert).await {
                remove_nodes(machine, &chain).await;
                return Err(error);
            }
        }
    }
    machine
        .execute("blockdev-close-tray", device)
        .await
        .map(drop)
}

pub(super) async fn resize(machine: &QemuMachine, drive: &str, bytes: u64) -> Result<()> {
    let active = Graph::read(machine).await?.active(drive)?;
    machine.facts().forget(&active);
    let done = machine
        .execute(
            "block_resize",
            json!({ "node-name": active, "size": bytes }),
        )
        .await;
    // Asked for meanwhile, the old size may have been kept.
    machine.facts().forget(&active);
    done.map(drop)
}

/// Whether a device of that id is plugged in.
pub(super) async fn has_device(machine: &QemuMachine, id: &str) -> Result<bool> {
    let path = json!({ "path": format!("/machine/peripheral/{id}"), "property": "type" });
    match machine.execute("qom-get", path).await {
        Ok(value) => Ok(value != Value::Null),
        Err(Error::Qmp { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

//! New layers on top: prepared while the guest runs, put on in one transaction.

use std::path::Path;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::graph::Graph;
use super::machine::QemuMachine;
use crate::block::{FreezeReport, NewOverlay, NodeState, PreparedLayers, Quiesced};
use crate::blockdev::{FileFacts, layer_nodes};
use crate::config::{ImageFormat, LayerFile};
use crate::confine::grants::Access;
use crate::error::{Error, Result};
use crate::image::NewImage;
use crate::layers::backing_name;
use crate::machine::MachineStatus;
use crate::names;

enum Found {
    /// It is the active layer: marked by an earlier attempt. The node beneath it.
    OnTop(String),
    /// Ready, not on top.
    Ready,
    /// Nothing there yet.
    Missing,
}

pub(super) async fn prepare(
    machine: &QemuMachine,
    overlays: &[NewOverlay],
) -> Result<PreparedLayers> {
    let graph = Graph::read(machine).await?;
    let mut prepared = PreparedLayers {
        overlays: overlays.to_vec(),
        ..PreparedLayers::default()
    };
    let mut missing = Vec::new();
    let mut on_top = 0;
    for overlay in overlays {
        match find(machine, &graph, overlay).await? {
            Found::OnTop(below) => {
                on_top += 1;
                prepared.frozen.push(below);
            }
            found => {
                prepared.frozen.push(graph.active(&overlay.drive_id)?);
                if matches!(found, Found::Missing) {
                    missing.push(overlay);
                }
            }
        }
    }
    if on_top > 0 && on_top < overlays.len() {
        // One transaction put them there, so this is no left-over of ours.
        return Err(Error::conflict(
            "some of the new layers are on top already, others are not",
        ));
    }
    prepared.already_marked = on_top > 0;
    let mut made: Vec<&NewOverlay> = Vec::new();
    let mut failed = Ok(());
    for overlay in missing {
        let facts = match create_file(machine, &graph, overlay).await {
            Ok(facts) => facts,
            Err(error) => {
                failed = Err(error);
                break;
            }
        };
        // From here on the file is ours to remove, not before: it could have been somebody's.
        made.push(overlay);
        failed = add_nodes(machine, overlay).await;
        if failed.is_err() {
            break;
        }
        machine.facts().learn(facts);
    }
    if let Err(error) = failed {
        for overlay in made {
            if let Err(undo) = remove(machine, overlay).await {
                tracing::warn!(error = %undo, layer = %overlay.overlay_node, "a prepared layer stays behind");
            }
        }
        return Err(error);
    }
    Ok(prepared)
}

async fn find(machine: &QemuMachine, graph: &Graph, overlay: &NewOverlay) -> Result<Found> {
    let chain = graph.chain(&overlay.drive_id)?;
    let name = &overlay.overlay_node;
    if let Some(place) = chain.iter().position(|node| node == name) {
        if place + 1 < chain.len() {
            return Err(Error::conflict(format!(
                "layer `{name}` already lies under others"
            )));
        }
        let below = place.checked_sub(1).and_then(|below| chain.get(below));
        let is_base = || {
            Error::conflict(format!(
                "layer `{name}` is the base of drive `{}`",
                overlay.drive_id
            ))
        };
        return below
            .map(|below| Found::OnTop(below.clone()))
            .ok_or_else(is_base);
    }
    match graph.node_of_path(machine, &overlay.overlay_path).await? {
        Some(node) if node == *name && !graph.used().contains(name) => Ok(Found::Ready),
        Some(node) => Err(Error::conflict(format!(
            "{} is in use as layer `{node}`",
            overlay.overlay_path.display()
        ))),
        None if graph.has_node(name) => Err(Error::conflict(format!(
            "layer name `{name}` is in use for another file"
        ))),
        None => Ok(Found::Missing),
    }
}

async fn create_file(
    machine: &QemuMachine,
    graph: &Graph,
    overlay: &NewOverlay,
) -> Result<NodeState> {
    new_layer(overlay).check()?;
    let mut chain = graph.chain_facts(machine, &overlay.drive_id).await?;
    let no_medium = || Error::conflict(format!("drive `{}` has no medium", overlay.drive_id));
    let active = chain.pop().ok_or_else(no_medium)?;
    let below = active.path.as_deref().ok_or_else(|| {
        Error::conflict(format!(
            "QEMU does not tell the file of layer `{}`",
            active.node_name
        ))
    })?;
    let format = active.format.ok_or_else(|| {
        Error::conflict(format!(
            "layer `{}` has a format of its own",
            active.node_name
        ))
    })?;
    let name = backing_name(overlay, below)?;
    let size = overlay.size.unwrap_or(active.size);
    let image = NewImage {
        owner: overlay.owner.clone(),
        ..NewImage::overlay(&overlay.overlay_path, name, format, size)
    };
    machine.images().create_or_reuse_overlay(&image).await?;
    // The file and its name must survive a power cut before anything is written into it.
    sync_with_dir(&overlay.overlay_path)?;
    Ok(NodeState {
        node_name: overlay.overlay_node.clone(),
        path: Some(overlay.overlay_path.clone()),
        format: Some(ImageFormat::Qcow2),
        // The format counts in sectors.
        size: size.next_multiple_of(512),
        read_only: false,
    })
}

async fn add_nodes(machine: &QemuMachine, overlay: &NewOverlay) -> Result<()> {
    machine.grant(&overlay.overlay_path, Access::Write)?;
    for node in layer_nodes(&new_layer(overlay), None, false, &FileFacts::default())? {
        machine.execute("blockdev-add", node).await?;
    }
    machine
        .owners()
        .set(&overlay.overlay_node, &overlay.drive_id);
    Ok(())
}

fn new_layer(overlay: &NewOverlay) -> LayerFile {
    LayerFile::new(
        &overlay.overlay_node,
        &overlay.overlay_path,
        ImageFormat::Qcow2,
    )
}

pub(super) fn sync_with_dir(path: &Path) -> Result<()> {
    let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
    sync(path).map_err(|source| Error::io("sync", path, source))?;
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    sync(dir).map_err(|source| Error::io("sync", dir, source))
}

async fn remove(machine: &QemuMachine, overlay: &NewOverlay) -> Result<()> {
    machine.delete_layer(&overlay.overlay_node).await?;
    match std::fs::remove_file(&overlay.overlay_path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &overlay.overlay_path, error))
        }
        _ => Ok(()),
    }
}

pub(super) async fn discard(machine: &QemuMachine, prepared: &PreparedLayers) -> Result<()> {
    for overlay in &prepared.overlays {
        let graph = Graph::read(machine).await?;
        let used = graph.used();
        let in_use = match graph.node_of_path(machine, &overlay.overlay_path).await? {
            Some(node) => used.contains(&node) || node != overlay.overlay_node,
            None => used.contains(&overlay.overlay_node),
        };
        if !in_use {
            remove(machine, overlay).await?;
        }
    }
    Ok(())
}

pub(super) async fn quiesce(machine: &QemuMachine) -> Result<Quiesced> {
    let was_running = machine.query_status().await? == MachineStatus::Running;
    if was_running {
        machine.execute("stop", Value::Null).await?;
    }
    Ok(Quiesced {
        was_running,
        at: SystemTime::now(),
    })
}

pub(super) async fn release(machine: &QemuMachine, quiesced: Quiesced) -> Result<()> {
    if quiesced.was_running {
        machine.execute("cont", Value::Null).await?;
    }
    Ok(())
}

pub(super) async fn mark(machine: &QemuMachine, prepared: &PreparedLayers) -> Result<FreezeReport> {
    if prepared.overlays.is_empty() {
        return Err(Error::config("no layers to put on"));
    }
    if prepared.already_marked {
        return already(prepared);
    }
    if prepared.overlays.len() != prepared.frozen.len() {
        return Err(Error::config(
            "prepared layers without the layers beneath them",
        ));
    }
    if !frozen_are_active(machine, prepared).await? {
        return why_not(machine, prepared).await;
    }
    let action = |(overlay, frozen): (&NewOverlay, &String)| {
        json!({
            "type": "blockdev-snapshot",
            "data": { "node": frozen, "overlay": overlay.overlay_node },
        })
    };
    let actions: Vec<Value> = prepared
        .overlays
        .iter()
        .zip(&prepared.frozen)
        .map(action)
        .collect();
    let before = SystemTime::now();
    let clock = Instant::now();
    machine
        .execute("transaction", json!({ "actions": actions }))
        .await?;
    let paused_for = clock.elapsed();
    // The disks stood still somewhere inside; half way is at most half the pause off.
    Ok(FreezeReport {
        paused_for,
        instant: before + paused_for / 2,
        already: false,
    })
}

/// A snapshot of anything but the active node would change what lies beneath another layer. The guest may be standing
/// still, so only the devices are asked: the answer takes the same time however long the chains are.
async fn frozen_are_active(machine: &QemuMachine, prepared: &PreparedLayers) -> Result<bool> {
    for (overlay, frozen) in prepared.overlays.iter().zip(&prepared.frozen) {
        let path = format!("/machine/peripheral/{}", names::device(&overlay.drive_id));
        let question = json!({ "path": path, "property": "drive" });
        match machine.execute("qom-get", question).await {
            Ok(node) if node.as_str() == Some(frozen) => {}
            Ok(_) | Err(Error::Qmp { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The layers beneath are not the active ones: marked before, or changed since they were prepared.
async fn why_not(machine: &QemuMachine, prepared: &PreparedLayers) -> Result<FreezeReport> {
    let graph = Graph::read(machine).await?;
    let mut on_top = 0;
    for (overlay, frozen) in prepared.overlays.iter().zip(&prepared.frozen) {
        let active = graph.active(&overlay.drive_id)?;
        if active == overlay.overlay_node {
            on_top += 1;
        } else if &active != frozen {
            return Err(Error::conflict(format!(
                "drive `{}` has another active layer by now",
                overlay.drive_id
            )));
        }
    }
    if on_top == prepared.overlays.len() {
        return already(prepared);
    }
    // One transaction puts all on top, so either something else is at work, or a job holds a drive.
    Err(Error::conflict(
        "a block job runs, or only some of the new layers are on top already",
    ))
}

/// The mark was made, its answer was lost: the new file's birth is the nearest instant that is still known.
fn already(prepared: &PreparedLayers) -> Result<FreezeReport> {
    let first = prepared
        .overlays
        .first()
        .ok_or_else(|| Error::config("no layers to put on"))?;
    let path = &first.overlay_path;
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("read", path, source))?;
    let instant = metadata
        .created()
        .or_else(|_| metadata.modified())
        .map_err(|source| Error::io("read", path, source))?;
    Ok(FreezeReport {
        paused_for: std::time::Duration::ZERO,
        instant,
        already: true,
    })
}

/// Deletes both nodes of a layer. Fine if they are gone.
pub(super) async fn delete_layer(machine: &QemuMachine, node: &str) -> Result<()> {
    machine.facts().forget(node);
    for name in [node.to_owned(), names::file_node(node)] {
        match machine
            .execute("blockdev-del", json!({ "node-name": name }))
            .await
        {
            Ok(_) => {}
            // "Failed to find node": the class is the same for every refusal, so the graph is asked.
            Err(error @ Error::Qmp { .. }) => {
                if Graph::read(machine).await?.has_node(&name) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

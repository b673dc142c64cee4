//! Deleting a machine of which files are missing: what is lost is said before, and only that is lost.
//!
//! A disk with a missing file cannot be folded into one image. It is taken out of the record; what is left of its files stays where it
//! is, untouched, and can be taken over by another machine as far as it is whole. All other disks are treated as ever.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::{Asked, DeviceKind, Disk, Vm, VmState, define};
use crate::merge;
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::{Element, Result, Vmms, fault, guid};

/// Whether a file is certainly not there: one that cannot be looked at is not missing.
fn is_gone(path: &Path) -> bool {
    matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound)
}

/// The files a disk cannot do without, and those of them that are gone. Of one that has no layers nothing is to be folded: with its image
/// it is gone already.
fn files(disk: &Disk) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let all = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
    let all: BTreeSet<PathBuf> = all.map(|f| f.path.clone()).collect();
    let several = all.len() > 1;
    let (gone, there) = all.into_iter().partition(|f| several && is_gone(f));
    (there, gone)
}

fn broken(vm: &Vm) -> Vec<(String, Uuid)> {
    vm.disks()
        .filter(|(_, d)| !files(d).1.is_empty())
        .map(|(device, d)| (device.to_owned(), d.uid))
        .collect()
}

/// The first file that is missing of a disk with layers, and the disk's image.
pub(crate) fn first_missing(vm: &Vm) -> Option<(PathBuf, PathBuf)> {
    vm.disks().find_map(|(_, disk)| {
        let gone = files(disk).1.into_iter().next()?;
        Some((gone, disk.path.clone()))
    })
}

fn listed(paths: &[PathBuf]) -> String {
    let texts: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    texts.join(", ")
}

/// What deleting the machine loses beyond its configuration, a line each; nothing where all its files are there. Changes nothing.
pub fn losses(vmms: &Vmms, id: Uuid) -> Result<Vec<String>> {
    let vm = vmms.db.get::<Vm>(id)?;
    let mut out = Vec::new();
    for (_, disk) in vm.disks() {
        let (there, gone) = files(disk);
        if gone.is_empty() {
            continue;
        }
        let shown = disk.path.display();
        let name = &vm.name;
        out.push(format!(
            "disk {shown} of machine {name}: {} missing; what was written there is lost already",
            listed(&gone)
        ));
        match there.is_empty() {
            true => out.push(format!("disk {shown} of machine {name}: no file of it is left")),
            false => out.push(format!(
                "disk {shown} of machine {name}: {} stay as they are, and are not merged into one image; kvmms disk adopt-layers takes over what is whole",
                listed(&there)
            )),
        }
        for point in vmms.db.all::<Point>().iter().filter(|p| p.vm == id) {
            if point.disks.iter().any(|d| d.uid == disk.uid) {
                let exports = match point.exports.len() {
                    0 => "it was never exported".to_owned(),
                    n => format!("its {n} exports stay"),
                };
                out.push(format!(
                    "point {} ({}) of machine {name}, {exports}",
                    point.name,
                    guid(point.id)
                ));
            }
        }
        for snapshot in vmms.db.all::<Snapshot>().iter().filter(|s| s.vm == id) {
            if snapshot.disks.iter().any(|d| d.uid == disk.uid) {
                let (name, id) = (&snapshot.name, guid(snapshot.id));
                out.push(format!("snapshot {name} ({id}) of machine {}", vm.name));
            }
        }
    }
    Ok(out)
}

/// Gives up the disks that cannot be read any more, then starts the job that deletes the machine. Answers what is lost, and the job.
pub async fn destroy_with_losses(
    vmms: &Arc<Vmms>,
    id: Uuid,
    asked: &Asked,
) -> Result<(Vec<String>, Uuid)> {
    let record = vmms.db.get::<Vm>(id)?;
    let state = vmms.state_of(&record);
    if !matches!(state, VmState::Off | VmState::Saved) {
        let fault = fault!(
            WrongVmState,
            record.name,
            state.word(),
            "deleting",
            "off or saved"
        );
        return Err(fault.about(Element::Vm(id)));
    }
    define::end_merging(vmms, id).await?;
    let told = {
        let _lock = vmms.lock(id).await;
        let _paused = merge::pause_merges(vmms, id).await;
        let told = losses(vmms, id)?;
        let gone = broken(&*vmms.db.get::<Vm>(id)?);
        for line in &told {
            tracing::warn!(vm = %guid(id), "given up: {line}");
        }
        vmms.db
            .change(|draft| {
                let vm = draft.get_mut::<Vm>(id)?;
                vm.devices.retain(|d| {
                    !matches!(&d.kind, DeviceKind::Disk(disk) if gone.iter().any(|(_, uid)| *uid == disk.uid))
                });
                Ok(())
            })
            .await?;
        told
    };
    let job = define::destroy(vmms, id, asked).await?;
    Ok((told, job))
}

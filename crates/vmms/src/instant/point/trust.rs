//! Whether what is recorded of a machine's layers is still true.
//!
//! A frozen file has a stamp; one whose stamp differs was changed by something else. That is looked for whenever layers are used:
//! before a point is taken, before an export or an answer about changes, before layers are merged (which would write a new stamp
//! over the evidence), and when the service starts. What is found is marked in the tree ([`crate::disk_tree::Foreign`]) and stays; what the
//! files show at this moment is added whenever somebody looks at a point.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use crate::disk_tree::{Foreign, LayerTree, Stamp};
use crate::machine::Vm;
use crate::point::{Decision, Point, PointDisk, files};
use crate::{Result, Vmms, guid};

/// What differs in the files of one tree.
#[derive(Default)]
struct Seen {
    /// Files that were changed.
    foreign: Vec<(Uuid, Foreign)>,
    /// Files that were never looked at before: those beneath an image that was attached as a layer on others.
    fresh: Vec<(Uuid, Stamp)>,
}

/// Holds the frozen files of a tree against their stamps. Files that are missing are told by whoever reads them.
fn look(tree: &LayerTree) -> Seen {
    let mut seen = Seen::default();
    for (id, node) in tree.nodes.iter().filter(|(id, _)| **id != tree.active) {
        let Some(file) = &node.file else {
            continue;
        };
        let Ok(Some(found)) = files::stamp(&file.path) else {
            continue;
        };
        match node.stamp {
            None => seen.fresh.push((*id, found)),
            Some(was) if was != found => {
                let foreign = Foreign {
                    file: file.path.clone(),
                    was,
                    found,
                    noticed: SystemTime::now(),
                };
                seen.foreign.push((*id, foreign));
            }
            Some(_) => {}
        }
    }
    seen
}

/// Looks for frozen files that something else wrote to and marks what that invalidates. What the guest sees now is the truth
/// that new points are taken of. The caller holds the machine's lock, its layers are reconciled, and nobody copies between them.
pub(crate) async fn distrust(vmms: &Arc<Vmms>, vm: Uuid) -> Result<Vec<Decision>> {
    let record = vmms.db.get::<Vm>(vm)?;
    let mut decisions = Vec::new();
    for (device, disk) in record.disks() {
        let seen = look(&disk.layers);
        for (_, foreign) in &seen.foreign {
            tracing::error!(vm = %guid(vm), device, %foreign, "a frozen layer was changed behind our back");
            decisions.push(Decision {
                what: format!(
                    "older points of disk {device} that are read through the file cannot be exported any more, and what changed since them is not tracked"
                ),
                reason: foreign.to_string(),
            });
        }
        if seen.foreign.is_empty() && seen.fresh.is_empty() {
            continue;
        }
        vmms.db
            .change(|draft| {
                let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(disk.uid) else {
                    return Ok(());
                };
                for (id, stamp) in seen.fresh {
                    if let Some(node) = disk.layers.nodes.get_mut(&id) {
                        node.stamp = Some(stamp);
                    }
                }
                for (id, foreign) in seen.foreign {
                    disk.layers.distrust(id, foreign);
                }
                Ok(())
            })
            .await?;
    }
    Ok(decisions)
}

/// What is wrong with a point, one line for each thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Why its content, where it holds any, cannot be exported.
    pub content: Vec<String>,
    /// Why what changed since it is not known.
    pub tracking: Vec<String>,
}

impl Problems {
    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.content.iter().chain(&self.tracking).cloned().collect()
    }
}

/// What is wrong with a point: nothing where all it is good for can be trusted.
pub fn problems(vmms: &Vmms, point: &Point) -> Problems {
    let mut out = Problems::default();
    let Ok(vm) = vmms.db.get::<Vm>(point.vm) else {
        return out;
    };
    for disk in &point.disks {
        if let Some(found) = vm.disk(disk.uid) {
            of_disk(&found.layers, disk, point.holds_content(), &mut out);
        }
    }
    out
}

fn of_disk(tree: &LayerTree, disk: &PointDisk, content: bool, out: &mut Problems) {
    let mut tree = tree.clone();
    // While layers are merged, files beneath change by our own hand.
    if tree.pending.is_none() {
        for (id, foreign) in look(&tree).foreign {
            tree.distrust(id, foreign);
        }
    }
    let Some(node) = tree.nodes.get(&disk.node) else {
        out.tracking.push(format!(
            "disk {}: its instant is not known any more",
            disk.device
        ));
        return;
    };
    if content {
        if node.lost {
            let why = tree.why_lost(disk.node).map_or_else(
                || "a file it is read from was changed".to_owned(),
                ToString::to_string,
            );
            out.content.push(format!(
                "disk {}: it cannot be exported: {why}",
                disk.device
            ));
        }
        for file in tree.chain(disk.node).unwrap_or_default() {
            if is_missing(&file.path) {
                let shown = file.path.display();
                out.content.push(format!(
                    "disk {}: it cannot be exported: {shown} is missing",
                    disk.device
                ));
            }
        }
    }
    let since = |why: &dyn std::fmt::Display| {
        format!(
            "disk {}: what changed since it is not tracked: {why}",
            disk.device
        )
    };
    if let Some(doubt) = tree.doubt(disk.node, tree.active) {
        out.tracking.push(since(&doubt.reason));
    }
    for id in tree
        .path_between(disk.node, tree.active)
        .unwrap_or_default()
    {
        let Some(node) = tree.nodes.get(&id).filter(|_| id != tree.active) else {
            continue;
        };
        match &node.map {
            None => out.tracking.push(since(&"a change map was given up")),
            Some(map) if is_missing(map) && !files::tells_changes(&tree, id) => {
                out.tracking
                    .push(since(&format!("{} is missing", map.display())));
            }
            Some(_) => {}
        }
    }
}

fn is_missing(path: &std::path::Path) -> bool {
    std::fs::metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

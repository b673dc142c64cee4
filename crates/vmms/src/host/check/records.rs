//! Records whose files are gone, and records that should have changed long ago.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::known::Known;
use super::{Finding, FindingKind, Target};
use crate::disk_tree::LayerTree;
use crate::machine::Vm;
use crate::point::{Point, PointDisk, PointType};
use crate::{Vmms, guid};

/// Holds end when the service comes round: every few seconds.
const LATE: Duration = Duration::from_secs(60);

pub(super) fn look(vmms: &Vmms, known: &Known) -> Vec<Finding> {
    let mut out = Vec::new();
    for vm in known.vms.iter().filter(|vm| !known.is_busy(vm.id)) {
        out.extend(machine(vm));
    }
    for point in &known.points {
        if known.is_busy(point.vm) || known.is_spoken_of(point.id) {
            continue;
        }
        let name = format!("point {} ({})", point.name, guid(point.id));
        let Some(vm) = known.vms.iter().find(|vm| vm.id == point.vm) else {
            let found = Finding::new(FindingKind::Record, name, "its machine does not exist");
            out.push(found.cleaned_by(Target::Point(point.id), "Deletes the point."));
            continue;
        };
        if !point.complete {
            let why = "it was never finished, and no job is taking it";
            let found = Finding::new(FindingKind::Unfinished, name, why);
            out.push(found.cleaned_by(
                Target::Unfinished(point.vm),
                "Takes it back; its layers are merged.",
            ));
            continue;
        }
        out.extend(late(point, &name));
        let gone = instant(vm, point.holds_content(), &point.disks, &point.config);
        out.extend(gone.map(|why| {
            Finding::new(FindingKind::Record, &name, why)
                .left_to("Bring the file back, or delete the point: kvmms point delete.")
        }));
    }
    for snapshot in &known.snapshots {
        if known.is_busy(snapshot.vm) || known.is_spoken_of(snapshot.id) {
            continue;
        }
        let name = format!("snapshot {} ({})", snapshot.name, guid(snapshot.id));
        let vm = known.vms.iter().find(|vm| vm.id == snapshot.vm);
        let memory = snapshot.memory.as_deref().filter(|m| !m.exists());
        let why = match (vm, memory) {
            (None, _) => Some("its machine does not exist".to_owned()),
            (_, Some(memory)) => Some(format!("its memory {} is gone", memory.display())),
            (Some(vm), None) => instant(vm, true, &snapshot.disks, &snapshot.config),
        };
        let kind = match snapshot.complete {
            true => FindingKind::Record,
            false => FindingKind::Unfinished,
        };
        let why = why.or_else(|| {
            (!snapshot.complete)
                .then(|| "it was never finished, and no job is taking it".to_owned())
        });
        out.extend(why.map(|why| {
            Finding::new(kind, &name, why).left_to("Delete the snapshot: kvmms snapshot delete.")
        }));
    }
    out.extend(stuck(vmms, known));
    out
}

/// Whether the files a machine runs on are there.
fn machine(vm: &Vm) -> Option<Finding> {
    let files = vm.disks().flat_map(|(_, d)| d.layers.active_chain());
    let gone = files.into_iter().find(|f| !f.path.exists())?;
    let why = format!(
        "its disk is read through {}, which is gone",
        gone.path.display()
    );
    let found = Finding::new(
        FindingKind::Record,
        format!("machine {} ({})", vm.name, guid(vm.id)),
        why,
    );
    Some(found.left_to("Bring the file back, or restore the machine from an export."))
}

fn late(point: &Point, name: &str) -> Option<Finding> {
    let hold = point.hold.filter(|_| point.kind == PointType::Rct)?;
    let over = hold.until.checked_add(LATE)?;
    let ended = SystemTime::now() > over;
    ended.then(|| {
        let why = "its time is over, and it still keeps layers from being merged";
        let found = Finding::new(FindingKind::Hold, name, why);
        found.cleaned_by(
            Target::Hold(point.id),
            "Ends the hold; the layers are merged.",
        )
    })
}

/// What of an instant is gone.
fn instant(vm: &Vm, content: bool, disks: &[PointDisk], config: &Path) -> Option<String> {
    if !config.exists() {
        return Some(format!("its configuration {} is gone", config.display()));
    }
    disks.iter().find_map(|disk| {
        let Some(found) = vm.disk(disk.uid) else {
            return Some(format!(
                "disk {} is not the machine's any more",
                disk.path.display()
            ));
        };
        layers(&found.layers, disk, content)
    })
}

fn layers(tree: &LayerTree, disk: &PointDisk, content: bool) -> Option<String> {
    let Some(node) = tree.nodes.get(&disk.node) else {
        return Some(format!(
            "disk {} does not know its instant",
            disk.path.display()
        ));
    };
    if content {
        let Some(files) = tree.chain(disk.node) else {
            return Some(format!("its content of {} is gone", disk.path.display()));
        };
        if let Some(gone) = files.iter().find(|f| !f.path.exists()) {
            return Some(format!("its layer {} is gone", gone.path.display()));
        }
    }
    let parent = node.parent.and_then(|p| tree.nodes.get(&p))?;
    let kept = node.map.as_deref().is_some_and(Path::exists);
    let again = node.file.is_some() && parent.file.is_some();
    (!kept && !again && disk.node != tree.active)
        .then(|| format!("its change map of {} is gone", disk.path.display()))
}

/// Jobs whose record says that they run while nothing runs them.
fn stuck(vmms: &Vmms, known: &Known) -> Vec<Finding> {
    let lost = known.running.iter().filter(|j| !vmms.is_driven(j.id));
    lost.map(|job| {
        let name = format!("job {} ({})", job.title, guid(job.id));
        let word = job.state.word();
        let why = match job.undo {
            Some(_) => format!("it has ended ({word}), and what it began is not taken back yet"),
            None => format!("its record says it is {word}, and nothing runs it"),
        };
        let action = "Picks it up as a start of the service would: goes on with it, or undoes it.";
        Finding::new(FindingKind::Job, name, why).cleaned_by(Target::Job(job.id), action)
    })
    .collect()
}

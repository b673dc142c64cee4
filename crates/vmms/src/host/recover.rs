//! The way back from a state store that lost its end: its last good copy, then what the layers and the points' files tell beyond it.
//!
//! What was there is moved aside, never changed. What cannot be brought back is said, one line each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use hypervisor::{ImageTool, QemuHypervisor};
pub use store::Copies;
use uuid::Uuid;

use crate::blocking;
use crate::host::check::beside::unknown_above;
use crate::job::{Job, JobState};
use crate::machine::adopt::{Adopt, take_up};
use crate::machine::{DeviceKind, Power, Vm, device, install};
use crate::point::{Point, load_config};
use crate::snapshot::Snapshot;
use crate::{Dirs, Element, Fault, Options, Result, Vmms, fault, guid};

/// Where copies of the state store are.
pub fn copies_dir(state: &Path) -> PathBuf {
    state.join("copies")
}

/// Rebuilds the state store at `path`; no service may run on it. Answers what was done and what is lost, line by line.
pub async fn recover(
    path: &Path,
    dirs: Dirs,
    options: Options,
    host: String,
) -> Result<Vec<String>> {
    let (own, copies) = (path.to_owned(), copies_dir(&dirs.state));
    let done = blocking(move || Ok(store::recover(&own, &copies)?)).await?;
    let mut report = Vec::new();
    for why in &done.unusable {
        report.push(format!("not usable: {why}"));
    }
    report.push(format!(
        "what was there is kept in {}",
        done.aside.display()
    ));
    report.push(match &done.source {
        Some(source) => format!(
            "the store is made of {}, which ends at revision {}",
            source.display(),
            done.revision
        ),
        None => "no copy could be used: the store begins anew".to_owned(),
    });
    match done.known {
        Some(known) if known > done.revision => report.push(format!(
            "lost: the changes of revisions {} to {known}, as far as the lines below do not bring them back",
            done.revision + 1
        )),
        Some(_) => {}
        None => report.push(
            "how far the lost store went is not known: its note of the newest revision cannot be read".to_owned(),
        ),
    }
    let store = crate::open_store(path, None).await?;
    let hypervisor = Arc::new(QemuHypervisor::default());
    let images = ImageTool::default();
    let vmms = Vmms::idle(store, hypervisor, images, dirs, options, host).await?;
    end_jobs(&vmms, &mut report).await?;
    for vm in vmms.db.all::<Vm>() {
        grow_disks(&vmms, vm.id, &mut report).await;
    }
    lost_machines(&vmms, &mut report).await?;
    lost_points(&vmms, &mut report);
    report.push(
        "start kvmmsd now; kvmms host check tells what records and files do not agree on"
            .to_owned(),
    );
    Ok(report)
}

/// What was running when the copy was made has ended somehow since: it is neither gone on with nor undone.
async fn end_jobs(vmms: &Arc<Vmms>, report: &mut Vec<String>) -> Result<()> {
    let running: Vec<Arc<Job>> = vmms.db.all::<Job>();
    let running: Vec<_> = running
        .into_iter()
        .filter(|j| !j.state.is_final())
        .collect();
    for job in &running {
        report.push(format!(
            "job {} ({}) ran when the copy was made; what became of it is not known",
            job.title,
            guid(job.id)
        ));
    }
    vmms.db
        .change(|draft| {
            for job in &running {
                let record = draft.get_mut::<Job>(job.id)?;
                record.state = JobState::Exception;
                record.changed = SystemTime::now();
                let why = fault!(HostInterrupted, format!("job {}", guid(job.id)));
                record.faults.push(why.about(Element::Job(job.id)));
            }
            Ok(())
        })
        .await
}

/// Layers that were put on a machine's disks after the copy was made.
async fn grow_disks(vmms: &Arc<Vmms>, id: Uuid, report: &mut Vec<String>) {
    let Ok(vm) = vmms.db.get::<Vm>(id) else {
        return;
    };
    for (_, disk) in vm.disks() {
        let tree = &disk.layers;
        let gone: Vec<&PathBuf> = tree
            .nodes
            .values()
            .filter_map(|n| n.file.as_ref().map(|f| &f.path))
            .filter(|f| !f.exists())
            .collect();
        for file in gone {
            report.push(format!(
                "disk {} of machine {}: {} is gone; it was merged or deleted after the copy was made. See kvmms disk adopt-layers and kvmms vm delete --force",
                disk.path.display(),
                vm.name,
                file.display()
            ));
        }
        let Some(top) = tree.active_chain().pop() else {
            continue;
        };
        if unknown_above(vmms, &top.path).is_empty() {
            continue;
        }
        let wanted = Adopt {
            image: disk.path.clone(),
            ..Adopt::default()
        };
        let shown = disk.path.display();
        match take_up(vmms, id, &wanted).await {
            Ok(adopted) => {
                for layer in adopted.layers {
                    let line = format!(
                        "disk {shown} of machine {}: taken over {}",
                        vm.name,
                        layer.display()
                    );
                    report.push(line);
                }
                report.extend(adopted.remarks);
            }
            Err(error) => report.push(format!(
                "disk {shown} of machine {}: the layers on it could not be taken over: {}",
                vm.name,
                chain(&error)
            )),
        }
    }
}

fn chain(fault: &Fault) -> String {
    let texts: Vec<String> = fault.chain().iter().map(|f| f.text()).collect();
    texts.join(": ")
}

/// The configurations kept with points, of each machine the newest.
fn kept(vmms: &Vmms) -> BTreeMap<Uuid, (SystemTime, Vm)> {
    let mut newest: BTreeMap<Uuid, (SystemTime, Vm)> = BTreeMap::new();
    let dirs = std::fs::read_dir(vmms.dirs.state.join("points"))
        .into_iter()
        .flatten();
    for dir in dirs.flatten() {
        let path = dir.path().join("machine.json");
        let at = std::fs::metadata(&path).and_then(|m| m.modified());
        let (Ok(at), Ok(saved)) = (at, load_config(&path)) else {
            continue;
        };
        let known = newest.get(&saved.machine.id);
        if known.is_none_or(|(before, _)| *before < at) {
            newest.insert(saved.machine.id, (at, saved.machine));
        }
    }
    newest
}

/// Machines that no record has, as they were when their newest point was taken.
async fn lost_machines(vmms: &Arc<Vmms>, report: &mut Vec<String>) -> Result<()> {
    for (id, (_, mut vm)) in kept(vmms) {
        if vmms.db.get::<Vm>(id).is_ok() {
            continue;
        }
        let name = vm.name.clone();
        vm.power = Power::Off;
        vm.saved_state = None;
        vm.last_applied = None;
        let mut given_up = Vec::new();
        for device in &mut vm.devices {
            let DeviceKind::Disk(disk) = &mut device.kind else {
                continue;
            };
            match device::open_image(vmms, &disk.path).await {
                Ok(tree) => disk.layers = tree,
                Err(error) => {
                    let (shown, why) = (disk.path.display(), chain(&error));
                    report.push(format!("lost: disk {shown} of machine {name}: {why}"));
                    given_up.push(device.id.clone());
                }
            }
        }
        vm.devices.retain(|d| !given_up.contains(&d.id));
        match install(vmms, vm).await {
            Ok(_) => report.push(format!(
                "machine {name} ({}) is back as it was when its newest point was taken; later changes of its settings are lost",
                guid(id)
            )),
            Err(error) => {
                report.push(format!("lost: machine {name} ({}): {}", guid(id), chain(&error)));
                continue;
            }
        }
        grow_disks(vmms, id, report).await;
    }
    Ok(())
}

/// Points whose files are there and whose record is not.
fn lost_points(vmms: &Vmms, report: &mut Vec<String>) {
    let dirs = std::fs::read_dir(vmms.dirs.state.join("points"))
        .into_iter()
        .flatten();
    for dir in dirs.flatten() {
        let Some(id) = dir
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<Uuid>().ok())
        else {
            continue;
        };
        if vmms.db.get::<Point>(id).is_ok() || vmms.db.get::<Snapshot>(id).is_ok() {
            continue;
        }
        let of = load_config(&dir.path().join("machine.json"));
        let of = of.map_or_else(
            |_| "an unknown machine".to_owned(),
            |c| format!("machine {}", c.machine.name),
        );
        report.push(format!(
            "lost: point or snapshot {} of {of}; its exports stay good, as bases of differences it is gone",
            guid(id)
        ));
    }
}

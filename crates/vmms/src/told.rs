//! What failures are about, in words: where an argument is nothing but an identifier, people see the name behind it as well.

use uuid::Uuid;

use crate::collection::{Collection, CollectionPoint, CollectionSnapshot};
use crate::job::Job;
use crate::machine::Vm;
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::{Fault, Vmms, guid};

/// This failure and its causes with names beside the identifiers in their arguments.
pub fn named(vmms: &Vmms, fault: &Fault) -> Fault {
    let mut out = fault.clone();
    for argument in &mut out.arguments {
        if let Some(name) = name_of(vmms, argument) {
            *argument = name;
        }
    }
    out.causes = fault.causes.iter().map(|c| named(vmms, c)).collect();
    out
}

fn vm_name(vmms: &Vmms, vm: Uuid) -> String {
    let record = vmms.db.get::<Vm>(vm);
    record.map_or_else(|_| guid(vm), |vm| vm.name.clone())
}

fn collection_name(vmms: &Vmms, collection: Uuid) -> String {
    let record = vmms.db.get::<Collection>(collection);
    record.map_or_else(|_| guid(collection), |collection| collection.name.clone())
}

fn name_of(vmms: &Vmms, text: &str) -> Option<String> {
    // A disk's resource: its machine's controller, slot and a letter behind an identifier.
    if text.contains('\\') {
        return vmms.db.all::<Vm>().iter().find_map(|vm| {
            let (_, disk) = vm
                .disks()
                .find(|(device, _)| device.eq_ignore_ascii_case(text))?;
            Some(format!("{} of machine {}", disk.path.display(), vm.name))
        });
    }
    let id: Uuid = text
        .parse()
        .ok()
        .filter(|id| guid(*id).eq_ignore_ascii_case(text))?;
    let (db, shown) = (&vmms.db, guid(id));
    if let Ok(vm) = db.get::<Vm>(id) {
        return Some(format!("{} ({shown})", vm.name));
    }
    if let Ok(point) = db.get::<Point>(id) {
        let of = vm_name(vmms, point.vm);
        return Some(format!("{} of machine {of} ({shown})", point.name));
    }
    if let Ok(snapshot) = db.get::<Snapshot>(id) {
        let of = vm_name(vmms, snapshot.vm);
        return Some(format!("{} of machine {of} ({shown})", snapshot.name));
    }
    if let Ok(collection) = db.get::<Collection>(id) {
        return Some(format!("{} ({shown})", collection.name));
    }
    if let Ok(point) = db.get::<CollectionPoint>(id) {
        let of = collection_name(vmms, point.collection);
        return Some(format!("{} of collection {of} ({shown})", point.name));
    }
    if let Ok(snapshot) = db.get::<CollectionSnapshot>(id) {
        let of = collection_name(vmms, snapshot.collection);
        return Some(format!("{} of collection {of} ({shown})", snapshot.name));
    }
    if let Ok(job) = db.get::<Job>(id) {
        return Some(format!("{} ({shown})", job.title));
    }
    let vms = db.all::<Vm>();
    for vm in &vms {
        for (_, disk) in vm.disks() {
            if disk.uid == id {
                return Some(format!("{} of machine {}", disk.path.display(), vm.name));
            }
            if disk.layers.nodes.contains_key(&id) {
                let points = db.all::<Point>();
                let point = points.iter().find(|p| p.disks.iter().any(|d| d.node == id));
                return Some(match point {
                    Some(p) => format!("{} of machine {} ({})", p.name, vm.name, guid(p.id)),
                    None => format!(
                        "an instant of {} that no point has ({shown})",
                        disk.path.display()
                    ),
                });
            }
        }
    }
    None
}

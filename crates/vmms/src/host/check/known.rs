//! What records and image headers refer to, and what processes have open.

use engine::Task as _;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Qcow2Layer;
use hypervisor::ImageFormat;
use serde_json::Value;
use uuid::Uuid;

use crate::disk_tree::{LayerTree, Pending};
use crate::job::Job;
use crate::machine::{Vm, spec};
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::{Dirs, Vmms};

/// A file whatever its name: device and inode.
type Inode = (u64, u64);

pub(super) fn inode(path: &Path) -> Option<Inode> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The records, and what follows from them.
pub(super) struct Known {
    pub(super) vms: Vec<Arc<Vm>>,
    pub(super) points: Vec<Arc<Point>>,
    pub(super) snapshots: Vec<Arc<Snapshot>>,
    /// Jobs that are not over.
    pub(super) running: Vec<Arc<Job>>,
    /// Every instant of every disk.
    pub(super) nodes: BTreeSet<Uuid>,
    /// Every layer of every disk.
    pub(super) layers: BTreeSet<Uuid>,
    /// Identifiers that running jobs speak of.
    spoken_of: BTreeSet<Uuid>,
    files: BTreeSet<Inode>,
    paths: BTreeSet<PathBuf>,
}

impl Known {
    pub(super) fn of(vmms: &Vmms) -> Self {
        let mut running = vmms.db.all::<Job>();
        running.retain(|j| !j.is_over());
        let mut known = Known {
            vms: vmms.db.all::<Vm>(),
            points: vmms.db.all::<Point>(),
            snapshots: vmms.db.all::<Snapshot>(),
            running,
            nodes: BTreeSet::new(),
            layers: BTreeSet::new(),
            spoken_of: BTreeSet::new(),
            files: BTreeSet::new(),
            paths: BTreeSet::new(),
        };
        let jobs = known.running.clone();
        for job in &jobs {
            known.spoken_of.extend(job.task.claims().ids());
            // What it has noted of its way may be in files already, and in no other record.
            ids_in(&job.notes, &mut known.spoken_of);
        }
        let (vms, snapshots) = (known.vms.clone(), known.snapshots.clone());
        for vm in vms
            .iter()
            .map(|vm| &**vm)
            .chain(snapshots.iter().map(|s| &*s.settings))
        {
            known
                .files
                .extend(vm.saved_state.as_deref().and_then(inode));
            for (_, disk) in vm.disks() {
                known.add(&disk.path);
                known.tree(&disk.layers);
            }
        }
        // What comes from another host, or is kept of what did not come whole, has no record of its own yet.
        for arrival in crate::migration::arrivals(vmms) {
            for file in arrival.reserves() {
                known.add(&file);
            }
            if let Some(cargo) = &arrival.cargo {
                let instants = cargo.points.iter().map(|p| p.id);
                let instants = instants.chain(cargo.snapshots.iter().map(|s| s.id));
                known.spoken_of.extend(instants.chain([cargo.vm.id]));
                for (_, disk) in cargo.vm.disks() {
                    known.spoken_of.insert(disk.uid);
                    known.tree(&disk.layers);
                }
            }
        }
        for memory in snapshots.iter().filter_map(|s| s.memory.as_deref()) {
            known.add(memory);
        }
        let points = known.points.clone();
        for memory in points.iter().filter_map(|p| p.memory.as_deref()) {
            known.add(memory);
        }
        known
    }

    fn add(&mut self, path: &Path) {
        self.paths.insert(path.to_owned());
        self.files.extend(inode(path));
    }

    fn tree(&mut self, tree: &LayerTree) {
        let pending = match &tree.pending {
            Some(Pending::Freeze { file, .. } | Pending::Branch { file }) => Some(file),
            _ => None,
        };
        if let Some(Pending::Freeze { node, .. }) = &tree.pending {
            self.nodes.insert(*node);
        }
        self.nodes.extend(tree.nodes.keys());
        let files = tree.nodes.values().filter_map(|n| n.file.as_ref());
        for file in files.chain(pending) {
            self.layers.insert(file.layer);
            self.add(&file.path);
            // Whatever the record says, what a layer names beneath itself is needed.
            if file.format == ImageFormat::Qcow2
                && let Some(beneath) = beneath(&file.path)
            {
                self.add(&beneath);
            }
        }
        for leftover in &tree.leftovers {
            self.add(leftover);
        }
    }

    /// Whether a record, or the header of a layer a record names, refers to this file.
    pub(super) fn names(&self, path: &Path) -> bool {
        self.paths.contains(path) || inode(path).is_some_and(|i| self.files.contains(&i))
    }

    /// Whether a running job speaks of this machine, point, disk or layer.
    pub(super) fn is_spoken_of(&self, id: Uuid) -> bool {
        self.spoken_of.contains(&id)
    }

    /// Whether a running job speaks of the machine of this run directory: some have no record.
    pub(super) fn is_run_dir_spoken_of(&self, dirs: &Dirs, dir: &Path) -> bool {
        self.spoken_of
            .iter()
            .any(|id| spec::run_dir(dirs, *id) == *dir)
    }

    /// Whether a running job works on this machine or on a point of it.
    pub(super) fn is_busy(&self, vm: Uuid) -> bool {
        let point = |id: &Uuid| self.points.iter().any(|p| p.id == *id && p.vm == vm);
        let snapshot = |id: &Uuid| self.snapshots.iter().any(|s| s.id == *id && s.vm == vm);
        self.is_spoken_of(vm) || self.spoken_of.iter().any(|id| point(id) || snapshot(id))
    }

    /// The directories where layers lie, or lay.
    pub(super) fn disk_dirs(&self) -> BTreeSet<PathBuf> {
        let parents = self.paths.iter().filter_map(|p| p.parent());
        parents.map(Path::to_owned).collect()
    }
}

/// What the header of an image names beneath it.
pub(super) fn beneath(image: &Path) -> Option<PathBuf> {
    let layer = Qcow2Layer::open(image).ok()?;
    let dir = image.parent().unwrap_or(Path::new("/"));
    Some(dir.join(layer.backing()?))
}

/// Every identifier in the texts of a value, also inside of paths.
fn ids_in(value: &Value, out: &mut BTreeSet<Uuid>) {
    match value {
        Value::String(text) => {
            let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
            out.extend(words.filter_map(|w| w.parse::<Uuid>().ok()));
        }
        Value::Array(items) => items.iter().for_each(|i| ids_in(i, out)),
        Value::Object(fields) => fields.values().for_each(|v| ids_in(v, out)),
        _ => {}
    }
}

/// The files that processes have open, as far as we may look.
pub(super) struct Opened {
    files: BTreeMap<Inode, u32>,
}

impl Opened {
    pub(super) fn now() -> Self {
        let mut files = BTreeMap::new();
        for process in super::entries(Path::new("/proc")) {
            let Ok(pid) = super::name_of(&process).parse::<u32>() else {
                continue;
            };
            for fd in super::entries(&process.join("fd")) {
                if let Some(inode) = inode(&fd) {
                    files.insert(inode, pid);
                }
            }
        }
        Opened { files }
    }

    /// A process that has this file open.
    pub(super) fn by(&self, path: &Path) -> Option<u32> {
        self.files.get(&inode(path)?).copied()
    }
}

/// A process that has this file open, as far as we may look.
pub(crate) fn open_by(path: &Path) -> Option<u32> {
    Opened::now().by(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_found_wherever_a_job_speaks_of_them() {
        let id = Uuid::from_u128(0xABCD);
        let text = format!("/x/{}/machine.json", crate::guid(id));
        let value = serde_json::json!({ "a": [{ "b": text }], "c": 7 });
        let mut out = BTreeSet::new();
        ids_in(&value, &mut out);
        assert_eq!(out, BTreeSet::from([id]));
    }

    #[test]
    fn an_open_file_is_known_by_its_process_until_it_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let file = std::fs::File::create(&path).expect("a file");
        assert_eq!(Opened::now().by(&path), Some(std::process::id()));
        drop(file);
        assert_eq!(Opened::now().by(&path), None);
    }
}

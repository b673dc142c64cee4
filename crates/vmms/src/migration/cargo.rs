//! What moves with a machine: its record, its points and snapshots, and all files that they name.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::collection::Collection;
use crate::disk_tree::Stamp;
use crate::machine::{Vm, spec};
use crate::point::{Point, point_dir};
use crate::snapshot::Snapshot;
use crate::{Element, Fault, Result, Vmms, fault};

/// A machine with everything that belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cargo {
    /// The machine.
    pub vm: Vm,
    /// Its reference points.
    pub points: Vec<Point>,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
    /// The files.
    pub files: Vec<CargoFile>,
    /// The state directory that paths of maps and points begin with.
    pub state: PathBuf,
}

/// A file that moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CargoFile {
    /// Unique among those of the machine.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
    /// The bytes it takes.
    pub allocated: u64,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FileKind {
    /// A layer of a disk.
    Layer {
        /// The disk.
        disk: Uuid,
        /// The layer.
        layer: Uuid,
        /// Its format.
        format: ImageFormat,
        /// Others may use it, too: it is not deleted here, and may be there already.
        shared: bool,
    },
    /// A file of the service's own, by its place in the state directory.
    State(PathBuf),
}

impl Cargo {
    /// The bytes that all files take.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.allocated).sum()
    }

    /// The file of that name.
    pub(crate) fn file(&self, name: &str) -> Option<&CargoFile> {
        self.files.iter().find(|f| f.name == name)
    }

    /// What a source may not say, since it would reach beyond the machine's own: identifiers that do not belong together, and
    /// places outside of those of a machine.
    pub(crate) fn check(&self) -> Result<()> {
        let refused = |what: String| Err(fault!(CargoRefused, self.vm.name, what));
        let own: BTreeSet<String> = self
            .points
            .iter()
            .map(|p| p.id)
            .chain(self.snapshots.iter().map(|s| s.id))
            .chain(self.vm.disks().map(|(_, d)| d.uid))
            .chain([self.vm.id])
            .map(|id| id.to_string())
            .collect();
        let alien = self.points.iter().any(|p| p.vm != self.vm.id)
            || self.snapshots.iter().any(|s| s.vm != self.vm.id);
        if alien {
            return refused("it brings points of another machine".to_owned());
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !names.insert(&file.name) {
                return refused(format!("it brings two files {}", file.name));
            }
            let FileKind::State(place) = &file.kind else {
                continue;
            };
            let parts: Vec<_> = place.components().collect();
            let plain = parts.iter().all(|p| matches!(p, Component::Normal(_)));
            let text = |at: usize| parts.get(at).and_then(|p| p.as_os_str().to_str());
            let known = matches!(text(0), Some("maps" | "points" | "vm"))
                && text(1).is_some_and(|id| own.contains(id))
                && parts.len() == 3;
            if !plain || !known {
                let shown = place.display();
                return refused(format!("it brings {shown}, which is no place of a machine"));
            }
        }
        Ok(())
    }
}

/// Everything of a machine whose files stand still. The caller has settled its layers.
pub(crate) fn gather(vmms: &Vmms, id: Uuid) -> Result<Cargo> {
    let vm = vmms.db.get::<Vm>(id)?;
    unmovable(vmms, &vm)?;
    let live = super::depart::runs(&vm);
    let own = |of: Uuid| of == id;
    let points: Vec<Arc<Point>> = vmms.db.all::<Point>();
    let snapshots: Vec<Arc<Snapshot>> = vmms.db.all::<Snapshot>();
    let points: Vec<Point> = points
        .iter()
        .filter(|p| own(p.vm) && p.complete)
        .map(|p| (**p).clone())
        .collect();
    let snapshots: Vec<Snapshot> = snapshots
        .iter()
        .filter(|s| own(s.vm) && s.complete)
        .map(|s| (**s).clone())
        .collect();
    let mut files = Vec::new();
    for (_, disk) in vm.disks() {
        for (node_id, node) in &disk.layers.nodes {
            let Some(file) = &node.file else { continue };
            // What a guest writes to is mirrored.
            if live && !disk.read_only && *node_id == disk.layers.active {
                continue;
            }
            if let Some(stamp) = node.stamp {
                let found =
                    Stamp::of(&file.path).map_err(|e| Fault::io("look at", &file.path, &e))?;
                if found != stamp {
                    let shown = file.path.display();
                    return Err(fault!(ImageTampered, shown, "it was frozen"));
                }
            }
            let kind = FileKind::Layer {
                disk: disk.uid,
                layer: file.layer,
                format: file.format,
                shared: file.shared || disk.read_only,
            };
            files.push(cargo_file(
                format!("layer/{}", file.layer),
                kind,
                &file.path,
            )?);
        }
        let maps = disk.layers.nodes.values().filter_map(|n| n.map.as_ref());
        for map in maps.filter(|map| map.exists()) {
            files.push(state_file(vmms, map)?);
        }
    }
    let instants = points.iter().map(|p| p.id);
    let dirs = instants
        .chain(snapshots.iter().map(|s| s.id))
        .map(|instant| point_dir(vmms, instant))
        .chain([spec::state_dir(&vmms.dirs, id)]);
    for dir in dirs {
        for path in files_in(&dir)? {
            // What a user of this host may open says nothing there.
            let granted = path == spec::granted(&vmms.dirs, id);
            // A log that grows while it is read is not worth a failed move.
            let grows = live && path == spec::console_log(&vmms.dirs, id);
            if !granted && !grows {
                files.push(state_file(vmms, &path)?);
            }
        }
    }
    Ok(Cargo {
        vm: (*vm).clone(),
        points,
        snapshots,
        files,
        state: vmms.dirs.state.clone(),
    })
}

/// Refuses what cannot move, each with its reason.
fn unmovable(vmms: &Vmms, vm: &Vm) -> Result<()> {
    let refused = |why: String| Err(fault!(MoveNotServed, vm.name, why).about(Element::Vm(vm.id)));
    let groups: Vec<Arc<Collection>> = vmms.db.all::<Collection>();
    if let Some(group) = groups.iter().find(|g| g.members.contains(&vm.id)) {
        return refused(format!(
            "it is a member of the collection {}; take it out of it first",
            group.name
        ));
    }
    let points: Vec<Arc<Point>> = vmms.db.all::<Point>();
    let snapshots: Vec<Arc<Snapshot>> = vmms.db.all::<Snapshot>();
    let of_group = points
        .iter()
        .any(|p| p.vm == vm.id && p.collection_point.is_some())
        || snapshots
            .iter()
            .any(|s| s.vm == vm.id && s.collection_snapshot.is_some());
    if of_group {
        return refused(
            "it has points or snapshots of a collection, whose other members stay; delete them first"
                .to_owned(),
        );
    }
    for (_, disk) in vm.disks() {
        if disk.layers.pending.is_some() {
            return refused(format!(
                "a change of the layers of {} is not finished",
                disk.path.display()
            ));
        }
        let files = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
        for file in files {
            let meta = std::fs::symlink_metadata(&file.path);
            let meta = meta.map_err(|e| Fault::io("open", &file.path, &e))?;
            if meta.file_type().is_block_device() || meta.file_type().is_symlink() {
                return refused(format!(
                    "{} is no plain file; copy the disk into an image file first",
                    file.path.display()
                ));
            }
        }
    }
    Ok(())
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Fault::io("read", dir, &e);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}

fn state_file(vmms: &Vmms, path: &Path) -> Result<CargoFile> {
    let place = path.strip_prefix(&vmms.dirs.state).map_err(|_| {
        let what = format!("{} is not in the state directory", path.display());
        fault!(Internal, what)
    })?;
    let name = format!("state/{}", place.display());
    cargo_file(name, FileKind::State(place.to_owned()), path)
}

fn cargo_file(name: String, kind: FileKind, path: &Path) -> Result<CargoFile> {
    let meta = std::fs::metadata(path).map_err(|e| Fault::io("look at", path, &e))?;
    Ok(CargoFile {
        name,
        kind,
        path: path.to_owned(),
        length: meta.len(),
        allocated: meta.blocks().saturating_mul(512),
    })
}

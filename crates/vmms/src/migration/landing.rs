//! Where what comes goes here, and whether it can.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::host::Room;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Host;
use super::cargo::{Cargo, FileKind};
use super::permit::{Arrival, ArrivalState, Landed};
use super::said::Proposal;
use crate::disk_tree::LayerTree;
use crate::machine::{DeviceKind, Vm, check_images, spec, validate};
use crate::point::{Point, PointDisk};
use crate::snapshot::Snapshot;
use crate::{Element, Fault, Result, Use, Vmms, fault, guid};

/// The places of a machine that comes, by where its files are at the source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Places {
    of: BTreeMap<PathBuf, PathBuf>,
    state: (PathBuf, PathBuf),
}

impl Places {
    /// Where the files of a proposal go on this host.
    pub(crate) fn new(vmms: &Vmms, proposal: &Proposal) -> Result<Self> {
        let cargo = &proposal.cargo;
        let mut of = BTreeMap::new();
        for (_, disk) in cargo.vm.disks() {
            let image = image_place(proposal, &disk.path)?;
            for node in disk.layers.nodes.values() {
                let Some(file) = &node.file else { continue };
                let place = layer_place(proposal, &disk.path, &image, &file.path)?;
                of.insert(file.path.clone(), place);
            }
            of.insert(disk.path.clone(), image);
        }
        Ok(Places {
            of,
            state: (cargo.state.clone(), vmms.dirs.state.clone()),
        })
    }

    /// Where a file goes.
    fn at(&self, path: &Path) -> PathBuf {
        if let Some(place) = self.of.get(path) {
            return place.clone();
        }
        match path.strip_prefix(&self.state.0) {
            Ok(place) => self.state.1.join(place),
            Err(_) => path.to_owned(),
        }
    }

    fn turn(&self, path: &mut PathBuf) {
        *path = self.at(path);
    }

    fn tree(&self, tree: &mut LayerTree) {
        for node in tree.nodes.values_mut() {
            if let Some(file) = &mut node.file {
                self.turn(&mut file.path);
            }
            if let Some(map) = &mut node.map {
                self.turn(map);
            }
        }
        // They stay at the source, and go there.
        tree.leftovers.clear();
    }

    /// A machine as it is here.
    pub(crate) fn machine(&self, vm: &mut Vm) {
        for (_, disk) in vm.disks_mut() {
            self.turn(&mut disk.path);
            self.tree(&mut disk.layers);
        }
        if let Some(saved) = &mut vm.saved_state {
            self.turn(saved);
        }
        let settings = &mut vm.settings;
        for root in [
            &mut settings.configuration_data_root,
            &mut settings.snapshot_data_root,
            &mut settings.suspend_data_root,
            &mut settings.swap_file_data_root,
        ] {
            *root = self.at(Path::new(root.as_str())).display().to_string();
        }
    }

    fn disks(&self, disks: &mut [PointDisk]) {
        for disk in disks {
            self.turn(&mut disk.path);
            if let Some(blocks) = &mut disk.blocks {
                self.turn(blocks);
            }
        }
    }

    fn point(&self, point: &mut Point) {
        self.turn(&mut point.config);
        if let Some(memory) = &mut point.memory {
            self.turn(memory);
        }
        self.disks(&mut point.disks);
    }

    fn snapshot(&self, snapshot: &mut Snapshot) {
        self.machine(&mut snapshot.settings);
        self.turn(&mut snapshot.config);
        if let Some(memory) = &mut snapshot.memory {
            self.turn(memory);
        }
        self.disks(&mut snapshot.disks);
    }

    /// Everything as it is here; the files keep the names they came with.
    pub(crate) fn cargo(&self, cargo: &Cargo, host: &str) -> Cargo {
        let mut here = cargo.clone();
        self.machine(&mut here.vm);
        host.clone_into(&mut here.vm.owner);
        here.points.iter_mut().for_each(|p| self.point(p));
        here.snapshots.iter_mut().for_each(|s| self.snapshot(s));
        for file in &mut here.files {
            file.path = match &file.kind {
                FileKind::State(place) => self.state.1.join(place),
                FileKind::Layer { .. } => self.at(&file.path),
            };
        }
        here
    }
}

fn named_place(proposal: &Proposal, path: &Path) -> Result<Option<PathBuf>> {
    if let Some((_, place)) = proposal
        .disk_locations
        .iter()
        .find(|(from, _)| from == path)
    {
        return Ok(Some(place.clone()));
    }
    let Some(root) = &proposal.disk_root else {
        return Ok(None);
    };
    let name = path
        .file_name()
        .ok_or_else(|| fault!(PathNotUsable, path.display(), "it has no file name"))?;
    Ok(Some(root.join(name)))
}

fn image_place(proposal: &Proposal, image: &Path) -> Result<PathBuf> {
    Ok(named_place(proposal, image)?.unwrap_or_else(|| image.to_owned()))
}

/// Layers stay beside their image and are named after it.
fn layer_place(proposal: &Proposal, image: &Path, to: &Path, layer: &Path) -> Result<PathBuf> {
    if layer == image {
        return Ok(to.to_owned());
    }
    if layer.parent() != image.parent() {
        return image_place(proposal, layer);
    }
    let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).map(str::to_owned);
    let own =
        name(layer).ok_or_else(|| fault!(PathNotUsable, layer.display(), "its name is no text"))?;
    let renamed = name(image).zip(name(to)).and_then(|(before, now)| {
        let rest = own.strip_prefix(&before)?;
        rest.starts_with(".kvmms-").then(|| format!("{now}{rest}"))
    });
    Ok(to.with_file_name(renamed.unwrap_or(own)))
}

/// Where a file is put together before it is in its place.
pub(crate) fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".kvmms-moving");
    name.into()
}

/// The moves of that machine from the same host that broke off, the oldest first: what came of them is there for the next.
pub(crate) fn earlier(vmms: &Vmms, pin: &str, vm: Uuid) -> Vec<Arc<Arrival>> {
    let mut earlier = vmms.db.all::<Arrival>();
    earlier.retain(|a| {
        let kept = a.state == ArrivalState::Ended && a.kept_until.is_some();
        a.vm == vm && a.pin == pin && (kept || a.state == ArrivalState::Incoming)
    });
    earlier.sort_by_key(|a| a.changed);
    earlier
}

/// What an earlier move of the same machine left here for this one.
pub(crate) fn kept(vmms: &Vmms, pin: &str, cargo: &Cargo) -> BTreeMap<String, Landed> {
    let mut out = BTreeMap::new();
    for arrival in earlier(vmms, pin, cargo.vm.id) {
        for (name, landed) in &arrival.files {
            if cargo.file(name).is_some_and(|f| f.path == landed.path) {
                out.insert(name.clone(), landed.clone());
            }
        }
    }
    out
}

/// Everything that speaks against a machine on this host, before anything of it is here. `cargo` is as it is to be here.
pub(crate) async fn objections(
    vmms: &Arc<Vmms>,
    (id, host): (Uuid, &Host),
    cargo: &Cargo,
    kept: &BTreeMap<String, Landed>,
    overwrite: bool,
) -> Vec<Fault> {
    let mut found = Vec::new();
    let vm = &cargo.vm;
    if let Ok(there) = vmms.db.get::<Vm>(vm.id) {
        found.push(fault!(MachineThere, there.name, guid(vm.id)).about(Element::Vm(vm.id)));
    }
    let coming = super::arrivals(vmms)
        .into_iter()
        .filter(|a| a.id != id && a.pin != host.fingerprint)
        .find(|a| a.vm == vm.id && a.state == ArrivalState::Incoming);
    if let Some(other) = coming {
        found.push(fault!(MachineComing, other.name, other.from));
    }
    found.extend(validate(vm).err());
    let all: Vec<Vm> = vmms.db.all::<Vm>().iter().map(|v| (**v).clone()).collect();
    found.extend(check_images(&all, vm).err());
    let mut taken = BTreeSet::new();
    for file in &cargo.files {
        if !taken.insert(&file.path) {
            found.push(fault!(PlaceTaken, file.path.display()));
        }
        let FileKind::Layer { shared, .. } = file.kind else {
            continue;
        };
        found.extend(vmms.may_use(Use::Image, &file.path).err());
        if file.path.exists() && !shared && !overwrite && !kept.contains_key(&file.name) {
            found.push(fault!(PlaceTaken, file.path.display()));
        }
    }
    for device in &vm.devices {
        if let DeviceKind::Dvd { path, .. } = &device.kind {
            found.extend(crate::trusted::check_medium(vmms, path).err());
        }
    }
    match spec::machine_config(vm, &vmms.dirs, &vmms.options) {
        Err(error) => found.push(error),
        Ok(config) => match vmms.hypervisor.features().await {
            Err(error) => found.push(fault!(Hypervisor).caused_by(error)),
            Ok(features) => found.extend(features.machine_type(&config).err().map(Fault::from)),
        },
    }
    found.extend(room(vmms, id, cargo, kept).err());
    found
}

/// Whether there is room for what is still to come, beside what others were promised.
fn room(vmms: &Vmms, id: Uuid, cargo: &Cargo, kept: &BTreeMap<String, Landed>) -> Result<()> {
    let mut needed: BTreeMap<u64, (Room, PathBuf, u64)> = BTreeMap::new();
    let mut add = |cargo: &Cargo, there: &BTreeMap<String, Landed>| {
        for file in &cargo.files {
            let whole = there.get(&file.name).is_some_and(|l| l.digest.is_some());
            let dir = file.path.ancestors().skip(1).find(|dir| dir.is_dir());
            let Some(room) = dir.and_then(|dir| (vmms.options.room.look)(dir)) else {
                continue;
            };
            let begun = std::fs::metadata(part_of(&file.path)).map_or(0, |m| m.len());
            let left = if whole {
                0
            } else {
                file.allocated.saturating_sub(begun)
            };
            let place = dir.unwrap_or(Path::new("/")).to_owned();
            needed.entry(room.device).or_insert((room, place, 0)).2 += left;
        }
    };
    add(cargo, kept);
    for other in super::arrivals(vmms) {
        if let Some(cargo) = other.cargo.as_ref().filter(|_| other.id != id) {
            add(cargo, &other.files);
        }
    }
    for (room, place, bytes) in needed.into_values() {
        if bytes > room.free {
            let shown = place.display();
            return Err(fault!(NoRoomThere, cargo.vm.name, shown, bytes, room.free));
        }
    }
    Ok(())
}

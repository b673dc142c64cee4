//! Kvmms_Disk: the disks of the machines as they really lie on the host.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path as FilePath;

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::class;
use vmms::Fault;
use vmms::disk_tree::LayerTree;
use vmms::guid;
use vmms::machine::{Disk, Vm};

use crate::object::{self, Object, What, resource_id};
use crate::view::{Provider, View};

pub(crate) struct Disks;

impl Disks {
    fn list(&self, view: &View, _class: &str) -> Vec<Object> {
        view.all::<Vm>().iter().flat_map(|vm| objects(vm)).collect()
    }

    fn find(&self, view: &View, _class: &str, path: &Path) -> Vec<Object> {
        let id = path
            .get_str("InstanceID")
            .or_else(|| path.get_str(""))
            .and_then(object::guid_in);
        let vm = id.and_then(|id| view.get::<Vm>(id).ok());
        let mut all = vm.map(|vm| objects(&vm)).unwrap_or_default();
        all.retain(|o| o.is_named_by(path));
        all
    }
}

#[async_trait]
impl Provider for Disks {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_DISK]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(match wanted {
            Some(path) => self.find(view, class, path),
            None => self.list(view, class),
        })
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

fn objects(vm: &Vm) -> Vec<Object> {
    let object = |(device, disk): (&str, &Disk)| {
        let what = What::fixed_of(instance(vm, device, disk), vec![vm.id]);
        Object::with_id(class::KVMMS_DISK, resource_id(vm.id, device), what)
    };
    vm.disks().map(object).collect()
}

fn instance(vm: &Vm, device: &str, disk: &Disk) -> Instance {
    let tree = &disk.layers;
    let chain = tree.active_chain();
    let layers = chain.iter().map(|l| {
        let shared = if l.shared {
            ", shared: never written"
        } else {
            ""
        };
        format!("{} ({}{shared})", l.path.display(), l.format.as_str())
    });
    let name = vm.device(device).map_or("", |d| d.name.as_str());
    let mut i = Instance::new(class::KVMMS_DISK);
    i.set("Caption", "Disk")
        .set("Description", format!("Disk of {}", vm.name))
        .set("ElementName", name)
        .set("VirtualSystemIdentifier", guid(vm.id))
        .set("VirtualSystemName", vm.name.as_str())
        .set("DiskIdentifier", guid(disk.uid))
        .set("Path", disk.path.display().to_string())
        .set("Format", disk.format.as_str())
        .set("Size", tree.nodes.get(&tree.active).map(|n| n.size))
        .set("AllocatedSize", allocated(tree))
        .set("ReadOnly", disk.read_only)
        .set(
            "ActiveFile",
            chain.last().map(|l| l.path.display().to_string()),
        )
        .set("Layers", layers.collect::<Vec<_>>())
        .set("LayerCount", u32::try_from(chain.len()).unwrap_or(u32::MAX))
        .set("Instants", instants(tree))
        .set("Warning", warning(tree, chain.len()));
    i
}

/// What all files of a disk take, each counted once.
fn allocated(tree: &LayerTree) -> u64 {
    let files: BTreeSet<&FilePath> = tree
        .nodes
        .values()
        .filter_map(|n| n.file.as_ref())
        .map(|f| f.path.as_path())
        .collect();
    // The files beneath the first node of an image with backing files hang on nodes of their own.
    files.into_iter().map(allocated_file).sum()
}

/// What a file takes on the host, in bytes; 0 where it cannot be asked.
pub(super) fn allocated_file(path: &FilePath) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.blocks().saturating_mul(512))
}

fn instants(tree: &LayerTree) -> Vec<String> {
    let line = tree.line(tree.active);
    let side = tree.nodes.keys().filter(|id| !line.contains(id));
    let mut out = Vec::new();
    for id in line.iter().chain(side) {
        let Some(node) = tree.nodes.get(id) else {
            continue;
        };
        let state = match (*id == tree.active, &node.file, node.lost) {
            (_, _, true) => "changed by something else: lost",
            (true, _, _) => "the present",
            (false, Some(_), _) => "can be read",
            (false, None, _) => "base of differences only",
        };
        out.push(format!("{}: {} bytes, {state}", guid(*id), node.size));
    }
    out
}

fn warning(tree: &LayerTree, layers: usize) -> Option<String> {
    let mut out = Vec::new();
    if tree.nodes.values().any(|n| n.lost) {
        out.push("a file of this disk was changed by something other than kvmms");
    }
    if layers > 1 {
        out.push("the base file alone is not the whole disk while layers exist");
    }
    (!out.is_empty()).then(|| out.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmms::ImageFormat;
    use vmms::disk_tree::{Frozen, LayerRef};

    #[test]
    fn a_disk_with_a_layer_warns_that_the_base_file_is_not_the_whole_disk() {
        let mut tree = LayerTree::new("/x/a.raw".into(), ImageFormat::Raw, 4096);
        assert_eq!(warning(&tree, tree.active_chain().len()), None);
        let file = LayerRef {
            layer: uuid::Uuid::from_u128(7),
            path: "/x/a.raw.kvmms-7.qcow2".into(),
            format: ImageFormat::Qcow2,
            shared: false,
        };
        tree.freeze(
            uuid::Uuid::from_u128(8),
            file,
            Frozen {
                size: 4096,
                ..Frozen::default()
            },
        );
        let warned = warning(&tree, tree.active_chain().len());
        assert!(warned.is_some_and(|w| w.contains("base file alone")));
        let instants = instants(&tree);
        assert_eq!(instants.len(), 2);
        assert!(instants.iter().any(|i| i.ends_with("the present")));
        assert!(instants.iter().any(|i| i.ends_with("can be read")));
    }
}

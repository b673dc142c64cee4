//! CIM_DataFile: the files of the machines' disks, and the one name by which clients ask for the service's version.
//! No other file of the host is told about.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use uuid::Uuid;
use vmms::Fault;
use vmms::machine::{DeviceKind, Vm};

use super::cimv2::LEVEL;
use crate::object::{Object, What};
use crate::view::{Provider, View, named};

pub(crate) struct Files;

const CLASS: &str = "CIM_DataFile";

/// libvirt reads the version of this file as the hypervisor's.
const SERVICE_FILE: &str = r"c:\windows\system32\vmms.exe";

impl Files {
    fn list(&self, view: &View) -> Vec<Object> {
        let mut out = vec![service_file(view)];
        out.extend(
            disk_files(view)
                .into_iter()
                .map(|(path, (kind, vms))| file(view, &path, kind, vms)),
        );
        out
    }
}

#[async_trait]
impl Provider for Files {
    fn namespace(&self) -> &'static str {
        "root/cimv2"
    }

    fn classes(&self) -> &'static [&'static str] {
        &[CLASS]
    }

    async fn objects(
        &self,
        view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(self.list(view), wanted))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

/// The format of a file, and the machines it belongs to.
type Owned = (&'static str, Vec<Uuid>);

fn disk_files(view: &View) -> BTreeMap<PathBuf, Owned> {
    let mut out: BTreeMap<PathBuf, Owned> = BTreeMap::new();
    let mut add = |path: &PathBuf, kind, vm| {
        let owned = out.entry(path.clone()).or_insert((kind, Vec::new()));
        owned.0 = kind;
        owned.1.push(vm);
    };
    for vm in view.all::<Vm>() {
        for device in &vm.devices {
            match &device.kind {
                DeviceKind::Disk(disk) => {
                    let layers = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
                    layers.for_each(|l| add(&l.path, l.format.as_str(), vm.id));
                }
                DeviceKind::Dvd { path, .. } => add(path, "iso", vm.id),
                _ => {}
            }
        }
    }
    out
}

fn object(view: &View, name: String, mut i: Instance, vms: Vec<Uuid>) -> Object {
    i.set("CreationClassName", CLASS)
        .set("CSCreationClassName", "Win32_ComputerSystem")
        .set("CSName", view.host.as_str())
        .set("FSCreationClassName", "Win32_FileSystem")
        .set("Status", "OK")
        .set("Compressed", false)
        .set("Encrypted", false)
        .set("System", false);
    Object {
        class: CLASS,
        keys: vec![("Name", name)],
        what: What::fixed_of(i, vms),
    }
}

fn service_file(view: &View) -> Object {
    let i = Instance::new(CLASS)
        .with("Caption", SERVICE_FILE)
        .with(
            "Description",
            format!("Stands for kvmmsd {}", env!("CARGO_PKG_VERSION")),
        )
        .with("FileName", "vmms")
        .with("Extension", "exe")
        .with("Manufacturer", "kvmms")
        .with("Version", format!("{LEVEL}.1"));
    object(view, SERVICE_FILE.to_owned(), i, Vec::new())
}

fn file(view: &View, path: &std::path::Path, kind: &str, vms: Vec<Uuid>) -> Object {
    let name = path.display().to_string();
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
    let mut i = Instance::new(CLASS);
    i.set("Caption", name.as_str())
        .set("Description", name.as_str())
        .set("FileName", text(path.file_stem()))
        .set("Extension", text(path.extension()))
        .set("FileType", kind)
        .set("Path", path.parent().map(|p| p.display().to_string()))
        .set(
            "Hidden",
            text(path.file_name()).is_some_and(|n| n.starts_with('.')),
        );
    if let Ok(meta) = std::fs::metadata(path) {
        let time = |t: std::io::Result<std::time::SystemTime>| t.ok().map(Datetime::from);
        i.set("FileSize", meta.len())
            .set("LastModified", time(meta.modified()))
            .set("LastAccessed", time(meta.accessed()))
            .set("CreationDate", time(meta.created()))
            .set("Readable", meta.mode() & 0o444 != 0)
            .set("Writeable", meta.mode() & 0o222 != 0);
    }
    object(view, name, i, vms)
}

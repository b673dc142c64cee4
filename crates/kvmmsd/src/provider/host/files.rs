//! CIM_DataFile: the files of the machines' disks, and the one name by which clients ask for the service's version.
//! No other file of the host is told about.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cim::{Datetime, Instance};
use vmms::vm::{DeviceKind, Vm};

use super::cimv2::LEVEL;
use crate::Service;
use crate::object::{Object, What};
use crate::provider::Provider;

pub(crate) struct Files;

const CLASS: &str = "CIM_DataFile";

/// libvirt reads the version of this file as the hypervisor's.
const SERVICE_FILE: &str = r"c:\windows\system32\vmms.exe";

#[async_trait]
impl Provider for Files {
    fn namespace(&self) -> &'static str {
        "root/cimv2"
    }

    fn classes(&self) -> &'static [&'static str] {
        &[CLASS]
    }

    fn list(&self, service: &Service, _class: &str) -> Vec<Object> {
        let mut out = vec![service_file(service)];
        out.extend(
            disk_files(service)
                .into_iter()
                .map(|(path, kind)| file(service, &path, kind)),
        );
        out
    }

    fn instance(&self, _service: &Service, object: &Object) -> Instance {
        object.fixed()
    }
}

fn disk_files(service: &Service) -> BTreeMap<PathBuf, &'static str> {
    let mut out = BTreeMap::new();
    for vm in service.vmms.db.all::<Vm>() {
        for device in &vm.devices {
            match &device.kind {
                DeviceKind::Disk(disk) => {
                    let layers = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
                    out.extend(layers.map(|l| (l.path.clone(), l.format.as_str())));
                }
                DeviceKind::Dvd { path, .. } => drop(out.insert(path.clone(), "iso")),
                _ => {}
            }
        }
    }
    out
}

fn named(service: &Service, name: String, mut i: Instance) -> Object {
    i.set("CreationClassName", CLASS)
        .set("CSCreationClassName", "Win32_ComputerSystem")
        .set("CSName", service.host.as_str())
        .set("FSCreationClassName", "Win32_FileSystem")
        .set("Status", "OK")
        .set("Compressed", false)
        .set("Encrypted", false)
        .set("System", false);
    Object {
        class: CLASS,
        keys: vec![("Name", name)],
        what: What::Fixed(Arc::new(i)),
    }
}

fn service_file(service: &Service) -> Object {
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
    named(service, SERVICE_FILE.to_owned(), i)
}

fn file(service: &Service, path: &std::path::Path, kind: &str) -> Object {
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
    named(service, name, i)
}

//! Win32_LogicalDisk: the local file systems of the host, so that clients see where there is room.
//!
//! A file system is named by its mount point. Those of other hosts are left out: one that does not answer would hold up
//! every reader.

use async_trait::async_trait;
use cim::{Instance, Path};
use vmms::Fault;

use crate::object::{Object, What};
use crate::view::{Provider, View, named};

pub(crate) struct FileSystems;

const CLASS: &str = "Win32_LogicalDisk";

impl FileSystems {
    fn list(&self, view: &View) -> Vec<Object> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounted(&mounts)
            .iter()
            .filter_map(|m| object(view, m))
            .collect()
    }
}

#[async_trait]
impl Provider for FileSystems {
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

/// A mounted file system.
#[derive(Debug, PartialEq)]
struct Mount {
    device: String,
    point: String,
    kind: String,
    read_only: bool,
}

/// The local file systems of a mount table, each once, at its shortest mount point.
fn mounted(table: &str) -> Vec<Mount> {
    let mut out: Vec<Mount> = Vec::new();
    for line in table.lines() {
        let mut fields = line.split(' ').map(unescaped);
        let (Some(device), Some(point), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if !device.starts_with("/dev/") {
            continue;
        }
        let read_only = options.split(',').any(|o| o == "ro");
        let mount = Mount {
            device,
            point,
            kind,
            read_only,
        };
        match out.iter_mut().find(|m| m.device == mount.device) {
            Some(known) if mount.point.len() < known.point.len() => *known = mount,
            Some(_) => {}
            None => out.push(mount),
        }
    }
    out
}

/// The kernel writes blanks, tabs, line ends and backslashes as three octal digits.
fn unescaped(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

fn object(view: &View, mount: &Mount) -> Option<Object> {
    let stat = rustix::fs::statvfs(mount.point.as_str()).ok()?;
    let bytes = |blocks: u64| blocks.checked_mul(stat.f_frsize);
    let mut i = Instance::new(CLASS);
    i.set("Caption", mount.point.as_str())
        .set("Description", format!("{} on {}", mount.kind, mount.device))
        .set("Name", mount.point.as_str())
        .set("Status", "OK")
        // 1: readable, 3: readable and writable.
        .set("Access", if mount.read_only { 1u16 } else { 3 })
        .set("BlockSize", stat.f_frsize)
        .set("NumberOfBlocks", stat.f_blocks)
        .set("Compressed", false)
        .set("CreationClassName", CLASS)
        // 3: local disk, 12: fixed medium.
        .set("DriveType", 3u32)
        .set("MediaType", 12u32)
        .set("FileSystem", mount.kind.as_str())
        .set("Size", bytes(stat.f_blocks))
        .set("FreeSpace", bytes(stat.f_bavail))
        .set("MaximumComponentLength", u32::try_from(stat.f_namemax).ok())
        .set("SystemCreationClassName", "Win32_ComputerSystem")
        .set("SystemName", view.host.as_str())
        .set("VolumeName", mount.device.as_str());
    let what = What::fixed(i);
    Some(Object {
        class: CLASS,
        keys: vec![("DeviceID", mount.point.clone())],
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_file_systems_stand_once_at_their_shortest_mount_point() {
        let table = "proc /proc proc rw 0 0\n/dev/sda1 /srv/a\\040b ext4 ro,relatime 0 0\n/dev/sda2 / xfs rw 0 0\n/dev/sda1 /d ext4 ro 0 0\nhost:/x /net nfs rw 0 0\nbroken\n";
        let found = mounted(table);
        let shape: Vec<_> = found
            .iter()
            .map(|m| (m.point.as_str(), m.kind.as_str(), m.read_only))
            .collect();
        assert_eq!(shape, [("/d", "ext4", true), ("/", "xfs", false)]);
    }

    #[test]
    fn escaped_characters_of_the_mount_table_are_read() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/a\\04"), "/a\\04");
        assert_eq!(unescaped("/ä\\"), "/ä\\");
    }
}

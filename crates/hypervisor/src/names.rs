//! Deterministic names, so that a restarted service finds its nodes, devices, jobs and sockets again.
//!
//! QEMU limits a node name to 31 characters, too short for a GUID in hex beside a prefix. A layer's node is therefore
//! `L` and the GUID's 26 characters of base 32, which reads back; its protocol node has `.f` appended.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::error::{Error, Result};

/// Longest layer node name: QEMU's 31 less our `.f`.
pub const NODE_NAME_MAX: usize = 29;
/// Longest path of a Unix socket on Linux.
pub const SOCKET_PATH_MAX: usize = 107;

const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The node name of a layer.
#[must_use]
pub fn layer_node(layer: Uuid) -> String {
    let mut value = layer.as_u128();
    let mut digits = [0_u8; 26];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS.get((value & 31) as usize).copied().unwrap_or(b'0');
        value >>= 5;
    }
    let mut name = String::with_capacity(27);
    name.push('L');
    name.extend(digits.iter().map(|&digit| char::from(digit)));
    name
}

/// The layer whose node has this name, if [`layer_node`] made it.
#[must_use]
pub fn layer_of_node(name: &str) -> Option<Uuid> {
    let digits = name.strip_prefix('L').filter(|digits| digits.len() == 26)?;
    let mut value = 0_u128;
    for (place, byte) in digits.bytes().enumerate() {
        let digit = DIGITS.iter().position(|&known| known == byte)?;
        // 26 digits carry 130 bits: the first may only use three of its five.
        if place == 0 && digit > 7 {
            return None;
        }
        value = (value << 5) | digit as u128;
    }
    Some(Uuid::from_u128(value))
}

/// The node of a layer's file itself.
#[must_use]
pub fn file_node(layer_node: &str) -> String {
    format!("{layer_node}.f")
}

/// QEMU's id of the device of a drive.
#[must_use]
pub fn device(drive_id: &str) -> String {
    format!("drive-{drive_id}")
}

/// The drive behind a device id or QOM path such as `/machine/peripheral/drive-sda`.
#[must_use]
pub fn drive_of_device(device: &str) -> Option<&str> {
    let id = device
        .strip_prefix("/machine/peripheral/")
        .unwrap_or(device);
    id.split('/').next()?.strip_prefix("drive-")
}

/// The id of the job that commits down to and into `base_node`, with `top_node` as the uppermost layer that goes.
#[must_use]
pub fn commit_job(top_node: &str) -> String {
    format!("commit-{top_node}")
}

/// The id of the NBD export of a drive.
#[must_use]
pub fn export(drive_id: &str) -> String {
    format!("export-{drive_id}")
}

/// What belongs to the move of a drive: its NBD export and its job.
#[must_use]
pub fn of_move(drive_id: &str) -> String {
    format!("move-{drive_id}")
}

/// The drive behind such a name.
#[must_use]
pub fn drive_of_move(name: &str) -> Option<&str> {
    name.strip_prefix("move-").filter(|drive| !drive.is_empty())
}

/// The node of the other side's disk, named after the active layer here: a drive's id may be longer than QEMU's limit.
#[must_use]
pub fn move_node(layer_node: &str) -> String {
    format!("{layer_node}.m")
}

/// Whether [`move_node`] made it.
#[must_use]
pub fn is_move_node(name: &str) -> bool {
    name.ends_with(".m")
}

/// The files in a machine's run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFiles {
    dir: PathBuf,
}

impl RunFiles {
    /// The files beneath `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The service's monitor socket.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// A second monitor socket, for people and tools.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.dir.join("monitor.sock")
    }

    /// The guest agent's socket.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// The NBD server's socket.
    #[must_use]
    pub fn nbd(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// QEMU's pid file.
    #[must_use]
    pub fn pid(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    /// Who the process is: pid, start time, boot id.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.dir.join("qemu.identity")
    }

    /// There while the guest's file systems may be frozen; names the freeze.
    #[must_use]
    pub fn frozen(&self) -> PathBuf {
        self.dir.join("frozen")
    }

    /// What watchdogs of freezes did.
    #[must_use]
    pub fn thaw_log(&self) -> PathBuf {
        self.dir.join("thaw.log")
    }

    /// QEMU's output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }
}

/// Refuses a socket path the kernel would cut.
pub(crate) fn check_socket(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(Error::config(format!(
            "socket path {} has {length} bytes, Linux allows {SOCKET_PATH_MAX}: use a shorter run directory",
            path.display()
        )));
    }
    Ok(())
}

/// QEMU ids: a letter or digit of ours first is fine because we always prefix; the rest from a small alphabet.
pub(crate) fn check_id(what: &str, id: &str) -> Result<()> {
    let fine = !id.is_empty()
        && id.len() <= 128
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if fine {
        Ok(())
    } else {
        Err(Error::config(format!(
            "{what} `{id}` may only have letters, digits, `-`, `.` and `_`"
        )))
    }
}

pub(crate) fn check_node(name: &str) -> Result<()> {
    check_id("layer name", name)?;
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    if !first || name.len() > NODE_NAME_MAX || name.ends_with(".f") || name.ends_with(".m") {
        return Err(Error::config(format!(
            "layer name `{name}` must start with a letter, not end in `.f` or `.m`, and have at most {NODE_NAME_MAX} characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_node_reads_back() {
        for id in [
            Uuid::nil(),
            Uuid::max(),
            Uuid::from_u128(0x1234_5678_9abc_def0_0fed_cba9_8765_4321),
        ] {
            let node = layer_node(id);
            assert!(check_node(&node).is_ok(), "{node}");
            assert_eq!(layer_of_node(&node), Some(id));
        }
        assert_eq!(layer_of_node("Lzzzzzzzzzzzzzzzzzzzzzzzzzz"), None);
        assert_eq!(layer_of_node("base"), None);
    }

    #[test]
    fn a_device_path_names_its_drive() {
        assert_eq!(
            drive_of_device("/machine/peripheral/drive-sda"),
            Some("sda")
        );
        assert_eq!(
            drive_of_device("/machine/peripheral/drive-sda/virtio-backend"),
            Some("sda")
        );
        assert_eq!(drive_of_device("net0"), None);
    }

    #[test]
    fn names_qemu_would_refuse_are_refused() {
        for name in [
            "",
            "9a",
            "a,b",
            "a b",
            "this-name-is-far-too-long-for-qemu",
            "x.f",
        ] {
            assert!(check_node(name).is_err(), "{name}");
        }
    }
}

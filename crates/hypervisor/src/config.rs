//! A machine as the domain wants it: plain data, storable, free of QEMU words where possible.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::names;

/// Everything QEMU needs to know to run one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The machine's GUID; also the SMBIOS UUID.
    pub id: Uuid,
    /// Name shown to people; any text.
    pub name: String,
    /// Virtual hardware generation.
    pub generation: Generation,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Directory for sockets, pid file and log of this machine alone. Keep it short: a socket path may have 107 bytes.
    pub run_dir: PathBuf,
    /// Where a generation 2 machine keeps its firmware variables (created from the template at first start).
    #[serde(default)]
    pub firmware_vars: Option<PathBuf>,
    /// Disk controllers. The two IDE controllers of generation 1 exist whether listed or not.
    #[serde(default)]
    pub controllers: Vec<Controller>,
    /// Disks and DVD drives.
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// Network adapters.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// COM1 and COM2.
    #[serde(default)]
    pub serial: [Option<SerialPort>; 2],
    /// Boot order, first choice first. Empty: firmware's own order.
    #[serde(default)]
    pub boot_order: Vec<BootSource>,
    /// A kernel loaded by QEMU itself in place of a boot loader.
    #[serde(default)]
    pub direct_kernel: Option<DirectKernel>,
    /// Whether the guest agent channel exists.
    #[serde(default)]
    pub guest_agent: bool,
    /// KVM or emulation.
    #[serde(default)]
    pub acceleration: Acceleration,
    /// Versioned QEMU machine type, for example `pc-i440fx-7.2`. `None`: the newest of the generation. Store what
    /// [`crate::probe::Features::machine_type`] picked, so that saved states and migration keep working after an upgrade.
    #[serde(default)]
    pub machine_type: Option<String>,
    /// Named, versioned processor model, for example `Haswell-v4`, which this host must have whole. `None`: all that this host has;
    /// then the machine moves only to hosts that have as much.
    #[serde(default)]
    pub cpu_model: Option<String>,
    /// Leaves out every network adapter, whatever `nics` says.
    #[serde(default)]
    pub no_network: bool,
    /// How QEMU is shut in.
    #[serde(default)]
    pub confinement: Confinement,
}

/// How QEMU is shut in. The default is not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// QEMU's own sandbox: it can start no program, change no user, and use no obsolete system call.
    pub sandbox: bool,
    /// The user that QEMU runs as, its own number as uid and gid. `None`: the service's.
    #[serde(default)]
    pub user: Option<u32>,
    /// Where it is noted what the user may open. Without it there is no user.
    #[serde(default)]
    pub journal: Option<PathBuf>,
}

/// Virtual hardware generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Generation {
    /// BIOS, i440FX, IDE and SCSI.
    Gen1,
    /// UEFI, Q35, SCSI only.
    Gen2,
}

/// A disk controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Controller {
    /// IDE controller 0 or 1, two slots each; generation 1 only; nothing hot.
    Ide(u8),
    /// SCSI controller n, slots 0 to 63; drives come and go while the machine runs.
    Scsi(u8),
}

/// Slots of one SCSI controller.
pub const SCSI_SLOTS: u16 = 64;
/// SCSI controllers a machine may have.
pub const SCSI_CONTROLLERS: u8 = 4;

/// A disk or a DVD drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveConfig {
    /// Stable name of the drive within the machine: letters, digits, `-`, `.`, `_`.
    pub id: String,
    /// Its controller.
    pub controller: Controller,
    /// Its slot on the controller.
    pub slot: u16,
    /// Disk or DVD.
    pub kind: DriveKind,
    /// The layers, base first, topmost (active) last. A DVD has one layer, or none when empty.
    pub chain: Vec<LayerFile>,
    /// Whether the guest may not write. A DVD is always read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// Disk or DVD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DriveKind {
    /// A hard disk.
    Disk,
    /// A DVD drive.
    Cdrom,
}

/// One layer of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerFile {
    /// QEMU node name: at most 29 characters. [`crate::names::layer_node`] makes one from a layer's id.
    pub node_name: String,
    /// Absolute path.
    pub path: PathBuf,
    /// What the file is.
    pub format: ImageFormat,
}

/// Image formats that can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// qcow2, the native format and the only one with a layer beneath it.
    Qcow2,
    /// Raw file or block device.
    Raw,
    /// VHD.
    Vpc,
    /// VHDX.
    Vhdx,
    /// VMDK.
    Vmdk,
}

impl ImageFormat {
    /// QEMU's name of the format driver.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }

    /// The format of that QEMU driver name, if it is one of ours.
    #[must_use]
    pub fn from_driver(name: &str) -> Option<Self> {
        [Self::Qcow2, Self::Raw, Self::Vpc, Self::Vhdx, Self::Vmdk]
            .into_iter()
            .find(|format| format.as_str() == name)
    }
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// MAC address, `52:54:00:12:34:56`.
    pub mac: String,
    /// What it is connected to.
    pub backend: NicBackend,
}

/// What a network adapter is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NicBackend {
    /// Nothing: cable unplugged.
    None,
    /// QEMU's user-mode network.
    User,
}

/// A serial port behind a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPort {
    /// Socket that QEMU listens on.
    pub socket: PathBuf,
    /// File that keeps everything the guest wrote, appended.
    #[serde(default)]
    pub log: Option<PathBuf>,
}

/// One choice of the boot order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootSource {
    /// The drive of this id.
    Drive(String),
    /// The network adapter at this index of `nics`.
    Nic(usize),
}

/// A kernel loaded by QEMU itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectKernel {
    /// Kernel image (bzImage or PVH vmlinux).
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub command_line: String,
}

/// KVM or emulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Acceleration {
    /// KVM where it works, else emulation.
    #[default]
    Auto,
    /// KVM, or fail.
    Kvm,
    /// Emulation.
    Tcg,
}

impl MachineConfig {
    /// A small machine without disks, a starting point for callers and tests.
    #[must_use]
    pub fn new(
        id: Uuid,
        name: impl Into<String>,
        generation: Generation,
        run_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            id,
            name: name.into(),
            generation,
            memory_mib: 1024,
            vcpus: 1,
            run_dir: run_dir.into(),
            firmware_vars: None,
            controllers: Vec::new(),
            drives: Vec::new(),
            nics: Vec::new(),
            serial: [None, None],
            boot_order: Vec::new(),
            direct_kernel: None,
            guest_agent: false,
            acceleration: Acceleration::Auto,
            machine_type: None,
            cpu_model: None,
            no_network: false,
            confinement: Confinement::default(),
        }
    }

    /// The drive of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn drive(&self, id: &str) -> Result<&DriveConfig> {
        self.drives
            .iter()
            .find(|drive| drive.id == id)
            .ok_or_else(|| Error::not_found(format!("drive `{id}`")))
    }

    /// Checks what can be checked without QEMU: sizes, names, slots, duplicate use.
    ///
    /// # Errors
    /// [`Error::Config`] names the first thing that is wrong.
    pub fn validate(&self) -> Result<()> {
        if self.memory_mib == 0 || self.vcpus == 0 {
            return Err(Error::config(
                "a machine needs at least 1 MiB of memory and one processor",
            ));
        }
        check_text("machine name", &self.name)?;
        if let Some(model) = &self.cpu_model {
            names::check_id("processor model", model)?;
        }
        for controller in &self.controllers {
            self.check_controller(*controller)?;
        }
        let mut slots = std::collections::BTreeSet::new();
        let mut ids = std::collections::BTreeSet::new();
        let mut nodes = std::collections::BTreeSet::new();
        for drive in &self.drives {
            self.check_drive(drive)?;
            if !slots.insert((drive.controller, drive.slot)) {
                return Err(Error::config(format!(
                    "slot {} of {:?} is used twice",
                    drive.slot, drive.controller
                )));
            }
            if !ids.insert(drive.id.as_str()) {
                return Err(Error::config(format!(
                    "drive id `{}` is used twice",
                    drive.id
                )));
            }
            for layer in &drive.chain {
                if !nodes.insert(layer.node_name.as_str()) {
                    return Err(Error::config(format!(
                        "layer name `{}` is used twice",
                        layer.node_name
                    )));
                }
            }
        }
        for source in &self.boot_order {
            match source {
                BootSource::Drive(id) => drop(self.drive(id)?),
                BootSource::Nic(index) if *index >= self.nics.len() => {
                    return Err(Error::config(format!(
                        "boot order names network adapter {index}, which does not exist"
                    )));
                }
                BootSource::Nic(_) => {}
            }
        }
        self.nics.iter().try_for_each(|nic| check_mac(&nic.mac))
    }

    fn check_controller(&self, controller: Controller) -> Result<()> {
        match (controller, self.generation) {
            (Controller::Ide(0..=1), Generation::Gen1) => Ok(()),
            (Controller::Ide(_), Generation::Gen1) => {
                Err(Error::config("there are two IDE controllers, 0 and 1"))
            }
            (Controller::Ide(_), Generation::Gen2) => Err(Error::config(
                "a generation 2 machine has no IDE controller",
            )),
            (Controller::Scsi(n), _) if n < SCSI_CONTROLLERS => Ok(()),
            (Controller::Scsi(_), _) => Err(Error::config(format!(
                "at most {SCSI_CONTROLLERS} SCSI controllers"
            ))),
        }
    }

    /// Checks one drive against the machine, also used before a hot add.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check_drive(&self, drive: &DriveConfig) -> Result<()> {
        names::check_id("drive id", &drive.id)?;
        self.check_controller(drive.controller)?;
        let slots = if matches!(drive.controller, Controller::Ide(_)) {
            2
        } else {
            SCSI_SLOTS
        };
        if drive.slot >= slots {
            return Err(Error::config(format!(
                "slot {} does not exist on {:?}",
                drive.slot, drive.controller
            )));
        }
        match drive.kind {
            DriveKind::Disk if drive.chain.is_empty() => {
                return Err(Error::config(format!("disk `{}` has no image", drive.id)));
            }
            DriveKind::Cdrom if drive.chain.len() > 1 => {
                return Err(Error::config(format!(
                    "DVD drive `{}` takes one image without layers",
                    drive.id
                )));
            }
            _ => {}
        }
        for (depth, layer) in drive.chain.iter().enumerate() {
            layer.check()?;
            if depth > 0 && layer.format != ImageFormat::Qcow2 {
                return Err(Error::config(format!(
                    "layer {} lies on another and must be qcow2",
                    layer.path.display()
                )));
            }
        }
        Ok(())
    }
}

impl LayerFile {
    /// A layer of that name, path and format.
    #[must_use]
    pub fn new(
        node_name: impl Into<String>,
        path: impl Into<PathBuf>,
        format: ImageFormat,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            path: path.into(),
            format,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        names::check_node(&self.node_name)?;
        check_path(&self.path)
    }
}

pub(crate) fn check_path(path: &Path) -> Result<()> {
    let text = path_text(path)?;
    check_text("path", text)?;
    if !path.is_absolute() {
        return Err(Error::config(format!("{text} is not an absolute path")));
    }
    Ok(())
}

/// QEMU takes paths inside JSON, so they must be UTF-8.
pub(crate) fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::config(format!("{} is not UTF-8", path.display())))
}

fn check_text(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') || text.contains('\n') {
        return Err(Error::config(format!(
            "{what} contains a line break or a NUL"
        )));
    }
    Ok(())
}

fn check_mac(mac: &str) -> Result<()> {
    let parts: Vec<&str> = mac.split(':').collect();
    if parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Ok(());
    }
    Err(Error::config(format!(
        "`{mac}` is not a MAC address like 52:54:00:12:34:56"
    )))
}

//! What is stored of a machine.

use std::path::PathBuf;
use std::time::SystemTime;

use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk_tree::LayerTree;

/// A machine as it is stored under `vm/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its GUID: the `Name` of Msvm_ComputerSystem.
    pub id: Uuid,
    /// Its name for people (`ElementName`).
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Whether it is only planned (imported or staged, not realized yet).
    #[serde(default)]
    pub planned: bool,
    /// Virtual hardware generation, 1 or 2.
    pub generation: u8,
    /// When it was defined.
    pub created: SystemTime,
    /// When its settings changed last.
    pub changed: SystemTime,
    /// The power state it is in, as far as it is durable.
    pub power: Power,
    /// When the power state changed last.
    pub power_changed: SystemTime,
    /// Settings without a device behind them.
    pub settings: Settings,
    /// Memory.
    pub memory: Memory,
    /// Processors.
    pub processor: Processor,
    /// Controllers, drives, disks, adapters, ports.
    pub devices: Vec<Device>,
    /// The versioned QEMU machine type, fixed at the first start.
    #[serde(default)]
    pub machine_type: Option<String>,
    /// The saved state's file, where `power` is `Saved`.
    #[serde(default)]
    pub saved_state: Option<PathBuf>,
    /// The snapshot that was applied last, whether it still exists or not.
    #[serde(default)]
    pub last_applied: Option<Uuid>,
    /// The snapshot it descends from where its layers do not tell, because both were imported.
    #[serde(default)]
    pub descends_from: Option<Uuid>,
    /// How its process ended, where that was not asked for; until the next start.
    #[serde(default)]
    pub last_end: Option<super::Ended>,
    /// Which host owns it.
    pub owner: String,
}

/// The power states that survive a restart of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Power {
    /// Off.
    Off,
    /// A process exists (or existed when the service last looked) and the guest runs.
    Running,
    /// A process exists and the guest is paused.
    Paused,
    /// No process; memory is in a file.
    Saved,
}

/// Settings of the machine as a whole, after Msvm_VirtualSystemSettingData; numbers are that class's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// 2 none, 3 restart if running before, 4 always.
    pub automatic_startup_action: u16,
    /// Seconds before an automatic start.
    pub automatic_startup_delay: u64,
    /// Its place among automatic starts: lower numbers first; 0: none.
    pub automatic_startup_sequence: u16,
    /// 2 turn off, 3 save, 4 shut down.
    pub automatic_shutdown_action: u16,
    /// 2 none, 3 restart, 4 revert to snapshot.
    pub automatic_recovery_action: u16,
    /// The SMBIOS UUID.
    pub bios_guid: Uuid,
    /// SMBIOS serial number of the BIOS.
    pub bios_serial: String,
    /// SMBIOS serial number of the base board.
    pub baseboard_serial: String,
    /// SMBIOS serial number of the chassis.
    pub chassis_serial: String,
    /// SMBIOS asset tag of the chassis.
    pub chassis_asset_tag: String,
    /// NumLock at start.
    pub bios_num_lock: bool,
    /// Boot order of generation 1: 0 floppy, 1 CD, 2 disk, 3 network.
    pub boot_order: Vec<u16>,
    /// Boot order of generation 2: paths of drives and adapters.
    pub boot_source_order: Vec<String>,
    /// Whether backup tools asked for change tracking; accepted, kept, not required.
    pub incremental_backup_enabled: bool,
    /// 2 disabled, 3 production with fallback, 4 production only, 5 standard.
    pub user_snapshot_type: u16,
    /// Whether secure boot is on (generation 2).
    pub secure_boot: bool,
    /// Directory of the configuration.
    pub configuration_data_root: String,
    /// Directory of snapshots.
    pub snapshot_data_root: String,
    /// Directory of saved states.
    pub suspend_data_root: String,
    /// Directory of swap files.
    pub swap_file_data_root: String,
    /// NUMA shown to the guest.
    pub virtual_numa: bool,
    /// Leave out network adapters altogether (throw-away machines of `verify --boot`).
    pub no_network: bool,
    /// Whether the machine gets a guest agent channel.
    pub guest_agent: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            automatic_startup_action: 2,
            automatic_startup_delay: 0,
            automatic_startup_sequence: 0,
            automatic_shutdown_action: 4,
            automatic_recovery_action: 3,
            bios_guid: Uuid::nil(),
            bios_serial: String::new(),
            baseboard_serial: String::new(),
            chassis_serial: String::new(),
            chassis_asset_tag: String::new(),
            bios_num_lock: true,
            boot_order: vec![1, 2, 3, 0],
            boot_source_order: Vec::new(),
            incremental_backup_enabled: false,
            user_snapshot_type: 3,
            secure_boot: false,
            configuration_data_root: String::new(),
            snapshot_data_root: String::new(),
            suspend_data_root: String::new(),
            swap_file_data_root: String::new(),
            virtual_numa: true,
            no_network: false,
            guest_agent: true,
        }
    }
}

/// Memory, in MiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// What the machine starts with.
    pub quantity: u64,
    /// The least it needs (dynamic memory).
    pub reservation: u64,
    /// The most it may get (dynamic memory).
    pub limit: u64,
    /// 0 to 10,000.
    pub weight: u32,
    /// Kept for clients; QEMU gets `quantity`.
    pub dynamic: bool,
    /// Buffer in percent.
    pub target_buffer: u32,
}

/// Processors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Processor {
    /// How many.
    pub count: u32,
    /// 0 to 100,000 (thousandths of a percent).
    pub reservation: u64,
    /// 0 to 100,000.
    pub limit: u64,
    /// 0 to 10,000.
    pub weight: u32,
    /// Hide newer processor features, for migration.
    pub limit_features: bool,
}

/// One resource of a machine. `id` is unique within the machine and stable; the front end shows it as
/// `Microsoft:<machine>\<id>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Identifier within the machine, with backslashes between its parts.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a resource is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// An IDE controller, number 0 or 1.
    IdeController {
        /// Its number.
        number: u8,
    },
    /// A SCSI controller.
    ScsiController {
        /// Its number, in the order they were added.
        number: u8,
    },
    /// A disk drive; what lies in it is a `Disk` that names it.
    DiskDrive {
        /// The controller's id.
        controller: String,
        /// The slot on the controller.
        slot: u16,
    },
    /// A DVD drive.
    DvdDrive {
        /// The controller's id.
        controller: String,
        /// The slot on the controller.
        slot: u16,
    },
    /// The floppy drive of generation 1; shown, never filled.
    FloppyDrive,
    /// A disk in a drive.
    Disk(Box<Disk>),
    /// An image in a DVD drive.
    Dvd {
        /// The drive's id.
        drive: String,
        /// The image.
        path: PathBuf,
    },
    /// COM 1 or COM 2.
    SerialPort {
        /// 1 or 2.
        number: u8,
        /// A Unix socket a user asked for in place of ours.
        connection: Option<String>,
    },
    /// A network adapter.
    Nic {
        /// Twelve hexadecimal digits.
        mac: String,
        /// Whether the user set the address.
        static_mac: bool,
        /// The GUID the guest sees.
        guid: Uuid,
    },
    /// What an adapter is connected to.
    NicConnection {
        /// The adapter's id.
        nic: String,
        /// The switch as the client named it.
        switch: Option<String>,
        /// Whether the cable is plugged in.
        enabled: bool,
    },
}

/// A disk: the file a user attached and the layers on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Names this disk for ever, also when another one takes its drive.
    pub uid: Uuid,
    /// The drive's id.
    pub drive: String,
    /// The file the user attached; stays the base of the layers.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Its layers.
    pub layers: LayerTree,
}

impl Vm {
    /// The resource with that id, in any case.
    pub fn device(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|d| d.id.eq_ignore_ascii_case(id))
    }

    /// The resource with that id, for changes.
    pub fn device_mut(&mut self, id: &str) -> Option<&mut Device> {
        self.devices
            .iter_mut()
            .find(|d| d.id.eq_ignore_ascii_case(id))
    }

    /// The disks with their resource ids, in the order in which they are shown.
    pub fn disks(&self) -> impl Iterator<Item = (&str, &Disk)> {
        self.devices.iter().filter_map(|d| match &d.kind {
            DeviceKind::Disk(disk) => Some((d.id.as_str(), disk.as_ref())),
            _ => None,
        })
    }

    /// The disks, for changes.
    pub fn disks_mut(&mut self) -> impl Iterator<Item = (&str, &mut Disk)> {
        self.devices.iter_mut().filter_map(|d| match &mut d.kind {
            DeviceKind::Disk(disk) => Some((d.id.as_str(), disk.as_mut())),
            _ => None,
        })
    }

    /// The disk of that uid.
    pub fn disk(&self, uid: Uuid) -> Option<&Disk> {
        self.disks().map(|(_, disk)| disk).find(|d| d.uid == uid)
    }

    /// The disk of that uid, for changes.
    pub fn disk_mut(&mut self, uid: Uuid) -> Option<&mut Disk> {
        self.disks_mut()
            .map(|(_, disk)| disk)
            .find(|d| d.uid == uid)
    }
}

impl store::Versioned for Vm {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

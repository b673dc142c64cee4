//! From the stored machine to what QEMU needs to run it.

use std::path::PathBuf;

use hypervisor::confine::Level;
use hypervisor::{
    BootSource, Controller, DriveConfig, DriveKind, Generation, LayerFile, MachineConfig, Nic,
    NicBackend, SerialPort, names,
};
use uuid::Uuid;

use super::{DeviceKind, Disk, Vm};
use crate::disk_tree::LayerRef;
use crate::service::{Dirs, Options};
use crate::{Result, fault};

/// The directory of a machine's sockets: short, since a socket path may have 107 bytes.
pub fn run_dir(dirs: &Dirs, vm: Uuid) -> PathBuf {
    let name: String = vm.simple().to_string().chars().take(16).collect();
    dirs.run.join(name)
}

/// The directory of what is kept of a machine beside its record: console log, saved state.
pub fn state_dir(dirs: &Dirs, vm: Uuid) -> PathBuf {
    dirs.state.join("vm").join(vm.to_string())
}

/// Where the console log of a machine is.
pub fn console_log(dirs: &Dirs, vm: Uuid) -> PathBuf {
    state_dir(dirs, vm).join("console.log")
}

/// Where it is noted what the user of a machine's QEMU may open.
pub fn granted(dirs: &Dirs, vm: Uuid) -> PathBuf {
    state_dir(dirs, vm).join("granted.json")
}

/// The name of a disk's drive towards the hypervisor.
pub fn drive_id(disk: &Disk) -> String {
    disk.uid.simple().to_string()
}

/// A layer's file as the hypervisor takes it.
pub fn layer_file(layer: &LayerRef) -> LayerFile {
    LayerFile::new(
        names::layer_node(layer.layer),
        layer.path.clone(),
        layer.format,
    )
}

fn dvd_drive_id(device: &str) -> String {
    device.replace('\\', "-")
}

fn controller_of(vm: &Vm, id: &str) -> Result<Controller> {
    match vm.device(id).map(|d| &d.kind) {
        Some(DeviceKind::IdeController { number }) => Ok(Controller::Ide(*number)),
        Some(DeviceKind::ScsiController { number }) => Ok(Controller::Scsi(*number)),
        _ => Err(fault!(DeviceNotFound, crate::guid(vm.id), id)),
    }
}

/// The drive of a disk as the hypervisor takes it.
pub fn disk_drive(vm: &Vm, disk: &Disk) -> Result<DriveConfig> {
    let Some(DeviceKind::DiskDrive { controller, slot }) = vm.device(&disk.drive).map(|d| &d.kind)
    else {
        return Err(fault!(DeviceNotFound, crate::guid(vm.id), disk.drive));
    };
    Ok(DriveConfig {
        id: drive_id(disk),
        controller: controller_of(vm, controller)?,
        slot: *slot,
        kind: DriveKind::Disk,
        chain: disk.layers.active_chain().iter().map(layer_file).collect(),
        read_only: disk.read_only,
    })
}

fn dvd_drive(vm: &Vm, id: &str, controller: &str, slot: u16) -> Result<DriveConfig> {
    let medium = vm.devices.iter().find_map(|d| match &d.kind {
        DeviceKind::Dvd { drive, path } if drive.eq_ignore_ascii_case(id) => Some(path.clone()),
        _ => None,
    });
    // Not a layer, but named like one: short enough for QEMU, and the same at every start.
    let node = names::layer_node(Uuid::new_v5(&vm.id, id.as_bytes()));
    Ok(DriveConfig {
        id: dvd_drive_id(id),
        controller: controller_of(vm, controller)?,
        slot,
        kind: DriveKind::Cdrom,
        chain: medium
            .map(|path| LayerFile::new(node, path, hypervisor::ImageFormat::Raw))
            .into_iter()
            .collect(),
        read_only: true,
    })
}

/// The configuration to run `vm` with.
pub fn machine_config(vm: &Vm, dirs: &Dirs, options: &Options) -> Result<MachineConfig> {
    let generation = if vm.generation == 2 {
        Generation::Gen2
    } else {
        Generation::Gen1
    };
    let mut config = MachineConfig::new(vm.id, &vm.name, generation, run_dir(dirs, vm.id));
    config.memory_mib = vm.memory.quantity;
    config.vcpus = vm.processor.count;
    config.guest_agent = vm.settings.guest_agent;
    config.acceleration = options.acceleration;
    config.machine_type = vm.machine_type.clone();
    config.no_network = vm.settings.no_network;
    config.confinement.sandbox = options.confinement.level != Level::Off;
    // Known for every process, also one of a service that was configured otherwise.
    config.confinement.journal = Some(granted(dirs, vm.id));
    if vm.generation == 2 {
        config.firmware_vars = Some(state_dir(dirs, vm.id).join("firmware-vars.fd"));
    }
    let mut dvds = Vec::new();
    for device in &vm.devices {
        match &device.kind {
            DeviceKind::IdeController { number } => {
                config.controllers.push(Controller::Ide(*number));
            }
            DeviceKind::ScsiController { number } => {
                config.controllers.push(Controller::Scsi(*number));
            }
            DeviceKind::Disk(disk) => config.drives.push(disk_drive(vm, disk)?),
            DeviceKind::DvdDrive { controller, slot } => {
                dvds.push(dvd_drive(vm, &device.id, controller, *slot)?);
            }
            DeviceKind::Nic { mac, .. } => config.nics.push(nic(vm, &device.id, mac)),
            DeviceKind::SerialPort {
                number: 1,
                connection,
            } => {
                let socket = connection
                    .as_ref()
                    .map_or_else(|| run_dir(dirs, vm.id).join("com1.sock"), PathBuf::from);
                let log = Some(console_log(dirs, vm.id));
                config.serial[0] = Some(SerialPort { socket, log });
            }
            DeviceKind::SerialPort {
                number: 2,
                connection: Some(connection),
            } => {
                config.serial[1] = Some(SerialPort {
                    socket: connection.into(),
                    log: None,
                });
            }
            DeviceKind::SerialPort { .. }
            | DeviceKind::DiskDrive { .. }
            | DeviceKind::FloppyDrive
            | DeviceKind::Dvd { .. }
            | DeviceKind::NicConnection { .. } => {}
        }
    }
    config.drives.sort_by_key(|d| (d.controller, d.slot));
    config.boot_order = boot_order(vm, &config.drives, &dvds, config.nics.len());
    config.drives.extend(dvds);
    Ok(config)
}

fn nic(vm: &Vm, id: &str, mac: &str) -> Nic {
    let plugged = vm.devices.iter().any(|d| match &d.kind {
        DeviceKind::NicConnection {
            nic,
            switch,
            enabled,
        } => nic.eq_ignore_ascii_case(id) && *enabled && switch.is_some(),
        _ => false,
    });
    let pairs: Vec<String> = mac
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).to_ascii_lowercase())
        .collect();
    Nic {
        mac: pairs.join(":"),
        backend: if plugged {
            NicBackend::User
        } else {
            NicBackend::None
        },
    }
}

/// Generation 1 boots by kind of device (`BootOrder`), generation 2 as it finds disks, then DVDs.
fn boot_order(
    vm: &Vm,
    disks: &[DriveConfig],
    dvds: &[DriveConfig],
    nics: usize,
) -> Vec<BootSource> {
    let order: &[u16] = if vm.generation == 1 {
        &vm.settings.boot_order
    } else {
        &[2, 1, 3]
    };
    let mut out = Vec::new();
    for kind in order {
        match kind {
            1 => out.extend(
                dvds.iter()
                    .filter(|d| !d.chain.is_empty())
                    .map(|d| BootSource::Drive(d.id.clone())),
            ),
            2 => out.extend(disks.iter().map(|d| BootSource::Drive(d.id.clone()))),
            3 if !vm.settings.no_network => out.extend((0..nics).map(BootSource::Nic)),
            _ => {}
        }
    }
    out
}

/// The DVD drive behind a resource id, for changing its medium while the machine runs.
pub fn dvd_of(vm: &Vm, id: &str) -> Result<DriveConfig> {
    match vm.device(id).map(|d| &d.kind) {
        Some(DeviceKind::DvdDrive { controller, slot }) => dvd_drive(vm, id, controller, *slot),
        _ => Err(fault!(DeviceNotFound, crate::guid(vm.id), id)),
    }
}

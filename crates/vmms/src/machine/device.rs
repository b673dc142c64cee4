//! Adding, changing and removing a machine's resources.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::ImageFormat;
use uuid::Uuid;

use super::define::check_images;
use super::{Device, DeviceKind, Disk, Power, Vm, spec};
use crate::blocking;
use crate::disk_tree::LayerTree;
use crate::host::check::beside::refuse_layered;
use crate::point::Point;
use crate::{Element, Result, Vmms, fault, guid, names, trusted};

/// A resource to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewDevice {
    /// A SCSI controller.
    ScsiController,
    /// A disk drive on a controller; without a slot the first free one.
    DiskDrive {
        /// The controller's id.
        controller: String,
        /// The slot.
        slot: Option<u16>,
    },
    /// A DVD drive.
    DvdDrive {
        /// The controller's id.
        controller: String,
        /// The slot.
        slot: Option<u16>,
    },
    /// An image in a disk drive.
    Disk {
        /// The drive's id.
        drive: String,
        /// The image.
        path: PathBuf,
        /// Whether the guest may only read it.
        read_only: bool,
    },
    /// An image in a DVD drive.
    Dvd {
        /// The drive's id.
        drive: String,
        /// The image.
        path: PathBuf,
    },
    /// A network adapter.
    Nic {
        /// Twelve hexadecimal digits; `None` makes an address.
        mac: Option<String>,
        /// The GUID the guest sees.
        guid: Option<Uuid>,
    },
    /// What an adapter is connected to.
    NicConnection {
        /// The adapter's id.
        nic: String,
        /// The switch.
        switch: Option<String>,
        /// Whether the cable is plugged in.
        enabled: bool,
    },
}

/// An absolute path of this host, or why not.
pub fn host_path(text: &str) -> Result<PathBuf> {
    let refuse = |why: &str| Err(fault!(PathNotUsable, format!("{text:?}"), why));
    let mut chars = text.chars();
    if let (Some(drive), Some(':')) = (chars.next(), chars.next())
        && drive.is_ascii_alphabetic()
    {
        return refuse("it is a Windows drive path, and this host runs Linux");
    }
    if text.starts_with("\\\\") {
        return refuse("it is a Windows network path, and this host runs Linux");
    }
    if text.contains('\0') || text.contains('\n') || text.len() > 4000 {
        return refuse("it has characters a path cannot have, or more than 4000 bytes");
    }
    let path = Path::new(text);
    if !path.is_absolute() {
        return refuse("it is not absolute");
    }
    if path
        .components()
        .any(|c| matches!(c, std::path::Component::ParentDir))
    {
        return refuse("it contains '..'");
    }
    Ok(path.components().collect())
}

/// Adds a resource; answers its id. Disks and DVDs on SCSI, and DVD images anywhere, also while the machine runs.
pub async fn add(
    vmms: &Arc<Vmms>,
    id: Uuid,
    new: NewDevice,
    name: Option<String>,
) -> Result<String> {
    if let Some(name) = &name {
        names::check("ElementName", name)?;
    }
    let opened = match &new {
        NewDevice::Disk { path, .. } => {
            let opened = open_image(vmms, path).await?;
            refuse_layered(vmms, path)?;
            Some(opened)
        }
        NewDevice::Dvd { path, .. } => {
            trusted::check_medium(vmms, path)?;
            None
        }
        _ => None,
    };
    add_opened(vmms, id, new, name, opened).await
}

/// The same with the layers of the image as they are known already.
pub(crate) async fn add_opened(
    vmms: &Arc<Vmms>,
    id: Uuid,
    new: NewDevice,
    name: Option<String>,
    opened: Option<LayerTree>,
) -> Result<String> {
    let _lock = vmms.lock(id).await;
    let before = vmms.db.get::<Vm>(id)?;
    let mut after = (*before).clone();
    let device = build(&after, &new, name, opened)?;
    let device_id = device.id.clone();
    after.devices.push(device);
    let running = before.power != Power::Off;
    if running && !may_change_running(&before, &new) {
        return Err(fault!(HotPlugRefused, describe(&new), before.name).about(Element::Vm(id)));
    }
    check_images(
        &vmms
            .db
            .all::<Vm>()
            .iter()
            .map(|v| (**v).clone())
            .collect::<Vec<_>>(),
        &after,
    )?;
    plug(vmms, &after, &device_id).await?;
    let known = match after.device(&device_id).map(|d| &d.kind) {
        Some(DeviceKind::Disk(disk)) => trusted::known_files(disk),
        _ => Vec::new(),
    };
    vmms.db
        .change(|draft| {
            known.into_iter().for_each(|image| draft.put(image));
            draft.get_mut::<Vm>(id)?.devices = after.devices;
            Ok(())
        })
        .await?;
    Ok(device_id)
}

fn describe(new: &NewDevice) -> &'static str {
    match new {
        NewDevice::ScsiController => "a SCSI controller",
        NewDevice::DiskDrive { .. } => "a disk drive",
        NewDevice::DvdDrive { .. } => "a DVD drive",
        NewDevice::Disk { .. } => "a disk",
        NewDevice::Dvd { .. } => "a DVD image",
        NewDevice::Nic { .. } => "a network adapter",
        NewDevice::NicConnection { .. } => "a network connection",
    }
}

fn may_change_running(vm: &Vm, new: &NewDevice) -> bool {
    let scsi = |id: &str| {
        matches!(
            vm.device(id).map(|d| &d.kind),
            Some(DeviceKind::ScsiController { .. })
        )
    };
    let drive_on_scsi = |id: &str| match vm.device(id).map(|d| &d.kind) {
        Some(DeviceKind::DiskDrive { controller, .. }) => scsi(controller),
        _ => false,
    };
    match new {
        NewDevice::DiskDrive { controller, .. } => scsi(controller),
        NewDevice::Disk { drive, .. } => vm.power != Power::Saved && drive_on_scsi(drive),
        NewDevice::Dvd { .. } => vm.power != Power::Saved,
        NewDevice::ScsiController
        | NewDevice::DvdDrive { .. }
        | NewDevice::Nic { .. }
        | NewDevice::NicConnection { .. } => false,
    }
}

/// Tells a running process of a new disk or medium.
async fn plug(vmms: &Arc<Vmms>, vm: &Vm, device: &str) -> Result<()> {
    let Some(machine) = vmms.machine(vm.id) else {
        return Ok(());
    };
    match vm.device(device).map(|d| &d.kind) {
        Some(DeviceKind::Disk(disk)) => Ok(machine.add_drive(&spec::disk_drive(vm, disk)?).await?),
        Some(DeviceKind::Dvd { drive, .. }) => {
            let drive = spec::dvd_of(vm, drive)?;
            Ok(machine
                .change_medium(&drive.id, drive.chain.first())
                .await?)
        }
        _ => Ok(()),
    }
}

/// Reads what an image and its backing files are.
pub(crate) async fn open_image(vmms: &Arc<Vmms>, path: &Path) -> Result<LayerTree> {
    let (own, image) = (Arc::clone(vmms), path.to_owned());
    let chain = blocking(move || trusted::chain(&own, &image)).await?;
    let mut files = Vec::new();
    for seen in chain {
        let at = seen.path;
        // The tool knows the sizes of all formats, and sees whether somebody else has the file.
        let info = vmms.images.info_as(&at, Some(seen.format), false).await;
        let info = info.map_err(|e| fault!(ImageUnreadable, at.display()).caused_by(e))?;
        // The tool rounds a raw file up to whole sectors; the last piece could be neither frozen nor exported.
        let raw_file = seen.format == ImageFormat::Raw && !seen.device;
        let size = if raw_file {
            seen.length
        } else {
            info.virtual_size
        };
        if size == 0 || size % 512 != 0 {
            return Err(fault!(
                InvalidValue,
                format!("the size of {}", at.display()),
                format!("{size} bytes"),
                "a disk has a multiple of 512 bytes; pad the image first"
            ));
        }
        files.push((at, seen.format, info.virtual_size));
    }
    LayerTree::with_backing(files).ok_or_else(|| fault!(ImageUnreadable, path.display()))
}

fn build(
    vm: &Vm,
    new: &NewDevice,
    name: Option<String>,
    opened: Option<LayerTree>,
) -> Result<Device> {
    let unknown = |id: &str| fault!(DeviceNotFound, guid(vm.id), id).about(Element::Vm(vm.id));
    let fresh = || guid(Uuid::new_v4());
    let (id, default_name, kind) = match new {
        NewDevice::ScsiController => {
            let used: Vec<u8> = vm
                .devices
                .iter()
                .filter_map(|d| match d.kind {
                    DeviceKind::ScsiController { number } => Some(number),
                    _ => None,
                })
                .collect();
            let number = (0..hypervisor::config::SCSI_CONTROLLERS).find(|n| !used.contains(n));
            let number = number.ok_or_else(|| {
                fault!(
                    InvalidValue,
                    "the number of SCSI controllers",
                    used.len() + 1,
                    "a machine has at most 4"
                )
            })?;
            (
                format!("{}\\{number}", fresh()),
                "SCSI Controller",
                DeviceKind::ScsiController { number },
            )
        }
        NewDevice::DiskDrive { controller, slot } => {
            let (controller, number, slot) = free_slot(vm, controller, *slot)?;
            let id = format!("{}\\{number}\\{slot}\\D", fresh());
            (id, "Hard Drive", DeviceKind::DiskDrive { controller, slot })
        }
        NewDevice::DvdDrive { controller, slot } => {
            let (controller, number, slot) = free_slot(vm, controller, *slot)?;
            let id = format!("{}\\{number}\\{slot}\\D", fresh());
            (id, "DVD Drive", DeviceKind::DvdDrive { controller, slot })
        }
        NewDevice::Disk {
            drive,
            path,
            read_only,
        } => {
            let device = vm.device(drive).ok_or_else(|| unknown(drive))?;
            let DeviceKind::DiskDrive { .. } = device.kind else {
                return Err(fault!(
                    WrongType,
                    "Parent",
                    format!("{} is not a disk drive", device.id)
                ));
            };
            let layers = opened.ok_or_else(|| fault!(ImageUnreadable, path.display()))?;
            let format = layers
                .active_chain()
                .last()
                .map_or(ImageFormat::Raw, |l| l.format);
            let disk = Disk {
                uid: Uuid::new_v4(),
                drive: device.id.clone(),
                path: path.clone(),
                format,
                read_only: *read_only,
                layers,
            };
            (
                medium_id(vm, &device.id)?,
                "Hard Disk Image",
                DeviceKind::Disk(Box::new(disk)),
            )
        }
        NewDevice::Dvd { drive, path } => {
            let device = vm.device(drive).ok_or_else(|| unknown(drive))?;
            let DeviceKind::DvdDrive { .. } = device.kind else {
                return Err(fault!(
                    WrongType,
                    "Parent",
                    format!("{} is not a DVD drive", device.id)
                ));
            };
            let kind = DeviceKind::Dvd {
                drive: device.id.clone(),
                path: path.clone(),
            };
            (medium_id(vm, &device.id)?, "ISO Disk Image", kind)
        }
        NewDevice::Nic { mac, guid: wanted } => {
            let static_mac = mac.is_some();
            let mac = match mac {
                Some(mac) => checked_mac(mac)?,
                None => crate::restore::identity::new_mac(),
            };
            let nic_guid = wanted.unwrap_or_else(Uuid::new_v4);
            (
                guid(nic_guid),
                "Network Adapter",
                DeviceKind::Nic {
                    mac,
                    static_mac,
                    guid: nic_guid,
                },
            )
        }
        NewDevice::NicConnection {
            nic,
            switch,
            enabled,
        } => {
            let device = vm.device(nic).ok_or_else(|| unknown(nic))?;
            let DeviceKind::Nic { .. } = device.kind else {
                return Err(fault!(
                    WrongType,
                    "Parent",
                    format!("{} is not a network adapter", device.id)
                ));
            };
            let id = format!("{}\\C", device.id);
            if vm.device(&id).is_some() {
                return Err(fault!(NameTaken, "the connection of", device.id));
            }
            let kind = DeviceKind::NicConnection {
                nic: device.id.clone(),
                switch: switch.clone(),
                enabled: *enabled,
            };
            (id, "Dynamic Ethernet Switch Port", kind)
        }
    };
    Ok(Device {
        id,
        name: name.unwrap_or_else(|| default_name.to_owned()),
        kind,
    })
}

/// The id of what lies in a drive: the drive's with `L` in place of `D`.
fn medium_id(vm: &Vm, drive: &str) -> Result<String> {
    let id = drive
        .strip_suffix('D')
        .map_or_else(|| format!("{drive}\\L"), |head| format!("{head}L"));
    if vm.device(&id).is_some() {
        return Err(fault!(NameTaken, "a medium in drive", drive).about(Element::Vm(vm.id)));
    }
    Ok(id)
}

fn checked_mac(mac: &str) -> Result<String> {
    let digits: String = mac
        .chars()
        .filter(|c| !matches!(c, ':' | '-' | '.'))
        .collect();
    if digits.len() == 12 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(digits.to_ascii_uppercase())
    } else {
        Err(fault!(
            InvalidValue,
            "Address",
            format!("{mac:?}"),
            "a MAC address has twelve hexadecimal digits"
        ))
    }
}

fn free_slot(vm: &Vm, controller: &str, slot: Option<u16>) -> Result<(String, u8, u16)> {
    let device = vm
        .device(controller)
        .ok_or_else(|| fault!(DeviceNotFound, guid(vm.id), controller).about(Element::Vm(vm.id)))?;
    let (number, slots) = match device.kind {
        DeviceKind::IdeController { number } => (number, 2),
        DeviceKind::ScsiController { number } => (number, hypervisor::config::SCSI_SLOTS),
        _ => {
            return Err(fault!(
                WrongType,
                "Parent",
                format!("{} is not a controller", device.id)
            ));
        }
    };
    let taken = |n: u16| {
        vm.devices.iter().any(|d| match &d.kind {
            DeviceKind::DiskDrive { controller, slot }
            | DeviceKind::DvdDrive { controller, slot } => {
                *slot == n && controller.eq_ignore_ascii_case(&device.id)
            }
            _ => false,
        })
    };
    let free = match slot {
        Some(n) if n < slots && !taken(n) => Some(n),
        Some(_) => None,
        None => (0..slots).find(|n| !taken(*n)),
    };
    let free = free.ok_or_else(|| {
        let asked = slot.map_or_else(|| "chosen".to_owned(), |n| n.to_string());
        fault!(
            InvalidValue,
            "AddressOnParent",
            asked,
            format!("the controller's {slots} slots, as far as they exist, are taken")
        )
    })?;
    Ok((device.id.clone(), number, free))
}

/// Changes the file of a disk or DVD, an adapter's address, a connection's switch, or a name.
pub async fn modify(
    vmms: &Arc<Vmms>,
    id: Uuid,
    device: &str,
    edit: impl FnOnce(&mut Device) -> Result<()>,
) -> Result<()> {
    let _lock = vmms.lock(id).await;
    let before = vmms.db.get::<Vm>(id)?;
    let mut after = (*before).clone();
    let target = after
        .device_mut(device)
        .ok_or_else(|| fault!(DeviceNotFound, guid(id), device).about(Element::Vm(id)))?;
    edit(target)?;
    names::check("ElementName", &target.name)?;
    if let DeviceKind::Nic { mac, .. } = &mut target.kind {
        *mac = checked_mac(mac)?;
    }
    let (old, new) = (
        before.device(device).map(|d| &d.kind),
        after.device(device).map(|d| &d.kind),
    );
    if old != new {
        match new {
            Some(DeviceKind::Disk(disk)) => {
                let moved = before.disk(disk.uid).is_none_or(|d| d.path != disk.path);
                if moved {
                    return Err(fault!(NotServed, "changing the file of an attached disk")
                        .about(Element::Vm(id)));
                }
            }
            Some(DeviceKind::Dvd { path, .. }) => {
                trusted::check_medium(vmms, path)?;
                plug(vmms, &after, device).await?;
            }
            _ if before.power != Power::Off => {
                return Err(fault!(HotPlugRefused, device, before.name).about(Element::Vm(id)));
            }
            _ => {}
        }
    }
    vmms.db
        .change(|draft| {
            draft.get_mut::<Vm>(id)?.devices = after.devices;
            Ok(())
        })
        .await
}

/// Removes a resource and what lies in it. A disk must carry no points.
pub async fn remove(vmms: &Arc<Vmms>, id: Uuid, device: &str) -> Result<()> {
    let _lock = vmms.lock(id).await;
    let before = vmms.db.get::<Vm>(id)?;
    let target = before
        .device(device)
        .ok_or_else(|| fault!(DeviceNotFound, guid(id), device).about(Element::Vm(id)))?;
    if matches!(
        target.kind,
        DeviceKind::IdeController { .. } | DeviceKind::FloppyDrive | DeviceKind::SerialPort { .. }
    ) {
        return Err(fault!(NotServed, format!("removing {}", target.name)).about(Element::Vm(id)));
    }
    let gone = with_children(&before, &target.id);
    let points = vmms.db.all::<Point>();
    let snapshots = vmms.db.all::<crate::snapshot::Snapshot>();
    for disk in before
        .disks()
        .filter(|(d, _)| gone.iter().any(|g| g == d))
        .map(|(_, disk)| disk)
    {
        let held = points
            .iter()
            .any(|p| p.disks.iter().any(|d| d.uid == disk.uid))
            || snapshots
                .iter()
                .any(|s| s.disks.iter().any(|d| d.uid == disk.uid));
        if held
            || disk
                .layers
                .active_chain()
                .iter()
                .filter(|l| !l.shared)
                .count()
                > 1
        {
            return Err(fault!(DiskHasPoints, disk.path.display()).about(Element::Vm(id)));
        }
    }
    if before.power != Power::Off {
        unplug(vmms, &before, &gone).await?;
    }
    let mut after = (*before).clone();
    after.devices.retain(|d| !gone.contains(&d.id));
    let detached = before.disks().filter(|(d, _)| gone.iter().any(|g| g == d));
    let known: Vec<_> = detached
        .flat_map(|(_, disk)| trusted::known_files(disk))
        .collect();
    vmms.db
        .change(|draft| {
            known.into_iter().for_each(|image| draft.put(image));
            draft.get_mut::<Vm>(id)?.devices = after.devices;
            Ok(())
        })
        .await
}

fn with_children(vm: &Vm, id: &str) -> Vec<String> {
    let mut gone = vec![id.to_owned()];
    loop {
        let more: Vec<String> = vm
            .devices
            .iter()
            .filter(|d| !gone.contains(&d.id))
            .filter(|d| {
                let parent = match &d.kind {
                    DeviceKind::DiskDrive { controller, .. }
                    | DeviceKind::DvdDrive { controller, .. } => controller,
                    DeviceKind::Disk(disk) => &disk.drive,
                    DeviceKind::Dvd { drive, .. } => drive,
                    DeviceKind::NicConnection { nic, .. } => nic,
                    _ => return false,
                };
                gone.iter().any(|g| g.eq_ignore_ascii_case(parent))
            })
            .map(|d| d.id.clone())
            .collect();
        if more.is_empty() {
            return gone;
        }
        gone.extend(more);
    }
}

async fn unplug(vmms: &Arc<Vmms>, vm: &Vm, gone: &[String]) -> Result<()> {
    let refuse = |what: &str| Err(fault!(HotPlugRefused, what, vm.name).about(Element::Vm(vm.id)));
    let Some(machine) = vmms.machine(vm.id) else {
        return refuse("a device of a saved machine");
    };
    for id in gone {
        match vm.device(id).map(|d| &d.kind) {
            Some(DeviceKind::Disk(disk)) => machine.remove_drive(&spec::drive_id(disk)).await?,
            Some(DeviceKind::Dvd { drive, .. }) => {
                machine
                    .change_medium(&spec::dvd_of(vm, drive)?.id, None)
                    .await?;
            }
            Some(DeviceKind::DiskDrive { .. }) => {}
            _ => return refuse(id),
        }
    }
    Ok(())
}

//! The machine in an export, as far as it is taken over.
//!
//! An export comes from anywhere. Its configuration is read up to a size, proven against its manifest, and taken apart: what is named here
//! goes into the new machine, all else does not. No path of a host is among it: a medium, a socket, a state file of the machine it was
//! exported from would be a file of this host. What is left out is told.

use std::time::SystemTime;

use disk::manifest::PlainFile;
use disk::verify::Export;
use uuid::Uuid;

use crate::machine::{Device, DeviceKind, Disk, NewVm, Power, Settings, Vm, new_vm, validate};
use crate::point::{CONFIG_FORMAT, SavedConfig};
use crate::{Dirs, Result, Vmms, export, fault, guid};

/// Largest configuration that is read: a machine with hundreds of disks of many layers has less.
const MOST_CONFIG: u64 = 8 << 20;
/// Largest file of firmware variables that is read: QEMU's templates have 540,672 bytes.
const MOST_FIRMWARE: u64 = 16 << 20;
/// Most resources of a machine: 4 controllers with 64 drives each, and media in them.
const MOST_DEVICES: usize = 1024;
/// Longest of the texts that are kept.
const MOST_TEXT: usize = 64 << 10;

/// Role of the configuration in a manifest.
const CONFIGURATION: &str = "configuration";
/// Role of the firmware's variables.
const FIRMWARE: &str = "firmware-variables";

/// A machine that was exported.
pub(crate) struct Exported {
    /// With its new identifier, off, without host paths: its disks lie nowhere yet.
    pub(crate) machine: Vm,
    /// The identifier it had.
    pub(crate) was: Uuid,
    /// What is not taken over, a line each.
    pub(crate) left_out: Vec<String>,
}

/// The configuration in the last export of a chain, as a machine with the identifier `id`.
pub(crate) fn machine(vmms: &Vmms, chain: &[Export], id: Uuid) -> Result<Exported> {
    let export = last(chain)?;
    let file = export.file(CONFIGURATION);
    let file = file.ok_or_else(|| fault!(ManifestUnusable, export.dir.display()))?;
    let bytes = export.read(file, MOST_CONFIG)?;
    let shown = export.dir.join(&file.path);
    let refused = |why: String| fault!(ConfigRefused, shown.display(), why);
    let saved = decode(&bytes).map_err(refused)?;
    let exported = rebuild(&vmms.host, &vmms.dirs, saved, id).map_err(refused)?;
    if !export
        .manifest
        .machine
        .id
        .eq_ignore_ascii_case(&guid(exported.was))
    {
        let why = "it is of another machine than the manifest".to_owned();
        return Err(refused(why));
    }
    validate(&exported.machine).map_err(|e| refused(e.text()).caused_by(e))?;
    Ok(exported)
}

/// The exported firmware variables.
pub(crate) fn firmware(chain: &[Export]) -> Result<Option<Vec<u8>>> {
    let export = last(chain)?;
    let file = export.file(FIRMWARE);
    let read = file.map(|file| export.read(file, MOST_FIRMWARE));
    Ok(read.transpose()?)
}

/// The exported memory, with the export it lies in.
pub(crate) fn memory(chain: &[Export]) -> Option<(&Export, &PlainFile)> {
    let export = chain.last()?;
    Some((export, export.file(export::RUNTIME)?))
}

/// What is told where exported memory is not taken over.
pub(crate) const WITHOUT_MEMORY: &str = "the saved memory is left out: QEMU runs what it says, so it is taken from exports you trust only (--with-memory, or import_memory in the configuration)";

fn last(chain: &[Export]) -> Result<&Export> {
    let last = chain.last();
    last.ok_or_else(|| fault!(Internal, "a chain without exports"))
}

/// Reads the file.
fn decode(bytes: &[u8]) -> std::result::Result<Vm, String> {
    let saved: SavedConfig = serde_json::from_slice(bytes)
        .map_err(|e| format!("it is no machine configuration: {e}"))?;
    if saved.format != CONFIG_FORMAT || saved.version != 1 {
        let (format, version) = (saved.format, saved.version);
        return Err(format!("{format:?} version {version} is not known"));
    }
    Ok(saved.machine)
}

/// Takes apart what was exported, and puts together what is taken over. Each field is named: a new one has to be decided about here.
fn rebuild(
    host: &str,
    dirs: &Dirs,
    exported: Vm,
    id: Uuid,
) -> std::result::Result<Exported, String> {
    let Vm {
        id: was,
        name,
        notes,
        generation,
        settings,
        memory,
        processor,
        devices,
        machine_type,
        // Of the service it was exported from.
        planned: _,
        created: _,
        changed: _,
        power: _,
        power_changed: _,
        saved_state: _,
        last_applied: _,
        descends_from: _,
        last_end: _,
        owner: _,
    } = exported;
    let mut left_out = Vec::new();
    if devices.len() > MOST_DEVICES {
        return Err(format!("it has {} resources", devices.len()));
    }
    let own = |text: String| {
        text.replace(&guid(was), &guid(id))
            .replace(&was.to_string(), &id.to_string())
    };
    let new = NewVm {
        id: Some(id),
        name,
        generation,
        notes,
        settings: settings_of(settings, was, id, &own)?,
    };
    let mut machine = new_vm(new, host, dirs);
    machine.memory = memory;
    machine.processor = processor;
    machine.devices = Vec::new();
    machine.power = Power::Off;
    machine.created = SystemTime::now();
    machine.machine_type = machine_type.filter(|name| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let fits = !name.is_empty() && name.len() <= 64 && name.chars().all(plain);
        if !fits {
            left_out.push(format!("the machine type {name:?} is left out"));
        }
        fits
    });
    for text in machine.notes.iter().chain([&machine.name]) {
        check_text(text, true)?;
    }
    for device in devices {
        let id = own(device.id);
        check_id(&id)?;
        check_text(&device.name, false)?;
        if machine.device(&id).is_some() {
            return Err(format!("it has two resources {id:?}"));
        }
        if let Some(kind) = device_of(device.kind, &own, &mut left_out)? {
            machine.devices.push(Device {
                id,
                name: device.name,
                kind,
            });
        }
    }
    Ok(Exported {
        machine,
        was,
        left_out,
    })
}

fn settings_of(
    settings: Settings,
    was: Uuid,
    id: Uuid,
    own: &dyn Fn(String) -> String,
) -> std::result::Result<Settings, String> {
    let Settings {
        automatic_startup_action,
        automatic_startup_delay,
        automatic_startup_sequence,
        automatic_shutdown_action,
        automatic_recovery_action,
        bios_guid,
        bios_serial,
        baseboard_serial,
        chassis_serial,
        chassis_asset_tag,
        bios_num_lock,
        boot_order,
        boot_source_order,
        incremental_backup_enabled,
        user_snapshot_type,
        secure_boot,
        virtual_numa,
        no_network,
        guest_agent,
        // Directories of the host it was exported from; the new machine has its own.
        configuration_data_root: _,
        snapshot_data_root: _,
        suspend_data_root: _,
        swap_file_data_root: _,
    } = settings;
    if boot_order.len() > 16 || boot_source_order.len() > MOST_DEVICES {
        return Err("its boot order is longer than any".to_owned());
    }
    let texts = [
        &bios_serial,
        &baseboard_serial,
        &chassis_serial,
        &chassis_asset_tag,
    ];
    for text in texts.into_iter().chain(&boot_source_order) {
        check_text(text, false)?;
    }
    Ok(Settings {
        automatic_startup_action,
        automatic_startup_delay,
        automatic_startup_sequence,
        automatic_shutdown_action,
        automatic_recovery_action,
        bios_guid: if bios_guid == was { id } else { bios_guid },
        bios_serial,
        baseboard_serial,
        chassis_serial,
        chassis_asset_tag,
        bios_num_lock,
        boot_order,
        boot_source_order: boot_source_order.into_iter().map(own).collect(),
        incremental_backup_enabled,
        user_snapshot_type,
        secure_boot,
        virtual_numa,
        no_network,
        guest_agent,
        ..Settings::default()
    })
}

/// A resource as it is taken over; `None` for one that only was a path of a host.
fn device_of(
    kind: DeviceKind,
    own: &dyn Fn(String) -> String,
    left_out: &mut Vec<String>,
) -> std::result::Result<Option<DeviceKind>, String> {
    let reference = |id: String| {
        let id = own(id);
        check_id(&id).map(|()| id)
    };
    Ok(Some(match kind {
        DeviceKind::IdeController { .. }
        | DeviceKind::ScsiController { .. }
        | DeviceKind::FloppyDrive => kind,
        DeviceKind::DiskDrive { controller, slot } => DeviceKind::DiskDrive {
            controller: reference(controller)?,
            slot,
        },
        DeviceKind::DvdDrive { controller, slot } => DeviceKind::DvdDrive {
            controller: reference(controller)?,
            slot,
        },
        DeviceKind::Disk(disk) => {
            let Disk {
                uid,
                drive,
                path,
                format,
                read_only,
                layers: _,
            } = *disk;
            DeviceKind::Disk(Box::new(Disk {
                uid,
                drive: reference(drive)?,
                // No more than a name: where the disk goes is decided by its importer.
                layers: crate::disk_tree::LayerTree::new(path.clone(), format, 0),
                path,
                format,
                read_only,
            }))
        }
        DeviceKind::Dvd { drive: _, path } => {
            let path = path.display();
            left_out.push(format!(
                "the medium {path}, a file of another host, is left out"
            ));
            return Ok(None);
        }
        DeviceKind::SerialPort { number, connection } => {
            if !matches!(number, 1 | 2) {
                return Err(format!("it has a serial port {number}"));
            }
            if let Some(socket) = connection {
                left_out.push(format!(
                    "the connection of serial port {number} to {socket} is left out"
                ));
            }
            DeviceKind::SerialPort {
                number,
                connection: None,
            }
        }
        DeviceKind::Nic {
            mac,
            static_mac,
            guid,
        } => {
            if mac.len() != 12 || !mac.chars().all(|c| c.is_ascii_hexdigit()) {
                return Err(format!("{mac:?} is no MAC address"));
            }
            DeviceKind::Nic {
                mac,
                static_mac,
                guid,
            }
        }
        DeviceKind::NicConnection {
            nic,
            switch,
            enabled,
        } => {
            if let Some(switch) = &switch {
                check_text(switch, false)?;
            }
            DeviceKind::NicConnection {
                nic: reference(nic)?,
                switch,
                enabled,
            }
        }
    }))
}

/// Identifiers become names towards QEMU.
fn check_id(id: &str) -> std::result::Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "\\-._{}".contains(c);
    if id.is_empty() || id.len() > 260 || !id.chars().all(plain) {
        return Err(format!("{id:?} is not the identifier of a resource"));
    }
    Ok(())
}

fn check_text(text: &str, lines: bool) -> std::result::Result<(), String> {
    let odd = |c: char| c.is_control() && !(lines && matches!(c, '\n' | '\r' | '\t'));
    if text.len() > MOST_TEXT || text.chars().any(odd) {
        let begin: String = text.chars().take(40).collect();
        return Err(format!("{begin:?}… is too long, or has control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Settings;
    use proptest::prelude::*;

    fn saved() -> Vec<u8> {
        let dirs = Dirs {
            state: "/s".into(),
            run: "/r".into(),
        };
        let new = NewVm {
            id: None,
            name: "web".to_owned(),
            generation: 1,
            notes: vec!["a note".to_owned()],
            settings: Settings::default(),
        };
        let config = SavedConfig {
            format: CONFIG_FORMAT.to_owned(),
            version: 1,
            machine: new_vm(new, "there", &dirs),
        };
        serde_json::to_vec(&config).unwrap()
    }

    fn read(bytes: &[u8]) -> std::result::Result<Exported, String> {
        let dirs = Dirs {
            state: "/s".into(),
            run: "/r".into(),
        };
        rebuild("here", &dirs, decode(bytes)?, Uuid::nil())
    }

    #[test]
    fn a_machine_keeps_its_settings_and_loses_where_it_was() {
        let exported = read(&saved()).unwrap();
        let machine = exported.machine;
        assert_eq!((machine.name.as_str(), machine.id), ("web", Uuid::nil()));
        assert_eq!(
            (machine.owner.as_str(), machine.power),
            ("here", Power::Off)
        );
        assert_eq!(machine.settings.bios_guid, machine.id);
        assert_eq!(machine.devices.len(), 5);
        assert!(exported.left_out.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_a_machine_without_bounds(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>()) {
            let mut bytes = saved();
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(exported) = read(&bytes) {
                let text = serde_json::to_string(&exported.machine).unwrap();
                prop_assert!(text.len() < 16 * bytes.len());
                prop_assert_eq!(exported.machine.id, Uuid::nil());
            }
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(read(&bytes).is_err());
        }
    }
}

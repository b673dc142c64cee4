//! The throw-away machine: from a chain of exports to what the hypervisor runs, and away again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::verify::Export;
use hypervisor::{Generation, ImageFormat, LayerFile, MachineConfig, NewImage, names};
use uuid::Uuid;

use super::{BootEvidence, Wanted};
use crate::blocking;
use crate::machine::{DeviceKind, Vm, spec};
use crate::restore::exported::{self, Exported};
use crate::restore::import::{firmware, leave_out_others, plan};
use crate::trusted::check_known;
use crate::{Fault, Result, Vmms, fault};

/// How often a process that cannot be reached is tried, and how long after each other: it may just be starting.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

/// Makes overlays on the exported images and the configuration of a machine on them.
pub(super) async fn restore(
    vmms: &Arc<Vmms>,
    chain: &[Export],
    id: Uuid,
    wanted: &Wanted,
    evidence: &mut BootEvidence,
) -> Result<MachineConfig> {
    let Exported {
        machine: mut record,
        was: exported,
        left_out,
    } = exported::machine(vmms, chain, id)?;
    evidence.left_out.extend(left_out);
    let name: String = record.name.chars().take(200).collect();
    record.name = format!("{name} (restored to be tried)");
    let disks = spec::state_dir(&vmms.dirs, id).join("disks");
    let parts = plan(chain, exported, &record, &disks)?;
    for disk in leave_out_others(&mut record, &parts) {
        let line = format!("the disk {}, which was not exported", disk.display());
        evidence.left_out.push(line);
    }
    separate(&mut record, wanted, evidence);
    for part in &parts {
        part.put_in(&mut record);
        // QEMU is about to see them, proven or not.
        let layers = part.layers.iter();
        check_known(layers.map(|l| (l.path.as_path(), ImageFormat::Qcow2)))?;
    }

    let (own, held) = (Arc::clone(vmms), chain.to_vec());
    blocking(move || {
        std::fs::create_dir_all(&disks).map_err(|e| Fault::io("create", &disks, &e))?;
        firmware(&own, &held, id)
    })
    .await?;
    for part in &parts {
        let beneath = part.layers.last().map(|l| l.path.display().to_string());
        let beneath = beneath.ok_or_else(|| fault!(Internal, "a disk without images"))?;
        let overlay = NewImage::overlay(&part.target, beneath, ImageFormat::Qcow2, part.size);
        vmms.images.create(&overlay).await?;
    }
    let mut config = spec::machine_config(&record, &vmms.dirs, &vmms.options)?;
    crate::host::owner::mark_run_dir(&vmms.identity, &spec::run_dir(&vmms.dirs, record.id))?;
    config.no_network = true;
    for drive in &mut config.drives {
        let part = parts
            .iter()
            .find(|p| drive.chain.iter().any(|l| l.path == p.target));
        let Some(part) = part else { continue };
        // Beneath the overlay everything is opened for reading only.
        let beneath = part.layers.iter().map(|layer| {
            let node = names::layer_node(Uuid::new_v4());
            LayerFile::new(node, layer.path.clone(), ImageFormat::Qcow2)
        });
        drive.chain = beneath.chain(drive.chain.drain(..)).collect();
    }
    Ok(config)
}

/// Takes everything from a machine by which it could meet the outside, or the machine it was exported from.
fn separate(record: &mut Vm, wanted: &Wanted, evidence: &mut BootEvidence) {
    record.settings.no_network = true;
    if wanted.agent {
        record.settings.guest_agent = true;
    }
    record.devices.retain(|d| match &d.kind {
        DeviceKind::Nic { .. } => {
            evidence
                .left_out
                .push(format!("the network adapter {}", d.name));
            false
        }
        DeviceKind::NicConnection { .. } => false,
        DeviceKind::Dvd { path, .. } => {
            evidence
                .left_out
                .push(format!("the medium {}", path.display()));
            false
        }
        _ => true,
    });
    for device in &mut record.devices {
        if let DeviceKind::SerialPort { number, connection } = &mut device.kind
            && connection.take().is_some()
        {
            let line = format!("the connection of serial port {number}");
            evidence.left_out.push(line);
        }
    }
}

/// Takes a throw-away machine away: process, disks, sockets. Fine where there is nothing (any more).
pub(super) async fn clear(vmms: &Arc<Vmms>, id: Uuid) -> Result<()> {
    let run = spec::run_dir(&vmms.dirs, id);
    // Enough to find the process by.
    let config = MachineConfig::new(id, "restored", Generation::Gen1, run.clone());
    let mut tries = 0;
    loop {
        match vmms.hypervisor.reattach(&config).await {
            Ok(None) => break,
            Ok(Some(machine)) => {
                machine.kill().await?;
                break;
            }
            Err(_) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let state = spec::state_dir(&vmms.dirs, id);
    blocking(move || [state, run].iter().try_for_each(|dir| remove_tree(dir))).await
}

fn remove_tree(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::io("remove", dir, &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Device, NewVm, Settings};

    #[test]
    fn a_throw_away_machine_has_no_network_no_media_and_nobody_elses_sockets() {
        let dirs = crate::Dirs {
            state: "/s".into(),
            run: "/r".into(),
        };
        let new = NewVm {
            id: None,
            name: "web".to_owned(),
            generation: 1,
            notes: Vec::new(),
            settings: Settings::default(),
        };
        let mut vm = crate::machine::new_vm(new, "here", &dirs);
        let device = |id: &str, kind| Device {
            id: id.to_owned(),
            name: id.to_owned(),
            kind,
        };
        vm.devices.push(device(
            "nic",
            DeviceKind::Nic {
                mac: "00155D000001".to_owned(),
                static_mac: true,
                guid: Uuid::nil(),
            },
        ));
        vm.devices.push(device(
            "dvd",
            DeviceKind::Dvd {
                drive: "d".to_owned(),
                path: "/iso".into(),
            },
        ));
        for device in &mut vm.devices {
            if let DeviceKind::SerialPort { connection, .. } = &mut device.kind {
                *connection = Some("/run/somebody.sock".to_owned());
            }
        }
        let mut evidence = BootEvidence::default();
        separate(&mut vm, &Wanted::default(), &mut evidence);
        assert_eq!(evidence.left_out.len(), 4, "{:?}", evidence.left_out);
        let config = spec::machine_config(&vm, &dirs, &crate::Options::default()).unwrap();
        assert!(config.no_network && config.nics.is_empty() && config.drives.is_empty());
        let sockets = config.serial.iter().flatten().map(|s| s.socket.clone());
        assert_eq!(
            sockets.collect::<Vec<_>>(),
            [spec::run_dir(&dirs, vm.id).join("com1.sock")]
        );
    }
}

//! Disks of a destination, open to the mirrors of the source.

use serde_json::{Value, json};

use super::super::exports::remove_export;
use super::super::graph::{Graph, exports};
use super::super::machine::QemuMachine;
use super::{setup, wire};
use crate::error::{Error, Result};
use crate::machine::MachineStatus;
use crate::migration::{Address, DiskOffer, Side};
use crate::names;

/// What the listening socket is called in QEMU, until it is used.
const LISTENING: &str = "move-disks";

pub(super) async fn offer(machine: &QemuMachine, offer: &DiskOffer) -> Result<Address> {
    if machine.query_status().await? != MachineStatus::Incoming {
        return Err(Error::conflict(
            "only a machine that waits to be received opens its disks for a mirror",
        ));
    }
    close(machine).await?;
    let graph = Graph::read(machine).await?;
    for drive in &offer.drives {
        graph.active(drive)?;
    }
    setup::credentials(machine, Side::Destination, offer.tls.as_ref()).await?;
    let (socket, address) = wire::listening(&offer.address).await?;
    let opened = async {
        wire::give(machine, LISTENING, socket).await?;
        let server = json!({
            "addr": { "type": "fd", "data": { "str": LISTENING } },
            "max-connections": 0,
        });
        let server = setup::secured(server, offer.tls.as_ref());
        if let Err(error) = machine.execute("nbd-server-start", server).await {
            wire::withdraw(machine, LISTENING).await;
            return Err(error);
        }
        for drive in &offer.drives {
            let name = names::of_move(drive);
            let export = json!({
                "type": "nbd", "id": name, "name": name, "node-name": graph.active(drive)?, "writable": true,
            });
            machine.execute("block-export-add", export).await?;
        }
        Ok(address)
    };
    let result = opened.await;
    if result.is_err() {
        // The first error is the one that matters.
        if let Err(error) = close(machine).await {
            tracing::warn!(%error, "disks that were to be opened for a mirror could not be closed");
        }
    }
    result
}

/// Closes all disks to mirrors, whoever is connected. Fine if none is open.
pub(super) async fn close(machine: &QemuMachine) -> Result<()> {
    let mut some = false;
    for export in exports(machine).await? {
        if names::drive_of_move(&export.id).is_some() {
            some = true;
            remove_export(machine, &export.id).await?;
        }
    }
    // A destination has no other exports: it never ran. Without exports of a move the server may be another's.
    if some || machine.query_status().await? == MachineStatus::Incoming {
        match machine.execute("nbd-server-stop", Value::Null).await {
            // It did not run.
            Ok(_) | Err(Error::Qmp { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

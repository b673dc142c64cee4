//! The active layer over NBD, with its allocation.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::graph::{Graph, exports};
use super::machine::QemuMachine;
use crate::block::NbdExport;
use crate::error::{Error, Result};
use crate::names;

/// How long readers of an export may take to be disconnected.
const CLOSE_DEADLINE: Duration = Duration::from_secs(20);

pub(super) async fn open(machine: &QemuMachine, drive: &str) -> Result<NbdExport> {
    let id = names::export(drive);
    let active = Graph::read(machine).await?.active(drive)?;
    let socket = machine.files().nbd();
    names::check_socket(&socket)?;
    let export = NbdExport {
        socket: socket.clone(),
        name: id.clone(),
        node_name: active.clone(),
    };
    if let Some(found) = exports(machine)
        .await?
        .into_iter()
        .find(|export| export.id == id)
    {
        if found.node_name == active && !found.shutting_down {
            return Ok(export);
        }
        // Opened for a layer that is frozen by now, or on its way out.
        close(machine, drive).await?;
    }
    let server = json!({
        "addr": { "type": "unix", "data": { "path": crate::config::path_text(&socket)? } },
        "max-connections": 0,
    });
    match machine.execute("nbd-server-start", server).await {
        Ok(_) => {}
        // One server serves all exports of a machine and stays; QEMU has no question to ask whether it is there.
        Err(Error::Qmp { desc, .. }) if desc.contains("already running") => {}
        Err(error) => return Err(error),
    }
    let arguments = json!({
        "type": "nbd", "id": id, "node-name": active, "name": id, "writable": false, "allocation-depth": true,
    });
    machine.execute("block-export-add", arguments).await?;
    Ok(export)
}

pub(super) async fn close(machine: &QemuMachine, drive: &str) -> Result<()> {
    let id = names::export(drive);
    let there = || async {
        Ok::<_, Error>(
            exports(machine)
                .await?
                .into_iter()
                .any(|export| export.id == id),
        )
    };
    if !there().await? {
        return Ok(());
    }
    match machine
        .execute("block-export-del", json!({ "id": id, "mode": "hard" }))
        .await
    {
        Ok(_) => {}
        // Already being removed, or gone meanwhile: the loop below sees which.
        Err(Error::Qmp { .. }) => {}
        Err(error) => return Err(error),
    }
    let deadline = Instant::now() + CLOSE_DEADLINE;
    while there().await? {
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "block-export-del".into(),
                after: CLOSE_DEADLINE,
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

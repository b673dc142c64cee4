//! The active layer over NBD, with its allocation.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::graph::{Graph, exports};
use super::machine::QemuMachine;
use crate::block::NbdExport;
use crate::error::{Error, Result};
use crate::names;

/// What the listening socket is called in QEMU.
const LISTENING: &str = "nbd-socket";

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
    serve(machine, &socket).await?;
    let arguments = json!({
        "type": "nbd", "id": id, "node-name": active, "name": id, "writable": false, "allocation-depth": true,
    });
    machine.execute("block-export-add", arguments).await?;
    Ok(export)
}

/// One server serves all exports of a machine and stays; QEMU has no question to ask whether it is there. Its socket is bound here and
/// handed over, so that QEMU needs no way into the run directory.
async fn serve(machine: &QemuMachine, socket: &Path) -> Result<()> {
    let server = json!({
        "addr": { "type": "fd", "data": { "str": LISTENING } },
        "max-connections": 0,
    });
    let start = || machine.execute("nbd-server-start", server.clone());
    let refused = match start().await {
        // It was handed over by a service that died right then.
        Ok(_) => return Ok(()),
        Err(Error::Qmp { desc, .. }) => desc,
        Err(error) => return Err(error),
    };
    if refused.contains("already running") {
        return Ok(());
    }
    let listening = super::given::listen(socket)?;
    let name = json!({ "fdname": LISTENING });
    machine.execute_with("getfd", name, listening).await?;
    start().await.map(drop)
}

pub(super) async fn close(machine: &QemuMachine, drive: &str) -> Result<()> {
    remove_export(machine, &names::export(drive)).await
}

/// Closes an export, whoever is connected. Fine if there is none.
pub(super) async fn remove_export(machine: &QemuMachine, id: &str) -> Result<()> {
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

//! Disconnecting a silent peer, out of band.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::machine::QemuMachine;
use crate::error::{Error, Result};
use crate::names;
use crate::qmp::codec::{items, text};

/// Commands out of band are answered at once; a loaded host is given time.
const DEADLINE: Duration = Duration::from_secs(20);

/// All channels of a move.
pub(super) async fn everything(machine: &QemuMachine) -> Result<()> {
    cut(machine, |_| true).await
}

/// Those of the disks.
pub(super) async fn disks(machine: &QemuMachine) -> Result<()> {
    cut(machine, |kind| kind == "block-node").await
}

async fn cut(machine: &QemuMachine, which: impl Fn(&str) -> bool) -> Result<()> {
    // One that is gone makes QEMU refuse all: they may go between question and command.
    for _ in 0..5 {
        let known = machine
            .execute_out_of_band("query-yank", Value::Null, DEADLINE)
            .await?;
        let ours = |instance: &&Value| match text(instance, "type") {
            Some("migration") => which("migration"),
            Some(kind @ "block-node") => {
                which(kind) && text(instance, "node-name").is_some_and(names::is_move_node)
            }
            _ => false,
        };
        let instances: Vec<&Value> = items(&known).iter().filter(ours).collect();
        if instances.is_empty() {
            return Ok(());
        }
        let arguments = json!({ "instances": instances });
        match machine
            .execute_out_of_band("yank", arguments, DEADLINE)
            .await
        {
            Err(Error::Qmp { .. }) => {}
            result => return result.map(drop),
        }
    }
    Err(Error::conflict(
        "the channels of the move change too fast to be cut",
    ))
}

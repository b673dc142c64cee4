//! A move that is not to be, and one that is taken back.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::super::machine::QemuMachine;
use super::seen::{self, Migration};
use super::{cut, mirrors, setup};
use crate::error::{Error, Result};
use crate::machine::{Machine, MachineStatus};
use crate::migration::{MovePhase, Side};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// A cancelled migration ends at once; a loaded host is given time.
const CANCEL_DEADLINE: Duration = Duration::from_secs(60);

/// After this the channels of a migration that is being cancelled are cut.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) async fn abandon(machine: &QemuMachine) -> Result<()> {
    // First: with a silent peer nothing else would be answered.
    match cut::disks(machine).await {
        Ok(()) | Err(Error::Unsupported { .. }) => {}
        Err(error) => return Err(error),
    }
    let phase = seen::moving(machine).await?.phase;
    match (phase, phase.side()) {
        (_, Some(Side::Destination)) => return machine.kill().await,
        (MovePhase::HandedOver, _) => return Err(handed_over()),
        (
            MovePhase::Sending
            | MovePhase::Cancelling
            | MovePhase::ReadyToSwitch
            | MovePhase::Switching,
            _,
        ) => cancel(machine).await?,
        _ => {}
    }
    mirrors::close(machine).await?;
    setup::plain(machine).await
}

fn handed_over() -> Error {
    Error::conflict("the machine was handed over: only the record of the move decides who may run")
}

async fn cancel(machine: &QemuMachine) -> Result<()> {
    machine.execute("migrate_cancel", Value::Null).await?;
    let begun = Instant::now();
    let mut cut_off = false;
    loop {
        // It may wait inside a read or write for a silent peer.
        if !cut_off && begun.elapsed() >= PATIENCE {
            cut_off = true;
            cut::everything(machine).await?;
        }
        let migration = Migration::read(machine).await?;
        if migration.status == "completed" {
            return Err(handed_over());
        }
        // The guest goes on a moment before or after the status says so.
        if migration.is_over() && machine.query_status().await? != MachineStatus::Saving {
            return Ok(());
        }
        if begun.elapsed() >= CANCEL_DEADLINE {
            return Err(Error::Timeout {
                command: "migrate_cancel".into(),
                after: CANCEL_DEADLINE,
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn take_back(machine: &QemuMachine, run: bool) -> Result<()> {
    let state = seen::moving(machine).await?;
    match (state.phase, &state.guest) {
        (MovePhase::HandedOver, _) => {}
        (MovePhase::None, MachineStatus::Running | MachineStatus::Paused) => return Ok(()),
        (phase, _) => {
            return Err(Error::conflict(format!(
                "the machine was not handed over ({phase:?})"
            )));
        }
    }
    // QEMU knows no other way back to its disks that all versions have.
    machine.execute("cont", Value::Null).await?;
    if !run {
        machine.execute("stop", Value::Null).await?;
    }
    mirrors::close(machine).await?;
    setup::plain(machine).await
}

//! The source: sends the memory, hands over.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::machine::QemuMachine;
use super::incoming::refuse_path;
use super::seen::{self, Migration};
use super::{setup, wire};
use crate::error::{Error, Result};
use crate::machine::{MachineEvent, MachineStatus};
use crate::migration::{
    Channel, Limits, Link, MirrorPhase, MovePhase, Moved, Side, Terms, Transfer,
};

/// Progress is looked at this often; a change of status is told by an event.
const LOOK: Duration = Duration::from_millis(100);
/// The guest stands still: looked at more often.
const SOON: Duration = Duration::from_millis(2);

/// What the connection is called in QEMU, until it is used.
const CONNECTION: &str = "move-memory";

pub(super) async fn send(
    machine: &QemuMachine,
    link: Link,
    terms: &Terms,
    limits: &Limits,
    transfer: &Transfer,
) -> Result<()> {
    setup::check(machine, &link, terms)?;
    let state = seen::moving(machine).await?;
    if !matches!(state.phase, MovePhase::None | MovePhase::Mirroring) {
        return Err(Error::conflict(format!(
            "a move of this machine is under way ({:?})",
            state.phase
        )));
    }
    if transfer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let begun = async {
        setup::capabilities(machine, Side::Source, terms, limits.auto_converge).await?;
        setup::credentials(machine, Side::Source, link.tls.as_ref()).await?;
        setup::channels(machine, terms, &link).await?;
        setup::limit(machine, limits).await?;
        begin(machine, link.channel, terms).await
    };
    match begun.await {
        Ok(()) => follow(machine, transfer).await,
        Err(error) => {
            if let Err(undo) = setup::plain(machine).await {
                tracing::warn!(error = %undo, "what a move set that did not begin stays set");
            }
            Err(error)
        }
    }
}

async fn begin(machine: &QemuMachine, channel: Channel, terms: &Terms) -> Result<()> {
    let uri = match channel {
        // QEMU makes as many connections as it needs.
        Channel::Address(address) if terms.multifd.is_some() => {
            let channel = Channel::Address(address.clone());
            refuse_path(machine, &channel)?;
            address.uri()?
        }
        channel => {
            let connection = wire::connected(channel).await?;
            wire::give(machine, CONNECTION, connection).await?;
            format!("fd:{CONNECTION}")
        }
    };
    let begun = machine.execute("migrate", json!({ "uri": uri })).await;
    if begun.is_err() && terms.multifd.is_none() {
        wire::withdraw(machine, CONNECTION).await;
    }
    begun.map(drop)
}

pub(super) async fn follow(machine: &QemuMachine, transfer: &Transfer) -> Result<()> {
    let mut events = machine.events_receiver();
    let mut asked = false;
    loop {
        let migration = Migration::read(machine).await?;
        transfer.report(migration.memory.clone());
        match migration.status.as_str() {
            "pre-switchover" if !asked && !transfer.is_cancelled() => return Ok(()),
            "failed" | "cancelled" => return Err(ended(machine, migration).await),
            "" | "none" | "completed" => {
                return Err(Error::conflict("nothing is being sent"));
            }
            _ => {}
        }
        tokio::select! {
            () = transfer.cancelled(), if !asked => {
                asked = true;
                machine.execute("migrate_cancel", Value::Null).await?;
            }
            () = migration_event(&mut events) => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Waits for news; for ever where there are none any more, since the process is gone then and every question says so.
async fn migration_event(events: &mut tokio::sync::broadcast::Receiver<MachineEvent>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(MachineEvent::Migration { .. }) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// It ended before the hand-over, and QEMU lets the guest go on. Nothing of it stays set.
async fn ended(machine: &QemuMachine, migration: Migration) -> Error {
    if let Err(error) = setup::plain(machine).await {
        tracing::warn!(%error, "what a move that ended had set stays set");
    }
    if migration.status == "cancelled" {
        return Error::Cancelled;
    }
    Error::Migration {
        side: Side::Source,
        // QEMU 7.2 does not always know.
        desc: migration
            .error
            .unwrap_or_else(|| "the connection or the destination failed".to_owned()),
        log_tail: machine.log_tail(),
    }
}

pub(super) async fn switch_over(machine: &QemuMachine, within: Duration) -> Result<Moved> {
    let state = seen::moving(machine).await?;
    match state.phase {
        MovePhase::ReadyToSwitch => {
            let open = |phase| phase != MirrorPhase::Ended;
            if let Some(one) = state.mirrors.iter().find(|mirror| open(mirror.phase)) {
                return Err(Error::conflict(format!(
                    "the mirror of drive `{}` was not ended",
                    one.drive_id
                )));
            }
            let go_on = json!({ "state": "pre-switchover" });
            match machine.execute("migrate-continue", go_on).await {
                // It may have failed a moment ago: seen below.
                Ok(_) | Err(Error::Qmp { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        MovePhase::Switching | MovePhase::HandedOver | MovePhase::SendEnded => {}
        phase => {
            return Err(Error::conflict(format!(
                "the machine does not stand still for the hand-over ({phase:?})"
            )));
        }
    }
    let deadline = Instant::now() + within;
    loop {
        let migration = Migration::read(machine).await?;
        match migration.status.as_str() {
            // The guest's state, and with it the downtime, come a moment later.
            "completed" if machine.query_status().await? == MachineStatus::Saved => {
                return Ok(Migration::read(machine).await?.moved);
            }
            "failed" | "cancelled" => return Err(ended(machine, migration).await),
            _ => {}
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "migrate-continue".into(),
                after: within,
            });
        }
        tokio::time::sleep(SOON).await;
    }
}

//! The destination: waits, loads, takes over.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::machine::QemuMachine;
use super::seen::{self, Migration};
use super::{setup, target, wire};
use crate::error::{Error, Result};
use crate::machine::MachineStatus;
use crate::migration::{Address, Channel, Link, MovePhase, Side, Terms};
use crate::qmp::codec::{items, text};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What the connection is called in QEMU, until it is used.
const CONNECTION: &str = "move-memory";

pub(super) async fn receive(
    machine: &QemuMachine,
    link: Link,
    terms: &Terms,
) -> Result<Option<Address>> {
    setup::check(machine, &link, terms)?;
    let state = seen::moving(machine).await?;
    if state.phase != MovePhase::Waiting {
        return Err(Error::conflict(format!(
            "the process does not wait for a machine ({:?})",
            state.phase
        )));
    }
    refuse_path(machine, &link.channel)?;
    setup::capabilities(machine, Side::Destination, terms, false).await?;
    setup::credentials(machine, Side::Destination, link.tls.as_ref()).await?;
    setup::channels(machine, terms, &link).await?;
    let (uri, address) = match link.channel {
        Channel::Address(address) => (address.uri()?, Some(address)),
        Channel::Stream(stream) => {
            wire::give(machine, CONNECTION, stream).await?;
            (format!("fd:{CONNECTION}"), None)
        }
    };
    let mut arguments = json!({ "uri": uri });
    // So that it can be asked why it failed, instead of ending.
    if let (true, Some(members)) = (
        machine.features().migration.stays_on_error,
        arguments.as_object_mut(),
    ) {
        members.insert("exit-on-error".into(), false.into());
    }
    machine.execute("migrate-incoming", arguments).await?;
    match address {
        Some(Address::Tcp { host, .. }) => {
            let port = port(machine).await?;
            Ok(Some(Address::Tcp { host, port }))
        }
        address => Ok(address),
    }
}

/// A Unix socket would have to be made by a user who may write to no directory.
pub(super) fn refuse_path(machine: &QemuMachine, channel: &Channel) -> Result<()> {
    if machine.has_user() && matches!(channel, Channel::Address(Address::Unix(_))) {
        return Err(Error::Unsupported {
            what: "a Unix socket for the memory of a machine whose QEMU has a user of its own"
                .into(),
            remedy: "hand over a connected stream, or take a TCP address with TLS".into(),
        });
    }
    Ok(())
}

async fn port(machine: &QemuMachine) -> Result<u16> {
    let answer = machine.execute("query-migrate", Value::Null).await?;
    let addresses = answer.get("socket-address").map(items).unwrap_or_default();
    let port = addresses.iter().find_map(|address| text(address, "port"));
    port.and_then(|port| port.parse().ok())
        .ok_or_else(|| Error::Protocol {
            peer: "QMP",
            detail: "QEMU listens and does not say where".into(),
        })
}

pub(super) async fn arrived(machine: &QemuMachine, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let state = seen::moving(machine).await?;
        match state.phase {
            MovePhase::Arrived => return Ok(()),
            MovePhase::Waiting | MovePhase::Receiving => {}
            MovePhase::ReceiveFailed => {
                let untold = || "loading failed, its log may say why".to_owned();
                return Err(Error::Migration {
                    side: Side::Destination,
                    desc: state.error.unwrap_or_else(untold),
                    log_tail: machine.log_tail(),
                });
            }
            phase => {
                return Err(Error::conflict(format!(
                    "the process does not wait for a machine ({phase:?})"
                )));
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "migrate-incoming".into(),
                after: within,
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn take_over(machine: &QemuMachine, run: bool) -> Result<()> {
    let state = seen::moving(machine).await?;
    match (state.phase, &state.guest) {
        (MovePhase::Arrived, _) => {
            target::close(machine).await?;
            // From here on it is a machine like others. Before it runs: a service that dies in between finds one that stands still, and
            // its record says that it may run.
            setup::plain(machine).await?;
        }
        (MovePhase::None, MachineStatus::Running) => return Ok(()),
        // An earlier attempt came as far as that.
        (MovePhase::None, MachineStatus::Paused)
            if Migration::read(machine).await?.status == "completed" => {}
        (phase, _) => {
            return Err(Error::conflict(format!(
                "no machine has arrived here ({phase:?})"
            )));
        }
    }
    if run {
        return machine.execute("cont", Value::Null).await.map(drop);
    }
    // Before QEMU 10.0 disks are taken when the guest runs, not earlier.
    if machine.features().migration.set_active {
        let active = json!({ "active": true });
        machine.execute("blockdev-set-active", active).await?;
    }
    Ok(())
}

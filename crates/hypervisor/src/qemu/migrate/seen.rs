//! What a process shows of a move.

use std::time::Duration;

use serde_json::Value;

use super::super::graph;
use super::super::machine::QemuMachine;
use super::mirrors;
use crate::error::{Error, Result};
use crate::machine::MachineStatus;
use crate::migration::{MemoryProgress, MovePhase, MoveState, Moved};
use crate::names;
use crate::qmp::codec::{flag, items, number, text};

/// The migration of a process, whatever it is for.
#[derive(Debug)]
pub(super) struct Migration {
    /// QEMU's status; empty where there never was one.
    pub(super) status: String,
    pub(super) error: Option<String>,
    pub(super) memory: MemoryProgress,
    pub(super) moved: Moved,
}

impl Migration {
    pub(super) async fn read(machine: &QemuMachine) -> Result<Self> {
        let answer = machine.execute("query-migrate", Value::Null).await?;
        Ok(Self::parse(&answer))
    }

    fn parse(answer: &Value) -> Self {
        let ms = |name| number(answer, name).map(Duration::from_millis);
        let ram = answer.get("ram").unwrap_or(&Value::Null);
        let of_ram = |name| number(ram, name).unwrap_or(0);
        let mbps = ram.get("mbps").and_then(Value::as_f64).unwrap_or(0.0);
        let elapsed = ms("total-time").unwrap_or_default();
        let transferred = of_ram("transferred");
        // QEMU's own rate covers the last tenth of a second only, and is 0 after the end.
        let average = u128::from(transferred) * 1000 / elapsed.as_millis().max(1);
        let rate = match mbps > 0.0 {
            // A float becomes an integer by the nearest representable one.
            true => (mbps * 125_000.0) as u64,
            false => u64::try_from(average).unwrap_or(u64::MAX),
        };
        let throttle = number(answer, "cpu-throttle-percentage");
        Self {
            status: text(answer, "status").unwrap_or_default().to_owned(),
            error: text(answer, "error-desc").map(str::to_owned),
            memory: MemoryProgress {
                total: of_ram("total"),
                remaining: of_ram("remaining"),
                transferred,
                rounds: of_ram("dirty-sync-count"),
                dirty_pages_per_second: of_ram("dirty-pages-rate"),
                page_size: of_ram("page-size"),
                bytes_per_second: rate,
                expected_downtime: ms("expected-downtime"),
                throttle_percent: throttle.and_then(|percent| u8::try_from(percent).ok()),
                elapsed,
            },
            moved: Moved {
                downtime: ms("downtime"),
                total: elapsed,
                setup: ms("setup-time").unwrap_or_default(),
                transferred,
                rounds: of_ram("dirty-sync-count"),
            },
        }
    }

    /// It has ended, well or not, or never began.
    pub(super) fn is_over(&self) -> bool {
        matches!(
            self.status.as_str(),
            "" | "none" | "completed" | "failed" | "cancelled"
        )
    }
}

/// Which end the capabilities say this process is.
async fn marks(machine: &QemuMachine) -> Result<(bool, bool)> {
    let capabilities = machine
        .execute("query-migrate-capabilities", Value::Null)
        .await?;
    let on = |wanted| {
        items(&capabilities)
            .iter()
            .any(|one| text(one, "capability") == Some(wanted) && flag(one, "state"))
    };
    Ok((on("pause-before-switchover"), on("late-block-activate")))
}

fn phase(
    guest: &MachineStatus,
    status: &str,
    (source, destination): (bool, bool),
    mirrored: bool,
) -> MovePhase {
    if *guest == MachineStatus::Incoming {
        return match status {
            "failed" | "cancelled" => MovePhase::ReceiveFailed,
            "" | "none" => MovePhase::Waiting,
            _ => MovePhase::Receiving,
        };
    }
    if destination {
        return match status {
            "failed" | "cancelled" => MovePhase::ReceiveFailed,
            "completed" => MovePhase::Arrived,
            _ => MovePhase::Receiving,
        };
    }
    if source {
        return match (status, guest) {
            ("" | "none", _) if mirrored => MovePhase::Mirroring,
            ("" | "none", _) => MovePhase::SendEnded,
            ("pre-switchover", _) => MovePhase::ReadyToSwitch,
            ("device", _) => MovePhase::Switching,
            ("cancelling", _) => MovePhase::Cancelling,
            ("failed" | "cancelled", _) => MovePhase::SendEnded,
            ("completed", MachineStatus::Saved) => MovePhase::HandedOver,
            // For a few milliseconds the guest's state lags behind.
            ("completed", MachineStatus::Saving) => MovePhase::Switching,
            ("completed", _) => MovePhase::None,
            _ => MovePhase::Sending,
        };
    }
    match mirrored {
        true => MovePhase::Mirroring,
        false => MovePhase::None,
    }
}

pub(super) async fn moving(machine: &QemuMachine) -> Result<MoveState> {
    // The marks first: they change only when nothing runs any more.
    let marks = marks(machine).await?;
    let migration = Migration::read(machine).await?;
    let guest = machine.query_status().await?;
    let mirrors = mirrors::states(machine).await?;
    let mirrored = !mirrors.is_empty();
    let phase = phase(&guest, &migration.status, marks, mirrored);
    let offered = graph::exports(machine)
        .await?
        .into_iter()
        .filter_map(|export| names::drive_of_move(&export.id).map(str::to_owned))
        .collect();
    // A cancelled migration may name the broken connection as its error.
    let error = migration.error.filter(|_| migration.status == "failed");
    Ok(MoveState {
        phase,
        guest,
        error,
        memory: migration.memory,
        mirrors,
        offered,
    })
}

/// Refuses what a machine that is being moved cannot do besides.
pub(in crate::qemu) async fn check_no_move(machine: &QemuMachine) -> Result<()> {
    match moving(machine).await?.phase {
        MovePhase::None => Ok(()),
        phase => Err(Error::conflict(format!(
            "the machine is being moved ({phase:?}): wait for the end of the move, or abandon it"
        ))),
    }
}

/// Refuses to run a machine that another process may run, or that is not whole.
pub(in crate::qemu) async fn check_may_run(machine: &QemuMachine) -> Result<()> {
    let guest = machine.query_status().await?;
    let stands = matches!(
        guest,
        MachineStatus::Incoming
            | MachineStatus::Saving
            | MachineStatus::Saved
            | MachineStatus::Paused
            | MachineStatus::Prelaunch
    );
    if !stands {
        return Ok(());
    }
    let marks = marks(machine).await?;
    if guest != MachineStatus::Incoming && marks == (false, false) {
        return Ok(());
    }
    let migration = Migration::read(machine).await?;
    let phase = phase(&guest, &migration.status, marks, false);
    match phase.forbids_running() {
        true => Err(Error::conflict(format!(
            "the machine is being moved ({phase:?}): it may run only where the move ends"
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_process_shows_which_end_it_is_and_how_far() {
        use MachineStatus as G;
        use MovePhase as P;
        let (neither, source, destination) = ((false, false), (true, false), (false, true));
        for (guest, status, marks, expected) in [
            (G::Running, "", neither, P::None),
            (G::Saved, "completed", neither, P::None),
            (G::Incoming, "", neither, P::Waiting),
            (G::Incoming, "setup", destination, P::Receiving),
            (G::Incoming, "active", destination, P::Receiving),
            (G::Incoming, "failed", destination, P::ReceiveFailed),
            (G::Paused, "completed", destination, P::Arrived),
            (G::Running, "active", source, P::Sending),
            (G::Paused, "active", source, P::Sending),
            (G::Saving, "pre-switchover", source, P::ReadyToSwitch),
            (G::Saving, "device", source, P::Switching),
            (G::Saving, "completed", source, P::Switching),
            (G::Saved, "completed", source, P::HandedOver),
            (G::Running, "completed", source, P::None),
            (G::Running, "failed", source, P::SendEnded),
            (G::Running, "cancelled", source, P::SendEnded),
        ] {
            let found = phase(&guest, status, marks, false);
            assert_eq!(found, expected, "{guest:?} {status}");
        }
        assert_eq!(phase(&G::Running, "", neither, true), P::Mirroring);
    }

    #[test]
    fn progress_is_read_with_its_units() {
        let answer = json!({
            "status": "active", "total-time": 2000, "expected-downtime": 300, "cpu-throttle-percentage": 30,
            "ram": { "total": 1000, "remaining": 10, "transferred": 4000, "dirty-sync-count": 3,
                "dirty-pages-rate": 7, "page-size": 4096, "mbps": 8.0 },
        });
        let migration = Migration::parse(&answer);
        assert_eq!(migration.memory.bytes_per_second, 1_000_000);
        assert_eq!(migration.memory.throttle_percent, Some(30));
        assert_eq!(migration.memory.dirty_bytes_per_second(), 7 * 4096);
        assert_eq!(
            migration.memory.expected_downtime,
            Some(Duration::from_millis(300))
        );
        assert!(!migration.is_over());
        assert!(Migration::parse(&json!({})).is_over());
    }
}

//! QEMU's events in our words.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::machine::{FailedDrive, MachineEvent};
use crate::names;
use crate::process::Process;
use crate::qmp::QmpEvent;
use crate::qmp::codec::{flag, items, text};

/// Which drive a node belongs to, so that events can name the drive.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeOwners {
    map: Arc<Mutex<HashMap<String, String>>>,
}

impl NodeOwners {
    pub(super) fn set(&self, node: &str, drive: &str) {
        self.map
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.to_owned(), drive.to_owned());
    }

    fn get(&self, node: &str) -> Option<String> {
        self.map
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(node)
            .cloned()
    }
}

/// Passes events on until the process has ended, then says so; ends early when the monitor client is dropped.
pub(super) async fn pump(
    mut events: broadcast::Receiver<QmpEvent>,
    mut closing: watch::Receiver<Option<String>>,
    process: Process,
    owners: NodeOwners,
    out: broadcast::Sender<MachineEvent>,
) {
    let pass = |event: &QmpEvent| {
        // Nobody listening is fine.
        let _ = out.send(translate(event, &owners));
    };
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Ok(event) => pass(&event),
                Err(RecvError::Lagged(count)) => tracing::warn!(count, "events were lost"),
                Err(RecvError::Closed) => return,
            },
            exit = process.exited() => {
                // The last events may still be on their way through the socket.
                let _ = tokio::time::timeout(Duration::from_secs(2), closing.wait_for(Option::is_some)).await;
                while let Ok(event) = events.try_recv() {
                    pass(&event);
                }
                let _ = out.send(MachineEvent::Exited(exit));
                return;
            }
        }
    }
}

fn translate(event: &QmpEvent, owners: &NodeOwners) -> MachineEvent {
    let data = &event.data;
    let own = |name| text(data, name).unwrap_or_default().to_owned();
    match event.name.as_str() {
        "STOP" => MachineEvent::Stopped,
        "RESUME" => MachineEvent::Resumed,
        "POWERDOWN" => MachineEvent::PowerdownRequested,
        "SHUTDOWN" => MachineEvent::Shutdown {
            guest: flag(data, "guest"),
            reason: own("reason"),
        },
        "RESET" => MachineEvent::Reset {
            guest: flag(data, "guest"),
        },
        "GUEST_PANICKED" => MachineEvent::GuestCrashed,
        "BLOCK_IO_ERROR" => {
            let node = text(data, "node-name").map(str::to_owned);
            MachineEvent::BlockIoError {
                drive: drive(data, "qom-path")
                    .or_else(|| drive(data, "device"))
                    .or_else(|| owners.get(node.as_deref()?)),
                node,
                write: text(data, "operation") == Some("write"),
                action: own("action"),
                no_space: flag(data, "nospace"),
                reason: own("reason"),
            }
        }
        "JOB_STATUS_CHANGE" => MachineEvent::JobStatus {
            id: own("id"),
            status: own("status"),
        },
        "BLOCK_JOB_COMPLETED" => MachineEvent::JobDone {
            id: own("device"),
            error: text(data, "error").map(str::to_owned),
        },
        "BLOCK_JOB_CANCELLED" => MachineEvent::JobDone {
            id: own("device"),
            error: Some("cancelled".to_owned()),
        },
        "MIGRATION" => MachineEvent::Migration {
            status: own("status"),
        },
        "DEVICE_TRAY_MOVED" => MachineEvent::TrayMoved {
            drive: drive(data, "id").or_else(|| drive(data, "device")),
            open: flag(data, "tray-open"),
        },
        "DEVICE_DELETED" => match drive(data, "device") {
            Some(drive) => MachineEvent::DriveRemoved { drive },
            None => MachineEvent::Other {
                name: event.name.clone(),
            },
        },
        "VSERPORT_CHANGE" if text(data, "id") == Some("agent-port") => MachineEvent::AgentChannel {
            open: flag(data, "open"),
        },
        name => MachineEvent::Other {
            name: name.to_owned(),
        },
    }
}

/// The drives that QEMU says wait with a failed request.
pub(super) fn failed_drives(query_block: &Value) -> Vec<FailedDrive> {
    let failed = items(query_block).iter().filter_map(|device| {
        let no_space = match text(device, "io-status")? {
            "nospace" => true,
            "failed" => false,
            _ => return None,
        };
        let drive = drive(device, "qdev").or_else(|| drive(device, "device"))?;
        Some(FailedDrive { drive, no_space })
    });
    failed.collect()
}

fn drive(data: &Value, name: &str) -> Option<String> {
    names::drive_of_device(text(data, name)?).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> MachineEvent {
        let owners = NodeOwners::default();
        owners.set("top", "sdb");
        translate(
            &QmpEvent {
                name: name.into(),
                data,
                seconds: 0,
                microseconds: 0,
            },
            &owners,
        )
    }

    #[test]
    fn an_io_error_names_its_drive_with_and_without_a_device_path() {
        for path in [json!("/machine/peripheral/drive-sdb"), Value::Null] {
            let data = json!({"qom-path": path, "device": "", "node-name": "top", "operation": "write", "action": "stop", "nospace": true, "reason": "full"});
            let MachineEvent::BlockIoError {
                drive,
                write,
                no_space,
                ..
            } = event("BLOCK_IO_ERROR", data)
            else {
                panic!("another event")
            };
            assert_eq!(
                (drive.as_deref(), write, no_space),
                (Some("sdb"), true, true)
            );
        }
    }

    #[test]
    fn drives_that_wait_with_a_failed_request_are_told() {
        let told = json!([
            {"device": "", "qdev": "drive-sda", "io-status": "ok"},
            {"device": "", "qdev": "/machine/peripheral/drive-sdb", "io-status": "nospace"},
            {"device": "", "qdev": "drive-sdc", "io-status": "failed"},
            {"device": "floppy0"},
        ]);
        let found: Vec<_> = failed_drives(&told)
            .into_iter()
            .map(|f| (f.drive, f.no_space))
            .collect();
        assert_eq!(found, [("sdb".to_owned(), true), ("sdc".to_owned(), false)]);
        assert!(failed_drives(&Value::Null).is_empty());
    }

    #[test]
    fn events_without_their_data_do_no_harm() {
        for name in [
            "SHUTDOWN",
            "RESET",
            "BLOCK_IO_ERROR",
            "JOB_STATUS_CHANGE",
            "DEVICE_TRAY_MOVED",
            "DEVICE_DELETED",
        ] {
            event(name, Value::Null);
        }
        assert_eq!(
            event("BALLOON_CHANGE", Value::Null),
            MachineEvent::Other {
                name: "BALLOON_CHANGE".into()
            }
        );
    }
}

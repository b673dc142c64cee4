//! The fake machine itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use super::layers::{self, drive_mut, drive_state, node_state};
use super::moves::Moving;
use super::script::{FakeClock, Script, locked};
use crate::agent::{GuestInfo, GuestInterface};
use crate::block::{
    BlockState, CommitOutcome, CommitSpec, ExportState, FreezeReport, JobControl, NbdExport,
    NewOverlay, NodeState, PreparedLayers, Quiesced,
};
use crate::config::{Controller, DriveConfig, LayerFile, MachineConfig};
use crate::error::{Error, Result};
use crate::image::ImageTool;
use crate::machine::{Exit, FailedDrive, Machine, MachineEvent, MachineStatus, SavedState};
use crate::names;

static NEXT_PID: AtomicI32 = AtomicI32::new(1_000_000);

/// A machine without a process.
#[derive(Debug)]
pub struct FakeMachine {
    id: Uuid,
    pid: i32,
    run_dir: PathBuf,
    script: Script,
    pub(super) clock: FakeClock,
    pub(super) images: Option<ImageTool>,
    events: broadcast::Sender<MachineEvent>,
    exit: watch::Sender<Option<Exit>>,
    pub(super) state: Arc<Mutex<State>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) status: MachineStatus,
    pub(super) moving: Moving,
    pub(super) ended: bool,
    pub(super) block: BlockState,
    agent: bool,
    frozen: bool,
    obeys_powerdown: bool,
    failed: Option<FailedDrive>,
    /// Fails again at once when the guest goes on.
    fails_again: bool,
    log_tail: String,
}

impl FakeMachine {
    pub(super) fn new(
        config: &MachineConfig,
        script: Script,
        clock: FakeClock,
        images: Option<ImageTool>,
        incoming: bool,
    ) -> Self {
        let block = BlockState {
            drives: config.drives.iter().map(drive_state).collect(),
            ..BlockState::default()
        };
        Self {
            id: config.id,
            pid: NEXT_PID.fetch_add(1, Ordering::Relaxed),
            run_dir: config.run_dir.clone(),
            script,
            clock,
            images,
            events: broadcast::Sender::new(256),
            exit: watch::Sender::new(None),
            state: Arc::new(Mutex::new(State {
                status: match incoming {
                    true => MachineStatus::Incoming,
                    false => MachineStatus::Prelaunch,
                },
                moving: Moving::new(config, incoming),
                ended: false,
                block,
                agent: config.guest_agent,
                frozen: false,
                obeys_powerdown: true,
                failed: None,
                fails_again: false,
                log_tail: String::new(),
            })),
        }
    }

    /// Whether it "runs".
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Whether the guest ends when the power button is pressed (it does, unless told otherwise).
    pub fn set_obeys_powerdown(&self, obeys: bool) {
        locked(&self.state).obeys_powerdown = obeys;
    }

    /// Whether an agent answers in the guest.
    pub fn set_agent(&self, present: bool) {
        locked(&self.state).agent = present;
    }

    /// Makes something happen.
    pub fn emit(&self, event: MachineEvent) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// The process dies, as by `kill -9` from outside.
    pub fn die(&self, signal: i32) {
        let log_tail = locked(&self.state).log_tail.clone();
        self.end(Exit {
            code: None,
            signal: Some(signal),
            log_tail,
        });
    }

    /// The process ends by itself with that code and these last words.
    pub fn crash(&self, code: i32, log_tail: &str) {
        self.end(Exit {
            code: Some(code),
            signal: None,
            log_tail: log_tail.to_owned(),
        });
    }

    /// What it has written to its log.
    pub fn set_log(&self, log: &str) {
        log.clone_into(&mut locked(&self.state).log_tail);
    }

    /// The guest powers itself off.
    pub fn shut_down(&self) {
        self.emit(MachineEvent::Shutdown {
            guest: true,
            reason: "guest-shutdown".into(),
        });
        self.end(Exit {
            code: Some(0),
            signal: None,
            log_tail: String::new(),
        });
    }

    /// A disk without room stops the guest.
    pub fn io_error(&self, drive: &str) {
        self.fail_write(drive, true);
    }

    /// A write that failed stops the guest: there is no room, or the storage broke.
    pub fn fail_write(&self, drive: &str, no_space: bool) {
        {
            let mut state = locked(&self.state);
            state.status = MachineStatus::IoError;
            state.failed = Some(FailedDrive {
                drive: drive.to_owned(),
                no_space,
            });
        }
        let reason = match no_space {
            true => "No space left on device",
            false => "Input/output error",
        };
        self.emit(MachineEvent::BlockIoError {
            drive: Some(drive.to_owned()),
            node: None,
            write: true,
            action: "stop".into(),
            no_space,
            reason: reason.into(),
        });
        self.emit(MachineEvent::Stopped);
    }

    /// Whether the write that failed fails again when the guest goes on.
    pub fn set_fails_again(&self, again: bool) {
        locked(&self.state).fails_again = again;
    }

    fn end(&self, exit: Exit) {
        let first = self.exit.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(exit.clone());
            }
            first
        });
        if first {
            {
                let mut state = locked(&self.state);
                state.ended = true;
                state.moving.disconnect();
            }
            self.emit(MachineEvent::Exited(exit));
        }
    }

    pub(super) async fn enter(&self, method: &str, detail: &str) -> Result<super::script::After> {
        let after = self.script.enter(method, detail).await?;
        self.alive()?;
        Ok(after)
    }

    /// A dead fake answers nothing.
    pub(super) fn alive(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        Err(Error::ProcessGone {
            log_tail: String::new(),
        })
    }

    fn agent(&self, after: Duration) -> Result<()> {
        if locked(&self.state).agent {
            Ok(())
        } else {
            Err(Error::AgentAbsent { after })
        }
    }

    pub(super) fn set_running(&self, running: bool) {
        let (status, event) = if running {
            (MachineStatus::Running, MachineEvent::Resumed)
        } else {
            (MachineStatus::Paused, MachineEvent::Stopped)
        };
        let changed = {
            let mut state = locked(&self.state);
            let changed = (state.status == MachineStatus::Running) != running;
            if changed {
                state.status = status;
            }
            changed
        };
        if changed {
            self.emit(event);
        }
        let failed = {
            let mut state = locked(&self.state);
            let failed = state.failed.take_if(|_| running);
            failed.filter(|_| state.fails_again)
        };
        if let Some(failed) = failed {
            self.fail_write(&failed.drive, failed.no_space);
        }
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn id(&self) -> Uuid {
        self.id
    }

    fn pid(&self) -> i32 {
        self.pid
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    async fn status(&self) -> Result<MachineStatus> {
        let after = self.enter("status", "").await?;
        after.answer(locked(&self.state).status.clone())
    }

    async fn failed_drives(&self) -> Result<Vec<FailedDrive>> {
        let after = self.enter("failed_drives", "").await?;
        after.answer(locked(&self.state).failed.clone().into_iter().collect())
    }

    async fn resume(&self) -> Result<()> {
        let after = self.enter("resume", "").await?;
        let phase = locked(&self.state).moving.phase;
        if phase.forbids_running() {
            return Err(Error::conflict(format!(
                "the machine is being moved ({phase:?}): it may run only where the move ends"
            )));
        }
        self.set_running(true);
        after.answer(())
    }

    async fn pause(&self) -> Result<()> {
        let after = self.enter("pause", "").await?;
        self.set_running(false);
        after.answer(())
    }

    async fn powerdown(&self) -> Result<()> {
        let after = self.enter("powerdown", "").await?;
        self.emit(MachineEvent::PowerdownRequested);
        let obeys = locked(&self.state).obeys_powerdown;
        if obeys {
            self.shut_down();
        }
        after.answer(())
    }

    async fn reset(&self) -> Result<()> {
        let after = self.enter("reset", "").await?;
        self.emit(MachineEvent::Reset { guest: false });
        after.answer(())
    }

    async fn quit(&self, _within: Duration) -> Result<()> {
        let after = self.script.enter("quit", "").await?;
        self.end(Exit {
            code: Some(0),
            signal: None,
            log_tail: String::new(),
        });
        after.answer(())
    }

    async fn kill(&self) -> Result<()> {
        let after = self.script.enter("kill", "").await?;
        self.die(9);
        after.answer(())
    }

    async fn exited(&self) -> Exit {
        let mut receiver = self.exit.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone(),
            Err(_) => None,
        }
        .unwrap_or(Exit {
            code: None,
            signal: None,
            log_tail: String::new(),
        })
    }

    async fn save_state(&self, path: &Path) -> Result<SavedState> {
        let after = self
            .enter("save_state", &path.display().to_string())
            .await?;
        self.set_running(false);
        std::fs::write(path, b"state of a fake")
            .map_err(|source| Error::io("write", path, source))?;
        let saved = SavedState {
            path: path.to_owned(),
            bytes: 15,
            stopped_at: self.clock.now(),
            took: Duration::ZERO,
        };
        self.end(Exit {
            code: Some(0),
            signal: None,
            log_tail: String::new(),
        });
        after.answer(saved)
    }

    async fn add_drive(&self, drive: &DriveConfig) -> Result<()> {
        let after = self.enter("add_drive", &drive.id).await?;
        if matches!(drive.controller, Controller::Ide(_)) {
            return Err(Error::config(
                "IDE drives cannot be added while the machine runs",
            ));
        }
        {
            let mut state = locked(&self.state);
            if state.block.drive(&drive.id).is_none() {
                state.block.drives.push(drive_state(drive));
                state.moving.plug(drive);
            }
        }
        after.answer(())
    }

    async fn remove_drive(&self, drive_id: &str) -> Result<()> {
        let after = self.enter("remove_drive", drive_id).await?;
        {
            let mut state = locked(&self.state);
            state.block.drives.retain(|drive| drive.id != drive_id);
            state.moving.unplug(drive_id);
        }
        self.emit(MachineEvent::DriveRemoved {
            drive: drive_id.to_owned(),
        });
        after.answer(())
    }

    async fn change_medium(&self, drive_id: &str, medium: Option<&LayerFile>) -> Result<()> {
        let after = self.enter("change_medium", drive_id).await?;
        drive_mut(&mut locked(&self.state).block, drive_id)?.chain =
            medium.iter().map(|layer| node_state(layer)).collect();
        after.answer(())
    }

    async fn resize(&self, drive_id: &str, bytes: u64) -> Result<()> {
        let after = self.enter("resize", &format!("{drive_id} {bytes}")).await?;
        if let Some(active) = drive_mut(&mut locked(&self.state).block, drive_id)?
            .chain
            .last_mut()
        {
            active.size = bytes;
        }
        after.answer(())
    }

    async fn prepare_layers(&self, overlays: &[NewOverlay]) -> Result<PreparedLayers> {
        let nodes: Vec<&str> = overlays
            .iter()
            .map(|overlay| overlay.overlay_node.as_str())
            .collect();
        let after = self.enter("prepare_layers", &nodes.join(" ")).await?;
        after.answer(layers::prepare(self, overlays).await?)
    }

    async fn quiesce(&self) -> Result<Quiesced> {
        let after = self.enter("quiesce", "").await?;
        let was_running = locked(&self.state).status == MachineStatus::Running;
        self.set_running(false);
        after.answer(Quiesced {
            was_running,
            at: self.clock.now(),
        })
    }

    async fn mark(&self, prepared: &PreparedLayers) -> Result<FreezeReport> {
        let after = self.enter("mark", "").await?;
        after.answer(layers::mark(self, prepared)?)
    }

    async fn release(&self, quiesced: Quiesced) -> Result<()> {
        let after = self.enter("release", "").await?;
        if quiesced.was_running {
            self.set_running(true);
        }
        after.answer(())
    }

    async fn discard_layers(&self, prepared: &PreparedLayers) -> Result<()> {
        let after = self.enter("discard_layers", "").await?;
        after.answer(layers::discard(self, prepared)?)
    }

    async fn commit(&self, spec: &CommitSpec, control: &JobControl) -> Result<CommitOutcome> {
        let detail = format!(
            "{} {} into {}",
            spec.drive_id, spec.top_node, spec.base_node
        );
        let after = self.enter("commit", &detail).await?;
        after.answer(layers::commit(self, spec, control).await?)
    }

    async fn drop_merged(&self, files: &[PathBuf]) -> Result<()> {
        let after = self.enter("drop_merged", "").await?;
        layers::drop_merged(self, files);
        after.answer(())
    }

    async fn reconcile(&self) -> Result<BlockState> {
        let after = self.enter("reconcile", "").await?;
        after.answer(locked(&self.state).block.clone())
    }

    async fn close_nodes(&self, nodes: &[String]) -> Result<()> {
        let after = self.enter("close_nodes", &nodes.join(" ")).await?;
        {
            let mut state = locked(&self.state);
            let used = |node: &NodeState| nodes.contains(&node.node_name);
            if state
                .block
                .drives
                .iter()
                .any(|drive| drive.chain.iter().any(used))
            {
                return Err(Error::conflict("a drive uses the node"));
            }
            state.block.loose_nodes.retain(|node| !used(node));
        }
        after.answer(())
    }

    async fn export_active(&self, drive_id: &str) -> Result<NbdExport> {
        let after = self.enter("export_active", drive_id).await?;
        let export = {
            let mut state = locked(&self.state);
            let node = drive_mut(&mut state.block, drive_id)?
                .active()
                .map(|node| node.node_name.clone())
                .ok_or_else(|| Error::conflict(format!("drive `{drive_id}` has no medium")))?;
            let id = names::export(drive_id);
            if !state.block.exports.iter().any(|export| export.id == id) {
                state.block.exports.push(ExportState {
                    id: id.clone(),
                    node_name: node.clone(),
                    shutting_down: false,
                });
            }
            NbdExport {
                socket: self.run_dir.join("nbd.sock"),
                name: id,
                node_name: node,
            }
        };
        after.answer(export)
    }

    async fn close_export(&self, drive_id: &str) -> Result<()> {
        let after = self.enter("close_export", drive_id).await?;
        let id = names::export(drive_id);
        locked(&self.state)
            .block
            .exports
            .retain(|export| export.id != id);
        after.answer(())
    }

    async fn guest_ping(&self, within: Duration) -> Result<()> {
        let after = self.enter("guest_ping", "").await?;
        self.agent(within)?;
        after.answer(())
    }

    async fn guest_freeze(&self, within: Duration) -> Result<u64> {
        let after = self.enter("guest_freeze", "").await?;
        self.agent(within)?;
        locked(&self.state).frozen = true;
        after.answer(1)
    }

    async fn guest_thaw(&self, within: Duration) -> Result<u64> {
        let after = self.enter("guest_thaw", "").await?;
        self.agent(within)?;
        let was = std::mem::take(&mut locked(&self.state).frozen);
        after.answer(u64::from(was))
    }

    async fn guest_frozen(&self, within: Duration) -> Result<bool> {
        let after = self.enter("guest_frozen", "").await?;
        self.agent(within)?;
        after.answer(locked(&self.state).frozen)
    }

    async fn guest_shutdown(&self, within: Duration) -> Result<()> {
        let after = self.enter("guest_shutdown", "").await?;
        self.agent(within)?;
        self.shut_down();
        after.answer(())
    }

    async fn guest_info(&self, within: Duration) -> Result<GuestInfo> {
        let after = self.enter("guest_info", "").await?;
        self.agent(within)?;
        after.answer(GuestInfo {
            os_id: Some("fake".into()),
            ..GuestInfo::default()
        })
    }

    async fn guest_interfaces(&self, within: Duration) -> Result<Vec<GuestInterface>> {
        let after = self.enter("guest_interfaces", "").await?;
        self.agent(within)?;
        after.answer(Vec::new())
    }
}

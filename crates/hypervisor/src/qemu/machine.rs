//! One QEMU process as a [`Machine`]. The work itself is in the neighbouring modules.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::confinement::Held;
use super::events::{NodeOwners, pump};
use super::{commit, confinement, drives, exports, graph, layers, migrate, state};
use crate::agent::{Agent, GuestInfo, GuestInterface};
use crate::block::{
    BlockState, CommitOutcome, CommitSpec, FreezeReport, JobControl, NbdExport, NewOverlay,
    PreparedLayers, Quiesced,
};
use crate::config::{DriveConfig, LayerFile, MachineConfig};
use crate::confine::grants::Access;
use crate::error::{Error, Result};
use crate::image::ImageTool;
use crate::machine::{Exit, FailedDrive, Machine, MachineEvent, MachineStatus, SavedState};
use crate::names::RunFiles;
use crate::probe::Features;
use crate::process::Process;
use crate::qmp::Qmp;
use crate::qmp::codec::text;

/// Events kept for a slow reader.
const EVENT_BACKLOG: usize = 1024;

/// A running QEMU.
#[derive(Debug)]
pub struct QemuMachine {
    config: MachineConfig,
    files: RunFiles,
    process: Process,
    qmp: Qmp,
    agent: Option<Agent>,
    features: Arc<Features>,
    images: ImageTool,
    held: Held,
    owners: NodeOwners,
    facts: graph::Facts,
    events: broadcast::Sender<MachineEvent>,
}

impl QemuMachine {
    pub(super) fn attach(
        config: &MachineConfig,
        process: Process,
        qmp: Qmp,
        features: Arc<Features>,
        images: ImageTool,
        held: Held,
    ) -> Self {
        let files = RunFiles::new(&config.run_dir);
        let owners = NodeOwners::default();
        for drive in &config.drives {
            for layer in &drive.chain {
                owners.set(&layer.node_name, &drive.id);
            }
        }
        let events = broadcast::Sender::new(EVENT_BACKLOG);
        tokio::spawn(pump(
            qmp.events(),
            qmp.closing(),
            process.clone(),
            owners.clone(),
            events.clone(),
        ));
        let (ending, ended) = (process.clone(), held.clone());
        tokio::spawn(async move {
            ending.exited().await;
            confinement::ended(&ended);
        });
        // The process decides, not a configuration that may have changed since it started.
        let agent = files.agent().exists().then(|| Agent::new(files.agent()));
        Self {
            config: config.clone(),
            files,
            process,
            qmp,
            agent,
            features,
            images,
            held,
            owners,
            facts: graph::Facts::default(),
            events,
        }
    }

    /// Executes any monitor command, for what has no method of its own.
    ///
    /// # Errors
    /// As QEMU says; [`Error::ProcessGone`] with QEMU's last words.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        match self.qmp.execute(command, arguments).await {
            Err(Error::ProcessGone { .. }) => Err(self.gone().await),
            result => result,
        }
    }

    /// The connection broke: either the process is ending, or QEMU hung up on us.
    async fn gone(&self) -> Error {
        match tokio::time::timeout(Duration::from_secs(5), self.process.exited()).await {
            Ok(exit) => Error::ProcessGone {
                log_tail: exit.log_tail,
            },
            Err(_) => Error::Protocol {
                peer: "QMP",
                detail: "the connection was lost, the process still runs".into(),
            },
        }
    }

    /// What QEMU can do.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Sockets and files of the process.
    #[must_use]
    pub fn files(&self) -> &RunFiles {
        &self.files
    }

    pub(super) fn images(&self) -> &ImageTool {
        &self.images
    }

    pub(super) fn owners(&self) -> &NodeOwners {
        &self.owners
    }

    pub(super) fn facts(&self) -> &graph::Facts {
        &self.facts
    }

    pub(super) fn events_receiver(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    pub(super) fn check_drive(&self, drive: &DriveConfig) -> Result<()> {
        self.config.check_drive(drive)
    }

    pub(super) async fn has_bus(&self, device: &str) -> Result<bool> {
        drives::has_device(self, device).await
    }

    pub(super) async fn delete_layer(&self, node: &str) -> Result<()> {
        layers::delete_layer(self, node).await
    }

    pub(super) async fn query_status(&self) -> Result<MachineStatus> {
        let answer = self.execute("query-status", Value::Null).await?;
        Ok(MachineStatus::from_run_state(
            text(&answer, "status").unwrap_or_default(),
        ))
    }

    pub(super) async fn restore_state(&self, path: &Path) -> Result<()> {
        state::restore(self, path).await
    }

    /// Lets QEMU open that file so, before it is told to. Nothing has to be done where QEMU runs as the service's own user.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Config`], [`Error::Unsupported`] with a remedy.
    pub fn grant(&self, path: &Path, access: Access) -> Result<()> {
        match &self.held.grants {
            Some(grants) => grants.grant([(path, access)]),
            None => Ok(()),
        }
    }

    /// The same for a whole drive: the topmost layer is written, those beneath are read.
    pub(super) fn grant_drive(&self, drive: &DriveConfig) -> Result<()> {
        match &self.held.grants {
            Some(grants) => grants.grant(confinement::files_of(drive)),
            None => Ok(()),
        }
    }

    /// Executes a monitor command that takes a descriptor along.
    pub(super) async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: OwnedFd,
    ) -> Result<Value> {
        match self.qmp.execute_with(command, arguments, descriptor).await {
            Err(Error::ProcessGone { .. }) => Err(self.gone().await),
            result => result,
        }
    }

    /// Executes a monitor command that works even while another one hangs.
    pub(super) async fn execute_out_of_band(
        &self,
        command: &str,
        arguments: Value,
        within: Duration,
    ) -> Result<Value> {
        let answer = self.qmp.execute_out_of_band(command, arguments, within);
        match answer.await {
            Err(Error::ProcessGone { .. }) => Err(self.gone().await),
            result => result,
        }
    }

    /// QEMU's last lines, from a process that may live.
    pub(super) fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Whether QEMU has a user of its own, to whom nothing is open by name that was not granted.
    pub(super) fn has_user(&self) -> bool {
        self.held.grants.is_some()
    }

    pub(super) async fn end(&self, within: Duration) -> Result<()> {
        let ended = self.ask_to_end(within).await;
        if self.process.exit().is_some() {
            confinement::ended(&self.held);
        }
        ended
    }

    async fn ask_to_end(&self, within: Duration) -> Result<()> {
        if self.process.exit().is_some() {
            return Ok(());
        }
        let asked = async {
            match self.qmp.execute_within("quit", Value::Null, within).await {
                // The connection may break before the answer is through.
                Ok(_) | Err(Error::ProcessGone { .. }) => {}
                Err(error) => {
                    tracing::warn!(machine = %self.config.id, %error, "QEMU does not want to quit")
                }
            }
            self.process.exited().await
        };
        match tokio::time::timeout(within, asked).await {
            Ok(_) => Ok(()),
            Err(_) => {
                tracing::warn!(machine = %self.config.id, "QEMU does not end: killed");
                self.process.kill().await
            }
        }
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().ok_or_else(|| Error::Unsupported {
            what: "a guest agent: the machine was started without its channel".into(),
            remedy: "enable the guest service interface and restart the machine".into(),
        })
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn id(&self) -> Uuid {
        self.config.id
    }

    fn pid(&self) -> i32 {
        self.process.pid()
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events_receiver()
    }

    async fn status(&self) -> Result<MachineStatus> {
        self.query_status().await
    }

    async fn failed_drives(&self) -> Result<Vec<FailedDrive>> {
        let drives = self.execute("query-block", Value::Null).await?;
        Ok(super::events::failed_drives(&drives))
    }

    async fn resume(&self) -> Result<()> {
        migrate::check_may_run(self).await?;
        // A save that was interrupted goes on by itself in QEMU, and would stop the guest again at its end.
        state::abandon(self).await?;
        self.execute("cont", Value::Null).await.map(drop)
    }

    async fn pause(&self) -> Result<()> {
        self.execute("stop", Value::Null).await.map(drop)
    }

    async fn powerdown(&self) -> Result<()> {
        self.execute("system_powerdown", Value::Null)
            .await
            .map(drop)
    }

    async fn reset(&self) -> Result<()> {
        self.execute("system_reset", Value::Null).await.map(drop)
    }

    async fn quit(&self, within: Duration) -> Result<()> {
        self.end(within).await
    }

    async fn kill(&self) -> Result<()> {
        self.process.kill().await?;
        confinement::ended(&self.held);
        Ok(())
    }

    fn grant(&self, path: &Path, access: Access) -> Result<()> {
        Self::grant(self, path, access)
    }

    async fn exited(&self) -> Exit {
        self.process.exited().await
    }

    async fn save_state(&self, path: &Path) -> Result<SavedState> {
        state::save(self, path).await
    }

    async fn add_drive(&self, drive: &DriveConfig) -> Result<()> {
        drives::add(self, drive).await
    }

    async fn remove_drive(&self, drive_id: &str) -> Result<()> {
        drives::remove(self, drive_id).await
    }

    async fn change_medium(&self, drive_id: &str, medium: Option<&LayerFile>) -> Result<()> {
        drives::change_medium(self, drive_id, medium).await
    }

    async fn resize(&self, drive_id: &str, bytes: u64) -> Result<()> {
        drives::resize(self, drive_id, bytes).await
    }

    async fn prepare_layers(&self, overlays: &[NewOverlay]) -> Result<PreparedLayers> {
        layers::prepare(self, overlays).await
    }

    async fn quiesce(&self) -> Result<Quiesced> {
        layers::quiesce(self).await
    }

    async fn mark(&self, prepared: &PreparedLayers) -> Result<FreezeReport> {
        layers::mark(self, prepared).await
    }

    async fn release(&self, quiesced: Quiesced) -> Result<()> {
        layers::release(self, quiesced).await
    }

    async fn discard_layers(&self, prepared: &PreparedLayers) -> Result<()> {
        layers::discard(self, prepared).await
    }

    async fn commit(&self, spec: &CommitSpec, control: &JobControl) -> Result<CommitOutcome> {
        commit::commit(self, spec, control).await
    }

    async fn drop_merged(&self, files: &[PathBuf]) -> Result<()> {
        commit::drop_merged(self, files).await
    }

    async fn reconcile(&self) -> Result<BlockState> {
        graph::reconcile(self).await
    }

    async fn close_nodes(&self, nodes: &[String]) -> Result<()> {
        drives::close_nodes(self, nodes).await
    }

    async fn export_active(&self, drive_id: &str) -> Result<NbdExport> {
        exports::open(self, drive_id).await
    }

    async fn close_export(&self, drive_id: &str) -> Result<()> {
        exports::close(self, drive_id).await
    }

    async fn guest_ping(&self, within: Duration) -> Result<()> {
        self.agent()?.ping(within).await
    }

    async fn guest_freeze(&self, within: Duration) -> Result<u64> {
        self.agent()?.freeze(within).await
    }

    async fn guest_thaw(&self, within: Duration) -> Result<u64> {
        self.agent()?.thaw(within).await
    }

    async fn guest_frozen(&self, within: Duration) -> Result<bool> {
        self.agent()?.frozen(within).await
    }

    async fn guest_shutdown(&self, within: Duration) -> Result<()> {
        self.agent()?.shutdown(within).await
    }

    async fn guest_info(&self, within: Duration) -> Result<GuestInfo> {
        self.agent()?.info(within).await
    }

    async fn guest_interfaces(&self, within: Duration) -> Result<Vec<GuestInterface>> {
        self.agent()?.interfaces(within).await
    }
}

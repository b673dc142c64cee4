//! A move's steps, on both hosts, counted: each change of a record and each thing that is asked of a process has two, before and after
//! it. At one of them something happens; at all of them it is looked whether two hosts may run the machine.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::agent::{GuestInfo, GuestInterface};
use hypervisor::block::{
    BlockState, CommitOutcome, CommitSpec, FreezeReport, JobControl, NbdExport, NewOverlay,
    PreparedLayers, Quiesced,
};
use hypervisor::config::{DriveConfig, LayerFile, MachineConfig};
use hypervisor::machine::{Exit, FailedDrive, MachineEvent, MachineStatus, SavedState};
use hypervisor::migration::{
    Address, DiskOffer, Hardware, Limits, Link, MirrorTarget, Moved, MovingDisk, Terms, Tls,
    Transfer,
};
use hypervisor::probe::Features;
use hypervisor::{Access, Hypervisor, Launch, Machine, Migrate, MoveState, QemuHypervisor, Result};
use store::{Lease, LeaseId, Page, Record, Revision, Store, StoreError, Txn, Watch};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;
use vmms::Vmms;
use vmms::machine::Vm;
use vmms::migration::{self, PermitState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Source, Side::Destination];
}

/// What has become of the step where something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// It has not come yet.
    Waits,
    /// It has come; whoever makes it stands still.
    Now,
    /// It happened.
    Over,
}

/// The steps of a move.
pub struct Steps {
    /// How many there are still before something happens.
    left: AtomicI64,
    /// How many there were.
    pub count: AtomicI64,
    /// Whose service ends there.
    dies: Option<Side>,
    dead: [AtomicBool; 2],
    pub strike: watch::Sender<Strike>,
    /// Where it was.
    pub place: Mutex<String>,
    hosts: Mutex<[Weak<Vmms>; 2]>,
    processes: [Mutex<Option<Arc<dyn Machine>>>; 2],
    wrong: Mutex<Vec<String>>,
}

impl Steps {
    pub fn new(dies: Option<Side>) -> Arc<Self> {
        Arc::new(Steps {
            left: AtomicI64::new(i64::MAX),
            count: AtomicI64::new(0),
            dies,
            dead: Default::default(),
            strike: watch::channel(Strike::Waits).0,
            place: Mutex::default(),
            hosts: Mutex::default(),
            processes: Default::default(),
            wrong: Mutex::default(),
        })
    }

    /// From here on they are counted.
    pub fn begin(&self, nth: i64, here: &Arc<Vmms>, there: &Arc<Vmms>) {
        self.know(here, there);
        self.count.store(0, Ordering::SeqCst);
        self.left.store(nth, Ordering::SeqCst);
    }

    /// Nothing happens any more.
    pub fn end(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    pub fn know(&self, here: &Arc<Vmms>, there: &Arc<Vmms>) {
        *self.hosts.lock().unwrap() = [Arc::downgrade(here), Arc::downgrade(there)];
    }

    /// A service that ended starts again.
    pub fn revive(&self, side: Side) {
        self.dead[side as usize].store(false, Ordering::SeqCst);
    }

    /// The process of a side, if it had one.
    pub fn pid(&self, side: Side) -> Option<i32> {
        let machine = self.processes[side as usize].lock().unwrap();
        machine.as_ref().map(|m| m.pid())
    }

    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    async fn step(&self, side: Side, what: &str) {
        if self.dead[side as usize].load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        self.look(what).await;
        if self.left.fetch_sub(1, Ordering::SeqCst) != 0 {
            return;
        }
        *self.place.lock().unwrap() = format!("{side:?} {what}");
        if let Some(dies) = self.dies {
            self.dead[dies as usize].store(true, Ordering::SeqCst);
        }
        self.strike.send_replace(Strike::Now);
        if self.dies == Some(side) {
            std::future::pending::<()>().await;
        }
        let mut strike = self.strike.subscribe();
        let _ = strike.wait_for(|s| *s == Strike::Over).await;
    }

    /// At no time may two hosts run the machine, by their records and by their processes.
    async fn look(&self, what: &str) {
        let hosts = self.hosts.lock().unwrap().clone();
        let may = |vmms: &Weak<Vmms>| {
            let Some(vmms) = vmms.upgrade() else {
                return false;
            };
            let granted = migration::permits(&vmms);
            let granted = granted.iter().any(|p| p.state != PermitState::Here);
            !granted && !vmms.db.all::<Vm>().is_empty()
        };
        let mut wrong = Vec::new();
        if hosts.iter().all(may) {
            wrong.push(format!("both may run it: {what}"));
        }
        // Only where something begins to run.
        if what.starts_with("after ") {
            let machines = self.processes.iter().map(|p| p.lock().unwrap().clone());
            let machines: Vec<_> = machines.collect();
            let mut running = 0;
            for machine in machines.into_iter().flatten() {
                let status = tokio::time::timeout(Duration::from_secs(5), machine.status()).await;
                running += i32::from(matches!(status, Ok(Ok(MachineStatus::Running))));
            }
            if running > 1 {
                wrong.push(format!("both run: {what}"));
            }
        }
        self.wrong.lock().unwrap().extend(wrong);
    }
}

/// A store whose changes are steps.
pub struct Stepped {
    pub inner: Arc<dyn Store>,
    pub steps: Arc<Steps>,
    pub side: Side,
}

#[async_trait]
impl Store for Stepped {
    async fn get(&self, key: &str) -> std::result::Result<Option<Record>, StoreError> {
        self.inner.get(key).await
    }
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> std::result::Result<Page, StoreError> {
        self.inner.list(prefix, after, limit).await
    }
    async fn txn(&self, txn: Txn) -> std::result::Result<Revision, StoreError> {
        self.steps.step(self.side, "before a change").await;
        let done = self.inner.txn(txn).await;
        self.steps.step(self.side, "behind a change").await;
        done
    }
    async fn revision(&self) -> std::result::Result<Revision, StoreError> {
        self.inner.revision().await
    }
    async fn watch(
        &self,
        prefix: &str,
        from: Option<Revision>,
    ) -> std::result::Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> std::result::Result<Lease, StoreError> {
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, id: LeaseId) -> std::result::Result<Lease, StoreError> {
        self.inner.keep_alive(id).await
    }
    async fn revoke(&self, id: LeaseId) -> std::result::Result<(), StoreError> {
        self.inner.revoke(id).await
    }
}

/// QEMU, where what is asked of a process that moves is a step.
pub struct Watched {
    pub inner: QemuHypervisor,
    pub steps: Arc<Steps>,
    pub side: Side,
}

impl Watched {
    fn wrap(&self, machine: Arc<dyn Machine>) -> Arc<dyn Machine> {
        *self.steps.processes[self.side as usize].lock().unwrap() = Some(Arc::clone(&machine));
        Arc::new(Process {
            inner: machine,
            steps: Arc::clone(&self.steps),
            side: self.side,
        })
    }
}

#[async_trait]
impl Hypervisor for Watched {
    async fn features(&self) -> Result<Arc<Features>> {
        self.inner.features().await
    }
    async fn launch(&self, config: &MachineConfig, launch: Launch) -> Result<Arc<dyn Machine>> {
        self.steps.step(self.side, "before launch").await;
        let machine = self.inner.launch(config, launch).await?;
        let machine = self.wrap(machine);
        self.steps.step(self.side, "behind launch").await;
        Ok(machine)
    }
    async fn reattach(&self, config: &MachineConfig) -> Result<Option<Arc<dyn Machine>>> {
        let found = self.inner.reattach(config).await?;
        Ok(found.map(|machine| self.wrap(machine)))
    }
}

struct Process {
    inner: Arc<dyn Machine>,
    steps: Arc<Steps>,
    side: Side,
}

impl Process {
    /// Something that is asked, between two steps.
    async fn asked<T>(&self, what: &str, work: impl Future<Output = T> + Send) -> T
    where
        T: Send,
    {
        self.steps.step(self.side, &format!("before {what}")).await;
        let done = work.await;
        self.steps.step(self.side, &format!("behind {what}")).await;
        done
    }

    /// The same of what may make a guest run.
    async fn runs<T: Send>(&self, what: &str, work: impl Future<Output = T> + Send) -> T {
        self.steps.step(self.side, &format!("before {what}")).await;
        let done = work.await;
        self.steps.step(self.side, &format!("after {what}")).await;
        done
    }
}

#[async_trait]
impl Migrate for Process {
    async fn hardware(&self) -> Result<Hardware> {
        self.asked("hardware", self.inner.hardware()).await
    }
    async fn moving(&self) -> Result<MoveState> {
        self.inner.moving().await
    }
    async fn cut(&self) -> Result<()> {
        self.asked("cut", self.inner.cut()).await
    }
    async fn abandon(&self) -> Result<()> {
        self.runs("abandon", self.inner.abandon()).await
    }
    async fn offer_disks(&self, offer: &DiskOffer) -> Result<Address> {
        self.asked("offer_disks", self.inner.offer_disks(offer))
            .await
    }
    async fn receive(&self, link: Link, terms: &Terms) -> Result<Option<Address>> {
        self.asked("receive", self.inner.receive(link, terms)).await
    }
    async fn arrived(&self, within: Duration) -> Result<()> {
        self.asked("arrived", self.inner.arrived(within)).await
    }
    async fn take_over(&self, run: bool) -> Result<()> {
        self.runs("take_over", self.inner.take_over(run)).await
    }
    async fn disks(&self) -> Result<Vec<MovingDisk>> {
        self.asked("disks", self.inner.disks()).await
    }
    async fn mirror(
        &self,
        targets: Vec<MirrorTarget>,
        tls: Option<&Tls>,
        max_bandwidth: Option<u64>,
        control: &JobControl,
    ) -> Result<()> {
        let work = self.inner.mirror(targets, tls, max_bandwidth, control);
        self.asked("mirror", work).await
    }
    async fn tighten(&self, within: Duration, control: &JobControl) -> Result<()> {
        self.asked("tighten", self.inner.tighten(within, control))
            .await
    }
    async fn send(
        &self,
        link: Link,
        terms: &Terms,
        limits: &Limits,
        transfer: &Transfer,
    ) -> Result<()> {
        let work = self.inner.send(link, terms, limits, transfer);
        self.asked("send", work).await
    }
    async fn follow(&self, transfer: &Transfer) -> Result<()> {
        self.asked("follow", self.inner.follow(transfer)).await
    }
    async fn limit(&self, limits: &Limits) -> Result<()> {
        self.asked("limit", self.inner.limit(limits)).await
    }
    async fn end_mirrors(&self, within: Duration) -> Result<()> {
        self.asked("end_mirrors", self.inner.end_mirrors(within))
            .await
    }
    async fn switch_over(&self, within: Duration) -> Result<Moved> {
        self.asked("switch_over", self.inner.switch_over(within))
            .await
    }
    async fn take_back(&self, run: bool) -> Result<()> {
        self.runs("take_back", self.inner.take_back(run)).await
    }
}

#[async_trait]
impl Machine for Process {
    fn id(&self) -> Uuid {
        self.inner.id()
    }
    fn pid(&self) -> i32 {
        self.inner.pid()
    }
    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.inner.events()
    }
    async fn status(&self) -> Result<MachineStatus> {
        self.inner.status().await
    }
    async fn failed_drives(&self) -> Result<Vec<FailedDrive>> {
        self.inner.failed_drives().await
    }
    async fn resume(&self) -> Result<()> {
        self.runs("resume", self.inner.resume()).await
    }
    async fn pause(&self) -> Result<()> {
        self.inner.pause().await
    }
    async fn powerdown(&self) -> Result<()> {
        self.inner.powerdown().await
    }
    async fn reset(&self) -> Result<()> {
        self.inner.reset().await
    }
    async fn quit(&self, within: Duration) -> Result<()> {
        self.asked("quit", self.inner.quit(within)).await
    }
    async fn kill(&self) -> Result<()> {
        self.asked("kill", self.inner.kill()).await
    }
    fn grant(&self, path: &Path, access: Access) -> Result<()> {
        self.inner.grant(path, access)
    }
    async fn exited(&self) -> Exit {
        self.inner.exited().await
    }
    async fn save_state(&self, path: &Path) -> Result<SavedState> {
        self.inner.save_state(path).await
    }
    async fn add_drive(&self, drive: &DriveConfig) -> Result<()> {
        self.inner.add_drive(drive).await
    }
    async fn remove_drive(&self, drive_id: &str) -> Result<()> {
        self.inner.remove_drive(drive_id).await
    }
    async fn change_medium(&self, drive_id: &str, medium: Option<&LayerFile>) -> Result<()> {
        self.inner.change_medium(drive_id, medium).await
    }
    async fn resize(&self, drive_id: &str, bytes: u64) -> Result<()> {
        self.inner.resize(drive_id, bytes).await
    }
    async fn prepare_layers(&self, overlays: &[NewOverlay]) -> Result<PreparedLayers> {
        self.inner.prepare_layers(overlays).await
    }
    async fn quiesce(&self) -> Result<Quiesced> {
        self.inner.quiesce().await
    }
    async fn mark(&self, prepared: &PreparedLayers) -> Result<FreezeReport> {
        self.inner.mark(prepared).await
    }
    async fn release(&self, quiesced: Quiesced) -> Result<()> {
        self.inner.release(quiesced).await
    }
    async fn discard_layers(&self, prepared: &PreparedLayers) -> Result<()> {
        self.inner.discard_layers(prepared).await
    }
    async fn commit(&self, spec: &CommitSpec, control: &JobControl) -> Result<CommitOutcome> {
        self.inner.commit(spec, control).await
    }
    async fn drop_merged(&self, files: &[std::path::PathBuf]) -> Result<()> {
        self.inner.drop_merged(files).await
    }
    async fn reconcile(&self) -> Result<BlockState> {
        self.inner.reconcile().await
    }
    async fn close_nodes(&self, nodes: &[String]) -> Result<()> {
        self.inner.close_nodes(nodes).await
    }
    async fn export_active(&self, drive_id: &str) -> Result<NbdExport> {
        self.inner.export_active(drive_id).await
    }
    async fn close_export(&self, drive_id: &str) -> Result<()> {
        self.inner.close_export(drive_id).await
    }
    async fn guest_ping(&self, within: Duration) -> Result<()> {
        self.inner.guest_ping(within).await
    }
    async fn guest_freeze(&self, within: Duration) -> Result<u64> {
        self.inner.guest_freeze(within).await
    }
    async fn guest_thaw(&self, within: Duration) -> Result<u64> {
        self.inner.guest_thaw(within).await
    }
    async fn guest_frozen(&self, within: Duration) -> Result<bool> {
        self.inner.guest_frozen(within).await
    }
    async fn guest_shutdown(&self, within: Duration) -> Result<()> {
        self.inner.guest_shutdown(within).await
    }
    async fn guest_info(&self, within: Duration) -> Result<GuestInfo> {
        self.inner.guest_info(within).await
    }
    async fn guest_interfaces(&self, within: Duration) -> Result<Vec<GuestInterface>> {
        self.inner.guest_interfaces(within).await
    }
}

//! Moves between fakes: the states, refusals and broken links of real ones. Disks move in name only: no bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::machine::{FakeMachine, State};
use super::script::locked;
use super::wire::{self, Waiting, Wire};
use crate::block::{JobControl, Progress};
use crate::config::{DriveConfig, DriveKind, MachineConfig};
use crate::error::{Error, Result};
use crate::machine::{MachineEvent, MachineStatus};
use crate::migration::{
    Address, Channel, DiskOffer, FeatureWord, Hardware, Limits, Link, MemoryProgress, Migrate,
    MirrorPhase, MirrorState, MirrorTarget, MovePhase, MoveState, Moved, MovingDisk, Side, Terms,
    Tls, Transfer,
};

/// Memory of a fake and size of its disks, as progress shows them.
const BYTES: u64 = 64 << 20;
/// How often a fake that sends slowly looks around.
const LOOK: Duration = Duration::from_millis(2);
/// Measured by nobody.
const DOWNTIME: Duration = Duration::from_millis(5);

/// The part of a fake in a move.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) phase: MovePhase,
    error: Option<String>,
    mirrors: BTreeMap<String, (MirrorState, Option<Wire>)>,
    offered: BTreeSet<String>,
    memory: MemoryProgress,
    /// At a source: the way to the destination, and it.
    wire: Option<(Wire, u64)>,
    /// At a destination: who waits for peers.
    waiting: Vec<Waiting>,
    was_running: bool,
    slow: bool,
    fixed: BTreeSet<String>,
    hardware: Hardware,
}

impl Moving {
    pub(super) fn new(config: &MachineConfig, incoming: bool) -> Self {
        let features = super::features();
        let hardware = Hardware {
            id: config.id,
            version: features.version,
            machine_type: features.machine_type(config).unwrap_or_default(),
            kvm: false,
            memory: config.memory_mib << 20,
            processors: config.vcpus as usize,
            cpu_vendor: "FakeVendor".into(),
            cpu_features: vec![FeatureWord {
                word: "CPUID.1H.EDX".into(),
                bits: 0xff,
            }],
            devices: BTreeMap::new(),
            blocked: Vec::new(),
        };
        let mut moving = Self {
            phase: match incoming {
                true => MovePhase::Waiting,
                false => MovePhase::None,
            },
            error: None,
            mirrors: BTreeMap::new(),
            offered: BTreeSet::new(),
            memory: MemoryProgress::default(),
            wire: None,
            waiting: Vec::new(),
            was_running: false,
            slow: false,
            fixed: BTreeSet::new(),
            hardware,
        };
        config.drives.iter().for_each(|drive| moving.plug(drive));
        moving
    }

    /// A drive is there.
    pub(super) fn plug(&mut self, drive: &DriveConfig) {
        if drive.read_only || drive.kind == DriveKind::Cdrom {
            self.fixed.insert(drive.id.clone());
        }
        let what = format!("{:?} slot {}", drive.controller, drive.slot);
        self.hardware.devices.insert(drive.id.clone(), what);
    }

    /// A drive is gone.
    pub(super) fn unplug(&mut self, drive: &str) {
        self.fixed.remove(drive);
        self.hardware.devices.remove(drive);
    }

    /// The process ended, or the move did: nothing is connected any more.
    pub(super) fn disconnect(&mut self) {
        self.mirrors.clear();
        self.wire = None;
        self.waiting.clear();
        self.offered.clear();
    }

    fn look_at_mirrors(&mut self) {
        for (mirror, wire) in self.mirrors.values_mut() {
            let broken = wire.as_ref().is_some_and(|wire| !wire.is_whole());
            if broken && mirror.phase == MirrorPhase::Following {
                mirror.phase = MirrorPhase::Failed;
                mirror.error = Some("Input/output error".into());
            }
        }
    }

    fn failed_mirror(&mut self) -> Result<()> {
        self.look_at_mirrors();
        let failed = self.mirrors.values().map(|(mirror, _)| mirror);
        match failed
            .filter(|mirror| mirror.phase == MirrorPhase::Failed)
            .find_map(|mirror| Some((mirror.drive_id.clone(), mirror.error.clone()?)))
        {
            Some((drive, desc)) => Err(Error::Job {
                job: crate::names::of_move(&drive),
                desc,
            }),
            None => Ok(()),
        }
    }
}

fn wrong(what: &str, phase: MovePhase) -> Error {
    Error::conflict(format!("{what} ({phase:?})"))
}

fn broken() -> Error {
    Error::Migration {
        side: Side::Source,
        desc: "Unable to read from socket: Connection reset by peer".into(),
        log_tail: String::new(),
    }
}

impl FakeMachine {
    /// Whether sending its memory takes until this is set back.
    pub fn set_sends_slowly(&self, slow: bool) {
        locked(&self.state).moving.slow = slow;
    }

    /// What its guest sees.
    pub fn set_hardware(&self, change: impl FnOnce(&mut Hardware)) {
        change(&mut locked(&self.state).moving.hardware);
    }

    /// The guest goes on where it was before the move.
    fn goes_on(&self) {
        let ran = {
            let mut state = locked(&self.state);
            state.moving.phase = match state.moving.mirrors.is_empty() {
                true => MovePhase::None,
                false => MovePhase::Mirroring,
            };
            state.moving.wire = None;
            let stood = matches!(state.status, MachineStatus::Saving | MachineStatus::Saved);
            let ran = state.moving.was_running;
            if stood {
                state.status = match ran {
                    true => MachineStatus::Running,
                    false => MachineStatus::Paused,
                };
            }
            stood && ran
        };
        if ran {
            self.emit(MachineEvent::Resumed);
        }
    }

    async fn sending(&self, transfer: &Transfer) -> Result<()> {
        loop {
            if transfer.is_cancelled() {
                self.goes_on();
                return Err(Error::Cancelled);
            }
            let (whole, slow) = {
                let state = locked(&self.state);
                let wire = state.moving.wire.as_ref();
                (
                    wire.is_some_and(|(wire, _)| wire.is_whole()),
                    state.moving.slow,
                )
            };
            if !whole {
                self.goes_on();
                return Err(broken());
            }
            if !slow {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let memory = MemoryProgress {
            total: BYTES,
            transferred: BYTES,
            rounds: 2,
            page_size: 4096,
            ..MemoryProgress::default()
        };
        transfer.report(memory.clone());
        let stopped = {
            let mut state = locked(&self.state);
            state.moving.memory = memory;
            state.moving.was_running = state.status == MachineStatus::Running;
            state.moving.phase = MovePhase::ReadyToSwitch;
            state.status = MachineStatus::Saving;
            state.moving.was_running
        };
        if stopped {
            self.emit(MachineEvent::Stopped);
        }
        Ok(())
    }

    /// The destination, if it and the way to it are whole.
    fn destination(&self) -> Option<Arc<Mutex<State>>> {
        let state = locked(&self.state);
        let (wire, number) = state.moving.wire.as_ref()?;
        wire.is_whole().then(|| wire::find(*number)).flatten()
    }
}

#[async_trait]
impl Migrate for FakeMachine {
    async fn hardware(&self) -> Result<Hardware> {
        let after = self.enter("hardware", "").await?;
        after.answer(locked(&self.state).moving.hardware.clone())
    }

    async fn moving(&self) -> Result<MoveState> {
        let after = self.enter("moving", "").await?;
        let found = {
            let mut state = locked(&self.state);
            state.moving.look_at_mirrors();
            MoveState {
                phase: state.moving.phase,
                guest: state.status.clone(),
                error: state.moving.error.clone(),
                memory: state.moving.memory.clone(),
                mirrors: state
                    .moving
                    .mirrors
                    .values()
                    .map(|(m, _)| m.clone())
                    .collect(),
                offered: state.moving.offered.iter().cloned().collect(),
            }
        };
        after.answer(found)
    }

    async fn cut(&self) -> Result<()> {
        let after = self.enter("cut", "").await?;
        let sending = {
            let mut state = locked(&self.state);
            for (mirror, wire) in state.moving.mirrors.values_mut() {
                if wire.take().is_some() && mirror.phase != MirrorPhase::Ended {
                    mirror.phase = MirrorPhase::Failed;
                    mirror.error = Some("Input/output error".into());
                }
            }
            state.moving.phase == MovePhase::Switching
        };
        if sending {
            self.goes_on();
        }
        after.answer(())
    }

    async fn abandon(&self) -> Result<()> {
        let after = self.enter("abandon", "").await?;
        let phase = locked(&self.state).moving.phase;
        if phase == MovePhase::HandedOver {
            return Err(wrong("the machine was handed over", phase));
        }
        if phase.side() == Some(Side::Destination) {
            self.die(9);
        } else {
            locked(&self.state).moving.disconnect();
            self.goes_on();
        }
        after.answer(())
    }

    async fn offer_disks(&self, offer: &DiskOffer) -> Result<Address> {
        let after = self.enter("offer_disks", &offer.drives.join(" ")).await?;
        let phase = locked(&self.state).moving.phase;
        if !matches!(phase, MovePhase::Waiting | MovePhase::Receiving) {
            return Err(wrong("only a machine that waits opens its disks", phase));
        }
        for drive in &offer.drives {
            if locked(&self.state).block.drive(drive).is_none() {
                return Err(Error::not_found(format!("drive `{drive}`")));
            }
        }
        let number = wire::introduce(&self.state);
        let channel = Channel::Address(offer.address.clone());
        let (waiting, address) = wire::wait(channel, number, |_, _| {}).await?;
        {
            let moving = &mut locked(&self.state).moving;
            moving.offered = offer.drives.iter().cloned().collect();
            moving.waiting.push(waiting);
        }
        after.answer(address.unwrap_or_else(|| offer.address.clone()))
    }

    async fn receive(&self, link: Link, _terms: &Terms) -> Result<Option<Address>> {
        let after = self.enter("receive", "").await?;
        let phase = locked(&self.state).moving.phase;
        if phase != MovePhase::Waiting {
            return Err(wrong("the process does not wait for a machine", phase));
        }
        let number = wire::introduce(&self.state);
        let weak = Arc::downgrade(&self.state);
        let (waiting, address) = wire::wait(link.channel, number, move |_, here| {
            let Some(state) = weak.upgrade() else { return };
            let moving = &mut locked(&state).moving;
            // A source that goes before it handed over leaves nothing worth having.
            if !here && moving.phase == MovePhase::Receiving {
                moving.phase = MovePhase::ReceiveFailed;
                moving.error = Some("load of migration failed: Input/output error".into());
            }
        })
        .await?;
        {
            let moving = &mut locked(&self.state).moving;
            moving.phase = MovePhase::Receiving;
            moving.waiting.push(waiting);
        }
        after.answer(address)
    }

    async fn arrived(&self, within: Duration) -> Result<()> {
        let after = self.enter("arrived", "").await?;
        let waiting = async {
            loop {
                self.alive()?;
                let (phase, error) = {
                    let moving = &locked(&self.state).moving;
                    (moving.phase, moving.error.clone())
                };
                match phase {
                    MovePhase::Arrived => return Ok(()),
                    MovePhase::Waiting | MovePhase::Receiving => {
                        tokio::time::sleep(LOOK).await;
                    }
                    MovePhase::ReceiveFailed => {
                        return Err(Error::Migration {
                            side: Side::Destination,
                            desc: error.unwrap_or_default(),
                            log_tail: String::new(),
                        });
                    }
                    phase => return Err(wrong("the process does not wait for a machine", phase)),
                }
            }
        };
        match tokio::time::timeout(within, waiting).await {
            Ok(result) => after.answer(result?),
            Err(_) => Err(Error::Timeout {
                command: "migrate-incoming".into(),
                after: within,
            }),
        }
    }

    async fn take_over(&self, run: bool) -> Result<()> {
        let after = self.enter("take_over", "").await?;
        let phase = locked(&self.state).moving.phase;
        match phase {
            MovePhase::Arrived => {
                let mut state = locked(&self.state);
                state.moving.disconnect();
                state.moving.phase = MovePhase::None;
            }
            MovePhase::None => {}
            phase => return Err(wrong("no machine has arrived here", phase)),
        }
        if run {
            self.set_running(true);
        }
        after.answer(())
    }

    async fn disks(&self) -> Result<Vec<MovingDisk>> {
        let after = self.enter("disks", "").await?;
        let disks = {
            let state = locked(&self.state);
            let writable = state.block.drives.iter();
            let writable = writable.filter(|drive| !state.moving.fixed.contains(&drive.id));
            let disk = |drive: &crate::block::DriveState| {
                let (active, frozen) = drive.chain.split_last()?;
                Some(MovingDisk {
                    drive_id: drive.id.clone(),
                    frozen: frozen.to_vec(),
                    active: active.clone(),
                    bitmaps: Vec::new(),
                })
            };
            writable.filter_map(disk).collect()
        };
        after.answer(disks)
    }

    async fn mirror(
        &self,
        targets: Vec<MirrorTarget>,
        _tls: Option<&Tls>,
        _max_bandwidth: Option<u64>,
        control: &JobControl,
    ) -> Result<()> {
        let drives: Vec<&str> = targets.iter().map(|t| t.drive_id.as_str()).collect();
        let after = self.enter("mirror", &drives.join(" ")).await?;
        let phase = locked(&self.state).moving.phase;
        if phase != MovePhase::None {
            return Err(wrong("a move of this machine is under way", phase));
        }
        let mut mirrors = BTreeMap::new();
        for MirrorTarget { drive_id, channel } in targets {
            if locked(&self.state).block.drive(&drive_id).is_none() {
                return Err(Error::not_found(format!("drive `{drive_id}`")));
            }
            let mut wire = wire::connect(channel).await?;
            let greeted = tokio::select! {
                greeted = wire.greet(0) => greeted,
                () = control.cancelled() => return Err(Error::Cancelled),
            };
            let there = greeted.ok().and_then(wire::find);
            if !there.is_some_and(|state| locked(&state).moving.offered.contains(&drive_id)) {
                return Err(Error::Job {
                    job: crate::names::of_move(&drive_id),
                    desc: format!("Requested export not available: {drive_id}"),
                });
            }
            let state = MirrorState {
                drive_id: drive_id.clone(),
                phase: MirrorPhase::Following,
                done: BYTES,
                total: BYTES,
                error: None,
            };
            mirrors.insert(drive_id, (state, Some(wire)));
        }
        let bytes = BYTES.saturating_mul(mirrors.len() as u64);
        control.report(Progress {
            done: bytes,
            total: bytes,
        });
        if control.is_cancelled() {
            return Err(Error::Cancelled);
        }
        {
            let moving = &mut locked(&self.state).moving;
            if !mirrors.is_empty() {
                moving.phase = MovePhase::Mirroring;
            }
            moving.mirrors = mirrors;
        }
        after.answer(())
    }

    async fn tighten(&self, _within: Duration, control: &JobControl) -> Result<()> {
        let after = self.enter("tighten", "").await?;
        locked(&self.state).moving.failed_mirror()?;
        if control.is_cancelled() {
            return Err(Error::Cancelled);
        }
        after.answer(())
    }

    async fn send(
        &self,
        link: Link,
        _terms: &Terms,
        _limits: &Limits,
        transfer: &Transfer,
    ) -> Result<()> {
        let after = self.enter("send", "").await?;
        let phase = locked(&self.state).moving.phase;
        if !matches!(phase, MovePhase::None | MovePhase::Mirroring) {
            return Err(wrong("a move of this machine is under way", phase));
        }
        let mut wire = wire::connect(link.channel).await?;
        let number = wire::introduce(&self.state);
        let peer = tokio::select! {
            peer = wire.greet(number) => peer.map_err(|_| broken())?,
            () = transfer.cancelled() => return Err(Error::Cancelled),
        };
        {
            let moving = &mut locked(&self.state).moving;
            moving.wire = Some((wire, peer));
            moving.phase = MovePhase::Sending;
        }
        after.answer(self.sending(transfer).await?)
    }

    async fn follow(&self, transfer: &Transfer) -> Result<()> {
        let after = self.enter("follow", "").await?;
        let phase = locked(&self.state).moving.phase;
        match phase {
            MovePhase::Sending => after.answer(self.sending(transfer).await?),
            MovePhase::ReadyToSwitch if !transfer.is_cancelled() => after.answer(()),
            MovePhase::ReadyToSwitch => {
                self.goes_on();
                Err(Error::Cancelled)
            }
            phase => Err(wrong("nothing is being sent", phase)),
        }
    }

    async fn limit(&self, _limits: &Limits) -> Result<()> {
        self.enter("limit", "").await?.answer(())
    }

    async fn end_mirrors(&self, _within: Duration) -> Result<()> {
        let after = self.enter("end_mirrors", "").await?;
        {
            let moving = &mut locked(&self.state).moving;
            if moving.phase != MovePhase::ReadyToSwitch {
                return Err(wrong("the guest does not stand still", moving.phase));
            }
            moving.failed_mirror()?;
            for (mirror, wire) in moving.mirrors.values_mut() {
                mirror.phase = MirrorPhase::Ended;
                *wire = None;
            }
        }
        after.answer(())
    }

    async fn switch_over(&self, _within: Duration) -> Result<Moved> {
        let after = self.enter("switch_over", "").await?;
        let moved = Moved {
            downtime: Some(DOWNTIME),
            total: DOWNTIME,
            setup: Duration::ZERO,
            transferred: BYTES,
            rounds: 2,
        };
        let phase = locked(&self.state).moving.phase;
        match phase {
            MovePhase::HandedOver => return after.answer(moved),
            MovePhase::ReadyToSwitch => {}
            phase => return Err(wrong("the guest does not stand still", phase)),
        }
        let open = |mirror: &MirrorState| mirror.phase != MirrorPhase::Ended;
        if locked(&self.state)
            .moving
            .mirrors
            .values()
            .any(|(m, _)| open(m))
        {
            return Err(wrong("a mirror was not ended", phase));
        }
        let loaded = self.destination().is_some_and(|destination| {
            let mut there = locked(&destination);
            let receiving = there.moving.phase == MovePhase::Receiving && !there.ended;
            if receiving {
                there.moving.phase = MovePhase::Arrived;
                there.status = MachineStatus::Paused;
            }
            receiving
        });
        if !loaded {
            self.goes_on();
            return Err(broken());
        }
        {
            let mut state = locked(&self.state);
            state.moving.phase = MovePhase::HandedOver;
            state.status = MachineStatus::Saved;
            state.moving.wire = None;
        }
        after.answer(moved)
    }

    async fn take_back(&self, run: bool) -> Result<()> {
        let after = self.enter("take_back", "").await?;
        let phase = locked(&self.state).moving.phase;
        match phase {
            MovePhase::HandedOver => {
                {
                    let mut state = locked(&self.state);
                    state.moving.disconnect();
                    state.moving.was_running = run;
                }
                self.goes_on();
            }
            MovePhase::None => {}
            phase => return Err(wrong("the machine was not handed over", phase)),
        }
        after.answer(())
    }
}

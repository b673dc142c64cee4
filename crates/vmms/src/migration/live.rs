//! The source of a machine that runs: its active layers are mirrored, its memory is sent, the guest stands still, and goes on there.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::migration::{
    Channel, Limits, Link as Wired, MirrorTarget, MovePhase, Terms, Transfer,
};
use hypervisor::{JobControl, Machine};
use tokio::io::copy_bidirectional;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::depart::{phase, tell};
use super::link::{ANSWER, Link};
use super::said::{Answer, Ask, Way};
use super::{Host, Phase, Request};
use crate::job::JobContext;
use crate::machine::{Power, Vm};
use crate::{Result, Vmms, fault};

/// How long a process may take to begin to wait for a machine.
const LAUNCH: Duration = Duration::from_secs(120);
/// Between two signs of life, and how long one may take before the link is cut: a guest whose writes wait stands still meanwhile.
const BEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// How long mirrors may take to come into step, and to end.
const STEP: Duration = Duration::from_secs(120);
const END: Duration = Duration::from_secs(30);
/// How long the hand-over may take: what is left fits into the downtime.
const SWITCH: Duration = Duration::from_secs(60);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// The guest stands still for 300 ms where nothing else was asked for.
const DOWNTIME: u64 = 300;
/// For how long the mirrors of a guest that writes may have no less to copy than they had before.
const CATCH_UP: Duration = Duration::from_secs(180);
/// How often in a row a guest that is slowed down as far as can be may change more than is sent.
const OUTRUN: u32 = 40;

/// Sends a machine that runs. When this returns it stands still, here and there, and may be granted.
pub(crate) async fn send(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    host: &Arc<Host>,
    request: &Request,
    id: Uuid,
) -> Result<()> {
    let machine = vmms
        .machine(request.vm)
        .ok_or_else(|| fault!(ProcessEnded, crate::guid(request.vm)))?;
    let addresses = &request.options.addresses;
    let mut link = Link::to(vmms, host, addresses).await?;
    let hardware = Box::new(machine.hardware().await?);
    if let Answer::Launched(risks) = link.ask(&Ask::Launch { id, hardware }, LAUNCH).await? {
        ctx.output(|output| output.decisions.extend(risks)).await?;
    }
    let mut pulse = Link::to(vmms, host, addresses).await?;
    let mut moving = Moving {
        vmms,
        ctx,
        host,
        request,
        id,
        machine: Arc::clone(&machine),
        relays: JoinSet::new(),
    };
    tokio::select! {
        moved = moving.go() => moved,
        stop = ctx.stop_asked() => Err(stop),
        broke = beat(&mut pulse, id) => {
            // Before anything else: the guest's writes may wait for whom nobody hears.
            if let Err(error) = machine.cut().await {
                tracing::warn!(%error, "the channels of a move could not be cut");
            }
            Err(broke)
        }
    }
}

/// Asks for signs of life until there is none.
async fn beat(pulse: &mut Link, id: Uuid) -> crate::Fault {
    loop {
        tokio::time::sleep(BEAT.0).await;
        if let Err(failure) = pulse.ask(&Ask::Beat(id), BEAT.1).await {
            return failure;
        }
    }
}

struct Moving<'a> {
    vmms: &'a Arc<Vmms>,
    ctx: &'a JobContext,
    host: &'a Arc<Host>,
    request: &'a Request,
    id: Uuid,
    machine: Arc<dyn Machine>,
    relays: JoinSet<()>,
}

impl Moving<'_> {
    async fn go(&mut self) -> Result<()> {
        let options = &self.request.options;
        phase(self.ctx, Phase::Mirroring).await?;
        let mut targets = Vec::new();
        for disk in self.machine.disks().await? {
            let way = Way::Disk(disk.drive_id.clone());
            targets.push(MirrorTarget {
                channel: self.channel(way).await?,
                drive_id: disk.drive_id,
            });
        }
        let control = JobControl::new();
        let machine = Arc::clone(&self.machine);
        let mirroring = machine.mirror(targets, None, options.bandwidth, &control);
        self.watch_disks(mirroring, &control).await?;
        phase(self.ctx, Phase::SendingMemory).await?;
        self.watch_disks(machine.tighten(STEP, &control), &control)
            .await?;
        let terms = Terms::default();
        let way = Wired {
            channel: self.channel(Way::Memory(terms)).await?,
            tls: None,
        };
        let limits = Limits {
            bandwidth: options.bandwidth,
            downtime: Duration::from_millis(options.downtime_ms.unwrap_or(DOWNTIME)),
            auto_converge: true,
        };
        let transfer = Transfer::new();
        let sending = machine.send(way, &terms, &limits, &transfer);
        self.watch_memory(sending, &transfer, limits).await?;
        // Whoever wanted to stop it has done so, or comes too late.
        self.ctx.no_return().await?;
        phase(self.ctx, Phase::SwitchingOver).await?;
        // A link that was idle as long as mirrors take may have been closed.
        let addresses = &self.request.options.addresses;
        let fresh = Link::to(self.vmms, self.host, addresses);
        let (ended, fresh) = tokio::join!(machine.end_mirrors(END), fresh);
        ended?;
        let mut link = fresh?;
        let switched = tokio::time::timeout(SWITCH + END, machine.switch_over(SWITCH)).await;
        let Ok(switched) = switched else {
            // The monitor may hang with it.
            machine.cut().await?;
            return Err(fault!(
                HostSilent,
                self.host.name,
                self.host.address,
                "the hand-over",
                format!("{SWITCH:?}")
            ));
        };
        let arrived = link.ask(&Ask::Arrived(self.id), ANSWER).await;
        // What the destination says tells more than that the connection ended.
        let moved = match (switched, arrived) {
            (Ok(moved), Ok(_)) => moved,
            (Err(here), Err(there)) => return Err(crate::Fault::from(here).caused_by(there)),
            (Err(here), Ok(_)) => return Err(here.into()),
            (Ok(_), Err(there)) => return Err(there),
        };
        let downtime = moved
            .downtime
            .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        tell(self.ctx, |progress| {
            progress.downtime_ms = downtime;
            progress.memory_bytes = moved.transferred;
            progress.memory_remaining = 0;
            progress.rounds = moved.rounds;
        })
        .await
    }

    /// A way for bytes to the process there: a socket of which it has the other end.
    async fn channel(&mut self, way: Way) -> Result<Channel> {
        let mut link = Link::to(self.vmms, self.host, &self.request.options.addresses).await?;
        let ask = Ask::Channel { id: self.id, way };
        link.ask(&ask, ANSWER).await?;
        let failed = |e: std::io::Error| fault!(Os, "make a channel", e, "none");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut ours = UnixStream::from_std(ours).map_err(failed)?;
        let mut stream = link.into_stream();
        self.relays.spawn(async move {
            // Whichever end closes: QEMU sees it, and says what it meant.
            let _ = copy_bidirectional(&mut ours, &mut stream).await;
        });
        Ok(Channel::Stream(OwnedFd::from(theirs)))
    }

    async fn watch_disks(
        &self,
        work: impl Future<Output = hypervisor::Result<()>>,
        control: &JobControl,
    ) -> Result<()> {
        let mut work = std::pin::pin!(work);
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            tokio::select! {
                done = &mut work => {
                    self.disks(control).await?;
                    return Ok(done?);
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            let left = self.disks(control).await?;
            if left < least {
                (least, since) = (left, Instant::now());
            } else if since.elapsed() > CATCH_UP {
                return Err(fault!(DiskOutrun, left, CATCH_UP.as_secs()));
            }
        }
    }

    /// Tells how far the mirrors are; says how much they still have to copy.
    async fn disks(&self, control: &JobControl) -> Result<u64> {
        let seen = control.progress();
        tell(self.ctx, |progress| {
            progress.disk_bytes = seen.done;
            progress.disk_total = seen.total;
        })
        .await?;
        Ok(seen.total.saturating_sub(seen.done))
    }

    async fn watch_memory(
        &self,
        work: impl Future<Output = hypervisor::Result<()>>,
        transfer: &Transfer,
        mut limits: Limits,
    ) -> Result<()> {
        let mut work = std::pin::pin!(work);
        let mut outrun = 0;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done?),
                () = tokio::time::sleep(LOOK) => {}
            }
            let seen = transfer.progress();
            let slowed = seen.throttle_percent.is_some_and(|percent| percent >= 99);
            outrun = if seen.outrun() && slowed {
                outrun + 1
            } else {
                0
            };
            if outrun > OUTRUN {
                let (dirty, sent) = (seen.dirty_bytes_per_second(), seen.bytes_per_second);
                let expected = seen.expected_downtime.unwrap_or_default();
                // Longer than was asked for only where that is not forbidden.
                if self.request.options.cancel_if_blackout || limits.downtime > expected {
                    transfer.cancel();
                    let stopped = work.await;
                    let why = fault!(MemoryOutrun, dirty, sent, expected.as_millis());
                    return Err(stopped.err().into_iter().fold(why, crate::Fault::caused_by));
                }
                limits.downtime = expected * 2;
                self.machine.limit(&limits).await?;
                outrun = 0;
            }
            let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
            tell(self.ctx, |progress| {
                progress.memory_bytes = seen.transferred;
                progress.memory_remaining = seen.remaining;
                progress.memory_total = seen.total;
                progress.rounds = seen.rounds;
                progress.dirty_bytes_per_second = seen.dirty_bytes_per_second();
                progress.bytes_per_second = seen.bytes_per_second;
                progress.expected_downtime_ms = seen.expected_downtime.map(ms);
                progress.throttle_percent = seen.throttle_percent;
            })
            .await?;
        }
    }
}

/// A machine that was not granted goes on here as it was.
pub(crate) async fn go_on(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let Some(machine) = vmms.machine(vm) else {
        return Ok(());
    };
    let run = vmms.db.get::<Vm>(vm)?.power == Power::Running;
    let seen = tokio::time::timeout(BEAT.1, machine.moving()).await;
    match seen {
        Ok(Ok(state)) if state.phase == MovePhase::None => return Ok(()),
        Ok(Ok(state)) if state.phase == MovePhase::HandedOver => {
            // Nobody else was granted it: it is this process's.
            return Ok(machine.take_back(run).await?);
        }
        Ok(Ok(_)) => {}
        _ => machine.cut().await?,
    }
    match machine.abandon().await {
        Err(error) if error.kind() == hypervisor::ErrorKind::Conflict => {
            Ok(machine.take_back(run).await?)
        }
        done => Ok(done?),
    }
}

//! The destination of a machine that runs: a process that waits for its memory.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hypervisor::migration::{Address, Channel, DiskOffer, Hardware, Link as Wired, MovePhase};
use hypervisor::{Launch, Machine, MachineConfig, NewImage};
use peer::Wire;
use tokio::io::copy_bidirectional;
use tokio::net::UnixStream;
use uuid::Uuid;

use super::Host;
use super::arrive;
use super::cargo::Cargo;
use super::permit::{Arrival, ArrivalState, Landed};
use super::said::{Answer, Way};
use crate::machine::{Power, Vm, spec, user_of};
use crate::owner::{self, Owner};
use crate::{Fault, Result, Vmms, fault};

/// How long a machine may take to be loaded once everything was sent.
const ARRIVE: Duration = Duration::from_secs(50);

/// The processes that wait for a machine.
#[derive(Default)]
pub(crate) struct Coming(Mutex<HashMap<Uuid, Arc<dyn Machine>>>);

impl Coming {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<dyn Machine>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: Uuid) -> Option<Arc<dyn Machine>> {
        self.map().get(&id).cloned()
    }

    pub(crate) fn take(&self, id: Uuid) -> Option<Arc<dyn Machine>> {
        self.map().remove(&id)
    }
}

fn cargo_of(arrival: &Arrival) -> Result<&Cargo> {
    let cargo = arrival.cargo.as_deref().filter(|_| arrival.live);
    cargo.ok_or_else(|| fault!(MoveEnded, arrival.name))
}

fn config_of(vmms: &Vmms, vm: &Vm) -> Result<MachineConfig> {
    spec::machine_config(vm, &vmms.dirs, &vmms.options)
}

fn socket(vmms: &Vmms, vm: &Vm) -> PathBuf {
    spec::run_dir(&vmms.dirs, vm.id).join("move.sock")
}

/// The layers that guests write to: empty ones, exactly as large, above what was copied.
pub(crate) async fn actives(vmms: &Vmms, arrival: &Arrival, cargo: &Cargo) -> Result<()> {
    for (_, disk) in cargo.vm.disks().filter(|(_, d)| !d.read_only) {
        let tree = &disk.layers;
        let active = tree.nodes.get(&tree.active);
        let Some((node, file)) = active.and_then(|n| Some((n, n.file.as_ref()?))) else {
            return Err(fault!(Internal, "an active node without file"));
        };
        let name = format!("{}{}", arrive::ACTIVE, disk.uid);
        let landed = Landed {
            path: file.path.clone(),
            ..Landed::default()
        };
        if file.path.exists() && !arrival.files.contains_key(&name) {
            return Err(fault!(PlaceTaken, file.path.display()));
        }
        arrive::change(vmms, arrival.id, |arrival| {
            arrival.files.insert(name, landed)
        })
        .await?;
        crate::point::remove(&file.path)?;
        let beneath = tree
            .beneath(tree.active)
            .and_then(|b| tree.nodes.get(&b)?.file.clone());
        let image = match beneath {
            Some(beneath) => {
                let name = hypervisor::relative_name(&file.path, &beneath.path)?;
                let owner = Owner::new(vmms, cargo.vm.id, disk.uid, file.layer);
                NewImage {
                    owner: Some(owner.to_string()),
                    ..NewImage::overlay(&file.path, name, beneath.format, node.size)
                }
            }
            None => NewImage::new(&file.path, file.format, node.size),
        };
        vmms.images.create(&image).await?;
        crate::point::sync(&file.path)?;
    }
    Ok(())
}

/// Starts the process that waits, and compares what its guest will see with what it sees there.
pub(crate) async fn launch(
    vmms: &Arc<Vmms>,
    host: &Host,
    id: Uuid,
    hardware: &Hardware,
) -> Result<Answer> {
    let arrival = arrive::arrival(vmms, host, id)?;
    let cargo = cargo_of(&arrival)?;
    if !arrival.ready {
        return Err(fault!(MoveEnded, arrival.name));
    }
    let vm = &cargo.vm;
    kill(vmms, &arrival).await?;
    crate::point::make_dir(&spec::state_dir(&vmms.dirs, vm.id))?;
    let mut config = config_of(vmms, vm)?;
    config.confinement.user = user_of(vmms, vm.id).await?;
    for drive in &config.drives {
        let layers = drive.chain.iter().map(|l| (l.path.as_path(), l.format));
        crate::trusted::check_known(layers)?;
    }
    owner::mark_run_dir(&vmms.identity, &spec::run_dir(&vmms.dirs, vm.id))?;
    let machine = vmms.hypervisor.launch(&config, Launch::Incoming).await?;
    vmms.moves.coming.map().insert(id, Arc::clone(&machine));
    let found = hardware.unfit_for(&machine.hardware().await?);
    let (risks, against): (Vec<_>, Vec<_>) = found.into_iter().partition(|unfit| unfit.is_risk());
    if !against.is_empty() {
        let mut refused = fault!(UnfitThere, vm.name, vmms.host, against.len());
        refused.causes = against.iter().map(|unfit| fault!(Driver, unfit)).collect();
        return Err(refused);
    }
    let disks = vm.disks().filter(|(_, disk)| !disk.read_only);
    let drives: Vec<String> = disks.map(|(_, disk)| spec::drive_id(disk)).collect();
    if !drives.is_empty() {
        let offer = DiskOffer {
            address: Address::Unix(socket(vmms, vm)),
            tls: None,
            drives,
        };
        machine.offer_disks(&offer).await?;
    }
    Ok(Answer::Launched(
        risks.iter().map(ToString::to_string).collect(),
    ))
}

/// A way to the process for what follows on a link.
pub(crate) async fn channel(
    vmms: &Arc<Vmms>,
    host: &Host,
    id: Uuid,
    way: &Way,
) -> Result<UnixStream> {
    let arrival = arrive::arrival(vmms, host, id)?;
    let cargo = cargo_of(&arrival)?;
    let failed = |e: std::io::Error| fault!(Os, "make a channel", e, "none");
    match way {
        Way::Disk(_) => UnixStream::connect(socket(vmms, &cargo.vm))
            .await
            .map_err(failed),
        Way::Memory(terms) => {
            let machine = vmms.moves.coming.get(id);
            let machine = machine.ok_or_else(|| fault!(MoveEnded, arrival.name))?;
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
            ours.set_nonblocking(true).map_err(failed)?;
            let link = Wired {
                channel: Channel::Stream(OwnedFd::from(theirs)),
                tls: None,
            };
            machine.receive(link, terms).await?;
            UnixStream::from_std(ours).map_err(failed)
        }
    }
}

/// Passes bytes until an end closes.
pub(crate) async fn relay(wire: Wire, mut process: UnixStream) {
    let mut stream = wire.into_stream();
    let _ = copy_bidirectional(&mut stream, &mut process).await;
}

/// Waits until the machine is loaded.
pub(crate) async fn arrived(vmms: &Arc<Vmms>, host: &Host, id: Uuid) -> Result<()> {
    let arrival = arrive::arrival(vmms, host, id)?;
    let machine = vmms.moves.coming.get(id);
    let machine = machine.ok_or_else(|| fault!(MoveEnded, arrival.name))?;
    Ok(machine.arrived(ARRIVE).await?)
}

/// The process that has the machine whole; after a restart of the service, too.
pub(crate) async fn loaded(vmms: &Arc<Vmms>, arrival: &Arrival) -> Result<Arc<dyn Machine>> {
    let cargo = cargo_of(arrival)?;
    let known = vmms.moves.coming.get(arrival.id);
    let machine = match known {
        Some(machine) => Some(machine),
        None => {
            vmms.hypervisor
                .reattach(&config_of(vmms, &cargo.vm)?)
                .await?
        }
    };
    let machine = machine.ok_or_else(|| fault!(ProcessEnded, crate::guid(arrival.vm)))?;
    let phase = machine.moving().await?.phase;
    if phase != MovePhase::Arrived {
        let what = format!("the process that waited for {} is {phase:?}", arrival.name);
        return Err(fault!(Driver, what));
    }
    vmms.moves
        .coming
        .map()
        .insert(arrival.id, Arc::clone(&machine));
    Ok(machine)
}

/// The machine is this host's: it goes on. Where it cannot, it is off, and whole on its disks.
pub(crate) async fn run(vmms: &Arc<Vmms>, vm: Uuid, machine: Arc<dyn Machine>) -> Result<()> {
    let power = vmms.db.get::<Vm>(vm)?.power;
    let taken = machine.take_over(power == Power::Running).await;
    if let Err(error) = &taken {
        tracing::error!(vm = %crate::guid(vm), %error, "a machine that came cannot go on; it is turned off");
        machine.kill().await?;
    }
    crate::machine::take_in(vmms, vm, machine);
    taken.map_err(Fault::from)
}

/// Ends the process that waits for a machine.
pub(crate) async fn kill(vmms: &Arc<Vmms>, arrival: &Arrival) -> Result<()> {
    let Some(cargo) = arrival.cargo.as_ref().filter(|_| arrival.live) else {
        return Ok(());
    };
    if let Some(machine) = vmms.moves.coming.take(arrival.id) {
        machine.kill().await?;
    }
    if is_anothers(vmms, arrival) {
        return Ok(());
    }
    let config = config_of(vmms, &cargo.vm)?;
    if let Some(machine) = vmms.hypervisor.reattach(&config).await? {
        machine.kill().await?;
    }
    crate::point::remove(&socket(vmms, &cargo.vm))
}

/// Removes what its process had of its own.
pub(crate) fn sweep(vmms: &Vmms, arrival: &Arrival) -> Result<()> {
    if !arrival.live || is_anothers(vmms, arrival) {
        return Ok(());
    }
    let run = spec::run_dir(&vmms.dirs, arrival.vm);
    let granted = spec::granted(&vmms.dirs, arrival.vm);
    hypervisor::confine::settle(&run, &granted)?;
    for dir in [spec::state_dir(&vmms.dirs, arrival.vm), run] {
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Fault::io("remove", &dir, &e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a process of that machine is not this arrival's: it has come by another move since, or is coming.
fn is_anothers(vmms: &Vmms, arrival: &Arrival) -> bool {
    let comes = |other: &Arc<Arrival>| {
        other.vm == arrival.vm && other.id != arrival.id && other.state == ArrivalState::Incoming
    };
    vmms.db.get::<Vm>(arrival.vm).is_ok() || super::arrivals(vmms).iter().any(comes)
}

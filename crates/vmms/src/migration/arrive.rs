//! The destination: what a source asks, done and recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use disk::Qcow2Layer;
use hypervisor::ImageFormat;
use hypervisor::image::write_owner;
use peer::Wire;
use uuid::Uuid;

use super::cargo::{Cargo, FileKind};
use super::landing::{self, Places, part_of};
use super::permit::{Arrival, ArrivalState, Landed};
use super::receive::{self, Receive};
use super::said::{Answer, Proposal, Standing};
use super::{Host, MigrationKind, copy, permits};
use crate::disk_tree::{LayerTree, Stamp};
use crate::machine::{Asked, Vm, check_images};
use crate::owner::Owner;
use crate::point;
use crate::{Effect, Element, Fault, Result, Vmms, blocking, fault, guid};

/// What the names of layers that a guest is to write to begin with, among the files of an arrival.
pub(crate) const ACTIVE: &str = "active/";
/// How long it is known what became of a move.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// The arrival of that move, of this host.
pub(crate) fn arrival(vmms: &Vmms, host: &Host, id: Uuid) -> Result<Arc<Arrival>> {
    let found = vmms.db.get::<Arrival>(id)?;
    match found.pin == host.fingerprint {
        true => Ok(found),
        false => Err(fault!(MoveUnknown, guid(id))),
    }
}

fn unfit(name: &str, host: &str, found: Vec<Fault>) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let mut refused = fault!(UnfitThere, name, host, found.len());
    refused.causes = found;
    Err(refused)
}

/// Whether a machine could come, and how much of it is not here yet.
pub(crate) async fn look(vmms: &Arc<Vmms>, host: &Host, proposal: &Proposal) -> Result<Answer> {
    let (cargo, kept, _) = here(vmms, host, proposal)?;
    let name = &proposal.cargo.vm.name;
    let overwrite = proposal.allow_overwrite;
    unfit(
        name,
        &vmms.host,
        landing::objections(vmms, (proposal.id, host), &cargo, &kept, overwrite).await,
    )?;
    let there = |name: &str| kept.get(name).is_some_and(|l| l.digest.is_some());
    let missing = cargo.files.iter().filter(|f| !there(&f.name));
    Ok(Answer::Fits {
        risks: Vec::new(),
        bytes: missing.map(|f| f.allocated).sum(),
    })
}

/// What comes as it is to be here, and what is here of it.
fn here(
    vmms: &Vmms,
    host: &Host,
    proposal: &Proposal,
) -> Result<(Cargo, BTreeMap<String, Landed>, Places)> {
    if !vmms.migration_service().enabled {
        return Err(fault!(MovesDisabled, vmms.host));
    }
    proposal.cargo.check()?;
    let places = Places::new(vmms, proposal)?;
    let cargo = places.cargo(&proposal.cargo, &vmms.host);
    let kept = landing::kept(vmms, &host.fingerprint, &cargo);
    Ok((cargo, kept, places))
}

/// Reserves everything; asked again, tells how far it is.
pub(crate) async fn prepare(vmms: &Arc<Vmms>, host: &Host, proposal: &Proposal) -> Result<Answer> {
    let id = proposal.id;
    if vmms.db.get::<Arrival>(id).is_ok() {
        let known = arrival(vmms, host, id)?;
        return match known.state {
            ArrivalState::Incoming => {
                if known.job.is_none() {
                    submit(vmms, &known, proposal.kind).await?;
                }
                standings(vmms, &known).await
            }
            ArrivalState::Mine => Ok(Answer::Mine),
            ArrivalState::Ended => Ok(Answer::Ended(Box::new(why(&known)))),
        };
    }
    // Its source has one move of a machine at a time: with a new one it has given up what came before, though it could not say so.
    for before in landing::earlier(vmms, &host.fingerprint, proposal.cargo.vm.id) {
        if before.state == ArrivalState::Incoming {
            let why = fault!(MoveStopped, before.name, host.name, "a newer move of it");
            end(vmms, before.id, why, true).await?;
        }
    }
    let active = super::arrivals(vmms)
        .iter()
        .filter(|a| a.state == ArrivalState::Incoming)
        .count()
        + permits(vmms).len();
    if active >= usize::try_from(vmms.migration_service().machines).unwrap_or(usize::MAX) {
        return Ok(Answer::Wait);
    }
    let (cargo, files, places) = here(vmms, host, proposal)?;
    let name = proposal.cargo.vm.name.clone();
    let overwrite = proposal.allow_overwrite;
    unfit(
        &name,
        &vmms.host,
        landing::objections(vmms, (id, host), &cargo, &files, overwrite).await,
    )?;
    let vm = cargo.vm.id;
    let arrival = Arrival {
        id,
        vm,
        name: name.clone(),
        from: host.name.clone(),
        pin: host.fingerprint.clone(),
        job: None,
        state: ArrivalState::Incoming,
        changed: SystemTime::now(),
        why: None,
        cargo: Some(Box::new(cargo)),
        files,
        live: proposal.live,
        overwrite,
        ready: false,
        places,
        kept_until: None,
    };
    let files = arrival.cargo.iter().flat_map(|c| &c.files);
    let places: BTreeSet<_> = files.map(|f| f.path.clone()).collect();
    vmms.db
        .change(|draft| {
            // What was kept of earlier moves is this one's now.
            for mut earlier in draft.all::<Arrival>() {
                if earlier.vm == vm && earlier.state == ArrivalState::Ended {
                    earlier
                        .files
                        .retain(|_, landed| !places.contains(&landed.path));
                    if let Some(cargo) = &mut earlier.cargo {
                        cargo.files.retain(|file| !places.contains(&file.path));
                    }
                    draft.put(earlier);
                }
            }
            draft.put(arrival);
            Ok(())
        })
        .await?;
    vmms.moves.heard.from(id);
    submit(vmms, &*vmms.db.get::<Arrival>(id)?, proposal.kind).await?;
    let known = vmms.db.get::<Arrival>(id)?;
    standings(vmms, &known).await
}

/// Starts the job of a machine that comes.
async fn submit(vmms: &Arc<Vmms>, arrival: &Arrival, kind: MigrationKind) -> Result<()> {
    let asked = Asked {
        owner: format!("host {}", arrival.from),
        request_key: None,
    };
    let mut submission = asked.submission(vec![(Element::Host, Effect::Other)]);
    submission.output.migration = Some(Box::new(receive::progress(vmms, arrival, kind)));
    let work = Receive {
        id: arrival.id,
        vm: arrival.vm,
        name: arrival.name.clone(),
    };
    let job = vmms.submit(work, submission).await?;
    change(vmms, arrival.id, |arrival| arrival.job = Some(job)).await
}

/// Changes what is on record of a machine that still comes.
pub(crate) async fn change<R>(
    vmms: &Vmms,
    id: Uuid,
    edit: impl FnOnce(&mut Arrival) -> R + Send,
) -> Result<R> {
    vmms.db
        .change(|draft| {
            let arrival = draft.get_mut::<Arrival>(id)?;
            match arrival.state {
                ArrivalState::Incoming => Ok(edit(arrival)),
                _ => Err(why(arrival)),
            }
        })
        .await
}

fn why(arrival: &Arrival) -> Fault {
    let ended = || fault!(MoveEnded, arrival.name);
    arrival.why.clone().unwrap_or_else(ended)
}

fn cargo_of(arrival: &Arrival) -> Result<&Cargo> {
    let cargo = arrival.cargo.as_deref();
    cargo.ok_or_else(|| fault!(MoveEnded, arrival.name))
}

async fn standings(vmms: &Vmms, arrival: &Arrival) -> Result<Answer> {
    let mut out = Vec::new();
    for file in &cargo_of(arrival)?.files {
        let landed = arrival.files.get(&file.name);
        let untouched = |l: &&Landed| l.stamp.is_some() && l.stamp == Stamp::of(&l.path).ok();
        let whole = landed.filter(untouched).and_then(|l| l.digest.clone());
        let shared = matches!(file.kind, FileKind::Layer { shared: true, .. });
        let standing = match whole {
            Some(digest) => Standing::Whole(digest),
            // A base that several machines lie on.
            None if shared && file.path.exists() => {
                Standing::Whole(copy::digest(&file.path).await?)
            }
            None => match std::fs::metadata(part_of(&file.path)).map_or(0, |m| m.len()) {
                0 => Standing::Missing,
                bytes => Standing::Part(bytes),
            },
        };
        out.push((file.name.clone(), standing));
    }
    vmms.moves.heard.from(arrival.id);
    Ok(Answer::Prepared(out))
}

/// A file comes on this link. Its end is answered by the caller.
pub(crate) async fn file(
    vmms: &Arc<Vmms>,
    host: &Host,
    wire: &mut Wire,
    (id, name, from): (Uuid, &str, u64),
) -> Result<()> {
    let arrival = arrival(vmms, host, id)?;
    let wanted = cargo_of(&arrival)?;
    let wanted = wanted.file(name).cloned();
    let wanted = wanted.ok_or_else(|| fault!(MoveUnknown, name))?;
    let path = wanted.path.clone();
    let dir = path.parent().unwrap_or(Path::new("/"));
    point::make_dir(dir)?;
    wire.say(&Answer::Done)
        .await
        .map_err(|e| super::link::fault(vmms, &host.name, &host.address, &e))?;
    let part = part_of(&path);
    let heard = || vmms.moves.heard.from(id);
    let digest = copy::receive(wire, &part, from, heard).await?;
    // It must still be wanted, and nobody's, when it takes its place.
    let known = vmms.db.get::<Arrival>(id)?;
    let ours = known.files.get(name).is_some_and(|l| !l.found)
        || matches!(wanted.kind, FileKind::State(_))
        || known.overwrite;
    if known.state != ArrivalState::Incoming {
        return Err(why(&known));
    }
    // On record before it is there: whatever happens, it is known whose it is.
    let landed = Landed {
        path: path.clone(),
        ..Landed::default()
    };
    if !ours && path.exists() {
        return Err(fault!(PlaceTaken, path.display()));
    }
    let (key, begun) = (name.to_owned(), landed.clone());
    change(vmms, id, |arrival| arrival.files.insert(key, begun)).await?;
    let target = path.clone();
    let stamp = blocking(move || {
        std::fs::rename(&part, &target).map_err(|e| Fault::io("rename", &part, &e))?;
        point::sync(&target)?;
        point::stamp(&target)
    });
    let landed = Landed {
        digest: Some(digest),
        stamp: stamp.await?,
        ..landed
    };
    let key = name.to_owned();
    change(vmms, id, |arrival| arrival.files.insert(key, landed)).await?;
    Ok(())
}

/// The source has a file with the hash of the one that is here.
pub(crate) async fn same(
    vmms: &Vmms,
    host: &Host,
    (id, name, digest): (Uuid, &str, &str),
) -> Result<()> {
    let arrival = arrival(vmms, host, id)?;
    if arrival.files.get(name).and_then(|l| l.digest.as_deref()) == Some(digest) {
        return Ok(());
    }
    let wanted = cargo_of(&arrival)?.file(name);
    let path = wanted.map(|f| f.path.clone());
    let path = path.ok_or_else(|| fault!(MoveUnknown, name))?;
    let landed = Landed {
        digest: Some(digest.to_owned()),
        stamp: point::stamp(&path)?,
        path,
        found: true,
    };
    change(vmms, id, |arrival| {
        arrival.files.insert(name.to_owned(), landed)
    })
    .await?;
    Ok(())
}

/// All files are here: each names what lies beneath it here, and is this service's.
pub(crate) async fn settle(vmms: &Arc<Vmms>, host: &Host, id: Uuid) -> Result<()> {
    let arrival = arrival(vmms, host, id)?;
    if arrival.state != ArrivalState::Incoming {
        return Err(why(&arrival));
    }
    let mut cargo = cargo_of(&arrival)?.clone();
    let mut files = arrival.files.clone();
    let missing = cargo.files.iter().find(|f| {
        let landed = files.get(&f.name);
        landed.is_none_or(|l| l.digest.is_none())
    });
    if let Some(file) = missing {
        return Err(fault!(FileDiffers, file.path.display()));
    }
    let vm = cargo.vm.id;
    let foreign: Vec<_> = files
        .values()
        .filter(|l| l.found)
        .map(|l| l.path.clone())
        .collect();
    for (_, disk) in cargo.vm.disks_mut() {
        // What a guest writes to is made new, on what is right by then.
        let comes = (!arrival.live || disk.read_only).then_some(disk.layers.active);
        headers(vmms, (vm, disk.uid), &disk.layers, comes, &foreign).await?;
        for node in disk.layers.nodes.values_mut() {
            if let (Some(_), Some(file)) = (node.stamp, &node.file) {
                node.stamp = point::stamp(&file.path)?;
            }
        }
    }
    configurations(&cargo, &arrival.places)?;
    if arrival.live {
        super::meet::actives(vmms, &arrival, &cargo).await?;
        let known = vmms.db.get::<Arrival>(id)?;
        let made = known
            .files
            .iter()
            .filter(|(name, _)| !files.contains_key(*name));
        let made: Vec<_> = made.map(|(n, l)| (n.clone(), l.clone())).collect();
        files.extend(made);
    }
    for landed in files.values_mut() {
        landed.stamp = point::stamp(&landed.path)?;
    }
    for (device, disk) in cargo.vm.disks() {
        point::check_chain(device, &disk.layers, disk.layers.active)?;
    }
    change(vmms, id, |arrival| {
        arrival.cargo = Some(Box::new(cargo));
        arrival.files = files;
        arrival.ready = true;
    })
    .await
}

/// The headers of the layers of a disk name what lies beneath them here, and this service as their owner.
async fn headers(
    vmms: &Vmms,
    (vm, disk): (Uuid, Uuid),
    tree: &LayerTree,
    active: Option<Uuid>,
    foreign: &[std::path::PathBuf],
) -> Result<()> {
    for (node, record) in &tree.nodes {
        let Some(file) = &record.file else { continue };
        if *node == tree.active && active.is_none() {
            continue;
        }
        if file.format != ImageFormat::Qcow2 || foreign.contains(&file.path) {
            continue;
        }
        let beneath = tree
            .beneath(*node)
            .and_then(|b| tree.nodes.get(&b)?.file.clone());
        if let Some(beneath) = beneath {
            let name = hypervisor::relative_name(&file.path, &beneath.path)?;
            let header = Qcow2Layer::open(&file.path)?;
            if header.backing() != Some(name.as_str()) {
                vmms.images
                    .rebase_unsafe(&file.path, Some((&name, beneath.format)))
                    .await?;
            }
        }
        let owner = Owner::of(&Qcow2Layer::open(&file.path)?);
        if owner.is_some_and(|o| o.state != vmms.identity) {
            let owner = Owner::new(vmms, vm, disk, file.layer);
            write_owner(&file.path, &owner.to_string())?;
        }
        point::sync(&file.path)?;
    }
    Ok(())
}

/// The configurations kept with points tell of files here.
fn configurations(cargo: &Cargo, places: &Places) -> Result<()> {
    let configs = cargo.points.iter().map(|p| &p.config);
    for path in configs.chain(cargo.snapshots.iter().map(|s| &s.config)) {
        let mut config = point::load_config(path)?;
        places.machine(&mut config.machine);
        let text = serde_json::to_vec_pretty(&config).map_err(|e| fault!(Internal, e))?;
        disk::atomic::AtomicFile::replace(path, &text)?;
    }
    Ok(())
}

/// What becomes this host's, unless it clashes with what has come to be here meanwhile.
fn fits(all: &[Vm], arrival: &Arrival) -> Result<Cargo> {
    let cargo = arrival.cargo.clone().filter(|_| arrival.ready);
    let cargo = cargo.ok_or_else(|| fault!(MoveEnded, arrival.name))?;
    if all.iter().any(|vm| vm.id == cargo.vm.id) {
        return Err(fault!(MachineThere, cargo.vm.name, guid(cargo.vm.id)));
    }
    check_images(all, &cargo.vm)?;
    Ok(*cargo)
}

/// The source grants the machine: from here on it is this host's, or never.
pub(crate) async fn grant(vmms: &Arc<Vmms>, host: &Host, id: Uuid) -> Result<Answer> {
    let known = arrival(vmms, host, id)?;
    let _lock = vmms.lock(known.vm).await;
    // The process has it whole, or the machine stays where it is.
    let machine = match known.live && known.state == ArrivalState::Incoming {
        false => None,
        true => match super::meet::loaded(vmms, &known).await {
            Ok(machine) => Some(machine),
            Err(lost) => {
                end(vmms, id, lost, false).await?;
                let known = vmms.db.get::<Arrival>(id)?;
                return Ok(Answer::Ended(Box::new(why(&known))));
            }
        },
    };
    let taken = vmms
        .db
        .change(|draft| {
            let mut arrival = draft.get_mut::<Arrival>(id)?.clone();
            match arrival.state {
                ArrivalState::Mine => return Ok(Ok(())),
                ArrivalState::Ended => return Ok(Err(why(&arrival))),
                ArrivalState::Incoming => {}
            }
            arrival.changed = SystemTime::now();
            let cargo = match fits(&draft.all::<Vm>(), &arrival) {
                Ok(cargo) => cargo,
                Err(refused) => {
                    arrival.state = ArrivalState::Ended;
                    arrival.why = Some(refused.clone());
                    draft.put(arrival);
                    return Ok(Err(refused));
                }
            };
            arrival.state = ArrivalState::Mine;
            arrival.files.clear();
            arrival.cargo = None;
            draft.put(arrival);
            let known = cargo.vm.disks();
            let known: Vec<_> = known
                .flat_map(|(_, disk)| crate::trusted::known_files(disk))
                .collect();
            known.into_iter().for_each(|image| draft.put(image));
            cargo.points.into_iter().for_each(|p| draft.put(p));
            cargo.snapshots.into_iter().for_each(|s| draft.put(s));
            draft.put(cargo.vm);
            Ok(Ok(()))
        })
        .await?;
    if let (Some(machine), Ok(())) = (machine, &taken) {
        vmms.moves.coming.take(id);
        if let Err(error) = super::meet::run(vmms, known.vm, machine).await {
            tracing::error!(vm = %guid(known.vm), %error, "a machine that came does not run");
        }
    }
    Ok(match taken {
        Ok(()) => Answer::Mine,
        Err(why) => Answer::Ended(Box::new(why)),
    })
}

/// It never will be this host's. What is here of it goes, or is kept for another try.
pub(crate) async fn end(vmms: &Arc<Vmms>, id: Uuid, why: Fault, keep: bool) -> Result<()> {
    let kept_for = vmms.options.patience.kept;
    vmms.db
        .change(|draft| {
            let arrival = draft.get_mut::<Arrival>(id)?;
            if arrival.state == ArrivalState::Incoming {
                arrival.state = ArrivalState::Ended;
                arrival.changed = SystemTime::now();
                arrival.why = Some(why);
                arrival.kept_until = keep.then(|| SystemTime::now() + kept_for);
            }
            Ok(())
        })
        .await?;
    clean(vmms, id).await
}

/// Removes what lies here of a move that ended, unless it is kept.
pub(crate) async fn clean(vmms: &Arc<Vmms>, id: Uuid) -> Result<()> {
    let arrival = vmms.db.get::<Arrival>(id)?;
    if arrival.state != ArrivalState::Ended {
        return Ok(());
    }
    super::meet::kill(vmms, &arrival).await?;
    super::meet::sweep(vmms, &arrival)?;
    let kept = arrival.kept_until.is_some();
    // By another move the machine may have come since, with layers of the same names.
    let mut used = BTreeSet::new();
    for vm in vmms.db.all::<Vm>() {
        for (_, disk) in vm.disks() {
            let layers = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
            used.extend(layers.map(|file| file.path.clone()));
        }
    }
    // What a guest would have written to is worth nothing, ever.
    let goes = |name: &str| !kept || name.starts_with(ACTIVE);
    for (name, landed) in &arrival.files {
        if goes(name) && !landed.found && !used.contains(&landed.path) {
            point::remove(&landed.path)?;
        }
    }
    if kept {
        return vmms
            .db
            .change(|draft| {
                let arrival = draft.get_mut::<Arrival>(id)?;
                arrival.files.retain(|name, _| !goes(name));
                Ok(())
            })
            .await;
    }
    let cargo = arrival.cargo.clone();
    for file in cargo.iter().flat_map(|c| &c.files) {
        point::remove(&part_of(&file.path))?;
        // The directories of its points are this service's own; they go when they are empty.
        if let (FileKind::State(_), Some(dir)) = (&file.kind, file.path.parent()) {
            let _ = std::fs::remove_dir(dir);
        }
    }
    vmms.db
        .change(|draft| {
            let arrival = draft.get_mut::<Arrival>(id)?;
            arrival.cargo = None;
            arrival.files.clear();
            Ok(())
        })
        .await
}

/// At the start of the service: what was announced gets its job, if the service ended before it had one.
pub(crate) async fn settle_arrivals(vmms: &Arc<Vmms>) -> Result<()> {
    for arrival in super::arrivals(vmms) {
        if arrival.state == ArrivalState::Incoming && arrival.job.is_none() {
            submit(vmms, &arrival, MigrationKind::LiveAndStorage).await?;
        }
    }
    Ok(())
}

/// What was kept for another try goes when its time is over, and what became of moves is forgotten.
pub(crate) async fn expire(vmms: &Arc<Vmms>, now: SystemTime) {
    for arrival in super::arrivals(vmms) {
        if arrival.state == ArrivalState::Incoming {
            continue;
        }
        let over = arrival.kept_until.is_some_and(|until| until <= now);
        let left = over || (arrival.kept_until.is_none() && arrival.cargo.is_some());
        let done = async {
            if left && arrival.state == ArrivalState::Ended {
                vmms.db
                    .change(|draft| {
                        draft.get_mut::<Arrival>(arrival.id)?.kept_until = None;
                        Ok(())
                    })
                    .await?;
                clean(vmms, arrival.id).await?;
            } else if now
                .duration_since(arrival.changed)
                .is_ok_and(|t| t > REMEMBERED)
            {
                vmms.db
                    .change(|draft| {
                        draft.delete::<Arrival>(arrival.id);
                        Ok(())
                    })
                    .await?;
            }
            Ok::<(), Fault>(())
        };
        if let Err(error) = done.await {
            tracing::warn!(machine = arrival.name, %error, "what is left of a move could not be removed");
        }
    }
}

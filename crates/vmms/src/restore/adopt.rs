//! ImportReferencePointMetadata: a restored machine takes over the point it was restored from, so that its incremental chain
//! goes on.
//!
//! The point is proven before it is believed: each disk is compared, byte for byte, with what the exports say it was. Then a
//! layer is put on top, and what lies beneath is the point.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::manifest::{self, Manifest};
use disk::verify::{DiskProof, Export, disk_files};
use disk::{CancelFlag, Chain, Source};
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::instant::freeze;
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Disk, Power, Vm};
use crate::merge;
use crate::point::create::{New, begin};
use crate::point::{Consistency, Decision, Point, PointType, files};
use crate::restore::verify::{chain_of, find_export};
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Kind, Result, Use, Vmms, fault, guid};

/// Gives a restored machine the point it was restored from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdoptPoint {
    /// The machine.
    pub vm: Uuid,
    /// The point.
    pub point: Uuid,
    /// The directory with the manifest.
    pub directory: PathBuf,
}

#[async_trait]
impl Work<Machines> for AdoptPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::ReferencePoint,
            209,
            "Taking over a reference point",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Alone, Layers::Kept, &[self.point])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.vm, self.point, &self.directory).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        crate::point::create::undo(vmms, ctx, self.vm, self.point).await
    }
}

/// Bytes compared at a time.
const STEP: u64 = 1 << 20;

/// Starts a job that gives a machine the bookkeeping of the point in an export; returns the point's and the job's
/// identifiers. `config` is the exported configuration file, or a directory with a manifest.
///
/// Refused at once: machines that are not off, exports of machines with another GUID, points that exist, and disks that carry
/// layers already.
pub async fn adopt_point(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    config: &Path,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let (own, config) = (Arc::clone(vmms), config.to_owned());
    let found = crate::blocking(move || {
        own.may_use(Use::Import, &config)?;
        let directory = match config.is_dir() {
            true => config.as_path(),
            // `Virtual Machines/<GUID>.json` below the directory with the manifest.
            false => config.ancestors().nth(2).unwrap_or(&config),
        };
        let directory = find_export(directory)?;
        let (manifest, _) = Manifest::load(&directory)?;
        Ok((directory, manifest))
    });
    let (directory, manifest) = found.await?;
    let point = admit(vmms, vm, &manifest, &directory)?;
    let affected = vec![
        (Element::Vm(vm), Effect::ExclusiveUse),
        (Element::Point(point), Effect::Create),
    ];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(directory.clone()),
        created: Some(Element::Point(point)),
        ..Output::default()
    };
    let job = vmms
        .submit(
            AdoptPoint {
                vm,
                point,
                directory,
            },
            submission,
        )
        .await?;
    Ok((point, job))
}

fn admit(vmms: &Vmms, vm: Uuid, manifest: &Manifest, directory: &Path) -> Result<Uuid> {
    let record = vmms.db.get::<Vm>(vm)?;
    let about = |fault: crate::Fault| Err(fault.about(Element::Vm(vm)));
    let unusable = || fault!(ManifestUnusable, directory.display());
    let point: Uuid = manifest.point.id.parse().map_err(|_| unusable())?;
    if record.power != Power::Off {
        let state = vmms.state_of(&record).word();
        return about(fault!(
            WrongVmState,
            record.name,
            state,
            "taking over a reference point",
            "off"
        ));
    }
    if !manifest.machine.id.eq_ignore_ascii_case(&guid(vm)) {
        return about(fault!(
            BaseOfOtherVm,
            guid(point),
            manifest.machine.id,
            guid(vm)
        ));
    }
    if vmms.db.get::<Point>(point).is_ok() || vmms.db.get::<Snapshot>(point).is_ok() {
        return about(fault!(NameTaken, "reference point", guid(point)));
    }
    for entry in &manifest.disks {
        let (_, disk) = exported_disk(&record, &entry.instance_id)?;
        if disk
            .layers
            .active_chain()
            .iter()
            .filter(|f| !f.shared)
            .count()
            > 1
        {
            return about(fault!(DiskHasPoints, disk.path.display()));
        }
    }
    Ok(point)
}

fn exported_disk<'a>(vm: &'a Vm, instance_id: &str) -> Result<(&'a str, &'a Disk)> {
    let found = vm
        .disks()
        .find(|(device, _)| files::disk_id_text(vm.id, device).eq_ignore_ascii_case(instance_id));
    found.ok_or_else(|| fault!(DiskNotFound, guid(vm.id), instance_id))
}

/// Proves the disks, then takes the point over.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    point: Uuid,
    directory: &Path,
) -> Result<()> {
    adopt(vmms, ctx, vm, point, directory)
        .await
        .map_err(|cause| match cause.kind() {
            Kind::Cancelled => cause,
            _ => fault!(AdoptFailed, guid(point), guid(vm))
                .about(Element::Vm(vm))
                .caused_by(cause),
        })
}

async fn adopt(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    id: Uuid,
    directory: &Path,
) -> Result<()> {
    ctx.checkpoint().await?;
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await?;
    let dir = directory.to_owned();
    let chain = crate::blocking(move || chain_of(&dir)).await?;
    let last = chain
        .last()
        .ok_or_else(|| fault!(ManifestUnusable, directory.display()))?;
    let manifest = last.manifest.clone();
    admit(vmms, vm, &manifest, directory)?;
    let record = vmms.db.get::<Vm>(vm)?;
    let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
    let proven = crate::blocking(move || {
        prove(&record, &chain, &cancel, &|done, total| {
            told.progress(done, total)
        })
    })
    .await?;

    let kind = match manifest.point.kind {
        manifest::PointType::LogBased => PointType::Log,
        manifest::PointType::RctBased => PointType::Rct,
    };
    let crash = Some(Consistency::Crash);
    let name = format!("{} {}", manifest.machine.name, manifest.point.instant);
    let mut begun = begin(
        vmms,
        vm,
        &New {
            point: id,
            kind,
            consistency: crash,
            name: &name,
        },
    )
    .await?;
    // Only what was proven is the point's.
    begun.steps.retain(|s| proven.contains(&s.disk.uid));
    begun.point.disks.retain(|d| proven.contains(&d.uid));
    vmms.db.change(|draft| begun.announce(draft)).await?;
    ctx.no_return().await?;
    let reached = freeze::mark(vmms, &begun.vm, &begun.steps, crash).await?;
    let mut marked = begun.look(vmms, reached).await?;
    let point = &mut marked.point;
    point.consistency = match manifest.point.consistency {
        manifest::Consistency::Application => Consistency::Application,
        manifest::Consistency::Crash => Consistency::Crash,
    };
    if let Ok(instant) = manifest.point.instant.parse::<jiff::Timestamp>() {
        point.instant = instant.into();
    }
    point.pause_us = 0;
    // The content is in the export; nothing has to be held for it.
    point.hold = None;
    point.has_data = false;
    point.exports = vec![PathBuf::from(directory)];
    point.decisions.push(Decision {
        what: "the point was taken over from an export".to_owned(),
        reason: format!("each disk was proven against {}", directory.display()),
    });
    vmms.db
        .change(|draft| {
            marked.record_layers(draft)?;
            draft.put(marked.point.clone());
            Ok(())
        })
        .await?;
    marked.maps
}

/// Compares each exported disk with the machine's; returns their uids.
fn prove(
    vm: &Vm,
    chain: &[Export],
    cancel: &CancelFlag,
    told: &dyn Fn(u64, u64),
) -> Result<Vec<Uuid>> {
    let last = chain
        .last()
        .ok_or_else(|| fault!(Internal, "a chain without exports"))?;
    let mut pairs = Vec::new();
    for entry in &last.manifest.disks {
        let (device, disk) = exported_disk(vm, &entry.instance_id)?;
        let exported = Chain::open(&disk_files(chain, &entry.instance_id)?.layers)?;
        let present = crate::point::open_present(device, &disk.layers)?;
        let proof = DiskProof::open(chain, &entry.instance_id)?;
        pairs.push((disk, exported, present, proof));
    }
    let total: u64 = pairs.iter().map(|(_, e, ..)| e.size()).sum();
    let (mut done, mut a, mut b) = (0, Vec::new(), Vec::new());
    let uids = pairs.iter().map(|(disk, ..)| disk.uid).collect();
    for (disk, exported, present, mut proof) in pairs {
        let differs = |at: u64| fault!(DigestMismatch, disk.path.display(), at);
        if exported.size() != present.size() {
            return Err(differs(exported.size().min(present.size())));
        }
        let mut at = 0;
        while at < exported.size() {
            cancel.check()?;
            let len = STEP.min(exported.size() - at);
            let room = usize::try_from(len).map_err(|e| fault!(Internal, e))?;
            a.resize(room, 0);
            b.resize(room, 0);
            exported.read_at(&mut a, at)?;
            present.read_at(&mut b, at)?;
            if let Some(first) = a.iter().zip(&b).position(|(x, y)| x != y) {
                return Err(differs(at + first as u64));
            }
            // Both may have the same damage: the manifest knows better.
            proof.bytes(&a)?;
            at += len;
            done += len;
            told(done, total);
        }
        proof.finish()?;
    }
    Ok(uids)
}

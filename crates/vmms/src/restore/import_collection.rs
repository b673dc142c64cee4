//! Making machines and a collection of the exports of one point of a collection: all of them, or nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::manifest::{CollectionIdentity, Manifest};
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocking;
use crate::collection::{Collection, CollectionKind};
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Vm, check_images};
use crate::restore::import::{self, Checkpoint, Prepared, Take, Wanted};
use crate::restore::pick::{self, Found};
use crate::{Effect, Element, Fault, Kind, Result, Use, Vmms, fault, guid};

/// Makes machines and a collection of the exports of a collection's point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportCollection {
    /// The new collection.
    #[serde(rename = "group")]
    pub collection: Uuid,
    /// Its name.
    pub name: String,
    /// The machines.
    pub members: Vec<MemberImport>,
    /// Whether exported memory is taken over.
    #[serde(default)]
    pub memory: bool,
    /// Whether network addresses and automatic start are.
    #[serde(default)]
    pub keep_identity: bool,
}

#[async_trait]
impl Work<Machines> for ImportCollection {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            61,
            "Importing the virtual machines of a collection",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        let vms = self.members.iter().map(|m| m.vm);
        Claims::of_no_machine(&vms.chain([self.collection]).collect::<Vec<_>>())
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.collection).await
    }
}

/// One machine to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberImport {
    /// The directory with its manifest.
    pub directory: PathBuf,
    /// The new machine.
    pub vm: Uuid,
    /// Where its disks go.
    pub disks: PathBuf,
}

/// Starts a job that makes a new machine of each export of one point of a collection in `directory`, and a collection of them; returns
/// the collection's and the job's identifiers. `at` is the point's GUID (or the beginning of it) or name; without it the
/// newest that is there. `name` `None` keeps the collection's name. A machine whose name is taken here has the collection's added to it. The disks go into one directory for each machine below
/// `disks`. What is taken over beside settings and disks `take` says.
///
/// # Errors
/// Refused at once where no such point was exported, where it is unclear which is meant, and where a machine of it is missing.
pub async fn import_collection(
    vmms: &Arc<Vmms>,
    directory: &Path,
    at: Option<String>,
    name: Option<String>,
    disks: &Path,
    take: impl Into<Take>,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let take = take.into();
    if !disks.is_absolute() {
        return Err(fault!(PathNotUsable, disks.display(), "it is not absolute"));
    }
    let (own, dir) = (Arc::clone(vmms), directory.to_owned());
    let (point, found) = blocking(move || {
        own.may_use(Use::Import, &dir)?;
        choose(&dir, at.as_deref())
    })
    .await?;
    let name = name.unwrap_or(point.name);
    crate::collection::manage::check_name(&name)?;
    crate::collection::manage::fits(&name, found.len())?;
    let collection = Uuid::new_v4();
    let mut members: Vec<MemberImport> = Vec::new();
    for export in found {
        let plain = |c: char| if c.is_alphanumeric() { c } else { '-' };
        let machine: String = export.manifest.machine.name.chars().map(plain).collect();
        let mut place = disks.join(&machine);
        if machine.is_empty() || members.iter().any(|m| m.disks == place) {
            place = disks.join(format!("{machine}-{}", export.manifest.machine.id));
        }
        members.push(MemberImport {
            directory: export.dir,
            vm: Uuid::new_v4(),
            disks: place,
        });
    }
    let mut affected: Vec<_> = vec![(Element::Collection(collection), Effect::Create)];
    affected.extend(members.iter().map(|m| (Element::Vm(m.vm), Effect::Create)));
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(directory.to_owned()),
        created: Some(Element::Collection(collection)),
        ..Output::default()
    };
    let task = ImportCollection {
        collection,
        name,
        members,
        memory: take.memory,
        keep_identity: take.identity,
    };
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.collection, job))
}

/// The exports of one point of a collection, one of each machine of it, in the order of the machines.
fn choose(directory: &Path, at: Option<&str>) -> Result<(CollectionIdentity, Vec<Found>)> {
    let all = pick::all(directory)?;
    let mut known: Vec<(String, CollectionIdentity)> = Vec::new();
    for found in &all {
        if let Some(point) = &found.manifest.collection
            && !known.iter().any(|(_, p)| p.point == point.point)
        {
            known.push((found.manifest.point.instant.clone(), point.clone()));
        }
    }
    known.sort_by(|a, b| b.0.cmp(&a.0));
    let mut points = known.clone();
    points.retain(|(_, point)| at.is_none_or(|at| is_meant(point, at)));
    let shown = |points: &[(String, CollectionIdentity)]| {
        let one = |(at, p): &(String, CollectionIdentity)| {
            format!("{} ({}, {at}, of {})", p.point_name, p.point, p.name)
        };
        points.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let point = match points.as_slice() {
        [] => {
            let known = match known.is_empty() {
                true => "no point of a collection".to_owned(),
                false => shown(&known),
            };
            let at = at.unwrap_or("a collection's point");
            return Err(fault!(PointNotExported, directory.display(), at, known));
        }
        [(_, only)] => only.clone(),
        [(_, newest), ..] if at.is_none() => newest.clone(),
        several => {
            let at = at.unwrap_or_default();
            return Err(fault!(
                PointUnclear,
                directory.display(),
                at,
                shown(several)
            ));
        }
    };
    let mut exports = Vec::new();
    let mut missing = Vec::new();
    let mut left = all;
    for machine in &point.machines {
        let of_machine = |manifest: &Manifest| {
            manifest.machine.id.eq_ignore_ascii_case(&machine.id)
                && manifest
                    .collection
                    .as_ref()
                    .is_some_and(|c| c.point == point.point)
        };
        match left.iter().position(|f| of_machine(&f.manifest)) {
            Some(at) => exports.push(left.swap_remove(at)),
            None => missing.push(format!("{} ({})", machine.name, machine.id)),
        }
    }
    if !missing.is_empty() {
        return Err(fault!(
            CollectionIncomplete,
            directory.display(),
            point.point,
            missing.join(", ")
        ));
    }
    Ok((point, exports))
}

fn is_meant(point: &CollectionIdentity, at: &str) -> bool {
    let id = at.trim().trim_matches(['{', '}']);
    let begins = point.point.get(..id.len());
    point.point_name.eq_ignore_ascii_case(at.trim())
        || (id.len() >= pick::BEGINNING && begins.is_some_and(|b| b.eq_ignore_ascii_case(id)))
}

/// Makes them.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &ImportCollection) -> Result<()> {
    let ImportCollection {
        collection,
        name,
        members,
        memory,
        keep_identity,
    } = work;
    let take = Take {
        memory: *memory,
        identity: *keep_identity,
    };
    ctx.checkpoint().await?;
    let failed = |member: &MemberImport, cause: Fault| match cause.kind() {
        Kind::Cancelled => cause,
        _ => fault!(ImportFailed, member.directory.display()).caused_by(cause),
    };
    let mut prepared: Vec<Prepared> = Vec::new();
    let mut notes = Checkpoint::default();
    for member in members {
        let wanted = Wanted {
            name: None,
            disks: &member.disks,
            planned: false,
            take,
        };
        let one = import::prepare(vmms, &member.directory, member.vm, &wanted).await;
        let one = one.map_err(|cause| failed(member, cause))?;
        notes.expect(vmms, &one);
        prepared.push(one);
    }
    ctx.note(&notes).await?;
    let total = prepared.iter().map(Prepared::size).sum();
    let mut before = 0;
    for (one, member) in prepared.iter().zip(members) {
        let written = one.write(ctx, before, total).await;
        written.map_err(|cause| failed(member, cause))?;
        before += one.size();
        notes.place(one)?;
    }
    ctx.note(&notes).await?;
    let report = prepared.iter().flat_map(Prepared::report).collect();
    ctx.output(|output| output.report = report).await?;
    ctx.no_return().await?;
    let mut machines: Vec<Vm> = Vec::new();
    for (one, member) in prepared.into_iter().zip(members) {
        let made = one.finish(vmms, ctx).await;
        machines.push(made.map_err(|cause| failed(member, cause))?);
    }
    let collection = Collection {
        id: *collection,
        name: name.clone(),
        kind: CollectionKind::Machines,
        members: machines.iter().map(|m| m.id).collect(),
        last_apply: None,
    };
    vmms.db
        .change(|draft| {
            // Beside the machines they come from, they are told apart by the collection.
            for machine in &mut machines {
                if draft.all::<Vm>().iter().any(|o| o.name == machine.name) {
                    machine.name = format!("{}-{}", machine.name, collection.name);
                }
            }
            if draft.get_mut::<Collection>(collection.id).is_ok() {
                return Err(fault!(NameTaken, "collection", guid(collection.id)));
            }
            for machine in machines {
                check_images(&draft.all::<Vm>(), &machine)?;
                draft.put(machine);
            }
            draft.put(collection);
            Ok(())
        })
        .await
}

/// Removes what was written, unless the collection is there.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, collection: Uuid) -> Result<()> {
    if vmms.db.get::<Collection>(collection).is_ok() {
        return Ok(());
    }
    import::take_back(ctx).await
}

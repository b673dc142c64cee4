//! `kvmms snapshot`.

use cim::{Instance, Path, Value};
use msvm::class;
use serde_json::json;

use super::collection_instant as of_group;
use crate::cli::{Consistency, CreateSnapshotArgs, SnapshotKind, SnapshotVerb};
use crate::error::{Error, Result};
use crate::find::{self, Candidate, Machine, Naming, OfMachine};
use crate::inspect::{boolean, instant, moment, short_id, some_text, text};
use crate::output::Row;
use crate::session::{Followed, NAMESPACE, Session, parameters, service};

/// What the types of settings that are snapshots begin with.
const SNAPSHOT: &str = "Microsoft:Hyper-V:Snapshot:";

/// A snapshot.
struct Snapshot {
    id: String,
    name: String,
    machine: String,
    instance: Instance,
}

impl Snapshot {
    fn of(instance: Instance) -> Self {
        Snapshot {
            id: short_id(&text(&instance, "InstanceID")).to_owned(),
            name: text(&instance, "ElementName"),
            machine: text(&instance, "VirtualSystemIdentifier"),
            instance,
        }
    }

    fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA)
                .in_namespace(NAMESPACE)
                .key("InstanceID", format!("Microsoft:{}", self.id))
        })
    }

    /// The snapshot it descends from, as its GUID.
    fn parent(&self) -> Option<String> {
        let path = Path::parse(&some_text(&self.instance, "Parent")?).ok()?;
        Some(short_id(path.get_str("InstanceID")?).to_owned())
    }
}

fn snapshots_service() -> Path {
    service(class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SERVICE)
}

/// The snapshots of a machine, or of all, the oldest first.
async fn snapshots(session: &Session, machine: Option<&Machine>) -> Result<Vec<Snapshot>> {
    let class = class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA;
    let found = session.client.enumerate(class).await?;
    let mut all: Vec<Snapshot> = found
        .into_iter()
        .filter(|i| text(i, "VirtualSystemType").starts_with(SNAPSHOT))
        .map(Snapshot::of)
        .collect();
    if let Some(machine) = machine {
        all.retain(|s| s.machine.eq_ignore_ascii_case(&machine.id));
    }
    all.sort_by_key(|s| instant(&s.instance, "CreationTime"));
    Ok(all)
}

impl OfMachine for Snapshot {
    const KIND: &'static str = "snapshot";

    fn candidate(&self) -> Candidate {
        Candidate {
            id: self.id.clone(),
            name: self.name.clone(),
        }
    }

    fn machine(&self) -> &str {
        &self.machine
    }
}

/// The snapshot a text names; several of one name are told apart as MACHINE/SNAPSHOT.
async fn one(session: &Session, wanted: &str) -> Result<Snapshot> {
    let all = snapshots(session, None).await?;
    let machines = find::machines(session).await?;
    let hint = "kvmms snapshot list shows them.";
    find::choose_of(all, &machines, wanted, Naming::Whole, hint)
}

fn row(snapshot: &Snapshot, machines: &[Machine], all: &[Snapshot]) -> Row {
    let machine = machines
        .iter()
        .find(|m| m.id.eq_ignore_ascii_case(&snapshot.machine));
    let parent = snapshot.parent();
    let above = all.iter().find(|s| {
        parent
            .as_ref()
            .is_some_and(|p| s.id.eq_ignore_ascii_case(p))
    });
    let kind = text(&snapshot.instance, "VirtualSystemType");
    let kind = kind.strip_prefix(SNAPSHOT).unwrap_or(&kind).to_lowercase();
    let name = machine.map_or(&*snapshot.machine, |m| &m.name);
    let taken = instant(&snapshot.instance, "CreationTime").map(moment);
    Row::new()
        .text("name", "Name", &snapshot.name)
        .text("machine", "Machine", name)
        .text("type", "Type", kind)
        .maybe("taken", "Taken", taken)
        .yes("memory", "Memory", boolean(&snapshot.instance, "IsSaved"))
        .maybe("parent", "Descends from", above.map(|s| s.name.clone()))
        .text("id", "Id", &snapshot.id)
        .hidden("machineId", json!(snapshot.machine))
        .hidden("parentId", json!(parent))
}

/// Carries out a verb of `snapshot`.
pub(super) async fn run(session: &Session, verb: SnapshotVerb) -> Result<()> {
    match verb {
        SnapshotVerb::List {
            group: Some(group), ..
        } => of_group::list(session, &of_group::SNAPSHOT, &group).await,
        SnapshotVerb::List { vm, group: None } => list(session, vm.as_deref()).await,
        SnapshotVerb::Create(arguments) => create(session, arguments).await,
        SnapshotVerb::Export(arguments) => of_group::export_snapshot(session, arguments).await,
        SnapshotVerb::Apply { snapshot, group } => {
            let (method, done) = ("ApplySnapshot", "is applied");
            match group {
                Some(group) => {
                    let called = (method, "SnapshotCollection");
                    of_group::ask(
                        session,
                        &of_group::SNAPSHOT,
                        &group,
                        &snapshot,
                        called,
                        done,
                    )
                    .await
                }
                None => ask(session, &snapshot, method, "Snapshot", done).await,
            }
        }
        SnapshotVerb::Convert { snapshot, group } => {
            let (method, done) = ("ConvertToReferencePoint", "is a reference point now");
            match group {
                Some(group) => {
                    let called = (method, "AffectedSnapshotCollection");
                    of_group::ask(
                        session,
                        &of_group::SNAPSHOT,
                        &group,
                        &snapshot,
                        called,
                        done,
                    )
                    .await
                }
                None => ask(session, &snapshot, method, "AffectedSnapshot", done).await,
            }
        }
        SnapshotVerb::Delete {
            snapshot,
            group: Some(group),
            ..
        } => {
            let called = ("DestroySnapshot", "AffectedSnapshotCollection");
            of_group::ask(
                session,
                &of_group::SNAPSHOT,
                &group,
                &snapshot,
                called,
                "is deleted",
            )
            .await
        }
        SnapshotVerb::Delete {
            snapshot,
            group: None,
            tree,
        } => {
            let (method, parameter, done) = match tree {
                true => (
                    "DestroySnapshotTree",
                    "SnapshotSettingData",
                    "and all below it are deleted",
                ),
                false => ("DestroySnapshot", "AffectedSnapshot", "is deleted"),
            };
            ask(session, &snapshot, method, parameter, done).await
        }
    }
}

async fn list(session: &Session, vm: Option<&str>) -> Result<()> {
    let machines = find::machines(session).await?;
    let machine = match vm {
        Some(vm) => Some(find::machine(session, vm, Naming::Beginning).await?),
        None => None,
    };
    let all = snapshots(session, machine.as_ref()).await?;
    let rows: Vec<_> = all.iter().map(|s| row(s, &machines, &all)).collect();
    session
        .output
        .list(&rows, "No snapshots. Take one: kvmms snapshot create VM")
}

/// The settings of a new instant as an instance of `class`; null where nothing was said.
pub(super) fn settings(class: &'static str, name: Option<&str>, consistency: Consistency) -> Value {
    let mut settings = Instance::new(class);
    if let Some(name) = name {
        settings.set("ElementName", name);
    }
    match consistency {
        // Left out: the host does what it can.
        Consistency::Auto => {}
        Consistency::Application => drop(settings.set("ConsistencyLevel", 1u8)),
        Consistency::Crash => drop(settings.set("ConsistencyLevel", 2u8)),
    }
    match settings.properties.is_empty() {
        true => Value::Null,
        false => settings.into(),
    }
}

async fn create(session: &Session, a: CreateSnapshotArgs) -> Result<()> {
    let vm = match (&a.vm, &a.group) {
        (_, Some(group)) => return of_group::create_snapshot(session, group, &a).await,
        (Some(vm), None) => vm,
        (None, None) => return Err(Error::usage("name a machine, or a collection with --group")),
    };
    let machine = find::machine(session, vm, Naming::Whole).await?;
    let class = class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SETTING_DATA;
    let settings = settings(class, a.name.as_deref(), a.consistency);
    let kind: u16 = match a.kind {
        SnapshotKind::Full => 2,
        SnapshotKind::Disk => 3,
        SnapshotKind::Recovery => 32768,
    };
    let called = session
        .call(
            &snapshots_service(),
            "CreateSnapshot",
            &parameters([
                ("AffectedSystem", machine.path().into()),
                ("SnapshotSettings", settings),
                ("SnapshotType", kind.into()),
            ]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let made = match (
        &called.job,
        called.invoked.get("ResultingSnapshot").as_path(),
    ) {
        (_, Some(path)) => Some(session.client.get(&path).await?),
        (Some(job), None) => {
            let class = class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA;
            session.results(job, class).await?.pop()
        }
        (None, None) => None,
    };
    let made = made.map(Snapshot::of).ok_or_else(|| {
        Error::Answer(
            called.method.clone(),
            "it does not name the new snapshot".to_owned(),
        )
    })?;
    let line = format!(
        "snapshot {} of {} is taken ({})",
        made.name, machine.name, made.id
    );
    let all = snapshots(session, Some(&machine)).await?;
    let row = row(&made, std::slice::from_ref(&machine), &all);
    session.output.done(&line, &row)
}

async fn ask(
    session: &Session,
    wanted: &str,
    method: &str,
    parameter: &'static str,
    done: &str,
) -> Result<()> {
    let snapshot = one(session, wanted).await?;
    let called = session
        .call(
            &snapshots_service(),
            method,
            &parameters([(parameter, snapshot.path().into())]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("name", "Name", &snapshot.name)
        .text("id", "Id", &snapshot.id);
    session
        .output
        .done(&format!("snapshot {} {done}", snapshot.name), &row)
}

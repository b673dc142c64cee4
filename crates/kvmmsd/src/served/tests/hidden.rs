//! A machine that the gate hides is nowhere: in no list, query, association or job, behind no path and no reference.

use cim::{Instance, Path, Value};
use uuid::Uuid;
use vmms::db::Db;
use vmms::guid;
use vmms::job::Job;
use vmms::point::Point;
use vmms::snapshot::Snapshot;
use wbem::{Caller, Response, Status};

use super::bench::Bench;
use crate::object::{NAMESPACE, What};
use crate::rights::Gate;

/// Hides one machine from everybody, and with it all that tells of it.
struct Hides(Uuid);

impl Gate for Hides {
    fn may_see(&self, _caller: &Caller, what: &What, db: &Db) -> bool {
        !what.vms(db).contains(&self.0)
    }
}

/// What would tell of the machine: its identifier, those of its instants and jobs, and its files.
fn secrets(bench: &Bench) -> Vec<String> {
    let db = &bench.vmms.db;
    let own = |vm: Uuid| vm == bench.full;
    let points = db.all::<Point>().into_iter().filter(|p| own(p.vm));
    let snapshots = db.all::<Snapshot>().into_iter().filter(|s| own(s.vm));
    let affects = |job: &Job| {
        What::Job(Box::new(job.clone()))
            .vms(db)
            .into_iter()
            .any(own)
    };
    let jobs = db.all::<Job>().into_iter().filter(|j| affects(j));
    let mut ids = vec![bench.full];
    ids.extend(points.map(|p| p.id));
    ids.extend(snapshots.map(|s| s.id));
    ids.extend(jobs.map(|j| j.id));
    assert!(ids.len() > 10, "{ids:?}");
    let files = ["a.img", "cd.iso"].map(str::to_owned);
    ids.into_iter()
        .map(|id| guid(id).to_lowercase())
        .chain(files)
        .collect()
}

fn tells(secrets: &[String], what: &impl std::fmt::Debug) -> bool {
    let text = format!("{what:?}").to_lowercase();
    secrets.iter().any(|s| text.contains(s.as_str()))
}

async fn everything(bench: &Bench) -> Vec<(&'static msvm::Namespace, Instance)> {
    let mut out = Vec::new();
    for namespace in msvm::namespaces() {
        for instance in super::all(bench, namespace).await {
            out.push((namespace, instance));
        }
    }
    out
}

fn path(instance: &Instance) -> &Path {
    instance.path.as_ref().expect("a path")
}

#[tokio::test]
async fn a_hidden_machine_is_in_no_list_query_or_association_and_behind_no_path() {
    let bench = Bench::new().await;
    let secrets = secrets(&bench);
    let all = everything(&bench).await;
    let (hidden, open): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, i)| tells(&secrets, i));
    assert!(hidden.len() > 100, "{}", hidden.len());
    let bench = bench.through(Box::new(Hides(bench_full(&hidden))));
    let mut problems = Vec::new();
    for (_, instance) in everything(&bench).await {
        if tells(&secrets, &instance) {
            problems.push(format!("{} is listed", path(&instance)));
        }
    }
    for (namespace, instance) in &hidden {
        let (name, path) = (namespace.name(), path(instance));
        match bench.get(name, path).await {
            Err(error) if error.status == Status::NotFound && error.chain.len() < 2 => {}
            // What the host has in all is counted without it.
            Ok(counted) if !tells(&secrets, &counted) => {}
            other => problems.push(format!("{path}: {other:?}")),
        }
        for (key, value) in &path.keys {
            let Some(text) = value.as_str().filter(|t| tells(&secrets, t)) else {
                continue;
            };
            let text = text.replace('\\', "\\\\");
            let query = format!("SELECT * FROM {} WHERE {key}='{text}'", instance.class);
            let found = bench.query(name, &query).await.expect(&query);
            if !found.is_empty() {
                problems.push(format!("{query} finds {}", found.len()));
            }
        }
    }
    let ends = open.iter().filter(|(_, i)| {
        let named = path(i).keys.iter().all(|(_, v)| v.as_path().is_none());
        named && !tells(&secrets, path(i))
    });
    for (namespace, instance) in ends {
        let (name, path) = (namespace.name(), path(instance));
        let associators = bench.associators(name, path).await;
        let references = bench.references(name, path).await;
        for found in associators.into_iter().chain(references).flatten() {
            if tells(&secrets, &found) {
                problems.push(format!("{path} leads to {:?}", found.path));
            }
        }
    }
    super::problems(problems);
}

/// The machine behind the instances.
fn bench_full(hidden: &[(&'static msvm::Namespace, Instance)]) -> Uuid {
    let mut systems = hidden.iter().map(|(_, i)| i);
    let system = systems.find(|i| i.class.is("Msvm_ComputerSystem"));
    let name = system.and_then(|i| i.get_str("Name")).expect("a machine");
    Uuid::parse_str(name).expect("a GUID")
}

#[tokio::test]
async fn no_method_takes_or_tells_of_a_hidden_machine() {
    let bench = Bench::new().await;
    let (secrets, full) = (secrets(&bench), bench.full);
    let system = Path::class("Msvm_ComputerSystem")
        .key("CreationClassName", "Msvm_ComputerSystem")
        .key("Name", guid(full));
    let bench = bench.through(Box::new(Hides(full)));
    let service = |class: &'static str| Path::class(class);
    let management = || service("Msvm_VirtualSystemManagementService");
    let told = bench.invoke(management(), "GetSummaryInformation").await;
    let told = told.expect("summaries");
    assert!(tells(&[guid(bench.bare).to_lowercase()], &told));
    assert!(!tells(&secrets, &told));
    // As the object called: not there.
    let state = vec![("RequestedState".into(), Value::Uint16(3))];
    let refused = bench
        .call(system.clone(), "RequestStateChange", state)
        .await;
    assert_eq!(refused.expect_err("hidden").status, Status::NotFound);
    // As a reference, and by an embedded instance: as one that never was.
    let unknown = Uuid::from_u128(7);
    let settings = |id: Uuid| {
        let i = Instance::new("Msvm_VirtualSystemSettingData");
        let i = i.with("InstanceID", format!("Microsoft:{}", guid(id)));
        Value::String(cim::embedded::write(&i))
    };
    let memory = |id: Uuid| {
        let id = crate::object::resource_id(id, crate::object::MEMORY_ID);
        let i = Instance::new("Msvm_MemorySettingData").with("InstanceID", id);
        Value::Array(vec![Value::String(cim::embedded::write(&i))])
    };
    let reference = |id: Uuid| {
        let mut path = system.clone().in_namespace(NAMESPACE);
        path.keys.retain(|(key, _)| !key.is("Name"));
        Value::from(path.key("Name", guid(id)))
    };
    type Given<'a> = &'a dyn Fn(Uuid) -> Value;
    let points = service("Msvm_VirtualSystemReferencePointService");
    let collections = service("Msvm_CollectionManagementService");
    let calls: [(Path, &str, &'static str, Given<'_>); 5] = [
        (management(), "DestroySystem", "AffectedSystem", &reference),
        (
            management(),
            "ModifySystemSettings",
            "SystemSettings",
            &settings,
        ),
        (
            management(),
            "ModifyResourceSettings",
            "ResourceSettings",
            &memory,
        ),
        (points, "CreateReferencePoint", "AffectedSystem", &reference),
        (collections, "AddMember", "Member", &reference),
    ];
    for (path, method, parameter, given) in calls {
        let mut answers = Vec::new();
        for id in [full, unknown] {
            let parameters = vec![(parameter.into(), given(id))];
            let answer = bench.call(path.clone(), method, parameters).await;
            let text = match answer {
                Ok(Response::Invoked { return_value, .. }) => format!("{return_value:?}"),
                Ok(other) => panic!("{other:?}"),
                Err(error) => format!("{:?} {}", error.status, error.message),
            };
            answers.push(text.replace(&guid(id), "ID"));
        }
        assert_eq!(answers.first(), answers.last(), "{method}");
    }
    assert!(bench.vmms.db.get::<vmms::machine::Vm>(full).is_ok());
}

//! `kvmms group`.

use cim::{Instance, Name, Path, Value};
use msvm::class;
use serde_json::json;
use wbem::Walk;

use super::collection_instant;
use crate::cli::GroupVerb;
use crate::error::{Error, Result};
use crate::find::{self, Candidate, Machine, Naming, pick};
use crate::inspect::text;
use crate::output::Row;
use crate::session::{NAMESPACE, Session, parameters, service};

/// A collection.
pub(super) struct Group {
    pub(super) id: String,
    pub(super) name: String,
    instance: Instance,
}

impl Group {
    fn of(instance: Instance) -> Self {
        Group {
            id: text(&instance, "CollectionID"),
            name: text(&instance, "ElementName"),
            instance,
        }
    }

    pub(super) fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(self.instance.class.clone())
                .in_namespace(NAMESPACE)
                .key("CollectionID", self.id.as_str())
        })
    }

    fn is_of_groups(&self) -> bool {
        self.instance.class.is(class::MSVM_MANAGEMENT_COLLECTION)
    }
}

fn management() -> Path {
    service(class::MSVM_COLLECTION_MANAGEMENT_SERVICE)
}

async fn groups(session: &Session) -> Result<Vec<Group>> {
    let mut all = Vec::new();
    for class in [
        class::MSVM_VIRTUAL_SYSTEM_COLLECTION,
        class::MSVM_MANAGEMENT_COLLECTION,
    ] {
        all.extend(
            session
                .client
                .enumerate(class)
                .await?
                .into_iter()
                .map(Group::of),
        );
    }
    all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(all)
}

pub(super) async fn group(session: &Session, wanted: &str, naming: Naming) -> Result<Group> {
    let mut all = groups(session).await?;
    let candidates: Vec<Candidate> = all
        .iter()
        .map(|g| Candidate {
            id: g.id.clone(),
            name: g.name.clone(),
        })
        .collect();
    let at = pick(
        "group",
        &candidates,
        wanted,
        naming,
        "kvmms group list shows them.",
    )?;
    Ok(all.swap_remove(at))
}

/// Carries out a verb of `group`.
pub(super) async fn run(session: &Session, verb: GroupVerb) -> Result<()> {
    match verb {
        GroupVerb::List => list(session).await,
        GroupVerb::Show { group } => show(session, &group).await,
        GroupVerb::Create {
            name,
            members,
            of_groups,
            id,
        } => create(session, &name, &members, of_groups, id).await,
        GroupVerb::Add { group, members } => {
            change(session, &group, &members, "AddMember", "is in").await
        }
        GroupVerb::Remove { group, members } => {
            change(session, &group, &members, "RemoveMember", "is not in").await
        }
        GroupVerb::Rename { group, name } => {
            let found = self::group(session, &group, Naming::Whole).await?;
            let given = parameters([
                ("Collection", found.path().into()),
                ("NewName", name.as_str().into()),
            ]);
            let called = session
                .call(&management(), "RenameCollection", &given)
                .await?;
            session.finish(&called).await?;
            let row = Row::new()
                .text("name", "Name", &name)
                .text("id", "Id", &found.id);
            session
                .output
                .done(&format!("{} is {name} now", found.name), &row)
        }
        GroupVerb::Import {
            directory,
            at,
            name,
            to,
            with_memory,
            keep_identity,
        } => {
            let keep = keep_identity;
            super::export::import_group(session, &directory, at, name, to, with_memory, keep).await
        }
        GroupVerb::Delete { group } => {
            let found = self::group(session, &group, Naming::Whole).await?;
            let given = parameters([("Collection", found.path().into())]);
            let called = session
                .call(&management(), "DestroyCollection", &given)
                .await?;
            session.finish(&called).await?;
            let row = row(&found, &[]);
            session
                .output
                .done(&format!("group {} is deleted", found.name), &row)
        }
    }
}

pub(super) fn walk(association: &'static str, role: &'static str) -> Walk {
    Walk {
        assoc_class: Some(Name::of(association)),
        role: Some(Name::of(role)),
        ..Walk::default()
    }
}

/// The names of the members.
async fn members(session: &Session, group: &Group) -> Result<Vec<String>> {
    let association = if group.is_of_groups() {
        class::MSVM_COLLECTED_COLLECTIONS
    } else {
        class::MSVM_COLLECTED_VIRTUAL_SYSTEMS
    };
    let walk = walk(association, "Collection");
    let found = session.client.associators(&group.path(), &walk).await?;
    Ok(found.iter().map(|i| text(i, "ElementName")).collect())
}

/// The machines of a group of machines.
pub(super) async fn machines(session: &Session, group: &Group) -> Result<Vec<Machine>> {
    if group.is_of_groups() {
        let why = format!("group {} is of groups, not of machines", group.name);
        return Err(Error::usage(why));
    }
    let walk = Walk {
        result_class: Some(Name::of(class::MSVM_COMPUTER_SYSTEM)),
        ..walk(class::MSVM_COLLECTED_VIRTUAL_SYSTEMS, "Collection")
    };
    let found = session.client.associators(&group.path(), &walk).await?;
    let mut machines: Vec<Machine> = found.into_iter().filter_map(Machine::of).collect();
    machines.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(machines)
}

fn row(group: &Group, members: &[String]) -> Row {
    let of = if group.is_of_groups() {
        "groups"
    } else {
        "machines"
    };
    Row::new()
        .text("name", "Name", &group.name)
        .text("of", "Of", of)
        .both("members", "Members", members.join(", "), json!(members))
        .text("id", "Id", &group.id)
}

async fn list(session: &Session) -> Result<()> {
    let mut rows = Vec::new();
    for group in groups(session).await? {
        rows.push(row(&group, &members(session, &group).await?));
    }
    session
        .output
        .list(&rows, "No groups. Make one: kvmms group create NAME VM...")
}

pub(super) async fn show(session: &Session, wanted: &str) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let mut rows = Vec::new();
    if !group.is_of_groups() {
        rows = collection_instant::points(session, &group).await?;
    }
    let row = row(&group, &members(session, &group).await?).rows("points", "Points", &rows);
    session.output.one(&row)
}

async fn member_path(session: &Session, group: &Group, wanted: &str) -> Result<(Path, String)> {
    if group.is_of_groups() {
        let member = self::group(session, wanted, Naming::Whole).await?;
        return Ok((member.path(), member.name));
    }
    let machine = find::machine(session, wanted, Naming::Whole).await?;
    Ok((machine.path(), machine.name))
}

async fn create(
    session: &Session,
    name: &str,
    wanted: &[String],
    of_groups: bool,
    id: Option<String>,
) -> Result<()> {
    let class = if of_groups {
        class::MSVM_MANAGEMENT_COLLECTION
    } else {
        class::MSVM_VIRTUAL_SYSTEM_COLLECTION
    };
    let mut group = Group {
        id: String::new(),
        name: name.to_owned(),
        instance: Instance::new(class),
    };
    // What cannot be found is better known before anything is made.
    let mut paths = Vec::new();
    for member in wanted {
        paths.push(member_path(session, &group, member).await?);
    }
    let given = parameters([
        ("Name", name.into()),
        ("Id", id.map_or(Value::Null, Value::from)),
        ("Type", u16::from(of_groups).into()),
    ]);
    let called = session
        .call(&management(), "DefineCollection", &given)
        .await?;
    session.finish(&called).await?;
    let made = called.invoked.get("DefinedCollection").as_path();
    let made = made.ok_or_else(|| {
        let why = "it does not name the new collection".to_owned();
        Error::Answer(called.method.clone(), why)
    })?;
    group.id = made.get_str("CollectionID").unwrap_or_default().to_owned();
    group.instance.path = Some(made);
    let mut names = Vec::new();
    for (path, name) in paths {
        call_member(session, &group, path, "AddMember").await?;
        names.push(name);
    }
    let row = row(&group, &names);
    session
        .output
        .done(&format!("group {name} is made ({})", group.id), &row)
}

async fn call_member(session: &Session, group: &Group, member: Path, method: &str) -> Result<()> {
    let given = parameters([
        ("Member", member.into()),
        ("Collection", group.path().into()),
    ]);
    let called = session.call(&management(), method, &given).await?;
    session.finish(&called).await.map(drop)
}

async fn change(
    session: &Session,
    wanted: &str,
    members: &[String],
    method: &str,
    done: &str,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    for member in members {
        let (path, name) = member_path(session, &group, member).await?;
        call_member(session, &group, path, method).await?;
        session
            .output
            .remark(&format!("{name} {done} {}", group.name));
    }
    let now = self::members(session, &group).await?;
    let line = format!("group {}: {}", group.name, now.join(", "));
    session.output.done(&line, &row(&group, &now))
}

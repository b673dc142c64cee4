//! Defining collections and changing their members. All of it is short: done when the call returns.

use std::sync::Arc;

use uuid::Uuid;

use super::{Group, GroupKind, GroupPoint, GroupSnapshot};
use crate::db::Draft;
use crate::vm::Vm;
use crate::{Element, Result, Vmms, fault, guid, names};
use engine::Row;

pub(crate) fn check_name(name: &str) -> Result<()> {
    names::check("Name", name)
}

/// Defines a collection.
pub async fn define(
    vmms: &Arc<Vmms>,
    name: &str,
    id: Option<Uuid>,
    kind: GroupKind,
) -> Result<Uuid> {
    check_name(name)?;
    let group = Group {
        id: id.unwrap_or_else(Uuid::new_v4),
        name: name.to_owned(),
        kind,
        members: Vec::new(),
        last_apply: None,
    };
    vmms.db
        .change(|draft| {
            if draft.get_mut::<Group>(group.id).is_ok() {
                return Err(fault!(NameTaken, "collection", guid(group.id)));
            }
            let id = group.id;
            draft.put(group);
            Ok(id)
        })
        .await
}

/// Gives a collection another name.
pub async fn rename(vmms: &Arc<Vmms>, id: Uuid, name: &str) -> Result<()> {
    check_name(name)?;
    vmms.db
        .change(|draft| {
            name.clone_into(&mut draft.get_mut::<Group>(id)?.name);
            Ok(())
        })
        .await
}

/// Deletes a collection that has no points and no snapshots; its members stay, its place in other collections goes.
pub async fn destroy(vmms: &Arc<Vmms>, id: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            let group = draft.get_mut::<Group>(id)?.clone();
            let points = draft.all::<GroupPoint>();
            let snapshots = draft.all::<GroupSnapshot>();
            if points.iter().any(|p| p.group == id) || snapshots.iter().any(|s| s.group == id) {
                return Err(fault!(GroupHasPoints, group.name).about(Element::Group(id)));
            }
            for other in draft.all::<Group>() {
                if other.members.contains(&id) {
                    draft
                        .get_mut::<Group>(other.id)?
                        .members
                        .retain(|m| *m != id);
                }
            }
            draft.delete::<Group>(id);
            Ok(())
        })
        .await
}

/// Adds a machine to a collection of machines, or a collection to a management collection. A member that is there
/// already is refused.
pub async fn add(vmms: &Arc<Vmms>, id: Uuid, member: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            let group = draft.get_mut::<Group>(id)?.clone();
            let about = |fault: crate::Fault| Err(fault.about(Element::Group(id)));
            match group.kind {
                GroupKind::Machines => {
                    if draft.get_mut::<Vm>(member)?.planned {
                        return about(fault!(
                            WrongType,
                            "Member",
                            "a planned machine cannot be collected"
                        ));
                    }
                }
                GroupKind::Management => {
                    draft.get_mut::<Group>(member)?;
                    if member == id || contains(draft, member, id, 0)? {
                        return about(fault!(
                            InvalidValue,
                            "Member",
                            guid(member),
                            "a collection cannot contain itself"
                        ));
                    }
                }
            }
            if group.members.contains(&member) {
                return about(fault!(NameTaken, "member", guid(member)));
            }
            draft.get_mut::<Group>(id)?.members.push(member);
            Ok(())
        })
        .await
}

/// Whether `inner` is somewhere in `outer`.
fn contains(draft: &mut Draft<'_>, outer: Uuid, inner: Uuid, depth: usize) -> Result<bool> {
    let members = match draft.get_mut::<Group>(outer) {
        Ok(group) if group.kind == GroupKind::Management => group.members.clone(),
        _ => return Ok(false),
    };
    // Loops are refused when they would be made; a damaged record must not hang the service.
    if depth > 32 {
        return Ok(true);
    }
    for member in members {
        if member == inner || contains(draft, member, inner, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes a member out. `strict`: one that is not there is refused.
pub async fn remove(vmms: &Arc<Vmms>, id: Uuid, member: Uuid, strict: bool) -> Result<()> {
    vmms.db
        .change(|draft| {
            let group = draft.get_mut::<Group>(id)?;
            let before = group.members.len();
            group.members.retain(|m| *m != member);
            if strict && group.members.len() == before {
                return Err(fault!(NotAMember, guid(member), group.name).about(Element::Group(id)));
            }
            Ok(())
        })
        .await
}

/// Takes a machine out of every collection: it is being deleted.
pub(crate) fn forget_member(draft: &mut Draft<'_>, member: Uuid) -> Result<()> {
    for group in draft.all::<Group>() {
        if group.members.contains(&member) {
            draft
                .get_mut::<Group>(group.id())?
                .members
                .retain(|m| *m != member);
        }
    }
    Ok(())
}

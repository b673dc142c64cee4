//! Defining collections and changing their members. All of it is short: done when the call returns.

use std::sync::Arc;

use uuid::Uuid;

use super::{Collection, CollectionKind, CollectionPoint, CollectionSnapshot};
use crate::db::Draft;
use crate::machine::Vm;
use crate::{Element, Result, Vmms, fault, guid, names};
use engine::Row;

/// Most machines of a collection. What changes most at once is two records of each, and a few of the collection.
pub const MOST_MACHINES: usize = (store::MAX_TXN_PARTS - 8) / 2;

/// Whether a collection may have so many machines.
pub(crate) fn fits(name: &str, machines: usize) -> Result<()> {
    if machines > MOST_MACHINES {
        return Err(fault!(CollectionFull, name, machines, MOST_MACHINES));
    }
    Ok(())
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    names::check("Name", name)
}

/// Defines a collection.
pub async fn define(
    vmms: &Arc<Vmms>,
    name: &str,
    id: Option<Uuid>,
    kind: CollectionKind,
) -> Result<Uuid> {
    check_name(name)?;
    let collection = Collection {
        id: id.unwrap_or_else(Uuid::new_v4),
        name: name.to_owned(),
        kind,
        members: Vec::new(),
        last_apply: None,
    };
    vmms.db
        .change(|draft| {
            if draft.get_mut::<Collection>(collection.id).is_ok() {
                return Err(fault!(NameTaken, "collection", guid(collection.id)));
            }
            let id = collection.id;
            draft.put(collection);
            Ok(id)
        })
        .await
}

/// Gives a collection another name.
pub async fn rename(vmms: &Arc<Vmms>, id: Uuid, name: &str) -> Result<()> {
    check_name(name)?;
    vmms.db
        .change(|draft| {
            name.clone_into(&mut draft.get_mut::<Collection>(id)?.name);
            Ok(())
        })
        .await
}

/// Deletes a collection that has no points and no snapshots; its members stay, its place in other collections goes.
pub async fn destroy(vmms: &Arc<Vmms>, id: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            let collection = draft.get_mut::<Collection>(id)?.clone();
            let points = draft.all::<CollectionPoint>();
            let snapshots = draft.all::<CollectionSnapshot>();
            if points.iter().any(|p| p.collection == id)
                || snapshots.iter().any(|s| s.collection == id)
            {
                return Err(
                    fault!(CollectionHasPoints, collection.name).about(Element::Collection(id))
                );
            }
            for other in draft.all::<Collection>() {
                if other.members.contains(&id) {
                    draft
                        .get_mut::<Collection>(other.id)?
                        .members
                        .retain(|m| *m != id);
                }
            }
            draft.delete::<Collection>(id);
            Ok(())
        })
        .await
}

/// Adds a machine to a collection of machines, or a collection to a management collection. A member that is there
/// already is refused.
pub async fn add(vmms: &Arc<Vmms>, id: Uuid, member: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            let collection = draft.get_mut::<Collection>(id)?.clone();
            let about = |fault: crate::Fault| Err(fault.about(Element::Collection(id)));
            match collection.kind {
                CollectionKind::Machines => {
                    if draft.get_mut::<Vm>(member)?.planned {
                        return about(fault!(
                            WrongType,
                            "Member",
                            "a planned machine cannot be collected"
                        ));
                    }
                }
                CollectionKind::Management => {
                    draft.get_mut::<Collection>(member)?;
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
            if collection.members.contains(&member) {
                return about(fault!(NameTaken, "member", guid(member)));
            }
            if collection.kind == CollectionKind::Machines
                && let Err(full) = fits(&collection.name, collection.members.len() + 1)
            {
                return about(full);
            }
            draft.get_mut::<Collection>(id)?.members.push(member);
            Ok(())
        })
        .await
}

/// Whether `inner` is somewhere in `outer`.
fn contains(draft: &mut Draft<'_>, outer: Uuid, inner: Uuid, depth: usize) -> Result<bool> {
    let members = match draft.get_mut::<Collection>(outer) {
        Ok(collection) if collection.kind == CollectionKind::Management => {
            collection.members.clone()
        }
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
            let collection = draft.get_mut::<Collection>(id)?;
            let before = collection.members.len();
            collection.members.retain(|m| *m != member);
            if strict && collection.members.len() == before {
                return Err(fault!(NotAMember, guid(member), collection.name)
                    .about(Element::Collection(id)));
            }
            Ok(())
        })
        .await
}

/// Takes a machine out of every collection: it is being deleted.
pub(crate) fn forget_member(draft: &mut Draft<'_>, member: Uuid) -> Result<()> {
    for collection in draft.all::<Collection>() {
        if collection.members.contains(&member) {
            draft
                .get_mut::<Collection>(collection.id())?
                .members
                .retain(|m| *m != member);
        }
    }
    Ok(())
}

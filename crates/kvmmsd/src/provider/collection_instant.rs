//! Instants of collections, whether a reference point or a snapshot names them: their instances and associations.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use uuid::Uuid;
use vmms::collection::{Collection, CollectionInstant, MemberPoint};
use vmms::point::Consistency;
use vmms::{Fault, fault, guid};

use super::internal;
use crate::object::{self, Object, What};
use crate::view::{CallError, Provider, Shown, View};

/// A record that names an instant of a collection.
pub(crate) trait Collected: Shown + Deref<Target = CollectionInstant> + 'static {
    /// The class of its instances, and that of the instances with what else is known of it.
    const CLASSES: &'static [&'static str; 2];
    /// The property of the latter with the members' instants.
    const PARTS: &'static str;

    /// Its object.
    fn object(record: Arc<Self>) -> Object;

    /// The record behind an object.
    fn of(what: &What) -> Option<&Arc<Self>>;

    /// The object of a member's part.
    fn part(view: &View, member: &MemberPoint) -> Option<Object>;

    /// The whole that the object of a member's part belongs to.
    fn whole(part: &What) -> Option<Uuid>;

    /// The properties that only this kind has.
    fn instance(&self, view: &View, i: &mut Instance);

    /// Those of the second class.
    fn detail(&self, i: &mut Instance);
}

/// Serves the two classes of one kind.
pub(crate) struct CollectionInstants<R>(PhantomData<fn() -> R>);

impl<R> CollectionInstants<R> {
    pub(crate) const fn new() -> Self {
        CollectionInstants(PhantomData)
    }
}

fn of_class<R: Collected>(class: &str, record: Arc<R>) -> Object {
    let [_, detail] = *R::CLASSES;
    if class.eq_ignore_ascii_case(detail) {
        let id = instance_id(record.id);
        Object::with_id(detail, id, R::what(record))
    } else {
        R::object(record)
    }
}

fn instance_id(id: Uuid) -> String {
    format!("Microsoft:{}", guid(id))
}

fn finished<R: Collected>(view: &View, id: Uuid) -> Option<Arc<R>> {
    view.get::<R>(id).ok().filter(|r| r.complete)
}

#[async_trait]
impl<R: Collected> Provider for CollectionInstants<R> {
    fn classes(&self) -> &'static [&'static str] {
        R::CLASSES
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let found = match wanted {
            Some(path) => {
                let mut keys = ["CollectionID", "InstanceID", ""].into_iter();
                let id = keys.find_map(|key| path.get_str(key));
                let found = id.and_then(object::guid_in);
                found
                    .and_then(|id| finished::<R>(view, id))
                    .into_iter()
                    .collect()
            }
            None => {
                let mut all = view.all::<R>();
                all.retain(|r| r.complete);
                all.sort_by_key(|r| (r.collection, r.sequence));
                all
            }
        };
        Ok(found.into_iter().map(|r| of_class(class, r)).collect())
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        let mut i = Instance::new(object.class);
        let Some(record) = R::of(&object.what) else {
            return i;
        };
        i.set("ElementName", record.name.as_str());
        let [class, _] = *R::CLASSES;
        if object.class == class {
            i.set("InstanceID", guid(record.id));
            record.instance(view, &mut i);
        } else {
            detail(record, R::PARTS, &mut i);
            record.detail(&mut i);
        }
        i
    }
}

/// What is known of every instant of a collection.
fn detail(at: &CollectionInstant, parts: &'static str, i: &mut Instance) {
    let members = || at.members.iter();
    i.set("CollectionID", guid(at.id))
        .set("VirtualSystemCollectionId", guid(at.collection))
        .set("Instant", Datetime::from(at.instant))
        .set("Sequence", at.sequence)
        .set("SkewMicroseconds", at.skew_us)
        .set("SkewLimitMicroseconds", at.skew_limit_us)
        .set(
            "VirtualSystemIdentifiers",
            members().map(|m| guid(m.vm)).collect::<Vec<_>>(),
        )
        .set(
            parts,
            members().map(|m| instance_id(m.point)).collect::<Vec<_>>(),
        )
        .set(
            "PauseMicroseconds",
            members().map(|m| m.pause_us).collect::<Vec<_>>(),
        )
        .set(
            "WasRunning",
            members().map(|m| m.running).collect::<Vec<_>>(),
        );
}

pub(crate) fn level(consistency: Consistency) -> u16 {
    match consistency {
        Consistency::Application => 1,
        Consistency::Crash => 2,
    }
}

/// The instant of a collection that a REF parameter names.
pub(crate) async fn reference<R: Collected>(
    view: &View,
    parameter: &'static str,
    path: Option<&Path>,
) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
    let [class, _] = *R::CLASSES;
    let object = view.reference(parameter, path, class).await?;
    match R::of(&object.what) {
        Some(record) => Ok(record.id),
        None => Err(internal(format!("{} is not a {class}", path.class))),
    }
}

/// A collection's instants of that kind, oldest first.
pub(crate) fn of_collection<R: Collected>(view: &View, from: &Object) -> Vec<Object> {
    let What::Collection(collection) = &from.what else {
        return Vec::new();
    };
    let mut all = view.all::<R>();
    all.retain(|r| r.collection == collection.id && r.complete);
    all.sort_by_key(|r| r.sequence);
    all.into_iter().map(R::object).collect()
}

/// The collection it is of.
pub(crate) fn collection_of<R: Collected>(view: &View, from: &Object) -> Vec<Object> {
    let collection = R::of(&from.what).map(|r| r.collection);
    let found = collection.and_then(|id| view.get::<Collection>(id).ok());
    found.map(Object::of_collection).into_iter().collect()
}

/// Its members' instants.
pub(crate) fn members_of<R: Collected>(view: &View, from: &Object) -> Vec<Object> {
    let members = R::of(&from.what).into_iter().flat_map(|r| r.members.iter());
    members.filter_map(|m| R::part(view, m)).collect()
}

/// The one that a member's instant belongs to.
pub(crate) fn collected_in<R: Collected>(view: &View, from: &Object) -> Vec<Object> {
    let whole = R::whole(&from.what).and_then(|id| finished::<R>(view, id));
    whole.map(R::object).into_iter().collect()
}

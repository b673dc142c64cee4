//! Collections of machines and collections of collections, and the methods of Msvm_CollectionManagementService.

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::Fault;
use vmms::collection::{Collection, CollectionKind, manage};
use vmms::machine::Vm;
use vmms::{fault, guid};

use super::collection_instant::level;
use super::internal;
use crate::object::{self, Object, What, collection_class};
use crate::view::{Call, CallError, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct Collections;

impl Collections {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let mut collections = view.all::<Collection>();
        collections.retain(|g| collection_class(g.kind).eq_ignore_ascii_case(class));
        collections.into_iter().map(Object::of_collection).collect()
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let id = path.get_str("CollectionID").or_else(|| path.get_str(""));
        let Some(id) = id.and_then(object::guid_in) else {
            return Vec::new();
        };
        let collection = view.get::<Collection>(id).ok();
        let collection =
            collection.filter(|g| collection_class(g.kind).eq_ignore_ascii_case(class));
        collection.map(Object::of_collection).into_iter().collect()
    }
}

#[async_trait]
impl Provider for Collections {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_VIRTUAL_SYSTEM_COLLECTION,
            class::MSVM_MANAGEMENT_COLLECTION,
        ]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(match wanted {
            Some(path) => self.find(view, class, path),
            None => self.list(view, class),
        })
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        let mut i = Instance::new(object.class);
        let What::Collection(collection) = &object.what else {
            return i;
        };
        let caption = match collection.kind {
            CollectionKind::Machines => "Virtual System Collection",
            CollectionKind::Management => "Management Collection",
        };
        i.set("Caption", caption)
            .set("Description", caption)
            .set("ElementName", collection.name.as_str())
            .set("InstanceID", guid(collection.id))
            .set("CollectionID", guid(collection.id));
        if collection.kind == CollectionKind::Machines {
            // Replication is not set up for any collection.
            i.set("FailedOverReplicationType", 0u16)
                .set("ReplicationMode", 0u16)
                .set("ReplicationState", 0u16);
            if let Some(last) = &collection.last_apply {
                i.set("LastApplyTime", Datetime::from(last.at))
                    .set("LastApplyConsistencyLevel", level(last.consistency))
                    .set(
                        "LastApplyVirtualMachineIds",
                        last.vms.iter().map(|vm| guid(*vm)).collect::<Vec<_>>(),
                    );
            }
        }
        i
    }
}

/// The collection a REF parameter names.
pub(crate) async fn collection_reference(
    view: &View,
    parameter: &'static str,
    path: Option<&Path>,
) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
    let object = view
        .reference(parameter, path, "CIM_CollectionOfMSEs")
        .await?;
    match object.what {
        What::Collection(collection) => Ok(collection.id),
        _ => Err(internal(format!(
            "{} is not a collection of machines",
            path.class
        ))),
    }
}

/// The member a REF parameter names: a machine or a collection.
async fn member_reference(view: &View, path: Option<&Path>) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, "Member")))?;
    if cim::Schema::is_a(
        msvm::virtualization(),
        path.class.as_str(),
        "CIM_CollectionOfMSEs",
    ) {
        collection_reference(view, "Member", Some(path)).await
    } else {
        view.vm_reference("Member", Some(path)).await
    }
}

/// Calls a method of Msvm_CollectionManagementService. All of them are done when they answer.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::CollectionManagementService as Method;
    use params::collection_management_service as p;
    let vmms = &view.vmms;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    match method {
        Method::DefineCollection => {
            let given = p::DefineCollectionIn::read(call.parameters)?;
            let kind = match msvm::required("Type", given.type_)? {
                0 => CollectionKind::Machines,
                1 => CollectionKind::Management,
                other => {
                    let known = "0 (of virtual machines) and 1 (of collections) exist";
                    return Err(fault!(InvalidValue, "Type", other, known).into());
                }
            };
            let id = match given.id.as_deref().map(str::trim).filter(|t| !t.is_empty()) {
                None => None,
                Some(text) => Some(wanted_id("Id", text)?),
            };
            let name = msvm::required("Name", given.name)?;
            let id = manage::define(vmms, &name, id, kind).await?;
            let path = view.element_path(&vmms::Element::Collection(id));
            Ok(Outcome::done().with("DefinedCollection", path))
        }
        Method::DestroyCollection => {
            let given = p::DestroyCollectionIn::read(call.parameters)?;
            let collection =
                collection_reference(view, "Collection", given.collection.as_ref()).await?;
            manage::destroy(vmms, collection).await?;
            Ok(Outcome::done())
        }
        Method::RenameCollection => {
            let given = p::RenameCollectionIn::read(call.parameters)?;
            let collection =
                collection_reference(view, "Collection", given.collection.as_ref()).await?;
            let name = msvm::required("NewName", given.new_name)?;
            manage::rename(vmms, collection, &name).await?;
            Ok(Outcome::done())
        }
        Method::AddMember => {
            let given = p::AddMemberIn::read(call.parameters)?;
            let collection =
                collection_reference(view, "Collection", given.collection.as_ref()).await?;
            let member = member_reference(view, given.member.as_ref()).await?;
            check_member(view, collection, given.member.as_ref())?;
            manage::add(vmms, collection, member).await?;
            Ok(Outcome::done())
        }
        Method::RemoveMember => {
            let given = p::RemoveMemberIn::read(call.parameters)?;
            let collection =
                collection_reference(view, "Collection", given.collection.as_ref()).await?;
            let member = member_reference(view, given.member.as_ref()).await?;
            manage::remove(vmms, collection, member, true).await?;
            Ok(Outcome::done())
        }
        Method::RemoveMemberById => {
            let given = p::RemoveMemberByIdIn::read(call.parameters)?;
            let member = member_reference(view, given.member.as_ref()).await?;
            let text = msvm::required("CollectionId", given.collection_id)?;
            let collection = wanted_id("CollectionId", &text)?;
            // Fine where the collection or the membership has gone already.
            if view.get::<Collection>(collection).is_ok() {
                manage::remove(vmms, collection, member, false).await?;
            }
            Ok(Outcome::done())
        }
        Method::RequestStateChange | Method::StartService | Method::StopService => {
            Err(unserved(call.target.class, call.method))
        }
    }
}

/// That the member is of the kind the collection collects.
fn check_member(view: &View, collection: Uuid, member: Option<&Path>) -> Result<(), CallError> {
    let collection = view.get::<Collection>(collection)?;
    let is_collection = member.is_some_and(|m| {
        cim::Schema::is_a(
            msvm::virtualization(),
            m.class.as_str(),
            "CIM_CollectionOfMSEs",
        )
    });
    match (collection.kind, is_collection) {
        (CollectionKind::Machines, true) => Err(fault!(
            WrongType,
            "Member",
            "a collection of machines collects no collections"
        )
        .into()),
        (CollectionKind::Management, false) => Err(fault!(
            WrongType,
            "Member",
            "a management collection collects collections only"
        )
        .into()),
        _ => Ok(()),
    }
}

fn wanted_id(parameter: &str, text: &str) -> Result<Uuid, CallError> {
    Uuid::parse_str(text.trim().trim_matches(['{', '}'])).map_err(|_| {
        fault!(
            InvalidValue,
            parameter,
            format!("{text:?}"),
            "a GUID is needed"
        )
        .into()
    })
}

/// The machines of a collection.
pub(crate) fn machines_of(view: &View, object: &Object) -> Vec<Object> {
    let What::Collection(collection) = &object.what else {
        return Vec::new();
    };
    if collection.kind != CollectionKind::Machines {
        return Vec::new();
    }
    let found = collection
        .members
        .iter()
        .filter_map(|m| view.get::<Vm>(*m).ok());
    found.map(Object::of_vm).collect()
}

/// The collections a machine is in.
pub(crate) fn collections_of_vm(view: &View, from: &Object) -> Vec<Object> {
    match &from.what {
        What::Vm(vm) => holding(view, vm.id, CollectionKind::Machines),
        _ => Vec::new(),
    }
}

/// The collections of a management collection.
pub(crate) fn collections_of(view: &View, from: &Object) -> Vec<Object> {
    let What::Collection(collection) = &from.what else {
        return Vec::new();
    };
    if collection.kind != CollectionKind::Management {
        return Vec::new();
    }
    let found = collection
        .members
        .iter()
        .filter_map(|m| view.get::<Collection>(*m).ok());
    found.map(Object::of_collection).collect()
}

/// The management collections a collection is in.
pub(crate) fn collections_above(view: &View, from: &Object) -> Vec<Object> {
    match &from.what {
        What::Collection(collection) => holding(view, collection.id, CollectionKind::Management),
        _ => Vec::new(),
    }
}

fn holding(view: &View, member: Uuid, kind: CollectionKind) -> Vec<Object> {
    let mut collections = view.all::<Collection>();
    collections.retain(|g| g.kind == kind && g.members.contains(&member));
    collections.into_iter().map(Object::of_collection).collect()
}

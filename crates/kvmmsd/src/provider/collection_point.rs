//! Msvm_ReferencePointCollection, what else is known of it, and the methods of Msvm_CollectionReferencePointService.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path, Value};
use msvm::{class, params};
use uuid::Uuid;
use vmms::Fault;
use vmms::collection::{self, Collection, CollectionPoint, MachineDisks};
use vmms::point::{Consistency, Point, PointType};
use vmms::{fault, guid};

use super::collection::collection_reference;
use super::{expect_class, given, given_text, in_settings, internal};
use crate::object::{self, Object, What};
use crate::view::{Call, CallError, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct CollectionPoints;

fn detail(point: Arc<CollectionPoint>) -> Object {
    Object {
        class: class::KVMMS_REFERENCE_POINT_COLLECTION_DETAIL,
        keys: vec![("InstanceID", format!("Microsoft:{}", guid(point.id)))],
        what: What::CollectionPoint(point),
    }
}

fn of_class(class: &str, point: Arc<CollectionPoint>) -> Object {
    if class.eq_ignore_ascii_case(class::KVMMS_REFERENCE_POINT_COLLECTION_DETAIL) {
        detail(point)
    } else {
        Object::of_collection_point(point)
    }
}

impl CollectionPoints {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let mut points = view.all::<CollectionPoint>();
        points.retain(|p| p.complete);
        points.sort_by_key(|p| (p.collection, p.sequence));
        points.into_iter().map(|p| of_class(class, p)).collect()
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let id = ["CollectionID", "InstanceID", ""]
            .iter()
            .find_map(|key| path.get_str(key));
        let point = id
            .and_then(object::guid_in)
            .and_then(|id| view.get::<CollectionPoint>(id).ok());
        point
            .filter(|p| p.complete)
            .map(|p| of_class(class, p))
            .into_iter()
            .collect()
    }
}

#[async_trait]
impl Provider for CollectionPoints {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_REFERENCE_POINT_COLLECTION,
            class::KVMMS_REFERENCE_POINT_COLLECTION_DETAIL,
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

    fn instance(&self, view: &View, object: &Object) -> Instance {
        match &object.what {
            What::CollectionPoint(point)
                if object.class == class::MSVM_REFERENCE_POINT_COLLECTION =>
            {
                instance(view, point)
            }
            What::CollectionPoint(point) => detail_instance(point),
            _ => Instance::new(object.class),
        }
    }
}

fn instance(view: &View, point: &CollectionPoint) -> Instance {
    let has_data =
        |m: &collection::MemberPoint| view.get::<Point>(m.point).is_ok_and(|p| p.has_data);
    let mut i = Instance::new(class::MSVM_REFERENCE_POINT_COLLECTION);
    i.set("Caption", "Reference Point Collection")
        .set(
            "Description",
            "Reference points of the machines of a collection, of one instant",
        )
        .set("ElementName", point.name.as_str())
        .set("InstanceID", guid(point.id))
        .set("ReferencePointType", kind_number(point.kind))
        .set("ConsistencyLevel", level(point.consistency))
        .set("VirtualSystemCollectionId", guid(point.collection))
        .set(
            "HasAssociatedLog",
            point.kind == PointType::Log && point.members.iter().all(has_data),
        );
    i
}

fn detail_instance(point: &CollectionPoint) -> Instance {
    let members = || point.members.iter();
    let mut i = Instance::new(class::KVMMS_REFERENCE_POINT_COLLECTION_DETAIL);
    i.set("Caption", "Reference Point Collection Detail")
        .set(
            "Description",
            "What is known of a collection's reference point",
        )
        .set("ElementName", point.name.as_str())
        .set("CollectionID", guid(point.id))
        .set("VirtualSystemCollectionId", guid(point.collection))
        .set("Instant", Datetime::from(point.instant))
        .set("Sequence", point.sequence)
        .set("SkewMicroseconds", point.skew_us)
        .set("SkewLimitMicroseconds", point.skew_limit_us)
        .set(
            "VirtualSystemIdentifiers",
            members().map(|m| guid(m.vm)).collect::<Vec<_>>(),
        )
        .set(
            "ReferencePoints",
            members()
                .map(|m| format!("Microsoft:{}", guid(m.point)))
                .collect::<Vec<_>>(),
        )
        .set(
            "PauseMicroseconds",
            members().map(|m| m.pause_us).collect::<Vec<_>>(),
        )
        .set(
            "WasRunning",
            members().map(|m| m.running).collect::<Vec<_>>(),
        );
    i
}

fn kind_number(kind: PointType) -> u16 {
    match kind {
        PointType::Log => 1,
        PointType::Rct => 2,
    }
}

pub(crate) fn level(consistency: Consistency) -> u16 {
    match consistency {
        Consistency::Application => 1,
        Consistency::Crash => 2,
    }
}

/// The collection's point a REF parameter names.
pub(crate) async fn point_reference(
    view: &View,
    parameter: &'static str,
    path: Option<&Path>,
) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
    let object = view
        .reference(parameter, path, class::MSVM_REFERENCE_POINT_COLLECTION)
        .await?;
    match object.what {
        What::CollectionPoint(point) => Ok(point.id),
        _ => Err(internal(format!(
            "{} is not a reference point collection",
            path.class
        ))),
    }
}

/// Calls a method of Msvm_CollectionReferencePointService.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::CollectionReferencePointService as Method;
    use params::collection_reference_point_service as p;
    let vmms = &view.vmms;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    match method {
        Method::CreateReferencePoint => create(view, call).await,
        Method::DestroyReferencePoint => {
            let given = p::DestroyReferencePointIn::read(call.parameters)?;
            let path = given.affected_reference_point_collection.as_ref();
            let point = point_reference(view, "AffectedReferencePointCollection", path).await?;
            let job = collection::destroy_point(vmms, point, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::RemoveAssociatedData => {
            let given = p::RemoveAssociatedDataIn::read(call.parameters)?;
            let path = given.affected_reference_point_collection.as_ref();
            let point = point_reference(view, "AffectedReferencePointCollection", path).await?;
            let job = collection::remove_data(vmms, point, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::ExportReferencePoint => export(view, call).await,
        Method::RequestStateChange | Method::StartService | Method::StopService => {
            Err(unserved(call.target.class, call.method))
        }
    }
}

async fn create(view: &View, call: &Call<'_>) -> CallResult {
    use params::collection_reference_point_service as p;
    let read = p::CreateReferencePointIn::read(call.parameters)?;
    let collection = collection_reference(view, "Collection", read.collection.as_ref()).await?;
    let kind = match read.reference_point_type {
        Some(1) => PointType::Log,
        Some(2) | None => PointType::Rct,
        Some(other) => {
            return Err(fault!(
                InvalidValue,
                "ReferencePointType",
                other,
                "1 (log) and 2 (RCT) exist"
            )
            .into());
        }
    };
    let (mut consistency, mut name) = (None, String::new());
    if let Some(settings) = &read.reference_point_settings {
        expect_class(
            "ReferencePointSettings",
            settings,
            class::MSVM_COLLECTION_REFERENCE_POINT_SETTING_DATA,
        )?;
        consistency = match given::<u16>(settings, "ConsistencyLevel")? {
            None | Some(0) => None,
            Some(1) => Some(Consistency::Application),
            Some(2) => Some(Consistency::Crash),
            Some(other) => {
                let known = "0, 1 (application) and 2 (crash) exist";
                return Err(fault!(InvalidValue, "ConsistencyLevel", other, known).into());
            }
        };
        name = given_text(settings, "ElementName")
            .unwrap_or_default()
            .to_owned();
    }
    let (_, job) =
        collection::create_point(&view.vmms, collection, kind, consistency, &name, call.asked)
            .await?;
    Ok(Outcome::started(view, job))
}

async fn export(view: &View, call: &Call<'_>) -> CallResult {
    use params::collection_reference_point_service as p;
    let read = p::ExportReferencePointIn::read(call.parameters)?;
    let point = point_reference(
        view,
        "ReferencePointCollection",
        read.reference_point_collection.as_ref(),
    )
    .await?;
    let directory = msvm::required("ExportDirectory", read.export_directory)?;
    let directory = vmms::machine::device::host_path(&directory)?;
    let (mut base, mut only) = (None, Vec::new());
    if let Some(settings) = &read.export_setting_data {
        expect_class(
            "ExportSettingData",
            settings,
            class::MSVM_COLLECTION_REFERENCE_POINT_EXPORT_SETTING_DATA,
        )?;
        if let Some(text) = given_text(settings, "BaseReferencePointCollection") {
            // A path, or the bare CollectionID.
            let path = Path::parse(text).unwrap_or_else(|_| {
                Path::class(class::MSVM_REFERENCE_POINT_COLLECTION).key("CollectionID", text)
            });
            let named = point_reference(view, "BaseReferencePointCollection", Some(&path)).await;
            base = Some(in_settings("BaseReferencePointCollection", text, named)?);
        }
        for value in settings.get("VirtualMachinesToDisksToExport").items() {
            if let Some(machine) = machine_disks(view, value).await? {
                only.push(machine);
            }
        }
    }
    let job =
        collection::export_point(&view.vmms, point, base, &directory, &only, call.asked).await?;
    Ok(Outcome::started(view, job))
}

/// An element of VirtualMachinesToDisksToExport: an embedded instance inside an embedded instance. Null and empty ones say
/// nothing.
async fn machine_disks(view: &View, value: &Value) -> Result<Option<MachineDisks>, CallError> {
    const PARAMETER: &str = "VirtualMachinesToDisksToExport";
    let instance = match value {
        Value::Null => return Ok(None),
        Value::Object(instance) => (**instance).clone(),
        other => {
            let text = other.as_str().unwrap_or_default();
            if text.trim().is_empty() {
                return Ok(None);
            }
            msvm::embedded_instance(text, PARAMETER)?
        }
    };
    expect_class(PARAMETER, &instance, class::MSVM_VIRTUAL_MACHINE_TO_DISKS)?;
    let text = given_text(&instance, "VirtualMachineId")
        .ok_or_else(|| fault!(MissingValue, "VirtualMachineId"))?;
    // A GUID, or the path of the machine.
    let vm = match object::guid_in(text) {
        Some(vm) => vm,
        None => {
            let path = Path::parse(text).map_err(|_| {
                fault!(
                    InvalidValue,
                    "VirtualMachineId",
                    format!("{text:?}"),
                    "a GUID is needed"
                )
            })?;
            let named = view.vm_reference("VirtualMachineId", Some(&path)).await;
            in_settings("VirtualMachineId", text, named)?
        }
    };
    let disks = instance.get("DisksToExport");
    let disks = disks
        .items()
        .iter()
        .filter_map(|v| v.as_str().filter(|t| !t.is_empty()).map(str::to_owned));
    Ok(Some(MachineDisks {
        vm,
        disks: disks.collect(),
    }))
}

/// A collection's points, oldest first.
pub(crate) fn points_of(view: &View, from: &Object) -> Vec<Object> {
    let What::Collection(collection) = &from.what else {
        return Vec::new();
    };
    let mut points = view.all::<CollectionPoint>();
    points.retain(|p| p.collection == collection.id && p.complete);
    points.sort_by_key(|p| p.sequence);
    points
        .into_iter()
        .map(Object::of_collection_point)
        .collect()
}

/// The collection of a collection's point.
pub(crate) fn collection_of(view: &View, from: &Object) -> Vec<Object> {
    match &from.what {
        What::CollectionPoint(point) => {
            let collection = view.get::<Collection>(point.collection).ok();
            collection.map(Object::of_collection).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The members' points of a collection's point.
pub(crate) fn members_of(view: &View, from: &Object) -> Vec<Object> {
    match &from.what {
        What::CollectionPoint(point) => {
            let found = point
                .members
                .iter()
                .filter_map(|m| view.get::<Point>(m.point).ok());
            found.map(Object::of_point).collect()
        }
        _ => Vec::new(),
    }
}

/// The collection's point a machine's point belongs to.
pub(crate) fn collected_in(view: &View, from: &Object) -> Vec<Object> {
    let What::Point(point) = &from.what else {
        return Vec::new();
    };
    let found = point
        .collection_point
        .and_then(|id| view.get::<CollectionPoint>(id).ok());
    found
        .filter(|p| p.complete)
        .map(Object::of_collection_point)
        .into_iter()
        .collect()
}

//! Msvm_ReferencePointCollection, what else is known of it, and the methods of Msvm_CollectionReferencePointService.

use std::sync::Arc;

use cim::{Instance, Path, Value};
use msvm::{class, params};
use uuid::Uuid;
use vmms::collection::{self, CollectionPoint, MachineDisks, MemberPoint};
use vmms::point::{Consistency, Point, PointType};
use vmms::{fault, guid};

use super::collection::collection_reference;
use super::collection_instant::{Collected, level, reference};
use super::{expect_class, given, given_text, in_settings};
use crate::object::{self, Object, What};
use crate::view::{Call, CallError, CallResult, Outcome, View, unserved};

impl Collected for CollectionPoint {
    const CLASSES: &'static [&'static str; 2] = &[
        class::MSVM_REFERENCE_POINT_COLLECTION,
        class::KVMMS_REFERENCE_POINT_COLLECTION_DETAIL,
    ];
    const PARTS: &'static str = "ReferencePoints";

    fn object(record: Arc<Self>) -> Object {
        Object::of_collection_point(record)
    }

    fn of(what: &What) -> Option<&Arc<Self>> {
        match what {
            What::CollectionPoint(point) => Some(point),
            _ => None,
        }
    }

    fn part(view: &View, member: &MemberPoint) -> Option<Object> {
        let point = view.get::<Point>(member.point).ok();
        point.map(Object::of_point)
    }

    fn whole(part: &What) -> Option<Uuid> {
        match part {
            What::Point(point) => point.collection_point,
            _ => None,
        }
    }

    fn instance(&self, view: &View, i: &mut Instance) {
        let has_data = |m: &MemberPoint| view.get::<Point>(m.point).is_ok_and(|p| p.has_data);
        i.set("Caption", "Reference Point Collection")
            .set(
                "Description",
                "Reference points of the machines of a collection, of one instant",
            )
            .set("ReferencePointType", kind_number(self.kind))
            .set("ConsistencyLevel", level(self.consistency))
            .set("VirtualSystemCollectionId", guid(self.collection))
            .set(
                "HasAssociatedLog",
                self.kind == PointType::Log && self.members.iter().all(has_data),
            );
    }

    fn detail(&self, i: &mut Instance) {
        i.set("Caption", "Reference Point Collection Detail").set(
            "Description",
            "What is known of a collection's reference point",
        );
    }
}

fn kind_number(kind: PointType) -> u16 {
    match kind {
        PointType::Log => 1,
        PointType::Rct => 2,
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
            let point =
                reference::<CollectionPoint>(view, "AffectedReferencePointCollection", path)
                    .await?;
            let job = collection::destroy_point(vmms, point, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::RemoveAssociatedData => {
            let given = p::RemoveAssociatedDataIn::read(call.parameters)?;
            let path = given.affected_reference_point_collection.as_ref();
            let point =
                reference::<CollectionPoint>(view, "AffectedReferencePointCollection", path)
                    .await?;
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
    let point = reference::<CollectionPoint>(
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
            let named =
                reference::<CollectionPoint>(view, "BaseReferencePointCollection", Some(&path))
                    .await;
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

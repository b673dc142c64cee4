//! Msvm_VirtualSystemReferencePoint, and the methods of its service.

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::Fault;
use vmms::point::{Consistency, Point, PointType};
use vmms::{fault, guid};

use super::{expect_class, given, given_text, in_settings, internal};
use crate::object::{self, Object, What, resource_id};
use crate::view::{Call, CallError, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct Points;

impl Points {
    fn list(&self, view: &View, _class: &str) -> Vec<Object> {
        let mut points = view.all::<Point>();
        points.retain(|p| p.complete);
        points.sort_by_key(|p| (p.vm, p.sequence));
        points.into_iter().map(Object::of_point).collect()
    }

    fn find(&self, view: &View, _class: &str, path: &Path) -> Vec<Object> {
        // `Microsoft:<machine>\<point>`, the form of older hosts, names it as well.
        let id = path.get_str("InstanceID").or_else(|| path.get_str(""));
        let id = id.and_then(|id| object::guid_in(id.rsplit(['\\', ':']).next().unwrap_or(id)));
        let point = id.and_then(|id| view.get::<Point>(id).ok());
        point
            .filter(|p| p.complete)
            .map(Object::of_point)
            .into_iter()
            .collect()
    }
}

#[async_trait]
impl Provider for Points {
    fn classes(&self) -> &'static [&'static str] {
        &[class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT]
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
        if let What::Point(point) = &object.what {
            let rct = point.kind == PointType::Rct;
            let disks = point.disks.iter();
            i.set("Caption", "Reference Point")
                .set("Description", "Microsoft Virtual Machine Reference Point")
                .set("ElementName", point.name.as_str())
                .set("ReferencePointType", if rct { 2u16 } else { 1 })
                .set("ConsistencyLevel", level(point.consistency))
                .set("VirtualSystemIdentifier", guid(point.vm))
                .set(
                    "HasAssociatedData",
                    point.kind == PointType::Log && point.has_data,
                )
                .set(
                    "VirtualDiskIdentifiers",
                    disks
                        .clone()
                        .map(|d| resource_id(point.vm, &d.device))
                        .collect::<Vec<_>>(),
                );
            if rct {
                i.set(
                    "ResilientChangeTrackingIdentifiers",
                    disks.map(|d| guid(d.node)).collect::<Vec<_>>(),
                );
            }
        }
        i
    }
}

fn level(consistency: Consistency) -> u16 {
    match consistency {
        Consistency::Application => 1,
        Consistency::Crash => 2,
    }
}

/// The point a REF parameter names.
pub(crate) async fn point_reference(
    view: &View,
    parameter: &'static str,
    path: Option<&Path>,
) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
    let object = view
        .reference(parameter, path, class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT)
        .await?;
    match object.what {
        What::Point(point) => Ok(point.id),
        _ => Err(internal(format!("{} is not a reference point", path.class))),
    }
}

/// Calls a method of Msvm_VirtualSystemReferencePointService.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::VirtualSystemReferencePointService as Method;
    use params::virtual_system_reference_point_service as p;
    let vmms = &view.vmms;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    match method {
        Method::CreateReferencePoint => {
            let given_in = p::CreateReferencePointIn::read(call.parameters)?;
            let vm = view
                .vm_reference("AffectedSystem", given_in.affected_system.as_ref())
                .await?;
            let kind = match given_in.reference_point_type {
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
            let mut consistency = None;
            let mut name = String::new();
            if let Some(settings) = &given_in.reference_point_settings {
                expect_class(
                    "ReferencePointSettings",
                    settings,
                    class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SETTING_DATA,
                )?;
                consistency = match given::<u16>(settings, "ConsistencyLevel")? {
                    None | Some(0) => None,
                    Some(1) => Some(Consistency::Application),
                    Some(2) => Some(Consistency::Crash),
                    Some(other) => {
                        return Err(fault!(
                            InvalidValue,
                            "ConsistencyLevel",
                            other,
                            "0, 1 (application) and 2 (crash) exist"
                        )
                        .into());
                    }
                };
                name = given_text(settings, "ElementName")
                    .unwrap_or_default()
                    .to_owned();
            }
            let (_, job) =
                vmms::point::create_point(vmms, vm, kind, consistency, &name, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::DestroyReferencePoint => {
            let given = p::DestroyReferencePointIn::read(call.parameters)?;
            let point = point_reference(
                view,
                "AffectedReferencePoint",
                given.affected_reference_point.as_ref(),
            )
            .await?;
            let job = vmms::point::destroy_point(vmms, point, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::RemoveAssociatedData => {
            let given = p::RemoveAssociatedDataIn::read(call.parameters)?;
            let point = point_reference(
                view,
                "AffectedReferencePoint",
                given.affected_reference_point.as_ref(),
            )
            .await?;
            let job = vmms::point::remove_data(vmms, point, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::ExportReferencePoint => export(view, call).await,
        Method::ImportReferencePointMetadata => {
            let given = p::ImportReferencePointMetadataIn::read(call.parameters)?;
            let vm = view
                .vm_reference("AffectedSystem", given.affected_system.as_ref())
                .await?;
            let config = msvm::required("ConfigFilePath", given.config_file_path)?;
            let config = vmms::machine::device::host_path(&config)?;
            let (_, job) = vmms::adopt::adopt_point(vmms, vm, &config, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::RequestStateChange | Method::StartService | Method::StopService => {
            Err(unserved(call.target.class, call.method))
        }
    }
}

async fn export(view: &View, call: &Call<'_>) -> CallResult {
    use params::virtual_system_reference_point_service as p;
    let given = p::ExportReferencePointIn::read(call.parameters)?;
    let point = point_reference(view, "ReferencePoint", given.reference_point.as_ref()).await?;
    let directory = msvm::required("ExportDirectory", given.export_directory)?;
    let directory = vmms::machine::device::host_path(&directory)?;
    let (mut base, mut disks) = (None, Vec::new());
    if let Some(settings) = &given.export_setting_data {
        expect_class(
            "ExportSettingData",
            settings,
            class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_EXPORT_SETTING_DATA,
        )?;
        if let Some(text) = given_text(settings, "BaseReferencePoint") {
            // A path, or the bare InstanceID.
            let path = Path::parse(text).unwrap_or_else(|_| {
                Path::class(class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT).key("InstanceID", text)
            });
            let named = point_reference(view, "BaseReferencePoint", Some(&path)).await;
            base = Some(in_settings("BaseReferencePoint", text, named)?);
        }
        disks = settings
            .get("DisksToExport")
            .items()
            .iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect();
    }
    let job =
        vmms::export::export_point(&view.vmms, point, base, &directory, &disks, call.asked).await?;
    Ok(Outcome::started(view, job))
}

//! Kvmms_ExportService: proving, importing and booting exports, and proving change maps, for which the documented schema has no method.

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::{class, params};
use vmms::Element;
use vmms::Fault;
use vmms::boot::Wanted;
use vmms::machine::device::host_path;

use super::super::point::point_reference;
use super::super::services;
use crate::object::{Object, What};
use crate::view::{Call, CallResult, Outcome, Provider, View, named, unserved};

pub(crate) struct Exports;

const TITLE: &str = "kvmms Export Service";

/// The service as an object.
pub(crate) fn export_service(view: &View) -> Object {
    let class = class::KVMMS_EXPORT_SERVICE;
    Object::of_system(
        class,
        view.host.clone(),
        "Name",
        "kvmms-export".to_owned(),
        What::Service,
    )
}

#[async_trait]
impl Provider for Exports {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_EXPORT_SERVICE]
    }

    async fn objects(
        &self,
        view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(vec![export_service(view)], wanted))
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        services::properties(view, object.class, TITLE)
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        use msvm::method::KvmmsExportService as Method;
        use params::kvmms_export_service as p;
        let method = call
            .method
            .parse()
            .map_err(|_| unserved(call.target.class, call.method))?;
        match method {
            Method::VerifyExport => {
                let given = p::VerifyExportIn::read(call.parameters)?;
                let directory =
                    host_path(&msvm::required("ExportDirectory", given.export_directory)?)?;
                let job = vmms::verify::verify_export(&view.vmms, &directory, call.asked).await?;
                Ok(Outcome::started(view, job))
            }
            Method::ImportExport => {
                let given = p::ImportExportIn::read(call.parameters)?;
                let directory =
                    host_path(&msvm::required("ExportDirectory", given.export_directory)?)?;
                let disks = host_path(&msvm::required("DiskDirectory", given.disk_directory)?)?;
                let name = given.new_name.filter(|n| !n.trim().is_empty());
                let take = Take {
                    memory: given.restore_memory.unwrap_or(false),
                    identity: given.keep_identity.unwrap_or(false),
                };
                let (own, asked) = (&view.vmms, call.asked);
                let at = given.point.filter(|p| !p.trim().is_empty());
                use vmms::import::{Take, import_export, import_point};
                let (vm, job) = match at {
                    Some(at) => {
                        import_point(own, &directory, &at, name, &disks, take, asked).await?
                    }
                    None => import_export(own, &directory, name, &disks, take, asked).await?,
                };
                let imported = view.element_path(&Element::Vm(vm));
                Ok(Outcome::started(view, job).with("ImportedSystem", imported))
            }
            Method::BootExports => {
                let given = p::BootExportsIn::read(call.parameters)?;
                let directory =
                    host_path(&msvm::required("ExportDirectory", given.export_directory)?)?;
                let usual = Wanted::default();
                let wanted = Wanted {
                    seconds: given.wait_seconds.map_or(usual.seconds, u64::from),
                    text: given.expected_text,
                    agent: given.require_agent.unwrap_or(false),
                    prove: !given.skip_proof.unwrap_or(false),
                };
                let at = given.point.filter(|p| !p.trim().is_empty());
                let own = &view.vmms;
                let job =
                    vmms::boot::boot_exports(own, &directory, at.as_deref(), wanted, call.asked)
                        .await?;
                Ok(Outcome::started(view, job))
            }
            Method::AuditReferencePoint => {
                let given = p::AuditReferencePointIn::read(call.parameters)?;
                let path = given.reference_point.as_ref();
                let point = point_reference(view, "ReferencePoint", path).await?;
                let base = match &given.base_reference_point {
                    Some(path) => {
                        Some(point_reference(view, "BaseReferencePoint", Some(path)).await?)
                    }
                    None => None,
                };
                let job = vmms::audit::audit_point(&view.vmms, point, base, call.asked).await?;
                Ok(Outcome::started(view, job))
            }
            Method::ImportCollectionExport => {
                let given = p::ImportCollectionExportIn::read(call.parameters)?;
                let directory =
                    host_path(&msvm::required("ExportDirectory", given.export_directory)?)?;
                let disks = host_path(&msvm::required("DiskDirectory", given.disk_directory)?)?;
                let filled = |text: Option<String>| text.filter(|t| !t.trim().is_empty());
                let (at, name) = (filled(given.point), filled(given.new_name));
                let (collection, job) = vmms::import_collection::import_collection(
                    &view.vmms,
                    &directory,
                    at,
                    name,
                    &disks,
                    vmms::import::Take {
                        memory: given.restore_memory.unwrap_or(false),
                        identity: given.keep_identity.unwrap_or(false),
                    },
                    call.asked,
                )
                .await?;
                let imported = view.element_path(&Element::Collection(collection));
                Ok(Outcome::started(view, job).with("ImportedCollection", imported))
            }
            Method::RequestStateChange | Method::StartService | Method::StopService => {
                Err(unserved(call.target.class, call.method))
            }
        }
    }
}

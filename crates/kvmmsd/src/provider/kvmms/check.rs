//! Kvmms_HostService: finding and cleaning what nobody needs on the host, and ending its machines when it goes down.

use async_trait::async_trait;
use cim::{Instance, Path, Value};
use msvm::{class, params};
use vmms::Fault;
use vmms::check::{Finding, FindingKind};
use vmms::machine::adopt::Adopt;
use vmms::machine::device::host_path;

use super::super::services;
use crate::object::{Object, What, resource_id};
use crate::view::{Call, CallResult, Outcome, Provider, View, named, unserved};

pub(crate) struct HostChecks;

const TITLE: &str = "kvmms Host Service";

impl HostChecks {
    fn list(&self, view: &View) -> Vec<Object> {
        let class = class::KVMMS_HOST_SERVICE;
        let name = "kvmms-host".to_owned();
        let host = view.host.clone();
        vec![Object::of_system(class, host, "Name", name, What::Service)]
    }
}

#[async_trait]
impl Provider for HostChecks {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_HOST_SERVICE]
    }

    async fn objects(
        &self,
        view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(self.list(view), wanted))
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        services::properties(view, object.class, TITLE)
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        use msvm::method::KvmmsHostService as Method;
        use params::kvmms_host_service as p;
        let method = call
            .method
            .parse()
            .map_err(|_| unserved(call.target.class, call.method))?;
        match method {
            Method::CheckHost => {
                let found = vmms::check::check_host(&view.vmms).await?;
                let found: Vec<Instance> = found.iter().map(instance).collect();
                let out = match found.is_empty() {
                    true => Value::Null,
                    false => found.into(),
                };
                Ok(Outcome::done().with("Findings", out))
            }
            Method::CleanHost => {
                let given = p::CleanHostIn::read(call.parameters)?;
                let texts = given.kinds.unwrap_or_default();
                let kinds = texts
                    .iter()
                    .map(|text| text.parse())
                    .collect::<Result<Vec<FindingKind>, _>>()?;
                let job = vmms::check::clean_host(&view.vmms, &kinds, call.asked).await?;
                Ok(Outcome::started(view, job))
            }
            Method::AdoptLayers => {
                let given = p::AdoptLayersIn::read(call.parameters)?;
                let vm = view
                    .vm_reference("AffectedSystem", given.affected_system.as_ref())
                    .await?;
                let drive = given.drive.filter(|d| !d.trim().is_empty());
                let wanted = Adopt {
                    // Behind the identifier of its machine.
                    drive: drive.map(|d| {
                        d.split_once('\\')
                            .map_or(d.clone(), |(_, id)| id.to_owned())
                    }),
                    image: host_path(&msvm::required("Path", given.path)?)?,
                    top: given.top.as_deref().map(host_path).transpose()?,
                    of_others: given.of_others.unwrap_or(false),
                };
                let adopted = vmms::machine::adopt::adopt_layers(&view.vmms, vm, wanted).await?;
                let layers: Vec<String> = adopted
                    .layers
                    .iter()
                    .map(|l| l.display().to_string())
                    .collect();
                Ok(Outcome::done()
                    .with("Disk", resource_id(vm, &adopted.device))
                    .with("Layers", layers)
                    .with("Remarks", texts(adopted.remarks)))
            }
            Method::DestroySystemWithLosses => {
                let given = p::DestroySystemWithLossesIn::read(call.parameters)?;
                let vm = view
                    .vm_reference("AffectedSystem", given.affected_system.as_ref())
                    .await?;
                if given.dry_run.unwrap_or(false) {
                    let losses = vmms::machine::losses::losses(&view.vmms, vm)?;
                    return Ok(Outcome::done().with("Losses", texts(losses)));
                }
                let (losses, job) =
                    vmms::machine::losses::destroy_with_losses(&view.vmms, vm, call.asked).await?;
                Ok(Outcome::started(view, job).with("Losses", texts(losses)))
            }
            Method::ShutDownGuests => {
                let given = p::ShutDownGuestsIn::read(call.parameters)?;
                let within = given
                    .seconds
                    .map(|s| std::time::Duration::from_secs(s.into()));
                let job = vmms::machine::shut_down_guests(&view.vmms, within, call.asked).await?;
                Ok(Outcome::started(view, job))
            }
            Method::RequestStateChange | Method::StartService | Method::StopService => {
                Err(unserved(call.target.class, call.method))
            }
        }
    }
}

/// Null where there are none.
fn texts(lines: Vec<String>) -> Value {
    match lines.is_empty() {
        true => Value::Null,
        false => lines.into(),
    }
}

fn instance(found: &Finding) -> Instance {
    let mut i = Instance::new(class::KVMMS_FINDING);
    i.set("Caption", "Finding")
        .set("Description", found.why.as_str())
        .set("ElementName", found.subject.as_str())
        .set("FindingKind", found.kind.word())
        .set("Subject", found.subject.as_str())
        .set("Size", found.bytes)
        .set("Reason", found.why.as_str())
        .set("Cleanable", found.safe)
        .set("Action", found.action.as_str());
    i
}

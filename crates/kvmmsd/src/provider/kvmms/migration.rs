//! Kvmms_MigrationService and what it is about: hosts that trust each other, how far moves are, who may run what moves.

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::{class, code, params};
use vmms::job::Job;
use vmms::machine::Vm;
use vmms::migration::{self, PermitState, Progress, Verdict};
use vmms::{Fault, fault, guid};

use super::super::{migration as moving, services};
use crate::object::{Object, What};
use crate::view::{Call, CallResult, Outcome, Provider, View, named, unserved};

use params::kvmms_migration_service as p;

/// The service, and the hosts.
pub(crate) struct Hosts;

const TITLE: &str = "kvmms Migration Service";

#[async_trait]
impl Provider for Hosts {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_MIGRATION_SERVICE, class::KVMMS_TRUSTED_HOST]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        if class == class::KVMMS_MIGRATION_SERVICE {
            let class = class::KVMMS_MIGRATION_SERVICE;
            let name = "kvmms-migration".to_owned();
            let host = view.host.clone();
            let service = Object::of_system(class, host, "Name", name, What::Service);
            return Ok(named(vec![service], wanted));
        }
        let mut all = vec![own(view)?];
        let known = migration::hosts(&view.vmms).into_iter();
        all.extend(known.map(|h| trusted(&h.name, &h.address, h.port, &h.fingerprint, false)));
        Ok(named(all, wanted))
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        match object.what {
            What::Service => services::properties(view, object.class, TITLE),
            _ => object.fixed(),
        }
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        use msvm::method::KvmmsMigrationService as Method;
        let method = call
            .method
            .parse()
            .map_err(|_| unserved(call.target.class, call.method))?;
        let vmms = &view.vmms;
        match method {
            Method::LookAtHost => {
                let given = p::LookAtHostIn::read(call.parameters)?;
                let address = msvm::required("Address", given.address)?;
                let port = given.port.unwrap_or(migration::PORT);
                let found = migration::look_at(vmms, &address, port).await?;
                let out = p::LookAtHostOut {
                    fingerprint: Some(found),
                    own_fingerprint: Some(migration::fingerprint(vmms)?),
                    ..p::LookAtHostOut::code(code::COMPLETED)
                };
                Ok(Outcome::of(out.return_value, out.into_values()))
            }
            Method::TrustHost => {
                let given = p::TrustHostIn::read(call.parameters)?;
                let name = msvm::required("Name", given.name)?;
                let fingerprint = msvm::required("Fingerprint", given.fingerprint)?;
                let address = given.address.unwrap_or_else(|| name.clone());
                let port = given.port.unwrap_or(migration::PORT);
                migration::trust(vmms, &name, &address, port, &fingerprint).await?;
                Ok(Outcome::done())
            }
            Method::ForgetHost => {
                let given = p::ForgetHostIn::read(call.parameters)?;
                let name = msvm::required("Name", given.name)?;
                migration::forget(vmms, &name).await?;
                Ok(Outcome::done())
            }
            Method::PlanMigration => moving::plan(view, &call).await,
            Method::ResolveMigration => {
                let given = p::ResolveMigrationIn::read(call.parameters)?;
                let vm = view
                    .vm_reference("ComputerSystem", given.computer_system.as_ref())
                    .await?;
                let verdict = msvm::required("Verdict", given.verdict)?;
                let verdict = match verdict.trim().to_ascii_lowercase().as_str() {
                    "here" => Verdict::Here,
                    "there" => Verdict::There,
                    _ => {
                        let why = "here and there exist";
                        return Err(fault!(InvalidValue, "Verdict", verdict, why).into());
                    }
                };
                migration::resolve(vmms, vm, verdict, call.asked).await?;
                Ok(Outcome::done())
            }
            Method::RequestStateChange | Method::StartService | Method::StopService => {
                Err(unserved(call.target.class, call.method))
            }
        }
    }
}

/// This host as others have to trust it.
fn own(view: &View) -> Result<Object, Fault> {
    let fingerprint = migration::fingerprint(&view.vmms)?;
    let listening = migration::listening(&view.vmms);
    // Where it is reached from elsewhere, if anywhere.
    let outside = listening.iter().find(|a| !a.ip().is_loopback());
    let first = outside.or_else(|| listening.first());
    let address = first.map(|a| a.ip().to_string()).unwrap_or_default();
    let port = first.map_or(0, std::net::SocketAddr::port);
    Ok(trusted(&view.host, &address, port, &fingerprint, true))
}

fn trusted(name: &str, address: &str, port: u16, fingerprint: &str, local: bool) -> Object {
    let mut i = Instance::new(class::KVMMS_TRUSTED_HOST);
    i.set("Caption", "Trusted Host")
        .set("Description", "A host that machines move to and come from")
        .set("ElementName", name)
        .set("Address", address)
        .set("Port", port)
        .set("Fingerprint", fingerprint)
        .set("Local", local);
    Object {
        class: class::KVMMS_TRUSTED_HOST,
        keys: vec![("Name", name.to_owned())],
        what: What::fixed(i),
    }
}

/// How far moves are, and who may run what moves.
pub(crate) struct Moves;

#[async_trait]
impl Provider for Moves {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_MIGRATION_DETAIL, class::KVMMS_MIGRATION_PERMIT]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let all = if class == class::KVMMS_MIGRATION_DETAIL {
            view.jobs().iter().filter_map(detail).collect()
        } else {
            permits(view)
        };
        Ok(named(all, wanted))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

fn detail(job: &Job) -> Option<Object> {
    let progress: &Progress = job.output.migration.as_ref()?;
    let mut i = Instance::new(class::KVMMS_MIGRATION_DETAIL);
    i.set("Caption", job.title.as_str())
        .set("Description", job.title.as_str())
        .set("ElementName", job.title.as_str())
        .set("VirtualSystemName", guid(progress.vm))
        .set("VirtualSystemElementName", progress.vm_name.as_str())
        .set("MigrationType", progress.kind.number())
        .set("Incoming", progress.incoming)
        .set("SourceHost", progress.source.as_str())
        .set("DestinationHost", progress.destination.as_str())
        .set("Phase", progress.phase.word())
        .set("FileBytes", progress.file_bytes)
        .set("FileTotal", progress.file_total)
        .set("FileSkipped", progress.file_skipped)
        .set("DiskBytes", progress.disk_bytes)
        .set("DiskTotal", progress.disk_total)
        .set("MemoryBytes", progress.memory_bytes)
        .set("MemoryRemaining", progress.memory_remaining)
        .set("MemoryTotal", progress.memory_total)
        .set("Rounds", progress.rounds)
        .set("DirtyRate", progress.dirty_bytes_per_second)
        .set("Rate", progress.bytes_per_second)
        .set("ExpectedDowntime", progress.expected_downtime_ms)
        .set("Downtime", progress.downtime_ms)
        .set("Throttle", progress.throttle_percent)
        .set("InDoubt", progress.doubt);
    Some(Object::with_id(
        class::KVMMS_MIGRATION_DETAIL,
        guid(job.id),
        What::fixed_of(i, vec![progress.vm]),
    ))
}

fn permits(view: &View) -> Vec<Object> {
    let all = migration::permits(&view.vmms).into_iter();
    let shown = all.map(|permit| {
        let vm = view.get::<Vm>(permit.id);
        let name = vm.map(|vm| vm.name.clone()).unwrap_or_default();
        let state = match permit.state {
            PermitState::Here => "here",
            PermitState::Granted => "granted",
            PermitState::Gone => "gone",
        };
        let doubt = permit.doubt.as_ref().map(|fault| {
            let chain = view.told(fault);
            let chain = chain.chain().into_iter();
            chain.map(Fault::text).collect::<Vec<_>>()
        });
        let mut i = Instance::new(class::KVMMS_MIGRATION_PERMIT);
        i.set("Caption", "Migration Permit")
            .set("Description", "Who may run a machine that moves away")
            .set("ElementName", name.as_str())
            .set("VirtualSystemElementName", name.as_str())
            .set("DestinationHost", permit.destination.as_str())
            .set("Job", guid(permit.job))
            .set("State", state)
            .set("InDoubt", permit.doubt.is_some())
            .set("Doubt", doubt);
        Object {
            class: class::KVMMS_MIGRATION_PERMIT,
            keys: vec![("VirtualSystemName", guid(permit.id))],
            what: What::fixed_of(i, vec![permit.id]),
        }
    });
    shown.collect()
}

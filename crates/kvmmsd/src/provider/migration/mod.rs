//! Msvm_VirtualSystemMigrationService: how clients move machines.
//!
//! What cannot be read (an unknown property, a wrong class) is answered by a return code. Whatever is refused after that is a
//! failed Msvm_MigrationJob: the clients that move machines read GetErrorEx, and a return code has no place for a reason.

mod addresses;
mod bandwidth;
mod compatibility;
mod order;
mod service;

pub(crate) use service::{
    Migrations, capabilities_of_service, networks_of_settings, service_itself, settings_of_network,
    settings_of_service,
};

use cim::{Instance, Path};
use msvm::{code, params};
use uuid::Uuid;
use vmms::job::{JobClass, JobState, Refuse, Service};
use vmms::migration::{self, MigrationKind, Phase, Progress};
use vmms::{Effect, Element, Fault, fault};

use self::order::Given;
use crate::view::{Call, CallError, CallResult, Outcome, View, unserved};

use params::virtual_system_migration_service as p;

/// Calls a method of the service.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::VirtualSystemMigrationService as Method;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    match method {
        Method::MigrateVirtualSystemToHost => {
            let given = p::MigrateVirtualSystemToHostIn::read(call.parameters)?;
            let given = Given {
                vm: machine(view, given.computer_system.as_ref()).await?,
                destination: host(given.destination_host),
                settings: given.migration_setting_data,
                system: given.new_system_setting_data,
                resources: given.new_resource_setting_data.unwrap_or_default(),
            };
            let (job, _) = start(view, call, &given, Deed::Move).await?;
            Ok(Outcome::started(view, job))
        }
        Method::MigrateVirtualSystemToSystem => {
            let given = p::MigrateVirtualSystemToSystemIn::read(call.parameters)?;
            let given = Given {
                vm: machine(view, given.computer_system.as_ref()).await?,
                destination: system(given.destination_system.as_ref())?,
                settings: given.migration_setting_data,
                system: given.new_system_setting_data,
                resources: given.new_resource_setting_data.unwrap_or_default(),
            };
            let (job, begun) = start(view, call, &given, Deed::Move).await?;
            let outcome = Outcome::started(view, job);
            // Where it will be once the job has ended well; of one that was refused there is no such place.
            Ok(match begun {
                true => outcome.with("NewComputerSystem", there(view, &given)),
                false => outcome,
            })
        }
        Method::CheckVirtualSystemIsMigratable => {
            let given = p::CheckVirtualSystemIsMigratableIn::read(call.parameters)?;
            let given = Given {
                vm: machine(view, given.computer_system.as_ref()).await?,
                destination: host(given.destination_host),
                settings: given.migration_setting_data,
                system: given.new_system_setting_data,
                resources: given.new_resource_setting_data.unwrap_or_default(),
            };
            let (job, _) = start(view, call, &given, Deed::Check).await?;
            Ok(Outcome::started(view, job))
        }
        Method::CheckVirtualSystemIsMigratableToHost => {
            let given = p::CheckVirtualSystemIsMigratableToHostIn::read(call.parameters)?;
            let given = Given {
                vm: machine(view, given.computer_system.as_ref()).await?,
                destination: host(given.destination_host),
                settings: given.migration_setting_data,
                system: given.new_system_setting_data,
                resources: given.new_resource_setting_data.unwrap_or_default(),
            };
            is_migratable(view, &given).await
        }
        Method::CheckVirtualSystemIsMigratableToSystem => {
            let given = p::CheckVirtualSystemIsMigratableToSystemIn::read(call.parameters)?;
            let given = Given {
                vm: machine(view, given.computer_system.as_ref()).await?,
                destination: system(given.destination_system.as_ref())?,
                settings: given.migration_setting_data,
                system: given.new_system_setting_data,
                resources: given.new_resource_setting_data.unwrap_or_default(),
            };
            is_migratable(view, &given).await
        }
        Method::GetSystemCompatibilityInfo => compatibility::info(view, call).await,
        Method::GetSystemCompatibilityVectors => compatibility::vectors(view, call).await,
        Method::CheckSystemCompatibilityInfo => compatibility::check(view, call).await,
        Method::AddNetworkSettings => service::add_networks(view, call).await,
        Method::ModifyNetworkSettings => service::modify_networks(view, call).await,
        Method::RemoveNetworkSettings => service::remove_networks(view, call).await,
        Method::ModifyServiceSettings => service::modify(view, call).await,
        Method::StartService => service::switch(view, true).await,
        Method::StopService => service::switch(view, false).await,
        // An operator's method: whether machines move is an administrator's to say, with Start- and StopService.
        Method::RequestStateChange => Ok(Outcome {
            return_value: code::DMTF_NOT_SUPPORTED,
            fault: Some(fault!(
                NotServed,
                "RequestStateChange of the migration service; StartService and StopService are"
            )),
            ..Outcome::default()
        }),
    }
}

/// Whether a machine is to be moved, or only looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Move,
    Check,
}

async fn machine(view: &View, path: Option<&Path>) -> Result<Uuid, CallError> {
    view.vm_reference("ComputerSystem", path).await
}

fn host(given: Option<String>) -> String {
    given.map(|h| h.trim().to_owned()).unwrap_or_default()
}

/// The name of the host a reference means: it is an object of another service's, of which only the name can be read here.
fn system(path: Option<&Path>) -> Result<String, CallError> {
    let path = path.ok_or_else(|| fault!(MissingValue, "DestinationSystem"))?;
    let name = path.get_str("Name").filter(|name| !name.trim().is_empty());
    let name = name.ok_or_else(|| {
        let why = "the key Name has to be there: it is the name of the host";
        fault!(InvalidValue, "DestinationSystem", path, why)
    })?;
    Ok(name.trim().to_owned())
}

/// The machine as the destination names it.
fn there(view: &View, given: &Given) -> Path {
    view.path_on(&given.destination, &Element::Vm(given.vm))
}

/// Starts the job, and tells whether it is one that does what was asked for. Whatever is refused is a job that failed.
async fn start(
    view: &View,
    call: &Call<'_>,
    given: &Given,
    deed: Deed,
) -> Result<(Uuid, bool), CallError> {
    given.check_classes()?;
    let begun = match (given.request(view), deed) {
        (Ok(request), Deed::Move) => migration::migrate(&view.vmms, request, call.asked).await,
        (Ok(request), Deed::Check) => migration::check(&view.vmms, request, call.asked).await,
        (Err(CallError::Fault(fault)), _) => Err(fault),
        (Err(other), _) => return Err(other),
    };
    match begun {
        Ok(job) => Ok((job, true)),
        Err(fault) if fault.kind() == vmms::Kind::NotFound => Err(fault.into()),
        Err(fault) => Ok((refuse(view, call, given, deed, fault).await?, false)),
    }
}

/// A job that ends with that fault, and tells what was asked for.
async fn refuse(
    view: &View,
    call: &Call<'_>,
    given: &Given,
    deed: Deed,
    fault: Fault,
) -> Result<Uuid, Fault> {
    let kind = given.kind().unwrap_or(MigrationKind::Live);
    let vm = view.get::<vmms::machine::Vm>(given.vm);
    let name = vm.map(|vm| vm.name.clone()).unwrap_or_default();
    let mut progress = Progress::new(kind, given.vm, &name);
    progress.source.clone_from(&view.host);
    progress.destination.clone_from(&given.destination);
    progress.shown = given.shown();
    let refused = Refuse {
        class: JobClass::Migration,
        service: Service::Migration,
        job_type: match deed {
            Deed::Move => kind.job_type(),
            Deed::Check => kind.look_job_type(),
        },
        fault,
    };
    let affected = vec![(Element::Vm(given.vm), Effect::Other)];
    let mut submission = call.asked.submission(affected);
    submission.output.migration = Some(Box::new(progress));
    view.vmms.submit(refused, submission).await
}

/// At once and without a job: only whether. Why not is told by the job of CheckVirtualSystemIsMigratable.
async fn is_migratable(view: &View, given: &Given) -> CallResult {
    given.check_classes()?;
    let looked = match given.request(view) {
        Ok(request) => migration::check_now(&view.vmms, &request).await,
        Err(CallError::Fault(fault)) => Err(fault),
        Err(other) => return Err(other),
    };
    if let Err(fault) = &looked {
        tracing::info!(vm = %given.vm, destination = given.destination, reason = %fault, "not migratable");
    }
    Ok(Outcome::done().with("IsMigratable", looked.is_ok()))
}

/// How many moves of machines, and of storage alone, go on.
fn under_way(view: &View) -> (u32, u32) {
    let jobs = view.jobs().into_iter();
    let jobs = jobs.filter(|job| job.class == JobClass::Migration && !job.state.is_final());
    let jobs = jobs.filter(|job| job.state != JobState::Suspended);
    let (mut machines, mut storages) = (0, 0);
    for job in jobs {
        match job.output.migration.as_ref().map(|m| m.kind) {
            Some(MigrationKind::Storage | MigrationKind::StorageCheck) => storages += 1,
            Some(_) => machines += 1,
            None => {}
        }
    }
    (machines, storages)
}

/// What the service tells beyond what all services tell.
pub(crate) fn properties(view: &View, i: &mut Instance) {
    let service = view.vmms.migration_service();
    let (machines, storages) = under_way(view);
    let addresses = addresses::behind(&migration::listening(&view.vmms));
    let addresses = service.order(addresses).into_iter();
    let addresses: Vec<String> = addresses.map(|a| a.to_string()).collect();
    i.set("EnabledState", if service.enabled { 2u16 } else { 3 })
        .set("Started", service.enabled)
        .set("ActiveVirtualSystemMigrationCount", machines)
        .set("ActiveStorageMigrationCount", storages);
    if !addresses.is_empty() {
        i.set("MigrationServiceListenerIPAddressList", addresses);
    }
}

/// What a move would do that is asked for with these parameters of Kvmms_MigrationService.PlanMigration.
pub(crate) async fn plan(view: &View, call: &Call<'_>) -> CallResult {
    use params::kvmms_migration_service as own;
    let given = own::PlanMigrationIn::read(call.parameters)?;
    let given = Given {
        vm: machine(view, given.computer_system.as_ref()).await?,
        destination: host(given.destination_host),
        settings: given.migration_setting_data,
        system: given.new_system_setting_data,
        resources: given.new_resource_setting_data.unwrap_or_default(),
    };
    given.check_classes()?;
    let request = given.request(view)?;
    let plan = migration::plan(&view.vmms, &request).await?;
    let out = own::PlanMigrationOut {
        files: Some(plan.files),
        file_bytes: Some(plan.file_bytes),
        memory_bytes: Some(plan.memory_bytes),
        reference_points: Some(plan.points),
        snapshots: Some(plan.snapshots),
        lines: Some(plan.lines),
        risks: (!plan.risks.is_empty()).then_some(plan.risks),
        ..own::PlanMigrationOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

/// How far it is, in words: what a job's JobStatus says.
fn status(progress: &Progress) -> String {
    let part = |done: u64, all: u64| match all {
        0 => String::new(),
        all => format!(", {} of {} MiB", done >> 20, all >> 20),
    };
    let phase = progress.phase;
    let more = match phase {
        Phase::CopyingFiles => part(progress.file_bytes, progress.file_total),
        Phase::Mirroring => part(progress.disk_bytes, progress.disk_total),
        Phase::SendingMemory => {
            let sent = format!(
                ", {} MiB sent, {} of {} MiB left",
                progress.memory_bytes >> 20,
                progress.memory_remaining >> 20,
                progress.memory_total >> 20
            );
            match progress.expected_downtime_ms {
                Some(ms) => format!("{sent}, about {ms} ms of downtime"),
                None => sent,
            }
        }
        _ => match progress.downtime_ms {
            Some(ms) => format!(", the guest stood still for {ms} ms"),
            None => String::new(),
        },
    };
    let doubt = match progress.doubt {
        true => {
            "; nobody knows whether the destination has it: the machine stands still until it answers"
        }
        false => "",
    };
    format!("{}{more}{doubt}", phase.word())
}

/// The properties of Msvm_MigrationJob alone.
pub(crate) fn of_job(i: &mut Instance, progress: &Progress, state: JobState) {
    let status = status(progress);
    i.set("JobStatus", format!("Job is {}: {status}", state.word()))
        .set("MigrationType", progress.kind.number())
        .set("VirtualSystemName", vmms::guid(progress.vm))
        .set("NewSystemSettingData", progress.shown.system.clone());
    if !progress.destination.is_empty() {
        i.set("DestinationHost", progress.destination.as_str());
    }
    if !progress.shown.resources.is_empty() {
        i.set("NewResourceSettingData", progress.shown.resources.clone());
    }
}

//! The six job classes: one record, one way to watch, stop and ask for errors.

use std::time::SystemTime;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::{class, code, params};
use uuid::Uuid;
use vmms::job::{Job, JobClass, JobRequest, JobState};
use vmms::{Element, Fault, Message, fault, guid};

use super::migration;
use crate::errors;
use crate::object::{self, Object, What, resource_id};
use crate::view::{Call, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct Jobs;

const CLASSES: [(&str, JobClass); 6] = [
    (class::MSVM_CONCRETE_JOB, JobClass::Concrete),
    (class::MSVM_STORAGE_JOB, JobClass::Storage),
    (class::MSVM_MIGRATION_JOB, JobClass::Migration),
    (
        class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_EXPORT_JOB,
        JobClass::PointExport,
    ),
    (
        class::MSVM_COLLECTION_REFERENCE_POINT_EXPORT_JOB,
        JobClass::CollectionPointExport,
    ),
    (
        class::MSVM_COPY_FILE_TO_GUEST_JOB,
        JobClass::CopyFileToGuest,
    ),
];

/// The visible jobs of a class, newest first.
pub(crate) fn host_jobs(view: &View, class: &str) -> Vec<Object> {
    let jobs = view.jobs().into_iter();
    jobs.filter(|j| object::job_class(j.class) == class)
        .map(Object::of_job)
        .collect()
}

impl Jobs {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        host_jobs(view, class)
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let id = path
            .keys
            .first()
            .and_then(|(_, v)| v.as_str())
            .and_then(object::guid_in);
        let job = id.and_then(|id| view.job(id)).map(Object::of_job);
        job.filter(|o| o.class == class && o.is_named_by(path))
            .into_iter()
            .collect()
    }
}

#[async_trait]
impl Provider for Jobs {
    fn classes(&self) -> &'static [&'static str] {
        const NAMES: [&str; 6] = [
            CLASSES[0].0,
            CLASSES[1].0,
            CLASSES[2].0,
            CLASSES[3].0,
            CLASSES[4].0,
            CLASSES[5].0,
        ];
        &NAMES
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
        match &object.what {
            What::Job(job) => instance(job),
            _ => Instance::new(object.class),
        }
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        let What::Job(job) = &call.target.what else {
            return Err(unserved(call.target.class, call.method));
        };
        // While it runs a job has none, as its class says; a completed one has those that OperationalStatus tells of.
        let faults = job.faults.iter().filter(|_| job.state.is_final());
        let errors = || -> Vec<Instance> {
            faults
                .flat_map(|f| errors::chain(view, f, &subject(job)))
                .collect()
        };
        // The six classes declare the same methods; the first one's names stand for all.
        use msvm::method::ConcreteJob as Method;
        use params::concrete_job as p;
        match call.method.parse() {
            Ok(Method::GetError) => {
                let out = p::GetErrorOut {
                    error: errors().into_iter().next(),
                    ..p::GetErrorOut::code(code::COMPLETED)
                };
                Ok(Outcome::of(out.return_value, out.into_values()))
            }
            Ok(Method::GetErrorEx) => {
                let all = errors();
                let out = p::GetErrorExOut {
                    errors: (!all.is_empty()).then_some(all),
                    ..p::GetErrorExOut::code(code::COMPLETED)
                };
                Ok(Outcome::of(out.return_value, out.into_values()))
            }
            Ok(Method::RequestStateChange) => {
                let given = p::RequestStateChangeIn::read(call.parameters)?;
                let timeout = given.timeout_period.and_then(|t| t.as_duration());
                if timeout.is_some_and(|t| !t.is_zero()) {
                    return Err(fault!(TimeoutNotServed).into());
                }
                request(view, job.id, given.requested_state, &call.asked.owner).await
            }
            Ok(Method::KillJob) | Err(_) => Err(unserved(call.target.class, call.method)),
        }
    }
}

async fn request(view: &View, job: Uuid, wanted: Option<u16>, by: &str) -> CallResult {
    let request = match msvm::required("RequestedState", wanted)? {
        2 => JobRequest::Start,
        3 => JobRequest::Suspend,
        4 => JobRequest::Terminate,
        5 => JobRequest::Kill,
        other => return Err(fault!(JobBadRequest, other).into()),
    };
    let jobs = &view.vmms;
    jobs.request_job_state_as(job, request, by).await?;
    Ok(Outcome::done())
}

/// What the errors of a job are about that name no object themselves: what it was to work on, or the job.
fn subject(job: &Job) -> Element {
    let affected = job.affected.iter().map(|(element, _)| element);
    let mut found =
        affected.filter(|e| !matches!(e, Element::Host | Element::Peer(_) | Element::Image(_)));
    found.next().cloned().unwrap_or(Element::Job(job.id))
}

fn text(faults: &[Fault]) -> Option<String> {
    faults.first().map(told)
}

/// A failure and why; what failed side by side stands in a line each.
fn told(fault: &Fault) -> String {
    match fault.causes.as_slice() {
        [] => fault.text(),
        [cause] if cause.message != Message::MemberFailed => {
            format!("{}: {}", fault.text(), told(cause))
        }
        causes => {
            let lines = causes.iter().map(|cause| format!("\n{}", told(cause)));
            std::iter::once(fault.text()).chain(lines).collect()
        }
    }
}

fn instance(job: &Job) -> Instance {
    let failed = job.state.is_final() && job.state != JobState::Completed;
    let (status, status_text): (u16, &str) = match job.state {
        JobState::Exception => (6, "Error"),
        JobState::Terminated | JobState::Killed => (10, "Stopped"),
        // Done, and there is something to know: GetError and GetErrorEx tell it.
        JobState::Completed if !job.faults.is_empty() => (3, "Degraded"),
        _ => (2, "OK"),
    };
    let error_code = if failed {
        let first = job.faults.first();
        first.map_or(code::FAILED, errors::specific_code)
    } else {
        0
    };
    let mut i = Instance::new(object::job_class(job.class));
    i.set("Caption", job.title.as_str())
        .set("Description", job.title.as_str())
        .set("ElementName", job.title.as_str())
        .set("Name", job.title.as_str())
        .set("InstallDate", Datetime::from(job.submitted))
        .set("OperationalStatus", vec![status])
        .set("StatusDescriptions", vec![status_text.to_owned()])
        .set("Status", status_text)
        .set("HealthState", 5u16)
        .set("CommunicationStatus", 0u16)
        .set("DetailedStatus", 0u16)
        .set("OperatingStatus", 0u16)
        .set("PrimaryStatus", 0u16)
        .set("JobStatus", format!("Job is {}", job.state.word()))
        .set("TimeSubmitted", Datetime::from(job.submitted))
        .set("StartTime", Datetime::from(job.submitted))
        .set(
            "ElapsedTime",
            Datetime::interval(job.elapsed(SystemTime::now())),
        )
        .set("JobRunTimes", 1u32)
        .set("LocalOrUtcTime", 2u16)
        .set("Owner", job.owner.as_str())
        .set("PercentComplete", u16::from(job.percent))
        .set("DeleteOnCompletion", true)
        .set("ErrorCode", u16::try_from(error_code).unwrap_or(32768))
        .set("ErrorDescription", text(&job.faults).filter(|_| failed))
        .set(
            "ErrorSummaryDescription",
            job.faults.first().map(Fault::text).filter(|_| failed),
        )
        .set("RecoveryAction", 0u16)
        .set("JobState", job.state.number())
        .set("TimeOfLastStateChange", Datetime::from(job.changed))
        .set("TimeBeforeRemoval", Datetime::interval(job.keep))
        .set("Cancellable", job.cancellable);
    match job.class {
        JobClass::PointExport => point_export(&mut i, job),
        JobClass::CollectionPointExport => collection_export(&mut i, job),
        JobClass::CopyFileToGuest => {}
        JobClass::Storage => {
            let hresult: u32 = if failed { 0x8000_4005 } else { 0 };
            i.set("JobType", job.job_type)
                .set("JobCompletionStatusCode", hresult);
        }
        JobClass::Concrete => {
            i.set("JobType", job.job_type);
        }
        JobClass::Migration => {
            i.set("JobType", job.job_type);
            if let Some(progress) = &job.output.migration {
                migration::of_job(&mut i, progress, job.state);
            }
        }
    }
    i.set("InstanceID", guid(job.id));
    i
}

fn path_text(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn point_export(i: &mut Instance, job: &Job) {
    let output = &job.output;
    let machine = output.machines.first();
    let file = |f: Option<&std::path::PathBuf>| f.map(|p| path_text(p));
    i.set("ExportDirectory", file(output.directory.as_ref()))
        .set("VirtualMachineId", output.subject.map(guid))
        .set("ReferencePointId", output.point.map(guid))
        .set("BaseReferencePointId", output.base.map(guid))
        .set(
            "ExportedDisks",
            output
                .disks
                .iter()
                .map(|d| resource_id(d.vm, &d.device))
                .collect::<Vec<_>>(),
        )
        .set(
            "ExportedLogFilePaths",
            output
                .disks
                .iter()
                .map(|d| path_text(&d.file))
                .collect::<Vec<_>>(),
        )
        .set(
            "ExportedConfigFilePath",
            machine.and_then(|m| file(m.config.as_ref())),
        )
        .set(
            "ExportedRuntimeFilePath",
            machine.and_then(|m| file(m.runtime.as_ref())),
        )
        .set(
            "ExportedGuestStateFilePath",
            machine.and_then(|m| file(m.guest_state.as_ref())),
        );
}

/// Arrays in parallel: a machine with its three files, empty where it has none; a disk with its file.
fn collection_export(i: &mut Instance, job: &Job) {
    let output = &job.output;
    let machines = || output.machines.iter();
    let file = |f: Option<&std::path::PathBuf>| f.map(|p| path_text(p)).unwrap_or_default();
    i.set(
        "ExportDirectory",
        output.directory.as_ref().map(|d| path_text(d)),
    )
    .set("CollectionId", output.subject.map(guid))
    .set("ReferencePointGroupId", output.point.map(guid))
    .set("BaseReferencePointGroupId", output.base.map(guid))
    .set(
        "VirtualMachineId",
        machines().map(|m| guid(m.vm)).collect::<Vec<_>>(),
    )
    .set(
        "ExportedDisks",
        output
            .disks
            .iter()
            .map(|d| resource_id(d.vm, &d.device))
            .collect::<Vec<_>>(),
    )
    .set(
        "ExportedLogFilePaths",
        output
            .disks
            .iter()
            .map(|d| path_text(&d.file))
            .collect::<Vec<_>>(),
    )
    .set(
        "ExportedConfigFilePaths",
        machines()
            .map(|m| file(m.config.as_ref()))
            .collect::<Vec<_>>(),
    )
    .set(
        "ExportedRuntimeFilePaths",
        machines()
            .map(|m| file(m.runtime.as_ref()))
            .collect::<Vec<_>>(),
    )
    .set(
        "ExportedGuestStateFilePaths",
        machines()
            .map(|m| file(m.guest_state.as_ref()))
            .collect::<Vec<_>>(),
    );
}

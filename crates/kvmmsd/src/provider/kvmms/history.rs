//! Kvmms_JobRecord: jobs as they are stored, long after their objects have gone.

use std::time::SystemTime;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::class;
use vmms::job::{Job, JobState};
use vmms::{Fault, guid};

use super::super::services;
use crate::errors;
use crate::object::{self, Object, What};
use crate::view::{Provider, View};

pub(crate) struct History;

/// A list holds that many records, the newest.
const MOST: usize = 1000;

#[async_trait]
impl Provider for History {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_JOB_RECORD]
    }

    // Records are in the store.
    async fn objects(
        &self,
        view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let id = wanted.and_then(|p| p.get_str("InstanceID").or_else(|| p.get_str("")));
        if let Some(id) = id {
            let Some(id) = object::guid_in(id) else {
                return Ok(Vec::new());
            };
            let found = view.past_job(id).await?.into_iter();
            return Ok(found.map(|job| record(view, job, false)).collect());
        }
        let mut all = newest(view, MOST + 1).await?;
        let cut = all.len() > MOST;
        all.truncate(MOST);
        let last = all.len().saturating_sub(1);
        let records = all.into_iter().enumerate();
        Ok(records
            .map(|(place, job)| record(view, job, cut && place == last))
            .collect())
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

/// The newest jobs, visible and past, newest first.
async fn newest(view: &View, most: usize) -> Result<Vec<Job>, Fault> {
    let mut all = view.jobs();
    all.extend(view.past_jobs(most).await?);
    all.sort_by_key(|job| std::cmp::Reverse((job.submitted, job.id)));
    // A job may have gone to the history just now.
    all.dedup_by_key(|job| job.id);
    all.truncate(most);
    Ok(all)
}

fn record(view: &View, stored: Job, older_left_out: bool) -> Object {
    // Of a job that runs, memory knows more than the store.
    let visible = view.job(stored.id);
    let is_visible = visible.is_some();
    let job = visible.unwrap_or(stored);
    let id = guid(job.id);
    let mut instance = instance(view, &job, is_visible);
    instance.set("OlderLeftOut", older_left_out);
    let vms = What::Job(Box::new(job)).vms(&view.vmms.db);
    let what = What::fixed_of(instance, vms);
    Object::with_id(class::KVMMS_JOB_RECORD, id, what)
}

fn instance(view: &View, job: &Job, is_visible: bool) -> Instance {
    let failed = job.state.is_final() && job.state != JobState::Completed;
    let first = job.faults.first();
    let (task, parameters) = task_text(job);
    let mut i = Instance::new(class::KVMMS_JOB_RECORD);
    i.set("Caption", job.title.as_str())
        .set("Description", job.title.as_str())
        .set("ElementName", job.title.as_str())
        .set("JobClass", object::job_class(job.class))
        .set("JobType", job.job_type)
        .set("TaskName", task)
        .set("TaskParameters", parameters)
        .set("JobState", job.state.number())
        .set("State", job.state.word())
        .set("PercentComplete", u16::from(job.percent))
        .set("BytesDone", job.done)
        .set("BytesTotal", job.total)
        .set("BytesRead", job.output.bytes_read)
        .set("BytesWritten", job.output.bytes_written)
        .set("TimeSubmitted", Datetime::from(job.submitted))
        .set("TimeOfLastStateChange", Datetime::from(job.changed))
        .set(
            "ElapsedTime",
            Datetime::interval(job.elapsed(SystemTime::now())),
        )
        .set("Cancellable", job.cancellable)
        .set("Suspendable", job.suspendable)
        .set("IsVisible", is_visible)
        .set("Owner", job.owner.as_str())
        .set("HostName", job.host.as_str())
        .set("ServiceClass", services::class_of(job.service))
        .set(
            "AffectedElements",
            job.affected
                .iter()
                .map(|(e, _)| view.element_path(e).to_string())
                .collect::<Vec<_>>(),
        )
        .set(
            "Directory",
            job.output
                .directory
                .as_ref()
                .map(|d| d.display().to_string()),
        )
        .set("Files", files(job))
        .set("Report", job.output.report.clone())
        .set("Decisions", job.output.decisions.clone())
        .set("BootEvidence", evidence(job))
        .set(
            "ErrorCode",
            first.filter(|_| failed).map_or(0, errors::specific_code),
        )
        .set("ErrorID", first.map(|f| f.message.id()))
        .set("ErrorText", lines(&job.faults));
    if let Some(first) = first {
        let remedy = first.message.entry().remedy.iter();
        i.set(
            "RecommendedActions",
            remedy.map(|r| (*r).to_owned()).collect::<Vec<_>>(),
        );
    }
    i
}

fn files(job: &Job) -> Vec<String> {
    let output = &job.output;
    let machines = output.machines.iter().flat_map(|m| {
        [&m.config, &m.runtime, &m.guest_state]
            .into_iter()
            .flatten()
    });
    let all = output.disks.iter().map(|d| &d.file).chain(machines);
    all.map(|f| f.display().to_string()).collect()
}

/// One document for each machine booted.
fn evidence(job: &Job) -> Vec<String> {
    let boots = job.output.boots.iter();
    boots
        .filter_map(|boot| serde_json::to_string(boot).ok())
        .collect()
}

/// The name of the task and its parameters, as they are stored.
fn task_text(job: &Job) -> (String, Option<String>) {
    match serde_json::to_value(&job.task) {
        Ok(serde_json::Value::String(name)) => (name, None),
        Ok(serde_json::Value::Object(map)) => match map.into_iter().next() {
            Some((name, parameters)) => (name, Some(parameters.to_string())),
            None => (String::new(), None),
        },
        _ => (String::new(), None),
    }
}

/// Failures and what lies beneath, one line each.
fn lines(faults: &[Fault]) -> Vec<String> {
    fn add(fault: &Fault, depth: usize, out: &mut Vec<String>) {
        out.push(format!(
            "{}{} [{}]",
            "  ".repeat(depth),
            fault.text(),
            fault.message.id()
        ));
        for cause in &fault.causes {
            add(cause, depth + 1, out);
        }
    }
    let mut out = Vec::new();
    for fault in faults {
        add(fault, 0, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmms::fault;

    #[test]
    fn causes_are_indented_below_what_they_caused() {
        let fault = fault!(ExportFailed, "P", "/x")
            .caused_by(fault!(NoSpace, "/x").caused_by(fault!(Os, "write /x", "full", 28)));
        let lines = lines(&[fault]);
        let indents: Vec<usize> = lines
            .iter()
            .map(|l| l.len() - l.trim_start().len())
            .collect();
        assert_eq!(indents, [0, 2, 4]);
        assert!(
            lines
                .iter()
                .all(|l| l.ends_with(']') && l.contains("[KVMMS-")),
            "{lines:?}"
        );
    }
}

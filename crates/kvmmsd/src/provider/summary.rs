//! GetSummaryInformation: what lists of machines show, in one call.

use cim::{Datetime, Instance};
use msvm::{class, code, params};
use vmms::job::Job;
use vmms::machine::Vm;
use vmms::{Element, guid};

use super::vm;
use crate::object::Object;
use crate::view::{Call, CallResult, Outcome, View};

use params::virtual_system_management_service as p;

/// The requested items and the properties they fill.
fn wanted(requested: &[u32], id: u32) -> bool {
    requested.contains(&id)
}

/// Answers the call.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::GetSummaryInformationIn::read(call.parameters)?;
    let requested = given.requested_information.unwrap_or_default();
    let mut ids = Vec::new();
    match given.setting_data.filter(|s| !s.is_empty()) {
        Some(paths) => {
            for path in &paths {
                ids.push(view.vm_reference("SettingData", Some(path)).await?);
            }
        }
        None => ids.extend(view.all::<Vm>().iter().filter(|v| !v.planned).map(|v| v.id)),
    }
    let mut summaries = Vec::new();
    for id in ids {
        let record = view.get::<Vm>(id)?;
        summaries.push(crate::errors::complete(summary(view, &record, &requested)));
    }
    let out = p::GetSummaryInformationOut {
        summary_information: Some(summaries),
        ..p::GetSummaryInformationOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

fn summary(view: &View, record: &Vm, requested: &[u32]) -> Instance {
    let state = view.vmms.state_of(record);
    let running = view.vmms.machine(record.id).is_some();
    let (status, texts) = vm::operational_status(view, record);
    let mut i = Instance::new(class::MSVM_SUMMARY_INFORMATION);
    // The path is shown whatever was asked for: it tells whose summary this is.
    i.set("InstanceID", format!("Microsoft:{}", guid(record.id)));
    let items: [(u32, &'static str, cim::Value); 15] = [
        (0, "Name", guid(record.id).into()),
        (1, "ElementName", record.name.as_str().into()),
        (2, "CreationTime", Datetime::from(record.created).into()),
        (3, "Notes", record.notes.join("\n").into()),
        (
            4,
            "NumberOfProcessors",
            u16::try_from(record.processor.count)
                .unwrap_or(u16::MAX)
                .into(),
        ),
        (100, "EnabledState", vm::enabled_state(state).into()),
        (101, "ProcessorLoad", running.then_some(0u16).into()),
        (
            103,
            "MemoryUsage",
            if running { record.memory.quantity } else { 0 }.into(),
        ),
        (104, "Heartbeat", None::<u16>.into()),
        (105, "UpTime", vm::uptime_ms(view, record).into()),
        (106, "GuestOperatingSystem", None::<String>.into()),
        (109, "HealthState", vm::health_state(view, record).into()),
        (110, "OperationalStatus", status.into()),
        (111, "StatusDescriptions", texts.into()),
        (112, "MemoryAvailable", None::<i32>.into()),
    ];
    for (id, property, value) in items {
        if wanted(requested, id) {
            i.set(property, value);
        }
    }
    if wanted(requested, 108) {
        let jobs = view.jobs().into_iter();
        let own =
            jobs.filter(|j: &Job| j.affected.iter().any(|(e, _)| *e == Element::Vm(record.id)));
        let paths: Vec<cim::Path> = own
            .map(|j| Object::of_job(j).path(&view.host, crate::object::NAMESPACE))
            .collect();
        i.set("AsynchronousTasks", paths);
    }
    i
}

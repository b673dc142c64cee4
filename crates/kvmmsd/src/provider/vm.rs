//! Msvm_ComputerSystem (the host and the machines) and Msvm_PlannedComputerSystem.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::Fault;
use vmms::job::Activity;
use vmms::machine::StateChange;
use vmms::machine::{Power, Vm, VmState};
use vmms::{fault, guid};

use crate::object::{Object, What};
use crate::view::{Call, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct Systems;

/// EnabledState of a machine, by the v2 documentation.
pub(crate) fn enabled_state(state: VmState) -> u16 {
    match state {
        VmState::Running => 2,
        VmState::Off => 3,
        VmState::ShuttingDown | VmState::Stopping => 4,
        VmState::Saved => 6,
        VmState::Paused | VmState::PausedByFailure => 9,
        VmState::Starting => 10,
        VmState::Saving => 32773,
        VmState::Pausing => 32776,
        VmState::Resuming => 32777,
    }
}

/// OperationalStatus: OK, and what is being done to the machine where that has a number.
pub(crate) fn operational_status(view: &View, vm: &Vm) -> (Vec<u16>, Vec<String>) {
    let health = view.vmms.health_of(vm);
    // 5 is "predictive failure": the page's number for storage that is low on room.
    let mut numbers = vec![if health.critical || health.threatened {
        5
    } else {
        2
    }];
    // One text for each number; what else there is to say stands in the first.
    let mut texts = vec![match health.lines.is_empty() {
        true => "Operating normally".to_owned(),
        false => health.lines.join(". "),
    }];
    if view.vmms.waits_to_start(vm.id) && vm.power != Power::Running {
        numbers.push(32771);
        texts.push("Waiting to start: the host has booted".to_owned());
    }
    let mut activities = view.under_way(vm.id).into_iter();
    if let Some(activity) = activities.find_map(|job| vmms::job::activity(&job)) {
        let (number, text) = match activity {
            Activity::Merging => (32772, "Merging disks"),
            Activity::Exporting => (32773, "Exporting virtual machine"),
            Activity::CreatingPoint => (32768, "Creating reference point"),
        };
        if numbers.len() == 1 {
            numbers.push(number);
            texts.push(text.to_owned());
        }
    }
    (numbers, texts)
}

/// HealthState: 25 (critical failure) where the guest stands still because of a failure.
pub(crate) fn health_state(view: &View, vm: &Vm) -> u16 {
    if view.vmms.health_of(vm).critical {
        25
    } else {
        5
    }
}

/// How long a machine has been up.
pub(crate) fn uptime_ms(view: &View, vm: &Vm) -> u64 {
    if view.vmms.machine(vm.id).is_none() {
        return 0;
    }
    let since = SystemTime::now()
        .duration_since(vm.power_changed)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Systems {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let planned = class == class::MSVM_PLANNED_COMPUTER_SYSTEM;
        let mut out = Vec::new();
        if !planned {
            out.push(view.host_object());
        }
        let vms = view.all::<Vm>();
        out.extend(
            vms.into_iter()
                .filter(|vm| vm.planned == planned)
                .map(Object::of_vm),
        );
        out
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        if let Some(id) = path
            .get_str("Name")
            .and_then(|n| Uuid::parse_str(n.trim_matches(['{', '}'])).ok())
        {
            let found = view.get::<Vm>(id).ok().map(Object::of_vm);
            return found
                .filter(|o| o.class == class && o.is_named_by(path))
                .into_iter()
                .collect();
        }
        let mut all = self.list(view, class);
        all.retain(|o| o.is_named_by(path));
        all
    }
}

#[async_trait]
impl Provider for Systems {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_COMPUTER_SYSTEM,
            class::MSVM_PLANNED_COMPUTER_SYSTEM,
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
            What::Vm(vm) => machine(view, vm),
            _ => host(view),
        }
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        let What::Vm(vm) = &call.target.what else {
            return Err(unserved("Msvm_ComputerSystem (the host)", call.method));
        };
        let Ok(msvm::method::ComputerSystem::RequestStateChange) = call.method.parse() else {
            return Err(unserved(call.target.class, call.method));
        };
        let given = params::computer_system::RequestStateChangeIn::read(call.parameters)?;
        let wanted = msvm::required("RequestedState", given.requested_state)?;
        // 32768 and 32769 are the first version's numbers for paused and saved; older clients send them.
        let to = match wanted {
            2 => StateChange::Start,
            3 => StateChange::Stop,
            4 => StateChange::Shutdown,
            6 | 32769 => StateChange::Save,
            9 | 32768 => StateChange::Pause,
            10 => StateChange::Reboot,
            11 => StateChange::Reset,
            other => {
                return Err(fault!(
                    InvalidValue,
                    "RequestedState",
                    other,
                    "2, 3, 4, 6, 9, 10 and 11 are served"
                )
                .into());
            }
        };
        let job = vmms::machine::request_state(&view.vmms, vm.id, to, call.asked).await?;
        Ok(Outcome::started(view, job))
    }
}

fn machine(view: &View, vm: &Arc<Vm>) -> Instance {
    let state = view.vmms.state_of(vm);
    let (status, texts) = operational_status(view, vm);
    let health = health_state(view, vm);
    let mut i = Instance::new(class::MSVM_COMPUTER_SYSTEM);
    if vm.planned {
        i.class = class::MSVM_PLANNED_COMPUTER_SYSTEM.into();
    }
    i.set("InstanceID", None::<String>)
        .set("Caption", "Virtual Machine")
        .set("Description", "Microsoft Virtual Machine")
        .set("ElementName", vm.name.as_str())
        .set("InstallDate", Datetime::from(vm.created))
        .set("OperationalStatus", status)
        .set("StatusDescriptions", texts)
        .set("Status", if health == 5 { "OK" } else { "Error" })
        .set("HealthState", health)
        .set("CommunicationStatus", 0u16)
        .set("DetailedStatus", 0u16)
        .set("OperatingStatus", 0u16)
        .set("PrimaryStatus", 1u16)
        .set("EnabledState", enabled_state(state))
        .set("RequestedState", 12u16)
        .set("EnabledDefault", 3u16)
        .set("TimeOfLastStateChange", Datetime::from(vm.power_changed))
        .set("TransitioningToState", 12u16)
        .set("Name", guid(vm.id))
        .set("NameFormat", None::<String>)
        .set("ResetCapability", 1u16)
        .set("OnTimeInMilliseconds", uptime_ms(view, vm))
        .set(
            "ProcessID",
            view.vmms
                .machine(vm.id)
                .and_then(|m| u32::try_from(m.pid()).ok()),
        )
        .set("TimeOfLastConfigurationChange", Datetime::from(vm.changed))
        .set("NumberOfNumaNodes", 1u16)
        .set("ReplicationState", 0u16)
        .set("ReplicationHealth", 0u16)
        .set("ReplicationMode", 0u16)
        .set("FailedOverReplicationType", 0u16)
        .set("LastReplicationType", 0u16)
        .set("EnhancedSessionModeState", 3u16)
        .set("AvailableRequestedStates", available(vm.power, state));
    i
}

fn available(power: Power, state: VmState) -> Vec<u16> {
    match power {
        Power::Running if state == VmState::PausedByFailure => vec![2, 3, 6, 9],
        Power::Off => vec![2],
        Power::Running => vec![3, 4, 6, 9, 10, 11],
        Power::Paused => vec![2, 3, 6],
        Power::Saved => vec![2, 3],
    }
}

fn host(view: &View) -> Instance {
    let up = SystemTime::now()
        .duration_since(view.vmms.started)
        .unwrap_or_default();
    let mut i = Instance::new(class::MSVM_COMPUTER_SYSTEM);
    i.set("Caption", "Hosting Computer System")
        .set("Description", "Microsoft Hosting Computer System")
        .set("ElementName", view.host.as_str())
        .set("Name", view.host.as_str())
        .set("OperationalStatus", vec![2u16])
        .set("StatusDescriptions", vec!["Operating normally".to_owned()])
        .set("Status", "OK")
        .set("HealthState", 5u16)
        .set("EnabledState", 2u16)
        .set("RequestedState", 12u16)
        .set("EnabledDefault", 2u16)
        .set("ResetCapability", 1u16)
        .set("NumberOfNumaNodes", 1u16)
        .set(
            "OnTimeInMilliseconds",
            u64::try_from(up.as_millis()).unwrap_or(u64::MAX),
        )
        .set("ProcessID", std::process::id())
        .set("TimeOfLastStateChange", Datetime::from(view.vmms.started));
    i
}

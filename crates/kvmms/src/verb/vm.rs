//! `kvmms vm`.

use cim::{Instance, Name, Value};
use msvm::{class, code};
use serde_json::json;
use wbem::Walk;

use super::storage::{Storage, resources};
use super::vm_create;
use crate::cli::{SetVmArgs, VmVerb};
use crate::console;
use crate::error::{Error, Result};
use crate::find::{self, Machine, Naming};
use crate::inspect::{duration, instant, lines, moment, number, some_text, text, texts};
use crate::output::Row;
use crate::session::{Followed, Session, management, parameters, service};
use crate::size::{Size, span};
use crate::{vendor, watch};

/// RequestedState of a machine.
mod state {
    pub(super) const ON: u16 = 2;
    pub(super) const OFF: u16 = 3;
    pub(super) const SHUTDOWN: u16 = 4;
    pub(super) const SAVED: u16 = 6;
    pub(super) const PAUSED: u16 = 9;
    pub(super) const REBOOT: u16 = 10;
    pub(super) const RESET: u16 = 11;
}

/// Carries out a verb of `vm`.
pub(super) async fn run(session: &Session, verb: VmVerb) -> Result<()> {
    match verb {
        VmVerb::List => list(session).await,
        VmVerb::Show { vm } => show(session, &vm).await,
        VmVerb::Create(arguments) => vm_create::create(session, arguments).await,
        VmVerb::Set(arguments) => set(session, arguments).await,
        VmVerb::Start { vm } => change(session, &vm, state::ON, "started").await,
        VmVerb::Shutdown { vm } => change(session, &vm, state::SHUTDOWN, "shut down").await,
        VmVerb::Stop { vm } => change(session, &vm, state::OFF, "switched off").await,
        VmVerb::Pause { vm } => change(session, &vm, state::PAUSED, "paused").await,
        VmVerb::Resume { vm } => change(session, &vm, state::ON, "running again").await,
        VmVerb::Save { vm } => change(session, &vm, state::SAVED, "saved").await,
        VmVerb::Reboot { vm } => change(session, &vm, state::REBOOT, "asked to reboot").await,
        VmVerb::Reset { vm } => change(session, &vm, state::RESET, "reset").await,
        VmVerb::Delete {
            vm, dry_run: true, ..
        } => dry_delete(session, &vm).await,
        VmVerb::Delete { vm, force, .. } => delete(session, &vm, force).await,
        VmVerb::Console {
            vm,
            log,
            lines,
            follow,
        } => {
            // A console types into the guest; its log is only read.
            let naming = if log {
                Naming::Beginning
            } else {
                Naming::Whole
            };
            let machine = find::machine(session, &vm, naming).await?;
            match log {
                true => console::log(session, &machine, lines, follow).await,
                false => console::attach(session, &machine).await,
            }
        }
    }
}

/// A machine's state in a word. Older hosts tell some states by other numbers.
pub(super) fn state_word(number: u64) -> String {
    match number {
        2 => "running",
        3 => "off",
        4 | 32774 => "shutting down",
        6 | 32769 => "saved",
        9 | 32768 => "paused",
        10 | 32770 => "starting",
        32771 => "snapshotting",
        32773 => "saving",
        32776 => "pausing",
        32777 => "resuming",
        other => return format!("state {other}"),
    }
    .to_owned()
}

fn state_of(machine: &Machine) -> String {
    let of = |name| number(&machine.instance, name);
    let word = of("EnabledState").map_or_else(String::new, state_word);
    // A guest that nobody paused: its disk is full, or its storage fails.
    match (word.as_str(), of("HealthState")) {
        ("paused", Some(25)) => "paused (critical)".to_owned(),
        _ => word,
    }
}

fn belongs(i: &Instance, machine: &Machine) -> bool {
    let id = text(i, "InstanceID").to_lowercase();
    let rest = id.strip_prefix("microsoft:").unwrap_or(&id);
    rest.starts_with(&machine.id.to_lowercase())
}

fn uptime(machine: &Machine) -> Option<u64> {
    number(&machine.instance, "OnTimeInMilliseconds").filter(|t| *t > 0)
}

fn uptime_words(milliseconds: Option<u64>) -> String {
    milliseconds.map_or_else(String::new, |ms| span(std::time::Duration::from_millis(ms)))
}

async fn list(session: &Session) -> Result<()> {
    let machines = find::machines(session).await?;
    let memory = session
        .client
        .enumerate(class::MSVM_MEMORY_SETTING_DATA)
        .await?;
    let processors = session
        .client
        .enumerate(class::MSVM_PROCESSOR_SETTING_DATA)
        .await?;
    let quantity = |of: &[Instance], machine: &Machine| {
        let own = of.iter().find(|i| belongs(i, machine));
        own.and_then(|i| number(i, "VirtualQuantity"))
    };
    let rows: Vec<_> = machines
        .iter()
        .map(|m| {
            let up = uptime(m);
            Row::new()
                .text("name", "Name", &m.name)
                .text("state", "State", state_of(m))
                .number("cpus", "CPUs", quantity(&processors, m))
                .size(
                    "memory",
                    "Memory",
                    quantity(&memory, m).map(|mib| mib << 20),
                )
                .both("uptimeMs", "Uptime", uptime_words(up), json!(up))
                .text("id", "Id", &m.id)
        })
        .collect();
    session
        .output
        .list(&rows, "No machines. Make one: kvmms vm create NAME")
}

async fn show(session: &Session, vm: &str) -> Result<()> {
    let machine = find::machine(session, vm, Naming::Beginning).await?;
    let row = describe(session, &machine).await?;
    session.output.one(&row)
}

/// Everything about a machine.
pub(super) async fn describe(session: &Session, machine: &Machine) -> Result<Row> {
    let settings = session.client.get(&machine.settings_path()).await?;
    let resources = resources(session, machine).await?;
    let storage = Storage::read(&resources);
    let points = find::points(session, Some(machine)).await?;
    let of = |class: &'static str| resources.iter().filter(move |i| i.class.is(class));
    let quantity = |class| of(class).next().and_then(|i| number(i, "VirtualQuantity"));
    let sub_type = text(&settings, "VirtualSystemSubType");
    let up = uptime(machine);
    let disks: Vec<_> = storage
        .disks
        .iter()
        .map(|d| {
            Row::new()
                .text("place", "Place", &d.place)
                .text("path", "Path", &d.file)
                .yes("readOnly", "Read only", Some(d.read_only))
                .hidden("instanceId", json!(d.id))
        })
        .collect();
    let adapters = of(class::MSVM_SYNTHETIC_ETHERNET_PORT_SETTING_DATA)
        .map(|i| text(i, "Address"))
        .collect();
    let walk = Walk {
        result_class: Some(Name::of("CIM_ConcreteJob")),
        ..Walk::default()
    };
    let jobs = session.client.associators(&machine.path(), &walk).await?;
    let jobs: Vec<_> = jobs
        .iter()
        .filter(|j| number(j, "JobState").is_some_and(|s| !watch::is_final(s)))
        .map(|j| {
            Row::new()
                .text("title", "Job", watch::title(j))
                .text("state", "State", watch::outcome(j))
                .number("percent", "Percent", number(j, "PercentComplete"))
                .text("id", "Id", text(j, "InstanceID"))
        })
        .collect();
    let changed = instant(&machine.instance, "TimeOfLastStateChange").map(moment);
    let i = &machine.instance;
    Ok(Row::new()
        .text("name", "Name", &machine.name)
        .text("id", "Id", &machine.id)
        .text("state", "State", state_of(machine))
        .maybe("stateSince", "State since", changed)
        .both("uptimeMs", "Uptime", uptime_words(up), json!(up))
        .lines("status", "Status", texts(i, "StatusDescriptions"))
        .number(
            "generation",
            "Generation",
            sub_type.rsplit(':').next().and_then(|n| n.parse().ok()),
        )
        .number("cpus", "CPUs", quantity(class::MSVM_PROCESSOR_SETTING_DATA))
        .size(
            "memory",
            "Memory",
            quantity(class::MSVM_MEMORY_SETTING_DATA).map(|mib| mib << 20),
        )
        .number("processId", "Process", number(i, "ProcessID"))
        .maybe(
            "created",
            "Created",
            instant(&settings, "CreationTime").map(moment),
        )
        .lines("notes", "Notes", texts(&settings, "Notes"))
        .yes(
            "autostart",
            "Autostart",
            number(&settings, "AutomaticStartupAction").map(|a| a == 4),
        )
        .lines("adapters", "Network adapters", adapters)
        .rows("disks", "Disks", &disks)
        .rows(
            "points",
            "Points",
            &points
                .iter()
                .map(super::point::short_row)
                .collect::<Vec<_>>(),
        )
        .rows("jobs", "Jobs", &jobs))
}

/// Brings a machine into another state.
async fn change(session: &Session, vm: &str, to: u16, done: &str) -> Result<()> {
    let machine = find::machine(session, vm, Naming::Whole).await?;
    let called = request_state(session, &machine, to).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let now = find::machine(session, &machine.id, Naming::Whole).await?;
    let row = Row::new()
        .text("name", "Name", &now.name)
        .text("id", "Id", &now.id)
        .text("state", "State", state_of(&now));
    session
        .output
        .done(&format!("{} is {done}", machine.name), &row)
}

async fn request_state(
    session: &Session,
    machine: &Machine,
    to: u16,
) -> Result<crate::session::Called> {
    let asked = session
        .call(
            &machine.path(),
            "RequestStateChange",
            &parameters([("RequestedState", to.into())]),
        )
        .await;
    match asked {
        Err(Error::Refused {
            method,
            code,
            chain,
            ..
        }) if code == code::INVALID_STATE && chain.is_empty() => {
            let now = find::machine(session, &machine.id, Naming::Whole).await?;
            let hint = format!("{} is {} now.", now.name, state_of(&now));
            Err(Error::Refused {
                method,
                code,
                hint: Some(hint),
                chain,
            })
        }
        other => other,
    }
}

async fn delete(session: &Session, vm: &str, force: bool) -> Result<()> {
    let machine = find::machine(session, vm, Naming::Whole).await?;
    let off = matches!(
        number(&machine.instance, "EnabledState"),
        Some(3 | 6 | 32769)
    );
    if force && !off {
        let called = request_state(session, &machine, state::OFF).await?;
        session.finish(&called).await?;
    }
    let losses = match force && session.is_kvmms() {
        true => losses(session, &machine).await?,
        false => Vec::new(),
    };
    for line in &losses {
        session.output.remark(&format!("lost: {line}"));
    }
    let called = match losses.is_empty() {
        true => destroy(session, &machine.path()).await,
        false => with_losses(session, &machine, false).await,
    };
    let called = match called {
        Err(Error::Refused {
            method,
            code,
            chain,
            ..
        }) if code == code::INVALID_STATE && chain.is_empty() && !off => {
            return Err(Error::Refused {
                method,
                code,
                hint: Some(format!(
                    "{} is {}. Switch it off first, or use --force.",
                    machine.name,
                    state_of(&machine)
                )),
                chain,
            });
        }
        other => other?,
    };
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("name", "Name", &machine.name)
        .text("id", "Id", &machine.id)
        .yes("deleted", "Deleted", Some(true));
    let line = format!("{} is deleted; its disks' files stay", machine.name);
    session.output.done(&line, &row)
}

async fn with_losses(
    session: &Session,
    machine: &Machine,
    dry: bool,
) -> Result<crate::session::Called> {
    session
        .call(
            &service(vendor::HOST_SERVICE),
            "DestroySystemWithLosses",
            &parameters([
                ("AffectedSystem", machine.path().into()),
                ("DryRun", dry.into()),
            ]),
        )
        .await
}

/// What the end of a machine loses because files are missing.
async fn losses(session: &Session, machine: &Machine) -> Result<Vec<String>> {
    let called = with_losses(session, machine, true).await?;
    Ok(lines(called.invoked.get("Losses")))
}

async fn dry_delete(session: &Session, vm: &str) -> Result<()> {
    session.needs_kvmms("vm delete --dry-run")?;
    let machine = find::machine(session, vm, Naming::Whole).await?;
    let lost = losses(session, &machine).await?;
    let row = Row::new()
        .text("name", "Name", &machine.name)
        .text("id", "Id", &machine.id)
        .lines("losses", "Lost", lost.clone());
    let line = match lost.is_empty() {
        true => format!(
            "no file of {} is missing; its disks would stay whole",
            machine.name
        ),
        false => lost.join("\n"),
    };
    session.output.done(&line, &row)
}

/// Asks for the end of a machine.
pub(super) async fn destroy(
    session: &Session,
    system: &cim::Path,
) -> Result<crate::session::Called> {
    session
        .call(
            &management(),
            "DestroySystem",
            &parameters([("AffectedSystem", system.clone().into())]),
        )
        .await
}

async fn set(session: &Session, arguments: SetVmArgs) -> Result<()> {
    if arguments.is_empty() {
        return Err(Error::usage("nothing to set; see kvmms vm set --help"));
    }
    let machine = find::machine(session, &arguments.vm, Naming::Whole).await?;
    let mut changes = Vec::new();
    if arguments.memory.is_some() || arguments.cpus.is_some() {
        let resources = resources(session, &machine).await?;
        let mut quantity = |class: &'static str, to: u64| -> Result<()> {
            let found = resources.iter().find(|i| i.class.is(class));
            let id = found
                .and_then(|i| some_text(i, "InstanceID"))
                .ok_or_else(|| {
                    Error::Answer(
                        "the query for resources".to_owned(),
                        format!("there is no {class}"),
                    )
                })?;
            let change = Instance::new(class)
                .with("InstanceID", id)
                .with("VirtualQuantity", to);
            changes.push(Value::from(change));
            Ok(())
        };
        if let Some(memory) = arguments.memory {
            quantity(class::MSVM_MEMORY_SETTING_DATA, mebibytes(memory)?)?;
        }
        if let Some(cpus) = arguments.cpus {
            quantity(class::MSVM_PROCESSOR_SETTING_DATA, cpus.into())?;
        }
    }
    if !changes.is_empty() {
        let called = session
            .call(
                &management(),
                "ModifyResourceSettings",
                &parameters([("ResourceSettings", Value::Array(changes))]),
            )
            .await?;
        session.finish(&called).await?;
    }
    let mut settings = Instance::new(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA);
    if let Some(name) = &arguments.name {
        settings.set("ElementName", name.as_str());
    }
    if let Some(notes) = &arguments.notes {
        settings.set("Notes", vec![notes.clone()]);
    }
    if let Some(switch) = arguments.autostart {
        let on = switch == crate::cli::Switch::On;
        settings.set("AutomaticStartupAction", if on { 4u16 } else { 2 });
    }
    if !settings.properties.is_empty() {
        settings.set("InstanceID", format!("Microsoft:{}", machine.id));
        let called = session
            .call(
                &management(),
                "ModifySystemSettings",
                &parameters([("SystemSettings", settings.into())]),
            )
            .await?;
        session.finish(&called).await?;
    }
    let machine = find::machine(session, &machine.id, Naming::Whole).await?;
    let row = describe(session, &machine).await?;
    session
        .output
        .done(&format!("{} is changed", machine.name), &row)
}

/// Memory in the unit of the API.
pub(super) fn mebibytes(size: Size) -> Result<u64> {
    match size.0 {
        bytes if bytes > 0 && bytes.is_multiple_of(1 << 20) => Ok(bytes >> 20),
        bytes => Err(Error::usage(format!(
            "memory is counted in whole MiB, and {bytes} bytes are not (512M is a good example)"
        ))),
    }
}

/// How long a job took or has been running, for lists.
pub(super) fn elapsed(job: &Instance) -> String {
    duration(job, "ElapsedTime").map_or_else(String::new, span)
}

/// A job's state, for lists.
pub(super) fn job_state(job: &Instance) -> String {
    watch::outcome(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_mebibytes() {
        assert_eq!(mebibytes(Size(512 << 20)).ok(), Some(512));
        for bad in [0, 1, 1000, (512 << 20) + 1] {
            assert!(mebibytes(Size(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn states_have_words_and_unknown_ones_their_number() {
        assert_eq!(state_word(2), "running");
        assert_eq!(state_word(32768), "paused");
        assert_eq!(state_word(77), "state 77");
    }
}

//! Counters of the virtual processors of running machines, from the times the kernel keeps of their threads.
//!
//! QEMU names the thread of a virtual processor `CPU <n>/KVM` or `CPU <n>/TCG`; where it was started without names,
//! there is nothing to tell. Times are in 100 ns, as the class has them; what the kernel does not count stays null.

use std::path::Path as FilePath;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use cim::{Instance, Path};
use vmms::Fault;
use vmms::machine::Vm;

use super::system::text;
use crate::object::{Object, What};
use crate::view::{Provider, View, named};

pub(crate) struct Counters;

const CLASS: &str = "Win32_PerfRawData_HvStats_HyperVHypervisorVirtualProcessor";

/// From 1601 to 1970, in seconds.
const EPOCH_1601: u64 = 11_644_473_600;

#[async_trait]
impl Provider for Counters {
    fn namespace(&self) -> &'static str {
        "root/cimv2"
    }

    fn classes(&self) -> &'static [&'static str] {
        &[CLASS]
    }

    async fn objects(
        &self,
        view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(
            view.all::<Vm>()
                .iter()
                .flat_map(|vm| of_machine(view, vm))
                .collect(),
            wanted,
        ))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

fn of_machine(view: &View, vm: &Vm) -> Vec<Object> {
    let Some(machine) = view.vmms.machine(vm.id) else {
        return Vec::new();
    };
    let threads = threads(FilePath::new(&format!("/proc/{}/task", machine.pid())));
    (0..vm.processor.count)
        .map(|n| {
            let times = threads
                .iter()
                .find(|(number, _)| *number == n)
                .map(|(_, times)| *times);
            let what = What::fixed_of(instance(times.unwrap_or_default()), vec![vm.id]);
            Object {
                class: CLASS,
                keys: vec![("Name", format!("{}:Hv VP {n}", vm.name))],
                what,
            }
        })
        .collect()
}

/// Times of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    /// On a processor, in 100 ns.
    ran: Option<u64>,
    /// Ready, but not on a processor, in 100 ns.
    waited: Option<u64>,
    /// How often it was put on a processor.
    turns: Option<u64>,
}

/// The threads of virtual processors with their numbers.
fn threads(task: &FilePath) -> Vec<(u32, Times)> {
    let list = std::fs::read_dir(task)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let of = |dir: std::path::PathBuf| {
        let number = processor_number(&text(dir.join("comm"))?)?;
        Some((
            number,
            times(&text(dir.join("schedstat")).unwrap_or_default()),
        ))
    };
    list.filter_map(|e| of(e.path())).collect()
}

fn processor_number(comm: &str) -> Option<u32> {
    let rest = comm.strip_prefix("CPU ")?;
    let (number, kind) = rest.split_once('/')?;
    if kind.is_empty() {
        return None;
    }
    number.parse().ok()
}

/// A line of schedstat: nanoseconds run, nanoseconds waited, turns.
fn times(schedstat: &str) -> Times {
    let mut numbers = schedstat.split_whitespace().map(|t| t.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    Times {
        ran: next().map(|ns| ns / 100),
        waited: next().map(|ns| ns / 100),
        turns: next(),
    }
}

fn hundreds_of_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos() / 100).unwrap_or(u64::MAX)
}

fn instance(times: Times) -> Instance {
    let unix = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = hundreds_of_ns(unix + Duration::from_secs(EPOCH_1601));
    let second = 10_000_000u64;
    let mut i = Instance::new(CLASS);
    i.set("Caption", "Virtual processor")
        .set("Description", "Times of a virtual processor's thread")
        .set("Frequency_Object", second)
        .set("Frequency_PerfTime", second)
        .set("Frequency_Sys100NS", second)
        .set("Timestamp_Object", now)
        .set("Timestamp_PerfTime", now)
        .set("Timestamp_Sys100NS", now)
        .set("PercentTotalRunTime", times.ran)
        .set("PercentTotalRunTime_Base", now)
        .set("CPUWaitTimePerDispatch", times.waited)
        .set("CPUWaitTimePerDispatch_Base", times.turns)
        .set("LogicalProcessorDispatchesPersec", times.turns);
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_virtual_processors_are_known_by_their_names() {
        assert_eq!(processor_number("CPU 3/KVM"), Some(3));
        assert_eq!(processor_number("CPU 0/TCG"), Some(0));
        for other in [
            "qemu-system-x86",
            "IO mon_iothread",
            "CPU x/KVM",
            "CPU 1",
            "CPU 1/",
        ] {
            assert_eq!(processor_number(other), None, "{other}");
        }
    }

    #[test]
    fn times_are_in_units_of_100_ns_and_unknown_ones_are_none() {
        assert_eq!(
            times("1000 200 7"),
            Times {
                ran: Some(10),
                waited: Some(2),
                turns: Some(7)
            }
        );
        assert_eq!(times(""), Times::default());
        assert_eq!(times("x 200").ran, None);
    }
}

//! Win32_ComputerSystem, Win32_ComputerSystemProduct, Win32_OperatingSystem and Win32_Processor: the host as clients of
//! Hyper-V read it.
//!
//! `Version` of Win32_OperatingSystem is the level of the management interface that is served, not a version of Linux:
//! clients decide by it which classes they may use. The kernel and the distribution stand in `Caption`,
//! `Description` and `OtherTypeDescription`.

use std::time::SystemTime;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use vmms::Fault;
use vmms::guid;

use super::system::{Host, Package, text};
use crate::association::{Association, link};
use crate::object::{Object, What};
use crate::view::{Provider, View, named};

pub(crate) struct HostInventory;

const SYSTEM: &str = "Win32_ComputerSystem";
const PRODUCT: &str = "Win32_ComputerSystemProduct";
const OPERATING_SYSTEM: &str = "Win32_OperatingSystem";
const PROCESSOR: &str = "Win32_Processor";

/// The level of the interface: what Windows Server 2019 serves.
pub(super) const LEVEL: &str = "10.0.17763";

/// The associations of root/cimv2.
pub(super) static ASSOCIATIONS: &[Association] = &[link(
    "Win32_ComputerSystemProcessor",
    ("GroupComponent", SYSTEM),
    ("PartComponent", PROCESSOR),
    processors_of,
    system_of,
)];

#[async_trait]
impl Provider for HostInventory {
    fn namespace(&self) -> &'static str {
        "root/cimv2"
    }

    fn classes(&self) -> &'static [&'static str] {
        &[SYSTEM, PRODUCT, OPERATING_SYSTEM, PROCESSOR]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(
            match class {
                SYSTEM => vec![system(view)],
                PRODUCT => vec![product(view)],
                OPERATING_SYSTEM => vec![operating_system(view)],
                PROCESSOR => processors(view),
                _ => Vec::new(),
            },
            wanted,
        ))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

/// The processors of the host.
fn processors_of(view: &View, _object: &Object) -> Vec<Object> {
    processors(view)
}

/// The host of a processor.
fn system_of(view: &View, _object: &Object) -> Vec<Object> {
    vec![system(view)]
}

fn fixed(class: &'static str, keys: Vec<(&'static str, String)>, instance: Instance) -> Object {
    Object {
        class,
        keys,
        what: What::fixed(instance),
    }
}

fn zone_minutes() -> i16 {
    i16::try_from(jiff::Zoned::now().offset().seconds() / 60).unwrap_or(0)
}

fn vendor() -> String {
    Host::dmi("sys_vendor").unwrap_or_else(|| "Unknown".to_owned())
}

fn model() -> String {
    Host::dmi("product_name").unwrap_or_else(|| "Unknown".to_owned())
}

fn system(view: &View) -> Object {
    let packages = Host::packages();
    let full = text("/proc/sys/kernel/hostname").unwrap_or_else(|| view.host.clone());
    let domain = full.split_once('.').map_or("", |(_, domain)| domain);
    let mut i = Instance::new(SYSTEM);
    i.set("Caption", view.host.as_str())
        .set("Description", "Host of kvmms")
        .set("Status", "OK")
        .set("BootupState", "Normal boot")
        .set("ChassisBootupState", 3u16)
        .set("CreationClassName", SYSTEM)
        .set("CurrentTimeZone", zone_minutes())
        .set("DNSHostName", view.host.as_str())
        .set("Domain", domain)
        // 2: a server of its own.
        .set("DomainRole", 2u16)
        .set("PartOfDomain", false)
        .set("InfraredSupported", false)
        .set("Manufacturer", vendor())
        .set("Model", model())
        .set("NetworkServerModeEnabled", true)
        .set(
            "NumberOfProcessors",
            u32::try_from(packages.len()).unwrap_or(1),
        )
        .set(
            "NumberOfLogicalProcessors",
            packages.iter().map(|p| p.threads).sum::<u32>(),
        )
        .set("PauseAfterReset", -1i64)
        .set("PowerManagementSupported", false)
        .set("PowerState", 0u16)
        .set("ResetCapability", 1u16)
        .set("ResetCount", -1i16)
        .set("ResetLimit", -1i16)
        .set("Roles", vec!["Server".to_owned()])
        .set("SystemType", system_type())
        .set("ThermalState", 2u16)
        .set(
            "TotalPhysicalMemory",
            Host::memory_kib("MemTotal").map(|kib| kib * 1024),
        );
    fixed(SYSTEM, vec![("Name", view.host.clone())], i)
}

fn system_type() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64-based PC",
        "aarch64" => "ARM64-based PC",
        other => other,
    }
}

fn product(view: &View) -> Object {
    let mut i = Instance::new(PRODUCT);
    let version = Host::dmi("product_version").unwrap_or_else(|| "Unknown".to_owned());
    // Only root may read the serial number; the UUID identifies the host as well.
    let uuid = guid(Host::uuid(&view.host));
    let number = Host::dmi("product_serial").unwrap_or_else(|| uuid.clone());
    i.set("Caption", "Computer System Product")
        .set("Description", "Computer System Product")
        .set("SKUNumber", Host::dmi("product_sku"))
        .set("Vendor", vendor())
        .set("UUID", uuid);
    fixed(
        PRODUCT,
        vec![
            ("IdentifyingNumber", number),
            ("Name", model()),
            ("Version", version),
        ],
        i,
    )
}

fn operating_system(view: &View) -> Object {
    let distribution = Host::distribution();
    let name = format!("kvmms on {distribution}");
    let memory = |name: &str| Host::memory_kib(name);
    let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    let build = LEVEL.rsplit('.').next().unwrap_or_default();
    let mut i = Instance::new(OPERATING_SYSTEM);
    i.set("Caption", name.as_str())
        .set(
            "Description",
            format!(
                "kvmms {} on {distribution}, Linux {}",
                env!("CARGO_PKG_VERSION"),
                Host::kernel()
            ),
        )
        .set("Status", "OK")
        .set("BuildNumber", build)
        .set("CodeSet", "65001")
        .set("CreationClassName", OPERATING_SYSTEM)
        .set("CSCreationClassName", SYSTEM)
        .set("CSName", view.host.as_str())
        .set("CurrentTimeZone", zone_minutes())
        .set("Debug", false)
        .set("Distributed", false)
        .set("FreePhysicalMemory", memory("MemAvailable"))
        .set("FreeSpaceInPagingFiles", memory("SwapFree"))
        .set(
            "FreeVirtualMemory",
            sum(memory("MemAvailable"), memory("SwapFree")),
        )
        .set("LastBootUpTime", Host::boot_time().map(Datetime::from))
        .set("LocalDateTime", Datetime::from(SystemTime::now()))
        .set(
            "Manufacturer",
            distribution.split_whitespace().next().unwrap_or("Linux"),
        )
        .set(
            "MaxNumberOfProcesses",
            text("/proc/sys/kernel/pid_max").and_then(|t| t.parse::<u32>().ok()),
        )
        .set("NumberOfProcesses", Host::processes())
        .set("OSArchitecture", "64-bit")
        // 36: Linux.
        .set("OSType", 36u16)
        .set("OtherTypeDescription", format!("Linux {}", Host::kernel()))
        .set("PAEEnabled", false)
        .set("Primary", true)
        // 3: server.
        .set("ProductType", 3u32)
        .set("ServicePackMajorVersion", 0u16)
        .set("ServicePackMinorVersion", 0u16)
        .set("SizeStoredInPagingFiles", memory("SwapTotal"))
        .set("SystemDirectory", "/")
        .set("SystemDrive", "/")
        .set("TotalSwapSpaceSize", memory("SwapTotal"))
        .set(
            "TotalVirtualMemorySize",
            sum(memory("MemTotal"), memory("SwapTotal")),
        )
        .set("TotalVisibleMemorySize", memory("MemTotal"))
        .set("Version", LEVEL);
    fixed(OPERATING_SYSTEM, vec![("Name", name)], i)
}

fn processors(view: &View) -> Vec<Object> {
    Host::packages()
        .iter()
        .map(|package| processor(view, package))
        .collect()
}

fn processor(view: &View, package: &Package) -> Object {
    let id = format!("CPU{}", package.id);
    let (architecture, width): (u16, u16) = match std::env::consts::ARCH {
        "aarch64" => (12, 64),
        _ => (9, 64),
    };
    let most = text("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
    let most = most
        .and_then(|t| t.parse::<u32>().ok())
        .map(|khz| khz / 1000);
    let revision = match (
        package.model_number,
        package
            .stepping
            .as_deref()
            .and_then(|s| s.parse::<u16>().ok()),
    ) {
        (Some(model), Some(stepping)) => {
            model.checked_mul(256).and_then(|m| m.checked_add(stepping))
        }
        _ => None,
    };
    let mut i = Instance::new(PROCESSOR);
    i.set("Caption", package.model.as_str())
        .set("Description", package.model.as_str())
        .set("Name", short_name(&package.model))
        .set("Status", "OK")
        .set("StatusInfo", 3u16)
        .set("AddressWidth", width)
        .set("Architecture", architecture)
        .set("Availability", 3u16)
        .set("CpuStatus", 1u16)
        .set("CreationClassName", PROCESSOR)
        .set("CurrentClockSpeed", package.mhz)
        .set("DataWidth", width)
        .set("L2CacheSize", Host::cache_kib(2))
        .set("L3CacheSize", Host::cache_kib(3))
        .set("Level", package.family)
        .set("Manufacturer", package.vendor.as_str())
        .set("MaxClockSpeed", most.or(package.mhz))
        .set("NumberOfCores", package.cores)
        .set("NumberOfLogicalProcessors", package.threads)
        .set("PowerManagementSupported", false)
        .set("ProcessorType", 3u16)
        .set("Revision", revision)
        .set("Role", "CPU")
        .set("SocketDesignation", id.as_str())
        .set("Stepping", package.stepping.clone())
        .set("SystemCreationClassName", SYSTEM)
        .set("SystemName", view.host.as_str());
    fixed(PROCESSOR, vec![("DeviceID", id)], i)
}

/// A model name of at most 31 characters, which is what libvirt has room for.
fn short_name(model: &str) -> String {
    let mut name = model.split(" @ ").next().unwrap_or(model).to_owned();
    for mark in ["(R)", "(r)", "(C)", "(c)", "(TM)", "(tm)"] {
        name = name.replace(mark, " ");
    }
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = name.chars().take(31).collect();
    if short.is_empty() {
        "Processor".to_owned()
    } else {
        short.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_fit_where_libvirt_keeps_them() {
        assert_eq!(
            short_name("Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz"),
            "Intel Xeon Gold 6230 CPU"
        );
        let long = short_name("AMD EPYC 7763 64-Core Processor with a very long name");
        assert!(
            long.len() <= 31 && long.starts_with("AMD EPYC 7763"),
            "{long}"
        );
        assert_eq!(short_name(""), "Processor");
    }

    #[test]
    fn the_level_is_three_numbers_and_not_below_ten() {
        let parts: Vec<u32> = LEVEL.split('.').filter_map(|p| p.parse().ok()).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts.first().is_some_and(|major| *major >= 10));
    }
}

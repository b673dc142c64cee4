//! What Linux tells of the host: /proc, /sys, /etc. Everything may be missing; then it is `None`.

use std::path::Path;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

/// Reads of the host. Nothing is kept: the files are small, and some change.
pub(crate) struct Host;

/// A processor package.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Package {
    /// Its number.
    pub(crate) id: String,
    /// Model name, as the kernel tells.
    pub(crate) model: String,
    /// Who made it.
    pub(crate) vendor: String,
    /// Cores.
    pub(crate) cores: u32,
    /// Logical processors.
    pub(crate) threads: u32,
    /// Present speed in MHz.
    pub(crate) mhz: Option<u32>,
    /// Family, model number and stepping.
    pub(crate) family: Option<u16>,
    /// See `family`.
    pub(crate) model_number: Option<u16>,
    /// See `family`.
    pub(crate) stepping: Option<String>,
}

/// A file of one or a few lines, trimmed; `None` where it is missing or empty.
pub(crate) fn text(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

impl Host {
    /// A line of /proc/meminfo, in KiB.
    pub(crate) fn memory_kib(name: &str) -> Option<u64> {
        meminfo(&text("/proc/meminfo")?, name)
    }

    /// Logical processors.
    pub(crate) fn processors() -> u64 {
        std::thread::available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap_or(1))
    }

    /// The packages; always at least one.
    pub(crate) fn packages() -> Vec<Package> {
        let found = packages(&text("/proc/cpuinfo").unwrap_or_default());
        if found.is_empty() {
            let threads = u32::try_from(Self::processors()).unwrap_or(1);
            return vec![Package {
                id: "0".to_owned(),
                cores: threads,
                threads,
                ..Package::default()
            }];
        }
        found
    }

    /// Size of a cache level in KiB.
    pub(crate) fn cache_kib(level: u8) -> Option<u32> {
        let index = format!("/sys/devices/system/cpu/cpu0/cache/index{level}");
        let told = text(format!("{index}/level"))?;
        if told != level.to_string() {
            return None;
        }
        text(format!("{index}/size"))?
            .strip_suffix('K')?
            .parse()
            .ok()
    }

    /// When it was booted.
    pub(crate) fn boot_time() -> Option<SystemTime> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let seconds = stat
            .lines()
            .find_map(|l| l.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// A field of the firmware's tables.
    pub(crate) fn dmi(field: &str) -> Option<String> {
        text(format!("/sys/class/dmi/id/{field}"))
    }

    /// The host's UUID: the firmware's, else the machine id, else one made of the host's name.
    pub(crate) fn uuid(name: &str) -> Uuid {
        let firmware = Self::dmi("product_uuid").and_then(|t| Uuid::parse_str(&t).ok());
        let usable = firmware.filter(|id| !id.is_nil() && !id.is_max());
        let machine = || {
            ["/etc/machine-id", "/var/lib/dbus/machine-id"]
                .into_iter()
                .find_map(text)
        };
        usable
            .or_else(|| machine().and_then(|t| Uuid::parse_str(&t).ok()))
            .unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()))
    }

    /// The distribution's name.
    pub(crate) fn distribution() -> String {
        let release = text("/etc/os-release").or_else(|| text("/usr/lib/os-release"));
        release
            .as_deref()
            .and_then(pretty_name)
            .unwrap_or_else(|| "Linux".to_owned())
    }

    /// The kernel's release.
    pub(crate) fn kernel() -> String {
        rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned()
    }

    /// Processes.
    pub(crate) fn processes() -> Option<u32> {
        let list = std::fs::read_dir("/proc").ok()?;
        let numbers = list.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
        u32::try_from(numbers.count()).ok()
    }
}

fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn pretty_name(release: &str) -> Option<String> {
    let value = release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

fn packages(cpuinfo: &str) -> Vec<Package> {
    let mut out: Vec<Package> = Vec::new();
    for block in cpuinfo.split("\n\n") {
        let field = |name: &str| {
            let pairs = block.lines().filter_map(|l| l.split_once(':'));
            pairs
                .into_iter()
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
        };
        if field("processor").is_none() {
            continue;
        }
        let id = field("physical id").unwrap_or_else(|| "0".to_owned());
        if let Some(known) = out.iter_mut().find(|p| p.id == id) {
            known.threads += 1;
            continue;
        }
        out.push(Package {
            id,
            model: field("model name").unwrap_or_default(),
            vendor: field("vendor_id").unwrap_or_default(),
            cores: field("cpu cores").and_then(|t| t.parse().ok()).unwrap_or(0),
            threads: 1,
            mhz: field("cpu MHz").and_then(|t| t.split('.').next()?.parse().ok()),
            family: field("cpu family").and_then(|t| t.parse().ok()),
            model_number: field("model").and_then(|t| t.parse().ok()),
            stepping: field("stepping"),
        });
    }
    for package in &mut out {
        // Where the kernel does not tell cores, each logical processor counts as one.
        if package.cores == 0 || package.cores > package.threads {
            package.cores = package.threads;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.00GHz\nstepping\t: 7\ncpu MHz\t\t: 2000.123\nphysical id\t: 0\ncpu cores\t: 1\n\nprocessor\t: 1\nphysical id\t: 0\ncpu cores\t: 1\n\nprocessor\t: 2\nphysical id\t: 1\ncpu cores\t: 1\n";

    #[test]
    fn packages_count_their_cores_and_threads() {
        let found = packages(TWO);
        let shape: Vec<_> = found
            .iter()
            .map(|p| (p.id.as_str(), p.cores, p.threads))
            .collect();
        assert_eq!(shape, [("0", 1, 2), ("1", 1, 1)]);
        assert_eq!(found.first().and_then(|p| p.mhz), Some(2000));
        assert_eq!(found.first().and_then(|p| p.model_number), Some(85));
        let bare = packages("processor\t: 0\nBogoMIPS\t: 50\n\nprocessor\t: 1\n");
        assert_eq!(
            bare.iter()
                .map(|p| (p.cores, p.threads))
                .collect::<Vec<_>>(),
            [(2, 2)]
        );
        assert!(packages("").is_empty());
    }

    #[test]
    fn lines_of_proc_and_os_release_are_read() {
        assert_eq!(
            meminfo("MemTotal:       1024 kB\nMemFree: 5 kB\n", "MemFree"),
            Some(5)
        );
        assert_eq!(meminfo("MemTotal: x kB\n", "MemTotal"), None);
        assert_eq!(
            pretty_name("ID=debian\nPRETTY_NAME=\"Debian 12\"\n").as_deref(),
            Some("Debian 12")
        );
        assert_eq!(pretty_name("ID=x\n"), None);
    }

    #[test]
    fn a_host_always_has_a_uuid_and_a_processor() {
        assert!(!Host::uuid("h").is_nil());
        assert_eq!(Host::uuid("h"), Host::uuid("h"));
        assert!(
            Host::packages()
                .iter()
                .all(|p| p.cores > 0 && p.threads > 0)
        );
    }
}

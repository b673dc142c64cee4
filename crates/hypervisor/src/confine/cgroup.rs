//! What a machine's QEMU may take of the host: a control group of its own (version 2).
//!
//! The groups lie beside those of the init system, not in the service's own: ending the service must not end the guests. Where groups
//! cannot be had (version 1, a container without its own) that is said once, and machines run without.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::config::{DriveKind, MachineConfig};

const MOUNT: &str = "/sys/fs/cgroup";
const OURS: &str = "kvmms";
const NEEDED: [&str; 2] = ["memory", "pids"];

/// What QEMU itself needs beside the guest's memory; 45 to 250 MiB were seen.
const OWN_MIB: u64 = 512;
/// For each processor of the guest, and for the screen.
const PROCESSOR_MIB: u64 = 2;
const SCREEN_MIB: u64 = 64;
/// Threads of QEMU itself, and of each disk.
const THREADS: usize = 512;
const DISK_THREADS: usize = 64;

/// The group of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    dir: PathBuf,
    memory_mib: u64,
}

/// The most that a machine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Most {
    memory_mib: u64,
    threads: usize,
}

impl Most {
    fn of(config: &MachineConfig) -> Self {
        let disks = config
            .drives
            .iter()
            .filter(|drive| drive.kind == DriveKind::Disk);
        let own = OWN_MIB + SCREEN_MIB + PROCESSOR_MIB * u64::from(config.vcpus);
        Self {
            memory_mib: config.memory_mib + own,
            threads: THREADS + DISK_THREADS * disks.count(),
        }
    }
}

/// Makes the group of a machine that is about to start, and what its process writes itself into. `None`: this host has no groups for us.
pub(crate) fn prepare(config: &MachineConfig) -> Option<(Group, File)> {
    static PARENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let parent = PARENT.get_or_init(|| match parent(Path::new(MOUNT)) {
        Ok(parent) => Some(parent),
        Err(error) => {
            tracing::info!(%error, "machines run without limits of memory and threads: this host has no control groups (version 2) for them");
            None
        }
    });
    let made = make(parent.as_ref()?, config);
    made.inspect_err(|error| {
        tracing::warn!(machine = %config.id, %error, "the machine runs without limits of memory and threads");
    })
    .ok()
}

/// Our directory, with controllers for what lies in it.
fn parent(mount: &Path) -> Result<PathBuf> {
    let offered = std::fs::read_to_string(mount.join("cgroup.controllers"))?;
    if let Some(missing) = NEEDED
        .iter()
        .find(|name| !offered.split_whitespace().any(|o| o == **name))
    {
        return Err(Error::other(format!(
            "{} does not offer {missing}",
            mount.display()
        )));
    }
    let ours = mount.join(OURS);
    hand_down(mount)?;
    if !ours.is_dir() {
        std::fs::create_dir(&ours)?;
    }
    hand_down(&ours)?;
    Ok(ours)
}

fn hand_down(dir: &Path) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let now = std::fs::read_to_string(&file)?;
    let missing = NEEDED
        .iter()
        .filter(|name| !now.split_whitespace().any(|n| n == **name));
    let wanted: Vec<String> = missing.map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    std::fs::write(&file, wanted.join(" "))
}

fn make(parent: &Path, config: &MachineConfig) -> Result<(Group, File)> {
    let most = Most::of(config);
    let dir = parent.join(config.id.to_string());
    // Left by a process that is gone; one with members stays, and so do its limits.
    match std::fs::remove_dir(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir(&dir)?;
    let set = |name: &str, value: String| std::fs::write(dir.join(name), value);
    set("memory.max", (most.memory_mib << 20).to_string())?;
    set("pids.max", most.threads.to_string())?;
    // Half a machine is none.
    set("memory.oom.group", "1".into())?;
    let procs = OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.procs"))?;
    let group = Group {
        dir,
        memory_mib: most.memory_mib,
    };
    Ok((group, procs))
}

impl Group {
    /// The group of a machine that runs already.
    pub(crate) fn of_running(config: &MachineConfig) -> Option<Self> {
        let dir = Path::new(MOUNT).join(OURS).join(config.id.to_string());
        let memory_mib = Most::of(config).memory_mib;
        dir.is_dir().then_some(Self { dir, memory_mib })
    }

    /// The process has ended: the group goes. Tells where the host ended it for want of memory.
    pub(crate) fn end(&self) {
        let events = std::fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        if killed(&events) {
            tracing::error!(
                group = %self.dir.display(),
                "the host ended the machine's QEMU because it took more than {} MiB of memory",
                self.memory_mib
            );
        }
        match std::fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(group = %self.dir.display(), %error, "the machine's control group stays until its next start");
            }
            _ => {}
        }
    }
}

fn killed(events: &str) -> bool {
    let count = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|n| n.trim().parse::<u64>().ok())
        .is_some_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::config::Generation;

    fn config() -> MachineConfig {
        MachineConfig::new(Uuid::from_u128(7), "one", Generation::Gen1, "/run/k/7")
    }

    #[test]
    fn a_machine_may_take_its_memory_and_what_qemu_needs() {
        let mut config = config();
        (config.memory_mib, config.vcpus) = (1024, 4);
        let most = Most::of(&config);
        assert_eq!((most.memory_mib, most.threads), (1024 + 512 + 64 + 8, 512));
    }

    #[test]
    fn controllers_are_handed_down_and_a_host_without_them_is_told() {
        let mount = tempfile::tempdir().unwrap();
        assert!(parent(mount.path()).is_err(), "no cgroup here");
        let write = |name: &str, text: &str| std::fs::write(mount.path().join(name), text).unwrap();
        write("cgroup.controllers", "cpu memory\n");
        write("cgroup.subtree_control", "memory\n");
        let error = parent(mount.path()).unwrap_err();
        assert!(error.to_string().contains("does not offer pids"), "{error}");
        write("cgroup.controllers", "cpu memory pids\n");
        std::fs::create_dir(mount.path().join(OURS)).unwrap();
        write("kvmms/cgroup.subtree_control", "");
        let ours = parent(mount.path()).unwrap();
        let handed =
            |dir: &Path| std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
        assert_eq!(
            (handed(mount.path()).as_str(), handed(&ours).as_str()),
            ("+pids", "+memory +pids")
        );
    }

    #[test]
    fn a_group_has_the_limits_of_its_machine() {
        let parent = tempfile::tempdir().unwrap();
        let mut config = config();
        (config.memory_mib, config.vcpus) = (1024, 4);
        // A plain directory lacks the file that takes processes, which is asked for last.
        let Err(error) = make(parent.path(), &config) else {
            panic!("no cgroup here");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        let dir = parent.path().join(config.id.to_string());
        let told = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(told("memory.max"), (1608u64 << 20).to_string());
        assert_eq!(told("pids.max"), "512");
        assert_eq!(told("memory.oom.group"), "1");
    }

    #[test]
    fn a_kill_for_memory_is_seen() {
        assert!(killed("low 0\noom 1\noom_kill 1\noom_group_kill 1\n"));
        assert!(!killed("low 0\noom_kill 0\n") && !killed(""));
    }
}

//! Facts of the host that decide what becomes of guests: room on a file system, which boot this is, and whether the
//! kernel ended a process because memory ran out.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Which file system: its device number.
    pub device: u64,
    /// Bytes that can still be written by others than root.
    pub free: u64,
    /// Bytes it has in all.
    pub size: u64,
}

/// The room where `path` lies. `None` where that says nothing: a device, or a path that cannot be looked at.
#[must_use]
pub fn room(path: &Path) -> Option<Room> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() && !metadata.is_dir() {
        return None;
    }
    let found = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Room {
        device: metadata.dev(),
        free: bytes(found.f_bavail),
        size: bytes(found.f_blocks),
    })
}

/// The kernel's name of the time since the host booted; empty where it tells none.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// How long the host has been up. It goes on whatever happens to the clock.
#[must_use]
pub fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|t| t.parse().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default()
}

/// Whether the kernel ended a process because memory ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfMemory {
    /// It ended none meanwhile.
    No,
    /// Its log names this one.
    Yes,
    /// It ended some meanwhile; its log cannot be read, or no longer tells which.
    Maybe,
}

/// How often the kernel has ended a process for memory, when a process of ours began to be watched.
#[derive(Debug, Clone, Copy)]
pub struct OomCount(Option<u64>);

impl OomCount {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
        Self(oom_kills(&text))
    }

    /// Whether a process that has ended since was ended for memory.
    #[must_use]
    pub fn verdict(self, pid: i32) -> OutOfMemory {
        let Self(Some(now)) = Self::now() else {
            return OutOfMemory::Maybe;
        };
        if self.0 == Some(now) {
            return OutOfMemory::No;
        }
        match kernel_log() {
            Some(log) if names_victim(&log, pid) => OutOfMemory::Yes,
            _ => OutOfMemory::Maybe,
        }
    }
}

fn oom_kills(vmstat: &str) -> Option<u64> {
    let line = vmstat.lines().find_map(|l| l.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

fn names_victim(log: &str, pid: i32) -> bool {
    let killed = format!("Killed process {pid} ");
    log.lines().any(|line| line.contains(&killed))
}

/// What the kernel still has of its log, where we may read it.
fn kernel_log() -> Option<String> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open("/dev/kmsg")
        .ok()?;
    let mut log = String::new();
    // One record for each read; a record that was overwritten meanwhile is an error and the next read goes on.
    let mut record = [0; 8192];
    for _ in 0..200_000 {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(n) => {
                let text = String::from_utf8_lossy(record.get(..n).unwrap_or_default());
                if text.contains("Killed process") {
                    log.push_str(&text);
                }
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(_) => break,
        }
    }
    Some(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_victim_is_known_by_its_whole_pid() {
        let log = "4,1,2,-;Out of memory: Killed process 4711 (qemu-system-x86) total-vm:1kB\n";
        assert!(names_victim(log, 4711));
        assert!(!names_victim(log, 471));
        assert!(!names_victim(log, 47110));
    }

    #[test]
    fn the_kernel_counts_its_victims() {
        assert_eq!(oom_kills("nr_free 1\noom_kill 3\nx 4\n"), Some(3));
        assert_eq!(oom_kills("nr_free 1\n"), None);
    }

    #[test]
    fn a_process_that_ended_while_no_victim_was_counted_was_none() {
        assert!(matches!(
            OomCount::now().verdict(1),
            OutOfMemory::No | OutOfMemory::Maybe
        ));
    }

    #[test]
    fn files_and_directories_tell_their_room_and_devices_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let found = room(dir.path()).unwrap();
        assert!(found.size >= found.free && found.size > 0);
        assert_eq!(room(Path::new("/dev/null")), None);
        assert_eq!(room(&dir.path().join("missing")), None);
    }

    #[test]
    fn the_boot_has_a_name_and_an_age() {
        assert_eq!(boot_id().len(), 36);
        assert!(uptime() > Duration::ZERO);
    }
}

//! Whether the file systems of the disks will hold what guests write: warned of before it is too late.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hypervisor::ImageFormat;
use hypervisor::host::Room;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Power, Vm, health};
use crate::Vmms;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// How far back growth is looked at, and the least time that says anything.
const WINDOW: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(60));

/// What tells the room where a path lies.
type Look = Arc<dyn Fn(&Path) -> Option<Room> + Send + Sync>;

/// How room is looked at, and when too little of it is warned of.
#[derive(Clone)]
pub struct RoomOptions {
    /// Warned is where the growth of the last minutes fills the file system within this time.
    pub warn_ahead: Duration,
    /// And where less than this is free, in bytes; of small file systems a twentieth.
    pub warn_below: u64,
    /// What tells the room: the host, or a test.
    pub look: Look,
}

impl Default for RoomOptions {
    fn default() -> Self {
        RoomOptions {
            warn_ahead: Duration::from_secs(3600),
            warn_below: 1 << 30,
            look: Arc::new(hypervisor::host::room),
        }
    }
}

impl fmt::Debug for RoomOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomOptions")
            .field("warn_ahead", &self.warn_ahead)
            .field("warn_below", &self.warn_below)
            .finish_non_exhaustive()
    }
}

/// What was seen of the file systems.
#[derive(Default)]
pub(crate) struct Rooms {
    seen: Mutex<Seen>,
    busy: AtomicBool,
}

#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    free: BTreeMap<u64, VecDeque<(Instant, u64)>>,
    warnings: BTreeMap<Uuid, String>,
}

impl Rooms {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed: what was seen last counts no more.
    pub(crate) fn look_soon(&self) {
        self.seen().last = None;
    }

    /// What threatens a machine.
    pub(crate) fn warning(&self, vm: Uuid) -> Option<String> {
        self.seen().warnings.get(&vm).cloned()
    }
}

/// Comes round. A file system that does not answer stops nothing but the looking itself.
pub(super) fn look_around(vmms: &Arc<Vmms>) {
    if vmms.rooms.busy.swap(true, Ordering::AcqRel) {
        return;
    }
    let vmms = Arc::clone(vmms);
    tokio::task::spawn_blocking(move || {
        look(&vmms);
        health::look_again(&vmms);
        vmms.rooms.busy.store(false, Ordering::Release);
    });
}

/// Looks at the room where running machines write.
fn look(vmms: &Vmms) {
    let now = Instant::now();
    {
        let mut seen = vmms.rooms.seen();
        if seen.last.is_some_and(|at| now.duration_since(at) < LOOK) {
            return;
        }
        seen.last = Some(now);
    }
    let mut rooms: BTreeMap<u64, Room> = BTreeMap::new();
    let mut places: Vec<(Uuid, String, u64)> = Vec::new();
    for record in vmms.db.all::<Vm>() {
        if record.power != Power::Running {
            continue;
        }
        for (_, disk) in record.disks().filter(|(_, disk)| !disk.read_only) {
            let chain = disk.layers.active_chain();
            let Some(top) = chain.last().filter(|top| may_grow(top.format, &top.path)) else {
                continue;
            };
            if let Some(room) = health::room_of(vmms, &top.path) {
                rooms.insert(room.device, room);
                let dir = top.path.parent().unwrap_or(&top.path);
                places.push((record.id, dir.display().to_string(), room.device));
            }
        }
    }
    let mut seen = vmms.rooms.seen();
    seen.free.retain(|device, _| rooms.contains_key(device));
    let mut threats: BTreeMap<u64, String> = BTreeMap::new();
    for (device, room) in rooms {
        let samples = seen.free.entry(device).or_default();
        samples.push_back((now, room.free));
        while samples
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW.0)
        {
            samples.pop_front();
        }
        threats.extend(threat(samples, room, &vmms.options.room).map(|t| (device, t)));
    }
    let mut warnings = BTreeMap::new();
    for (vm, dir, device) in places {
        if let Some(threat) = threats.get(&device) {
            warnings.entry(vm).or_insert_with(|| {
                format!(
                    "The file system of {dir} {threat}; the guest will stand still when it is full"
                )
            });
        }
    }
    let before = std::mem::replace(&mut seen.warnings, warnings.clone());
    drop(seen);
    for (vm, warning) in &warnings {
        if !before.contains_key(vm) {
            tracing::warn!(vm = %crate::guid(*vm), "{warning}");
        }
    }
    for vm in before.keys().filter(|vm| !warnings.contains_key(vm)) {
        tracing::info!(vm = %crate::guid(*vm), "the file systems of its disks have room again");
    }
}

/// Whether writing to a layer can take room: a raw image that is allocated whole cannot grow.
fn may_grow(format: ImageFormat, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    if format != ImageFormat::Raw {
        return true;
    }
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.blocks() * 512 < m.len())
}

fn threat(samples: &VecDeque<(Instant, u64)>, room: Room, options: &RoomOptions) -> Option<String> {
    let free = amount(room.free);
    if room.free < options.warn_below.min(room.size / 20) {
        return Some(format!("has {free} left"));
    }
    let (then, before) = *samples.front()?;
    let (now, _) = *samples.back()?;
    let time = now.duration_since(then);
    let grown = before.saturating_sub(room.free);
    if time < WINDOW.1 || grown == 0 {
        return None;
    }
    // Both far below 2^52: exact enough.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let seconds = time.as_secs_f64() * room.free as f64 / grown as f64;
    if seconds > options.warn_ahead.as_secs_f64() {
        return None;
    }
    let minutes = Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .as_secs()
        / 60;
    Some(format!(
        "has {free} left and will be full in about {minutes} minutes at the pace of the last {} minutes",
        time.as_secs().div_ceil(60)
    ))
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn told(samples: &[(u64, u64)], size: u64) -> Option<String> {
        let start = Instant::now();
        let samples: VecDeque<_> = samples
            .iter()
            .map(|(at, free)| (start + Duration::from_secs(*at), *free))
            .collect();
        let free = samples.back().map_or(0, |(_, free)| *free);
        let room = Room {
            device: 1,
            free,
            size,
        };
        threat(&samples, room, &RoomOptions::default())
    }

    #[test]
    fn growth_that_will_fill_the_file_system_within_the_hour_is_warned_of() {
        let warned = told(&[(0, 100 * GIB), (300, 80 * GIB)], 1000 * GIB).unwrap();
        assert_eq!(
            warned,
            "has 80.0 GiB left and will be full in about 20 minutes at the pace of the last 5 minutes"
        );
        assert_eq!(told(&[(0, 100 * GIB), (300, 99 * GIB)], 1000 * GIB), None);
        assert_eq!(told(&[(0, 80 * GIB), (300, 100 * GIB)], 1000 * GIB), None);
    }

    #[test]
    fn a_moment_of_growth_says_nothing() {
        assert_eq!(told(&[(0, 100 * GIB), (30, 80 * GIB)], 1000 * GIB), None);
        assert_eq!(told(&[(0, 100 * GIB)], 1000 * GIB), None);
    }

    #[test]
    fn little_room_is_warned_of_whatever_the_growth() {
        assert_eq!(
            told(&[(0, GIB / 2)], 1000 * GIB).as_deref(),
            Some("has 512 MiB left")
        );
        // A small file system is not short of room because it is small.
        assert_eq!(told(&[(0, GIB / 2)], GIB), None);
        assert!(told(&[(0, GIB / 64)], GIB).is_some());
    }
}

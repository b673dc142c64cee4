//! The user each machine's QEMU runs as: a number that no other machine has had or will have.
//!
//! A number is given at the first start and stays, also after the machine is gone: files could still name it. So records of this kind are
//! never deleted, and the highest is written beside the database as well: an older copy of the database, put back, hands out no number
//! that is taken.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use hypervisor::confine::{Level, process_of};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Fault, Result, Vmms, fault};

/// Numbers a range may have at most, and has unless configured.
const COUNT: u32 = 65_536;
/// The first number unless configured: no distribution, name service or container manager hands out any around it.
const FIRST: u32 = 2_080_000_000;

/// How QEMU is shut in on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// How far.
    pub level: Level,
    /// The first number of the users of machines.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// Why it is less than what was asked for.
    pub problem: Option<String>,
}

impl Default for Confinement {
    fn default() -> Self {
        Confinement {
            level: Level::Off,
            first: FIRST,
            count: COUNT,
            problem: None,
        }
    }
}

/// The user of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineUser {
    /// The machine.
    pub id: Uuid,
    /// Its number, as uid and gid.
    pub user: u32,
}

impl store::Versioned for MachineUser {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

/// The user that the machine's QEMU runs as; `None`: the service's own.
pub(crate) async fn of(vmms: &Vmms, machine: Uuid) -> Result<Option<u32>> {
    // A number is out of the file before its record is written, so no two may be on their way at once.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let confinement = &vmms.options.confinement;
    if confinement.level != Level::Full {
        return Ok(None);
    }
    let _turn = TURN.lock().await;
    // The machine does not run: a process of its user is another service's on this host, whose counter is not ours.
    if let Ok(known) = vmms.db.get::<MachineUser>(machine)
        && process_of(known.user).is_none()
    {
        return Ok(Some(known.user));
    }
    let given = vmms.db.all::<MachineUser>();
    let past = given.iter().map(|known| known.user + 1).max();
    let file = vmms.dirs.state.join("machine-users");
    let range = confinement.first..confinement.first.saturating_add(confinement.count);
    let mut user = confinement.first.max(past.unwrap_or(0)).max(noted(&file)?);
    // Two services that start their first machine side by side.
    let mut shared = Shared::open();
    let elsewhere = shared.as_mut().map_or(0, Shared::next);
    if range.contains(&elsewhere) {
        user = user.max(elsewhere);
    }
    while range.contains(&user) && process_of(user).is_some() {
        user += 1;
    }
    if !range.contains(&user) {
        return Err(fault!(MachineUsersSpent, range.start, range.end - 1));
    }
    if let Some(shared) = &mut shared {
        shared.set(user + 1);
    }
    note(&file, user + 1)?;
    vmms.db
        .change(|draft| {
            draft.put(MachineUser { id: machine, user });
            Ok(())
        })
        .await?;
    Ok(Some(user))
}

/// A counter that all services of a host share until it is switched off. It only keeps them apart: what is given to whom is the
/// database's. Where it cannot be had, they do without.
struct Shared {
    file: std::fs::File,
}

impl Shared {
    const PATH: &str = "/run/kvmms-machine-users";

    fn open() -> Option<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
        let file = options.open(Self::PATH).ok()?;
        file.lock().ok()?;
        Some(Shared { file })
    }

    fn next(&mut self) -> u32 {
        use std::io::Read as _;
        let mut text = String::new();
        let read = (&self.file).take(32).read_to_string(&mut text);
        read.ok()
            .and_then(|_| text.trim().parse().ok())
            .unwrap_or(0)
    }

    fn set(&mut self, next: u32) {
        use std::io::Seek as _;
        let mut write = || {
            self.file.rewind()?;
            self.file.set_len(0)?;
            writeln!(self.file, "{next}")
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "{} could not be written", Self::PATH);
        }
    }
}

/// The next number as the file beside the database knows it.
fn noted(file: &Path) -> Result<u32> {
    match std::fs::read_to_string(file) {
        Ok(text) => {
            let number = text.trim().parse();
            number.map_err(|_| fault!(MachineUsersUnreadable, file.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Fault::io("read", file, &error)),
    }
}

fn note(file: &Path, next: u32) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let partial: PathBuf = file.with_extension("partial");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut written = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        writeln!(written, "{next}")?;
        written.sync_all()?;
        std::fs::rename(&partial, file)?;
        let dir = file.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|error| Fault::io("write", file, &error))
}

/// What this host allows of what was asked for.
pub(crate) async fn effective(mut wanted: Confinement) -> Result<Confinement> {
    if wanted.level != Level::Full {
        tracing::info!(level = wanted.level.word(), "confinement of QEMU");
        return Ok(wanted);
    }
    let last = wanted.first.saturating_add(wanted.count.saturating_sub(1));
    if let Some(why) = taken(wanted.first, last) {
        return Err(fault!(MachineUserTaken, wanted.first, last, why));
    }
    match hypervisor::confine::can_change_user(last).await {
        Ok(()) => {
            tracing::info!(
                first = wanted.first,
                last,
                "QEMU runs confined, each machine as a user of its own"
            );
        }
        Err(why) => {
            tracing::warn!(%why, "QEMU runs as the service's own user, in its sandbox only");
            wanted.level = Level::Sandbox;
            wanted.problem = Some(why);
        }
    }
    Ok(wanted)
}

/// Who on this host has one of these numbers already.
fn taken(first: u32, last: u32) -> Option<String> {
    let lines = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let within = |from: u32, to: u32| from <= last && to >= first;
    for (file, field) in [("/etc/passwd", 2), ("/etc/group", 2)] {
        for line in lines(file).lines() {
            let number = line.split(':').nth(field).and_then(|n| n.parse().ok());
            if number.is_some_and(|n| within(n, n)) {
                let name = line.split(':').next().unwrap_or_default();
                return Some(format!("{file} gives one to {name}"));
            }
        }
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        for line in lines(file).lines() {
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            let mut number = || fields.next().and_then(|n| n.parse::<u32>().ok());
            if let (Some(from), Some(count)) = (number(), number())
                && count > 0
                && within(from, from.saturating_add(count - 1))
            {
                return Some(format!("{file} gives some to {name}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_number_is_kept_beside_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("machine-users");
        assert_eq!(noted(&file).unwrap(), 0);
        note(&file, FIRST + 3).unwrap();
        assert_eq!(noted(&file).unwrap(), FIRST + 3);
        std::fs::write(&file, "x").unwrap();
        assert_eq!(
            noted(&file).unwrap_err().message,
            crate::Message::MachineUsersUnreadable
        );
    }

    #[test]
    fn numbers_that_the_host_gives_to_others_are_told() {
        assert_eq!(
            taken(0, 0).as_deref(),
            Some("/etc/passwd gives one to root")
        );
        assert_eq!(taken(FIRST, FIRST + COUNT - 1), None);
    }
}

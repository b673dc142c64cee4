//! The user of one machine: who it is, and what it may open.

use std::path::Path;

use rustix::fs::Mode;
use rustix::process::Gid;

use crate::config::{DriveConfig, DriveKind, MachineConfig};
use crate::confine::cgroup::Group;
use crate::confine::grants::{self, Access, Grants};
use crate::confine::steps::User;
use crate::error::{Error, Result};
use crate::probe::Features;
use crate::process::Process;

const KVM: &str = "/dev/kvm";

/// What a running process holds of the host, until it ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// Its files.
    pub(super) grants: Option<Grants>,
    /// Its limits.
    pub(super) group: Option<Group>,
}

/// Prepares the user of a machine that is about to start: its drives and its kernel are opened to it.
pub(super) fn open(
    config: &MachineConfig,
    features: &Features,
) -> Result<(Option<User>, Option<Grants>)> {
    let confinement = &config.confinement;
    let (Some(id), Some(journal)) = (confinement.user, &confinement.journal) else {
        return Ok((None, None));
    };
    if id == 0 {
        return Err(Error::config(
            "a machine has a user of its own, which is not root",
        ));
    }
    let groups = match features.use_kvm(config.acceleration)? {
        true => group_of_kvm()?.into_iter().collect(),
        false => Vec::new(),
    };
    if let Some(pid) = crate::confine::process_of(id) {
        return Err(Error::conflict(format!(
            "process {pid} runs as user {id}, which is this machine's alone: end it first"
        )));
    }
    let grants = Grants::begin(id, journal)?;
    let drives = config.drives.iter().flat_map(files_of);
    let kernel = config.direct_kernel.iter();
    let kernel = kernel.flat_map(|direct| std::iter::once(&direct.kernel).chain(&direct.initrd));
    let kernel = kernel.map(|path| (path.as_path(), Access::Read));
    if let Err(error) = grants.grant(drives.chain(kernel)) {
        let grants = Some(grants);
        ended(&Held {
            grants,
            group: None,
        });
        return Err(error);
    }
    Ok((Some(User { id, groups }), Some(grants)))
}

/// What a process holds that runs already; it may be one of a version that knew of nothing of this.
pub(super) fn of_running(config: &MachineConfig, process: &Process) -> Held {
    let other = |user: &u32| *user != 0 && *user != rustix::process::geteuid().as_raw();
    let user = process.user().filter(other);
    let journal = config.confinement.journal.as_ref();
    Held {
        grants: user
            .zip(journal)
            .map(|(user, journal)| Grants::adopt(user, journal)),
        group: Group::of_running(config),
    }
}

/// The files of a drive: what lies beneath the topmost layer is only read.
pub(super) fn files_of(drive: &DriveConfig) -> impl Iterator<Item = (&Path, Access)> {
    let writable = drive.kind == DriveKind::Disk && !drive.read_only;
    let top = drive.chain.len();
    drive.chain.iter().enumerate().map(move |(place, layer)| {
        let access = match writable && place + 1 == top {
            true => Access::Write,
            false => Access::Read,
        };
        (layer.path.as_path(), access)
    })
}

/// The process is gone: its user may open nothing any more. What could not be taken back is tried again at the next start.
pub(super) fn ended(held: &Held) {
    if let Some(group) = &held.group {
        group.end();
    }
    if let Some(grants) = &held.grants
        && let Err(error) = grants.end()
    {
        tracing::warn!(%error, "what a machine was allowed to open is not all taken back");
    }
}

/// There is no process: what an earlier one left is taken back.
pub(super) fn left(config: &MachineConfig) -> Result<()> {
    match &config.confinement.journal {
        Some(journal) => grants::end_left(journal),
        None => Ok(()),
    }
}

/// The group that may use KVM; none where everybody may.
fn group_of_kvm() -> Result<Option<Gid>> {
    let stat = rustix::fs::stat(KVM).map_err(|errno| Error::io("read", KVM, errno.into()))?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.contains(Mode::ROTH | Mode::WOTH) {
        return Ok(None);
    }
    if mode.contains(Mode::RGRP | Mode::WGRP) && stat.st_gid != 0 {
        return Ok(Some(Gid::from_raw(stat.st_gid)));
    }
    Err(Error::Unsupported {
        what: format!("{KVM} for an unprivileged QEMU: only root may use it"),
        remedy: format!(
            "give it to a group (chgrp kvm {KVM}; chmod 660 {KVM}), or set confinement = \"sandbox\""
        ),
    })
}

//! What a program may do that this service starts.
//!
//! ```text
//!  image tools ──> spawner (a thread that lives as long as the service) ──┐
//!                                                                         ├──> steps ──> fork, steps, exec
//!  QEMU ──────────────────────────────────────────────────────────────────┘
//! ```
//! `steps` are the system calls between fork and exec, made in the child itself. Programs that do the same (`setpriv`, `prlimit`,
//! `unshare`) were left aside: none of them looks whether the parent died before it asked to die with it, and each costs an exec.

//!
//! A machine's QEMU runs as a user of its own ([`crate::config::Confinement`]), who may open the machine's disks and nothing else by name:
//! `grants` puts that user on the access list (`acl`) of each file, found by a `walk` that nobody can lead astray. Sockets, logs and
//! saved memory are opened by the service and handed over.

use std::path::Path;
use std::process::Command;

use self::steps::{Steps, User};
use crate::error::Result;
use crate::names::RunFiles;
use crate::probe::find_program;
use crate::process::Process;

pub(crate) mod acl;
pub(crate) mod cgroup;
pub(crate) mod grants;
pub(crate) mod spawner;
pub(crate) mod steps;
pub(crate) mod walk;

/// How far QEMU is shut in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// A user of its own for each machine, no capability, the sandbox.
    Full,
    /// The service's own user, and the sandbox.
    Sandbox,
    /// Not at all.
    #[default]
    Off,
}

impl Level {
    /// All of them.
    pub const ALL: [Level; 3] = [Level::Full, Level::Sandbox, Level::Off];

    /// Its name in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::Sandbox => "sandbox",
            Level::Off => "off",
        }
    }
}

/// Takes back what the user of a machine that does not run may open still, because the service died before it could do so.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn settle(run_dir: &Path, journal: &Path) -> Result<()> {
    if journal.exists() && Process::find(&RunFiles::new(run_dir))?.is_none() {
        grants::end_left(journal)?;
    }
    Ok(())
}

/// A process of that user that lives.
#[must_use]
pub fn process_of(user: u32) -> Option<i32> {
    use std::os::unix::fs::MetadataExt as _;
    let processes = std::fs::read_dir("/proc").ok()?;
    let numbered = processes.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        Some((pid, entry.metadata().ok()?.uid()))
    });
    let mut of_user = numbered
        .filter(|(_, owner)| *owner == user)
        .map(|(pid, _)| pid);
    of_user.find(|pid| crate::process::lives(*pid))
}

/// Whether this process may start programs as that user; otherwise why not. It is tried.
///
/// # Errors
/// The reason, in words.
pub async fn can_change_user(user: u32) -> std::result::Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the service does not run as root".into());
    }
    let program = find_program("true".as_ref()).ok_or("there is no program `true` to try it")?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/");
    let steps = Steps {
        user: Some(User {
            id: user,
            groups: Vec::new(),
        }),
        no_new_privs: true,
        ..Steps::default()
    };
    let failed =
        |error: std::io::Error| format!("no program can be started as user {user}: {error}");
    let mut child = spawner::spawn(command, steps).await.map_err(failed)?;
    let status = child.wait().await.map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "a program started as user {user} failed ({status})"
        )),
    }
}

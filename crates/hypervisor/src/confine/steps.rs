//! The steps between fork and exec.
//!
//! A child of a process with threads may make system calls there and nothing else: no allocation, no lock, no output. So everything that
//! can be prepared is prepared before, in [`Steps`], and [`Steps::take`] is a list of system calls in the order that they need.

use std::fs::File;
use std::io::Result;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::io::{Errno, FdFlags};
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What a child does to itself before it becomes the program. The default is nothing.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// A session of its own: no signal of the service's terminal reaches it.
    pub(crate) session: bool,
    /// The `cgroup.procs` it writes itself into.
    pub(crate) cgroup: Option<File>,
    /// Gets its pid, before anything could go wrong and while nobody else has to be alive to write it.
    pub(crate) pid_file: Option<File>,
    /// Upper limits, soft and hard.
    pub(crate) limits: Vec<(Resource, u64)>,
    /// Descriptors that the program gets under the numbers they have here.
    pub(crate) keep: Vec<OwnedFd>,
    /// Who it becomes, without a single capability.
    pub(crate) user: Option<User>,
    /// Nothing it runs can gain what it has not.
    pub(crate) no_new_privs: bool,
    /// The kernel kills it when the **thread** that forks it ends.
    pub(crate) dies_with_parent: bool,
}

/// A user without a name: uid and gid are one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Both.
    pub(crate) id: u32,
    /// Its only further groups.
    pub(crate) groups: Vec<Gid>,
}

impl Steps {
    /// Has the command take these steps when it is started by this process.
    #[expect(
        unsafe_code,
        reason = "what a child gives up can only be given up between fork and exec"
    )]
    pub(crate) fn before(self, command: &mut Command) {
        use std::os::unix::process::CommandExt as _;
        let parent = rustix::process::getpid();
        // SAFETY: `take` makes system calls on numbers that were prepared; it neither allocates nor locks nor touches shared state.
        unsafe {
            command.pre_exec(move || self.take(parent));
        }
    }

    fn take(&self, parent: Pid) -> Result<()> {
        if self.session {
            rustix::process::setsid()?;
        }
        if let Some(cgroup) = &self.cgroup {
            rustix::io::write(cgroup, b"0")?;
        }
        if let Some(file) = &self.pid_file {
            let mut digits = [0; 12];
            rustix::io::write(file, decimal(rustix::process::getpid(), &mut digits))?;
        }
        for &(resource, most) in &self.limits {
            // A limit that is lower already stays: raising it needs a privilege.
            let now = rustix::process::getrlimit(resource);
            let limit = Rlimit {
                current: Some(now.current.map_or(most, |current| current.min(most))),
                maximum: Some(now.maximum.map_or(most, |maximum| maximum.min(most))),
            };
            rustix::process::setrlimit(resource, limit)?;
        }
        for kept in &self.keep {
            rustix::io::fcntl_setfd(kept, FdFlags::empty())?;
        }
        if let Some(user) = &self.user {
            user.become_it()?;
        }
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true)?;
        }
        // Last, since a change of user clears it.
        if self.dies_with_parent {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died just before that.
            if rustix::process::getppid() != Some(parent) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }
}

impl User {
    fn become_it(&self) -> Result<()> {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        rustix::thread::set_thread_groups(&self.groups)?;
        let gid = Gid::from_raw(self.id);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        // What could be had again by running a program; needs a capability itself, so before the change of user.
        for bit in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Past the last one of this kernel; or a service that may not, whose child cannot gain any either (no_new_privs).
                Err(Errno::INVAL | Errno::PERM) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let uid = Uid::from_raw(self.id);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let none = CapabilitySet::empty();
        let sets = CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        };
        rustix::thread::set_capabilities(None, sets)?;
        match rustix::thread::clear_ambient_capability_set() {
            // A kernel without ambient capabilities.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The pid as a line of text, without allocating.
fn decimal(pid: Pid, into: &mut [u8; 12]) -> &[u8] {
    let mut rest = pid.as_raw_nonzero().get().unsigned_abs();
    let mut at = into.len();
    for (place, byte) in into.iter_mut().enumerate().rev() {
        *byte = if place == 11 {
            b'\n'
        } else {
            let digit = (rest % 10) as u8;
            rest /= 10;
            b'0' + digit
        };
        at = place;
        if rest == 0 && place < 11 {
            break;
        }
    }
    into.get(at..).unwrap_or_default()
}

/// Leaves the host's network: what this thread starts from now on has none, not even a loopback.
#[expect(
    unsafe_code,
    reason = "rustix marks all of unshare unsafe for the sake of one flag"
)]
pub(crate) fn leave_network() -> Result<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only the table of descriptors is unsafe to leave (`FILES`); a network is a property of the thread like any other.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_written_as_a_line() {
        for number in [1, 7, 42, 4_194_304, i32::MAX] {
            let pid = Pid::from_raw(number).unwrap();
            assert_eq!(decimal(pid, &mut [0; 12]), format!("{number}\n").as_bytes());
        }
    }
}

//! The steps between fork and exec.
//!
//! A child of a process with threads may make system calls there and nothing else: no allocation, no lock, no output. So everything that
//! can be prepared is prepared before, in [`Steps`], and [`Steps::take`] is a list of system calls in the order that they need.

use std::io::Result;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal};

/// What a child does to itself before it becomes the program. The default is nothing.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// A session of its own: no signal of the service's terminal reaches it.
    pub(crate) session: bool,
    /// Upper limits, soft and hard.
    pub(crate) limits: Vec<(Resource, u64)>,
    /// Nothing it runs can gain what it has not.
    pub(crate) no_new_privs: bool,
    /// The kernel kills it when the **thread** that forks it ends.
    pub(crate) dies_with_parent: bool,
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
        for &(resource, most) in &self.limits {
            // A limit that is lower already stays: raising it needs a privilege.
            let now = rustix::process::getrlimit(resource);
            let limit = Rlimit {
                current: Some(now.current.map_or(most, |current| current.min(most))),
                maximum: Some(now.maximum.map_or(most, |maximum| maximum.min(most))),
            };
            rustix::process::setrlimit(resource, limit)?;
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

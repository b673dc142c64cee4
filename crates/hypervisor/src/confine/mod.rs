//! What a program may do that this service starts.
//!
//! ```text
//!  image tools ──> spawner (a thread that lives as long as the service) ──┐
//!                                                                         ├──> steps ──> fork, steps, exec
//!  QEMU ──────────────────────────────────────────────────────────────────┘
//! ```
//! [`steps`] are the system calls between fork and exec, made in the child itself. Programs that do the same (`setpriv`, `prlimit`,
//! `unshare`) were left aside: none of them looks whether the parent died before it asked to die with it, and each costs an exec.

pub(crate) mod spawner;
pub(crate) mod steps;

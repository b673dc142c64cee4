//! The room where an export goes to.

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this process may still use.
    pub available: u64,
    /// The whole file system.
    pub total: u64,
}

impl Space {
    pub(crate) fn of(stat: &rustix::fs::StatVfs) -> Self {
        Self {
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        }
    }
}

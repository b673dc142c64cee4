//! `kvmms snapshot`.

use clap::{Args, Subcommand, ValueEnum};

use super::Consistency;

/// Verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// List the snapshots of a machine, or of all
    #[command(visible_alias = "ls")]
    List {
        /// The machine
        #[arg(value_name = "VM")]
        vm: Option<String>,
    },
    /// Take a snapshot of a machine
    #[command(after_help = "\
Examples:
  kvmms snapshot create web
  kvmms snapshot create web --type disk --name before-update")]
    Create(CreateSnapshotArgs),
    /// Bring a machine that is off or saved back to a snapshot; what it is now is given up
    Apply {
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// Make a reference point of a recovery snapshot
    Convert {
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// Delete a snapshot; its layers are merged in the background
    #[command(visible_alias = "rm")]
    Delete {
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// With everything that descends from it
        #[arg(long)]
        tree: bool,
    },
}

/// The kinds of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SnapshotKind {
    /// Disks, settings, and the memory of a machine that is on
    Full,
    /// Disks and settings
    Disk,
    /// Disks and settings for the time of a backup; ends with `convert`
    Recovery,
}

/// Arguments of `snapshot create`.
#[derive(Debug, Args)]
pub(crate) struct CreateSnapshotArgs {
    /// The machine
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    /// The snapshot's name [default: the service's, with the time]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The kind of snapshot
    #[arg(long = "type", value_enum, default_value_t = SnapshotKind::Full)]
    pub(crate) kind: SnapshotKind,
    /// How consistent its disks have to be
    #[arg(long, value_enum, default_value_t = Consistency::Auto)]
    pub(crate) consistency: Consistency,
}

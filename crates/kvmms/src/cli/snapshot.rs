//! `kvmms snapshot`.

use std::path::PathBuf;

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
        /// A collection: its snapshots instead of a machine's
        #[arg(long, value_name = "GROUP", conflicts_with = "vm")]
        group: Option<String>,
    },
    /// Take a snapshot of a machine, or of a collection
    #[command(after_help = "\
Examples:
  kvmms snapshot create web
  kvmms snapshot create web --type disk --name before-update
  kvmms snapshot create --group shop --name before-update")]
    Create(CreateSnapshotArgs),
    /// Bring a machine that is off or saved back to a snapshot; what it is now is given up
    Apply {
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// The collection whose snapshot it is
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Make a reference point of a recovery snapshot
    Convert {
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// The collection whose snapshot it is
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Delete a snapshot; its layers are merged in the background
    #[command(visible_alias = "rm")]
    Delete {
        /// The snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// The collection whose snapshot it is
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// With everything that descends from it
        #[arg(long, conflicts_with = "group")]
        tree: bool,
    },
    /// Write a snapshot of a collection to a directory
    #[command(after_help = "\
Examples:
  kvmms snapshot export nightly --group shop --to /backup/shop
  kvmms snapshot export nightly --group shop --to /backup/shop --base last-night")]
    Export(ExportSnapshotArgs),
}

/// Arguments of `snapshot export`.
#[derive(Debug, Args)]
pub(crate) struct ExportSnapshotArgs {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) snapshot: String,
    /// The collection whose snapshot it is
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: String,
    /// The directory to export to, on the service's host; it is made where it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Only what changed since this older point or snapshot of the collection
    #[arg(long, value_name = "POINT")]
    pub(crate) base: Option<String>,
    /// Write whole disks although there is a base
    #[arg(long, requires = "base")]
    pub(crate) merge: bool,
    /// Leave the disks out
    #[arg(long)]
    pub(crate) without_disks: bool,
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
    #[arg(value_name = "VM", required_unless_present = "group")]
    pub(crate) vm: Option<String>,
    /// A collection: a snapshot of all its machines at one instant
    #[arg(long, value_name = "GROUP", conflicts_with = "vm")]
    pub(crate) group: Option<String>,
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

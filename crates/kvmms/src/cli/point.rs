//! `kvmms point` and `kvmms export`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Verbs of `point`.
#[derive(Debug, Subcommand)]
pub(crate) enum PointVerb {
    /// List the reference points of a machine, or of all
    #[command(visible_alias = "ls")]
    List {
        /// The machine
        #[arg(value_name = "VM")]
        vm: Option<String>,
        /// A collection: its points instead of a machine's
        #[arg(long, value_name = "GROUP", conflicts_with = "vm")]
        group: Option<String>,
    },
    /// Take a reference point of a machine, or of a collection
    #[command(after_help = "\
Examples:
  kvmms point create web
  kvmms point create web --name monday --consistency application
  kvmms point create --group shop --name monday")]
    Create(CreatePointArgs),
    /// Show a reference point
    Show {
        /// The point
        #[arg(value_name = "POINT")]
        point: String,
        /// The collection whose point it is
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Write the disks of a point to a directory: whole, or what changed since an older point
    #[command(after_help = "\
Examples:
  kvmms point export monday --to /backup/web
  kvmms point export tuesday --to /backup/web --base monday
  kvmms point export monday --group shop --to /backup/shop")]
    Export(ExportArgs),
    /// List the ranges of a disk that changed since a point
    #[command(after_help = "\
Examples:
  kvmms point changes web --since monday
  kvmms point changes web scsi:0:1 --since monday -o json")]
    Changes(ChangesArgs),
    /// Prove that the change map of a point missed nothing, by reading both instants
    #[command(after_help = "\
Examples:
  kvmms point audit tuesday
  kvmms point audit tuesday --base monday")]
    Audit {
        /// The point, whose content is still held
        #[arg(value_name = "POINT")]
        point: String,
        /// The older point [default: the newest one whose content is held or exported]
        #[arg(long, value_name = "POINT")]
        base: Option<String>,
    },
    /// Drop the data a log-based point keeps; the point stays as a base
    RemoveData {
        /// The point
        #[arg(value_name = "POINT")]
        point: String,
        /// The collection whose point it is
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Delete a point; its layers are merged in the background
    #[command(visible_alias = "rm")]
    Delete {
        /// The point
        #[arg(value_name = "POINT")]
        point: String,
        /// The collection whose point it is
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
}

/// The kinds of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PointKind {
    /// Keeps the map of changes; its content only until its first export or the end of its hold
    Rct,
    /// Keeps its content until `remove-data`
    Log,
}

/// How consistent a point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Consistency {
    /// Application where the guest's agent allows it, else crash
    Auto,
    /// The guest's file systems are frozen for the instant; fails without an agent
    Application,
    /// As after a power cut
    Crash,
}

/// Arguments of `point create`.
#[derive(Debug, Args)]
pub(crate) struct CreatePointArgs {
    /// The machine
    #[arg(value_name = "VM", required_unless_present = "group")]
    pub(crate) vm: Option<String>,
    /// A collection: a point of all its machines at one instant
    #[arg(long, value_name = "GROUP", conflicts_with = "vm")]
    pub(crate) group: Option<String>,
    /// The point's name [default: the service's, with the time]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The kind of point
    #[arg(long = "type", value_enum, default_value_t = PointKind::Rct)]
    pub(crate) kind: PointKind,
    /// How consistent it has to be
    #[arg(long, value_enum, default_value_t = Consistency::Auto)]
    pub(crate) consistency: Consistency,
}

/// Where to export to, and what.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The directory to export to, on the service's host; it is made where it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Only what changed since this older point of the machine
    #[arg(long, value_name = "POINT")]
    pub(crate) base: Option<String>,
    /// Only this disk: its path, its place (scsi:0:1) or its id; may be given several times
    #[arg(long = "disk", value_name = "DISK")]
    pub(crate) disks: Vec<String>,
}

/// Arguments of `point export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The point, or a machine for its newest one
    #[arg(value_name = "POINT|VM")]
    pub(crate) what: String,
    /// The collection whose point it is
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct QuickExportArgs {
    /// The machine
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Export the newest point there is instead of taking one
    #[arg(long, conflicts_with_all = ["name", "consistency", "kind"])]
    pub(crate) newest: bool,
    /// The new point's name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The kind of the new point
    #[arg(long = "type", value_enum, default_value_t = PointKind::Rct)]
    pub(crate) kind: PointKind,
    /// How consistent the new point has to be
    #[arg(long, value_enum, default_value_t = Consistency::Auto)]
    pub(crate) consistency: Consistency,
}

/// Arguments of `point changes`.
#[derive(Debug, Args)]
pub(crate) struct ChangesArgs {
    /// The machine
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    /// The disk: its path, its place (scsi:0:1) or its id; not needed where there is only one
    #[arg(value_name = "DISK")]
    pub(crate) disk: Option<String>,
    /// The point to compare with
    #[arg(long, value_name = "POINT")]
    pub(crate) since: String,
}

//! `kvmms disk`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::size::Size;

/// Verbs of `disk`.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskVerb {
    /// List the disks of a machine, or of all
    #[command(visible_alias = "ls")]
    List {
        /// The machine
        #[arg(value_name = "VM")]
        vm: Option<String>,
    },
    /// Make a virtual hard disk
    #[command(after_help = "\
Examples:
  kvmms disk create /images/data.qcow2 20G
  kvmms disk create /images/child.qcow2 --parent /images/base.qcow2
  kvmms disk create /images/old.vhd 5G --format vhd --fixed")]
    Create(CreateDiskArgs),
    /// Attach an image to a machine, with a drive made for it
    #[command(after_help = "\
A disk on SCSI can be attached while the machine runs; one on IDE when it is off.

Examples:
  kvmms disk attach web /images/data.qcow2")]
    Attach(AttachArgs),
    /// Take over layers that lie on an image and that the service does not know, as a disk of a machine
    #[command(after_help = "\
The layers are checked first: whole, in nobody's hands, each on the one before. Layers of another service are taken
only with --of-others; end that service first.

Examples:
  kvmms disk adopt-layers web /images/web.qcow2
  kvmms disk adopt-layers web /images/web.qcow2 --top /images/web.qcow2.kvmms-0e0f.qcow2")]
    AdoptLayers(AdoptArgs),
    /// Detach a disk from a machine; its file stays
    Detach {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
        /// The disk: its path, its place (scsi:0:1) or its id
        #[arg(value_name = "DISK")]
        disk: String,
    },
    /// Change the size of a disk
    #[command(after_help = "\
Examples:
  kvmms disk resize /images/data.qcow2 40G")]
    Resize {
        /// The image's path
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// The new size
        #[arg(value_name = "SIZE")]
        size: Size,
    },
    /// Show what an image is: true format, size, layers, warnings
    Show {
        /// The image's path
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Check that an image is sound
    Check {
        /// The image's path
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
}

/// The format of a new disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskFormat {
    /// The host's own: qcow2 on kvmms (raw where the path ends in .raw), VHDX on Hyper-V
    Native,
    /// VHD
    Vhd,
}

/// Arguments of `disk create`.
#[derive(Debug, Args)]
pub(crate) struct CreateDiskArgs {
    /// Where, on the service's host
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// How large; not needed with a parent
    #[arg(value_name = "SIZE", required_unless_present = "parent")]
    pub(crate) size: Option<Size>,
    /// Its format
    #[arg(long, value_enum, default_value_t = DiskFormat::Native)]
    pub(crate) format: DiskFormat,
    /// Take all space at once
    #[arg(long, conflicts_with = "parent")]
    pub(crate) fixed: bool,
    /// The image it differs from
    #[arg(long, value_name = "PATH")]
    pub(crate) parent: Option<PathBuf>,
}

/// A kind of controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bus {
    /// IDE (generation 1, machine off)
    Ide,
    /// SCSI
    Scsi,
}

/// Arguments of `disk adopt-layers`.
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// The machine, switched off
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    /// The image; a drive is made for it where the machine does not have it
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// The uppermost layer to take, where several lines of layers lie on the image
    #[arg(long, value_name = "FILE")]
    pub(crate) top: Option<PathBuf>,
    /// Take layers that belong to another state directory
    #[arg(long)]
    pub(crate) of_others: bool,
    /// What it is attached to
    #[arg(long, value_enum, default_value_t = Bus::Scsi)]
    pub(crate) bus: Bus,
}

/// Arguments of `disk attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The machine
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    /// The image's path, on the service's host
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// The kind of controller; one is added if there is none
    #[arg(long, value_enum, default_value_t = Bus::Scsi)]
    pub(crate) bus: Bus,
    /// The guest may only read it
    #[arg(long)]
    pub(crate) read_only: bool,
}

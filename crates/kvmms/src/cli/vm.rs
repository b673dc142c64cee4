//! `kvmms vm`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use crate::size::Size;

/// Verbs of `vm`.
#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// List the machines
    #[command(visible_alias = "ls")]
    List,
    /// Show a machine: state, settings, disks, points, jobs
    Show {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Define a machine
    #[command(after_help = "\
Disks get drives in the order they are given, existing ones first. Generation 1 fills the IDE
controllers (0/0 is what the machine boots from, then 0/1, 1/0, 1/1) and goes on with SCSI;
generation 2 uses SCSI only. If anything is refused, the machine is removed again.

Examples:
  kvmms vm create web --memory 512M --cpus 2 --disk /images/debian.qcow2 --nic
  kvmms vm create db --generation 2 --new-disk /images/db.qcow2:20G")]
    Create(CreateVmArgs),
    /// Change settings of a machine
    #[command(after_help = "\
Examples:
  kvmms vm set web --memory 1G --cpus 4
  kvmms vm set web --name www --autostart on")]
    Set(SetVmArgs),
    /// Start a machine; goes on where it was saved or paused
    Start {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Ask the guest to shut down
    Shutdown {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Switch a machine off, as if its plug were pulled
    Stop {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Stop the guest's processors; memory stays
    Pause {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Go on after a pause
    Resume {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Save memory to a file and switch off; `start` goes on from there
    Save {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Ask the guest to reboot
    Reboot {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Reset a machine hard
    Reset {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// Delete a machine with its points; the disks' files stay
    #[command(
        visible_alias = "rm",
        after_help = "\
A machine of which files are missing is deleted with --force only: its other disks stay whole, what is left of the broken
ones stays as it is.

Examples:
  kvmms vm delete web --dry-run
  kvmms vm delete web --force"
    )]
    Delete {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
        /// Switch it off first; give up disks of which files are missing, after saying what is lost
        #[arg(long)]
        force: bool,
        /// Say what --force would lose, and change nothing
        #[arg(long, conflicts_with = "force")]
        dry_run: bool,
    },
    /// Attach to the first serial port, or print what it has said (on the service's host only)
    #[command(after_help = "\
Ctrl-] leaves the console.

Examples:
  kvmms vm console web
  kvmms vm console web --log --lines 20")]
    Console {
        /// The machine
        #[arg(value_name = "VM")]
        vm: String,
        /// Print the log of the serial port instead of attaching; escapes are shown, not done
        #[arg(long)]
        log: bool,
        /// Only the last lines of the log
        #[arg(long, value_name = "N", requires = "log")]
        lines: Option<usize>,
        /// Go on printing what is added to the log
        #[arg(long, short, requires = "log")]
        follow: bool,
    },
}

/// The virtual hardware of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Generation {
    /// BIOS, IDE and SCSI
    #[value(name = "1")]
    First,
    /// UEFI, SCSI only
    #[value(name = "2")]
    Second,
}

impl Generation {
    /// As VirtualSystemSubType says it.
    pub(crate) fn sub_type(self) -> &'static str {
        match self {
            Generation::First => "Microsoft:Hyper-V:SubType:1",
            Generation::Second => "Microsoft:Hyper-V:SubType:2",
        }
    }
}

/// A disk to make: `PATH:SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewDisk {
    /// Where.
    pub(crate) path: PathBuf,
    /// How large.
    pub(crate) size: Size,
}

impl FromStr for NewDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, size) = text
            .rsplit_once(':')
            .filter(|(path, _)| !path.is_empty())
            .ok_or("PATH:SIZE was expected, as in /images/a.qcow2:10G")?;
        Ok(NewDisk {
            path: path.into(),
            size: size.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

/// Arguments of `vm create`.
#[derive(Debug, Args)]
pub(crate) struct CreateVmArgs {
    /// The machine's name
    pub(crate) name: String,
    /// Virtual hardware: 1 (BIOS) or 2 (UEFI)
    #[arg(long, value_enum, default_value_t = Generation::First)]
    pub(crate) generation: Generation,
    /// Memory [default: the host's default, 1G]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Number of processors [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: Option<u32>,
    /// Attach this image; may be given several times
    #[arg(long = "disk", value_name = "PATH")]
    pub(crate) disks: Vec<PathBuf>,
    /// Make a disk and attach it; may be given several times
    #[arg(long = "new-disk", value_name = "PATH:SIZE")]
    pub(crate) new_disks: Vec<NewDisk>,
    /// Add a network adapter, plugged into the host's switch where it has just one
    #[arg(long)]
    pub(crate) nic: bool,
    /// Free text
    #[arg(long, value_name = "TEXT")]
    pub(crate) notes: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// Arguments of `vm set`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct SetVmArgs {
    /// The machine
    #[arg(value_name = "VM", group = "which")]
    pub(crate) vm: String,
    /// A new name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Memory (the machine must be off)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Number of processors (the machine must be off)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: Option<u32>,
    /// Free text
    #[arg(long, value_name = "TEXT")]
    pub(crate) notes: Option<String>,
    /// Start it with the host
    #[arg(long, value_enum, value_name = "ON|OFF")]
    pub(crate) autostart: Option<Switch>,
}

impl SetVmArgs {
    /// Whether anything is to be changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.memory.is_none()
            && self.cpus.is_none()
            && self.notes.is_none()
            && self.autostart.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_disk_is_a_path_and_a_size() {
        let disk: NewDisk = "/a:b/c.qcow2:10G".parse().expect("a disk");
        assert_eq!(disk.path, PathBuf::from("/a:b/c.qcow2"));
        assert_eq!(disk.size, Size(10 << 30));
        for bad in ["/a", ":1G", "/a:", "/a:x"] {
            assert!(bad.parse::<NewDisk>().is_err(), "{bad}");
        }
    }
}

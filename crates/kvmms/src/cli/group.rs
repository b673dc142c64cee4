//! `kvmms group`.

use std::path::PathBuf;

use clap::Subcommand;

/// Verbs of `group`.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupVerb {
    /// List the collections
    #[command(visible_alias = "ls")]
    List,
    /// Show a collection, its members and its points
    Show {
        /// The collection
        #[arg(value_name = "GROUP")]
        group: String,
    },
    /// Make a collection of machines, or of collections
    #[command(after_help = "\
Examples:
  kvmms group create shop web db
  kvmms group create all --of-groups shop office")]
    Create {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// What it collects at first: machines, or with --of-groups collections
        #[arg(value_name = "MEMBER")]
        members: Vec<String>,
        /// Collect collections instead of machines
        #[arg(long)]
        of_groups: bool,
        /// Its GUID [default: a new one]
        #[arg(long, value_name = "GUID")]
        id: Option<String>,
    },
    /// Add machines to a collection of machines, or collections to one of collections
    Add {
        /// The collection
        #[arg(value_name = "GROUP")]
        group: String,
        /// The machines, or collections
        #[arg(value_name = "MEMBER", required = true)]
        members: Vec<String>,
    },
    /// Take members out; they stay, and so do their points
    Remove {
        /// The collection
        #[arg(value_name = "GROUP")]
        group: String,
        /// The machines, or collections
        #[arg(value_name = "MEMBER", required = true)]
        members: Vec<String>,
    },
    /// Give a collection another name
    Rename {
        /// The collection
        #[arg(value_name = "GROUP")]
        group: String,
        /// The new name
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Make machines, and a collection of them, of the exports of a collection's point: all or none
    #[command(after_help = "\
Examples:
  kvmms group import /backup/shop --name shop-restored
  kvmms group import /backup/shop --at monday --to /var/lib/images/shop")]
    Import {
        /// The directory of the exports (on the service's host)
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Which point: its GUID, the beginning of it, or its name [default: the newest there is]
        #[arg(long, value_name = "POINT")]
        at: Option<String>,
        /// The new collection's name [default: the exported one's]
        #[arg(long)]
        name: Option<String>,
        /// Where a directory for each machine's disks goes [default: a new directory under images in the service's
        /// state directory]
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        /// Take saved memory over, so that the machines go on where they were. QEMU runs what is in it: only for
        /// exports you trust
        #[arg(long)]
        with_memory: bool,
        /// Keep network addresses and automatic start: only where the exported machines are no more
        #[arg(long)]
        keep_identity: bool,
    },
    /// Delete a collection that has no points; its members stay
    #[command(visible_alias = "rm")]
    Delete {
        /// The collection
        #[arg(value_name = "GROUP")]
        group: String,
    },
}

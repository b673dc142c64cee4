//! `kvmms group`.

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
    /// Delete a collection that has no points; its members stay
    #[command(visible_alias = "rm")]
    Delete {
        /// The collection
        #[arg(value_name = "GROUP")]
        group: String,
    },
}

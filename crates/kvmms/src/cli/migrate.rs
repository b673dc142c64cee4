//! `kvmms migrate`, and the verbs of `kvmms host` about other hosts.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::size::Size;

/// Arguments of `migrate`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct MigrateArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<MigrateVerb>,
    /// The machine
    #[arg(value_name = "VM", required_unless_present = "group")]
    pub(crate) vm: Option<String>,
    /// All machines of a collection, one after the other
    #[arg(long, value_name = "GROUP", conflicts_with = "vm")]
    pub(crate) group: Option<String>,
    /// The host to go to, as its trust was given a name [default: none, only the storage moves]
    #[arg(long, value_name = "HOST", required_unless_present = "storage")]
    pub(crate) to: Option<String>,
    /// The disks move too: nothing is shared between the hosts. Without --to they move to --disks-to on this host
    #[arg(long)]
    pub(crate) storage: bool,
    /// Only make the planned machine at the destination
    #[arg(long, requires = "to", conflicts_with = "storage")]
    pub(crate) staged: bool,
    /// Only look whether it could move
    #[arg(long)]
    pub(crate) check: bool,
    /// Print what would move, how many bytes, and what may not work there; move nothing
    #[arg(long, conflicts_with_all = ["check", "staged"])]
    pub(crate) dry_run: bool,
    /// Addresses of the destination, tried in turn; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "to")]
    pub(crate) address: Vec<String>,
    /// The directory that the disks go to, on the host they go to [default: the same paths as here]
    #[arg(long, value_name = "DIR", requires = "storage")]
    pub(crate) disks_to: Option<PathBuf>,
    /// The planned machine at the destination that it becomes
    #[arg(long, value_name = "GUID", requires = "to")]
    pub(crate) planned: Option<String>,
    /// Whether what is sent is compressed [default: as the service is set]
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    pub(crate) compress: Option<bool>,
    /// Send at most so much in a second
    #[arg(long, value_name = "SIZE")]
    pub(crate) bandwidth: Option<Size>,
    /// Fail rather than let the guest stand still for longer than planned
    #[arg(long)]
    pub(crate) keep_downtime: bool,
    /// Leave the disks' files here, too
    #[arg(long, requires = "storage")]
    pub(crate) retain: bool,
    /// Replace files of the same names at the destination
    #[arg(long, requires = "storage")]
    pub(crate) overwrite: bool,
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("it is yes or no".to_owned()),
    }
}

/// Verbs of `migrate`.
#[derive(Debug, Subcommand)]
pub(crate) enum MigrateVerb {
    /// Say where a machine is whose hand-over was never answered; without --here and --there, show such machines
    #[command(after_help = "\
A machine stands still when its move broke off at the moment of handing over and the two hosts cannot ask each other any
more. Look at the destination first: with --here the move is given up for ever, and if the machine runs there it runs twice;
with --there what is left here is removed, and if it is not there it is nowhere.

Examples:
  kvmms migrate resolve
  kvmms migrate resolve web --there")]
    Resolve {
        /// The machine
        #[arg(value_name = "VM")]
        vm: Option<String>,
        /// It is here: it may run here, and never there
        #[arg(long, requires = "vm", conflicts_with = "there")]
        here: bool,
        /// It is at the destination: what is left of it here is removed
        #[arg(long, requires = "vm")]
        there: bool,
    },
}

/// Verbs of `host` about other hosts.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// The name it is to have here, as --to says it
    #[arg(value_name = "HOST")]
    pub(crate) name: String,
    /// Where it is [default: its name]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// The port of its migration listener [default: 6600]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// What the other host shows of itself in `kvmms host list`; without it both fingerprints are shown and nothing is trusted
    #[arg(long, value_name = "SHA256")]
    pub(crate) fingerprint: Option<String>,
}

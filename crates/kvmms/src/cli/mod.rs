//! What can be said on the command line.

mod cim;
mod disk;
mod group;
mod job;
mod migrate;
mod point;
mod snapshot;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::cim::CimVerb;
pub(crate) use disk::{AdoptArgs, AttachArgs, Bus, CreateDiskArgs, DiskFormat, DiskVerb};
pub(crate) use group::GroupVerb;
pub(crate) use job::JobVerb;
pub(crate) use migrate::{MigrateArgs, MigrateVerb, TrustArgs};
pub(crate) use point::{
    ChangesArgs, Consistency, CreatePointArgs, ExportArgs, PointKind, PointVerb, QuickExportArgs,
    Target,
};
pub(crate) use snapshot::{CreateSnapshotArgs, ExportSnapshotArgs, SnapshotKind, SnapshotVerb};
pub(crate) use vm::{CreateVmArgs, Generation, SetVmArgs, Switch, VmVerb};

/// Manage virtual machines, their reference points and exports.
///
/// Talks to the local service over its socket, or with --host to any kvmms or Hyper-V host over
/// WS-Management.
#[derive(Debug, Parser)]
#[command(
    name = "kvmms",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "\
Examples:
  kvmms vm create web --memory 512M --new-disk /var/lib/images/web.qcow2:10G --nic
  kvmms vm start web
  kvmms point create web --name monday
  kvmms point export monday --to /backup/web
  kvmms verify /backup/web

Machines, points and jobs are named by name, by GUID, or by the beginning of either where that is
unambiguous; points of the same name as MACHINE/POINT. Sizes take K, M, G and T (1K = 1024)."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The local service's socket [default: kvmms.sock in the run directory]
    #[arg(
        long,
        value_name = "PATH",
        global = true,
        conflicts_with = "host",
        help_heading = "Connection"
    )]
    pub(crate) socket: Option<PathBuf>,

    /// The host to talk to: http(s)://HOST[:PORT]/wsman, or the path of a socket [env: KVMMS_HOST]
    #[arg(long, value_name = "URL", global = true, help_heading = "Connection")]
    pub(crate) host: Option<String>,

    /// The user: NAME, or DOMAIN\NAME of a Windows host [env: KVMMS_USER]
    #[arg(long, value_name = "NAME", global = true, help_heading = "Connection")]
    pub(crate) user: Option<String>,

    /// A file whose first line is the password; there is no option for the password itself, since others
    /// can read command lines [env: KVMMS_PASSWORD_FILE]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    pub(crate) password_file: Option<PathBuf>,

    /// How to say who calls: `basic` sends the password itself, `negotiate` (NTLM) only proves it and seals what goes over plain
    /// HTTP, `auto` takes what the server offers and sends no password in the clear to other hosts
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        global = true,
        help_heading = "Connection"
    )]
    pub(crate) auth: Option<Auth>,

    /// Trust the certificates in this PEM file, and no others
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        conflicts_with = "insecure",
        help_heading = "Connection"
    )]
    pub(crate) ca: Option<PathBuf>,

    /// Accept any certificate: whoever sits in between can read and change everything
    #[arg(long, global = true, help_heading = "Connection")]
    pub(crate) insecure: bool,

    /// How results and errors are printed
    #[arg(
        long,
        short,
        value_enum,
        default_value_t = Format::Table,
        global = true,
        help_heading = "Output"
    )]
    pub(crate) output: Format,

    /// Print the job as soon as it is started instead of following it
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) no_wait: bool,

    /// No progress while a job is followed
    #[arg(long, short, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
}

impl Global {
    /// Takes from the environment what the arguments leave open. Done here and not by clap, to which a
    /// `KVMMS_HOST` would contradict a `--socket`.
    pub(crate) fn complete(&mut self, variable: impl Fn(&str) -> Option<OsString>) {
        let text = |name| variable(name).and_then(|v| v.into_string().ok());
        if self.socket.is_none() && self.host.is_none() {
            self.host = text("KVMMS_HOST");
        }
        if self.user.is_none() {
            self.user = text("KVMMS_USER");
        }
        if self.password_file.is_none() {
            self.password_file = variable("KVMMS_PASSWORD_FILE").map(PathBuf::from);
        }
    }
}

/// How to say who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Auth {
    /// As the server offers
    Auto,
    /// The password itself
    Basic,
    /// Negotiate with NTLM
    Negotiate,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Machines
    #[command(subcommand)]
    Vm(Box<VmVerb>),
    /// Virtual hard disks
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Reference points: instants that can be exported and told changes against
    #[command(subcommand)]
    Point(PointVerb),
    /// Collections: points of several machines at one instant
    #[command(subcommand, visible_alias = "collection")]
    Group(GroupVerb),
    /// Snapshots: states a machine can be brought back to
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Take a point of a machine and export it, in one go
    #[command(after_help = "\
Examples:
  kvmms export web --to /backup/web
  kvmms export web --to /backup/web --base monday
  kvmms export web --to /backup/web --newest")]
    Export(QuickExportArgs),
    /// Make a machine of an export
    #[command(after_help = "\
Examples:
  kvmms import /backup/web --name web-restored --to /var/lib/images
  kvmms import /backup/web --at monday
  kvmms import /backup/web --at 2026-11-20T19:00")]
    Import(ImportArgs),
    /// Prove an export against its manifest: every block of every disk
    #[command(after_help = "\
Examples:
  kvmms verify /backup/web
  kvmms verify --boot /backup/web --wait 300 --expect 'login:'
  kvmms verify --boot /backup/shop --at monday --agent

With --boot the newest export of each machine in DIR (or the point named by --at) is restored into a
throw-away machine without network, on overlays: nothing is copied, and nothing is written to DIR. It is
booted and has to show life: the text of --expect on its first serial port, the answer of its guest agent
with --agent; with neither, the agent's answer, or anything on the console when the time is over. What it
showed stays with the job: kvmms job show.")]
    Verify(VerifyArgs),
    /// Move a machine to another host, with its points, while it runs
    #[command(after_help = "\
Examples:
  kvmms migrate web --to beta
  kvmms migrate web --to beta --storage --dry-run
  kvmms migrate web --to beta --storage --disks-to /srv/images
  kvmms migrate --group shop --to beta --storage
  kvmms migrate resolve

Hosts trust each other first: kvmms host trust, on both. Ctrl-C leaves the move going on; kvmms job cancel ends it, and the
machine goes on here.")]
    Migrate(Box<MigrateArgs>),
    /// Jobs, running and past
    #[command(subcommand)]
    Job(JobVerb),
    /// The host
    #[command(subcommand)]
    Host(HostVerb),
    /// Errors
    #[command(subcommand)]
    Error(ErrorVerb),
    /// Raw access to every class of the API
    #[command(subcommand)]
    Cim(CimVerb),
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  kvmms completions bash > /etc/bash_completion.d/kvmms")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all pages to a directory
    #[command(after_help = "\
Examples:
  kvmms man | man -l -
  kvmms man --to /usr/local/share/man/man1")]
    Man {
        /// Write one page for each verb into this directory
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The directory of the export, or of the machine in it (on the service's host)
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// The new machine's name [default: the exported one's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where its disks go [default: a new directory under images in the service's state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// Which point of a chain: its GUID, name or instant (UTC), or the beginning of GUID or instant; DIR may
    /// hold the newest export, or all of them
    #[arg(long, value_name = "POINT")]
    pub(crate) at: Option<String>,
    /// Take saved memory over, so that the machine goes on where it was. QEMU runs what is in it: whoever made the
    /// export then has the machine's process. Only for exports you trust
    #[arg(long)]
    pub(crate) with_memory: bool,
    /// Keep network addresses and automatic start: only where the exported machine is no more
    #[arg(long)]
    pub(crate) keep_identity: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The directory of the export, or of the machine in it (on the service's host)
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Boot what was exported in throw-away machines without network
    #[arg(long)]
    pub(crate) boot: bool,
    /// Which point to boot: its GUID, name or instant (UTC) [default: the newest of each machine]
    #[arg(long, value_name = "POINT", requires = "boot")]
    pub(crate) at: Option<String>,
    /// Seconds each machine is given to show life [default: 120]
    #[arg(long, value_name = "SECONDS", requires = "boot")]
    pub(crate) wait: Option<u32>,
    /// A text that has to appear on the first serial port
    #[arg(long, value_name = "TEXT", requires = "boot")]
    pub(crate) expect: Option<String>,
    /// The guest agent has to answer
    #[arg(long, requires = "boot")]
    pub(crate) agent: bool,
    /// Boot at once, without proving every block before
    #[arg(long, requires = "boot")]
    pub(crate) no_proof: bool,
}

/// Verbs of `host`.
#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// What the host is and can do: QEMU, KVM, firmware, defaults
    Show,
    /// Find what records and files do not agree on: orphaned layers, maps, points, holds, jobs, processes
    #[command(after_help = "\
Ends with 0 where nothing is amiss (any more), with 1 where something is.

Examples:
  kvmms host check
  kvmms host check --clean layer --clean map
  kvmms host check --clean all")]
    Check {
        /// Clean what is safe to clean, of this kind or of all; may be given several times
        #[arg(long, value_name = "KIND|all")]
        clean: Vec<String>,
    },
    /// This host and the hosts it trusts for moves, with the fingerprints of their certificates
    #[command(visible_alias = "ls")]
    List,
    /// Trust a host: machines may move there and come from there
    #[command(after_help = "\
Both hosts have to trust each other. Compare what is shown with what the other host shows of itself.

Examples:
  kvmms host trust beta --address 192.0.2.7
  kvmms host trust beta --address 192.0.2.7 --fingerprint AB:CD:...")]
    Trust(TrustArgs),
    /// Trust a host no longer
    Forget {
        /// Its name
        #[arg(value_name = "HOST")]
        name: String,
    },
    /// End all machines as their settings say, because the host goes down; what ran starts again with the host
    #[command(after_help = "\
Where systemd ends the service because the host goes down, the service does this by itself. Elsewhere call it from
what ends the host, before the service is ended.")]
    ShutdownGuests {
        /// Seconds all machines together may take [default: as configured]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
        within: Option<u32>,
    },
}

/// Verbs of `error`.
#[derive(Debug, Subcommand)]
pub(crate) enum ErrorVerb {
    /// Tell what an error means and what to do about it
    #[command(after_help = "\
Examples:
  kvmms error explain KVMMS-0042
  kvmms error explain 32775")]
    Explain {
        /// A message id (KVMMS-0042 or 42) or the return code of a method (32768 and up)
        id: String,
    },
    /// List every error the service can report
    List,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_every_verb_may_stand_behind_it() {
        let cli = parse("kvmms vm list -o json --socket /run/x.sock --no-wait").expect("a line");
        assert_eq!(cli.global.output, Format::Json);
        assert!(cli.global.no_wait);
        assert_eq!(cli.global.socket, Some("/run/x.sock".into()));
    }

    #[test]
    fn a_socket_and_a_host_exclude_each_other() {
        assert!(parse("kvmms vm list --socket /a --host https://h").is_err());
        assert!(parse("kvmms vm list --host https://h --ca f --insecure").is_err());
    }

    #[test]
    fn arguments_go_before_the_environment() {
        let variable = |name: &str| Some(OsString::from(format!("/{name}")));
        let completed = |line| {
            let mut global = parse(line).expect("a line").global;
            global.complete(variable);
            (global.host, global.user, global.password_file)
        };
        let (host, user, file) = completed("kvmms vm list");
        assert_eq!(host.as_deref(), Some("/KVMMS_HOST"));
        assert_eq!(user.as_deref(), Some("/KVMMS_USER"));
        assert_eq!(file, Some("/KVMMS_PASSWORD_FILE".into()));
        assert_eq!(completed("kvmms vm list --socket /a").0, None);
        let (host, user, _) = completed("kvmms vm list --host https://h --user u");
        assert_eq!(
            (host.as_deref(), user.as_deref()),
            (Some("https://h"), Some("u"))
        );
    }

    #[test]
    fn there_is_no_way_to_give_a_password_as_an_argument() {
        assert!(parse("kvmms vm list --password x").is_err());
    }

    #[test]
    fn a_move_names_a_host_or_says_that_only_storage_moves() {
        for good in [
            "kvmms migrate web --to beta",
            "kvmms migrate web --storage --disks-to /srv",
            "kvmms migrate --group shop --to beta --storage --dry-run",
            "kvmms migrate resolve",
            "kvmms migrate resolve web --here",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good).err());
        }
        for bad in [
            "kvmms migrate web",
            "kvmms migrate --to beta",
            "kvmms migrate web --to beta --disks-to /srv",
            "kvmms migrate web --to beta --check --dry-run",
            "kvmms migrate resolve web --here --there",
            "kvmms migrate resolve --here",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_verb_has_a_description() {
        fn check(command: &clap::Command, way: &str) {
            for sub in command.get_subcommands() {
                let way = format!("{way} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{way} has no description");
                for argument in sub.get_arguments() {
                    assert!(
                        argument.get_help().is_some() || argument.is_hide_set(),
                        "{way} {} has no description",
                        argument.get_id()
                    );
                }
                check(sub, &way);
            }
        }
        check(&Cli::command(), "kvmms");
    }
}

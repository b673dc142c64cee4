//! `kvmms job`.

use clap::Subcommand;

/// Verbs of `job`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    /// List the jobs: those running and those just ended
    #[command(visible_alias = "ls")]
    List {
        /// The whole history (kvmms only)
        #[arg(long)]
        all: bool,
    },
    /// Show a job
    Show {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Follow a job to its end; fails if the job does
    Watch {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Stop a job
    Cancel {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
        /// End it at once and clean up afterwards, instead of undoing it first
        #[arg(long)]
        kill: bool,
    },
    /// Interrupt an export; `resume` goes on
    Suspend {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Go on with a suspended job
    Resume {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Tell why a job failed: every cause, and what to do
    Errors {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
    },
}

//! `kvmms`: the command line of the virtual machine management service.
//!
//! # Model
//! A WS-Management client and nothing more: every verb is one or a few calls of the documented API, so that it
//! works against a Hyper-V host too; what only kvmms has (history of jobs, verify, import, the catalogue of
//! errors) are the `Kvmms_` classes, named in `vendor`.
//!
//! ```text
//! arguments -> cli (clap) -> verb/* -> session (calls, jobs, retries) -> wbem::client
//!                               \-> find (names to objects)   \-> watch (jobs, progress)
//!                               \-> output (tables, JSON)
//! ```
//!
//! # Errors
//! `error::Error`: a fault of the server, a refused method, a failed job with its chain, a name that
//! names nothing or too much. Printed once, in `main_with`, to the standard error stream.
//!
//! # Concurrency
//! One request at a time over one connection, on a current-thread runtime.

mod cli;
mod connect;
mod console;
mod error;
mod find;
mod inspect;
mod moving;
mod output;
mod report;
mod session;
mod size;
mod vendor;
mod verb;
mod visible;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

/// The definition of the command line: help, completions and man pages come from it.
pub fn command() -> clap::Command {
    cli::Cli::command()
}

/// Runs the command line; the first argument is the program's name.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut cli = match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, and go to standard output with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    cli.global.complete(|name| std::env::var_os(name));
    let output = output::Output::new(cli.global.output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(verb::run(cli, &output)),
        Err(source) => Err(error::Error::io("start", "the runtime", source)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has enough, as in `kvmms cim list ... | head`.
        Err(error::Error::Closed) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&report::Report::of(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

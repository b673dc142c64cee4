//! The verbs.

mod boot;
mod check;
mod cim;
mod collection_instant;
mod disk;
mod export;
mod group;
mod host;
mod hosts;
mod job;
mod migrate;
mod point;
mod snapshot;
mod storage;
mod vm;
mod vm_create;

use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::{CimVerb, Cli, ErrorVerb, HostVerb, Verb};
use crate::error::{Error, Result};
use crate::output::Output;
use crate::session::{NAMESPACE, Session};

/// Carries out what the command line says.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result<()> {
    let namespace = match &cli.verb {
        Verb::Completions { shell } => return completions(*shell, output),
        Verb::Man { to } => return manual(to.as_deref(), output),
        Verb::Cim(
            CimVerb::Get { namespace, .. }
            | CimVerb::List { namespace, .. }
            | CimVerb::Query { namespace, .. }
            | CimVerb::Invoke { namespace, .. }
            | CimVerb::Class { namespace, .. },
        ) => namespace.as_str(),
        _ => NAMESPACE,
    };
    let session = Session::open(&cli.global, *output, namespace).await?;
    match cli.verb {
        Verb::Vm(verb) => vm::run(&session, *verb).await,
        Verb::Disk(verb) => disk::run(&session, verb).await,
        Verb::Point(verb) => point::run(&session, verb).await,
        Verb::Group(verb) => group::run(&session, verb).await,
        Verb::Snapshot(verb) => snapshot::run(&session, verb).await,
        Verb::Export(arguments) => export::quick(&session, arguments).await,
        Verb::Import(arguments) => export::import(&session, arguments).await,
        Verb::Verify(arguments) if arguments.boot => boot::run(&session, arguments).await,
        Verb::Verify(arguments) => export::verify(&session, &arguments.directory).await,
        Verb::Job(verb) => job::run(&session, verb).await,
        Verb::Host(HostVerb::Show) => host::show(&session).await,
        Verb::Host(HostVerb::Check { clean }) => check::run(&session, &clean).await,
        Verb::Migrate(arguments) => migrate::run(&session, *arguments).await,
        Verb::Host(HostVerb::List) => hosts::list(&session).await,
        Verb::Host(HostVerb::Trust(arguments)) => hosts::trust(&session, arguments).await,
        Verb::Host(HostVerb::Forget { name }) => hosts::forget(&session, &name).await,
        Verb::Host(HostVerb::ShutdownGuests { within }) => {
            host::shutdown_guests(&session, within).await
        }
        Verb::Error(ErrorVerb::Explain { id }) => host::explain(&session, &id).await,
        Verb::Error(ErrorVerb::List) => host::errors(&session).await,
        Verb::Cim(verb) => cim::run(&session, verb).await,
        Verb::Completions { .. } | Verb::Man { .. } => Ok(()),
    }
}

fn completions(shell: clap_complete::Shell, output: &Output) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvmms", &mut text);
    output.raw(&text)
}

fn manual(to: Option<&Path>, output: &Output) -> Result<()> {
    match to {
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut text)
                .map_err(|e| Error::io("write", "the manual page", e))?;
            output.raw(&text)
        }
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|e| Error::file("make", dir, e))?;
            clap_mangen::generate_to(Cli::command(), dir)
                .map_err(|e| Error::file("write the manual pages to", dir, e))
        }
    }
}

//! `kvmmsd`: the virtual machine management service of one host.
//!
//! # Rooms
//! [`config`] reads the configuration; [`service`] is the handler behind both front ends (`wbem`). A [`view`] is what one
//! caller sees, which [`rights`] decide; through it [`provider`] turns domain objects (`vmms`) into CIM and method calls into
//! calls of the domain, and [`association`] walks from [`object`] to object;
//! [`ending`] tells why the service ends; [`errors`] is the one table from failures to return codes, CIM statuses and `Msvm_Error`.
//!
//! # Errors
//! Only start-up fails with plain text; everything later is a fault of the domain, told over the wire.
//!
//! # Concurrency
//! The listeners' tasks call [`service::Service`], which is shared and has no locks of its own.

mod association;
mod config;
mod ending;
mod errors;
mod limits;
mod logged;
mod memory;
mod object;
mod private;
mod provider;
mod query;
mod refusal;
mod rights;
mod served;
mod service;
mod view;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use wbem::auth::Accounts;
use wbem::auth::users::{UsersFile, role_named};
use wbem::server::{Listen, Options, Protocols, Server};

use crate::config::Config;
use crate::service::Service;

/// The virtual machine management service for QEMU/KVM that speaks the Hyper-V management API.
#[derive(Parser)]
#[command(name = "kvmmsd", version, about)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Directory of what must survive.
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// Directory of sockets.
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
    /// Listen on this URL (wsman+http://ADDR:PORT, wsman+https://…, cimxml+http://…, cimxml+https://…,
    /// migration+tls://…); replaces the configured listeners when given once or more.
    #[arg(long, value_name = "URL")]
    listen: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the effective configuration.
    Config,
    /// Rebuild a state store that cannot be used, from its last copy and from what the layers tell.
    Recover,
    /// Manage the users.
    #[command(subcommand)]
    User(UserCommand),
    /// Stand by while a guest is frozen; started by the service itself.
    #[command(name = vmms::THAW_WATCHDOG, hide = true)]
    ThawWatchdog(Watch),
}

#[derive(clap::Args)]
struct Watch {
    /// The machine's run directory.
    directory: PathBuf,
    /// The mark of the freeze.
    mark: uuid::Uuid,
    /// How long the service may take.
    seconds: u64,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Add a user, or give an existing one a new password and role.
    Add {
        /// The name.
        name: String,
        /// admin, operator or viewer.
        #[arg(long)]
        role: String,
        /// Read the password from standard input (one line).
        #[arg(long, required = true)]
        password_stdin: bool,
        /// Let the user in by Negotiate (NTLM) too: keeps the NT hash of the password, which is as good as the password to whoever reads
        /// the users file. It goes with the next password, unless that is set with --ntlm again.
        #[arg(long)]
        ntlm: bool,
    },
    /// List the users: name, role, and `ntlm` where Negotiate lets them in.
    List,
    /// Remove a user.
    Remove {
        /// The name.
        name: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvmmsd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    private::umask();
    if let Some(Command::ThawWatchdog(watch)) = arguments.command {
        return stand_watch(watch);
    }
    let mut config = Config::load(arguments.config.as_deref())?;
    if let Some(dir) = arguments.state_dir {
        config.state_dir = dir;
    }
    if let Some(dir) = arguments.run_dir {
        config.run_dir = dir;
    }
    if !arguments.listen.is_empty() {
        config.listen = arguments.listen;
    }
    for dir in [&mut config.state_dir, &mut config.run_dir] {
        *dir = std::path::absolute(&*dir)
            .with_context(|| format!("{} is no usable path", dir.display()))?;
    }
    match arguments.command {
        Some(Command::Config) => {
            let text = toml::to_string(&config)?;
            std::io::stdout().write_all(text.as_bytes())?;
            Ok(())
        }
        Some(Command::Recover) => recover(&config),
        Some(Command::User(command)) => user(&config, command),
        Some(Command::ThawWatchdog(watch)) => stand_watch(watch),
        None => serve(config),
    }
}

/// Its thread that waits for the service may never end: the process does.
fn stand_watch(watch: Watch) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let within = Duration::from_secs(watch.seconds);
    runtime
        .block_on(vmms::stand_watch(watch.directory, watch.mark, within))
        .context("the guest could not be thawed")
}

/// The state store below the state directory.
const STORE: &str = "kvmms.db";

/// A failure at start as people read it: with its number, its causes and what to do.
fn told(what: &str, fault: &vmms::Fault) -> anyhow::Error {
    let mut text = format!("{what}: {} [{}]", fault.text(), fault.message.id());
    for cause in fault.chain().iter().skip(1) {
        text.push_str(&format!(
            "\n  because: {} [{}]",
            cause.text(),
            cause.message.id()
        ));
    }
    text.push_str("\nwhat to do:");
    for remedy in fault.message.entry().remedy {
        text.push_str(&format!("\n  - {remedy}"));
    }
    anyhow::anyhow!(text)
}

#[tokio::main]
async fn recover(config: &Config) -> Result<()> {
    let dirs = vmms::Dirs {
        state: config.state_dir.clone(),
        run: config.run_dir.clone(),
    };
    let report = vmms::recover::recover(
        &config.state_dir.join(STORE),
        dirs,
        config.options()?,
        host_name(),
    )
    .await
    .map_err(|fault| told("the state store was not recovered", &fault))?;
    for line in report {
        println!("{line}");
    }
    Ok(())
}

fn user(config: &Config, command: UserCommand) -> Result<()> {
    private::directory(&config.state_dir)?;
    private::file(&config.users())?;
    let users = UsersFile::new(config.users());
    match command {
        UserCommand::Add {
            name, role, ntlm, ..
        } => {
            let role = role_named(&role).with_context(|| {
                format!("the roles are admin, operator and viewer, not {role:?}")
            })?;
            let mut password = String::new();
            std::io::stdin().read_to_string(&mut password)?;
            let password = password.trim_end_matches(['\r', '\n']);
            if password.is_empty() {
                bail!("the password on standard input is empty");
            }
            match ntlm {
                true => users.add_with_ntlm(&name, role, password)?,
                false => users.add(&name, role, password)?,
            }
        }
        UserCommand::List => {
            for user in users.list()? {
                let ntlm = if user.nt.is_some() { "\tntlm" } else { "" };
                println!("{}\t{:?}{ntlm}", user.name, user.role);
            }
        }
        UserCommand::Remove { name } => users.remove(&name)?,
    }
    Ok(())
}

fn serve(config: Config) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads")?;
    let served = runtime.block_on(serve_on(config));
    // A thread that waits for storage must not keep the service from ending.
    runtime.shutdown_timeout(Duration::from_millis(200));
    served
}

/// How long what is under way may take to come to rest when the service ends.
const PARK: Duration = Duration::from_millis(800);

async fn serve_on(config: Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KVMMS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(logged::Lines::default)
        .init();
    let mut memory = memory::Memory::new();
    let options = Options {
        plain_off_loopback: config.plain_http_off_loopback,
        ..config
            .limits
            .server(config.listen.len(), limits::raise_descriptors())?
    };
    private::directory(&config.state_dir)?;
    private::directory(&config.run_dir)?;
    private::file(&config.users())?;
    private::file(&config.state_dir.join("tls").join(wbem::tls::KEY))?;
    let store = vmms::open_store(&config.state_dir.join(STORE), Some(config.copies()?))
        .await
        .map_err(|fault| told("cannot open the state store", &fault))?;
    let host = host_name();
    let dirs = vmms::Dirs {
        state: config.state_dir.clone(),
        run: config.run_dir.clone(),
    };
    let vmms = vmms::start_qemu(store, dirs, config.options()?, host)
        .await
        .map_err(|fault| told("cannot start the service", &fault))?;

    let users = UsersFile::new(config.users());
    let accounts =
        Accounts::open(users, config.limits.accounts()).context("cannot read the users")?;
    let query_time = Duration::from_secs(config.limits.query_seconds);
    let gate = Box::new(rights::AllSeeing);
    let house = view::House::new(Arc::clone(&vmms), gate, provider::all());
    let service = Arc::new(Service::new(house, config.refusals()?, query_time));
    let mut host_names = config.host_names.clone();
    host_names.extend([vmms.host.clone(), whole_host_name()]);
    let options = Options {
        host_names,
        ..options
    };
    let mut server = Server::new(service, Arc::new(accounts), options);
    let mut lines = Vec::new();
    let (moves, others): (Vec<&String>, Vec<&String>) = config
        .listen
        .iter()
        .partition(|url| url.starts_with(MIGRATION));
    let moves = moves.into_iter().map(|url| migration_address(url));
    let moves: Vec<SocketAddr> = moves.collect::<Result<_>>()?;
    for url in others {
        let listen = listen(&config, url)?;
        let bound = server
            .listen(listen)
            .await
            .with_context(|| format!("cannot listen on {url}"))?;
        lines.push(format!("listening {bound}"));
    }
    let socket = config.run_dir.join("kvmms.sock");
    let bound = server
        .listen(Listen::Unix {
            path: socket.clone(),
        })
        .await
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    lines.push(format!("listening {bound}"));
    if !moves.is_empty() {
        let listened = vmms::migration::listen(&vmms, &moves).await;
        listened.map_err(|fault| told("cannot listen for machines", &fault))?;
        let bound = vmms::migration::listening(&vmms).into_iter();
        lines.extend(bound.map(|address| format!("listening {MIGRATION}{address}")));
    }
    let stop = stop_signal()?;
    let ends = Arc::clone(&vmms);
    let stop = async move {
        stop.await;
        ending::prepare(&ends).await;
    };
    let mut out = std::io::stdout();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "ready")?;
    out.flush()?;
    // What comes round, machines that start by themselves among it, begins when requests are answered.
    let ticking = {
        let vmms = Arc::clone(&vmms);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(2));
            loop {
                ticks.tick().await;
                vmms.tick().await;
                memory.tick();
            }
        })
    };
    let parked = {
        let vmms = Arc::clone(&vmms);
        async move {
            stop.await;
            ticking.abort();
            vmms.park(PARK).await;
        }
    };
    server.run(parked).await;
    // Machines go on; the next start finds them.
    tracing::info!("stopped; machines keep running");
    Ok(())
}

fn stop_signal() -> Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn whole_host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

fn host_name() -> String {
    let name = whole_host_name();
    let short = name.split('.').next().unwrap_or_default().to_owned();
    if short.is_empty() {
        "localhost".to_owned()
    } else {
        short
    }
}

/// What the URL of a listener for machines begins with.
const MIGRATION: &str = "migration+tls://";

/// Reads the URL of a listener for machines.
fn migration_address(url: &str) -> Result<SocketAddr> {
    let address = url.strip_prefix(MIGRATION).unwrap_or(url);
    let address = address.trim_end_matches('/').parse();
    address.with_context(|| format!("{url:?} is not {MIGRATION}ADDR:PORT"))
}

/// Reads a listener's URL.
fn listen(config: &Config, url: &str) -> Result<Listen> {
    let bad = || {
        format!(
            "{url:?} is not wsman+http://ADDR:PORT, wsman+https://…, cimxml+http://…, cimxml+https://… or migration+tls://…"
        )
    };
    let (scheme, address) = url.split_once("://").with_context(bad)?;
    let (protocol, transport) = scheme.split_once('+').with_context(bad)?;
    let protocols = match protocol {
        "wsman" => Protocols::WSMAN,
        "cimxml" => Protocols::CIMXML,
        _ => bail!(bad()),
    };
    let address = address.trim_end_matches('/').parse().with_context(bad)?;
    let tls = match transport {
        "http" => None,
        "https" if config.tls_certificate.as_os_str().is_empty() => {
            let names = [host_name(), "localhost".to_owned(), "127.0.0.1".to_owned()];
            Some(
                wbem::tls::load_or_make(&config.state_dir.join("tls"), &names)
                    .context("TLS certificate")?,
            )
        }
        "https" => Some({
            private::key(&config.tls_key)?;
            wbem::tls::load(&config.tls_certificate, &config.tls_key).context("TLS certificate")?
        }),
        _ => bail!(bad()),
    };
    Ok(Listen::Tcp {
        addr: address,
        tls,
        protocols,
    })
}

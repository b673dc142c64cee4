//! Real machines: one QEMU process each.

mod commit;
mod confinement;
mod drives;
mod events;
mod exports;
mod given;
mod graph;
mod layers;
mod machine;
mod migrate;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Resource;
use serde_json::json;
use tokio::time::Instant;

use self::confinement::Held;
pub use self::machine::QemuMachine;
#[cfg(any(test, feature = "fake"))]
pub(crate) use self::migrate::{connected, listening};

use crate::argv;
use crate::blockdev::FileFacts;
use crate::config::{Generation, MachineConfig, NicBackend};
use crate::confine::cgroup;
use crate::confine::steps::Steps;
use crate::error::{Error, Result};
use crate::image::ImageTool;
use crate::machine::{Hypervisor, Launch, Machine};
use crate::names::RunFiles;
use crate::probe::{Features, Prober};
use crate::process::Process;
use crate::qmp::Qmp;

/// From the start of the process to a usable monitor. A loaded host without KVM needs seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long the monitor of a process that already runs may take to greet.
const ATTACH_DEADLINE: Duration = Duration::from_secs(20);

/// Starts and finds QEMU processes on this host.
#[derive(Debug, Default)]
pub struct QemuHypervisor {
    prober: Prober,
    images: ImageTool,
}

impl QemuHypervisor {
    /// With a certain QEMU and image tool.
    #[must_use]
    pub fn new(prober: Prober, images: ImageTool) -> Self {
        Self { prober, images }
    }

    /// The image tool, also used for layers of running machines.
    #[must_use]
    pub fn images(&self) -> &ImageTool {
        &self.images
    }

    /// [`Hypervisor::launch`] with the concrete type.
    ///
    /// # Errors
    /// As there.
    pub async fn launch_qemu(&self, config: &MachineConfig, launch: Launch) -> Result<QemuMachine> {
        let features = self.prober.features().await?;
        let files = RunFiles::new(&config.run_dir);
        let facts = FileFacts::of(config.drives.iter().flat_map(|drive| &drive.chain));
        let incoming = launch != Launch::Fresh;
        if let Some(running) = Process::find(&files)? {
            return Err(Error::AlreadyRunning { pid: running.pid() });
        }
        prepare_files(config, &features, &files)?;
        let (given, keep) = given::open(config, &files)?;
        let args = argv::build(config, &features, &facts, &given, incoming)?;
        let (user, grants) = confinement::open(config, &features)?;
        let confined = config.confinement.sandbox || user.is_some();
        let group = confined.then(|| cgroup::prepare(config)).flatten();
        let (group, cgroup) = group.unzip();
        let held = Held { grants, group };
        let steps = Steps {
            keep,
            cgroup,
            user,
            limits: confined
                .then_some((Resource::Core, 0))
                .into_iter()
                .collect(),
            no_new_privs: confined,
            ..Steps::default()
        };
        let process = Process::spawn_confined(&features.qemu, &args, &files, steps)
            .inspect_err(|_| confinement::ended(&held))?;
        let started = async {
            let qmp = first_contact(&process, &files).await?;
            let machine = QemuMachine::attach(
                config,
                process.clone(),
                qmp,
                Arc::clone(&features),
                self.images.clone(),
                held.clone(),
            );
            unplug_cables(&machine, config).await?;
            if let Launch::Restore(path) = &launch {
                machine.restore_state(path).await?;
            }
            Ok(machine)
        };
        match started.await {
            Ok(machine) => Ok(machine),
            Err(error) => {
                // A half-started process would hold the images.
                if let Err(kill) = process.kill().await {
                    tracing::error!(machine = %config.id, error = %kill, "a process that failed to start stays");
                } else {
                    confinement::ended(&held);
                }
                Err(error)
            }
        }
    }

    /// [`Hypervisor::reattach`] with the concrete type.
    ///
    /// # Errors
    /// As there.
    pub async fn reattach_qemu(&self, config: &MachineConfig) -> Result<Option<QemuMachine>> {
        let files = RunFiles::new(&config.run_dir);
        let Some(process) = Process::find(&files)? else {
            confinement::left(config)?;
            return Ok(None);
        };
        let features = self.prober.features().await?;
        let socket = files.qmp();
        let qmp = tokio::select! {
            qmp = Qmp::connect(&socket, ATTACH_DEADLINE) => qmp?,
            _ = process.exited() => {
                confinement::left(config)?;
                return Ok(None);
            }
        };
        let held = confinement::of_running(config, &process);
        Ok(Some(QemuMachine::attach(
            config,
            process,
            qmp,
            features,
            self.images.clone(),
            held,
        )))
    }
}

#[async_trait]
impl Hypervisor for QemuHypervisor {
    async fn features(&self) -> Result<Arc<Features>> {
        self.prober.features().await
    }

    async fn launch(&self, config: &MachineConfig, launch: Launch) -> Result<Arc<dyn Machine>> {
        Ok(Arc::new(self.launch_qemu(config, launch).await?))
    }

    async fn reattach(&self, config: &MachineConfig) -> Result<Option<Arc<dyn Machine>>> {
        let machine = self.reattach_qemu(config).await?;
        Ok(machine.map(|machine| Arc::new(machine) as Arc<dyn Machine>))
    }
}

fn prepare_files(config: &MachineConfig, features: &Features, files: &RunFiles) -> Result<()> {
    make_private_dir(files.dir())?;
    // Left by an earlier process, which is known to be gone.
    for stale in [
        files.pid(),
        files.identity(),
        files.qmp(),
        files.monitor(),
        files.agent(),
        files.nbd(),
        files.frozen(),
    ] {
        match std::fs::remove_file(&stale) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("remove", stale, source)),
        }
    }
    if let (Generation::Gen2, Some(vars), Some(firmware)) =
        (config.generation, &config.firmware_vars, &features.firmware)
        && !vars.exists()
    {
        copy_whole(&firmware.vars_template, vars)?;
    }
    Ok(())
}

/// A network adapter that is connected to nothing shows the guest a cable that is not plugged in.
async fn unplug_cables(machine: &QemuMachine, config: &MachineConfig) -> Result<()> {
    if config.no_network {
        return Ok(());
    }
    for (index, nic) in config.nics.iter().enumerate() {
        if nic.backend == NicBackend::None {
            let link = json!({ "name": format!("nic{index}"), "up": false });
            machine.execute("set_link", link).await?;
        }
    }
    Ok(())
}

/// Whoever reaches the monitor socket owns the machine.
fn make_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::io("create", dir, source))
}

/// Complete or not there, so that a crash cannot leave a machine with half a firmware.
fn copy_whole(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    std::fs::copy(from, &partial).map_err(|source| Error::io("copy", from, source))?;
    std::fs::File::open(&partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&partial, to))
        // The name is to be there after a power cut, too.
        .and_then(|()| std::fs::File::open(to.parent().unwrap_or(Path::new("/"))))
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Error::io("write", to, source))
}

async fn first_contact(process: &Process, files: &RunFiles) -> Result<Qmp> {
    let deadline = Instant::now() + START_DEADLINE;
    let connecting = async {
        loop {
            match Qmp::connect(
                &files.qmp(),
                deadline.saturating_duration_since(Instant::now()),
            )
            .await
            {
                // The socket appears a little after the process.
                Err(Error::Io { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
                result => return result,
            }
        }
    };
    let failed = |exit: crate::machine::Exit| {
        let status = match (exit.code, exit.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        Error::StartFailed {
            status,
            log_tail: exit.log_tail,
        }
    };
    tokio::select! {
        biased;
        exit = process.exited() => Err(failed(exit)),
        result = connecting => match result {
            // The connection breaks a moment before the end of the process is seen.
            Err(Error::Protocol { .. } | Error::ProcessGone { .. }) => Err(failed(process.exited().await)),
            result => result,
        },
    }
}

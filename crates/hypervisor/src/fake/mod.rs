//! A scripted machine for unit tests of the domain: keeps drives, layers and state like QEMU would, records every
//! call, and fails or hangs where its [`Script`] says.
//!
//! With [`FakeHypervisor::with_images`] layers are real qcow2 files that a test may write to; without, only names.

mod layers;
mod machine;
#[cfg(test)]
mod move_tests;
mod moves;
mod script;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use uuid::Uuid;

pub use self::machine::FakeMachine;
pub use self::script::{FakeClock, Fault, Script};

use self::script::locked;
use crate::config::MachineConfig;
use crate::error::{Error, Result};
use crate::image::ImageTool;
use crate::machine::{Hypervisor, Launch, Machine};
use crate::migration::MigrationFeatures;
use crate::probe::{Features, KvmState};
use crate::qmp::Version;

/// Makes fake machines and remembers those that run, so that `reattach` finds them.
#[derive(Debug, Default)]
pub struct FakeHypervisor {
    script: Script,
    clock: FakeClock,
    images: Option<ImageTool>,
    running: Mutex<HashMap<Uuid, Arc<FakeMachine>>>,
}

impl FakeHypervisor {
    /// Without image files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Overlays become real files.
    #[must_use]
    pub fn with_images(images: ImageTool) -> Self {
        Self {
            images: Some(images),
            ..Self::default()
        }
    }

    /// Faults and calls of this hypervisor and all its machines. Methods are named as in the traits.
    #[must_use]
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// The clock behind every instant its machines report.
    #[must_use]
    pub fn clock(&self) -> &FakeClock {
        &self.clock
    }

    /// The running fake of that machine.
    #[must_use]
    pub fn machine(&self, id: Uuid) -> Option<Arc<FakeMachine>> {
        locked(&self.running)
            .get(&id)
            .filter(|machine| machine.is_alive())
            .cloned()
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn features(&self) -> Result<Arc<Features>> {
        let after = self.script.enter("features", "").await?;
        after.answer(Arc::new(features()))
    }

    async fn launch(&self, config: &MachineConfig, launch: Launch) -> Result<Arc<dyn Machine>> {
        let detail = match &launch {
            Launch::Fresh => config.id.to_string(),
            Launch::Restore(path) => format!("{} restore {}", config.id, path.display()),
            Launch::Incoming => format!("{} incoming", config.id),
        };
        let after = self.script.enter("launch", &detail).await?;
        config.validate()?;
        if let Some(machine) = self.machine(config.id) {
            return Err(Error::AlreadyRunning { pid: machine.pid() });
        }
        if let Launch::Restore(path) = &launch
            && !path.exists()
        {
            return Err(Error::io("read", path, std::io::ErrorKind::NotFound.into()));
        }
        let machine = Arc::new(FakeMachine::new(
            config,
            self.script.clone(),
            self.clock.clone(),
            self.images.clone(),
            launch == Launch::Incoming,
        ));
        locked(&self.running).insert(config.id, Arc::clone(&machine));
        after.answer(machine)
    }

    async fn reattach(&self, config: &MachineConfig) -> Result<Option<Arc<dyn Machine>>> {
        let after = self
            .script
            .enter("reattach", &config.id.to_string())
            .await?;
        after.answer(
            self.machine(config.id)
                .map(|machine| machine as Arc<dyn Machine>),
        )
    }
}

/// A QEMU that can do everything, without KVM.
#[must_use]
pub fn features() -> Features {
    let (pc, q35) = ("pc-i440fx-10.0".to_owned(), "pc-q35-10.0".to_owned());
    Features {
        qemu: PathBuf::from("/usr/bin/qemu-system-x86_64"),
        version: Version {
            major: 10,
            minor: 0,
            micro: 2,
        },
        kvm: KvmState::Unusable("a fake has none".into()),
        machine_types: [pc.clone(), q35.clone()].into(),
        machine_gen1: Some(pc),
        machine_gen2: Some(q35),
        max_vcpus: 255,
        commands: ["blockdev-add", "transaction", "block-commit"]
            .map(str::to_owned)
            .into(),
        migrate_file: true,
        sandbox: true,
        migration: MigrationFeatures {
            capabilities: [
                "events",
                "return-path",
                "pause-before-switchover",
                "late-block-activate",
                "multifd",
                "auto-converge",
                "dirty-bitmaps",
                "validate-uuid",
            ]
            .map(str::to_owned)
            .into(),
            zstd: true,
            tls: true,
            stays_on_error: true,
            job_change: true,
            set_active: true,
        },
        firmware: None,
    }
}

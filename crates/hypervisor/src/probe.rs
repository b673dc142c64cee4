//! What this host and its QEMU can do: asked from QEMU itself, never assumed from a version number alone.
//!
//! A machine without devices (`-machine none`) is started once per QEMU binary and asked over its standard streams;
//! the answer is kept until the binary changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::Resource;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

use crate::config::{Acceleration, Generation, MachineConfig};
use crate::confine::spawner;
use crate::confine::steps::Steps;
use crate::error::{Error, Result};
use crate::migration::MigrationFeatures;
use crate::qmp::codec::{items, number, text};
use crate::qmp::{Qmp, Version};

/// Starting QEMU and reading its schema takes a fraction of a second, more on a loaded host.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);

/// The program that emulates a PC.
pub const QEMU: &str = "qemu-system-x86_64";

/// UEFI images as distributions place them: code, then its template of variables.
const FIRMWARE: [(&str, &str); 7] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
    (
        "/usr/share/qemu/edk2-x86_64-code.fd",
        "/usr/share/qemu/edk2-i386-vars.fd",
    ),
];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// The QEMU binary.
    pub qemu: PathBuf,
    /// Its version.
    pub version: Version,
    /// Whether KVM works here, and why not.
    pub kvm: KvmState,
    /// Newest versioned machine type of generation 1, for example `pc-i440fx-7.2`.
    pub machine_gen1: Option<String>,
    /// Newest versioned machine type of generation 2, for example `pc-q35-7.2`.
    pub machine_gen2: Option<String>,
    /// All machine types.
    pub machine_types: BTreeSet<String>,
    /// Most processors per machine type, as QEMU tells.
    pub max_vcpus: u32,
    /// Monitor commands.
    pub commands: BTreeSet<String>,
    /// `migrate` takes `file:` addresses (QEMU 8.2).
    pub migrate_file: bool,
    /// QEMU can deny itself system calls it does not need.
    #[serde(default)]
    pub sandbox: bool,
    /// What it has for moves between hosts.
    #[serde(default)]
    pub migration: MigrationFeatures,
    /// UEFI firmware for generation 2.
    pub firmware: Option<Firmware>,
}

/// UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// The code, read-only.
    pub code: PathBuf,
    /// Template of the variables, copied for each machine.
    pub vars_template: PathBuf,
}

/// Whether KVM works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvmState {
    /// It does.
    Usable,
    /// It does not; the reason is for people.
    Unusable(String),
}

impl KvmState {
    /// Whether KVM works.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Usable)
    }
}

impl Features {
    /// The machine type a configuration gets: its own, or the newest of its generation.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this QEMU does not have it.
    pub fn machine_type(&self, config: &MachineConfig) -> Result<String> {
        if let Some(wanted) = &config.machine_type {
            if self.machine_types.contains(wanted) {
                return Ok(wanted.clone());
            }
            return Err(Error::Unsupported {
                what: format!("machine type {wanted} (QEMU {} does not have it)", self.version),
                remedy: "install the QEMU version the machine was made with, or a newer one that still has the type".into(),
            });
        }
        let newest = match config.generation {
            Generation::Gen1 => &self.machine_gen1,
            Generation::Gen2 => &self.machine_gen2,
        };
        newest.clone().ok_or_else(|| Error::Unsupported {
            what: format!(
                "a machine type for {:?} in QEMU {}",
                config.generation, self.version
            ),
            remedy: "install a QEMU with the pc and q35 machines (Debian: qemu-system-x86)".into(),
        })
    }

    /// Whether the machine will run on KVM.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where KVM is asked for and does not work.
    pub fn use_kvm(&self, wanted: Acceleration) -> Result<bool> {
        match (wanted, &self.kvm) {
            (Acceleration::Tcg, _) | (Acceleration::Auto, KvmState::Unusable(_)) => Ok(false),
            (_, KvmState::Usable) => Ok(true),
            (Acceleration::Kvm, KvmState::Unusable(why)) => Err(Error::Unsupported {
                what: format!("KVM ({why})"),
                remedy: "enable virtualization in the firmware and load kvm_intel or kvm_amd, or allow emulation".into(),
            }),
        }
    }

    /// The UEFI firmware.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the remedy.
    pub fn firmware(&self) -> Result<&Firmware> {
        self.firmware.as_ref().ok_or_else(|| Error::Unsupported {
            what: "UEFI firmware for a generation 2 machine".into(),
            remedy: "install OVMF (Debian: apt-get install ovmf; Fedora: edk2-ovmf)".into(),
        })
    }

    /// Whether the monitor has that command.
    #[must_use]
    pub fn has_command(&self, command: &str) -> bool {
        self.commands.contains(command)
    }
}

/// Finds the features and keeps them while the binary stays the same.
#[derive(Debug)]
pub struct Prober {
    program: PathBuf,
    firmware: Option<Firmware>,
    kept: Mutex<Option<(PathBuf, SystemTime, Arc<Features>)>>,
}

impl Default for Prober {
    fn default() -> Self {
        Self::new(QEMU)
    }
}

impl Prober {
    /// A prober of that program: a path, or a name looked up on `PATH`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            firmware: None,
            kept: Mutex::new(None),
        }
    }

    /// Takes this firmware for generation 2 instead of looking where distributions put theirs.
    #[must_use]
    pub fn with_firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = Some(firmware);
        self
    }

    /// The features, from memory where the binary did not change.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where QEMU is missing; [`Error::Spawn`], [`Error::Protocol`], [`Error::Timeout`].
    pub async fn features(&self) -> Result<Arc<Features>> {
        let qemu = find_program(&self.program).ok_or_else(|| Error::Unsupported {
            what: format!("{} is not installed", self.program.display()),
            remedy: "install QEMU (Debian: apt-get install --no-install-recommends qemu-system-x86 qemu-utils)".into(),
        })?;
        let changed = std::fs::metadata(&qemu)
            .and_then(|metadata| metadata.modified())
            .map_err(|source| Error::io("read", &qemu, source))?;
        let mut kept = self.kept.lock().await;
        if let Some((path, time, features)) = kept.as_ref()
            && (path, time) == (&qemu, &changed)
        {
            return Ok(Arc::clone(features));
        }
        let features = match tokio::time::timeout(PROBE_DEADLINE, ask(&qemu)).await {
            Ok(result) => {
                let found = result?;
                let firmware = self.firmware.clone().or(found.firmware);
                Arc::new(Features { firmware, ..found })
            }
            Err(_) => {
                return Err(Error::Timeout {
                    command: "QEMU's features".into(),
                    after: PROBE_DEADLINE,
                });
            }
        };
        *kept = Some((qemu, changed, Arc::clone(&features)));
        Ok(features)
    }
}

/// The file a program name stands for: itself if it has a slash, else the first match on `PATH`.
#[must_use]
pub fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

async fn ask(qemu: &Path) -> Result<Features> {
    let mut command = Command::new(qemu);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "none,accel=tcg",
            "-S",
            "-qmp",
            "stdio",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let steps = Steps {
        limits: vec![(Resource::Core, 0)],
        no_new_privs: true,
        ..Steps::default()
    };
    let mut child = spawner::spawn(command, steps)
        .await
        .map_err(|source| Error::Spawn {
            program: qemu.to_owned(),
            source,
        })?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Error::Protocol {
            peer: "QMP",
            detail: "no standard streams".into(),
        });
    };
    let asked = async {
        let qmp = Qmp::negotiate(output, input).await?;
        let machines = qmp.execute("query-machines", Value::Null).await?;
        let schema = qmp.execute("query-qmp-schema", Value::Null).await?;
        let kvm = qmp.execute("query-kvm", Value::Null).await?;
        let sandbox = json!({ "option": "sandbox" });
        let sandbox = match qmp.execute("query-command-line-options", sandbox).await {
            Ok(options) => !items(&options).is_empty(),
            // "invalid option name": built without it.
            Err(Error::Qmp { .. }) => false,
            Err(error) => return Err(error),
        };
        let capabilities = qmp
            .execute("query-migrate-capabilities", Value::Null)
            .await?;
        // A QEMU without TLS has the type too, and refuses to make one.
        let creds = json!({ "qom-type": "tls-creds-anon", "id": "probe", "endpoint": "client" });
        let tls = match qmp.execute("object-add", creds).await {
            Ok(_) => true,
            Err(Error::Qmp { .. }) => false,
            Err(error) => return Err(error),
        };
        let migration = migration(&capabilities, &schema, tls);
        // It is only a probe: it ends with its input whatever it answers here.
        let _ = qmp.execute("quit", Value::Null).await;
        Ok::<_, Error>((qmp.version(), machines, schema, kvm, sandbox, migration))
    }
    .await;
    let (version, machines, schema, kvm, sandbox, migration) = match asked {
        Ok(answers) => answers,
        Err(error) => {
            let mut text = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = child.start_kill();
                let _ = stderr.read_to_string(&mut text).await;
            }
            return Err(if text.is_empty() {
                error
            } else {
                Error::StartFailed {
                    status: "while asked for its features".into(),
                    log_tail: text,
                }
            });
        }
    };
    let _ = child.wait().await;
    let compiled_in = kvm.get("present").and_then(Value::as_bool).unwrap_or(false);
    let (machine_gen1, machine_gen2) = (newest(&machines, "pc"), newest(&machines, "q35"));
    let max_vcpus = items(&machines)
        .iter()
        .filter(|machine| text(machine, "alias") == Some("q35"))
        .find_map(|machine| number(machine, "cpu-max"))
        .and_then(|count| u32::try_from(count).ok())
        .unwrap_or(255);
    Ok(Features {
        qemu: qemu.to_owned(),
        version,
        kvm: kvm_state(compiled_in),
        machine_gen1,
        machine_gen2,
        machine_types: items(&machines)
            .iter()
            .filter_map(|machine| text(machine, "name"))
            .map(str::to_owned)
            .collect(),
        max_vcpus,
        commands: items(&schema)
            .iter()
            .filter(|entry| text(entry, "meta-type") == Some("command"))
            .filter_map(|entry| text(entry, "name"))
            .map(str::to_owned)
            .collect(),
        migrate_file: enum_has(&schema, "socket", "exec", "file"),
        sandbox,
        migration,
        firmware: find_firmware(),
    })
}

/// What there is for moves, from what the probe answered.
fn migration(capabilities: &Value, schema: &Value, tls: bool) -> MigrationFeatures {
    let command = |name| entry(schema, name).is_some();
    MigrationFeatures {
        capabilities: items(capabilities)
            .iter()
            .filter_map(|entry| text(entry, "capability"))
            .map(str::to_owned)
            .collect(),
        zstd: enum_has(schema, "none", "zlib", "zstd"),
        tls,
        stays_on_error: takes(schema, "migrate-incoming", "exit-on-error"),
        job_change: command("block-job-change"),
        set_active: command("blockdev-set-active"),
    }
}

fn entry<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    items(schema)
        .iter()
        .find(|entry| text(entry, "name") == Some(name))
}

/// Whether a command has that argument.
fn takes(schema: &Value, command: &str, argument: &str) -> bool {
    let arguments = entry(schema, command)
        .and_then(|command| text(command, "arg-type"))
        .and_then(|name| entry(schema, name))
        .and_then(|arguments| arguments.get("members"));
    arguments
        .map(items)
        .unwrap_or_default()
        .iter()
        .any(|member| text(member, "name") == Some(argument))
}

/// The versioned machine behind an alias. Debian marks it `is-default` for `pc`; the alias is there in every version.
fn newest(machines: &Value, alias: &str) -> Option<String> {
    items(machines)
        .iter()
        .find(|machine| text(machine, "alias") == Some(alias))
        .and_then(|machine| text(machine, "name"))
        .map(str::to_owned)
}

/// Type names in the schema are masked, so an enum is known by members it has had from the start.
fn enum_has(schema: &Value, one: &str, another: &str, wanted: &str) -> bool {
    items(schema)
        .iter()
        .filter(|entry| text(entry, "meta-type") == Some("enum"))
        .any(|entry| {
            let values: Vec<&str> = entry
                .get("values")
                .map(items)
                .unwrap_or_default()
                .iter()
                .filter_map(Value::as_str)
                .collect();
            [one, another, wanted]
                .iter()
                .all(|name| values.contains(name))
        })
}

/// `/dev/kvm` alone proves nothing: nested hosts show it without being able to run a guest.
fn kvm_state(compiled_in: bool) -> KvmState {
    if !compiled_in {
        return KvmState::Unusable("this QEMU was built without KVM".into());
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualization_flag(&cpu) {
        return KvmState::Unusable("the processor shows neither vmx nor svm".into());
    }
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => KvmState::Usable,
        Err(error) => KvmState::Unusable(format!("/dev/kvm: {error}")),
    }
}

fn has_virtualization_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "flags")
        .any(|(_, flags)| {
            flags
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

fn find_firmware() -> Option<Firmware> {
    FIRMWARE
        .iter()
        .map(|(code, vars)| Firmware {
            code: code.into(),
            vars_template: vars.into(),
        })
        .find(|firmware| firmware.code.is_file() && firmware.vars_template.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_needs_the_flag_itself() {
        assert!(has_virtualization_flag("flags\t\t: fpu svm sse\n"));
        assert!(!has_virtualization_flag(
            "flags\t\t: fpu svm_lock sse\nbugs: vmx\n"
        ));
    }

    #[test]
    fn the_newest_machine_type_is_the_one_behind_the_alias() {
        let machines = json!([
            { "name": "pc-i440fx-7.1" }, { "name": "pc-i440fx-7.2", "alias": "pc", "is-default": true }, { "name": "none" }
        ]);
        assert_eq!(newest(&machines, "pc").as_deref(), Some("pc-i440fx-7.2"));
        assert_eq!(newest(&machines, "q35"), None);
    }

    #[test]
    fn a_missing_program_is_told_with_its_remedy() {
        assert_eq!(find_program(Path::new("no-such-program-of-ours")), None);
        assert!(find_program(Path::new("sh")).is_some());
    }

    #[test]
    fn the_file_transport_is_read_from_the_schema() {
        let old = json!([{ "meta-type": "enum", "values": ["socket", "exec", "rdma"] }]);
        let new = json!([{ "meta-type": "enum", "values": ["socket", "exec", "rdma", "file"] }]);
        assert!(!enum_has(&old, "socket", "exec", "file"));
        assert!(enum_has(&new, "socket", "exec", "file"));
    }
}

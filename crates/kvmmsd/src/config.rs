//! The configuration file and what the command line overrides. Every key has a default; unknown keys are errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::service::Refusals;

/// The configuration, as in `/etc/kvmms/kvmms.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What must survive: records, maps, saved states.
    pub(crate) state_dir: PathBuf,
    /// Sockets.
    pub(crate) run_dir: PathBuf,
    /// Listeners, as `wsman+http://ADDR:PORT`, `wsman+https://…`, `cimxml+http://…`, `cimxml+https://…`, and
    /// `migration+tls://ADDR:PORT` for machines that come from hosts which are trusted (`0.0.0.0:6600` for all addresses); without one of those
    /// none comes.
    pub(crate) listen: Vec<String>,
    /// How many machines may be on their way to or from this host at once, until a client sets it; others wait.
    pub(crate) migration_machines: u32,
    /// How many moves of storage alone may go on at once, until a client sets it; others wait.
    pub(crate) migration_storages: u32,
    /// Whether moves compress what they send where both hosts can, until a client sets it.
    pub(crate) migration_compression: bool,
    /// Whether plain HTTP may listen on other addresses than loopback.
    pub(crate) plain_http_off_loopback: bool,
    /// Names and addresses of this host, besides its host name and the address of the listener, that requests may be sent to (their
    /// `Host` header): what a proxy or a name server makes of it. Others are refused, since pages of browsers could send them.
    pub(crate) host_names: Vec<String>,
    /// How a method tells that it refuses: `code` (its return code, with the reasons in one more out parameter) or `fault` (a WS-Management
    /// fault or CIM-XML error with the reasons in its detail, for clients that show nothing else).
    pub(crate) refusals: String,
    /// The certificate for TLS (PEM); empty: a self-signed one is made at the first start.
    pub(crate) tls_certificate: PathBuf,
    /// Its key (PEM).
    pub(crate) tls_key: PathBuf,
    /// Seconds an RCT point keeps its content for its first export; 0: not at all.
    pub(crate) hold_seconds: u64,
    /// How far the layers above a held point may grow, in MiB.
    pub(crate) hold_mib: u64,
    /// Most layers of one disk.
    pub(crate) max_layers: usize,
    /// Seconds a job stays visible after its end.
    pub(crate) job_keep_seconds: u64,
    /// Threads that read and hash during an export; 0: as many as there are processors, at most 8.
    pub(crate) export_threads: usize,
    /// Seconds the guest agent may take.
    pub(crate) agent_seconds: u64,
    /// Whether a small process of its own stands by while a guest is frozen, and thaws it when the service dies or hangs. Without it
    /// the next start of the service does.
    pub(crate) thaw_watchdog: bool,
    /// Seconds a guest may take to shut down.
    pub(crate) shutdown_seconds: u64,
    /// Milliseconds the guests of a collection may take to stand still for a point.
    pub(crate) stop_milliseconds: u64,
    /// Seconds after which a guest that was asked to shut down is asked again: one that boots hears nothing.
    pub(crate) shutdown_again_seconds: u64,
    /// Seconds all machines together may take to end when the host goes down.
    pub(crate) host_shutdown_seconds: u64,
    /// How long the log of a console may be, in MiB; as much again is kept of what was cut away.
    pub(crate) console_mib: u64,
    /// Warn where disks will have filled their file system within this many minutes at the pace of the last ten.
    pub(crate) room_warn_minutes: u64,
    /// Warn where less than this is free for disks, in MiB; of small file systems a twentieth.
    pub(crate) room_warn_mib: u64,
    /// `auto`, `kvm` or `tcg`.
    pub(crate) acceleration: String,
    /// How QEMU is shut in: `full` (each machine as a user of its own; needs root, else it is as `sandbox`), `sandbox` or `off`.
    pub(crate) confinement: String,
    /// The first uid of machines; nothing else on the host may have it, or any of the following.
    pub(crate) machine_user_first: u32,
    /// How many uids there are for machines; none is ever given again.
    pub(crate) machine_user_count: u32,
    /// What a differential export does where something else wrote to a disk's files: `fail`, `full` or `repair`.
    pub(crate) tampering_policy: String,
    /// Days for which what `host check --clean` takes away lies in quarantine before it is deleted.
    pub(crate) quarantine_days: u64,
    /// Hours after which the next copy of the state store is made, if anything has changed.
    pub(crate) store_copy_hours: u64,
    /// How many copies of the state store are kept; of older ones, one of each day for as many days.
    pub(crate) store_copies: usize,
    /// Directories that exports may go to; empty: any but system directories and the service's own.
    pub(crate) export_roots: Vec<PathBuf>,
    /// Directories that disk images may lie in; empty: likewise.
    pub(crate) image_roots: Vec<PathBuf>,
    /// Directories that imports are read from; empty: likewise.
    pub(crate) import_roots: Vec<PathBuf>,
    /// Whether exports may go to directories in which others than root and the service's user could exchange files.
    pub(crate) allow_foreign_directories: bool,
    /// What a client can take of the service at most.
    pub(crate) limits: Limits,
    /// Whether imports by ImportSystemDefinition and ImportSnapshotDefinitions take saved memory over. QEMU runs what it says: only where all
    /// exports that are imported can be trusted.
    pub(crate) import_memory: bool,
}

impl Default for Config {
    fn default() -> Self {
        let (state_dir, run_dir) = default_dirs();
        let options = vmms::Options::default();
        Config {
            state_dir,
            run_dir,
            listen: [
                "wsman+http://127.0.0.1:5985",
                "wsman+https://127.0.0.1:5986",
                "cimxml+http://127.0.0.1:5988",
                "cimxml+https://127.0.0.1:5989",
                "migration+tls://127.0.0.1:6600",
            ]
            .map(str::to_owned)
            .to_vec(),
            migration_machines: options.migration.machines,
            migration_storages: options.migration.storages,
            migration_compression: options.migration.compression,
            plain_http_off_loopback: false,
            host_names: Vec::new(),
            refusals: "code".to_owned(),
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            hold_seconds: options.hold_time.as_secs(),
            hold_mib: options.hold_bytes >> 20,
            max_layers: options.max_layers,
            job_keep_seconds: options.job_keep.as_secs(),
            export_threads: 0,
            agent_seconds: options.agent_deadline.as_secs(),
            thaw_watchdog: true,
            shutdown_seconds: options.shutdown_deadline.as_secs(),
            stop_milliseconds: u64::try_from(options.stop_deadline.as_millis()).unwrap_or(u64::MAX),
            shutdown_again_seconds: options.shutdown_again.as_secs(),
            host_shutdown_seconds: options.host_shutdown_deadline.as_secs(),
            console_mib: options.console_bytes >> 20,
            room_warn_minutes: options.room.warn_ahead.as_secs() / 60,
            room_warn_mib: options.room.warn_below >> 20,
            acceleration: "auto".to_owned(),
            confinement: vmms::ConfinementLevel::Full.word().to_owned(),
            machine_user_first: options.confinement.first,
            machine_user_count: options.confinement.count,
            tampering_policy: options.tampering.word().to_owned(),
            quarantine_days: options.quarantine.as_secs() / DAY,
            store_copy_hours: 6,
            store_copies: 6,
            export_roots: options.places.exports,
            image_roots: options.places.images,
            import_roots: options.places.imports,
            allow_foreign_directories: options.places.allow_foreign,
            limits: Limits::default(),
            import_memory: options.import_memory,
        }
    }
}

/// Seconds.
const DAY: u64 = 24 * 3600;

/// Root keeps state in /var/lib and sockets in /run; anybody else in the XDG directories.
fn default_dirs() -> (PathBuf, PathBuf) {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    if rustix::process::getuid().is_root() {
        return ("/var/lib/kvmms".into(), "/run/kvmms".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME")
        .map_or_else(|| home().join(".local/state"), PathBuf::from);
    let run = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(
        || std::env::temp_dir().join(format!("kvmms-{}", rustix::process::getuid().as_raw())),
        PathBuf::from,
    );
    (state.join("kvmms"), run.join("kvmms"))
}

impl Config {
    /// Reads a file; without one named, `/etc/kvmms/kvmms.toml` where it exists, else the defaults.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let standard = Path::new("/etc/kvmms/kvmms.toml");
        let path = match path {
            Some(path) => path,
            None if standard.exists() => standard,
            None => return Ok(Config::default()),
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text)
            .with_context(|| format!("{} is not a usable configuration", path.display()))
    }

    /// The domain's options.
    pub(crate) fn options(&self) -> Result<vmms::Options> {
        let mut options = vmms::Options {
            hold_time: Duration::from_secs(self.hold_seconds),
            hold_bytes: self.hold_mib << 20,
            max_layers: self.max_layers,
            job_keep: Duration::from_secs(self.job_keep_seconds),
            agent_deadline: Duration::from_secs(self.agent_seconds),
            // By this name also after an upgrade has replaced the file.
            thaw_watchdog: self.thaw_watchdog.then(|| "/proc/self/exe".into()),
            shutdown_deadline: Duration::from_secs(self.shutdown_seconds),
            stop_deadline: Duration::from_millis(self.stop_milliseconds),
            quarantine: Duration::from_secs(self.quarantine_days.saturating_mul(DAY)),
            shutdown_again: Duration::from_secs(self.shutdown_again_seconds.max(1)),
            host_shutdown_deadline: Duration::from_secs(self.host_shutdown_seconds),
            console_bytes: self.console_mib << 20,
            room: vmms::machine::RoomOptions {
                warn_ahead: Duration::from_secs(self.room_warn_minutes.saturating_mul(60)),
                warn_below: self.room_warn_mib << 20,
                ..vmms::machine::RoomOptions::default()
            },
            import_memory: self.import_memory,
            migration: vmms::migration::MigrationDefaults {
                machines: self.migration_machines,
                storages: self.migration_storages,
                compression: self.migration_compression,
                ..vmms::migration::MigrationDefaults::default()
            },
            ..vmms::Options::default()
        };
        if self.export_threads > 0 {
            options.export_threads = self.export_threads.min(64);
        }
        if !(1..=24 * 3600).contains(&self.host_shutdown_seconds) {
            bail!("host_shutdown_seconds goes from 1 to 86400");
        }
        for (key, moves) in [
            ("migration_machines", self.migration_machines),
            ("migration_storages", self.migration_storages),
        ] {
            if !(1..=64).contains(&moves) {
                bail!("{key} goes from 1 to 64");
            }
        }
        if !(1..=1 << 20).contains(&self.console_mib) {
            bail!("console_mib goes from 1 to 1048576");
        }
        if !(2..=200).contains(&self.max_layers) {
            bail!("max_layers goes from 2 to 200");
        }
        if !(1..=3650).contains(&self.quarantine_days) {
            bail!("quarantine_days goes from 1 to 3650");
        }
        options.acceleration = match self.acceleration.as_str() {
            "auto" => vmms::Acceleration::Auto,
            "kvm" => vmms::Acceleration::Kvm,
            "tcg" => vmms::Acceleration::Tcg,
            other => bail!("acceleration is auto, kvm or tcg, not {other:?}"),
        };
        let wanted = self.confinement.as_str();
        let found = vmms::ConfinementLevel::ALL
            .into_iter()
            .find(|level| level.word() == wanted);
        let Some(level) = found else {
            bail!("confinement is full, sandbox or off, not {wanted:?}");
        };
        let last = self.machine_user_first.checked_add(self.machine_user_count);
        // Above that signed numbers end; 65534 and 65535 stand for nobody.
        if self.machine_user_first < 65_536 || last.is_none_or(|last| last > 1 << 31) {
            bail!(
                "the uids of machines, from machine_user_first on, lie between 65536 and 2147483647"
            );
        }
        if !(1..=1 << 24).contains(&self.machine_user_count) {
            bail!("machine_user_count goes from 1 to 16777216");
        }
        options.confinement.level = level;
        options.confinement.first = self.machine_user_first;
        options.confinement.count = self.machine_user_count;
        let wanted = self.tampering_policy.as_str();
        let found = vmms::TamperingPolicy::ALL
            .into_iter()
            .find(|p| p.word() == wanted);
        let Some(policy) = found else {
            bail!("tampering_policy is fail, full or repair, not {wanted:?}");
        };
        options.tampering = policy;
        let roots = [&self.export_roots, &self.image_roots, &self.import_roots];
        if let Some(relative) = roots.into_iter().flatten().find(|r| !r.is_absolute()) {
            bail!("{} is no absolute path", relative.display());
        }
        options.places = vmms::Places {
            exports: self.export_roots.clone(),
            images: self.image_roots.clone(),
            imports: self.import_roots.clone(),
            allow_foreign: self.allow_foreign_directories,
        };
        Ok(options)
    }

    /// How refusals are told.
    pub(crate) fn refusals(&self) -> Result<Refusals> {
        match self.refusals.as_str() {
            "code" => Ok(Refusals::Code),
            "fault" => Ok(Refusals::Fault),
            other => bail!("refusals is code or fault, not {other:?}"),
        }
    }

    /// Copies of the state store.
    pub(crate) fn copies(&self) -> Result<vmms::recover::Copies> {
        if !(1..=8760).contains(&self.store_copy_hours) || !(1..=1000).contains(&self.store_copies)
        {
            bail!("store_copy_hours goes from 1 to 8760, store_copies from 1 to 1000");
        }
        Ok(vmms::recover::Copies {
            directory: vmms::recover::copies_dir(&self.state_dir),
            every: Duration::from_secs(self.store_copy_hours * 3600),
            keep: self.store_copies,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// The users file.
    pub(crate) fn users(&self) -> PathBuf {
        self.state_dir.join("users")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_defaults_fill_the_rest() {
        let config: Config = toml::from_str("hold_seconds = 0").expect("a partial file");
        assert_eq!(config.hold_seconds, 0);
        assert_eq!(config.listen.len(), 5);
        let loopback = config
            .listen
            .iter()
            .all(|url| url.contains("://127.0.0.1:"));
        assert!(loopback, "{:?}", config.listen);
        assert!(toml::from_str::<Config>("hold_secs = 0").is_err());
    }

    #[test]
    fn the_policy_for_tampered_disks_is_one_of_three_words() {
        let policy = |text: &str| {
            let config: Config = toml::from_str(text).expect("a partial file");
            config.options().map(|o| o.tampering)
        };
        assert_eq!(policy("").ok(), Some(vmms::TamperingPolicy::Repair));
        let fail = policy("tampering_policy = \"fail\"");
        assert_eq!(fail.ok(), Some(vmms::TamperingPolicy::Fail));
        assert!(policy("tampering_policy = \"ignore\"").is_err());
    }

    #[test]
    fn confinement_is_full_unless_configured_and_its_users_are_no_ordinary_ones() {
        let options = |text: &str| {
            let config: Config = toml::from_str(text).expect("a partial file");
            config.options().map(|o| o.confinement)
        };
        let level = |text: &str| options(text).ok().map(|c| c.level);
        assert_eq!(level(""), Some(vmms::ConfinementLevel::Full));
        assert_eq!(
            level("confinement = \"off\""),
            Some(vmms::ConfinementLevel::Off)
        );
        assert!(options("confinement = \"some\"").is_err());
        assert!(options("machine_user_first = 1000").is_err());
        assert!(options("machine_user_first = 2147483647").is_err());
    }

    #[test]
    fn moves_at_once_are_bounded() {
        let read = |text: &str| {
            let config: Config = toml::from_str(text).expect("a partial file");
            config.options().map(|o| o.migration)
        };
        let some = read("migration_machines = 5\nmigration_compression = false").ok();
        let told = some.map(|m| (m.machines, m.storages, m.compression, m.enabled));
        assert_eq!(told, Some((5, 2, false, true)));
        assert!(read("migration_storages = 0").is_err());
        assert!(read("migration_machines = 65").is_err());
    }

    #[test]
    fn roots_are_absolute_paths() {
        let read = |text: &str| {
            let config: Config = toml::from_str(text).expect("a partial file");
            config.options().map(|o| o.places)
        };
        assert_eq!(read("").ok(), Some(vmms::Places::default()));
        let some = read(
            "export_roots = [\"/srv\"]\nimage_roots = [\"/images\"]\nimport_roots = [\"/in\"]\nallow_foreign_directories = true",
        );
        let (some, expected) = (
            some.ok(),
            vmms::Places {
                exports: vec!["/srv".into()],
                images: vec!["/images".into()],
                imports: vec!["/in".into()],
                allow_foreign: true,
            },
        );
        assert_eq!(some, Some(expected));
        assert!(read("import_roots = [\"srv\"]").is_err());
    }

    #[test]
    fn the_effective_configuration_reads_back() {
        let text = toml::to_string(&Config::default()).expect("text");
        assert!(toml::from_str::<Config>(&text).is_ok(), "{text}");
    }
}

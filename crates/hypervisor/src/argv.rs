//! The command line of a machine: a pure function of configuration and features.
//!
//! Anything that may hold a comma or a quote travels as JSON; the few options without a JSON form have commas doubled.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::blockdev::{self, FileFacts};
use crate::config::{BootSource, Controller, Generation, MachineConfig, NicBackend, path_text};
use crate::error::{Error, Result};
use crate::names::{RunFiles, check_socket};
use crate::probe::Features;

/// The arguments after the program's name. The guest does not run after the start (`-S`); with `incoming` QEMU waits
/// for a saved state or a migration.
///
/// # Errors
/// [`Error::Config`] for what cannot be built, [`Error::Unsupported`] for what this host lacks.
pub fn build(
    config: &MachineConfig,
    features: &Features,
    facts: &FileFacts,
    given: &Given,
    incoming: bool,
) -> Result<Vec<OsString>> {
    config.validate()?;
    if config.vcpus > features.max_vcpus {
        return Err(Error::config(format!(
            "at most {} processors with this QEMU",
            features.max_vcpus
        )));
    }
    let mut args = Arguments { list: Vec::new() };
    let files = RunFiles::new(&config.run_dir);
    let serial = config
        .serial
        .iter()
        .flatten()
        .map(|port| port.socket.clone());
    for socket in [files.qmp(), files.monitor(), files.agent()]
        .into_iter()
        .chain(serial)
    {
        check_socket(&socket)?;
    }
    args.one("-no-user-config").one("-nodefaults").one("-S");
    args.two("-display", "none")
        .two("-msg", "timestamp=on")
        .two("-rtc", "base=utc");
    args.two(
        "-name",
        format!("guest={},debug-threads=on", doubled(&config.name)),
    );
    args.two("-uuid", config.id.to_string());
    // Names the machine's run directory, by which its process is found again. QEMU looks for its ROMs here first, and there is none.
    args.two("-L", path_text(&files.pid())?);
    if config.confinement.sandbox {
        args.two("-sandbox", sandbox(features)?);
    }
    args.machine(config, features, given)?;
    args.two("-m", format!("size={}M", config.memory_mib))
        .two("-smp", config.vcpus.to_string());
    // Not `-boot strict=on`: SeaBIOS would then hide disks that are not in the boot order from boot loaders.
    // A guest that suspends itself to RAM looks switched off and is not; Hyper-V offers no such state either.
    let chip = match config.generation {
        Generation::Gen1 => "PIIX4_PM",
        Generation::Gen2 => "ICH9-LPC",
    };
    for state in ["s3", "s4"] {
        args.two("-global", format!("{chip}.disable_{state}=1"));
    }
    for (id, socket) in [("qmp", given.qmp), ("monitor", given.monitor)] {
        args.chardev(id, socket, None)
            .two("-mon", format!("chardev={id},mode=control"));
    }
    args.device(&json!({ "driver": "VGA", "id": "video" }));
    args.serial_ports(given);
    args.agent(given);
    args.disks(config, facts)?;
    args.network(config);
    args.direct_kernel(config)?;
    if incoming {
        args.two("-incoming", "defer");
    }
    Ok(args.list)
}

/// Descriptors that QEMU gets from the service, by their numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// The socket of the service's monitor, listening.
    pub qmp: RawFd,
    /// The socket of the second monitor, listening.
    pub monitor: RawFd,
    /// The socket of the guest agent, listening.
    pub agent: Option<RawFd>,
    /// Sockets of COM1 and COM2, listening, and what keeps their output, open to append.
    pub serial: [Option<(RawFd, Option<RawFd>)>; 2],
    /// The firmware's variables, open to read and write.
    pub firmware_vars: Option<RawFd>,
}

/// All that QEMU can be denied and a machine does not need.
fn sandbox(features: &Features) -> Result<String> {
    if !features.sandbox {
        return Err(Error::Unsupported {
            what: "QEMU's sandbox (this QEMU was built without seccomp)".into(),
            remedy: "install a QEMU with seccomp, as distributions build it, or set confinement = \"off\"".into(),
        });
    }
    Ok("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into())
}

struct Arguments {
    list: Vec<OsString>,
}

impl Arguments {
    fn one(&mut self, arg: impl Into<OsString>) -> &mut Self {
        self.list.push(arg.into());
        self
    }

    fn two(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.one(option).one(value)
    }

    fn device(&mut self, device: &Value) -> &mut Self {
        self.two("-device", device.to_string())
    }

    fn blockdev(&mut self, node: &Value) -> &mut Self {
        self.two("-blockdev", node.to_string())
    }

    fn chardev(&mut self, id: &str, socket: RawFd, log: Option<RawFd>) -> &mut Self {
        let mut value = format!("socket,id={id},fd={socket},server=on,wait=off");
        if let Some(log) = log {
            let set = self.descriptor_set(log, id);
            value.push_str(&format!(",logfile={set},logappend=on"));
        }
        self.two("-chardev", value)
    }

    /// A path that opens a descriptor QEMU was started with.
    fn descriptor_set(&mut self, descriptor: RawFd, what: &str) -> String {
        self.two(
            "-add-fd",
            format!("fd={descriptor},set={descriptor},opaque={what}"),
        );
        format!("/dev/fdset/{descriptor}")
    }

    fn machine(
        &mut self,
        config: &MachineConfig,
        features: &Features,
        given: &Given,
    ) -> Result<()> {
        let mut machine = format!(
            "{},usb=off,dump-guest-core=off",
            features.machine_type(config)?
        );
        // Without firmware a generation 2 machine can still start a kernel that QEMU loads itself.
        let direct = config.direct_kernel.is_some() && features.firmware.is_none();
        if config.generation == Generation::Gen2 && !direct {
            let firmware = features.firmware()?;
            let vars = given.firmware_vars.ok_or_else(|| {
                Error::config("a generation 2 machine needs a file for its firmware variables")
            })?;
            let vars = self.descriptor_set(vars, "firmware-vars");
            // A set keeps its descriptor and with it the locks, so that QEMU would lock itself out when it opens the file again.
            let nodes = [
                ("firmware", path_text(&firmware.code)?, true, "auto"),
                ("firmware-vars", vars.as_str(), false, "off"),
            ];
            for (node, path, read_only, locking) in nodes {
                let file = json!({
                    "driver": "file", "filename": path, "node-name": format!("{node}.f"), "locking": locking,
                });
                self.blockdev(&json!({
                    "driver": "raw", "node-name": node, "read-only": read_only, "file": file,
                }));
            }
            machine.push_str(",pflash0=firmware,pflash1=firmware-vars");
        }
        self.two("-machine", machine);
        let (accelerator, all) = match features.use_kvm(config.acceleration)? {
            true => ("kvm", "host"),
            false => ("tcg", "max"),
        };
        self.two("-accel", accelerator);
        match &config.cpu_model {
            // Without `enforce` a feature this host lacks would be left out without a word.
            Some(model) => self.two("-cpu", format!("{model},enforce")),
            None => self.two("-cpu", all),
        };
        Ok(())
    }

    fn serial_ports(&mut self, given: &Given) {
        for (index, port) in given.serial.iter().enumerate() {
            if let Some((socket, log)) = *port {
                let id = format!("serial{index}");
                self.chardev(&id, socket, log);
                self.device(&json!({ "driver": "isa-serial", "id": format!("com{}", index + 1), "chardev": id, "index": index }));
            }
        }
    }

    fn agent(&mut self, given: &Given) {
        if let Some(socket) = given.agent {
            self.chardev("agent", socket, None);
            self.device(&json!({ "driver": "virtio-serial-pci", "id": "channels" }));
            self.device(&json!({
                "driver": "virtserialport",
                "id": "agent-port",
                "bus": "channels.0",
                "chardev": "agent",
                "name": crate::agent::CHANNEL,
            }));
        }
    }

    fn disks(&mut self, config: &MachineConfig, facts: &FileFacts) -> Result<()> {
        let used = config.drives.iter().map(|drive| drive.controller);
        let controllers: BTreeSet<Controller> =
            config.controllers.iter().copied().chain(used).collect();
        for controller in controllers {
            if let Controller::Scsi(n) = controller {
                self.device(&json!({ "driver": "virtio-scsi-pci", "id": format!("scsi{n}") }));
            }
        }
        for drive in &config.drives {
            for node in blockdev::chain_nodes(drive, facts)? {
                self.blockdev(&node);
            }
            let boot_index = config
                .boot_order
                .iter()
                .position(|source| matches!(source, BootSource::Drive(id) if *id == drive.id));
            self.device(&blockdev::device(drive, boot_index)?);
        }
        Ok(())
    }

    fn network(&mut self, config: &MachineConfig) {
        if config.no_network {
            return;
        }
        for (index, nic) in config.nics.iter().enumerate() {
            let mut device =
                json!({ "driver": "virtio-net-pci", "id": format!("nic{index}"), "mac": nic.mac });
            let boot_index = config
                .boot_order
                .iter()
                .position(|source| matches!(source, BootSource::Nic(n) if *n == index));
            if let Some(members) = device.as_object_mut() {
                match boot_index {
                    Some(place) => drop(members.insert("bootindex".into(), place.into())),
                    // No boot ROM: it would only slow the start.
                    None => drop(members.insert("romfile".into(), "".into())),
                }
                if nic.backend == NicBackend::User {
                    members.insert("netdev".into(), format!("net{index}").into());
                    // QEMU would connect the guest to all that listens on the host's loopback, and has no switch for only that.
                    self.two("-netdev", format!("user,id=net{index},restrict=on"));
                }
            }
            self.device(&device);
        }
    }

    fn direct_kernel(&mut self, config: &MachineConfig) -> Result<()> {
        let Some(direct) = &config.direct_kernel else {
            return Ok(());
        };
        self.two("-kernel", path_text(&direct.kernel)?);
        if let Some(initrd) = &direct.initrd {
            // QEMU reads commas here as a list of modules.
            self.two("-initrd", doubled(path_text(initrd)?));
        }
        if !direct.command_line.is_empty() {
            self.two("-append", direct.command_line.as_str());
        }
        Ok(())
    }
}

fn doubled(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::config::{
        Acceleration, DriveConfig, DriveKind, ImageFormat, LayerFile, Nic, SerialPort,
    };
    use crate::fake::features;
    use crate::probe::Firmware;

    fn config(generation: Generation) -> MachineConfig {
        MachineConfig::new(Uuid::from_u128(7), "one, \"two\"", generation, "/run/k/7")
    }

    fn disk(
        id: &str,
        controller: Controller,
        slot: u16,
        layers: &[(&str, ImageFormat)],
    ) -> DriveConfig {
        let layer = |(name, format): &(&str, ImageFormat)| {
            LayerFile::new(*name, format!("/d/{name}, x.img"), *format)
        };
        let chain = layers.iter().map(layer).collect();
        DriveConfig {
            id: id.into(),
            controller,
            slot,
            kind: DriveKind::Disk,
            chain,
            read_only: false,
        }
    }

    fn line(config: &MachineConfig) -> Result<Vec<String>> {
        let list = build(
            config,
            &features(),
            &FileFacts::default(),
            &given(config),
            false,
        )?;
        Ok(list
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect())
    }

    fn given(config: &MachineConfig) -> Given {
        Given {
            qmp: 10,
            monitor: 11,
            agent: config.guest_agent.then_some(12),
            serial: [config.serial[0].as_ref().map(|_| (13, Some(14))), None],
            firmware_vars: config.firmware_vars.as_ref().map(|_| 15),
        }
    }

    fn values(line: &[String], option: &str) -> Vec<String> {
        line.windows(2)
            .filter(|pair| pair[0] == option)
            .map(|pair| pair[1].clone())
            .collect()
    }

    fn json_values(line: &[String], option: &str) -> Vec<Value> {
        values(line, option)
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect()
    }

    #[test]
    fn a_chain_is_spelled_out_base_first_with_explicit_backing() {
        let mut config = config(Generation::Gen1);
        config.drives.push(disk(
            "sda",
            Controller::Ide(1),
            1,
            &[("base", ImageFormat::Raw), ("top", ImageFormat::Qcow2)],
        ));
        let line = line(&config).unwrap();
        let nodes = json_values(&line, "-blockdev");
        assert_eq!(
            nodes,
            [
                json!({"driver":"file","node-name":"base.f","filename":"/d/base, x.img","discard":"unmap","auto-read-only":true}),
                json!({"driver":"raw","node-name":"base","file":"base.f","read-only":true,"discard":"unmap","detect-zeroes":"off"}),
                json!({"driver":"file","node-name":"top.f","filename":"/d/top, x.img","discard":"unmap","auto-read-only":false}),
                json!({"driver":"qcow2","node-name":"top","file":"top.f","backing":"base","read-only":false,"discard":"unmap","detect-zeroes":"off"}),
            ]
        );
        let device = json!({"driver":"ide-hd","id":"drive-sda","bus":"ide.1","unit":1,"drive":"top","werror":"stop","rerror":"report"});
        assert!(json_values(&line, "-device").contains(&device), "{line:?}");
    }

    #[test]
    fn a_lone_qcow2_never_follows_the_name_recorded_in_it() {
        let mut config = config(Generation::Gen1);
        config.drives.push(disk(
            "a",
            Controller::Scsi(0),
            3,
            &[("l0", ImageFormat::Qcow2)],
        ));
        let line = line(&config).unwrap();
        let nodes = json_values(&line, "-blockdev");
        assert_eq!(nodes[1].get("backing"), Some(&Value::Null));
        let devices = json_values(&line, "-device");
        assert!(devices.contains(&json!({"driver":"virtio-scsi-pci","id":"scsi0"})));
        assert!(devices.contains(&json!({"driver":"scsi-hd","id":"drive-a","bus":"scsi0.0","scsi-id":3,"lun":0,"drive":"l0","werror":"stop","rerror":"report"})));
    }

    #[test]
    fn commas_in_names_and_paths_stay_inside_their_value() {
        let mut config = config(Generation::Gen1);
        config.serial[0] = Some(SerialPort {
            socket: "/run/a,b/com1".into(),
            log: Some("/log/a,b".into()),
        });
        config.guest_agent = true;
        let line = line(&config).unwrap();
        assert_eq!(
            values(&line, "-name"),
            ["guest=one,, \"two\",debug-threads=on"]
        );
        let sockets = values(&line, "-chardev");
        assert_eq!(
            sockets,
            [
                "socket,id=qmp,fd=10,server=on,wait=off",
                "socket,id=monitor,fd=11,server=on,wait=off",
                "socket,id=serial0,fd=13,server=on,wait=off,logfile=/dev/fdset/14,logappend=on",
                "socket,id=agent,fd=12,server=on,wait=off",
            ]
        );
        assert_eq!(values(&line, "-add-fd"), ["fd=14,set=14,opaque=serial0"]);
    }

    #[test]
    fn a_confined_machine_is_denied_all_it_does_not_need() {
        let mut config = config(Generation::Gen1);
        assert!(values(&line(&config).unwrap(), "-sandbox").is_empty());
        config.confinement.sandbox = true;
        assert_eq!(
            values(&line(&config).unwrap(), "-sandbox"),
            ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        );
        let without = Features {
            sandbox: false,
            ..features()
        };
        let facts = FileFacts::default();
        let error = build(&config, &without, &facts, &given(&config), false).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
    }

    #[test]
    fn a_guest_on_the_user_network_does_not_reach_the_hosts_loopback() {
        let mut config = config(Generation::Gen1);
        config.nics.push(Nic {
            mac: "52:54:00:00:00:01".into(),
            backend: NicBackend::User,
        });
        let networks = values(&line(&config).unwrap(), "-netdev");
        assert_eq!(networks, ["user,id=net0,restrict=on"]);
    }

    #[test]
    fn generation_2_without_firmware_says_what_to_install() {
        let error = line(&config(Generation::Gen2)).unwrap_err();
        assert!(
            error.detail().is_some_and(|remedy| remedy.contains("ovmf")),
            "{error}"
        );
    }

    #[test]
    fn generation_2_has_uefi_with_its_own_variables() {
        let mut config = config(Generation::Gen2);
        config.firmware_vars = Some("/var/vars.fd".into());
        let firmware = Firmware {
            code: "/fw/code.fd".into(),
            vars_template: "/fw/vars.fd".into(),
        };
        let features = Features {
            firmware: Some(firmware),
            ..features()
        };
        let given = given(&config);
        let list = build(&config, &features, &FileFacts::default(), &given, true).unwrap();
        let line: Vec<String> = list
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        let machine = values(&line, "-machine").remove(0);
        assert!(
            machine.starts_with("pc-q35-10.0,")
                && machine.ends_with("pflash0=firmware,pflash1=firmware-vars")
        );
        assert_eq!(values(&line, "-incoming"), ["defer"]);
        let nodes = json_values(&line, "-blockdev");
        assert_eq!(nodes[1]["file"]["filename"], "/dev/fdset/15");
        assert_eq!(nodes[1]["file"]["locking"], "off");
        assert_eq!(nodes[0]["read-only"], true);
    }

    #[test]
    fn boot_order_becomes_boot_indexes() {
        let mut config = config(Generation::Gen1);
        config.drives.push(disk(
            "a",
            Controller::Ide(0),
            0,
            &[("l0", ImageFormat::Qcow2)],
        ));
        config.nics.push(Nic {
            mac: "52:54:00:00:00:01".into(),
            backend: NicBackend::User,
        });
        config.boot_order = vec![BootSource::Nic(0), BootSource::Drive("a".into())];
        let devices = json_values(&line(&config).unwrap(), "-device");
        let index = |id: &str| {
            devices
                .iter()
                .find(|d| d["id"] == id)
                .map(|d| d["bootindex"].clone())
        };
        assert_eq!(
            (index("nic0"), index("drive-a")),
            (Some(json!(0)), Some(json!(1)))
        );
        config.no_network = true;
        let devices = json_values(&line(&config).unwrap(), "-device");
        assert!(!devices.iter().any(|d| d["id"] == "nic0"));
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_name() {
        let mut twice = config(Generation::Gen1);
        twice.drives.push(disk(
            "a",
            Controller::Ide(0),
            0,
            &[("l0", ImageFormat::Qcow2)],
        ));
        twice.drives.push(disk(
            "b",
            Controller::Ide(0),
            0,
            &[("l1", ImageFormat::Qcow2)],
        ));
        assert!(line(&twice).unwrap_err().to_string().contains("used twice"));
        let mut long = config(Generation::Gen1);
        long.run_dir = format!("/{}", "x".repeat(120)).into();
        assert!(
            line(&long)
                .unwrap_err()
                .to_string()
                .contains("shorter run directory")
        );
        let mut kvm = config(Generation::Gen1);
        kvm.acceleration = Acceleration::Kvm;
        assert_eq!(
            line(&kvm).unwrap_err().kind(),
            crate::ErrorKind::Unsupported
        );
        let mut old = config(Generation::Gen1);
        old.machine_type = Some("pc-i440fx-0.12".into());
        assert_eq!(
            line(&old).unwrap_err().kind(),
            crate::ErrorKind::Unsupported
        );
    }
}

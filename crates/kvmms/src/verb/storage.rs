//! Controllers, drives and disks of a machine, and where a new disk goes.

use cim::{Instance, Name, Path, Value};
use msvm::class;
use serde_json::json;

use crate::error::{Error, Result};
use crate::find::{Candidate, Machine, Naming};
use crate::inspect::{number, text};
use crate::output::Row;
use crate::session::{Called, NAMESPACE, Session, management, parameters, quoted};

/// ResourceType of CIM.
mod kind {
    pub(super) const IDE: u64 = 5;
    pub(super) const SCSI: u64 = 6;
    pub(super) const DVD_DRIVE: u64 = 16;
    pub(super) const DISK_DRIVE: u64 = 17;
    pub(super) const DISK: u64 = 31;
}

/// What a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bus {
    Ide,
    Scsi,
}

impl Bus {
    fn slots(self) -> u64 {
        match self {
            Bus::Ide => 2,
            Bus::Scsi => 64,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Bus::Ide => "ide",
            Bus::Scsi => "scsi",
        }
    }
}

/// A controller.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Controller {
    id: String,
    pub(super) bus: Bus,
    number: u64,
    path: Path,
    used: Vec<u64>,
}

/// A disk in a drive.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Disk {
    /// InstanceID of its settings.
    pub(super) id: String,
    /// The image.
    pub(super) file: String,
    /// `scsi:0:1`; empty where the drive is not found.
    pub(super) place: String,
    pub(super) read_only: bool,
    pub(super) path: Path,
    pub(super) drive: Option<Path>,
}

/// The storage of one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Storage {
    pub(super) controllers: Vec<Controller>,
    pub(super) disks: Vec<Disk>,
}

/// Every settings instance of a machine's resources.
pub(super) async fn resources(session: &Session, machine: &Machine) -> Result<Vec<Instance>> {
    let wql = format!(
        "SELECT * FROM CIM_ResourceAllocationSettingData WHERE InstanceID LIKE {}",
        quoted(&format!("Microsoft:{}%", machine.id))
    );
    Ok(session.client.query(&wql).await?)
}

fn path_of(i: &Instance) -> Path {
    i.path.clone().unwrap_or_else(|| {
        Path::class(i.class.clone())
            .in_namespace(NAMESPACE)
            .key("InstanceID", text(i, "InstanceID"))
    })
}

/// The id of what holds a resource.
fn parent(i: &Instance) -> Option<String> {
    let path = i.get("Parent").as_path()?;
    path.get_str("InstanceID").map(str::to_owned)
}

impl Storage {
    /// Reads the storage of a machine.
    pub(super) async fn of(session: &Session, machine: &Machine) -> Result<Self> {
        Ok(Storage::read(&resources(session, machine).await?))
    }

    /// The same from its resources.
    pub(super) fn read(resources: &[Instance]) -> Self {
        let of = |wanted: u64| {
            resources
                .iter()
                .filter(move |i| number(i, "ResourceType") == Some(wanted))
        };
        let mut controllers = Vec::new();
        for (bus, wanted) in [(Bus::Ide, kind::IDE), (Bus::Scsi, kind::SCSI)] {
            for (nth, i) in (0u64..).zip(of(wanted)) {
                controllers.push(Controller {
                    id: text(i, "InstanceID"),
                    bus,
                    // Hyper-V numbers its SCSI controllers by their order only.
                    number: number(i, "Address").unwrap_or(nth),
                    path: path_of(i),
                    used: Vec::new(),
                });
            }
        }
        controllers.sort_by_key(|c| (c.bus, c.number));
        let mut drives = Vec::new();
        for i in of(kind::DISK_DRIVE).chain(of(kind::DVD_DRIVE)) {
            let above = parent(i);
            let controller = controllers.iter_mut().find(|c| {
                above
                    .as_ref()
                    .is_some_and(|p| p.eq_ignore_ascii_case(&c.id))
            });
            let slot = number(i, "AddressOnParent");
            let place = match (controller, slot) {
                (Some(c), Some(slot)) => {
                    c.used.push(slot);
                    format!("{}:{}:{slot}", c.bus.word(), c.number)
                }
                _ => String::new(),
            };
            drives.push((text(i, "InstanceID"), path_of(i), place));
        }
        let mut disks = Vec::new();
        for i in of(kind::DISK) {
            let hard = text(i, "ResourceSubType").ends_with("Virtual Hard Disk");
            if !hard {
                continue;
            }
            let above = parent(i);
            let drive = drives
                .iter()
                .find(|(id, ..)| above.as_ref().is_some_and(|p| p.eq_ignore_ascii_case(id)));
            disks.push(Disk {
                id: text(i, "InstanceID"),
                file: text(i, "HostResource"),
                place: drive.map(|(.., place)| place.clone()).unwrap_or_default(),
                read_only: number(i, "Access") == Some(1),
                path: path_of(i),
                drive: drive.map(|(_, path, _)| path.clone()),
            });
        }
        disks.sort_by(|a, b| a.place.cmp(&b.place));
        Storage { controllers, disks }
    }

    /// The disk a text names: by its image's path or file name, its place, or its id.
    pub(super) fn disk(&self, wanted: &str, naming: Naming) -> Result<&Disk> {
        let name = |d: &Disk| {
            d.file
                .rsplit(['/', '\\'])
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let device = |d: &Disk| {
            d.id.split_once('\\')
                .map_or(d.id.clone(), |(_, rest)| rest.to_owned())
        };
        let named: Vec<&Disk> = self
            .disks
            .iter()
            .filter(|d| {
                d.id.eq_ignore_ascii_case(wanted)
                    || d.file == wanted
                    || d.place.eq_ignore_ascii_case(wanted)
                    || name(d) == wanted
                    || device(d).eq_ignore_ascii_case(wanted)
            })
            .collect();
        match named.as_slice() {
            [one] if !wanted.is_empty() => return Ok(one),
            [] | [_] => {}
            several => {
                return Err(Error::Ambiguous {
                    kind: "disk of the machine",
                    text: wanted.to_owned(),
                    candidates: several
                        .iter()
                        .map(|d| format!("{} at {}", d.file, d.place))
                        .collect(),
                });
            }
        }
        // Beginnings of ids, or the error with what there is.
        let candidates: Vec<_> = self
            .disks
            .iter()
            .map(|d| Candidate {
                id: device(d),
                name: d.file.clone(),
            })
            .collect();
        let hint = "kvmms disk list shows them.";
        let at = crate::find::pick("disk of the machine", &candidates, wanted, naming, hint)?;
        self.disks.get(at).ok_or_else(|| Error::usage(hint))
    }

    /// The first free slot: on IDE in the order in which machines boot, then on SCSI.
    pub(super) fn free(&self, buses: &[Bus]) -> Option<(&Controller, u64)> {
        buses.iter().find_map(|bus| {
            self.controllers
                .iter()
                .filter(|c| c.bus == *bus)
                .find_map(|c| {
                    let slot = (0..bus.slots()).find(|slot| !c.used.contains(slot))?;
                    Some((c, slot))
                })
        })
    }
}

impl Disk {
    /// For lists.
    pub(super) fn row(&self, machine: &Machine) -> Row {
        Row::new()
            .text("machine", "Machine", &machine.name)
            .text("place", "Place", &self.place)
            .text("path", "Path", &self.file)
            .yes("readOnly", "Read only", Some(self.read_only))
            .text(
                "id",
                "Id",
                self.id.split_once('\\').map_or(&*self.id, |(_, rest)| rest),
            )
            .hidden("instanceId", json!(self.id))
            .hidden("machineId", json!(machine.id))
    }
}

/// A reference inside a text property, as Windows wants it: with a host.
pub(super) fn full(path: &Path) -> String {
    let mut path = path
        .clone()
        .in_namespace(path.namespace.as_deref().unwrap_or(NAMESPACE));
    path.host.get_or_insert_with(|| ".".to_owned());
    path.to_string()
}

/// Adds one resource; gives its path.
pub(super) async fn add(session: &Session, machine: &Machine, resource: Instance) -> Result<Path> {
    let called = session
        .call(
            &management(),
            "AddResourceSettings",
            &parameters([
                ("AffectedConfiguration", machine.settings_path().into()),
                ("ResourceSettings", Value::Array(vec![resource.into()])),
            ]),
        )
        .await?;
    added(session, &called).await
}

async fn added(session: &Session, called: &Called) -> Result<Path> {
    session.finish(called).await?;
    let paths = called.invoked.get("ResultingResourceSettings");
    let first = paths.items().first().and_then(Value::as_path);
    first.ok_or_else(|| {
        Error::Answer(
            called.method.clone(),
            "it does not name what was added".to_owned(),
        )
    })
}

fn resource(class: &'static str, ty: u16, sub_type: &'static str) -> Instance {
    Instance::new(Name::of(class))
        .with("ResourceType", ty)
        .with("ResourceSubType", sub_type)
}

/// A network adapter to add.
pub(super) fn nic() -> Instance {
    resource(
        class::MSVM_SYNTHETIC_ETHERNET_PORT_SETTING_DATA,
        10,
        "Microsoft:Hyper-V:Synthetic Ethernet Port",
    )
    .with("ElementName", "Network Adapter")
}

/// The cable from an adapter to a switch, to add.
pub(super) fn connection(nic: &Path, switch: &Path) -> Instance {
    resource(
        class::MSVM_ETHERNET_PORT_ALLOCATION_SETTING_DATA,
        33,
        "Microsoft:Hyper-V:Ethernet Connection",
    )
    .with("EnabledState", 2u16)
    .with("Parent", full(nic))
    .with("HostResource", vec![full(switch)])
}

/// Adds a drive; adds a SCSI controller where one is needed.
pub(super) async fn drive(session: &Session, machine: &Machine, buses: &[Bus]) -> Result<Path> {
    let mut storage = Storage::of(session, machine).await?;
    if storage.free(buses).is_none() && buses.contains(&Bus::Scsi) {
        let controller = resource(
            class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
            6,
            "Microsoft:Hyper-V:Synthetic SCSI Controller",
        );
        add(session, machine, controller).await?;
        storage = Storage::of(session, machine).await?;
    }
    let Some((controller, slot)) = storage.free(buses) else {
        return Err(Error::usage(format!(
            "{} has no free slot for a disk there",
            machine.name
        )));
    };
    let drive = resource(
        class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
        17,
        "Microsoft:Hyper-V:Synthetic Disk Drive",
    )
    .with("Parent", full(&controller.path))
    .with("AddressOnParent", slot.to_string());
    add(session, machine, drive).await
}

/// Adds a drive with an image in it; adds a SCSI controller where one is needed.
pub(super) async fn attach(
    session: &Session,
    machine: &Machine,
    file: &str,
    buses: &[Bus],
    read_only: bool,
) -> Result<Path> {
    let drive = drive(session, machine, buses).await?;
    let mut disk = resource(
        class::MSVM_STORAGE_ALLOCATION_SETTING_DATA,
        31,
        "Microsoft:Hyper-V:Virtual Hard Disk",
    )
    .with("Parent", full(&drive))
    .with("HostResource", vec![file.to_owned()]);
    if read_only {
        disk.set("Access", 1u16);
    }
    match add(session, machine, disk).await {
        Ok(path) => Ok(path),
        Err(error) => {
            // An empty drive is nothing anybody asked for. If it stays, the first error still says why.
            let _ = remove(session, &[drive]).await;
            Err(error)
        }
    }
}

/// Removes resources.
pub(super) async fn remove(session: &Session, paths: &[Path]) -> Result<()> {
    let paths = paths.iter().cloned().map(Value::from).collect();
    let called = session
        .call(
            &management(),
            "RemoveResourceSettings",
            &parameters([("ResourceSettings", Value::Array(paths))]),
        )
        .await?;
    session.finish(&called).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "Microsoft:AAAA";

    fn rasd(id: &str, ty: u16) -> Instance {
        Instance::new("Msvm_ResourceAllocationSettingData")
            .with("InstanceID", format!("{VM}\\{id}"))
            .with("ResourceType", ty)
    }

    fn below(i: Instance, parent: &str, slot: &str) -> Instance {
        let path = Path::class("Msvm_ResourceAllocationSettingData")
            .key("InstanceID", format!("{VM}\\{parent}"));
        i.with("Parent", full(&path)).with("AddressOnParent", slot)
    }

    fn disk(id: &str, drive: &str, file: &str) -> Instance {
        below(rasd(id, 31), drive, "")
            .with("ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk")
            .with("HostResource", vec![file.to_owned()])
    }

    fn machine() -> Storage {
        Storage::read(&[
            rasd("ide\\1", 5).with("Address", "1"),
            rasd("ide\\0", 5).with("Address", "0"),
            rasd("scsi\\0", 6),
            below(rasd("d\\0\\0\\D", 17), "ide\\0", "0"),
            below(rasd("v\\1\\0\\D", 16), "ide\\1", "0"),
            below(rasd("e\\0\\0\\D", 17), "scsi\\0", "0"),
            disk("d\\0\\0\\L", "d\\0\\0\\D", "/images/root.qcow2"),
            disk("e\\0\\0\\L", "e\\0\\0\\D", "/images/data.qcow2"),
        ])
    }

    #[test]
    fn disks_know_their_place() {
        let storage = machine();
        let places: Vec<_> = storage.disks.iter().map(|d| d.place.as_str()).collect();
        assert_eq!(places, ["ide:0:0", "scsi:0:0"]);
    }

    #[test]
    fn free_slots_are_taken_in_boot_order_and_dvd_drives_occupy_theirs() {
        let mut storage = machine();
        let both = [Bus::Ide, Bus::Scsi];
        let mut taken = Vec::new();
        for _ in 0..3 {
            let (controller, slot) = storage.free(&both).expect("a slot");
            let (bus, number) = (controller.bus, controller.number);
            taken.push(format!("{}:{number}:{slot}", bus.word()));
            for c in &mut storage.controllers {
                if c.bus == bus && c.number == number {
                    c.used.push(slot);
                }
            }
        }
        assert_eq!(taken, ["ide:0:1", "ide:1:1", "scsi:0:1"]);
        assert!(Storage::default().free(&both).is_none());
    }

    #[test]
    fn a_disk_is_found_by_path_name_place_and_id() {
        let storage = machine();
        for wanted in [
            "/images/data.qcow2",
            "data.qcow2",
            "SCSI:0:0",
            "Microsoft:AAAA\\e\\0\\0\\L",
            "e\\0\\0\\L",
        ] {
            for naming in [Naming::Whole, Naming::Beginning] {
                let found = storage.disk(wanted, naming).expect(wanted);
                assert_eq!(found.place, "scsi:0:0");
            }
        }
        assert!(
            storage.disk("/images", Naming::Beginning).is_err(),
            "the beginning of both paths"
        );
        assert!(storage.disk("/images/da", Naming::Beginning).is_ok());
        assert!(storage.disk("/images/da", Naming::Whole).is_err());
        for nothing in ["nothing", ""] {
            assert!(storage.disk(nothing, Naming::Beginning).is_err());
        }
    }

    #[test]
    fn two_disks_of_one_file_name_are_both_refused() {
        let mut storage = machine();
        for d in &mut storage.disks {
            d.file = format!("{}/same.qcow2", d.file);
        }
        let Err(Error::Ambiguous { candidates, .. }) = storage.disk("same.qcow2", Naming::Whole)
        else {
            panic!("it names two");
        };
        assert_eq!(candidates.len(), 2);
    }
}

//! Objects of the domain as CIM names them: class, keys, and what stands behind.

use std::sync::Arc;

use cim::{Instance, Path, Value};
use uuid::Uuid;
use vmms::collection::{Collection, CollectionKind, CollectionPoint, CollectionSnapshot};
use vmms::db::Db;
use vmms::job::{Job, JobClass};
use vmms::machine::{DeviceKind, Vm};
use vmms::point::Point;
use vmms::snapshot::Snapshot;
use vmms::{Element, guid};

/// The namespace of Hyper-V's provider, version 2.
pub(crate) const NAMESPACE: &str = "root/virtualization/v2";

/// An object a client can name.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// Its class.
    pub(crate) class: &'static str,
    /// Its key bindings.
    pub(crate) keys: Vec<(&'static str, String)>,
    /// What stands behind it.
    pub(crate) what: What,
}

/// What stands behind an object.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The host.
    Host,
    /// A machine.
    Vm(Arc<Vm>),
    /// The settings of a machine.
    Settings(Arc<Vm>),
    /// The settings of one resource of a machine.
    Resource(Arc<Vm>, Part),
    /// The device a resource becomes.
    Device(Arc<Vm>, Part),
    /// One of the services.
    Service,
    /// A reference point.
    Point(Arc<Point>),
    /// A collection.
    Collection(Arc<Collection>),
    /// A reference point of a collection.
    CollectionPoint(Arc<CollectionPoint>),
    /// A snapshot.
    Snapshot(Arc<Snapshot>),
    /// A snapshot of a collection.
    CollectionSnapshot(Arc<CollectionSnapshot>),
    /// A job.
    Job(Box<Job>),
    /// An instance that is made whole when it is listed.
    Fixed(Arc<Fixed>),
}

/// An instance that is made whole when it is listed: templates, pools, inventory, details.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    instance: Instance,
    vms: Vec<Uuid>,
}

impl What {
    /// An instance that tells of the host.
    pub(crate) fn fixed(instance: Instance) -> Self {
        What::fixed_of(instance, Vec::new())
    }

    /// An instance that tells of these machines.
    pub(crate) fn fixed_of(instance: Instance, vms: Vec<Uuid>) -> Self {
        What::Fixed(Arc::new(Fixed { instance, vms }))
    }

    /// The machine it is or belongs to.
    pub(crate) fn vm(&self, db: &Db) -> Option<Uuid> {
        match self {
            What::Vm(vm) | What::Settings(vm) | What::Device(vm, _) => Some(vm.id),
            // The resources that a snapshot kept go by its identifier.
            What::Resource(vm, _) => match db.get::<Snapshot>(vm.id) {
                Ok(snapshot) => Some(snapshot.vm),
                Err(_) => Some(vm.id),
            },
            What::Point(point) => Some(point.vm),
            What::Snapshot(snapshot) => Some(snapshot.vm),
            What::Host
            | What::Service
            | What::Collection(_)
            | What::CollectionPoint(_)
            | What::CollectionSnapshot(_)
            | What::Job(_)
            | What::Fixed(_) => None,
        }
    }

    /// All machines it is, belongs to, collects or tells of, each once.
    pub(crate) fn vms(&self, db: &Db) -> Vec<Uuid> {
        let mut found: Vec<Uuid> = match self {
            What::Host | What::Service => Vec::new(),
            What::Vm(_)
            | What::Settings(_)
            | What::Device(..)
            | What::Resource(..)
            | What::Point(_)
            | What::Snapshot(_) => self.vm(db).into_iter().collect(),
            What::Collection(collection) => collected(db, collection, 0),
            What::CollectionPoint(point) => point.members.iter().map(|m| m.vm).collect(),
            What::CollectionSnapshot(snapshot) => snapshot.members.iter().map(|m| m.vm).collect(),
            What::Job(job) => {
                let affected = job.affected.iter().flat_map(|(e, _)| vms_of(db, e));
                let output = &job.output;
                let exported = output.disks.iter().map(|d| d.vm);
                let machines = output.machines.iter().map(|m| m.vm);
                affected.chain(exported).chain(machines).collect()
            }
            What::Fixed(fixed) => fixed.vms.clone(),
        };
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Deeper than collections are nested; a damaged record must not hang the service.
const DEEPEST: usize = 32;

/// The machines in a collection, and in the collections it collects.
fn collected(db: &Db, collection: &Collection, depth: usize) -> Vec<Uuid> {
    match collection.kind {
        CollectionKind::Machines => collection.members.clone(),
        CollectionKind::Management if depth > DEEPEST => Vec::new(),
        CollectionKind::Management => {
            let below = collection.members.iter();
            let below = below.filter_map(|m| db.get::<Collection>(*m).ok());
            below.flat_map(|g| collected(db, &g, depth + 1)).collect()
        }
    }
}

/// The machines an element of the domain is or belongs to, as far as it still exists.
fn vms_of(db: &Db, element: &Element) -> Vec<Uuid> {
    match element {
        Element::Vm(vm) | Element::Resource { vm, .. } => vec![*vm],
        Element::Point(id) => db.get::<Point>(*id).map(|p| vec![p.vm]).unwrap_or_default(),
        Element::Snapshot(id) => db
            .get::<Snapshot>(*id)
            .map(|s| vec![s.vm])
            .unwrap_or_default(),
        Element::Collection(id) => db
            .get::<Collection>(*id)
            .map(|g| collected(db, &g, 0))
            .unwrap_or_default(),
        Element::CollectionPoint(id) => db
            .get::<CollectionPoint>(*id)
            .map(|p| What::CollectionPoint(p).vms(db))
            .unwrap_or_default(),
        Element::CollectionSnapshot(id) => db
            .get::<CollectionSnapshot>(*id)
            .map(|s| What::CollectionSnapshot(s).vms(db))
            .unwrap_or_default(),
        Element::Job(_) | Element::Host | Element::Peer(_) | Element::Image(_) => Vec::new(),
    }
}

/// A resource of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its memory.
    Memory,
    /// Its processors.
    Processor,
    /// One of its devices, by its id within the machine.
    Device(String),
    /// Its security settings.
    Security,
}

impl Part {
    /// The id within the machine.
    pub(crate) fn id(&self) -> &str {
        match self {
            Part::Memory => MEMORY_ID,
            Part::Processor => PROCESSOR_ID,
            Part::Device(id) => id,
            Part::Security => SECURITY_ID,
        }
    }
}

/// The ids of what every machine has once.
pub(crate) const MEMORY_ID: &str = "4764334D-E001-4176-82EE-5594EC9B530E";
/// See [`MEMORY_ID`].
pub(crate) const PROCESSOR_ID: &str = "B637F346-6A0E-4DEC-AF52-BD70CB80A21D\\0";
/// See [`MEMORY_ID`].
pub(crate) const SECURITY_ID: &str = "DEFA7720-AC0F-4C5C-8D0A-9A1F5F0C8B91";

impl Object {
    /// An object with one key `InstanceID`.
    pub(crate) fn with_id(class: &'static str, id: String, what: What) -> Self {
        Object {
            class,
            keys: vec![("InstanceID", id)],
            what,
        }
    }

    /// An object keyed like a device or service: system, class, own name.
    pub(crate) fn of_system(
        class: &'static str,
        system: String,
        key: &'static str,
        name: String,
        what: What,
    ) -> Self {
        Object {
            class,
            keys: vec![
                (
                    "SystemCreationClassName",
                    msvm::class::MSVM_COMPUTER_SYSTEM.to_owned(),
                ),
                ("SystemName", system),
                ("CreationClassName", class.to_owned()),
                (key, name),
            ],
            what,
        }
    }

    /// The instance behind an object that was made whole when it was listed.
    pub(crate) fn fixed(&self) -> Instance {
        match &self.what {
            What::Fixed(fixed) => fixed.instance.clone(),
            _ => Instance::new(self.class),
        }
    }

    /// About how many bytes of memory it holds alone; records are there anyway.
    pub(crate) fn bytes(&self) -> usize {
        let keys: usize = self
            .keys
            .iter()
            .map(|(_, v)| size_of_val(v) + v.len())
            .sum();
        let own = match &self.what {
            What::Job(job) => {
                size_of_val(&**job) + size_of_val(&*job.faults) + size_of_val(&*job.affected)
            }
            What::Fixed(fixed) => wbem::footprint(&fixed.instance),
            _ => 0,
        };
        size_of_val(self) + keys + own
    }

    /// Its path, with namespace and host.
    pub(crate) fn path(&self, host: &str, namespace: &str) -> Path {
        let mut path = Path::class(self.class)
            .in_namespace(namespace)
            .on_host(host);
        for (key, value) in &self.keys {
            path.keys.push(((*key).into(), Value::from(value.as_str())));
        }
        path
    }

    /// Whether a path with these keys, as far as it names them, means this object.
    pub(crate) fn is_named_by(&self, path: &Path) -> bool {
        path.keys.iter().all(|(name, value)| {
            // A key without a name stands for the only key.
            let own = self
                .keys
                .iter()
                .find(|(key, _)| name.is(key) || name.as_str().is_empty());
            match (own, value.to_text()) {
                (Some((_, own)), Some(text)) => self.same_key(own, &text),
                // Keys that pages name besides the real ones are let pass.
                (None, _) => !name.is("InstanceID"),
                _ => false,
            }
        })
    }

    /// Whether a key's text means this object: as it is written here, as a bare GUID, and for a point in the form of older hosts,
    /// which names its machine too.
    pub(crate) fn same_key(&self, own: &str, text: &str) -> bool {
        if same_text(own, text) || same_guid(own, text) {
            return true;
        }
        let What::Point(point) = &self.what else {
            return false;
        };
        let text = bare(text).replace("\\\\", "\\");
        text.split_once('\\').is_some_and(|(vm, id)| {
            guid_alone(vm) == Some(point.vm) && guid_alone(id) == Some(point.id)
        })
    }

    /// The element of the domain behind it.
    pub(crate) fn element(&self) -> Option<Element> {
        Some(match &self.what {
            What::Host | What::Service => Element::Host,
            What::Vm(vm) | What::Settings(vm) => Element::Vm(vm.id),
            What::Resource(vm, part) | What::Device(vm, part) => Element::Resource {
                vm: vm.id,
                id: part.id().to_owned(),
            },
            What::Point(point) => Element::Point(point.id),
            What::Collection(collection) => Element::Collection(collection.id),
            What::CollectionPoint(point) => Element::CollectionPoint(point.id),
            What::Snapshot(snapshot) => Element::Snapshot(snapshot.id),
            What::CollectionSnapshot(snapshot) => Element::CollectionSnapshot(snapshot.id),
            What::Job(job) => Element::Job(job.id),
            What::Fixed(_) => return None,
        })
    }

    /// The machine it is or belongs to.
    pub(crate) fn vm(&self, db: &Db) -> Option<Uuid> {
        self.what.vm(db)
    }
}

/// Key texts compare without case, and with backslashes single or doubled.
pub(crate) fn same_text(own: &str, text: &str) -> bool {
    let text = text.trim_matches('"');
    own.eq_ignore_ascii_case(text)
        || (text.contains("\\\\") && own.eq_ignore_ascii_case(&text.replace("\\\\", "\\")))
}

/// An identifier without the prefix of its maker.
fn bare(text: &str) -> &str {
    let text = text.trim_matches('"');
    let prefix = "Microsoft:";
    match text.get(..prefix.len()) {
        Some(start) if start.eq_ignore_ascii_case(prefix) => {
            text.get(prefix.len()..).unwrap_or_default()
        }
        _ => text,
    }
}

/// The GUID that an identifier is and nothing else.
fn guid_alone(text: &str) -> Option<Uuid> {
    Uuid::parse_str(bare(text).trim_matches(['{', '}'])).ok()
}

pub(crate) fn same_guid(own: &str, text: &str) -> bool {
    guid_alone(own).is_some_and(|id| guid_alone(text) == Some(id))
}

/// `Microsoft:<machine>\<id>`, the InstanceID of a resource's settings.
pub(crate) fn resource_id(vm: Uuid, id: &str) -> String {
    format!("Microsoft:{}\\{id}", guid(vm))
}

/// A GUID in a text like `Microsoft:GUID`, `{GUID}` or `GUID`.
pub(crate) fn guid_in(text: &str) -> Option<Uuid> {
    let text = text.rsplit_once(':').map_or(text, |(_, rest)| rest);
    let text = text.split('\\').next().unwrap_or(text);
    Uuid::parse_str(text.trim_matches(['{', '}'])).ok()
}

/// The class a job is shown as.
pub(crate) fn job_class(class: JobClass) -> &'static str {
    match class {
        JobClass::Concrete => msvm::class::MSVM_CONCRETE_JOB,
        JobClass::Storage => msvm::class::MSVM_STORAGE_JOB,
        JobClass::Migration => msvm::class::MSVM_MIGRATION_JOB,
        JobClass::PointExport => msvm::class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_EXPORT_JOB,
        JobClass::CollectionPointExport => msvm::class::MSVM_COLLECTION_REFERENCE_POINT_EXPORT_JOB,
        JobClass::CopyFileToGuest => msvm::class::MSVM_COPY_FILE_TO_GUEST_JOB,
    }
}

/// The class of the settings of a resource.
pub(crate) fn resource_class(kind: &DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Disk(_) | DeviceKind::Dvd { .. } => {
            msvm::class::MSVM_STORAGE_ALLOCATION_SETTING_DATA
        }
        DeviceKind::Nic { .. } => msvm::class::MSVM_SYNTHETIC_ETHERNET_PORT_SETTING_DATA,
        DeviceKind::NicConnection { .. } => msvm::class::MSVM_ETHERNET_PORT_ALLOCATION_SETTING_DATA,
        DeviceKind::SerialPort { .. } => msvm::class::MSVM_SERIAL_PORT_SETTING_DATA,
        DeviceKind::IdeController { .. }
        | DeviceKind::ScsiController { .. }
        | DeviceKind::DiskDrive { .. }
        | DeviceKind::DvdDrive { .. }
        | DeviceKind::FloppyDrive => msvm::class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
    }
}

impl Object {
    /// A machine.
    pub(crate) fn of_vm(vm: Arc<Vm>) -> Self {
        let class = if vm.planned {
            msvm::class::MSVM_PLANNED_COMPUTER_SYSTEM
        } else {
            msvm::class::MSVM_COMPUTER_SYSTEM
        };
        Object {
            class,
            keys: vec![
                ("CreationClassName", class.to_owned()),
                ("Name", guid(vm.id)),
            ],
            what: What::Vm(vm),
        }
    }

    /// The settings of a machine.
    pub(crate) fn of_settings(vm: Arc<Vm>) -> Self {
        let id = format!("Microsoft:{}", guid(vm.id));
        Object::with_id(
            msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA,
            id,
            What::Settings(vm),
        )
    }

    /// The settings of one resource.
    pub(crate) fn of_resource(vm: &Arc<Vm>, part: Part) -> Option<Self> {
        let class = match &part {
            Part::Memory => msvm::class::MSVM_MEMORY_SETTING_DATA,
            Part::Processor => msvm::class::MSVM_PROCESSOR_SETTING_DATA,
            Part::Security => msvm::class::MSVM_SECURITY_SETTING_DATA,
            Part::Device(id) => resource_class(&vm.device(id)?.kind),
        };
        let id = resource_id(vm.id, part.id());
        Some(Object::with_id(
            class,
            id,
            What::Resource(Arc::clone(vm), part),
        ))
    }

    /// A reference point.
    pub(crate) fn of_point(point: Arc<Point>) -> Self {
        let id = format!("Microsoft:{}", guid(point.id));
        Object::with_id(
            msvm::class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT,
            id,
            What::Point(point),
        )
    }

    /// A job.
    pub(crate) fn of_job(job: Job) -> Self {
        Object::with_id(job_class(job.class), guid(job.id), What::Job(Box::new(job)))
    }

    /// A snapshot: settings with an id of their own.
    pub(crate) fn of_snapshot(snapshot: Arc<Snapshot>) -> Self {
        let id = format!("Microsoft:{}", guid(snapshot.id));
        Object::with_id(
            msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA,
            id,
            What::Snapshot(snapshot),
        )
    }

    /// The export settings of a machine: one instance each, with the id of its settings.
    pub(crate) fn of_export_settings(vm: Arc<Vm>) -> Self {
        let id = format!("Microsoft:{}", guid(vm.id));
        Object::with_id(
            msvm::class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA,
            id,
            What::Settings(vm),
        )
    }

    fn collective(class: &'static str, id: Uuid, what: What) -> Self {
        Object {
            class,
            keys: vec![("CollectionID", guid(id))],
            what,
        }
    }

    /// A collection.
    pub(crate) fn of_collection(collection: Arc<Collection>) -> Self {
        Object::collective(
            collection_class(collection.kind),
            collection.id,
            What::Collection(collection),
        )
    }

    /// A reference point of a collection.
    pub(crate) fn of_collection_point(point: Arc<CollectionPoint>) -> Self {
        let class = msvm::class::MSVM_REFERENCE_POINT_COLLECTION;
        Object::collective(class, point.id, What::CollectionPoint(point))
    }

    /// A snapshot of a collection.
    pub(crate) fn of_collection_snapshot(snapshot: Arc<CollectionSnapshot>) -> Self {
        let class = msvm::class::MSVM_SNAPSHOT_COLLECTION;
        Object::collective(class, snapshot.id, What::CollectionSnapshot(snapshot))
    }

    /// The host.
    pub(crate) fn of_host(host: &str) -> Self {
        let class = msvm::class::MSVM_COMPUTER_SYSTEM;
        Object {
            class,
            keys: vec![
                ("CreationClassName", class.to_owned()),
                ("Name", host.to_owned()),
            ],
            what: What::Host,
        }
    }
}

/// The class of a collection.
pub(crate) fn collection_class(kind: CollectionKind) -> &'static str {
    match kind {
        CollectionKind::Machines => msvm::class::MSVM_VIRTUAL_SYSTEM_COLLECTION,
        CollectionKind::Management => msvm::class::MSVM_MANAGEMENT_COLLECTION,
    }
}

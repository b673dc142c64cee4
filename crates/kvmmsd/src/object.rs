//! Objects of the domain as CIM names them: class, keys, and what stands behind.

use std::sync::Arc;

use cim::{Instance, Path, Schema as _, Value};
use msvm::Namespace;
use uuid::Uuid;
use vmms::group::{Group, GroupPoint, GroupSnapshot};
use vmms::job::{Job, JobClass};
use vmms::point::Point;
use vmms::snapshot::Snapshot;
use vmms::vm::{DeviceKind, Vm};
use vmms::{Element, Fault, fault, guid};

use crate::Service;
use crate::provider;

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
    Group(Arc<Group>),
    /// A reference point of a collection.
    GroupPoint(Arc<GroupPoint>),
    /// A snapshot.
    Snapshot(Arc<Snapshot>),
    /// A snapshot of a collection.
    GroupSnapshot(Arc<GroupSnapshot>),
    /// A job.
    Job(Box<Job>),
    /// An instance that is made whole when it is listed: templates, pools, inventory.
    Fixed(Arc<Instance>),
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
            What::Fixed(instance) => (**instance).clone(),
            _ => Instance::new(self.class),
        }
    }

    /// Its path, with namespace and host.
    pub(crate) fn path(&self, service: &Service, namespace: &str) -> Path {
        let mut path = Path::class(self.class)
            .in_namespace(namespace)
            .on_host(&*service.host);
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

    /// That every key of a path is one of this object, and that the key which tells it from others is among them.
    pub(crate) fn fits(
        &self,
        service: &Service,
        namespace: &'static Namespace,
        path: &Path,
    ) -> Result<(), Fault> {
        let alone = matches!(self.what, What::Service | What::Fixed(_));
        let mut named = alone;
        for (name, value) in &path.keys {
            let text = value.to_text().unwrap_or_default();
            let only = name.as_str().is_empty() && self.keys.len() == 1;
            let own = self.keys.iter().position(|(key, _)| only || name.is(key));
            let own = own.and_then(|at| Some((at, self.keys.get(at)?)));
            if let Some((at, (key, own))) = own {
                // A provider that found it by other means knows best what names it.
                if !matches!(self.what, What::Fixed(_)) && !self.same_key(own, &text) {
                    return Err(fault!(KeyMismatch, self.class, key, text, own));
                }
                named |= at + 1 == self.keys.len();
                continue;
            }
            // What pages name as a key besides the real ones is a property: it says the same as the object.
            let class = namespace.class(self.class);
            if class.is_none_or(|c| c.property(name.as_str()).is_none()) {
                return Err(fault!(UnknownName, self.class, "key", name));
            }
            let shown = service.instance(namespace, self);
            let shown = shown.get(name.as_str()).to_text().unwrap_or_default();
            if !same_text(&shown, &text) && !same_guid(&shown, &text) {
                return Err(fault!(KeyMismatch, self.class, name, text, shown));
            }
            // A collection's point is named by either of its two identifiers.
            named |= name.is("InstanceID") || name.is("CollectionID");
        }
        match self.keys.last() {
            Some((key, _)) if !named => Err(fault!(KeyMissing, self.class, key)),
            _ => Ok(()),
        }
    }

    /// Whether a key's text means this object: as it is written here, as a bare GUID, and for a point in the form of older hosts,
    /// which names its machine too.
    fn same_key(&self, own: &str, text: &str) -> bool {
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
            What::Group(group) => Element::Group(group.id),
            What::GroupPoint(point) => Element::GroupPoint(point.id),
            What::Snapshot(snapshot) => Element::Snapshot(snapshot.id),
            What::GroupSnapshot(snapshot) => Element::GroupSnapshot(snapshot.id),
            What::Job(job) => Element::Job(job.id),
            What::Fixed(_) => return None,
        })
    }

    /// The machine it is or belongs to.
    pub(crate) fn vm(&self) -> Option<Uuid> {
        match &self.what {
            What::Vm(vm) | What::Settings(vm) | What::Resource(vm, _) | What::Device(vm, _) => {
                Some(vm.id)
            }
            What::Point(point) => Some(point.vm),
            _ => None,
        }
    }
}

/// Key texts compare without case, and with backslashes single or doubled.
fn same_text(own: &str, text: &str) -> bool {
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

fn same_guid(own: &str, text: &str) -> bool {
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
        JobClass::GroupPointExport => msvm::class::MSVM_COLLECTION_REFERENCE_POINT_EXPORT_JOB,
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
}

impl Service {
    /// The object behind an element of the domain, where it (still) exists and is one a client can name.
    pub(crate) fn element(&self, element: &Element) -> Option<Object> {
        match element {
            Element::Vm(id) => self.vmms.db.get::<Vm>(*id).ok().map(Object::of_vm),
            Element::Resource { vm, id } => {
                let vm = self.vmms.db.get::<Vm>(*vm).ok()?;
                let id = vm.device(id)?.id.clone();
                Object::of_resource(&vm, Part::Device(id))
            }
            Element::Point(id) => {
                let point = self.vmms.db.get::<Point>(*id).ok()?;
                point.complete.then(|| Object::of_point(point))
            }
            Element::Snapshot(id) => provider::snapshot::find(self, *id).map(Object::of_snapshot),
            Element::Job(id) => self.vmms.job(*id).ok().map(Object::of_job),
            Element::Host => Some(self.host_object()),
            Element::Group(id) => self
                .vmms
                .db
                .get::<Group>(*id)
                .ok()
                .map(provider::collection::object),
            Element::GroupPoint(id) => {
                let point = self.vmms.db.get::<GroupPoint>(*id).ok()?;
                point
                    .complete
                    .then(|| provider::collection_point::object(point))
            }
            Element::GroupSnapshot(id) => provider::collection_snapshot::find(self, *id)
                .map(provider::collection_snapshot::object),
            Element::Image(_) => None,
        }
    }

    /// The path that names an element of the domain, whether it still exists or not.
    pub(crate) fn element_path(&self, element: &Element) -> Path {
        if let Some(object) = self.element(element) {
            return object.path(self, NAMESPACE);
        }
        let path = match element {
            Element::Vm(id) => Path::class(msvm::class::MSVM_COMPUTER_SYSTEM)
                .key("CreationClassName", msvm::class::MSVM_COMPUTER_SYSTEM)
                .key("Name", guid(*id)),
            Element::Resource { vm, id } => {
                Path::class(msvm::class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA)
                    .key("InstanceID", resource_id(*vm, id))
            }
            Element::Point(id) => Path::class(msvm::class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT)
                .key("InstanceID", format!("Microsoft:{}", guid(*id))),
            Element::Group(id) => Path::class(msvm::class::MSVM_VIRTUAL_SYSTEM_COLLECTION)
                .key("CollectionID", guid(*id)),
            Element::GroupPoint(id) => Path::class(msvm::class::MSVM_REFERENCE_POINT_COLLECTION)
                .key("CollectionID", guid(*id)),
            Element::Snapshot(id) => Path::class(msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA)
                .key("InstanceID", format!("Microsoft:{}", guid(*id))),
            Element::GroupSnapshot(id) => {
                Path::class(msvm::class::MSVM_SNAPSHOT_COLLECTION).key("CollectionID", guid(*id))
            }
            Element::Job(id) => {
                Path::class(msvm::class::MSVM_CONCRETE_JOB).key("InstanceID", guid(*id))
            }
            // Images have no object of their own; CIM_DataFile names files.
            Element::Image(path) => {
                return Path::class("CIM_DataFile")
                    .in_namespace("root/cimv2")
                    .on_host(&*self.host)
                    .key("Name", path.display().to_string());
            }
            Element::Host => {
                Path::class(msvm::class::MSVM_COMPUTER_SYSTEM).key("Name", &*self.host)
            }
        };
        path.in_namespace(NAMESPACE).on_host(&*self.host)
    }

    /// The host as an object.
    pub(crate) fn host_object(&self) -> Object {
        let class = msvm::class::MSVM_COMPUTER_SYSTEM;
        Object {
            class,
            keys: vec![
                ("CreationClassName", class.to_owned()),
                ("Name", self.host.to_string()),
            ],
            what: What::Host,
        }
    }
}

//! The service as one caller sees it: what providers and associations work with.
//!
//! [`House`] is what all callers share; [`View`] adds the caller. Records are read, and objects are listed, found and
//! followed to, through the view only: it asks the gate about each ([`crate::rights::Gate`]).

mod call;
mod provider;
mod records;
pub(crate) use records::Shown;

pub(crate) use call::{Call, CallError, CallResult, Outcome, unserved};
pub(crate) use provider::{Provider, named};

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use cim::{Instance, Name, Path, Schema as _};
use msvm::Namespace;
use uuid::Uuid;
use vmms::{Element, Fault, Vmms, fault, guid};
use wbem::Caller;

use crate::object::{NAMESPACE, Object, Part, What, resource_id, same_guid, same_text};
use crate::rights::Gate;

/// What all callers share.
pub(crate) struct House {
    /// The domain.
    pub(crate) vmms: Arc<Vmms>,
    /// The host's name in paths.
    pub(crate) host: String,
    /// Who sees what.
    gate: Box<dyn Gate>,
    /// By namespace (lower case) and class (lower case).
    providers: HashMap<(&'static str, String), Arc<dyn Provider>>,
}

/// The house as one caller sees it.
#[derive(Clone)]
pub(crate) struct View {
    house: Arc<House>,
    caller: Arc<Caller>,
}

impl Deref for View {
    type Target = House;

    fn deref(&self) -> &House {
        &self.house
    }
}

impl House {
    /// The house with its providers.
    pub(crate) fn new(
        vmms: Arc<Vmms>,
        gate: Box<dyn Gate>,
        all: impl IntoIterator<Item = Arc<dyn Provider>>,
    ) -> Self {
        let mut providers = HashMap::new();
        for provider in all {
            for class in provider.classes() {
                let key = (provider.namespace(), class.to_ascii_lowercase());
                providers.insert(key, Arc::clone(&provider));
            }
        }
        let host = vmms.host.clone();
        House {
            vmms,
            host,
            gate,
            providers,
        }
    }

    /// The provider of a class.
    pub(crate) fn provider(
        &self,
        namespace: &'static str,
        class: &str,
    ) -> Option<&Arc<dyn Provider>> {
        self.providers.get(&(namespace, class.to_ascii_lowercase()))
    }

    /// The host as an object.
    pub(crate) fn host_object(&self) -> Object {
        Object::of_host(&self.host)
    }

    /// The path that names an element of the domain, whether it still exists or not.
    pub(crate) fn element_path(&self, element: &Element) -> Path {
        if let Some(object) = self.existing(element) {
            return object.path(&self.host, NAMESPACE);
        }
        self.path_on(&self.host, element)
    }

    /// The path of an element of the domain as it is, or would be, on a host of that name.
    pub(crate) fn path_on(&self, host: &str, element: &Element) -> Path {
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
            Element::Collection(id) => Path::class(msvm::class::MSVM_VIRTUAL_SYSTEM_COLLECTION)
                .key("CollectionID", guid(*id)),
            Element::CollectionPoint(id) => {
                Path::class(msvm::class::MSVM_REFERENCE_POINT_COLLECTION)
                    .key("CollectionID", guid(*id))
            }
            Element::Snapshot(id) => Path::class(msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA)
                .key("InstanceID", format!("Microsoft:{}", guid(*id))),
            Element::CollectionSnapshot(id) => {
                Path::class(msvm::class::MSVM_SNAPSHOT_COLLECTION).key("CollectionID", guid(*id))
            }
            Element::Job(id) => {
                Path::class(msvm::class::MSVM_CONCRETE_JOB).key("InstanceID", guid(*id))
            }
            // Images have no object of their own; CIM_DataFile names files.
            Element::Image(path) => {
                return Path::class("CIM_DataFile")
                    .in_namespace("root/cimv2")
                    .on_host(host)
                    .key("Name", path.display().to_string());
            }
            // Its own object there: what was said is about it, not about this host.
            Element::Peer(name) => {
                return self.path_on(name, &Element::Host);
            }
            Element::Host => Path::class(msvm::class::MSVM_COMPUTER_SYSTEM)
                .key("CreationClassName", msvm::class::MSVM_COMPUTER_SYSTEM)
                .key("Name", host),
        };
        path.in_namespace(NAMESPACE).on_host(host)
    }

    /// The object behind an element of the domain, where it (still) exists and is one a client can name, for whoever may see it.
    fn existing(&self, element: &Element) -> Option<Object> {
        let db = &self.vmms.db;
        match element {
            Element::Vm(id) => db.get(*id).ok().map(Object::of_vm),
            Element::Resource { vm, id } => {
                let vm = db.get(*vm).ok()?;
                let id = vmms::machine::Vm::device(&vm, id)?.id.clone();
                Object::of_resource(&vm, Part::Device(id))
            }
            Element::Point(id) => {
                let point = db.get::<vmms::point::Point>(*id).ok()?;
                point.complete.then(|| Object::of_point(point))
            }
            Element::Snapshot(id) => {
                let snapshot = db.get::<vmms::snapshot::Snapshot>(*id).ok()?;
                snapshot.complete.then(|| Object::of_snapshot(snapshot))
            }
            Element::Job(id) => self.vmms.job(*id).ok().map(Object::of_job),
            Element::Host => Some(self.host_object()),
            Element::Collection(id) => db.get(*id).ok().map(Object::of_collection),
            Element::CollectionPoint(id) => {
                let point = db.get::<vmms::collection::CollectionPoint>(*id).ok()?;
                point.complete.then(|| Object::of_collection_point(point))
            }
            Element::CollectionSnapshot(id) => {
                let snapshot = db.get::<vmms::collection::CollectionSnapshot>(*id).ok()?;
                snapshot
                    .complete
                    .then(|| Object::of_collection_snapshot(snapshot))
            }
            Element::Image(_) | Element::Peer(_) => None,
        }
    }
}

impl View {
    /// What a caller sees of the house.
    pub(crate) fn new(house: Arc<House>, caller: Arc<Caller>) -> Self {
        View { house, caller }
    }

    /// Whether the caller sees that.
    pub(crate) fn may_see(&self, what: &What) -> bool {
        self.gate.may_see(&self.caller, what, &self.vmms.db)
    }

    /// The object behind an element of the domain, where the caller sees it.
    pub(crate) fn element(&self, element: &Element) -> Option<Object> {
        self.existing(element).filter(|o| self.may_see(&o.what))
    }

    /// The objects of a class and its subclasses; with `wanted`, no others than it may name.
    pub(crate) async fn objects(
        &self,
        namespace: &'static Namespace,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let mut out = Vec::new();
        for class in namespace.concrete(class) {
            let class = class.name.as_str();
            if let Some(provider) = self.provider(namespace.name(), class) {
                let found = provider.objects(self, class, wanted).await?;
                out.extend(found.into_iter().filter(|o| self.may_see(&o.what)));
            }
        }
        Ok(out)
    }

    /// The one object a path names. Every key that is given fits it, and the one that tells it from others of its class is given.
    pub(crate) async fn find(
        &self,
        namespace: &'static Namespace,
        path: &Path,
    ) -> Result<Object, Fault> {
        let (mut found, mut misfit) = (Vec::new(), None);
        let class = path.class.as_str();
        for object in self.objects(namespace, class, Some(path)).await? {
            match self.fits(&object, namespace, path) {
                Ok(()) => found.push(object),
                Err(fault) => misfit = Some(fault),
            }
        }
        match (found.pop(), found.is_empty()) {
            (Some(object), true) => Ok(object),
            (None, _) => Err(misfit
                .or_else(|| unknown_key(namespace, path))
                .unwrap_or_else(|| fault!(ObjectNotFound, path))),
            (Some(_), false) => Err(fault!(AmbiguousPath, path, found.len() + 1)),
        }
    }

    /// An object as an instance: whole, with its path.
    pub(crate) fn instance(&self, namespace: &'static Namespace, object: &Object) -> Instance {
        let mut instance = match self.provider(namespace.name(), object.class) {
            Some(provider) => provider.instance(self, object),
            None => Instance::new(object.class),
        };
        for (key, value) in &object.keys {
            instance.set(*key, value.as_str());
        }
        if let Err(error) = namespace.complete(&mut instance) {
            tracing::error!(class = object.class, %error, "an instance does not fit its class");
        }
        instance.path = Some(object.path(&self.host, namespace.name()));
        instance
    }

    /// That every key of a path is one of this object, and that the key which tells it from others is among them.
    fn fits(
        &self,
        object: &Object,
        namespace: &'static Namespace,
        path: &Path,
    ) -> Result<(), Fault> {
        let alone = matches!(object.what, What::Service | What::Fixed(_));
        let mut named = alone;
        for (name, value) in &path.keys {
            let text = value.to_text().unwrap_or_default();
            let only = name.as_str().is_empty() && object.keys.len() == 1;
            let own = object.keys.iter().position(|(key, _)| only || name.is(key));
            let own = own.and_then(|at| Some((at, object.keys.get(at)?)));
            if let Some((at, (key, own))) = own {
                // A provider that found it by other means knows best what names it.
                if !matches!(object.what, What::Fixed(_)) && !object.same_key(own, &text) {
                    return Err(fault!(KeyMismatch, object.class, key, text, own));
                }
                named |= at + 1 == object.keys.len();
                continue;
            }
            // What pages name as a key besides the real ones is a property: it says the same as the object.
            let class = namespace.class(object.class);
            if class.is_none_or(|c| c.property(name.as_str()).is_none()) {
                return Err(fault!(UnknownName, object.class, "key", name));
            }
            let shown = self.instance(namespace, object);
            let shown = shown.get(name.as_str()).to_text().unwrap_or_default();
            if !same_text(&shown, &text) && !same_guid(&shown, &text) {
                return Err(fault!(KeyMismatch, object.class, name, text, shown));
            }
            // A collection's point is named by either of its two identifiers.
            named |= name.is("InstanceID") || name.is("CollectionID");
        }
        match object.keys.last() {
            Some((key, _)) if !named => Err(fault!(KeyMissing, object.class, key)),
            _ => Ok(()),
        }
    }

    /// The object a REF parameter names, of that class or below.
    pub(crate) async fn reference(
        &self,
        parameter: &str,
        path: &Path,
        class: &str,
    ) -> Result<Object, CallError> {
        let namespace = msvm::virtualization();
        if !namespace.is_a(path.class.as_str(), class) {
            let why = format!("{} is not a {class}", path.class);
            return Err(fault!(InvalidValue, parameter, path, why).into());
        }
        if path.keys.is_empty() {
            return Err(fault!(InvalidValue, parameter, path, "a reference needs keys").into());
        }
        Ok(self.find(namespace, path).await?)
    }

    /// The machine a REF parameter names, by its system or its settings.
    pub(crate) async fn vm_reference(
        &self,
        parameter: &str,
        path: Option<&Path>,
    ) -> Result<Uuid, CallError> {
        let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
        let class = if path.class.is(msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA) {
            msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA
        } else {
            "CIM_ComputerSystem"
        };
        let object = self.reference(parameter, path, class).await?;
        match object.what {
            What::Vm(vm) | What::Settings(vm) => Ok(vm.id),
            _ => Err(fault!(WrongType, parameter, "the host is not a virtual machine").into()),
        }
    }
}

/// The key of a path that none of the classes it may mean has.
fn unknown_key(namespace: &'static Namespace, path: &Path) -> Option<Fault> {
    let class = namespace.class(path.class.as_str())?;
    let known = |name: &Name| {
        name.as_str().is_empty()
            || namespace
                .family(class.name.as_str())
                .any(|c| c.property(name.as_str()).is_some())
    };
    let (unknown, _) = path.keys.iter().find(|(name, _)| !known(name))?;
    Some(fault!(UnknownName, class.name, "key", unknown))
}

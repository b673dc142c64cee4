//! How the migration service is set, its networks, what it can do, and the templates of moves.

use std::net::IpAddr;

use async_trait::async_trait;
use cim::{Instance, Path, Value};
use msvm::{class, params};
use uuid::Uuid;
use vmms::migration::{MigrationService, Network};
use vmms::{Fault, fault, guid};

use crate::object::{Object, What, guid_in};
use crate::provider::{expect_class, given, given_bool, services};
use crate::view::{Call, CallError, CallResult, Outcome, Provider, View, named};

use params::virtual_system_migration_service as p;

/// The settings of the service, its networks and capabilities, and the templates of moves.
pub(crate) struct Migrations;

const SERVICE: &str = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE;
const SETTINGS: &str = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE_SETTING_DATA;
const NETWORK: &str = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_NETWORK_SETTING_DATA;

/// The types of moves that clients look templates up for.
const TYPES: [(u16, &str); 5] = [
    (32768, "Virtual machine"),
    (32769, "Storage"),
    (32770, "Staged"),
    (32771, "Virtual machine and storage"),
    (32772, "Storage, checked in depth"),
];

#[async_trait]
impl Provider for Migrations {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_CAPABILITIES,
            SETTINGS,
            NETWORK,
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SETTING_DATA,
        ]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let service = || view.vmms.migration_service();
        Ok(named(
            match class {
                class::MSVM_VIRTUAL_SYSTEM_MIGRATION_CAPABILITIES => vec![capabilities()],
                SETTINGS => vec![settings(&service())],
                NETWORK => service().networks.iter().map(network).collect(),
                class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SETTING_DATA => {
                    let service = service();
                    TYPES.iter().map(|t| template(t, &service)).collect()
                }
                _ => Vec::new(),
            },
            wanted,
        ))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

/// The capabilities of the service.
pub(crate) fn capabilities_of_service(_view: &View, _object: &Object) -> Vec<Object> {
    vec![capabilities()]
}

/// The settings of the service.
pub(crate) fn settings_of_service(view: &View, _object: &Object) -> Vec<Object> {
    vec![settings(&view.vmms.migration_service())]
}

/// The service itself.
pub(crate) fn service_itself(view: &View, _object: &Object) -> Vec<Object> {
    services::object(view, SERVICE).into_iter().collect()
}

/// The networks of the settings.
pub(crate) fn networks_of_settings(view: &View, _object: &Object) -> Vec<Object> {
    let service = view.vmms.migration_service();
    service.networks.iter().map(network).collect()
}

/// The settings a network belongs to.
pub(crate) fn settings_of_network(view: &View, object: &Object) -> Vec<Object> {
    settings_of_service(view, object)
}

fn fixed(id: &str, instance: Instance, class: &'static str) -> Object {
    Object::with_id(class, id.to_owned(), What::fixed(instance))
}

fn capabilities() -> Object {
    let class = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_CAPABILITIES;
    let mut i = Instance::new(class);
    i.set("Caption", "Migration Capabilities")
        .set("Description", "What the migration service can do")
        .set("ElementName", "Migration Capabilities")
        // CheckVirtualSystemIsMigratableToHost and ToSystem.
        .set("SynchronousMethodsSupported", vec![4u16, 5])
        // MigrateVirtualSystemToHost and ToSystem, CheckVirtualSystemIsMigratable.
        .set("AsynchronousMethodsSupported", vec![2u16, 3, 32768])
        .set("DestinationHostFormatsSupported", vec![2u16, 3, 4]);
    fixed("Microsoft:MigrationCapabilities", i, class)
}

fn settings(service: &MigrationService) -> Object {
    let mut i = Instance::new(SETTINGS);
    i.set("Caption", "Migration Service Settings")
        .set("Description", "Settings of the migration service")
        .set("ElementName", "Migration Service Settings")
        .set("EnableVirtualSystemMigration", service.enabled)
        .set("MaximumActiveVirtualSystemMigration", service.machines)
        .set("MaximumActiveStorageMigration", service.storages)
        .set("AuthenticationType", service.authentication)
        .set("EnableCompression", service.compression)
        .set("EnableSmbTransport", false);
    fixed("Microsoft:MigrationServiceSettings", i, SETTINGS)
}

fn network(network: &Network) -> Object {
    let shown = format!("{}/{}", network.subnet, network.prefix);
    let mut i = Instance::new(NETWORK);
    i.set("Caption", "Migration Network")
        .set("Description", "A network that machines come in over")
        .set("ElementName", shown)
        .set("SubnetNumber", network.subnet.to_string())
        .set("PrefixLength", network.prefix)
        .set("Metric", network.metric)
        .set("Tags", network.tags.clone());
    fixed(&format!("Microsoft:{}", guid(network.id)), i, NETWORK)
}

fn template((number, name): &(u16, &str), service: &MigrationService) -> Object {
    let class = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SETTING_DATA;
    let mut i = Instance::new(class);
    i.set("Caption", "Migration Setting Data")
        .set("Description", format!("Template: {name}"))
        .set("ElementName", *name)
        .set("MigrationType", *number)
        .set("TransportType", 5u16)
        .set("RemoveSourceUnmanagedVhds", false)
        .set("AvoidRemovingVHDs", false)
        .set("CPUCappingMagnitude", 0u16)
        .set("CancelIfBlackoutThresholdExceeded", false)
        .set("AllowOverwriteExistingFile", false)
        .set("RetainVhdCopiesOnSource", false)
        .set("EnableCompression", service.compression);
    fixed(
        &format!("Microsoft:Definition\\Migration\\{number}"),
        i,
        class,
    )
}

/// Calls ModifyServiceSettings: what is there and not null is set.
pub(super) async fn modify(view: &View, call: &Call<'_>) -> CallResult {
    let given_settings = p::ModifyServiceSettingsIn::read(call.parameters)?;
    let new = msvm::required("ServiceSettingData", given_settings.service_setting_data)?;
    expect_class("ServiceSettingData", &new, SETTINGS)?;
    if given_bool(&new, "EnableSmbTransport") == Some(true) {
        let why = "there is no RDMA and no SMB between hosts of kvmms; what moves is inside TLS";
        return Err(fault!(TransportRefused, "SMB", why).into());
    }
    let machines = given::<u32>(&new, "MaximumActiveVirtualSystemMigration")?;
    let storages = given::<u32>(&new, "MaximumActiveStorageMigration")?;
    let authentication = given::<u32>(&new, "AuthenticationType")?;
    let enabled = given_bool(&new, "EnableVirtualSystemMigration");
    let compression = given_bool(&new, "EnableCompression");
    if let Some(other) = authentication.filter(|a| *a > 1) {
        let why = "0 (CredSSP) and 1 (Kerberos) exist; whichever is kept, hosts know each other by their certificates";
        return Err(fault!(InvalidValue, "AuthenticationType", other, why).into());
    }
    let set = view.vmms.set_migration_service(|service| {
        service.enabled = enabled.unwrap_or(service.enabled);
        service.compression = compression.unwrap_or(service.compression);
        service.machines = machines.unwrap_or(service.machines);
        service.storages = storages.unwrap_or(service.storages);
        service.authentication = authentication.unwrap_or(service.authentication);
        Ok(())
    });
    set.await?;
    Ok(Outcome::done())
}

/// Calls AddNetworkSettings.
pub(super) async fn add_networks(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::AddNetworkSettingsIn::read(call.parameters)?;
    let given = msvm::required("NetworkSettings", given.network_settings)?;
    let mut new = Vec::new();
    for instance in &given {
        expect_class("NetworkSettings", instance, NETWORK)?;
        let subnet = subnet(instance)?.ok_or_else(|| fault!(MissingValue, "SubnetNumber"))?;
        let whole = if subnet.is_ipv4() { 32 } else { 128 };
        let mut network = Network {
            id: Uuid::nil(),
            subnet,
            prefix: whole,
            metric: 0,
            tags: Vec::new(),
        };
        apply(instance, &mut network)?;
        new.push(network);
    }
    view.vmms.add_migration_networks(new).await?;
    Ok(Outcome::done())
}

/// Calls ModifyNetworkSettings: networks named by their InstanceID get what is there and not null.
pub(super) async fn modify_networks(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::ModifyNetworkSettingsIn::read(call.parameters)?;
    let given = msvm::required("NetworkSettings", given.network_settings)?;
    let mut changes = Vec::new();
    for instance in &given {
        expect_class("NetworkSettings", instance, NETWORK)?;
        let text = instance
            .get_str("InstanceID")
            .ok_or_else(|| fault!(MissingValue, "InstanceID of NetworkSettings"))?;
        // Tried on a copy first: what does not fit is told before anything changes.
        let id = guid_in(text).ok_or_else(|| fault!(MigrationNetworkNotFound, text))?;
        let known = view.vmms.migration_service().networks;
        let known = known.into_iter().find(|n| n.id == id);
        let mut changed = known.ok_or_else(|| fault!(MigrationNetworkNotFound, text))?;
        apply(instance, &mut changed)?;
        changes.push(changed);
    }
    let set = view.vmms.set_migration_service(|service| {
        for changed in changes {
            let there = service.networks.iter_mut().find(|n| n.id == changed.id);
            let there = there.ok_or_else(|| fault!(MigrationNetworkNotFound, guid(changed.id)))?;
            *there = changed;
        }
        Ok(())
    });
    set.await?;
    Ok(Outcome::done())
}

/// Calls RemoveNetworkSettings.
pub(super) async fn remove_networks(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::RemoveNetworkSettingsIn::read(call.parameters)?;
    let paths = msvm::required("NetworkSettings", given.network_settings)?;
    let mut gone = Vec::new();
    for path in &paths {
        let object = view.reference("NetworkSettings", path, NETWORK).await?;
        let id = object.keys.iter().find_map(|(_, value)| guid_in(value));
        gone.push(id.ok_or_else(|| fault!(MigrationNetworkNotFound, path))?);
    }
    view.vmms.remove_migration_networks(&gone).await?;
    Ok(Outcome::done())
}

/// Starts or stops the service: whether machines move to and from this host from now on.
pub(super) async fn switch(view: &View, on: bool) -> CallResult {
    let set = view.vmms.set_migration_service(|service| {
        service.enabled = on;
        Ok(())
    });
    set.await?;
    Ok(Outcome::done())
}

fn subnet(instance: &Instance) -> Result<Option<IpAddr>, CallError> {
    let Some(text) = instance.get_str("SubnetNumber") else {
        return Ok(None);
    };
    let parsed = text.trim().parse::<IpAddr>();
    let parsed = parsed.map_err(|e| fault!(InvalidValue, "SubnetNumber", text, e))?;
    Ok(Some(parsed))
}

fn apply(instance: &Instance, network: &mut Network) -> Result<(), CallError> {
    network.subnet = subnet(instance)?.unwrap_or(network.subnet);
    network.prefix = given(instance, "PrefixLength")?.unwrap_or(network.prefix);
    network.metric = given(instance, "Metric")?.unwrap_or(network.metric);
    let tags = instance.get("Tags");
    if !tags.is_null() {
        let texts = tags.items().iter().filter_map(Value::to_text);
        network.tags = texts.collect();
    }
    Ok(())
}

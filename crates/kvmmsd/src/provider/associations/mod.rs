//! The associations: one line each, with the functions that walk them from either end.

mod ends;

use msvm::{Namespace, class};

use super::host::follow;
use vmms::collection::{CollectionPoint, CollectionSnapshot};

use super::collection_instant::{collected_in, collection_of, members_of, of_collection};
use super::{collection, host, migration, snapshot};
use crate::association::{Association, Table, link};
use crate::object::NAMESPACE;

/// All associations of `root/virtualization/v2` that have instances.
static ASSOCIATIONS: &[Association] = &[
    Association {
        more: Some(ends::effects),
        ..link(
            class::MSVM_AFFECTED_JOB_ELEMENT,
            ("AffectedElement", "CIM_ManagedElement"),
            ("AffectingElement", "CIM_ConcreteJob"),
            ends::jobs_of,
            ends::affected_by,
        )
    },
    Association {
        more: Some(ends::effects),
        ..link(
            class::MSVM_AFFECTED_STORAGE_JOB_ELEMENT,
            ("AffectedElement", "CIM_ManagedElement"),
            ("AffectingElement", class::MSVM_STORAGE_JOB),
            ends::storage_jobs_of,
            ends::affected_by,
        )
    },
    link(
        class::MSVM_OWNING_JOB_ELEMENT,
        ("OwningElement", "CIM_Service"),
        ("OwnedElement", "CIM_ConcreteJob"),
        ends::owned_jobs,
        ends::owning_service,
    ),
    link(
        class::MSVM_SETTINGS_DEFINE_STATE,
        ("ManagedElement", "CIM_ComputerSystem"),
        ("SettingData", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ends::settings_of_vm,
        ends::vm_of,
    ),
    link(
        class::MSVM_SETTINGS_DEFINE_STATE,
        ("ManagedElement", "CIM_LogicalDevice"),
        ("SettingData", "CIM_ResourceAllocationSettingData"),
        ends::settings_of_device,
        ends::device_of_settings,
    ),
    link(
        class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA_COMPONENT,
        ("GroupComponent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ("PartComponent", "CIM_ResourceAllocationSettingData"),
        ends::resources_of,
        ends::settings_of_resource,
    ),
    link(
        class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA_COMPONENT,
        ("GroupComponent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ("PartComponent", class::MSVM_SECURITY_SETTING_DATA),
        ends::security_of,
        ends::settings_of_resource,
    ),
    link(
        class::MSVM_SYSTEM_DEVICE,
        ("GroupComponent", "CIM_ComputerSystem"),
        ("PartComponent", "CIM_LogicalDevice"),
        ends::devices_of,
        ends::vm_of,
    ),
    link(
        class::MSVM_HOSTED_SERVICE,
        ("Antecedent", "CIM_ComputerSystem"),
        ("Dependent", "CIM_Service"),
        ends::services_of_host,
        ends::host_of,
    ),
    link(
        class::MSVM_HOSTED_DEPENDENCY,
        ("Antecedent", "CIM_ComputerSystem"),
        ("Dependent", "CIM_ComputerSystem"),
        ends::vms_of_host,
        ends::host_of_vm,
    ),
    link(
        class::MSVM_SERVICE_AFFECTS_ELEMENT,
        ("AffectedElement", "CIM_ComputerSystem"),
        ("AffectingElement", "CIM_Service"),
        ends::services_of_vm,
        ends::vms_of_service,
    ),
    link(
        class::MSVM_REFERENCE_POINT_OF_VIRTUAL_SYSTEM,
        ("Antecedent", class::MSVM_COMPUTER_SYSTEM),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT),
        ends::points_of,
        ends::vm_of_point,
    ),
    link(
        class::MSVM_COLLECTED_VIRTUAL_SYSTEMS,
        ("Collection", class::MSVM_VIRTUAL_SYSTEM_COLLECTION),
        ("Member", class::MSVM_COMPUTER_SYSTEM),
        collection::machines_of,
        collection::collections_of_vm,
    ),
    link(
        class::MSVM_COLLECTED_COLLECTIONS,
        ("Collection", class::MSVM_MANAGEMENT_COLLECTION),
        ("Member", "CIM_CollectionOfMSEs"),
        collection::collections_of,
        collection::collections_above,
    ),
    link(
        class::MSVM_REFERENCE_POINT_OF_VIRTUAL_SYSTEM_COLLECTION,
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_COLLECTION),
        ("Dependent", class::MSVM_REFERENCE_POINT_COLLECTION),
        of_collection::<CollectionPoint>,
        collection_of::<CollectionPoint>,
    ),
    link(
        class::MSVM_COLLECTED_REFERENCE_POINTS,
        ("Collection", class::MSVM_REFERENCE_POINT_COLLECTION),
        ("Member", class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT),
        members_of::<CollectionPoint>,
        collected_in::<CollectionPoint>,
    ),
    link(
        class::MSVM_SNAPSHOT_OF_VIRTUAL_SYSTEM_COLLECTION,
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_COLLECTION),
        ("Dependent", class::MSVM_SNAPSHOT_COLLECTION),
        of_collection::<CollectionSnapshot>,
        collection_of::<CollectionSnapshot>,
    ),
    link(
        class::MSVM_COLLECTED_SNAPSHOTS,
        ("Collection", class::MSVM_SNAPSHOT_COLLECTION),
        ("Member", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        members_of::<CollectionSnapshot>,
        collected_in::<CollectionSnapshot>,
    ),
    link(
        class::MSVM_SNAPSHOT_OF_VIRTUAL_SYSTEM,
        ("Antecedent", class::MSVM_COMPUTER_SYSTEM),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::snapshots_of,
        snapshot::vm_of_snapshot,
    ),
    link(
        class::MSVM_MOST_CURRENT_SNAPSHOT_IN_BRANCH,
        ("Antecedent", class::MSVM_COMPUTER_SYSTEM),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::current_of,
        snapshot::vm_at,
    ),
    link(
        class::MSVM_LAST_APPLIED_SNAPSHOT,
        ("Dependent", class::MSVM_COMPUTER_SYSTEM),
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::applied_to,
        snapshot::vm_applied,
    ),
    link(
        class::MSVM_PARENT_CHILD_SETTING_DATA,
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::children_of,
        snapshot::parent_of,
    ),
    link(
        class::MSVM_SYSTEM_EXPORT_SETTING_DATA,
        ("ManagedElement", "CIM_ComputerSystem"),
        (
            "SettingData",
            class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA,
        ),
        ends::export_settings_of,
        ends::vm_of_export_settings,
    ),
    link(
        class::MSVM_RESOURCE_DEPENDENT_ON_RESOURCE,
        ("Antecedent", "CIM_ResourceAllocationSettingData"),
        ("Dependent", "CIM_ResourceAllocationSettingData"),
        ends::children_of_resource,
        ends::parent_of_resource,
    ),
    link(
        class::MSVM_HOSTED_RESOURCE_POOL,
        ("GroupComponent", class::MSVM_COMPUTER_SYSTEM),
        ("PartComponent", "CIM_ResourcePool"),
        follow::pools_of_host,
        follow::host_of_pool,
    ),
    link(
        class::MSVM_ELEMENT_CAPABILITIES,
        ("ManagedElement", "CIM_ResourcePool"),
        ("Capabilities", class::MSVM_ALLOCATION_CAPABILITIES),
        follow::capabilities_of,
        follow::pool_of,
    ),
    link(
        class::MSVM_ELEMENT_CAPABILITIES,
        ("ManagedElement", "CIM_Service"),
        ("Capabilities", "CIM_Capabilities"),
        follow::capabilities_of_service,
        follow::service_of,
    ),
    Association {
        more: Some(follow::role),
        ..link(
            class::MSVM_SETTINGS_DEFINE_CAPABILITIES,
            ("GroupComponent", class::MSVM_ALLOCATION_CAPABILITIES),
            ("PartComponent", "CIM_ResourceAllocationSettingData"),
            follow::templates_of_capabilities,
            follow::capabilities_of,
        )
    },
    link(
        class::MSVM_RESOURCE_ALLOCATION_FROM_POOL,
        ("Antecedent", "CIM_ResourcePool"),
        ("Dependent", "CIM_ResourceAllocationSettingData"),
        follow::resources_from,
        follow::pool_of,
    ),
    link(
        class::MSVM_ELEMENT_ALLOCATED_FROM_POOL,
        ("Antecedent", "CIM_ResourcePool"),
        ("Dependent", "CIM_LogicalDevice"),
        follow::devices_from,
        follow::pool_of,
    ),
    link(
        class::MSVM_ELEMENT_SETTING_DATA,
        ("ManagedElement", "CIM_Service"),
        ("SettingData", "CIM_SettingData"),
        follow::settings_of_service,
        follow::service_of,
    ),
    link(
        class::MSVM_ELEMENT_CAPABILITIES,
        (
            "ManagedElement",
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE,
        ),
        (
            "Capabilities",
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_CAPABILITIES,
        ),
        migration::capabilities_of_service,
        migration::service_itself,
    ),
    link(
        class::MSVM_ELEMENT_SETTING_DATA,
        (
            "ManagedElement",
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE,
        ),
        (
            "SettingData",
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE_SETTING_DATA,
        ),
        migration::settings_of_service,
        migration::service_itself,
    ),
    link(
        class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE_SETTING_DATA_COMPONENT,
        (
            "GroupComponent",
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE_SETTING_DATA,
        ),
        (
            "PartComponent",
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_NETWORK_SETTING_DATA,
        ),
        migration::networks_of_settings,
        migration::settings_of_network,
    ),
    link(
        class::MSVM_SETTINGS_DEFINE_STATE,
        ("ManagedElement", class::MSVM_VIRTUAL_ETHERNET_SWITCH),
        (
            "SettingData",
            class::MSVM_VIRTUAL_ETHERNET_SWITCH_SETTING_DATA,
        ),
        follow::settings_of_switch,
        follow::switch_of_settings,
    ),
];

/// The associations of a namespace.
pub(crate) fn associations(namespace: &'static Namespace) -> Table {
    if namespace.name() == NAMESPACE {
        ASSOCIATIONS
    } else {
        host::associations(namespace.name())
    }
}

//! The queries clients send, word for word, and what they must find.

use cim::Instance;

use super::bench::Bench;
use crate::object::NAMESPACE;

const CIMV2: &str = "root/cimv2";

fn one(found: &[Instance]) -> &Instance {
    match found {
        [one] => one,
        other => panic!("{} instances instead of one", other.len()),
    }
}

fn has(instance: &Instance, property: &str) {
    assert!(
        !instance.get(property).is_null(),
        "{}.{property} is null",
        instance.class
    );
}

impl Bench {
    async fn found(&self, namespace: &str, text: &str) -> Vec<Instance> {
        match self.query(namespace, text).await {
            Ok(found) => found,
            Err(error) => panic!("{text}: {}", error.message),
        }
    }
}

#[tokio::test]
async fn libvirt_connects_and_learns_of_the_host() {
    let bench = Bench::new().await;
    let product = bench
        .found(CIMV2, "SELECT * FROM Win32_ComputerSystemProduct ")
        .await;
    let uuid = one(&product)
        .get_str("UUID")
        .and_then(|t| uuid::Uuid::parse_str(t).ok());
    assert!(uuid.is_some_and(|id| !id.is_nil()));
    let system = bench
        .found(CIMV2, "SELECT * FROM Win32_OperatingSystem ")
        .await;
    let version = one(&system)
        .get_str("Version")
        .unwrap_or_default()
        .to_owned();
    assert!(
        version.starts_with("10.0.") && version.split('.').count() == 3,
        "{version}"
    );
    has(one(&system), "FreePhysicalMemory");
    let computer = bench
        .found(CIMV2, "SELECT * FROM Win32_ComputerSystem ")
        .await;
    has(one(&computer), "TotalPhysicalMemory");
    let name = one(&computer)
        .get_str("Name")
        .unwrap_or_default()
        .to_owned();
    let text = format!(
        "ASSOCIATORS OF {{Win32_ComputerSystem.Name='{name}'}} WHERE AssocClass = Win32_ComputerSystemProcessor ResultClass = Win32_Processor"
    );
    let processors = bench.found(CIMV2, &text).await;
    assert!(!processors.is_empty());
    for processor in &processors {
        assert!(
            processor
                .get_str("Name")
                .is_some_and(|n| !n.is_empty() && n.len() <= 31)
        );
        assert!(
            processor
                .get("NumberOfCores")
                .to_text()
                .is_some_and(|n| n != "0")
        );
    }
    let counter = "SELECT * FROM Win32_PerfRawData_HvStats_HyperVHypervisorVirtualProcessor WHERE Name = 'full:Hv VP 0'";
    has(
        one(&bench.found(CIMV2, counter).await),
        "Timestamp_Sys100NS",
    );
    let file = r"SELECT * FROM CIM_DataFile WHERE Name='c:\\windows\\system32\\vmms.exe' ";
    assert!(
        one(&bench.found(CIMV2, file).await)
            .get_str("Version")
            .is_some_and(|v| v.starts_with("10.0."))
    );
}

#[tokio::test]
async fn libvirt_finds_machines_and_their_settings() {
    let bench = Bench::new().await;
    let (full, bare) = (bench.full.to_string(), bench.bare.to_string());
    let names = |found: &[Instance]| -> Vec<String> {
        let mut names: Vec<_> = found
            .iter()
            .filter_map(|i| i.get_str("ElementName").map(str::to_owned))
            .collect();
        names.sort();
        names
    };
    let base = "SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER ";
    assert_eq!(names(&bench.found(NAMESPACE, base).await), ["bare", "full"]);
    let active =
        format!("{base}AND (EnabledState != 0 and EnabledState != 3 and EnabledState != 32769) ");
    assert_eq!(names(&bench.found(NAMESPACE, &active).await), ["full"]);
    let inactive =
        format!("{base}AND (EnabledState = 0 or EnabledState = 3 or EnabledState = 32769) ");
    assert_eq!(names(&bench.found(NAMESPACE, &inactive).await), ["bare"]);
    assert_eq!(
        names(
            &bench
                .found(NAMESPACE, &format!("{base}AND ElementName = 'full'"))
                .await
        ),
        ["full"]
    );
    assert_eq!(
        names(
            &bench
                .found(NAMESPACE, &format!("{base}AND Name = '{bare}'"))
                .await
        ),
        ["bare"]
    );
    let whole = bench
        .found(
            NAMESPACE,
            &format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = '{full}'"),
        )
        .await;
    let pid = one(&whole).get("ProcessID").to_text().unwrap_or_default();
    assert_eq!(
        names(
            &bench
                .found(NAMESPACE, &format!("{base}AND ProcessID = {pid}"))
                .await
        ),
        ["full"]
    );

    let object =
        format!("{{Msvm_ComputerSystem.CreationClassName='Msvm_ComputerSystem',Name='{full}'}}");
    let settings =
        "AssocClass = Msvm_SettingsDefineState ResultClass = Msvm_VirtualSystemSettingData";
    let found = bench
        .found(
            NAMESPACE,
            &format!("ASSOCIATORS OF {object} WHERE {settings}"),
        )
        .await;
    let id = one(&found)
        .get_str("InstanceID")
        .unwrap_or_default()
        .to_owned();
    assert!(id.eq_ignore_ascii_case(&format!("Microsoft:{full}")));
    one(&bench
        .found(
            NAMESPACE,
            &format!("SELECT * FROM Msvm_VirtualSystemSettingData WHERE InstanceID='{id}'"),
        )
        .await);
    let classes = [
        ("Msvm_ProcessorSettingData", 1),
        ("Msvm_MemorySettingData", 1),
        // Two IDE and a SCSI controller, the floppy drive, a disk and a DVD drive.
        ("Msvm_ResourceAllocationSettingData", 6),
        ("Msvm_StorageAllocationSettingData", 2),
        ("Msvm_SerialPortSettingData", 2),
        ("Msvm_EthernetPortAllocationSettingData", 1),
    ];
    for (class, count) in classes {
        let text = format!(
            "ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='{id}'}} WHERE AssocClass = Msvm_VirtualSystemSettingDataComponent ResultClass = {class}"
        );
        let found = bench.found(NAMESPACE, &text).await;
        assert_eq!(found.len(), count, "{class}");
        for resource in &found {
            assert!(
                !resource
                    .get("HostResource")
                    .items()
                    .iter()
                    .any(cim::Value::is_null),
                "{class}"
            );
        }
    }
    one(&bench
        .found(
            NAMESPACE,
            &format!("SELECT * FROM Msvm_ShutdownComponent WHERE SystemName = '{full}'"),
        )
        .await);
    let screens =
        format!("SELECT * FROM Msvm_SyntheticDisplayController WHERE SystemName = '{full}'");
    assert!(bench.found(NAMESPACE, &screens).await.is_empty());
}

#[tokio::test]
async fn libvirt_follows_the_parents_of_resources() {
    let bench = Bench::new().await;
    let id = format!("Microsoft:{}", vmms::guid(bench.full));
    let text = format!(
        "ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='{id}'}} WHERE AssocClass = Msvm_VirtualSystemSettingDataComponent ResultClass = CIM_ResourceAllocationSettingData"
    );
    let all = bench.found(NAMESPACE, &text).await;
    let ids: Vec<String> = all
        .iter()
        .filter_map(|i| i.get_str("InstanceID").map(str::to_owned))
        .collect();
    let mut parents = 0;
    for resource in &all {
        let Some(parent) = resource.get_str("Parent").filter(|p| !p.is_empty()) else {
            continue;
        };
        parents += 1;
        // The client compares the end of the text byte by byte.
        let ends = |id: &String| parent.ends_with(&format!("{}\"", id.replace('\\', "\\\\")));
        assert_eq!(ids.iter().filter(|id| ends(id)).count(), 1, "{parent}");
    }
    // Disk drive, DVD drive, disk, DVD, connection.
    assert_eq!(parents, 5);
    let nic = all
        .iter()
        .find(|i| i.class.is("Msvm_SyntheticEthernetPortSettingData"));
    let path = nic
        .and_then(|i| i.path.as_ref())
        .map(ToString::to_string)
        .unwrap_or_default();
    let quoted = path.replace('\\', "\\\\");
    let text =
        format!("SELECT * FROM Msvm_SyntheticEthernetPortSettingData WHERE __PATH = '{quoted}'");
    one(&bench.found(NAMESPACE, &text).await);
}

#[tokio::test]
async fn libvirt_and_os_win_find_templates_and_the_switch() {
    let bench = Bench::new().await;
    let most = r"SELECT * FROM Msvm_ProcessorSettingData WHERE InstanceID LIKE 'Microsoft:Definition%Maximum'";
    assert_eq!(
        one(&bench.found(NAMESPACE, most).await)
            .get("VirtualQuantity")
            .to_text()
            .as_deref(),
        Some("240")
    );
    for sub_type in [
        "Synthetic Disk Drive",
        "Synthetic DVD Drive",
        "Synthetic SCSI Controller",
    ] {
        let text = format!(
            "SELECT * FROM Msvm_ResourceAllocationSettingData WHERE ResourceSubType = 'Microsoft:Hyper-V:{sub_type}' AND InstanceID LIKE '%%Default%%'"
        );
        let found = bench.found(NAMESPACE, &text).await;
        let id = one(&found).get_str("InstanceID").unwrap_or_default();
        assert!(
            id.split('\\')
                .any(|part| uuid::Uuid::parse_str(part).is_ok()),
            "{id}"
        );
    }
    let default =
        r"SELECT * FROM Msvm_SyntheticEthernetPortSettingData WHERE InstanceID LIKE '%\\Default'";
    one(&bench.found(NAMESPACE, default).await);
    for number in [32768, 32769, 32770, 32771] {
        let text = format!(
            "SELECT * FROM Msvm_VirtualSystemMigrationSettingData WHERE MigrationType = {number}"
        );
        one(&bench.found(NAMESPACE, &text).await);
    }
    let found = bench
        .found(
            NAMESPACE,
            "SELECT * FROM Msvm_VirtualEthernetSwitch WHERE HealthState = 5",
        )
        .await;
    let switch = one(&found);
    let name = switch.get_str("Name").unwrap_or_default();
    assert!(uuid::Uuid::parse_str(name).is_ok(), "{name}");
    for text in [
        format!("Name = '{}'", name.to_lowercase()),
        format!("Name='{name}'"),
        "ElementName = 'NAT'".to_owned(),
    ] {
        one(&bench
            .found(
                NAMESPACE,
                &format!("SELECT * FROM Msvm_VirtualEthernetSwitch WHERE {text}"),
            )
            .await);
    }
    let path = switch
        .path
        .as_ref()
        .map(|p| p.to_string().replace('\\', "\\\\"))
        .unwrap_or_default();
    one(&bench
        .found(
            NAMESPACE,
            &format!("SELECT * FROM Msvm_VirtualEthernetSwitch WHERE __PATH = '{path}'"),
        )
        .await);
}

#[tokio::test]
async fn the_defaults_of_capabilities_are_told_by_role() {
    let bench = Bench::new().await;
    let all = bench.list(NAMESPACE, "Msvm_AllocationCapabilities").await;
    assert_eq!(all.len(), crate::provider::host::kinds().len());
    for capabilities in &all {
        let path = capabilities
            .path
            .as_ref()
            .map(cim::Path::relative)
            .unwrap_or_default();
        let text =
            format!("REFERENCES OF {{{path}}} WHERE ResultClass = Msvm_SettingsDefineCapabilities");
        let found = bench.found(NAMESPACE, &text).await;
        let mut roles: Vec<_> = found
            .iter()
            .map(|i| {
                (
                    i.get("ValueRole").to_text().unwrap_or_default(),
                    i.get("ValueRange").to_text().unwrap_or_default(),
                )
            })
            .collect();
        roles.sort();
        let wanted = [("0", "0"), ("3", "1"), ("3", "2"), ("3", "3")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(roles, wanted, "{path}");
    }
}

#[tokio::test]
async fn job_records_outlive_their_jobs_and_are_found_by_their_id() {
    let bench = Bench::new().await;
    let records = bench
        .found(NAMESPACE, "SELECT * FROM Kvmms_JobRecord")
        .await;
    // At least a start and two points; merging in the background comes and goes.
    assert!(records.len() >= 3, "{}", records.len());
    let id = records
        .iter()
        .find_map(|r| r.get_str("InstanceID").map(str::to_owned))
        .unwrap_or_default();
    let job = uuid::Uuid::parse_str(&id).unwrap_or_default();
    let retired = bench.vmms.db.retire::<vmms::job::Machines>(job).await;
    assert!(retired.is_ok(), "{retired:?}");
    let gone = bench
        .found(
            NAMESPACE,
            &format!("SELECT * FROM Msvm_ConcreteJob WHERE InstanceID = '{id}'"),
        )
        .await;
    assert!(gone.is_empty());
    let found = bench
        .found(
            NAMESPACE,
            &format!("SELECT * FROM Kvmms_JobRecord WHERE InstanceID = '{id}'"),
        )
        .await;
    assert_eq!(one(&found).get("IsVisible"), &cim::Value::Boolean(false));
    for job in bench.vmms.jobs() {
        let retired = bench.vmms.db.retire::<vmms::job::Machines>(job.id).await;
        assert!(retired.is_ok(), "{retired:?}");
    }
    let past = bench
        .found(NAMESPACE, "SELECT * FROM Kvmms_JobRecord")
        .await;
    let ids = |all: &[Instance]| -> Vec<String> {
        let ids = all.iter().filter_map(|r| r.get_str("InstanceID"));
        ids.map(str::to_owned).collect()
    };
    assert_eq!(ids(&past), ids(&records), "all of them, newest first");
    let none = bench
        .found(
            NAMESPACE,
            "SELECT * FROM Kvmms_JobRecord WHERE InstanceID = 'x'",
        )
        .await;
    assert!(none.is_empty());
}

#[tokio::test]
async fn disks_and_points_are_told_in_detail() {
    let bench = Bench::new().await;
    let found = bench.found(NAMESPACE, "SELECT * FROM Kvmms_Disk").await;
    let disk = one(&found);
    assert_eq!(disk.get_str("Format"), Some("raw"));
    let layers = disk.get("Layers").items().len();
    assert!(layers > 1, "{layers}");
    assert_eq!(disk.get("LayerCount").to_text(), Some(layers.to_string()));
    assert!(
        disk.get_str("Warning")
            .is_some_and(|w| w.contains("not the whole disk"))
    );
    assert!(
        disk.get_str("Path")
            .is_some_and(|p| p.starts_with(&*bench.dir.path().to_string_lossy()))
    );
    let points = bench
        .found(NAMESPACE, "SELECT * FROM Kvmms_ReferencePointDetail")
        .await;
    // Two of the machine, one of the collection.
    assert_eq!(points.len(), 3);
    assert!(
        points
            .iter()
            .all(|p| p.get("Held") == &cim::Value::Boolean(true))
    );
}

//! What verbs call, and what they make of refusals.

use cim::{Instance, Path, Value};

use crate::scripted::{Answer, Call, Host, VM, World, errors, machine, vm};

const NEW: &str = "22222222-BBBB-4000-8000-000000000002";

fn system(id: &str) -> Value {
    let path = Path::class("Msvm_ComputerSystem")
        .in_namespace("root/virtualization/v2")
        .key("CreationClassName", "Msvm_ComputerSystem")
        .key("Name", id);
    path.into()
}

fn resource(id: &str) -> Value {
    let path = Path::class("Msvm_ResourceAllocationSettingData")
        .in_namespace("root/virtualization/v2")
        .key("InstanceID", id);
    Value::Array(vec![path.into()])
}

/// Defines machines with two IDE controllers; adds what is asked for unless it is a disk named `bad`.
fn defining() -> Host {
    Host::new([], |world: &World, call: &Call| -> Answer {
        match call.method.as_str() {
            "DefineSystem" => {
                let name = call.instances("SystemSettings")[0]
                    .get_str("ElementName")
                    .map(str::to_owned);
                world.add(machine(NEW, &name.unwrap_or_default(), 3));
                world.add(
                    Instance::new("Msvm_VirtualSystemSettingData")
                        .with("InstanceID", format!("Microsoft:{NEW}")),
                );
                for number in 0..2 {
                    world.add(
                        Instance::new("Msvm_ResourceAllocationSettingData")
                            .with("InstanceID", format!("Microsoft:{NEW}\\IDE\\{number}"))
                            .with("ResourceType", 5u16)
                            .with("Address", number.to_string()),
                    );
                }
                (0, vec![("ResultingSystem", system(NEW))])
            }
            "AddResourceSettings" => {
                let mut added = call.instances("ResourceSettings").remove(0);
                let kind = added.get("ResourceType").to_text().unwrap_or_default();
                if added
                    .get("HostResource")
                    .items()
                    .iter()
                    .any(|v| v.as_str() == Some("/bad"))
                {
                    return (
                        32779,
                        vec![(
                            "KvmmsErrors",
                            errors(&[("KVMMS-0060", "/bad does not exist")]),
                        )],
                    );
                }
                let count = world.calls_of("AddResourceSettings").len();
                let id = format!("Microsoft:{NEW}\\{kind}-{count}");
                added.set("InstanceID", id.as_str());
                world.add(added);
                (0, vec![("ResultingResourceSettings", resource(&id))])
            }
            "DestroySystem" => {
                world.remove(NEW);
                (0, Vec::new())
            }
            _ => (0, Vec::new()),
        }
    })
}

#[test]
fn a_new_machine_gets_its_disks_in_boot_order() {
    let host = defining();
    let ran = host.run(&[
        "vm", "create", "new", "--memory", "256M", "--cpus", "2", "--disk", "/a", "--disk", "/b",
        "--disk", "/c", "--nic", "-o", "json",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let disks = &ran.json()["disks"];
    let places: Vec<_> = (0..3)
        .map(|i| disks[i]["place"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(places, ["ide:0:0", "ide:0:1", "ide:1:0"]);
    let define = &host.world.calls_of("DefineSystem")[0];
    let hardware = define.instances("ResourceSettings");
    let quantity = |i: usize| hardware[i].get("VirtualQuantity").as_u64();
    assert_eq!((quantity(0), quantity(1)), (Some(256), Some(2)));
    let nics = host.world.calls_of("AddResourceSettings").into_iter();
    let last = nics.last().expect("calls").instances("ResourceSettings");
    assert_eq!(last[0].class, "Msvm_SyntheticEthernetPortSettingData");
}

#[test]
fn a_network_adapter_is_plugged_into_the_only_switch() {
    let host = defining();
    let name = "C08CB7B8-9B3C-408E-8E30-5E16A3AEB444";
    host.world.add(
        Instance::new("Msvm_VirtualEthernetSwitch")
            .with("CreationClassName", "Msvm_VirtualEthernetSwitch")
            .with("Name", name),
    );
    let ran = host.run(&["vm", "create", "new", "--nic"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let added = host.world.calls_of("AddResourceSettings").into_iter();
    let last = added.last().expect("calls").instances("ResourceSettings");
    assert_eq!(last[0].class, "Msvm_EthernetPortAllocationSettingData");
    let switch = last[0]
        .get("HostResource")
        .items()
        .first()
        .and_then(|v| v.as_str());
    assert!(switch.is_some_and(|s| s.contains(name)), "{switch:?}");
}

#[test]
fn a_machine_that_cannot_be_finished_is_removed_and_the_reason_told() {
    let host = defining();
    let ran = host.run(&["vm", "create", "new", "--disk", "/a", "--disk", "/bad"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("was removed again"), "{ran:?}");
    assert!(
        ran.err.contains(
            "error: AddResourceSettings was refused: file not found (32779)\n  \
             because: /bad does not exist [KVMMS-0060]\nwhat to do:\n  - Mend KVMMS-0060.\n"
        ),
        "{ran:?}"
    );
    assert_eq!(host.world.calls_of("DestroySystem").len(), 1);
    assert!(host.run(&["vm", "list"]).out.starts_with("No machines"));
}

#[test]
fn nothing_is_made_of_a_request_that_makes_no_sense() {
    let host = defining();
    for arguments in [
        &["vm", "create", "new", "--memory", "1000"][..],
        &["vm", "create", "new", "--memory", "lots"],
        &["vm", "create", "new", "--cpus", "0"],
        &["vm", "create", "new", "--new-disk", "/a"],
        &["vm", "set", "new"],
    ] {
        let ran = host.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?} {ran:?}");
    }
    assert!(host.world.methods().is_empty());
}

#[test]
fn a_refused_state_change_tells_the_state() {
    let host = Host::new(vm(), |_: &World, _: &Call| -> Answer {
        (32775, Vec::new())
    });
    let ran = host.run(&["vm", "start", "web"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("invalid state (32775)"), "{ran:?}");
    assert!(ran.err.contains("web is running now."), "{ran:?}");
}

#[test]
fn a_fault_is_told_with_its_reason() {
    let host = Host::new(vm(), |_: &World, _: &Call| -> Answer { (0, Vec::new()) });
    let ran = host.run(&["cim", "get", "Msvm_ComputerSystem.Name=\"none\""]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("there is no"), "{ran:?}");
}

#[test]
fn a_verb_that_changes_takes_no_beginning_of_a_name_or_guid() {
    let other = machine("33333333-AAAA-4000-8000-000000000003", "prod-db2", 3);
    let point = Instance::new("Msvm_VirtualSystemReferencePoint")
        .with(
            "InstanceID",
            "Microsoft:44444444-AAAA-4000-8000-000000000004",
        )
        .with("ElementName", "nightly")
        .with("VirtualSystemIdentifier", VM);
    let host = Host::new(
        vm().into_iter().chain([other, point]),
        |_: &World, _: &Call| -> Answer { (0, Vec::new()) },
    );
    for verb in [
        &["vm", "delete"][..],
        &["vm", "stop"],
        &["vm", "start"],
        &["vm", "shutdown"],
        &["vm", "pause"],
        &["vm", "resume"],
        &["vm", "save"],
        &["vm", "reboot"],
        &["vm", "reset"],
        &["point", "create"],
        &["snapshot", "create"],
        &["export", "--to", "/x"],
    ] {
        let ran = host.run(&[verb, &["prod-db"]].concat());
        assert_eq!(ran.code, 1, "{verb:?}: {ran:?}");
        assert!(ran.err.contains("prod-db2 (33333333"), "{ran:?}");
    }
    for verb in [
        &["point", "delete"][..],
        &["point", "remove-data"],
        &["point", "export", "--to", "/x"],
    ] {
        let ran = host.run(&[verb, &["web/night"]].concat());
        assert_eq!(ran.code, 1, "{verb:?}: {ran:?}");
    }
    assert!(host.world.methods().is_empty());
    for wanted in ["prod-db", "3333"] {
        let ran = host.run(&["disk", "list", wanted]);
        assert_eq!(ran.code, 0, "looking is allowed: {ran:?}");
    }
}

#[test]
fn a_point_and_a_machine_of_one_name_are_not_taken_for_each_other() {
    let point = Instance::new("Msvm_VirtualSystemReferencePoint")
        .with(
            "InstanceID",
            "Microsoft:44444444-AAAA-4000-8000-000000000004",
        )
        .with("ElementName", "web")
        .with("VirtualSystemIdentifier", VM);
    let host = Host::new(
        vm().into_iter().chain([point]),
        |_: &World, _: &Call| -> Answer { (0, Vec::new()) },
    );
    let ran = host.run(&["point", "export", "web", "--to", "/x"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("point web (44444444"), "{ran:?}");
    assert!(ran.err.contains("machine web (11111111"), "{ran:?}");
    assert!(host.world.methods().is_empty());
}

#[test]
fn a_name_that_fits_two_machines_lists_both_and_calls_nothing() {
    let other = machine("33333333-AAAA-4000-8000-000000000003", "west", 3);
    let same = machine("55555555-AAAA-4000-8000-000000000005", "web", 3);
    let host = Host::new(
        vm().into_iter().chain([other, same]),
        |_: &World, _: &Call| -> Answer { (0, Vec::new()) },
    );
    let ran = host.run(&["vm", "show", "we"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("- web (11111111"), "{ran:?}");
    assert!(ran.err.contains("- west (33333333"), "{ran:?}");
    let ran = host.run(&["vm", "delete", "web"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("- web (11111111"), "{ran:?}");
    assert!(ran.err.contains("- web (55555555"), "{ran:?}");
    assert!(host.world.methods().is_empty());
}

#[test]
fn points_of_the_same_name_are_told_apart_by_their_machine() {
    let other = "33333333-AAAA-4000-8000-000000000003";
    let point = |id: &str, vm: &str| {
        Instance::new("Msvm_VirtualSystemReferencePoint")
            .with("InstanceID", format!("Microsoft:{id}"))
            .with("ElementName", "nightly")
            .with("VirtualSystemIdentifier", vm)
    };
    let all =
        vm().into_iter()
            .chain([machine(other, "db", 3), point("P1", VM), point("P2", other)]);
    let host = Host::new(all, |_: &World, _: &Call| -> Answer { (0, Vec::new()) });
    assert!(
        host.run(&["point", "show", "nightly"])
            .err
            .contains("more than one")
    );
    let ran = host.run(&["point", "show", "db/nightly", "-o", "json"]);
    assert_eq!(ran.json()["id"], "P2", "{ran:?}");
    assert_eq!(host.run(&["point", "show", "web/none"]).code, 1);
}

#[test]
fn a_job_that_succeeded_may_still_warn() {
    let host = Host::new(vm(), |world: &World, call: &Call| -> Answer {
        match call.method.as_str() {
            "RequestStateChange" => {
                world.add(crate::scripted::job(7));
                crate::scripted::started()
            }
            _ => (0, vec![("Errors", errors(&[("KVMMS-0007", "Look here.")]))]),
        }
    });
    let ran = host.run(&["vm", "start", "web"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (0, "  warning: Look here. [KVMMS-0007]\n")
    );
    let ran = host.run(&["vm", "start", "web", "-o", "json"]);
    let warned: serde_json::Value = serde_json::from_str(&ran.err).expect("json");
    assert_eq!(warned["warnings"][0]["id"], "KVMMS-0007");
}

fn with_point() -> Vec<Instance> {
    let disk = format!("Microsoft:{VM}\\D\\0\\0\\L");
    let path = |id: &str| {
        format!(
            "\\\\.\\root\\virtualization\\v2:X.InstanceID=\"{}\"",
            id.replace('\\', "\\\\")
        )
    };
    let mut all = vm();
    all.push(
        Instance::new("Msvm_ResourceAllocationSettingData")
            .with("InstanceID", format!("Microsoft:{VM}\\IDE\\0"))
            .with("ResourceType", 5u16)
            .with("Address", "0"),
    );
    all.push(
        Instance::new("Msvm_ResourceAllocationSettingData")
            .with("InstanceID", format!("Microsoft:{VM}\\D\\0\\0\\D"))
            .with("ResourceType", 17u16)
            .with("AddressOnParent", "0")
            .with("Parent", path(&format!("Microsoft:{VM}\\IDE\\0"))),
    );
    all.push(
        Instance::new("Msvm_StorageAllocationSettingData")
            .with("InstanceID", disk.as_str())
            .with("ResourceType", 31u16)
            .with("ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk")
            .with("HostResource", vec!["/images/web.qcow2".to_owned()])
            .with("Parent", path(&format!("Microsoft:{VM}\\D\\0\\0\\D"))),
    );
    for (id, name) in [("P1", "monday"), ("P2", "tuesday")] {
        all.push(
            Instance::new("Msvm_VirtualSystemReferencePoint")
                .with("InstanceID", format!("Microsoft:{id}"))
                .with("ElementName", name)
                .with("VirtualSystemIdentifier", VM)
                .with("ReferencePointType", 2u16)
                .with("ConsistencyLevel", 2u16)
                .with("VirtualDiskIdentifiers", vec![disk.clone()])
                .with(
                    "ResilientChangeTrackingIdentifiers",
                    vec![format!("RCT-{id}")],
                ),
        );
    }
    all
}

#[test]
fn changes_are_asked_for_until_the_end_and_what_touches_is_one_range() {
    let host = Host::new(with_point(), |_: &World, call: &Call| -> Answer {
        if call.method == "GetVirtualHardDiskSettingData" {
            let setting =
                Instance::new("Msvm_VirtualHardDiskSettingData").with("MaxInternalSize", 1000u64);
            return (
                0,
                vec![("SettingData", cim::embedded::write(&setting).into())],
            );
        }
        let offset = call
            .get("ByteOffset")
            .to_text()
            .and_then(|t| t.parse::<u64>().ok());
        let (processed, ranges): (u64, &[(u64, u64)]) = match offset {
            Some(0) => (400, &[(100, 50), (300, 100)]),
            Some(400) => (500, &[(400, 100), (800, 10)]),
            _ => (100, &[]),
        };
        let list =
            |of: fn(&(u64, u64)) -> u64| Value::from(ranges.iter().map(of).collect::<Vec<_>>());
        (
            0,
            vec![
                ("ProcessedByteLength", processed.into()),
                ("ChangedByteOffsets", list(|r| r.0)),
                ("ChangedByteLengths", list(|r| r.1)),
            ],
        )
    });
    let ran = host.run(&["point", "changes", "web", "--since", "monday", "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.json();
    assert_eq!(told["changed"], 260);
    assert_eq!(
        told["ranges"].to_string(),
        r#"[{"length":50,"offset":100},{"length":200,"offset":300},{"length":10,"offset":800}]"#
    );
    let calls = host.world.calls_of("GetVirtualDiskChanges");
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[0].get("LimitId").as_str(), Some("RCT-P1"));
    assert_eq!(calls[2].get("ByteLength").to_text().as_deref(), Some("100"));
}

#[test]
fn a_server_that_makes_no_progress_does_not_keep_us_for_ever() {
    let host = Host::new(with_point(), |_: &World, call: &Call| -> Answer {
        if call.method == "GetVirtualHardDiskSettingData" {
            let setting =
                Instance::new("Msvm_VirtualHardDiskSettingData").with("MaxInternalSize", 1000u64);
            return (
                0,
                vec![("SettingData", cim::embedded::write(&setting).into())],
            );
        }
        (0, vec![("ProcessedByteLength", 0u64.into())])
    });
    let ran = host.run(&["point", "changes", "web", "--since", "monday"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("no progress"), "{ran:?}");
}

#[test]
fn an_export_names_point_base_and_disks_and_a_machine_means_its_newest_point() {
    let host = Host::new(with_point(), |_: &World, _: &Call| -> Answer {
        (0, Vec::new())
    });
    let ran = host.run(&[
        "point",
        "export",
        "web",
        "--to",
        "/backup",
        "--base",
        "monday",
        "--disk",
        "web.qcow2",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let call = &host.world.calls_of("ExportReferencePoint")[0];
    let point = call.get("ReferencePoint").as_path().expect("a path");
    assert_eq!(point.get_str("InstanceID"), Some("Microsoft:P2"));
    let setting = &call.instances("ExportSettingData")[0];
    let base = setting.get("BaseReferencePoint").as_path().expect("a path");
    assert_eq!(base.get_str("InstanceID"), Some("Microsoft:P1"));
    let disks = setting.get("DisksToExport").items().to_vec();
    assert_eq!(disks, [Value::from(format!("Microsoft:{VM}\\D\\0\\0\\L"))]);
}

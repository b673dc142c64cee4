//! Moves and the hosts that trust each other.

use cim::{Instance, Value};

use crate::scripted::{Answer, Call, Host, JOB, VM, World, machine, vm};

const TEMPLATE: &str = "Msvm_VirtualSystemMigrationSettingData";
const OTHER: &str = "22222222-BBBB-4000-8000-000000000002";

fn template(kind: u16) -> Instance {
    Instance::new(TEMPLATE)
        .with(
            "InstanceID",
            format!("Microsoft:Definition\\Migration\\{kind}"),
        )
        .with("MigrationType", kind)
        .with("TransportType", 5u16)
        .with("EnableCompression", true)
}

fn move_job(state: u16) -> Vec<Instance> {
    vec![
        Instance::new("Msvm_MigrationJob")
            .with("InstanceID", JOB)
            .with("ElementName", "Moving")
            .with("JobState", state),
        Instance::new("Kvmms_MigrationDetail")
            .with("InstanceID", JOB)
            .with("Phase", "done")
            .with("MemoryBytes", 33u64 << 20)
            .with("Downtime", 41u64),
    ]
}

fn started() -> Answer {
    let path = cim::Path::class("Msvm_MigrationJob")
        .in_namespace("root/virtualization/v2")
        .key("InstanceID", JOB);
    (4096, vec![("Job", path.into())])
}

/// A host with a machine and templates, whose moves end in that state; the second of a group fails with 10.
fn moving(state: u16) -> Host {
    let templates = [32768, 32769, 32770, 32771].map(template);
    let disk = Instance::new("Msvm_StorageAllocationSettingData")
        .with("InstanceID", format!("Microsoft:{VM}\\S\\0\\0\\L"))
        .with("ResourceType", 31u16)
        .with("ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk")
        .with("HostResource", vec!["/images/web.qcow2".to_owned()]);
    let all = vm().into_iter().chain(templates).chain([disk]);
    Host::new(all, move |world: &World, call: &Call| -> Answer {
        match call.method.as_str() {
            "MigrateVirtualSystemToHost" | "CheckVirtualSystemIsMigratable" => {
                world.remove(JOB);
                let before = world.calls_of(&call.method).len();
                let state = if before > 1 { 10 } else { state };
                for instance in move_job(state) {
                    world.add(instance);
                }
                started()
            }
            "PlanMigration" => (
                0,
                vec![
                    ("Files", 3u64.into()),
                    ("FileBytes", (7u64 << 20).into()),
                    ("Risks", vec!["QEMU there is older".to_owned()].into()),
                ],
            ),
            "LookAtHost" => (
                0,
                vec![
                    ("Fingerprint", "AB:CD".into()),
                    ("OwnFingerprint", "12:34".into()),
                ],
            ),
            _ => (0, Vec::new()),
        }
    })
}

#[test]
fn a_move_sends_the_servers_template_with_what_was_asked_for_and_tells_what_was_measured() {
    let host = moving(7);
    let line = [
        "migrate",
        "web",
        "--to",
        "beta",
        "--storage",
        "--disks-to",
        "/new",
        "--compress",
        "no",
        "--bandwidth",
        "100M",
        "--address",
        "192.0.2.7",
    ];
    let ran = host.run(&line);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.out,
        "web is on beta (33 MiB of memory, its guest stood still for 41 ms)\n"
    );
    let call = host.world.calls_of("MigrateVirtualSystemToHost").remove(0);
    assert_eq!(call.get("DestinationHost"), Value::from("beta"));
    let settings = call.instances("MigrationSettingData").remove(0);
    let said = |name: &str| settings.get(name).to_text().unwrap_or_default();
    assert_eq!(said("MigrationType"), "32771");
    assert_eq!(said("EnableCompression"), "false");
    assert_eq!(
        (said("Bandwidth").as_str(), said("BandwidthUnit").as_str()),
        ("100", "byte / second * 2^20")
    );
    let disks = call.instances("NewResourceSettingData");
    assert_eq!(
        disks[0].get("HostResource").items()[0].as_str(),
        Some("/new/web.qcow2")
    );
}

#[test]
fn a_check_and_a_dry_run_move_nothing() {
    let host = moving(7);
    let ran = host.run(&["migrate", "web", "--to", "beta", "--check"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "web can move\n"),
        "{ran:?}"
    );
    let ran = host.run(&["migrate", "web", "--to", "beta", "--dry-run", "-o", "json"]);
    let told = ran.json();
    assert_eq!(told["fileBytes"], 7 << 20);
    assert_eq!(told["risks"][0], "QEMU there is older");
    assert!(host.world.calls_of("MigrateVirtualSystemToHost").is_empty());
}

#[test]
fn of_a_group_it_is_said_what_moved_when_one_fails() {
    let host = moving(7);
    host.world.add(machine(OTHER, "zoo", 2));
    host.world.add(
        Instance::new("Msvm_VirtualSystemCollection")
            .with("CollectionID", "33333333-CCCC-4000-8000-000000000003")
            .with("ElementName", "shop"),
    );
    let ran = host.run(&["migrate", "--group", "shop", "--to", "beta"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("web is on beta"), "{ran:?}");
    assert!(ran.err.contains("web moved; still here: zoo."), "{ran:?}");
}

#[test]
fn a_host_is_trusted_only_with_the_fingerprint_it_shows() {
    let host = moving(7);
    let ran = host.run(&["host", "trust", "beta", "-o", "json"]);
    assert_eq!(
        (ran.json()["trusted"].as_bool(), ran.code),
        (Some(false), 0),
        "{ran:?}"
    );
    let ran = host.run(&["host", "trust", "beta", "--fingerprint", "99:99"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(host.world.calls_of("TrustHost").is_empty());
    let ran = host.run(&["host", "trust", "beta", "--fingerprint", "ab cd"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let call = host.world.calls_of("TrustHost").remove(0);
    assert_eq!(call.get("Fingerprint"), Value::from("AB:CD"));
}

#[test]
fn who_trusts_a_host_hears_that_this_one_cannot_be_reached_from_there() {
    let host = moving(7);
    let own = |address: &str, port: u16| {
        Instance::new("Kvmms_TrustedHost")
            .with("Name", "alpha")
            .with("Local", true)
            .with("Address", address)
            .with("Port", port)
    };
    let line = ["host", "trust", "192.0.2.7", "--fingerprint", "AB:CD"];
    host.world.add(own("192.0.2.6", 6600));
    let ran = host.run(&line);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for (own, word) in [
        (own("127.0.0.1", 6600), "on loopback only"),
        (own("", 0), "does not listen"),
    ] {
        host.world.remove("alpha");
        host.world.add(own);
        let ran = host.run(&line);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains(word), "{ran:?}");
    }
}

//! An imported machine is another one than the machine that was exported, unless it is asked to be the same.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use hypervisor::ImageFormat;
use support::{Bench, MIB};
use uuid::Uuid;
use vmms::import::{Take, import_export, import_planned};
use vmms::machine::device::NewDevice;
use vmms::machine::{Asked, DeviceKind, Vm};
use vmms::point::PointType;

fn addresses(vm: &Vm) -> Vec<String> {
    let of = |kind: &DeviceKind| match kind {
        DeviceKind::Nic { mac, .. } => Some(mac.clone()),
        _ => None,
    };
    vm.devices.iter().filter_map(|d| of(&d.kind)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_has_network_addresses_of_its_own_and_does_not_start_by_itself() {
    let bench = Bench::new().await;
    let bed = bench.machine(&[("a.qcow2", ImageFormat::Qcow2, MIB)]).await;
    for mac in [None, Some("00155DAABBCC".to_owned())] {
        let nic = NewDevice::Nic { mac, guid: None };
        vmms::machine::device::add(&bench.vmms, bed.vm, nic, None)
            .await
            .unwrap();
    }
    vmms::machine::change(&bench.vmms, bed.vm, |vm| {
        vm.settings.automatic_startup_action = 4;
        Ok(())
    })
    .await
    .unwrap();
    let point = bed.point(PointType::Log).await;
    bed.export(point, None, "out").await;
    let was = addresses(&bed.record());
    assert_eq!(was.len(), 2);
    let (dir, asked) = (bench.path("out"), Asked::default());
    let imported = |vm: Uuid| bench.vmms.db.get::<Vm>(vm).unwrap();

    let to = bench.path("other");
    let (vm, job) = import_export(&bench.vmms, &dir, None, &to, false, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    let other = imported(vm);
    assert_eq!(other.settings.automatic_startup_action, 2);
    let own = addresses(&other);
    assert_eq!(own.len(), 2);
    assert!(own.iter().all(|mac| !was.contains(mac)), "{own:?}");
    assert_ne!(own[0], own[1]);

    let same = Take {
        identity: true,
        ..Take::default()
    };
    let to = bench.path("same");
    let (vm, job) = import_export(&bench.vmms, &dir, Some("same".into()), &to, same, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    let kept = imported(vm);
    assert_eq!(kept.settings.automatic_startup_action, 4);
    assert_eq!(addresses(&kept), was);

    let to = bench.path("planned");
    let (vm, job) = import_planned(&bench.vmms, &dir, false, Some(&to), &asked)
        .await
        .unwrap();
    bench.done(job).await;
    let planned = imported(vm);
    assert_eq!(planned.settings.automatic_startup_action, 2);
    assert!(addresses(&planned).iter().all(|mac| !was.contains(mac)));
}

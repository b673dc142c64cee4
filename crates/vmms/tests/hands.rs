//! What a person could lose by hand.

mod support;

use hypervisor::ImageFormat;
use support::{Bench, MIB};
use vmms::point::{Point, PointType};
use vmms::vm::Asked;

#[tokio::test(flavor = "multi_thread")]
async fn points_without_a_name_get_names_that_nothing_else_has() {
    let bench = Bench::new().await;
    let bed = bench.machine(&[("a.qcow2", ImageFormat::Qcow2, MIB)]).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let asked = Asked::default();
        let made = vmms::point::create_point(&bench.vmms, bed.vm, PointType::Rct, None, "", &asked);
        jobs.push(made.await.unwrap().1);
    }
    for job in jobs {
        bench.done(job).await;
    }
    let names: std::collections::BTreeSet<String> = bench
        .vmms
        .db
        .all::<Point>()
        .iter()
        .map(|p| p.name.clone())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|n| n != "bed"));
}

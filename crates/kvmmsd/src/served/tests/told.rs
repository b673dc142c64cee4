//! Failures name what they are about: where an argument is an identifier, people read the name beside it.

use uuid::Uuid;
use vmms::collection::{Collection, CollectionPoint, CollectionSnapshot};
use vmms::job::Job;
use vmms::machine::Vm;
use vmms::point::Point;
use vmms::snapshot::Snapshot;
use vmms::{Fault, Message, Vmms, guid, told};

use super::bench::Bench;

/// What a failure beneath another one says of an identifier.
fn said(vmms: &Vmms, id: &str) -> String {
    let beneath = Fault::new(Message::PointNotFound, [id]);
    let whole = Fault::new(Message::NotAMember, ["x", "y"]).caused_by(beneath);
    let named = told::named(vmms, &whole);
    assert_eq!(named.arguments, ["x", "y"]);
    named.causes[0].arguments[0].clone()
}

#[tokio::test]
async fn every_kind_of_identifier_gets_its_name() {
    let bench = Bench::new().await;
    let vmms = &*bench.vmms;
    let (vm, db) = (|id| vmms.db.get::<Vm>(id).expect("a machine"), &vmms.db);
    let of = |collection| {
        db.get::<Collection>(collection)
            .expect("a collection")
            .name
            .clone()
    };
    let mut expected: Vec<(Uuid, String)> = Vec::new();
    expected.extend(db.all::<Vm>().iter().map(|v| (v.id, v.name.clone())));
    for p in db.all::<Point>() {
        let name = format!("{} of machine {}", p.name, vm(p.vm).name);
        // Its layers go by its name, whatever they are called.
        expected.extend(p.disks.iter().map(|d| (d.node, name.clone())));
        expected.push((p.id, name));
    }
    for s in db.all::<Snapshot>() {
        expected.push((s.id, format!("{} of machine {}", s.name, vm(s.vm).name)));
    }
    expected.extend(
        db.all::<Collection>()
            .iter()
            .map(|c| (c.id, c.name.clone())),
    );
    for p in db.all::<CollectionPoint>() {
        expected.push((
            p.id,
            format!("{} of collection {}", p.name, of(p.collection)),
        ));
    }
    for s in db.all::<CollectionSnapshot>() {
        expected.push((
            s.id,
            format!("{} of collection {}", s.name, of(s.collection)),
        ));
    }
    expected.extend(db.all::<Job>().iter().map(|j| (j.id, j.title.clone())));
    for (id, name) in &expected {
        let told = said(vmms, &guid(*id));
        assert!(
            told.starts_with(&format!("{name} (")),
            "{told} is not {name}"
        );
    }
    let full = vm(bench.full);
    for (device, disk) in full.disks() {
        let name = format!("{} of machine full", disk.path.display());
        assert_eq!(
            (said(vmms, device), said(vmms, &guid(disk.uid))),
            (name.clone(), name)
        );
    }
    // What nobody knows stays what it is, and so does what only begins like an identifier.
    let nobody = guid(Uuid::from_u128(7));
    let longer = format!("{}0", guid(full.id));
    assert_eq!((said(vmms, &nobody), said(vmms, &longer)), (nobody, longer));
    assert!(expected.len() > 12, "{expected:?}");
}

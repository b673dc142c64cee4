//! Typed records: layouts that evolve, and changes that meet each other.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use store::{
    ErrorKind, FirstVersion, MemoryStore, Records, Revision, Store, StoreError, Txn, TypedChange,
    Versioned,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Vm1 {
    name: String,
}

impl Versioned for Vm1 {
    const VERSION: u32 = 1;
    type Previous = FirstVersion;
    fn upgrade(previous: FirstVersion) -> Self {
        match previous {}
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Vm2 {
    name: String,
    disks: Vec<String>,
}

impl Versioned for Vm2 {
    const VERSION: u32 = 2;
    type Previous = Vm1;
    fn upgrade(previous: Vm1) -> Self {
        Vm2 {
            name: previous.name,
            disks: Vec::new(),
        }
    }
}

/// Layout 4: a layout 3 was never given out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Vm {
    title: String,
    disks: usize,
}

impl Versioned for Vm {
    const VERSION: u32 = 4;
    type Previous = Vm2;
    fn upgrade(previous: Vm2) -> Self {
        Vm {
            title: previous.name.to_uppercase(),
            disks: previous.disks.len(),
        }
    }
}

fn vm(title: &str, disks: usize) -> Vm {
    Vm {
        title: title.to_owned(),
        disks,
    }
}

fn records() -> (Arc<dyn Store>, Records<Vm>) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    (Arc::clone(&store), Records::new(store, "vm"))
}

async fn raw(store: &Arc<dyn Store>, key: &str, schema: u32, value: serde_json::Value) {
    store.txn(Txn::new().put(key, schema, value)).await.unwrap();
}

#[tokio::test]
async fn records_of_every_earlier_layout_are_read() {
    let (store, vms) = records();
    raw(&store, "vm/1", 1, json!({"name": "a"})).await;
    raw(&store, "vm/2", 2, json!({"name": "b", "disks": ["x", "y"]})).await;
    raw(&store, "vm/4", 4, json!({"title": "D", "disks": 7})).await;
    let (all, revision) = vms.all("").await.unwrap();
    let all: Vec<_> = all
        .into_iter()
        .map(|stored| (stored.id, stored.value))
        .collect();
    assert_eq!(
        all,
        [
            ("1".to_owned(), vm("A", 0)),
            ("2".to_owned(), vm("B", 2)),
            ("4".to_owned(), vm("D", 7))
        ]
    );
    assert_eq!(revision, Revision::new(3));
}

#[tokio::test]
async fn an_upgraded_record_is_written_back_in_the_new_layout_only_when_changed() {
    let (store, vms) = records();
    raw(&store, "vm/1", 1, json!({"name": "a"})).await;
    let old = vms.get("1").await.unwrap().unwrap();
    assert_eq!(store.get("vm/1").await.unwrap().unwrap().schema, 1);
    vms.update(&old, &vm("new", 1)).await.unwrap();
    let record = store.get("vm/1").await.unwrap().unwrap();
    assert_eq!(
        (record.schema, record.value),
        (4, json!({"title": "new", "disks": 1}))
    );
}

#[tokio::test]
async fn a_record_this_program_cannot_read_is_told_and_not_passed_over() {
    let (store, vms) = records();
    for (schema, value) in [
        (5, json!({"title": "from tomorrow", "disks": 1})),
        (3, json!({"title": "never given out", "disks": 1})),
        (0, json!({"name": "no layout"})),
        (4, json!({"title": 1})),
        (1, json!([])),
    ] {
        raw(&store, "vm/x", schema, value).await;
        let error = vms.get("x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreadable);
        assert!(error.to_string().contains("vm/x"), "{error}");
        assert_eq!(
            matches!(
                error,
                StoreError::NewerSchema {
                    stored: 5,
                    known: 4,
                    ..
                }
            ),
            schema == 5,
            "{error}"
        );
        assert!(vms.all("").await.is_err());
    }
}

#[tokio::test]
async fn create_update_and_delete_meet_no_one_unseen() {
    let (_, vms) = records();
    vms.create("1", &vm("a", 0)).await.unwrap();
    assert!(
        vms.create("1", &vm("b", 0))
            .await
            .unwrap_err()
            .is_conflict()
    );
    let seen = vms.get("1").await.unwrap().unwrap();
    vms.put("1", &vm("c", 0)).await.unwrap();
    assert!(
        vms.update(&seen, &vm("d", 0))
            .await
            .unwrap_err()
            .is_conflict()
    );
    assert!(vms.delete(&seen).await.unwrap_err().is_conflict());
    let seen = vms.get("1").await.unwrap().unwrap();
    assert_eq!(seen.value, vm("c", 0));
    vms.delete(&seen).await.unwrap();
    assert_eq!(vms.get("1").await.unwrap(), None);
    assert!(
        vms.update(&seen, &vm("e", 0))
            .await
            .unwrap_err()
            .is_conflict()
    );
}

#[tokio::test]
async fn modify_tries_again_when_somebody_came_between() {
    let (_, vms) = records();
    vms.create("1", &vm("a", 0)).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let vms = vms.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    vms.modify("1", |vm| -> Result<(), StoreError> {
                        vm.disks += 1;
                        Ok(())
                    })
                    .await
                    .unwrap()
                    .unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(vms.get("1").await.unwrap().unwrap().value, vm("a", 80));
}

#[tokio::test]
async fn modify_keeps_the_lease_and_passes_a_refusal_on() {
    let (store, vms) = records();
    let lease = store
        .grant(std::time::Duration::from_secs(60))
        .await
        .unwrap();
    let op = vms.put_leased_op("1", &vm("a", 0), lease.id).unwrap();
    store.txn(Txn::new().op(op)).await.unwrap();
    let change = |vm: &mut Vm| -> Result<(), StoreError> {
        vm.disks = 3;
        Ok(())
    };
    let stored = vms.modify("1", change).await.unwrap().unwrap();
    assert_eq!(vms.get("1").await.unwrap().unwrap(), stored);
    assert_eq!(stored.lease, Some(lease.id));
    assert!(vms.modify("2", change).await.unwrap().is_none());
    let refused = vms.modify("1", |_| Err(StoreError::Closed)).await;
    assert!(matches!(refused, Err(StoreError::Closed)));
    assert_eq!(vms.get("1").await.unwrap().unwrap(), stored);
}

#[tokio::test]
async fn transactions_of_several_types_are_joined() {
    let (store, vms) = records();
    let others: Records<Vm2> = Records::new(Arc::clone(&store), "other/");
    let txn = vms.creating("1", &vm("a", 0)).unwrap();
    let txn = txn.and(
        others
            .creating(
                "x/1",
                &Vm2 {
                    name: "b".into(),
                    disks: vec![],
                },
            )
            .unwrap(),
    );
    store.txn(txn.clone()).await.unwrap();
    assert!(store.txn(txn).await.unwrap_err().is_conflict());
    assert_eq!(others.get("x/1").await.unwrap().unwrap().value.name, "b");
    assert_eq!(store.get("other/x/1").await.unwrap().unwrap().schema, 2);
    let txn = Txn::new()
        .op(others.delete_op("x/1"))
        .and(vms.deleting(&vms.get("1").await.unwrap().unwrap()));
    assert_eq!(store.txn(txn).await.unwrap(), Revision::new(2));
}

#[tokio::test]
async fn a_typed_watch_tells_ids_and_goes_on_after_an_unreadable_record() {
    let (store, vms) = records();
    let mut watch = vms.watch("", None).await.unwrap();
    vms.create("1", &vm("a", 0)).await.unwrap();
    raw(&store, "vm/2", 9, json!(1)).await;
    vms.delete(&vms.get("1").await.unwrap().unwrap())
        .await
        .unwrap();
    match watch.next().await.unwrap().unwrap().change {
        TypedChange::Put(stored) => {
            assert_eq!((stored.id.as_str(), stored.value), ("1", vm("a", 0)))
        }
        other => panic!("expected a put, got {other:?}"),
    }
    assert_eq!(
        watch.next().await.unwrap_err().kind(),
        ErrorKind::Unreadable
    );
    let event = watch.next().await.unwrap().unwrap();
    assert_eq!(event.revision, Revision::new(3));
    match event.change {
        TypedChange::Deleted { id } => assert_eq!(id, "1"),
        other => panic!("expected a deletion, got {other:?}"),
    }
}

#[tokio::test]
async fn all_records_are_read_across_pages() {
    let (store, vms) = records();
    for block in 0..21 {
        let mut txn = Txn::new();
        for n in 0..100 {
            txn = txn.op(vms
                .put_op(&format!("{block:02}{n:02}"), &vm("x", n))
                .unwrap());
        }
        store.txn(txn).await.unwrap();
    }
    let (all, _) = vms.all("").await.unwrap();
    assert_eq!(all.len(), 2100);
    assert!(all.is_sorted_by(|a, b| a.id < b.id));
    assert_eq!(vms.all("07").await.unwrap().0.len(), 100);
}

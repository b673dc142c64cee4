use crate::{Fixture, conflict, rev};
use serde_json::{Value, json};
use std::sync::Arc;
use store::{ErrorKind, MAX_KEY_BYTES, MAX_TXN_PARTS, MAX_VALUE_BYTES, Revision, Txn};

pub(crate) async fn an_untouched_store_is_at_revision_zero(f: Fixture) {
    assert_eq!(f.store.revision().await.unwrap(), Revision::ZERO);
    assert_eq!(f.store.get("vm/1").await.unwrap(), None);
    let page = f.store.list("", None, 10).await.unwrap();
    assert_eq!(
        (page.records.len(), page.revision, page.more),
        (0, Revision::ZERO, false)
    );
}

pub(crate) async fn a_record_is_read_back_as_it_was_put(f: Fixture) {
    let value = json!({
        "text": "Grüße, 世界 \u{0}\u{1f980} \"quoted\"",
        "numbers": [0, -1, i64::MIN, u64::MAX, 0.1, 1e-308, 2.2250738585072014e-308, 1.7976931348623157e308],
        "nothing": null,
        "nested": {"z": 1, "a": [true, false, {}, []]},
    });
    for (key, value) in [
        ("a", value),
        ("b", Value::Null),
        ("Schlüssel/ß ", json!("x")),
    ] {
        f.store
            .txn(Txn::new().put(key, 7, value.clone()))
            .await
            .unwrap();
        let record = f.store.get(key).await.unwrap().unwrap();
        assert_eq!(record.key, key);
        assert_eq!(record.schema, 7);
        assert_eq!(record.value, value);
        assert_eq!(record.lease, None);
    }
}

pub(crate) async fn each_transaction_is_one_revision(f: Fixture) {
    let txn = Txn::new()
        .put("a", 1, json!(1))
        .put("b", 1, json!(1))
        .delete("c");
    assert_eq!(f.store.txn(txn).await.unwrap(), rev(1));
    assert_eq!(
        f.store.txn(Txn::new().put("b", 1, json!(2))).await.unwrap(),
        rev(2)
    );
    assert_eq!(f.store.txn(Txn::new().delete("a")).await.unwrap(), rev(3));
    assert_eq!(f.store.revision().await.unwrap(), rev(3));
    let b = f.store.get("b").await.unwrap().unwrap();
    assert_eq!((b.create_revision, b.mod_revision), (rev(1), rev(2)));
}

pub(crate) async fn a_replaced_record_keeps_its_create_revision(f: Fixture) {
    f.put_all(&["x", "a", "a"]).await;
    let record = f.store.get("a").await.unwrap().unwrap();
    assert_eq!(
        (record.create_revision, record.mod_revision),
        (rev(2), rev(3))
    );
    f.store.txn(Txn::new().delete("a")).await.unwrap();
    f.put_all(&["a"]).await;
    let record = f.store.get("a").await.unwrap().unwrap();
    assert_eq!(
        (record.create_revision, record.mod_revision),
        (rev(5), rev(5))
    );
}

pub(crate) async fn a_condition_that_does_not_hold_changes_nothing(f: Fixture) {
    f.put_all(&["a", "b"]).await;
    let before = f.store.list("", None, 10).await.unwrap();
    let txn = Txn::new()
        .exists("a")
        .missing("b")
        .missing("a")
        .put("a", 2, json!("changed"))
        .put("new", 1, json!(1))
        .delete("b");
    assert_eq!(
        conflict(f.store.txn(txn).await),
        "b",
        "the first one that does not hold"
    );
    assert_eq!(f.store.list("", None, 10).await.unwrap(), before);
    assert_eq!(f.store.revision().await.unwrap(), rev(2));
}

pub(crate) async fn each_kind_of_condition_tells_presence_and_revision(f: Fixture) {
    f.put_all(&["other", "a"]).await;
    let put = |txn: Txn| f.store.txn(txn.put("result", 1, json!(1)));
    put(Txn::new().exists("a")).await.unwrap();
    put(Txn::new().missing("b")).await.unwrap();
    put(Txn::new().revision_is("a", rev(2))).await.unwrap();
    assert_eq!(conflict(put(Txn::new().exists("b")).await), "b");
    assert_eq!(conflict(put(Txn::new().missing("a")).await), "a");
    assert_eq!(
        conflict(put(Txn::new().revision_is("a", rev(1))).await),
        "a"
    );
    assert_eq!(
        conflict(put(Txn::new().revision_is("b", rev(0))).await),
        "b"
    );
    let a = f.store.get("a").await.unwrap().unwrap();
    put(Txn::new().unchanged(&a)).await.unwrap();
}

pub(crate) async fn conditions_are_judged_before_any_operation(f: Fixture) {
    f.put_all(&["a"]).await;
    let swap = Txn::new()
        .exists("a")
        .missing("b")
        .delete("a")
        .put("b", 1, json!(1));
    f.store.txn(swap).await.unwrap();
    assert_eq!(f.keys("").await, ["b"]);
}

pub(crate) async fn a_transaction_that_changes_nothing_makes_no_revision(f: Fixture) {
    f.put_all(&["a"]).await;
    assert_eq!(f.store.txn(Txn::new()).await.unwrap(), rev(1));
    assert_eq!(f.store.txn(Txn::new().exists("a")).await.unwrap(), rev(1));
    assert_eq!(
        f.store
            .txn(Txn::new().delete("b").delete("c"))
            .await
            .unwrap(),
        rev(1)
    );
    assert_eq!(f.store.txn(Txn::new().delete("a")).await.unwrap(), rev(2));
}

pub(crate) async fn rules_of_transactions_are_kept(f: Fixture) {
    let many = |count| (0..count).fold(Txn::new(), |txn, n| txn.put(format!("k{n}"), 1, json!(n)));
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let quotes = 2;
    let text = |bytes: usize| json!("x".repeat(bytes - quotes));
    for refused in [
        Txn::new().put("a", 1, json!(1)).delete("a"),
        many(MAX_TXN_PARTS + 1),
        Txn::new().put("", 1, json!(1)),
        Txn::new().put(long.clone(), 1, json!(1)),
        Txn::new().put("fine", 1, json!(1)).delete("a\0b"),
        Txn::new().missing("a\nb"),
        Txn::new().put("a", 1, text(MAX_VALUE_BYTES + 1)),
    ] {
        let error = f.store.txn(refused).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    assert_eq!(
        f.store.get(&long).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(f.store.revision().await.unwrap(), Revision::ZERO);
    f.store.txn(many(MAX_TXN_PARTS)).await.unwrap();
    f.store
        .txn(Txn::new().put("a", 1, text(MAX_VALUE_BYTES)))
        .await
        .unwrap();
    f.store
        .txn(Txn::new().put(&long[1..], 1, json!(1)))
        .await
        .unwrap();
    assert_eq!(f.store.revision().await.unwrap(), rev(3));
}

pub(crate) async fn concurrent_compare_and_set_loses_no_update(f: Fixture) {
    f.store
        .txn(Txn::new().put("counter", 1, json!(0)))
        .await
        .unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(&f.store);
            tokio::spawn(async move {
                let mut done = 0;
                while done < 5 {
                    let old = store.get("counter").await.unwrap().unwrap();
                    let next = old.value.as_u64().unwrap() + 1;
                    let txn = Txn::new().unchanged(&old).put("counter", 1, json!(next));
                    match store.txn(txn).await {
                        Ok(_) => done += 1,
                        Err(error) => assert!(error.is_conflict(), "{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        f.store.get("counter").await.unwrap().unwrap().value,
        json!(40)
    );
    assert_eq!(f.store.revision().await.unwrap(), rev(41));
}

pub(crate) async fn an_acknowledged_change_is_seen_by_the_next_read(f: Fixture) {
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = Arc::clone(&f.store);
            tokio::spawn(async move {
                for n in 0..10 {
                    let key = format!("task/{task}");
                    let revision = store
                        .txn(Txn::new().put(key.clone(), 1, json!(n)))
                        .await
                        .unwrap();
                    let record = store.get(&key).await.unwrap().unwrap();
                    assert_eq!((record.mod_revision, record.value), (revision, json!(n)));
                    let page = store.list(&key, None, 1).await.unwrap();
                    assert!(page.revision >= revision);
                    assert!(store.revision().await.unwrap() >= revision);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

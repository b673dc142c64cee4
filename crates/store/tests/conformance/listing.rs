use crate::{Fixture, keys, rev};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Change, MAX_PAGE, Txn};

pub(crate) async fn a_listing_is_ordered_and_keeps_to_its_prefix(f: Fixture) {
    f.put_all(&[
        "vm/b",
        "vm",
        "vm/a",
        "vn",
        "vm/é",
        "vm0",
        "a",
        "vm/a/1",
        "vm-x",
        "\u{10ffff}",
    ])
    .await;
    assert_eq!(f.keys("vm/").await, ["vm/a", "vm/a/1", "vm/b", "vm/é"]);
    assert_eq!(
        f.keys("vm").await,
        ["vm", "vm-x", "vm/a", "vm/a/1", "vm/b", "vm/é", "vm0"]
    );
    assert_eq!(f.keys("\u{10ffff}").await, ["\u{10ffff}"]);
    assert_eq!(f.keys("x").await, [""; 0]);
    assert_eq!(f.keys("").await.len(), 10);
    let page = f.store.list("vm/", None, 10).await.unwrap();
    assert_eq!((page.revision, page.more), (rev(10), false));
    assert_eq!(page.records[0].mod_revision, rev(3));
}

pub(crate) async fn a_listing_is_read_page_by_page(f: Fixture) {
    f.put_all(&["p/1", "p/2", "p/3", "p/4", "q/1"]).await;
    let page = f.store.list("p/", None, 2).await.unwrap();
    assert_eq!(
        (keys(&page), page.more),
        (vec!["p/1".to_owned(), "p/2".to_owned()], true)
    );
    let page = f.store.list("p/", Some("p/2"), 2).await.unwrap();
    assert_eq!(
        (keys(&page), page.more),
        (vec!["p/3".to_owned(), "p/4".to_owned()], false)
    );
    let page = f.store.list("p/", Some("p/4"), 2).await.unwrap();
    assert_eq!((keys(&page).len(), page.more), (0, false));
    // A start that no longer exists, one before the prefix, one beyond it.
    assert_eq!(
        keys(&f.store.list("p/", Some("p/2a"), 9).await.unwrap()),
        ["p/3", "p/4"]
    );
    assert_eq!(
        keys(&f.store.list("p/", Some("a"), 9).await.unwrap()).len(),
        4
    );
    assert_eq!(
        keys(&f.store.list("p/", Some("q"), 9).await.unwrap()).len(),
        0
    );
    let page = f.store.list("p/", None, 0).await.unwrap();
    assert_eq!((keys(&page), page.more), (vec!["p/1".to_owned()], true));
}

pub(crate) async fn a_listing_never_holds_more_than_the_largest_page(f: Fixture) {
    for block in 0..11 {
        let txn = (0..100).fold(Txn::new(), |txn, n| {
            txn.put(format!("k/{block:02}{n:02}"), 1, json!(n))
        });
        f.store.txn(txn).await.unwrap();
    }
    let page = f.store.list("k/", None, usize::MAX).await.unwrap();
    assert_eq!((page.records.len(), page.more), (MAX_PAGE, true));
    let last = page.records.last().unwrap().key.clone();
    let page = f.store.list("k/", Some(&last), usize::MAX).await.unwrap();
    assert_eq!((page.records.len(), page.more), (100, false));
}

pub(crate) async fn wildcards_of_other_languages_mean_nothing_in_a_prefix(f: Fixture) {
    f.put_all(&["a%b", "axb", "a_b", "a*b", "A%b"]).await;
    assert_eq!(f.keys("a%").await, ["a%b"]);
    assert_eq!(f.keys("a_").await, ["a_b"]);
    assert_eq!(f.keys("a*").await, ["a*b"]);
    assert_eq!(f.keys("A").await, ["A%b"]);
}

pub(crate) async fn a_listing_followed_by_a_watch_has_no_gap(f: Fixture) {
    let store = Arc::clone(&f.store);
    let writer = tokio::spawn(async move {
        for n in 0..45u64 {
            let key = format!("k/{}", n % 7);
            let txn = if n % 5 == 4 {
                Txn::new().delete(key).put("other", 1, json!(n))
            } else {
                Txn::new().put(key, 1, json!(n))
            };
            store.txn(txn).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let mut view = BTreeMap::new();
    let mut first = None;
    let mut after: Option<String> = None;
    loop {
        let page = f.store.list("k/", after.as_deref(), 2).await.unwrap();
        first.get_or_insert(page.revision);
        after = page
            .records
            .last()
            .map(|record| record.key.clone())
            .or(after);
        view.extend(
            page.records
                .into_iter()
                .map(|record| (record.key, record.value)),
        );
        if !page.more {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut watch = f
        .store
        .watch("k/", Some(first.unwrap().next()))
        .await
        .unwrap();
    writer.await.unwrap();
    for event in watch.drain().await.unwrap() {
        match event.change {
            Change::Put(record) => view.insert(record.key, record.value),
            Change::Deleted { key } => view.remove(&key),
        };
    }
    let truth = f.store.list("k/", None, 100).await.unwrap().records;
    let truth: BTreeMap<_, _> = truth
        .into_iter()
        .map(|record| (record.key, record.value))
        .collect();
    assert_eq!(view, truth);
}

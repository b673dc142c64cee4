//! The store that fails on purpose fails exactly where it was told to.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use store::{Calls, Fault, FlakyStore, MemoryStore, Revision, Store, StoreError, Txn};

fn flaky() -> FlakyStore {
    FlakyStore::new(Arc::new(MemoryStore::new()))
}

async fn put(store: &FlakyStore, key: &str) -> Result<Revision, StoreError> {
    store.txn(Txn::new().put(key, 1, json!(1))).await
}

async fn keys(store: &Arc<dyn Store>) -> Vec<String> {
    store
        .list("", None, 100)
        .await
        .unwrap()
        .records
        .into_iter()
        .map(|r| r.key)
        .collect()
}

/// Puts a, b, c, d with the fault at the third call (or the second put); what failed, what is there.
async fn run(calls: Calls, nth: u64, fault: Fault) -> (Vec<&'static str>, Vec<String>) {
    let store = flaky();
    store.arm(calls, nth, fault);
    let mut failed = Vec::new();
    for key in ["a", "b", "c", "d"] {
        if put(&store, key).await.is_err() {
            failed.push(key);
        }
        if store.get(key).await.is_err() {
            failed.push("get");
        }
    }
    (failed, keys(store.inner()).await)
}

#[tokio::test]
async fn each_fault_does_what_it_says() {
    let txn = |fault| run(Calls::Txns, 2, fault);
    let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        txn(Fault::Refuse).await,
        (vec!["b"], owned(&["a", "c", "d"]))
    );
    assert_eq!(
        txn(Fault::LoseReply).await,
        (vec!["b"], owned(&["a", "b", "c", "d"]))
    );
    let down = vec!["b", "get", "c", "get", "d", "get"];
    assert_eq!(txn(Fault::Stop).await, (down.clone(), owned(&["a"])));
    assert_eq!(txn(Fault::StopAfter).await, (down, owned(&["a", "b"])));
    assert_eq!(run(Calls::All, 4, Fault::Refuse).await.0, ["get"]);
}

#[tokio::test]
async fn a_hanging_store_never_answers_and_changes_nothing() {
    let store = flaky();
    store.arm(Calls::Txns, 1, Fault::Hang);
    for _ in 0..2 {
        let waited = tokio::time::timeout(Duration::from_millis(1), put(&store, "a")).await;
        assert!(waited.is_err());
    }
    assert_eq!(keys(store.inner()).await, [""; 0]);
    store.disarm();
    put(&store, "a").await.unwrap();
}

#[tokio::test]
async fn calls_are_counted_and_a_fault_counts_from_when_it_was_set() {
    let store = flaky();
    put(&store, "a").await.unwrap();
    store.get("a").await.unwrap();
    assert_eq!((store.calls(Calls::All), store.calls(Calls::Txns)), (2, 1));
    store.arm(Calls::Txns, 1, Fault::Refuse);
    match put(&store, "b").await {
        Err(StoreError::Injected { call }) => assert_eq!(call, 3),
        other => panic!("expected the fault, got {other:?}"),
    }
    put(&store, "b").await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_never_hides_a_refusal() {
    let store = flaky();
    store.arm(Calls::All, 1, Fault::LoseReply);
    let refused = store
        .txn(Txn::new().exists("none").put("a", 1, json!(1)))
        .await;
    assert!(refused.unwrap_err().is_conflict());
}

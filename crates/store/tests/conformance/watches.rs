use crate::{Fixture, HISTORY, rev};
use serde_json::json;
use std::time::Duration;
use store::{Change, Event, StoreError, Txn, Watch};

async fn next(watch: &mut Watch) -> Event {
    watch.next().await.unwrap().unwrap()
}

/// "revision+key" for a put, "revision-key" for a deletion.
fn short(event: &Event) -> String {
    let sign = if matches!(event.change, Change::Put(_)) {
        '+'
    } else {
        '-'
    };
    format!("{}{sign}{}", event.revision, event.key())
}

pub(crate) async fn a_watch_replays_the_past_and_goes_on(f: Fixture) {
    f.put_all(&["a", "b"]).await;
    f.store.txn(Txn::new().delete("a")).await.unwrap();
    let mut watch = f.store.watch("", Some(rev(2))).await.unwrap();
    assert_eq!(short(&next(&mut watch).await), "2+b");
    assert_eq!(short(&next(&mut watch).await), "3-a");
    f.store
        .txn(Txn::new().put("b", 5, json!("new")))
        .await
        .unwrap();
    let event = next(&mut watch).await;
    let Change::Put(record) = event.change else {
        panic!("a put")
    };
    assert_eq!(
        Some(record),
        f.store.get("b").await.unwrap(),
        "the whole record, as it is stored"
    );
    for start in [0, 1] {
        let mut watch = f.store.watch("", Some(rev(start))).await.unwrap();
        let all: Vec<_> = watch.drain().await.unwrap().iter().map(short).collect();
        assert_eq!(all, ["1+a", "2+b", "3-a", "4+b"]);
    }
}

pub(crate) async fn a_watch_without_a_start_sees_only_what_comes(f: Fixture) {
    f.put_all(&["a"]).await;
    let mut watch = f.store.watch("", None).await.unwrap();
    assert_eq!(watch.drain().await.unwrap(), []);
    let waiting = tokio::spawn(async move { short(&next(&mut watch).await) });
    tokio::task::yield_now().await;
    f.put_all(&["b"]).await;
    assert_eq!(waiting.await.unwrap(), "2+b");
}

pub(crate) async fn a_watch_sees_one_transaction_in_its_order(f: Fixture) {
    f.put_all(&["m"]).await;
    let mut watch = f.store.watch("", None).await.unwrap();
    let txn = Txn::new()
        .put("z", 1, json!(1))
        .delete("m")
        .delete("none")
        .put("a", 1, json!(1));
    f.store.txn(txn).await.unwrap();
    let events: Vec<_> = watch.drain().await.unwrap().iter().map(short).collect();
    assert_eq!(events, ["2+z", "2-m", "2+a"]);
}

pub(crate) async fn a_watch_keeps_to_its_prefix(f: Fixture) {
    let mut watch = f.store.watch("vm/", Some(rev(1))).await.unwrap();
    f.put_all(&["vm", "vm/1", "vn/1", "vm/2", "job/vm/3"]).await;
    let events: Vec<_> = watch.drain().await.unwrap().iter().map(short).collect();
    assert_eq!(events, ["2+vm/1", "4+vm/2"]);
}

async fn put_many(f: &Fixture, count: u64) {
    for n in 0..count {
        f.store.txn(Txn::new().put("k", 1, json!(n))).await.unwrap();
    }
}

pub(crate) async fn a_watch_from_before_history_is_told_so(f: Fixture) {
    put_many(&f, HISTORY * 3).await;
    match f.store.watch("", Some(rev(1))).await {
        Err(StoreError::Compacted { requested, oldest }) => {
            assert_eq!(requested, rev(1));
            assert!(
                oldest <= rev(HISTORY * 2 + 1),
                "as much history as promised is kept"
            );
            let mut watch = f.store.watch("", Some(oldest)).await.unwrap();
            assert_eq!(next(&mut watch).await.revision, oldest);
        }
        other => panic!("expected that history is gone, got {other:?}"),
    }
    let mut watch = f.store.watch("", Some(rev(HISTORY * 2 + 1))).await.unwrap();
    assert_eq!(watch.drain().await.unwrap().len() as u64, HISTORY);
}

pub(crate) async fn a_watch_that_is_too_slow_is_told_so(f: Fixture) {
    put_many(&f, 1).await;
    let mut watch = f.store.watch("", None).await.unwrap();
    put_many(&f, HISTORY * 3).await;
    for _ in 0..2 {
        match watch.next().await {
            Err(StoreError::Compacted { requested, oldest }) => {
                assert_eq!(requested, rev(2));
                assert!(oldest > requested);
            }
            other => panic!("expected that history is gone, got {other:?}"),
        }
    }
}

pub(crate) async fn a_watch_from_the_future_is_refused(f: Fixture) {
    f.put_all(&["a"]).await;
    assert!(
        f.store.watch("", Some(rev(2))).await.is_ok(),
        "the next one is no future"
    );
    match f.store.watch("", Some(rev(3))).await {
        Err(StoreError::FutureRevision { requested, newest }) => {
            assert_eq!((requested, newest), (rev(3), rev(1)));
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub(crate) async fn a_watch_ends_with_the_store(f: Fixture) {
    f.put_all(&["a"]).await;
    let mut watch = f.store.watch("", None).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    drop(f);
    assert!(waiting.await.unwrap().unwrap().is_none());
}

pub(crate) async fn a_wait_that_is_given_up_loses_no_event(f: Fixture) {
    let mut watch = f.store.watch("", Some(rev(1))).await.unwrap();
    let mut seen = Vec::new();
    for n in 0..40u64 {
        f.store.txn(Txn::new().put("k", 1, json!(n))).await.unwrap();
        // Gives up at once, sometimes with an event and sometimes without.
        if let Ok(event) = tokio::time::timeout(Duration::ZERO, watch.next()).await {
            seen.push(event.unwrap().unwrap().revision);
        }
    }
    seen.extend(
        watch
            .drain()
            .await
            .unwrap()
            .iter()
            .map(|event| event.revision),
    );
    assert_eq!(seen, (1..=40).map(rev).collect::<Vec<_>>());
}

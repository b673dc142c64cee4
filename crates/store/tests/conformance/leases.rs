use crate::{Fixture, MINUTE, rev};
use serde_json::json;
use std::time::Duration;
use store::{Change, LeaseId, StoreError, Txn};

fn is_lost<T: std::fmt::Debug>(result: Result<T, StoreError>, lease: LeaseId) {
    match result {
        Err(StoreError::LeaseLost { id }) => assert_eq!(id, lease),
        other => panic!("expected a lost lease, got {other:?}"),
    }
}

pub(crate) async fn what_hangs_on_a_lease_vanishes_when_it_ends(f: Fixture) {
    let lease = f.store.grant(MINUTE).await.unwrap();
    assert_eq!(lease.ttl, MINUTE);
    assert_eq!(
        f.store.revision().await.unwrap(),
        rev(0),
        "a lease alone is no change"
    );
    f.put_all(&["stays"]).await;
    let txn = Txn::new()
        .put_leased("own/b", 1, json!(1), lease.id)
        .put_leased("own/a", 1, json!(1), lease.id);
    f.store.txn(txn).await.unwrap();
    assert_eq!(
        f.store.get("own/a").await.unwrap().unwrap().lease,
        Some(lease.id)
    );
    let mut watch = f.store.watch("", None).await.unwrap();

    f.clock.advance(MINUTE - Duration::from_millis(1));
    f.store.keep_alive(lease.id).await.unwrap();
    f.clock.advance(MINUTE);
    let mut gone = Vec::new();
    for _ in 0..2 {
        let event = watch.next().await.unwrap().unwrap();
        assert_eq!(event.revision, rev(3), "one change");
        match event.change {
            Change::Deleted { key } => gone.push(key),
            other => panic!("expected a deletion, got {other:?}"),
        }
    }
    assert_eq!(gone, ["own/a", "own/b"]);
    assert_eq!(f.keys("").await, ["stays"]);
    is_lost(f.store.keep_alive(lease.id).await, lease.id);
}

pub(crate) async fn a_lease_kept_alive_does_not_end(f: Fixture) {
    let kept = f.store.grant(MINUTE).await.unwrap();
    let left = f.store.grant(MINUTE).await.unwrap();
    let txn = Txn::new()
        .put_leased("kept", 1, json!(1), kept.id)
        .put_leased("left", 1, json!(1), left.id);
    f.store.txn(txn).await.unwrap();
    let mut watch = f.store.watch("", None).await.unwrap();
    for _ in 0..5 {
        f.clock.advance(MINUTE / 2);
        assert_eq!(f.store.keep_alive(kept.id).await.unwrap(), kept);
    }
    // The other one ended, so the clock was really looked at.
    assert_eq!(watch.next().await.unwrap().unwrap().key(), "left");
    assert_eq!(f.keys("").await, ["kept"]);
}

pub(crate) async fn a_revoked_lease_takes_its_records_with_it(f: Fixture) {
    let lease = f.store.grant(MINUTE).await.unwrap();
    let empty = f.store.grant(MINUTE).await.unwrap();
    f.store
        .txn(Txn::new().put_leased("a", 1, json!(1), lease.id))
        .await
        .unwrap();
    f.store
        .txn(Txn::new().put_leased("b", 1, json!(1), lease.id))
        .await
        .unwrap();
    f.store.revoke(lease.id).await.unwrap();
    assert_eq!(f.keys("").await, [""; 0]);
    assert_eq!(f.store.revision().await.unwrap(), rev(3));
    is_lost(f.store.revoke(lease.id).await, lease.id);
    is_lost(f.store.keep_alive(lease.id).await, lease.id);
    f.store.revoke(empty.id).await.unwrap();
    assert_eq!(
        f.store.revision().await.unwrap(),
        rev(3),
        "nothing hung on it"
    );
}

pub(crate) async fn a_record_put_again_without_its_lease_stays(f: Fixture) {
    let lease = f.store.grant(MINUTE).await.unwrap();
    f.store
        .txn(Txn::new().put_leased("a", 1, json!(1), lease.id))
        .await
        .unwrap();
    f.store.txn(Txn::new().put("a", 1, json!(2))).await.unwrap();
    f.store
        .txn(Txn::new().put_leased("b", 1, json!(1), lease.id))
        .await
        .unwrap();
    f.store.txn(Txn::new().delete("b")).await.unwrap();
    f.store.txn(Txn::new().put("b", 1, json!(1))).await.unwrap();
    f.store.revoke(lease.id).await.unwrap();
    assert_eq!(f.keys("").await, ["a", "b"]);
}

pub(crate) async fn a_record_moves_from_lease_to_lease(f: Fixture) {
    let old = f.store.grant(MINUTE).await.unwrap();
    let new = f.store.grant(MINUTE).await.unwrap();
    f.store
        .txn(Txn::new().put_leased("a", 1, json!(1), old.id))
        .await
        .unwrap();
    f.store
        .txn(Txn::new().put_leased("a", 1, json!(1), new.id))
        .await
        .unwrap();
    f.store.revoke(old.id).await.unwrap();
    assert_eq!(f.keys("").await, ["a"]);
    f.store.revoke(new.id).await.unwrap();
    assert_eq!(f.keys("").await, [""; 0]);
}

pub(crate) async fn an_ended_lease_cannot_be_used(f: Fixture) {
    let never = LeaseId::new(4711);
    let put = |id| {
        f.store.txn(
            Txn::new()
                .put("other", 1, json!(1))
                .put_leased("a", 1, json!(1), id),
        )
    };
    is_lost(put(never).await, never);
    is_lost(f.store.keep_alive(never).await, never);
    is_lost(f.store.revoke(never).await, never);
    let lease = f.store.grant(MINUTE).await.unwrap();
    f.store.revoke(lease.id).await.unwrap();
    is_lost(put(lease.id).await, lease.id);
    assert_eq!(
        f.keys("").await,
        [""; 0],
        "nothing of a refused transaction is there"
    );
}

pub(crate) async fn leases_of_silly_length_are_refused(f: Fixture) {
    for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::MAX] {
        match f.store.grant(ttl).await {
            Err(StoreError::InvalidTtl { .. }) => {}
            other => panic!("expected a refusal of {ttl:?}, got {other:?}"),
        }
    }
    f.store.grant(Duration::from_secs(1)).await.unwrap();
}

pub(crate) async fn the_number_of_an_ended_lease_does_not_come_again(f: Fixture) {
    let first = f.store.grant(MINUTE).await.unwrap();
    f.store.revoke(first.id).await.unwrap();
    let second = f.store.grant(MINUTE).await.unwrap();
    assert!(second.id > first.id);
}

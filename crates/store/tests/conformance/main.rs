//! One list of promises, kept by every engine.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod leases;
mod listing;
mod transactions;
mod watches;

use std::sync::Arc;
use std::time::Duration;
use store::{
    ManualClock, MemoryOptions, MemoryStore, Page, Revision, SqliteOptions, SqliteStore, Store,
    StoreError, Txn,
};

/// How far back a watch can go in these tests.
pub(crate) const HISTORY: u64 = 50;

/// A fresh store and the clock of its leases.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: ManualClock,
    _directory: Option<tempfile::TempDir>,
}

impl Fixture {
    fn memory() -> Self {
        let clock = ManualClock::new();
        let options = MemoryOptions {
            clock: clock.clock(),
            history: HISTORY,
        };
        Fixture {
            store: Arc::new(MemoryStore::with_options(options)),
            clock,
            _directory: None,
        }
    }

    fn sqlite() -> Self {
        let clock = ManualClock::new();
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions {
            clock: clock.clock(),
            history: HISTORY,
            ..SqliteOptions::default()
        };
        let store = SqliteStore::open(directory.path().join("store.db"), options).unwrap();
        Fixture {
            store: Arc::new(store),
            clock,
            _directory: Some(directory),
        }
    }

    /// Puts a small value under each key, one transaction each.
    pub(crate) async fn put_all(&self, keys: &[&str]) {
        for key in keys {
            self.store
                .txn(Txn::new().put(*key, 1, key.len().into()))
                .await
                .unwrap();
        }
    }

    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        keys(&self.store.list(prefix, None, 1000).await.unwrap())
    }
}

pub(crate) fn keys(page: &Page) -> Vec<String> {
    page.records
        .iter()
        .map(|record| record.key.clone())
        .collect()
}

pub(crate) fn rev(number: u64) -> Revision {
    Revision::new(number)
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// The key a refused transaction names.
pub(crate) fn conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Conflict { key }) => key,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

macro_rules! conformance {
    ($($module:ident: $($name:ident),+;)+) => {
        mod memory {
            $($(#[tokio::test]
            async fn $name() {
                crate::$module::$name(crate::Fixture::memory()).await;
            })+)+
        }
        mod sqlite {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::Fixture::sqlite()).await;
            })+)+
        }
    };
}

conformance! {
    transactions:
        an_untouched_store_is_at_revision_zero,
        a_record_is_read_back_as_it_was_put,
        each_transaction_is_one_revision,
        a_replaced_record_keeps_its_create_revision,
        a_condition_that_does_not_hold_changes_nothing,
        each_kind_of_condition_tells_presence_and_revision,
        conditions_are_judged_before_any_operation,
        a_transaction_that_changes_nothing_makes_no_revision,
        rules_of_transactions_are_kept,
        concurrent_compare_and_set_loses_no_update,
        an_acknowledged_change_is_seen_by_the_next_read;
    listing:
        a_listing_is_ordered_and_keeps_to_its_prefix,
        a_listing_is_read_page_by_page,
        a_listing_never_holds_more_than_the_largest_page,
        wildcards_of_other_languages_mean_nothing_in_a_prefix,
        a_listing_followed_by_a_watch_has_no_gap;
    watches:
        a_watch_replays_the_past_and_goes_on,
        a_watch_without_a_start_sees_only_what_comes,
        a_watch_sees_one_transaction_in_its_order,
        a_watch_keeps_to_its_prefix,
        a_watch_from_before_history_is_told_so,
        a_watch_that_is_too_slow_is_told_so,
        a_watch_from_the_future_is_refused,
        a_watch_ends_with_the_store,
        a_wait_that_is_given_up_loses_no_event;
    leases:
        what_hangs_on_a_lease_vanishes_when_it_ends,
        a_lease_kept_alive_does_not_end,
        a_revoked_lease_takes_its_records_with_it,
        a_record_put_again_without_its_lease_stays,
        a_record_moves_from_lease_to_lease,
        an_ended_lease_cannot_be_used,
        leases_of_silly_length_are_refused,
        the_number_of_an_ended_lease_does_not_come_again;
}

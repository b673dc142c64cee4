//! Random sequences of calls against a store so simple that it cannot be wrong.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::{
    Change, Check, Condition, Event, LeaseId, ManualClock, MemoryOptions, MemoryStore, Op, Record,
    Revision, SqliteOptions, SqliteStore, Store, StoreError, Txn,
};

/// One call. Keys and leases are picked from a few, so that calls meet.
#[derive(Clone, Debug)]
enum Call {
    Txn {
        conditions: Vec<(u8, u8, u64)>,
        ops: Vec<(u8, Option<u16>, Option<u8>)>,
    },
    List {
        prefix: u8,
        after: Option<u8>,
        limit: usize,
    },
    Watch {
        prefix: u8,
        back: u64,
    },
    Grant,
    Revoke(u8),
    Reopen,
}

const KEYS: [&str; 7] = ["a", "a/", "a/b", "a/b/c", "ab", "b", "\u{e9}"];
const PREFIXES: [&str; 6] = ["", "a", "a/", "a/b", "b", "\u{e9}"];

fn key(n: u8) -> &'static str {
    KEYS[usize::from(n) % KEYS.len()]
}

fn prefix(n: u8) -> &'static str {
    PREFIXES[usize::from(n) % PREFIXES.len()]
}

fn call() -> impl Strategy<Value = Call> {
    let condition = (any::<u8>(), 0u8..3, 0u64..4);
    let op = (
        any::<u8>(),
        proptest::option::weighted(0.7, any::<u16>()),
        proptest::option::weighted(0.3, 0u8..3),
    );
    prop_oneof![
        10 => (proptest::collection::vec(condition, 0..2), proptest::collection::vec(op, 0..4))
            .prop_map(|(conditions, ops)| Call::Txn { conditions, ops }),
        2 => (any::<u8>(), proptest::option::of(any::<u8>()), 1usize..5)
            .prop_map(|(prefix, after, limit)| Call::List { prefix, after, limit }),
        2 => (any::<u8>(), 0u64..30).prop_map(|(prefix, back)| Call::Watch { prefix, back }),
        1 => Just(Call::Grant),
        1 => (0u8..3).prop_map(Call::Revoke),
        1 => Just(Call::Reopen),
    ]
}

/// The whole story, kept in the plainest way.
#[derive(Default)]
struct Model {
    records: BTreeMap<String, Record>,
    leases: Vec<LeaseId>,
    log: Vec<Event>,
}

impl Model {
    fn revision(&self) -> Revision {
        self.log
            .last()
            .map_or(Revision::ZERO, |event| event.revision)
    }

    fn txn(&mut self, txn: &Txn) -> Result<Revision, String> {
        let ops = txn.ops();
        if (1..ops.len()).any(|n| ops[..n].iter().any(|op| op.key() == ops[n].key())) {
            return Err("invalid".to_owned());
        }
        for condition in txn.conditions() {
            let current = self
                .records
                .get(condition.key())
                .map(|record| record.mod_revision);
            let holds = match condition {
                Condition::Exists { .. } => current.is_some(),
                Condition::Missing { .. } => current.is_none(),
                Condition::RevisionIs { revision, .. } => current == Some(*revision),
            };
            if !holds {
                return Err(format!("conflict {}", condition.key()));
            }
        }
        for op in ops {
            if let Op::Put {
                lease: Some(id), ..
            } = op
                && !self.leases.contains(id)
            {
                return Err(format!("lost {id}"));
            }
        }
        let revision = self.revision().next();
        for op in ops {
            match op {
                Op::Put {
                    key,
                    schema,
                    value,
                    lease,
                } => {
                    let old = self.records.get(key);
                    let record = Record {
                        key: key.clone(),
                        schema: *schema,
                        value: value.clone(),
                        create_revision: old.map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        lease: *lease,
                    };
                    self.records.insert(key.clone(), record.clone());
                    self.log.push(Event {
                        revision,
                        change: Change::Put(record),
                    });
                }
                Op::Delete { key } => self.delete(revision, key.clone()),
            }
        }
        Ok(self.revision())
    }

    fn delete(&mut self, revision: Revision, key: String) {
        if self.records.remove(&key).is_some() {
            self.log.push(Event {
                revision,
                change: Change::Deleted { key },
            });
        }
    }

    fn revoke(&mut self, id: LeaseId) -> bool {
        let known = self.leases.contains(&id);
        self.leases.retain(|lease| *lease != id);
        let revision = self.revision().next();
        let keys: Vec<_> = self
            .records
            .values()
            .filter(|record| record.lease == Some(id))
            .map(|record| record.key.clone())
            .collect();
        keys.into_iter().for_each(|key| self.delete(revision, key));
        known
    }
}

fn short(result: Result<Revision, StoreError>) -> Result<Revision, String> {
    result.map_err(|error| match error {
        StoreError::Conflict { key } => format!("conflict {key}"),
        StoreError::LeaseLost { id } => format!("lost {id}"),
        StoreError::InvalidTxn { .. } => "invalid".to_owned(),
        other => format!("unexpected: {other}"),
    })
}

/// Opens the store under test; the second call must find what the first left.
type Opener<'a> = &'a dyn Fn() -> Arc<dyn Store>;

async fn compare(calls: Vec<Call>, open: Opener<'_>) -> Result<(), TestCaseError> {
    let mut store = open();
    let mut model = Model::default();
    let mut granted: Vec<LeaseId> = Vec::new();
    for call in calls {
        match call {
            Call::Txn { conditions, ops } => {
                let txn = build(&model, &granted, conditions, ops);
                prop_assert_eq!(
                    short(store.txn(txn.clone()).await),
                    model.txn(&txn),
                    "{:?}",
                    txn
                );
            }
            Call::List {
                prefix: p,
                after,
                limit,
            } => {
                let (prefix, after) = (prefix(p), after.map(key));
                let page = store.list(prefix, after, limit).await.unwrap();
                let all: Vec<Record> = model
                    .records
                    .values()
                    .filter(|r| r.key.starts_with(prefix) && after.is_none_or(|a| *r.key > *a))
                    .cloned()
                    .collect();
                prop_assert_eq!(page.more, all.len() > limit);
                prop_assert_eq!(page.revision, model.revision());
                prop_assert_eq!(page.records, &all[..limit.min(all.len())]);
            }
            Call::Watch { prefix: p, back } => {
                let from = Revision::new((model.revision().get() + 1).saturating_sub(back));
                let mut watch = store.watch(prefix(p), Some(from)).await.unwrap();
                let expected: Vec<Event> = model
                    .log
                    .iter()
                    .filter(|event| event.revision >= from && event.key().starts_with(prefix(p)))
                    .cloned()
                    .collect();
                prop_assert_eq!(watch.drain().await.unwrap(), expected);
            }
            Call::Grant => {
                let lease = store.grant(Duration::from_secs(10)).await.unwrap();
                prop_assert!(granted.last().is_none_or(|last| lease.id > *last));
                granted.push(lease.id);
                model.leases.push(lease.id);
            }
            Call::Revoke(n) => {
                if let Some(id) = pick(&granted, n) {
                    prop_assert_eq!(store.revoke(id).await.is_ok(), model.revoke(id));
                }
            }
            Call::Reopen => {
                drop(store);
                store = open();
            }
        }
        prop_assert_eq!(store.revision().await.unwrap(), model.revision());
    }
    for key in KEYS {
        prop_assert_eq!(
            &store.get(key).await.unwrap(),
            &model.records.get(key).cloned()
        );
    }
    for id in granted {
        prop_assert_eq!(
            store.keep_alive(id).await.is_ok(),
            model.leases.contains(&id)
        );
    }
    let mut watch = store.watch("", Some(Revision::ZERO)).await.unwrap();
    prop_assert_eq!(watch.drain().await.unwrap(), model.log);
    Ok(())
}

/// One of the last three.
fn pick(granted: &[LeaseId], n: u8) -> Option<LeaseId> {
    granted.iter().rev().nth(usize::from(n)).copied()
}

fn build(
    model: &Model,
    granted: &[LeaseId],
    conditions: Vec<(u8, u8, u64)>,
    ops: Vec<(u8, Option<u16>, Option<u8>)>,
) -> Txn {
    let mut txn = Txn::new();
    for (n, kind, back) in conditions {
        let key = key(n);
        txn = match (kind, model.records.get(key)) {
            (0, _) => txn.exists(key),
            (1, _) => txn.missing(key),
            // Mostly the true one.
            (_, Some(record)) => txn.revision_is(
                key,
                Revision::new(record.mod_revision.get() - u64::from(back == 3)),
            ),
            (_, None) => txn.revision_is(key, Revision::new(back)),
        };
    }
    for (n, value, lease) in ops {
        let key = key(n);
        txn = match value {
            None => txn.delete(key),
            Some(number) => txn.op(Op::Put {
                key: key.to_owned(),
                schema: u32::from(number % 5),
                value: value_of(number),
                lease: lease.and_then(|n| pick(granted, n)),
            }),
        };
    }
    txn
}

fn value_of(number: u16) -> Value {
    match number % 4 {
        0 => json!(number),
        1 => json!({"n": number, "list": [f64::from(number) / 7.0, null]}),
        2 => json!("\u{0}text\u{1f980}".repeat(usize::from(number % 50))),
        _ => Value::Null,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn sqlite(directory: &Path) -> Arc<dyn Store> {
    let options = SqliteOptions {
        clock: ManualClock::new().clock(),
        check: Check::Full,
        ..SqliteOptions::default()
    };
    Arc::new(SqliteStore::open(directory.join("store.db"), options).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_engine_does_what_the_model_does(calls in proptest::collection::vec(call(), 0..60)) {
        let options = MemoryOptions { clock: ManualClock::new().clock(), ..MemoryOptions::default() };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::with_options(options));
        block_on(compare(calls, &|| Arc::clone(&store)))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_file_engine_does_what_the_model_does(calls in proptest::collection::vec(call(), 0..60)) {
        let directory = tempfile::tempdir().unwrap();
        block_on(compare(calls, &|| sqlite(directory.path())))?;
    }
}

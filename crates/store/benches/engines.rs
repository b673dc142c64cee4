//! Commits and reads per second of both engines. A commit of the file engine
//! waits for the disk: its numbers are the disk's as much as ours.
#![expect(clippy::expect_used, reason = "a benchmark may panic")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use std::hint::black_box;
use std::sync::Arc;
use store::{MemoryStore, Revision, SqliteOptions, SqliteStore, Store, Txn};
use tokio::runtime::Runtime;

/// About the size of a job's record.
fn job(step: u64) -> Value {
    json!({
        "kind": "ExportReferencePoint", "state": "running", "step": step, "percent": step % 100,
        "machine": "0b1c5f5e-6a5b-4b58-8a3e-2f7d7b1f9a10", "owner": "host-1",
        "parameters": {"directory": "/backups/2026-11-20", "base": null, "disks": [0, 1, 2, 3]},
        "affected": (0..8).map(|n| format!("Msvm_ComputerSystem.Name=\"{n}\"")).collect::<Vec<_>>(),
        "errors": [], "started": "20261120185230.000000+000", "asked_by": "local:0",
    })
}

/// Puts `writers` records at once, `rounds` times.
async fn commit(store: &Arc<dyn Store>, writers: u64, rounds: u64) {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for round in 0..rounds {
                    let txn = Txn::new().put(format!("job/{writer}"), 1, job(round));
                    store.txn(txn).await.expect("a commit");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a writer");
    }
}

fn engines(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.db");
    let sqlite: Arc<dyn Store> =
        Arc::new(SqliteStore::open(path, SqliteOptions::default()).expect("a store"));
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (name, store) in [("memory", memory), ("sqlite", sqlite)] {
        runtime.block_on(fill(&store));
        commits(c, &runtime, name, &store);
        reads(c, &runtime, name, &store);
    }
}

async fn fill(store: &Arc<dyn Store>) {
    for block in 0..100 {
        let txn = (0..100).fold(Txn::new(), |txn, n| {
            txn.put(format!("vm/{block:02}{n:02}"), 1, job(n))
        });
        store.txn(txn).await.expect("a commit");
    }
}

fn commits(c: &mut Criterion, runtime: &Runtime, name: &str, store: &Arc<dyn Store>) {
    let mut group = c.benchmark_group("commits");
    for writers in [1, 16, 128] {
        group.throughput(Throughput::Elements(writers * 8));
        group.bench_function(BenchmarkId::new(name, writers), |b| {
            b.iter(|| runtime.block_on(commit(store, writers, 8)));
        });
    }
    group.finish();
}

fn reads(c: &mut Criterion, runtime: &Runtime, name: &str, store: &Arc<dyn Store>) {
    let mut group = c.benchmark_group("reads");
    let mut n = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("get", name), |b| {
        b.iter(|| {
            n = (n + 7919) % 10_000;
            runtime
                .block_on(store.get(black_box(&format!("vm/{n:04}"))))
                .expect("a read")
        });
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function(BenchmarkId::new("list of 1000", name), |b| {
        b.iter(|| {
            runtime
                .block_on(store.list("vm/", None, 1000))
                .expect("a read")
        });
    });
    group.throughput(Throughput::Elements(100));
    group.bench_function(BenchmarkId::new("replay of 100", name), |b| {
        b.iter(|| {
            runtime.block_on(async {
                let newest = store.revision().await.expect("a revision").get();
                let from = Revision::new(newest.saturating_sub(99));
                let mut watch = store.watch("", Some(from)).await.expect("a watch");
                watch.drain().await.expect("events")
            })
        });
    });
    group.finish();
}

criterion_group!(benches, engines);
criterion_main!(benches);

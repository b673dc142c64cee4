//! A process that is killed while it commits loses nothing it was told is stored.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use store::{Revision, SqliteOptions, SqliteStore, Store, StoreError, Txn};

const DIRECTORY: &str = "KVMMS_STORE_CRASH_DIRECTORY";
const NAME: &str = "a_killed_process_loses_no_acknowledged_commit";
const WRITERS: u64 = 4;

fn open(directory: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(directory.join("store.db"), SqliteOptions::default())
}

/// The child: commits until it is killed, and says so after each commit.
async fn commit_for_ever(directory: &Path) {
    let store = Arc::new(open(directory).unwrap());
    let round = store.revision().await.unwrap().get();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..u64::MAX {
                    // Two records that belong together, and one that moves on.
                    let id = format!("{round}-{writer}-{n}");
                    let txn = Txn::new()
                        .missing(format!("left/{id}"))
                        .put(format!("left/{id}"), 1, json!(n))
                        .put(format!("right/{id}"), 1, json!(n))
                        .put(format!("last/{writer}"), 1, json!(id));
                    let revision = store.txn(txn).await.unwrap();
                    let line = format!("acknowledged {revision} {id}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

/// One life of the child: killed once it has had `after` commits acknowledged.
fn live_and_die(directory: &Path, after: usize) -> Vec<(Revision, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    let mut killed = false;
    for line in lines {
        // The last line may be cut off by the kill; it was not said then.
        let line = line.unwrap_or_default();
        let mut words = line.split(' ');
        if words.next() == Some("acknowledged")
            && let (Some(revision), Some(id)) = (words.next(), words.next())
            && id.split('-').count() == 3
            && !id.ends_with('-')
        {
            acknowledged.push((Revision::new(revision.parse().unwrap()), id.to_owned()));
        }
        if acknowledged.len() == 1 {
            match open(directory) {
                Err(StoreError::InUse { pid, .. }) => assert_eq!(pid, Some(child.id())),
                other => panic!("the living child keeps others out, got {:?}", other.err()),
            }
        }
        if !killed && acknowledged.len() >= after {
            child.kill().unwrap();
            killed = true;
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(killed, "it ended by itself");
    acknowledged
}

#[test]
fn a_killed_process_loses_no_acknowledged_commit() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        runtime.block_on(commit_for_ever(Path::new(&directory)));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for after in [1, 2, 3, 17, 60, 141, 200, 400, 800] {
        all.extend(live_and_die(directory.path(), after));
        let store = open(directory.path()).unwrap();
        runtime.block_on(async {
            let newest = store.revision().await.unwrap();
            for (revision, id) in &all {
                assert!(*revision <= newest);
                for side in ["left", "right"] {
                    let record = store.get(&format!("{side}/{id}")).await.unwrap();
                    let record = record.unwrap_or_else(|| panic!("{side}/{id} is lost"));
                    assert_eq!(record.mod_revision, *revision);
                }
            }
            // Never a half: as many on the left as on the right, one pair per revision.
            let (left, right) = (count(&store, "left/").await, count(&store, "right/").await);
            assert_eq!((left, right), (newest.get(), newest.get()));
            // History tells the same story without a gap.
            let mut watch = store.watch("left/", Some(Revision::ZERO)).await.unwrap();
            let told: Vec<u64> = watch
                .drain()
                .await
                .unwrap()
                .iter()
                .map(|event| event.revision.get())
                .collect();
            assert_eq!(told, (1..=newest.get()).collect::<Vec<_>>());
        });
    }
    assert!(all.len() >= 1624);
}

/// The child: commits on a disk that fails once the log reaches its limit.
async fn commit_until_the_disk_fails(directory: &Path) {
    let store = open(directory).unwrap();
    let text = "x".repeat(20_000);
    for n in 0u64.. {
        let result = store
            .txn(Txn::new().put(format!("k/{n}"), 1, json!(text)))
            .await;
        let Err(error) = result else {
            println!("stored {n}");
            continue;
        };
        println!("kind {:?}", error.kind());
        println!("cause {}", std::error::Error::source(&error).is_some());
        let after = store.txn(Txn::new().put("after", 1, json!(1))).await;
        println!(
            "after {}",
            matches!(after, Err(StoreError::ReadOnly { .. }))
        );
        println!(
            "readable {}",
            store.get("k/0").await.is_ok_and(|record| record.is_some())
        );
        return;
    }
}

#[test]
fn a_disk_that_fails_in_a_commit_leaves_doubt_and_stops_all_changes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        runtime.block_on(commit_until_the_disk_fails(Path::new(&directory)));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // A write beyond the limit fails with "file too large" once the signal is ignored.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "a_disk_that_fails_in_a_commit_leaves_doubt_and_stops_all_changes",
            "--exact",
        ])
        .args(["--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "kind Indeterminate",
        "cause true",
        "after true",
        "readable true",
    ] {
        assert!(
            text.lines().any(|said| said == line),
            "{line} is missing in {text}"
        );
    }
    let stored = text
        .lines()
        .filter(|line| line.starts_with("stored "))
        .count() as u64;
    assert!(stored > 0);
    let store = open(directory.path()).unwrap();
    let there = runtime.block_on(count(&store, "k/"));
    assert!(
        there == stored || there == stored + 1,
        "{there} of {stored}"
    );
}

async fn count(store: &SqliteStore, prefix: &str) -> u64 {
    let mut count = 0;
    let mut after = None;
    loop {
        let page = store.list(prefix, after.as_deref(), 1000).await.unwrap();
        count += page.records.len() as u64;
        after = page.records.last().map(|record| record.key.clone());
        if !page.more {
            return count;
        }
    }
}

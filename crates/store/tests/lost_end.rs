//! A database that lost its end is not taken for the whole, and what is left of it is never lost on the way back.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::{Copies, Revision, SqliteOptions, SqliteStore, Store, StoreError, Txn, copies_in};

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, SqliteOptions::default())
}

fn copies(dir: &Path, version: &str) -> SqliteOptions {
    SqliteOptions {
        copies: Some(Copies {
            directory: dir.join("copies"),
            every: Duration::from_millis(20),
            keep: 2,
            version: version.to_owned(),
        }),
        ..SqliteOptions::default()
    }
}

async fn put(store: &SqliteStore, n: u64) {
    let txn = Txn::new().put(format!("vm/{n}"), 1, json!("x".repeat(500)));
    assert_eq!(store.txn(txn).await.unwrap(), Revision::new(n));
}

/// Twenty acknowledged changes, left as `kill -9` leaves them: with a log beside the file.
async fn killed(to: &Path) -> PathBuf {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("s.db");
    // A first life, so that the file itself is an older whole store.
    let store = open(&path).unwrap();
    for n in 1..=10 {
        put(&store, n).await;
    }
    drop(store);
    let store = open(&path).unwrap();
    for n in 11..=20 {
        put(&store, n).await;
    }
    for entry in fs::read_dir(home.path()).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
    to.join("s.db")
}

fn beside(path: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", path.display()))
}

type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 7] = [
    ("the log is removed", |p| {
        fs::remove_file(beside(p, "-wal")).unwrap();
        let _ = fs::remove_file(beside(p, "-shm"));
    }),
    ("the log is cut", |p| {
        let wal = beside(p, "-wal");
        let len = fs::metadata(&wal).unwrap().len();
        fs::OpenOptions::new()
            .write(true)
            .open(&wal)
            .unwrap()
            .set_len(len / 2)
            .unwrap();
        let _ = fs::remove_file(beside(p, "-shm"));
    }),
    ("a byte of the log is flipped", |p| {
        let wal = beside(p, "-wal");
        let mut bytes = fs::read(&wal).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&wal, bytes).unwrap();
        let _ = fs::remove_file(beside(p, "-shm"));
    }),
    ("the file is empty", |p| {
        fs::write(p, b"").unwrap();
        let _ = fs::remove_file(beside(p, "-wal"));
        let _ = fs::remove_file(beside(p, "-shm"));
    }),
    ("the file is gone", |p| {
        fs::remove_file(p).unwrap();
        let _ = fs::remove_file(beside(p, "-wal"));
        let _ = fs::remove_file(beside(p, "-shm"));
    }),
    ("the file is cut", |p| {
        fs::OpenOptions::new()
            .write(true)
            .open(p)
            .unwrap()
            .set_len(8192)
            .unwrap();
        let _ = fs::remove_file(beside(p, "-wal"));
        let _ = fs::remove_file(beside(p, "-shm"));
    }),
    ("another store is in its place", |p| {
        let _ = fs::remove_file(beside(p, "-wal"));
        let _ = fs::remove_file(beside(p, "-shm"));
        let other = tempfile::tempdir().unwrap();
        let from = other.path().join("s.db");
        drop(open(&from).unwrap());
        fs::copy(from, p).unwrap();
    }),
];

#[tokio::test]
async fn what_lost_acknowledged_changes_is_refused_and_left_as_it_is() {
    for (what, damage) in DAMAGES {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path()).await;
        damage(&path);
        let before = [fs::read(&path).ok(), fs::read(beside(&path, "-wal")).ok()];
        for _ in 0..2 {
            match open(&path) {
                Err(
                    StoreError::Behind { .. }
                    | StoreError::Corrupt { .. }
                    | StoreError::Foreign { .. }
                    | StoreError::Exchanged { .. },
                ) => {}
                Err(other) => panic!("{what}: {other}"),
                Ok(_) => panic!("{what}: it was opened"),
            }
        }
        // The log too: what is left of it behind the damage is still there.
        if what != "another store is in its place" {
            let after = [fs::read(&path).ok(), fs::read(beside(&path, "-wal")).ok()];
            assert!(after[0] == before[0], "{what}: the file was changed");
            let log = |l: &Option<Vec<u8>>| l.clone().filter(|l| !l.is_empty());
            assert!(
                log(&after[1]) == log(&before[1]),
                "{what}: the log was changed"
            );
        }
    }
}

#[tokio::test]
async fn a_kill_between_commit_and_note_loses_nothing_and_refuses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = killed(dir.path()).await;
    let mark = beside(&path, ".revision");
    let noted = fs::read(&mark).unwrap();
    // The note of one commit earlier: as the power left it.
    let store = open(&path).unwrap();
    put(&store, 21).await;
    drop(store);
    fs::write(&mark, &noted).unwrap();
    let store = open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), Revision::new(21));
    drop(store);
    // Without any note, as an earlier version left it.
    fs::remove_file(&mark).unwrap();
    let store = open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), Revision::new(21));
    put(&store, 22).await;
}

#[tokio::test]
async fn copies_are_made_before_a_new_version_and_as_time_goes_and_are_few() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let at = dir.path().join("copies");
    let store = SqliteStore::open(&path, copies(dir.path(), "1")).unwrap();
    assert_eq!(copies_in(&at).unwrap().len(), 1, "before the first version");
    for n in 1..=30 {
        put(&store, n).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let newest = || copies_in(&at).unwrap().first().map_or(0, |c| c.revision);
    while newest() < 30 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(store);
    let all = copies_in(&at).unwrap();
    assert!((2..=4).contains(&all.len()), "{all:?}");
    let copy = open(&all[0].path).unwrap();
    assert_eq!(copy.revision().await.unwrap(), Revision::new(30));
    assert_eq!(copy.list("vm/", None, 100).await.unwrap().records.len(), 30);
    drop(copy);
    drop(SqliteStore::open(&path, copies(dir.path(), "2")).unwrap());
    let version = fs::read_to_string(at.join("version")).unwrap();
    assert_eq!(version.trim(), "2");
}

#[tokio::test]
async fn recovery_takes_what_goes_furthest_and_keeps_what_was_there() {
    for (what, damage) in DAMAGES {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path()).await;
        // A copy of revision 15 is somewhere between the file (10) and the log (20).
        let at = dir.path().join("copies");
        fs::create_dir(&at).unwrap();
        let other = tempfile::tempdir().unwrap();
        let whole = killed(other.path()).await;
        let store = open(&whole).unwrap();
        drop(store);
        fs::copy(&whole, at.join("kvmms-000000000015-100.db")).unwrap();
        fs::write(at.join("kvmms-000000000016-101.db"), b"damaged").unwrap();
        damage(&path);
        let before = fs::read(&path).ok();
        let done = store::recover(&path, &at).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(
            !done.unusable.is_empty(),
            "{what}: the damaged copy is told"
        );
        assert!(done.source.is_some(), "{what}");
        assert_eq!(done.known, Some(20), "{what}");
        if let Some(before) = before {
            assert_eq!(fs::read(done.aside.join("s.db")).unwrap(), before, "{what}");
        }
        let store = open(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
        let revision = store.revision().await.unwrap().get();
        assert!(
            revision > 20,
            "{what}: numbers do not come again ({revision})"
        );
        let records = store.list("vm/", None, 100).await.unwrap().records.len();
        assert!(records >= 10, "{what}: {records}");
        put(&store, revision + 1).await;
        drop(store);
        let again = store::recover(&path, &at).unwrap_err();
        assert!(
            again.to_string().contains("nothing is to be recovered"),
            "{what}: {again}"
        );
    }
}

#[tokio::test]
async fn recovery_without_anything_begins_anew_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = killed(dir.path()).await;
    fs::write(&path, b"this is no database at all, but it is kept").unwrap();
    let _ = fs::remove_file(beside(&path, "-wal"));
    let done = store::recover(&path, &dir.path().join("copies")).unwrap();
    assert_eq!(done.source, None);
    let kept = fs::read(done.aside.join("s.db")).unwrap();
    assert!(kept.starts_with(b"this is no database"));
    let store = open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), Revision::ZERO);
}

#[tokio::test]
async fn a_store_that_is_in_use_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let _store = open(&path).unwrap();
    let refused = store::recover(&path, &dir.path().join("copies"));
    assert!(matches!(refused, Err(StoreError::InUse { .. })));
}

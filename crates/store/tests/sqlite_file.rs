//! What only the engine with a file has to keep: the file.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use rusqlite::Connection;
use serde_json::json;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{
    Check, ErrorKind, ManualClock, Revision, SqliteOptions, SqliteStore, Store, StoreError, Txn,
};

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Home {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    fn open(&self) -> SqliteStore {
        self.open_with(SqliteOptions::default()).unwrap()
    }

    fn open_with(&self, options: SqliteOptions) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(self.path(), options)
    }
}

fn error<T>(result: Result<T, StoreError>) -> StoreError {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

async fn put(store: &SqliteStore, key: &str, text: String) -> Result<Revision, StoreError> {
    store.txn(Txn::new().put(key, 1, json!(text))).await
}

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let home = Home::new();
    let (page, events) = {
        let store = home.open();
        for n in 0..30 {
            let txn = (0..100)
                .fold(Txn::new(), |txn, k| {
                    txn.put(format!("k/{k:03}"), n, json!({"n": n}))
                })
                .delete(format!("k/{n:03}x"));
            store.txn(txn).await.unwrap();
        }
        store.txn(Txn::new().delete("k/050")).await.unwrap();
        let mut watch = store.watch("k/0", Some(Revision::ZERO)).await.unwrap();
        (
            store.list("", None, 1000).await.unwrap(),
            watch.drain().await.unwrap(),
        )
    };
    assert_eq!(events.len(), 3001);
    let store = home.open();
    assert_eq!(store.revision().await.unwrap(), Revision::new(31));
    assert_eq!(store.list("", None, 1000).await.unwrap(), page);
    // Nothing of it is in memory any more: this is read from the file, in several parts.
    let mut watch = store.watch("k/0", Some(Revision::ZERO)).await.unwrap();
    store
        .txn(Txn::new().put("k/0new", 1, json!(1)))
        .await
        .unwrap();
    let replayed = watch.drain().await.unwrap();
    assert_eq!(replayed[..3001], events[..]);
    assert_eq!(replayed[3001].revision, Revision::new(32));
    assert_eq!(replayed.len(), 3002);
}

#[tokio::test]
async fn a_lease_starts_its_time_again_when_the_store_is_opened() {
    let home = Home::new();
    let minute = Duration::from_secs(60);
    let lease = {
        let store = home.open();
        let lease = store.grant(minute).await.unwrap();
        store
            .txn(Txn::new().put_leased("a", 1, json!(1), lease.id))
            .await
            .unwrap();
        lease
    };
    let clock = ManualClock::new();
    let options = || SqliteOptions {
        clock: clock.clock(),
        ..SqliteOptions::default()
    };
    let store = home.open_with(options()).unwrap();
    assert_eq!(store.keep_alive(lease.id).await.unwrap(), lease);
    drop(store);
    let store = home.open_with(options()).unwrap();
    let mut watch = store.watch("", None).await.unwrap();
    clock.advance(minute);
    assert_eq!(watch.next().await.unwrap().unwrap().key(), "a");
    assert!(store.grant(minute).await.unwrap().id > lease.id);
}

#[tokio::test]
async fn a_closed_store_is_one_file_readable_with_a_standard_tool() {
    let home = Home::new();
    let store = home.open();
    put(&store, "vm/1", "hello".to_owned()).await.unwrap();
    drop(store);
    let mut names: Vec<_> = fs::read_dir(home.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["store.db", "store.db.lock", "store.db.revision"]);
    let plain = Connection::open(home.path()).unwrap();
    let value: String = plain
        .query_row("SELECT value FROM records WHERE key = 'vm/1'", [], |r| {
            r.get(0)
        })
        .unwrap();
    assert_eq!(value, "\"hello\"");
}

#[tokio::test]
async fn the_file_is_for_its_owner_only() {
    let home = Home::new();
    let store = home.open();
    put(&store, "a", "secret".to_owned()).await.unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(home.directory.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        seen += 1;
    }
    assert!(seen >= 3, "the file, its log, its lock");
}

#[test]
fn a_second_opener_is_refused_and_told_who_has_it() {
    let home = Home::new();
    let first = home.open();
    match home.open_with(SqliteOptions::default()) {
        Err(StoreError::InUse { path, pid }) => {
            assert_eq!((path, pid), (home.path(), Some(std::process::id())));
        }
        other => panic!("expected a refusal, got {:?}", other.err()),
    }
    drop(first);
    home.open();
}

#[test]
fn files_that_are_no_store_are_refused_and_left_alone() {
    let text =
        |path: &Path| fs::write(path, "a letter, not a database, long enough to tell").unwrap();
    let other = |path: &Path| {
        Connection::open(path)
            .unwrap()
            .execute_batch("CREATE TABLE t (x)")
            .unwrap();
    };
    let claimed = |path: &Path| {
        Connection::open(path)
            .unwrap()
            .execute_batch("PRAGMA application_id = 7")
            .unwrap();
    };
    let newer = |path: &Path| {
        drop(SqliteStore::open(path, SqliteOptions::default()).unwrap());
        Connection::open(path)
            .unwrap()
            .execute_batch("PRAGMA user_version = 2")
            .unwrap();
    };
    for make in [&text as &dyn Fn(&Path), &other, &claimed, &newer] {
        let home = Home::new();
        make(&home.path());
        let before = fs::read(home.path()).unwrap();
        let error = error(home.open_with(SqliteOptions::default()));
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        assert_eq!(fs::read(home.path()).unwrap(), before);
    }
    let home = Home::new();
    fs::create_dir(home.path()).unwrap();
    assert_eq!(
        error(home.open_with(SqliteOptions::default())).kind(),
        ErrorKind::Unavailable
    );
    let nowhere = home.directory.path().join("no/such/place");
    let error = error(SqliteStore::open(nowhere, SqliteOptions::default()));
    assert!(std::error::Error::source(&error).is_some(), "{error}");
}

async fn damaged() -> Home {
    let home = Home::new();
    let store = home.open();
    for n in 0..50 {
        put(&store, &format!("k/{n}"), "x".repeat(2000))
            .await
            .unwrap();
    }
    drop(store);
    // Whole pages in the middle of the file, as a failing disk would leave them.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(home.path())
        .unwrap();
    let middle = file.metadata().unwrap().len() / 2 / 4096 * 4096;
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[0xa5; 4 * 4096]).unwrap();
    home
}

#[tokio::test]
async fn a_damaged_file_is_not_opened() {
    let home = damaged().await;
    for check in [Check::Auto, Check::Quick, Check::Full] {
        let error = error(home.open_with(SqliteOptions {
            check,
            ..SqliteOptions::default()
        }));
        match &error {
            StoreError::Corrupt { path, details } => {
                assert_eq!(*path, home.path());
                assert!(!details.is_empty());
            }
            other => panic!("expected damage, got {other}"),
        }
    }
}

#[tokio::test]
async fn damage_met_while_working_stops_all_changes() {
    let home = damaged().await;
    let options = SqliteOptions {
        check: Check::Skip,
        ..SqliteOptions::default()
    };
    let store = home.open_with(options).unwrap();
    let mut first = None;
    for n in 0..50 {
        if let Err(error) = put(&store, &format!("k/{n}"), "changed".to_owned()).await {
            first.get_or_insert(error);
        }
    }
    let first = first.expect("some of the damaged pages are needed");
    assert_eq!(first.kind(), ErrorKind::Corrupt, "{first}");
    let after = error(put(&store, "new", "x".to_owned()).await);
    assert!(matches!(after, StoreError::ReadOnly { .. }), "{after}");
    assert!(after.to_string().contains("damaged"), "{after}");
}

#[tokio::test]
async fn a_full_disk_refuses_the_change_and_nothing_else() {
    let home = Home::new();
    let options = || SqliteOptions {
        max_bytes: Some(512 * 1024),
        history: 1,
        ..SqliteOptions::default()
    };
    let store = home.open_with(options()).unwrap();
    let mut stored = 0;
    let full = loop {
        match put(&store, &format!("k/{stored}"), "x".repeat(10_000)).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "the file has a limit");
    };
    assert!(matches!(full, StoreError::DiskFull { .. }), "{full}");
    assert!(std::error::Error::source(&full).is_some());
    assert_eq!(store.revision().await.unwrap(), Revision::new(stored));
    assert_eq!(
        store.list("k/", None, 1000).await.unwrap().records.len() as u64,
        stored
    );
    // A change that needs no space goes through, and makes space.
    store
        .txn(Txn::new().delete("k/0").delete("k/1").delete("k/2"))
        .await
        .unwrap();
    put(&store, "k/0", "small".to_owned()).await.unwrap();
    drop(store);
    let store = home.open_with(options()).unwrap();
    assert_eq!(
        store.list("k/", None, 1000).await.unwrap().records.len() as u64,
        stored - 2
    );
}

#[tokio::test]
async fn of_many_changes_on_a_full_disk_only_those_that_do_not_fit_fail() {
    let home = Home::new();
    let options = SqliteOptions {
        max_bytes: Some(512 * 1024),
        ..SqliteOptions::default()
    };
    let store = Arc::new(home.open_with(options).unwrap());
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let store = Arc::clone(&store);
            let bytes = if n % 2 == 0 { 400_000 } else { 10 };
            tokio::spawn(async move { put(&store, &format!("k/{n}"), "x".repeat(bytes)).await })
        })
        .collect();
    for (n, task) in tasks.into_iter().enumerate() {
        let result = task.await.unwrap();
        if n % 2 == 0 {
            assert_eq!(error(result).kind(), ErrorKind::DiskFull);
        } else {
            result.unwrap();
        }
    }
    assert_eq!(store.revision().await.unwrap(), Revision::new(20));
}

#[tokio::test]
async fn a_lock_of_another_program_is_told_and_waited_for() {
    let home = Home::new();
    let impatient = SqliteOptions {
        busy_timeout: Duration::ZERO,
        ..SqliteOptions::default()
    };
    let store = home.open_with(impatient).unwrap();
    put(&store, "a", "before".to_owned()).await.unwrap();
    let other = Connection::open(home.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = error(put(&store, "a", "refused".to_owned()).await);
    assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
    let source = std::error::Error::source(&busy).unwrap().to_string();
    assert!(source.contains("locked"), "{source}");
    assert_eq!(
        store.get("a").await.unwrap().unwrap().value,
        json!("before")
    );
    other.execute_batch("ROLLBACK").unwrap();
    put(&store, "a", "after".to_owned()).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, json!("after"));
}

#[tokio::test]
async fn a_value_that_is_no_json_is_told_with_its_key() {
    let home = Home::new();
    let store = home.open();
    put(&store, "a", "x".to_owned()).await.unwrap();
    put(&store, "b", "x".to_owned()).await.unwrap();
    Connection::open(home.path())
        .unwrap()
        .execute("UPDATE records SET value = '{' WHERE key = 'a'", [])
        .unwrap();
    let error = error(store.get("a").await);
    assert_eq!(error.kind(), ErrorKind::Unreadable);
    assert!(error.to_string().contains("\"a\""), "{error}");
    assert!(store.get("b").await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_that_contradicts_itself_is_not_opened() {
    let home = Home::new();
    let store = home.open();
    put(&store, "a", "x".to_owned()).await.unwrap();
    drop(store);
    let plain = Connection::open(home.path()).unwrap();
    plain
        .execute("UPDATE meta SET number = 0 WHERE name = 'revision'", [])
        .unwrap();
    assert_eq!(
        error(home.open_with(SqliteOptions::default())).kind(),
        ErrorKind::Corrupt
    );
}

#[tokio::test]
async fn a_change_handed_over_is_finished_before_the_store_closes() {
    let home = Home::new();
    let store = home.open();
    {
        let change = put(&store, "a", "x".to_owned());
        // Polled once and given up: it is in the writer's hands by then.
        let _ = tokio::time::timeout(Duration::ZERO, change).await;
    }
    drop(store);
    assert!(home.open().get("a").await.unwrap().is_some());
}

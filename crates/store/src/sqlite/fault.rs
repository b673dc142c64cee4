//! SQLite's errors as ours.

use crate::StoreError;
use rusqlite::ErrorCode;
use std::path::Path;

/// Sorts an error of SQLite; `what` was being tried on the store at `path`.
pub(super) fn fault(path: &Path, what: &'static str, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy {
            what,
            source: Box::new(error),
        },
        Some(ErrorCode::DiskFull) => StoreError::DiskFull {
            what,
            source: Box::new(error),
        },
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt {
            path: path.to_owned(),
            details: error.to_string(),
        },
        Some(ErrorCode::NotADatabase) => StoreError::Foreign {
            path: path.to_owned(),
            why: error.to_string(),
        },
        _ => StoreError::Engine {
            what,
            source: Box::new(error),
        },
    }
}

/// Sorts an error of the operating system.
pub(super) fn io_fault(what: &'static str, error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StoreError::DiskFull {
                what,
                source: Box::new(error),
            }
        }
        _ => StoreError::Engine {
            what,
            source: Box::new(error),
        },
    }
}

/// Whether a failed COMMIT may be found done after a restart: its frames are
/// written, only the disk's word that they are durable is missing.
pub(super) fn leaves_doubt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use rusqlite::ffi;

    fn sqlite(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("told by SQLite".to_owned()))
    }

    #[test]
    fn each_kind_of_failure_keeps_its_cause() {
        for (code, kind) in [
            (ffi::SQLITE_BUSY, ErrorKind::Busy),
            (ffi::SQLITE_LOCKED, ErrorKind::Busy),
            (ffi::SQLITE_FULL, ErrorKind::DiskFull),
            (ffi::SQLITE_IOERR_WRITE, ErrorKind::Unavailable),
        ] {
            let error = fault(Path::new("s"), "try", sqlite(code));
            assert_eq!(error.kind(), kind);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            assert_eq!(source.as_deref(), Some("told by SQLite"));
            assert!(
                !error.to_string().contains("told by SQLite"),
                "the cause is not said twice"
            );
        }
    }

    #[test]
    fn damage_says_where_and_what() {
        let error = fault(Path::new("/x/s.db"), "try", sqlite(ffi::SQLITE_CORRUPT));
        assert_eq!(
            error.to_string(),
            "the store /x/s.db is damaged: told by SQLite"
        );
    }

    #[test]
    fn a_failed_sync_leaves_doubt_and_a_full_disk_does_not() {
        assert!(leaves_doubt(&sqlite(ffi::SQLITE_IOERR_FSYNC)));
        assert!(!leaves_doubt(&sqlite(ffi::SQLITE_FULL)));
        assert!(!leaves_doubt(&sqlite(ffi::SQLITE_BUSY)));
    }
}

//! Records, their revisions, and pages of them.

use crate::{LeaseId, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// The number of a change to the whole store. Counts from 1, never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(u64);

impl Revision {
    /// Before the first change.
    pub const ZERO: Revision = Revision(0);

    /// The revision with this number.
    pub const fn new(number: u64) -> Self {
        Revision(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after it: where a watch goes on after a listing.
    pub const fn next(self) -> Self {
        Revision(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Path-like name, for example `vm/<guid>`.
    pub key: String,
    /// The number of the layout `value` is written in (see [`crate::Versioned`]).
    pub schema: u32,
    /// The content.
    pub value: Value,
    /// The revision that created it (again, if it had been deleted before).
    pub create_revision: Revision,
    /// The revision that changed it last.
    pub mod_revision: Revision,
    /// The lease it vanishes with.
    pub lease: Option<LeaseId>,
}

/// A part of a listing, all of one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The records, in byte order of their keys.
    pub records: Vec<Record>,
    /// The revision of the store this page shows. To follow a listing without
    /// a gap, watch from the *first* page's revision plus one and apply the
    /// events to what was listed: a put brings the whole record, so seeing a
    /// change twice does no harm.
    pub revision: Revision,
    /// Whether more records follow the last one here.
    pub more: bool,
}

/// Refuses keys that some engine could not keep or order.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    let why = if key.is_empty() {
        "is empty"
    } else if key.len() > crate::MAX_KEY_BYTES {
        "is too long"
    } else if key.chars().any(char::is_control) {
        "holds a control character"
    } else {
        return Ok(());
    };
    // A hostile key must not fill the log.
    let shown: String = key.chars().take(64).flat_map(char::escape_debug).collect();
    Err(StoreError::InvalidKey { key: shown, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_control_characters_or_of_silly_length_are_refused() {
        assert!(check_key("vm/1").is_ok());
        assert!(check_key("Sätze/mit Leerzeichen").is_ok());
        assert!(check_key(&"k".repeat(crate::MAX_KEY_BYTES)).is_ok());
        assert!(check_key("").is_err());
        assert!(check_key("a\0b").is_err());
        assert!(check_key("a\nb").is_err());
        assert!(check_key(&"k".repeat(crate::MAX_KEY_BYTES + 1)).is_err());
    }

    #[test]
    fn the_error_of_a_bad_key_does_not_carry_control_characters() {
        let text = check_key("a\nb").err().map(|e| e.to_string());
        assert_eq!(
            text.as_deref(),
            Some("the key \"a\\nb\" holds a control character")
        );
    }
}

//! What a kind of record is.

use store::Versioned;
use uuid::Uuid;

use crate::Failure;

/// A kind of record: where it is stored, and what it is found by.
pub trait Row: Versioned + Clone + 'static {
    /// How failures are told.
    type Fault: Failure;
    /// The prefix of its keys in the store.
    const PREFIX: &'static str;
    /// What it is found by beside its identifier ([`crate::Db::by`]).
    const INDEXES: &'static [Index<Self>] = &[];

    /// Its identifier.
    fn id(&self) -> Uuid;

    /// That there is none with this identifier.
    fn missing(id: Uuid) -> Self::Fault;
}

/// Something by which records are found without looking at all of them.
#[derive(Debug)]
pub struct Index<T> {
    pub(super) name: &'static str,
    pub(super) keys: fn(&T) -> Vec<String>,
}

impl<T> Index<T> {
    /// An index with a name of its own within the kind of record, and the keys under which a record stands in it.
    pub const fn new(name: &'static str, keys: fn(&T) -> Vec<String>) -> Self {
        Index { name, keys }
    }
}

pub(super) fn key<T: Row>(id: Uuid) -> String {
    format!("{}{id}", T::PREFIX)
}

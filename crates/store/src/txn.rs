//! Transactions: conditions, then operations, all or nothing.

use crate::{LeaseId, MAX_TXN_PARTS, MAX_VALUE_BYTES, Record, Revision, StoreError};
use serde_json::Value;
use std::collections::HashSet;

/// What must hold for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is a record under the key.
    Exists {
        /// The key.
        key: String,
    },
    /// There is no record under the key.
    Missing {
        /// The key.
        key: String,
    },
    /// The record under the key was changed last by exactly this revision.
    RevisionIs {
        /// The key.
        key: String,
        /// Its [`Record::mod_revision`].
        revision: Revision,
    },
}

impl Condition {
    /// The key it speaks of.
    pub fn key(&self) -> &str {
        match self {
            Condition::Exists { key }
            | Condition::Missing { key }
            | Condition::RevisionIs { key, .. } => key,
        }
    }

    /// Whether it holds, given the [`Record::mod_revision`] under its key.
    pub(crate) fn holds(&self, current: Option<Revision>) -> bool {
        match self {
            Condition::Exists { .. } => current.is_some(),
            Condition::Missing { .. } => current.is_none(),
            Condition::RevisionIs { revision, .. } => current == Some(*revision),
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Creates or replaces a record.
    Put {
        /// The key.
        key: String,
        /// The number of the layout of `value`.
        schema: u32,
        /// The content.
        value: Value,
        /// The lease the record vanishes with. `None` detaches it from one.
        lease: Option<LeaseId>,
    },
    /// Deletes a record; one that is not there is no error.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// A transaction, built up call by call.
///
/// ```
/// use serde_json::json;
/// use store::Txn;
/// let txn = Txn::new()
///     .missing("vm/1")
///     .put("vm/1", 1, json!({"name": "a"}))
///     .delete("draft/1");
/// ```
///
/// Rules: at most [`MAX_TXN_PARTS`] conditions and as many operations, and no
/// key in two operations (etcd refuses that too).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Txn {
    conditions: Vec<Condition>,
    ops: Vec<Op>,
}

impl Txn {
    /// Without conditions and operations.
    pub fn new() -> Self {
        Txn::default()
    }

    /// Asks for a record under `key`.
    pub fn exists(self, key: impl Into<String>) -> Self {
        self.condition(Condition::Exists { key: key.into() })
    }

    /// Asks for no record under `key`.
    pub fn missing(self, key: impl Into<String>) -> Self {
        self.condition(Condition::Missing { key: key.into() })
    }

    /// Asks for the record under `key` to be unchanged since `revision`.
    pub fn revision_is(self, key: impl Into<String>, revision: Revision) -> Self {
        self.condition(Condition::RevisionIs {
            key: key.into(),
            revision,
        })
    }

    /// Asks for `record` to be unchanged.
    pub fn unchanged(self, record: &Record) -> Self {
        self.revision_is(record.key.clone(), record.mod_revision)
    }

    /// Creates or replaces a record.
    pub fn put(self, key: impl Into<String>, schema: u32, value: Value) -> Self {
        self.op(Op::Put {
            key: key.into(),
            schema,
            value,
            lease: None,
        })
    }

    /// Creates or replaces a record that vanishes with a lease.
    pub fn put_leased(
        self,
        key: impl Into<String>,
        schema: u32,
        value: Value,
        lease: LeaseId,
    ) -> Self {
        self.op(Op::Put {
            key: key.into(),
            schema,
            value,
            lease: Some(lease),
        })
    }

    /// Deletes a record, if there is one.
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.op(Op::Delete { key: key.into() })
    }

    /// Adds a condition.
    pub fn condition(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Adds an operation.
    pub fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Adds all conditions and operations of another one.
    pub fn and(mut self, other: Txn) -> Self {
        self.conditions.extend(other.conditions);
        self.ops.extend(other.ops);
        self
    }

    /// The conditions.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// The operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Checks the rules and writes each put's value as JSON text.
    pub(crate) fn check(self) -> Result<CheckedTxn, StoreError> {
        let refuse = |why: String| Err(StoreError::InvalidTxn { why });
        if self.conditions.len() > MAX_TXN_PARTS || self.ops.len() > MAX_TXN_PARTS {
            return refuse(format!(
                "it has {} conditions and {} operations, at most {MAX_TXN_PARTS} of each are allowed",
                self.conditions.len(),
                self.ops.len()
            ));
        }
        for condition in &self.conditions {
            crate::record::check_key(condition.key())?;
        }
        let mut seen = HashSet::new();
        let mut texts = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            crate::record::check_key(op.key())?;
            if !seen.insert(op.key()) {
                return refuse(format!("it changes the key {:?} twice", op.key()));
            }
            texts.push(match op {
                Op::Put { value, .. } => {
                    let text = value.to_string();
                    if text.len() > MAX_VALUE_BYTES {
                        return refuse(format!(
                            "the value for {:?} has {} bytes, at most {MAX_VALUE_BYTES} are allowed",
                            op.key(),
                            text.len()
                        ));
                    }
                    text
                }
                Op::Delete { .. } => String::new(),
            });
        }
        Ok(CheckedTxn {
            conditions: self.conditions,
            ops: self.ops,
            texts,
        })
    }
}

/// A transaction that keeps the rules. `texts` runs beside `ops`.
#[derive(Clone, Debug)]
pub(crate) struct CheckedTxn {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) ops: Vec<Op>,
    pub(crate) texts: Vec<String>,
}

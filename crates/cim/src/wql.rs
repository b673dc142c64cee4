//! WQL: the query language of WMI (SELECT, ASSOCIATORS OF, REFERENCES OF).

use crate::{Name, Path, Value};

/// A parsed query.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// `SELECT … FROM class [WITHIN n] [WHERE …]`
    Select(Select),
    /// `ASSOCIATORS OF {path} [WHERE …]`
    Associators(Traverse),
    /// `REFERENCES OF {path} [WHERE …]`
    References(Traverse),
}

/// A SELECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Select {
    /// The properties asked for; `None` is `*`.
    pub properties: Option<Vec<Name>>,
    /// The class; its subclasses count too.
    pub class: Name,
    /// Polling interval in seconds of an event query.
    pub within: Option<f64>,
    /// The condition.
    pub filter: Option<Condition>,
}

/// An association walk.
#[derive(Clone, Debug, PartialEq)]
pub struct Traverse {
    /// Where it starts.
    pub path: Path,
    /// `AssocClass = …` (ASSOCIATORS only)
    pub assoc_class: Option<Name>,
    /// `ResultClass = …`
    pub result_class: Option<Name>,
    /// `Role = …`
    pub role: Option<Name>,
    /// `ResultRole = …` (ASSOCIATORS only)
    pub result_role: Option<Name>,
    /// `KeysOnly`
    pub keys_only: bool,
    /// `ClassDefsOnly`
    pub class_defs_only: bool,
}

/// A condition of a WHERE.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// All hold.
    And(Vec<Condition>),
    /// One holds.
    Or(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
    /// `left op right`
    Compare {
        /// Left side.
        left: Operand,
        /// Operator.
        op: Comparison,
        /// Right side.
        right: Operand,
    },
    /// `operand IS NULL` (`negated`: `IS NOT NULL`)
    IsNull {
        /// What is tested.
        operand: Operand,
        /// `IS NOT NULL`
        negated: bool,
    },
    /// `operand ISA "class"`
    IsA {
        /// What is tested; `__CLASS` or `__THIS` for the instance itself.
        operand: Operand,
        /// The class.
        class: Name,
    },
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A property, `A.B` for one of an embedded object; system properties (`__CLASS`, `__SERVER`,
    /// `__PATH`, `__RELPATH`, `__NAMESPACE`, `__SUPERCLASS`, `__DERIVATION`) are among them.
    Property(Vec<Name>),
    /// A literal: string, unsigned/signed 64 bit integer, real, boolean, or null.
    Literal(Value),
}

/// A comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `!=` or `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `LIKE`
    Like,
}

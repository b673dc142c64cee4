//! WQL: the query language of WMI (SELECT, ASSOCIATORS OF, REFERENCES OF).
//!
//! [`parse`] reads a query, [`Select::matches`] tests an instance. How values compare:
//! - strings without case; a backslash of the literal may be doubled or not;
//! - numbers as numbers, also where one side is a string that holds one;
//! - datetimes as instants or spans, whatever spelling the literal has;
//! - references and `__PATH` as parsed paths, so host, slashes, quoting and key order do not matter;
//! - a boolean also with `"true"`, `"false"`, 1 and 0;
//! - an array with `=`, `<`, … or LIKE when any element does, with `!=` when no element is equal;
//! - null with nothing: neither a comparison nor its negation holds, only IS NULL (`= NULL` is the
//!   same) does.
//!
//! Bounded: 64 KiB of text, 64 levels of parentheses and NOT, 5000 conditions, 16 names with dots between, 1024 characters of a
//! LIKE pattern. LIKE takes time in proportion to the text and to the pattern's 64ths.

mod eval;
mod lexer;
mod like;
mod parser;

pub use eval::Environment;
pub use like::Pattern;

use crate::{Name, Path, Schema, Value};

/// Why a text is no query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} at line {line}, column {column}")]
pub struct WqlError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What was found or expected.
    pub message: String,
}

/// Reads a query.
pub fn parse(text: &str) -> Result<Query, WqlError> {
    parser::Parser::new(text)?.run()
}

/// A string literal of WQL that stands for `text`: in single quotes, quotes and backslashes escaped.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('\'');
    out
}

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
    /// `operand LIKE 'pattern'`
    Like {
        /// What is tested.
        operand: Operand,
        /// The pattern, compiled.
        pattern: Pattern,
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
}

impl Select {
    /// What every match must satisfy, as property and literal pairs (`Name = 'x'` anywhere under AND), so
    /// that a provider can look up instead of testing every instance. The pairs compare as
    /// [`Select::matches`] does (strings without case), and the match must still be tested.
    pub fn key_equalities(&self) -> Vec<(&Name, &Value)> {
        fn collect<'a>(condition: &'a Condition, found: &mut Vec<(&'a Name, &'a Value)>) {
            match condition {
                Condition::And(all) => all.iter().for_each(|one| collect(one, found)),
                Condition::Compare {
                    left,
                    op: Comparison::Equal,
                    right,
                } => {
                    let ((Operand::Property(names), Operand::Literal(value))
                    | (Operand::Literal(value), Operand::Property(names))) = (left, right)
                    else {
                        return;
                    };
                    if let [name] = names.as_slice() {
                        found.push((name, value));
                    }
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        if let Some(filter) = &self.filter {
            collect(filter, &mut found);
        }
        found
    }

    /// About how many steps a test of one instance takes; a comparison is one.
    pub fn cost(&self) -> usize {
        fn of(condition: &Condition) -> usize {
            match condition {
                Condition::And(all) | Condition::Or(all) => all.iter().map(of).sum(),
                Condition::Not(inner) => of(inner),
                Condition::Like { pattern, .. } => 4 + pattern.as_str().len() / 8,
                Condition::Compare { left, right, .. } => depth(left).max(depth(right)),
                Condition::IsNull { operand, .. } | Condition::IsA { operand, .. } => {
                    depth(operand)
                }
            }
        }
        // What stands in an embedded object is read from its text first.
        fn depth(operand: &Operand) -> usize {
            match operand {
                Operand::Property(names) if names.len() > 1 => 100,
                _ => 1,
            }
        }
        self.filter.as_ref().map_or(1, of)
    }

    /// The first property of the projection or the condition that the class does not have, to refuse the
    /// query with. `None` also where the schema does not know the class.
    pub fn unknown_property(&self, schema: &dyn Schema) -> Option<&Name> {
        let class = schema.class(self.class.as_str())?;
        let unknown = |name: &&Name| {
            let head = name.as_str().split('.').next().unwrap_or_default();
            !name.as_str().starts_with("__")
                && class.property(head).is_none()
                && !class.name.is(head)
        };
        let listed = self.properties.iter().flatten().find(unknown);
        listed.or_else(|| self.filter.iter().flat_map(Condition::names).find(unknown))
    }
}

impl Condition {
    /// The first name of every property in it.
    fn names(&self) -> Vec<&Name> {
        fn of(operand: &Operand) -> Option<&Name> {
            match operand {
                Operand::Property(names) => names.first(),
                Operand::Literal(_) => None,
            }
        }
        match self {
            Condition::And(all) | Condition::Or(all) => {
                all.iter().flat_map(Condition::names).collect()
            }
            Condition::Not(inner) => inner.names(),
            Condition::Compare { left, right, .. } => {
                of(left).into_iter().chain(of(right)).collect()
            }
            Condition::Like { operand, .. }
            | Condition::IsNull { operand, .. }
            | Condition::IsA { operand, .. } => of(operand).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests;

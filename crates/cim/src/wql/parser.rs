//! The grammar.

use super::lexer::{Lexer, Token};
use super::{Comparison, Condition, Operand, Pattern, Query, Select, Traverse, WqlError};
use crate::{Name, Path, Value};

const MAX_BYTES: usize = 64 * 1024;
const MAX_DEPTH: usize = 64;
const MAX_CONDITIONS: usize = 5000;
/// Names with dots between: objects in objects are not nested deeper than that.
const MAX_DOTTED: usize = 16;

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where `token` begins.
    start: usize,
    /// How many conditions there were.
    conditions: usize,
}

type Parse<T> = Result<T, WqlError>;

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Parse<Self> {
        let lexer = Lexer { text, at: 0 };
        if text.len() > MAX_BYTES {
            return Err(lexer.error(0, "the query is longer than 64 KiB"));
        }
        let mut parser = Parser {
            lexer,
            token: Token::End,
            start: 0,
            conditions: 0,
        };
        parser.advance()?;
        Ok(parser)
    }

    pub(super) fn run(mut self) -> Parse<Query> {
        let query = if self.take_word("select")? {
            Query::Select(self.select()?)
        } else if self.take_word("associators")? {
            Query::Associators(self.traverse(true)?)
        } else if self.take_word("references")? {
            Query::References(self.traverse(false)?)
        } else {
            return self.unexpected("SELECT, ASSOCIATORS or REFERENCES");
        };
        match self.token {
            Token::End => Ok(query),
            Token::Word(word) if is_any(word, &["order", "group", "having"]) => {
                self.fail(format!("{} is not supported", word.to_ascii_uppercase()))
            }
            _ => self.unexpected("the end"),
        }
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parse<T> {
        Err(self.lexer.error(self.start, message))
    }

    fn unexpected<T>(&self, wanted: &str) -> Parse<T> {
        self.fail(format!("{} instead of {wanted}", self.token.show()))
    }

    fn advance(&mut self) -> Parse<Token<'a>> {
        self.lexer.skip_blank();
        self.start = self.lexer.at;
        let next = self.lexer.token()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn take_word(&mut self, wanted: &str) -> Parse<bool> {
        let found = matches!(self.token, Token::Word(word) if word.eq_ignore_ascii_case(wanted));
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn take_mark(&mut self, wanted: &str) -> Parse<bool> {
        let found = matches!(self.token, Token::Mark(mark) if mark == wanted);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect_word(&mut self, wanted: &str) -> Parse<()> {
        match self.take_word(wanted)? {
            true => Ok(()),
            false => self.unexpected(&wanted.to_ascii_uppercase()),
        }
    }

    fn word(&mut self, what: &str) -> Parse<Name> {
        match self.token {
            Token::Word(word) => {
                self.advance()?;
                Ok(word.to_owned().into())
            }
            _ => self.unexpected(what),
        }
    }

    /// A class or role: bare, or as a string.
    fn named(&mut self, what: &str) -> Parse<Name> {
        if let Token::Literal(Value::String(text)) = &self.token {
            let name = Name::from(text.clone());
            self.advance()?;
            return Ok(name);
        }
        self.word(what)
    }

    fn select(&mut self) -> Parse<Select> {
        let properties = match self.take_mark("*")? {
            true => None,
            false => {
                let mut names = Vec::new();
                loop {
                    names.push(self.dotted("a property or *")?.join("."));
                    if !self.take_mark(",")? {
                        break;
                    }
                }
                Some(names.into_iter().map(Name::from).collect())
            }
        };
        self.expect_word("from")?;
        let class = self.word("a class")?;
        let within = match self.take_word("within")? {
            false => None,
            true => match self.advance()? {
                Token::Literal(Value::Uint64(n)) => Some(n as f64),
                Token::Literal(Value::Real64(n)) if n >= 0.0 => Some(n),
                other => return self.fail(format!("{} instead of seconds", other.show())),
            },
        };
        let filter = match self.take_word("where")? {
            true => Some(self.any_of(0)?),
            false => None,
        };
        Ok(Select {
            properties,
            class,
            within,
            filter,
        })
    }

    fn dotted(&mut self, what: &str) -> Parse<Vec<String>> {
        let mut names = vec![self.word(what)?.to_string()];
        while self.take_mark(".")? {
            if names.len() >= MAX_DOTTED {
                return self.fail(format!("more than {MAX_DOTTED} names with dots between"));
            }
            names.push(self.word("a property")?.to_string());
        }
        Ok(names)
    }

    fn any_of(&mut self, depth: usize) -> Parse<Condition> {
        let mut found = vec![self.all_of(depth)?];
        while self.take_word("or")? {
            found.push(self.all_of(depth)?);
        }
        Ok(one_or(found, Condition::Or))
    }

    fn all_of(&mut self, depth: usize) -> Parse<Condition> {
        let mut found = vec![self.term(depth)?];
        while self.take_word("and")? {
            found.push(self.term(depth)?);
        }
        Ok(one_or(found, Condition::And))
    }

    fn term(&mut self, depth: usize) -> Parse<Condition> {
        if depth >= MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        if self.take_word("not")? {
            return Ok(Condition::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.take_mark("(")? {
            let inner = self.any_of(depth + 1)?;
            return match self.take_mark(")")? {
                true => Ok(inner),
                false => self.unexpected("')'"),
            };
        }
        self.conditions += 1;
        if self.conditions > MAX_CONDITIONS {
            return self.fail(format!("more than {MAX_CONDITIONS} conditions"));
        }
        let left = self.operand()?;
        if self.take_word("is")? {
            let negated = self.take_word("not")?;
            self.expect_word("null")?;
            return Ok(Condition::IsNull {
                operand: left,
                negated,
            });
        }
        if self.take_word("isa")? {
            return Ok(Condition::IsA {
                operand: left,
                class: self.named("a class")?,
            });
        }
        if self.take_word("not")? {
            self.expect_word("like")?;
            return Ok(Condition::Not(Box::new(self.like(left)?)));
        }
        if self.take_word("like")? {
            return self.like(left);
        }
        let place = self.start;
        let op = match self.token {
            Token::Mark("=") => Comparison::Equal,
            Token::Mark("!=" | "<>") => Comparison::NotEqual,
            Token::Mark("<") => Comparison::Less,
            Token::Mark("<=") => Comparison::LessOrEqual,
            Token::Mark(">") => Comparison::Greater,
            Token::Mark(">=") => Comparison::GreaterOrEqual,
            _ => return self.unexpected("a comparison"),
        };
        self.advance()?;
        let right = self.operand()?;
        let (operand, null) = match (left, right) {
            (operand, Operand::Literal(Value::Null)) | (Operand::Literal(Value::Null), operand) => {
                (operand, op)
            }
            (left, right) => return Ok(Condition::Compare { left, op, right }),
        };
        match null {
            Comparison::Equal => Ok(Condition::IsNull {
                operand,
                negated: false,
            }),
            Comparison::NotEqual => Ok(Condition::IsNull {
                operand,
                negated: true,
            }),
            _ => Err(self.lexer.error(place, "NULL has no order")),
        }
    }

    /// The rest of a LIKE. Its pattern is a literal, as in WMI, and compiled here.
    fn like(&mut self, operand: Operand) -> Parse<Condition> {
        let place = self.start;
        let pattern = match self.operand()? {
            Operand::Literal(value) if !value.is_null() => value.to_text().unwrap_or_default(),
            Operand::Literal(_) => return Err(self.lexer.error(place, "NULL is no pattern")),
            Operand::Property(_) => {
                return Err(self
                    .lexer
                    .error(place, "the pattern of LIKE has to be a string"));
            }
        };
        let pattern = Pattern::new(&pattern).map_err(|why| self.lexer.error(place, why))?;
        Ok(Condition::Like { operand, pattern })
    }

    fn operand(&mut self) -> Parse<Operand> {
        match &self.token {
            Token::Literal(value) => {
                let value = value.clone();
                self.advance()?;
                Ok(Operand::Literal(value))
            }
            Token::Word(word) if word.eq_ignore_ascii_case("null") => {
                self.advance()?;
                Ok(Operand::Literal(Value::Null))
            }
            Token::Word(_) => {
                let names = self.dotted("a property")?;
                Ok(Operand::Property(
                    names.into_iter().map(Name::from).collect(),
                ))
            }
            _ => self.unexpected("a property or a value"),
        }
    }

    fn traverse(&mut self, associators: bool) -> Parse<Traverse> {
        self.expect_word("of")?;
        let Token::Braced(text) = self.token else {
            return self.unexpected("a path in braces");
        };
        let path = match Path::parse(text.trim()) {
            Ok(path) => path,
            Err(err) => return self.fail(err.to_string()),
        };
        self.advance()?;
        let mut found = Traverse {
            path,
            assoc_class: None,
            result_class: None,
            role: None,
            result_role: None,
            keys_only: false,
            class_defs_only: false,
        };
        if !self.take_word("where")? {
            return Ok(found);
        }
        let mut clauses = 0;
        while self.token != Token::End {
            // Not in the grammar, but some clients put them between the clauses.
            if clauses > 0 && !self.take_word("and")? {
                self.take_mark(",")?;
            }
            clauses += 1;
            if self.take_word("keysonly")? {
                found.keys_only = true;
                continue;
            }
            if self.take_word("classdefsonly")? {
                found.class_defs_only = true;
                continue;
            }
            let Token::Word(word) = self.token else {
                return self.unexpected("a clause such as ResultClass");
            };
            let clause = match word.to_ascii_lowercase().as_str() {
                "assocclass" if associators => &mut found.assoc_class,
                "resultrole" if associators => &mut found.result_role,
                "resultclass" => &mut found.result_class,
                "role" => &mut found.role,
                "requiredqualifier" | "requiredassocqualifier" | "schemaonly" => {
                    return self.fail(format!("{word} is not supported"));
                }
                _ => return self.unexpected("a clause such as ResultClass"),
            };
            if clause.is_some() {
                return self.fail(format!("{word} stands twice"));
            }
            self.advance()?;
            if !self.take_mark("=")? {
                return self.unexpected("'='");
            }
            *clause = Some(self.named("a name")?);
        }
        match clauses {
            0 => self.unexpected("a clause such as ResultClass"),
            _ => Ok(found),
        }
    }
}

fn one_or(mut found: Vec<Condition>, many: fn(Vec<Condition>) -> Condition) -> Condition {
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => only,
        (Some(last), false) => {
            found.push(last);
            many(found)
        }
        (None, _) => many(found),
    }
}

fn is_any(word: &str, of: &[&str]) -> bool {
    of.iter().any(|one| word.eq_ignore_ascii_case(one))
}

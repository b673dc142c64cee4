//! The grammar.

use std::borrow::Cow;

use super::lexer::{Lexer, Token};
use super::{MAX_BYTES, MAX_DEPTH, Mof, MofError};
use crate::{
    Class, Declaration, Instance, List, Literal, Method, Name, Property, Qualifier,
    QualifierDeclaration, Type, Value,
};

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where `token` begins.
    place: (u32, u32),
}

type Parse<T> = Result<T, MofError>;

/// The value of a property of an instance.
enum Given {
    Literal(Literal),
    Instance(Instance),
    List(Vec<Given>),
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Parse<Self> {
        let lexer = Lexer::new(text);
        let place = lexer.place();
        let mut parser = Parser {
            lexer,
            token: Token::End,
            place,
        };
        if text.len() > MAX_BYTES {
            return parser.fail("the text is longer than 16 MiB");
        }
        parser.advance()?;
        Ok(parser)
    }

    pub(super) fn run(mut self) -> Parse<Mof> {
        let mut mof = Mof::default();
        while self.token != Token::End {
            if let Token::Pragma(directive) = self.token {
                let pragma = self.pragma(directive)?;
                mof.pragmas.push(pragma);
                continue;
            }
            if self.take_keyword("qualifier")? {
                mof.qualifiers.push(self.qualifier_declaration()?);
                continue;
            }
            let qualifiers = self.qualifiers()?;
            if self.take_keyword("class")? {
                mof.classes.push(self.class(qualifiers)?);
            } else if self.take_keyword("instance")? {
                mof.instances.push(self.instance(0)?);
                // The last one is sometimes sent without its semicolon.
                if self.token != Token::End {
                    self.expect(';')?;
                }
            } else {
                return self.unexpected("'class', 'instance' or 'qualifier'");
            }
        }
        Ok(mof)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parse<T> {
        let (line, column) = self.place;
        Err(MofError {
            line,
            column,
            message: message.into(),
        })
    }

    fn unexpected<T>(&self, wanted: &str) -> Parse<T> {
        self.fail(format!("{} instead of {wanted}", self.token.show()))
    }

    fn advance(&mut self) -> Parse<Token<'a>> {
        self.lexer.skip_blank()?;
        self.place = self.lexer.place();
        let next = self.lexer.token()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn take(&mut self, mark: char) -> Parse<bool> {
        let found = self.token == Token::Mark(mark);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, mark: char) -> Parse<()> {
        match self.take(mark)? {
            true => Ok(()),
            false => self.unexpected(&format!("'{mark}'")),
        }
    }

    fn at_keyword(&self, keyword: &str) -> bool {
        matches!(self.token, Token::Name(name) if name.eq_ignore_ascii_case(keyword))
    }

    fn take_keyword(&mut self, keyword: &str) -> Parse<bool> {
        let found = self.at_keyword(keyword);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn name(&mut self, what: &str) -> Parse<&'a str> {
        match self.token {
            Token::Name(name) => {
                self.advance()?;
                Ok(name)
            }
            _ => self.unexpected(what),
        }
    }

    fn owned(&mut self, what: &str) -> Parse<Name> {
        Ok(self.name(what)?.to_owned().into())
    }

    fn pragma(&mut self, directive: &str) -> Parse<(String, String)> {
        if !directive.eq_ignore_ascii_case("pragma") {
            return self.unexpected("'#pragma'");
        }
        self.advance()?;
        let name = self.name("the name of a pragma")?.to_owned();
        self.expect('(')?;
        let argument = match self.literal(0)? {
            Literal::Text(text) => text.into_owned(),
            _ => return self.fail("the argument of a pragma is a string"),
        };
        self.expect(')')?;
        Ok((name, argument))
    }

    fn qualifiers(&mut self) -> Parse<List<Qualifier>> {
        let mut found: Vec<Qualifier> = Vec::new();
        if !self.take('[')? {
            return Ok(Cow::Borrowed(&[]));
        }
        loop {
            let name = self.owned("the name of a qualifier")?;
            if found.iter().any(|q| q.name == name) {
                return self.fail(format!("the qualifier {name} stands twice"));
            }
            let value = if self.take('(')? {
                let value = self.literal(0)?;
                self.expect(')')?;
                value
            } else if self.token == Token::Mark('{') {
                self.literal(0)?
            } else {
                Literal::Boolean(true)
            };
            if self.take(':')? {
                self.name("a flavor")?;
                while matches!(self.token, Token::Name(_)) {
                    self.advance()?;
                }
            }
            found.push(Qualifier { name, value });
            if !self.take(',')? {
                break;
            }
        }
        self.expect(']')?;
        Ok(Cow::Owned(found))
    }

    fn qualifier_declaration(&mut self) -> Parse<QualifierDeclaration> {
        let name = self.owned("the name of a qualifier")?;
        self.expect(':')?;
        let ty = self.data_type()?;
        let (array, _) = self.brackets()?;
        let default = match self.take('=')? {
            true => self.literal(0)?,
            false => Literal::Null,
        };
        let mut declared = QualifierDeclaration {
            name,
            ty,
            array,
            default,
            scopes: Cow::Borrowed(&[]),
            overridable: true,
            to_subclass: true,
            translatable: false,
        };
        while self.take(',')? {
            let scope = self.at_keyword("scope");
            if !scope && !self.at_keyword("flavor") {
                return self.unexpected("'Scope' or 'Flavor'");
            }
            self.advance()?;
            self.expect('(')?;
            let mut names = Vec::new();
            loop {
                names.push(self.owned("a name")?);
                if !self.take(',')? {
                    break;
                }
            }
            self.expect(')')?;
            if scope {
                declared.scopes = Cow::Owned(names);
                continue;
            }
            for flavor in names {
                match flavor.as_str().to_ascii_lowercase().as_str() {
                    "enableoverride" => declared.overridable = true,
                    "disableoverride" => declared.overridable = false,
                    "tosubclass" => declared.to_subclass = true,
                    "restricted" => declared.to_subclass = false,
                    "translatable" | "amended" => declared.translatable = true,
                    "toinstance" => {}
                    _ => return self.fail(format!("{flavor} is no flavor")),
                }
            }
        }
        self.expect(';')?;
        Ok(declared)
    }

    fn data_type(&mut self) -> Parse<Type> {
        let place = self.place;
        let name = self.name("a type")?;
        match Type::named(name) {
            Some(Type::Reference) | None => {
                self.place = place;
                self.fail(format!("{name} is no type"))
            }
            Some(ty) => Ok(ty),
        }
    }

    fn class(&mut self, qualifiers: List<Qualifier>) -> Parse<Class> {
        let name = self.owned("the name of a class")?;
        self.alias()?;
        let superclass = match self.take(':')? {
            true => Some(self.owned("the name of the superclass")?),
            false => None,
        };
        self.expect('{')?;
        let mut properties: Vec<Declaration> = Vec::new();
        let mut methods: Vec<Method> = Vec::new();
        while !self.take('}')? {
            let member = self.declaration()?;
            if self.token == Token::Mark('(') {
                methods.push(self.method(member)?);
                continue;
            }
            let member = Declaration {
                default: match self.take('=')? {
                    true => self.literal(0)?,
                    false => Literal::Null,
                },
                ..member
            };
            self.expect(';')?;
            if properties.iter().any(|p| p.name == member.name) {
                return self.fail(format!("the property {} stands twice", member.name));
            }
            properties.push(member);
        }
        self.expect(';')?;
        Ok(Class {
            name,
            superclass,
            qualifiers,
            properties: Cow::Owned(properties),
            methods: Cow::Owned(methods),
        })
    }

    /// `[qualifiers] type name`, `[qualifiers] Class REF name`, each with `[]` or `[size]` after it.
    fn declaration(&mut self) -> Parse<Declaration> {
        let qualifiers = self.qualifiers()?;
        let place = self.place;
        let type_name = self.name("a type")?;
        let (ty, ref_class) = if self.take_keyword("ref")? {
            (Type::Reference, Some(Name::from(type_name.to_owned())))
        } else {
            match Type::named(type_name) {
                Some(Type::Reference) | None => {
                    self.place = place;
                    return self.fail(format!("{type_name} is no type, and no REF follows"));
                }
                Some(ty) => (ty, None),
            }
        };
        let name = self.owned("a name")?;
        let (array, array_size) = self.brackets()?;
        Ok(Declaration {
            name,
            ty,
            ref_class,
            array,
            array_size,
            default: Literal::Null,
            qualifiers,
            origin: None,
        })
    }

    fn brackets(&mut self) -> Parse<(bool, Option<u32>)> {
        if !self.take('[')? {
            return Ok((false, None));
        }
        let size = match self.token {
            Token::Integer(n) => match u32::try_from(n) {
                Ok(n) => {
                    self.advance()?;
                    Some(n)
                }
                Err(_) => return self.fail("the size of an array is too large"),
            },
            _ => None,
        };
        self.expect(']')?;
        Ok((true, size))
    }

    fn method(&mut self, head: Declaration) -> Parse<Method> {
        if head.array || head.ty == Type::Reference {
            return self.fail("a method returns neither an array nor a reference");
        }
        self.expect('(')?;
        let mut parameters: Vec<Declaration> = Vec::new();
        if !self.take(')')? {
            loop {
                let parameter = self.declaration()?;
                if parameters.iter().any(|p| p.name == parameter.name) {
                    return self.fail(format!("the parameter {} stands twice", parameter.name));
                }
                parameters.push(parameter);
                if !self.take(',')? {
                    break;
                }
            }
            self.expect(')')?;
        }
        self.expect(';')?;
        Ok(Method {
            name: head.name,
            return_type: head.ty,
            qualifiers: head.qualifiers,
            parameters: Cow::Owned(parameters),
            origin: None,
        })
    }

    fn alias(&mut self) -> Parse<()> {
        if self.take_keyword("as")? {
            match self.token {
                Token::Alias(_) => {
                    self.advance()?;
                }
                _ => return self.unexpected("an alias"),
            }
        }
        Ok(())
    }

    /// After `instance`: `of Class { name = value; … }`, without the semicolon.
    fn instance(&mut self, depth: usize) -> Parse<Instance> {
        if !self.take_keyword("of")? {
            return self.unexpected("'of'");
        }
        let mut found = Instance::new(self.owned("the name of a class")?);
        self.alias()?;
        self.expect('{')?;
        while !self.take('}')? {
            self.qualifiers()?;
            let name = self.owned("the name of a property")?;
            if found.property(name.as_str()).is_some() {
                return self.fail(format!("the property {name} stands twice"));
            }
            self.expect('=')?;
            let place = self.place;
            let given = self.given(depth)?;
            let value = match given.value() {
                Ok(value) => value,
                Err(message) => {
                    self.place = place;
                    return self.fail(message);
                }
            };
            self.expect(';')?;
            found.properties.push(Property {
                name,
                ty: value.ty().unwrap_or(Type::String),
                array: matches!(value, Value::Array(_)),
                value,
            });
        }
        Ok(found)
    }

    fn nested(&self, depth: usize) -> Parse<usize> {
        match depth < MAX_DEPTH {
            true => Ok(depth + 1),
            false => self.fail("nested too deeply"),
        }
    }

    fn given(&mut self, depth: usize) -> Parse<Given> {
        let depth = self.nested(depth)?;
        if self.take_keyword("instance")? {
            return Ok(Given::Instance(self.instance(depth)?));
        }
        if !self.take('{')? {
            return Ok(Given::Literal(self.literal(depth)?));
        }
        let mut items = Vec::new();
        if !self.take('}')? {
            loop {
                items.push(self.given(depth)?);
                if !self.take(',')? {
                    break;
                }
            }
            self.expect('}')?;
        }
        Ok(Given::List(items))
    }

    fn literal(&mut self, depth: usize) -> Parse<Literal> {
        let depth = self.nested(depth)?;
        if self.take('{')? {
            let mut items = Vec::new();
            if !self.take('}')? {
                loop {
                    items.push(self.literal(depth)?);
                    if !self.take(',')? {
                        break;
                    }
                }
                self.expect('}')?;
            }
            return Ok(Literal::List(Cow::Owned(items)));
        }
        if let Token::Alias(name) = self.token {
            return self.fail(format!("the alias ${name} as a value is not supported"));
        }
        let word = match self.token {
            Token::Name(name) => match name.to_ascii_lowercase().as_str() {
                "true" => Some(Literal::Boolean(true)),
                "false" => Some(Literal::Boolean(false)),
                "null" => Some(Literal::Null),
                _ => None,
            },
            Token::Integer(n) => Some(Literal::Integer(n)),
            Token::Real(n) => Some(Literal::Real(n)),
            _ => None,
        };
        if let Some(literal) = word {
            self.advance()?;
            return Ok(literal);
        }
        if !matches!(self.token, Token::Text(_)) {
            return self.unexpected("a value");
        }
        // Strings that follow each other are one.
        let mut text = String::new();
        while matches!(self.token, Token::Text(_)) {
            if let Token::Text(part) = self.advance()? {
                text.push_str(&part);
            }
        }
        Ok(Literal::Text(text.into()))
    }
}

impl Given {
    fn value(self) -> Result<Value, &'static str> {
        Ok(match self {
            Given::Instance(instance) => instance.into(),
            Given::List(items) => one_type(
                items
                    .into_iter()
                    .map(Given::value)
                    .collect::<Result<_, _>>()?,
            )?,
            Given::Literal(Literal::Null) => Value::Null,
            Given::Literal(Literal::Boolean(b)) => Value::Boolean(b),
            Given::Literal(Literal::Real(r)) => Value::Real64(r),
            Given::Literal(Literal::Text(text)) => Value::String(text.into_owned()),
            Given::Literal(Literal::Integer(n)) => match (u64::try_from(n), i64::try_from(n)) {
                (Ok(n), _) => Value::Uint64(n),
                (_, Ok(n)) => Value::Sint64(n),
                _ => return Err("the number is too large"),
            },
            Given::Literal(Literal::List(_)) => return Err("a list in a list"),
        })
    }
}

/// An array whose elements have the type that holds them all.
fn one_type(items: Vec<Value>) -> Result<Value, &'static str> {
    let mut wanted = None;
    for item in &items {
        wanted = match (wanted, item, item.ty()) {
            (_, Value::Array(_), _) => return Err("a list in a list"),
            (_, _, None) => wanted,
            (None, _, ty) => ty,
            (Some(a), _, Some(b)) if a == b => Some(a),
            (Some(Type::Uint64), _, Some(Type::Sint64))
            | (Some(Type::Sint64), _, Some(Type::Uint64)) => Some(Type::Sint64),
            (Some(Type::Real64), _, Some(Type::Uint64 | Type::Sint64))
            | (Some(Type::Uint64 | Type::Sint64), _, Some(Type::Real64)) => Some(Type::Real64),
            _ => return Err("a list holds values of one type"),
        };
    }
    match wanted {
        None => Ok(Value::Array(items)),
        Some(ty) => Value::Array(items)
            .coerce(ty, true)
            .map_err(|_| "the number is too large"),
    }
}

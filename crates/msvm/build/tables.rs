//! Class declarations as statics. Equal lists (the return codes of most methods) are written once.

use std::collections::HashMap;
use std::fmt::Write as _;

use cim::{Class, Declaration, Literal, Method, Name, Qualifier, Type};

use crate::Outcome;

/// What has been written so far.
#[derive(Default)]
pub(crate) struct Tables {
    code: String,
    lists: HashMap<String, usize>,
    classes: HashMap<String, usize>,
}

impl Tables {
    /// The table of one namespace: references to its classes, sorted by name.
    pub(crate) fn namespace(&mut self, table: &str, classes: &[&Class]) -> Outcome<()> {
        let mut refs = String::new();
        for class in classes {
            let text = self.class(class);
            let next = self.classes.len();
            let index = match self.classes.get(&text) {
                Some(index) => *index,
                None => {
                    writeln!(self.code, "static CLASS_{next}: Class = {text};")?;
                    self.classes.insert(text, next);
                    next
                }
            };
            write!(refs, "&CLASS_{index}, ")?;
        }
        let count = classes.len();
        writeln!(
            self.code,
            "pub(crate) static {table}: [&Class; {count}] = [{refs}];"
        )?;
        Ok(())
    }

    /// The whole as a module.
    pub(crate) fn finish(self, code: &mut String) -> Outcome<()> {
        writeln!(
            code,
            "pub(crate) mod tables {{\nuse std::borrow::Cow::Borrowed as B;\nuse cim::{{Class, Declaration, Literal, Method, Name, Qualifier, Type}};\n\n{}}}\n",
            self.code
        )?;
        Ok(())
    }

    fn list(&mut self, of: &str, items: &[String]) -> String {
        if items.is_empty() {
            return "B(&[])".to_owned();
        }
        let body = format!("[{of}; {}] = [{}];", items.len(), items.join(", "));
        let next = self.lists.len();
        let index = *self.lists.entry(body).or_insert_with_key(|body| {
            self.code.push_str(&format!("static L{next}: {body}\n"));
            next
        });
        format!("B(&L{index})")
    }

    fn class(&mut self, class: &Class) -> String {
        let qualifiers = self.qualifiers(&class.qualifiers);
        let properties: Vec<String> = class
            .properties
            .iter()
            .map(|p| self.declaration(p))
            .collect();
        let properties = self.list("Declaration", &properties);
        let methods: Vec<String> = class.methods.iter().map(|m| self.method(m)).collect();
        let methods = self.list("Method", &methods);
        format!(
            "Class {{ name: {}, superclass: {}, qualifiers: {qualifiers}, properties: {properties}, methods: {methods} }}",
            name(&class.name),
            option(class.superclass.as_ref()),
        )
    }

    fn method(&mut self, method: &Method) -> String {
        let qualifiers = self.qualifiers(&method.qualifiers);
        let parameters: Vec<String> = method
            .parameters
            .iter()
            .map(|p| self.declaration(p))
            .collect();
        let parameters = self.list("Declaration", &parameters);
        format!(
            "Method {{ name: {}, return_type: {}, qualifiers: {qualifiers}, parameters: {parameters}, origin: None }}",
            name(&method.name),
            type_path(method.return_type),
        )
    }

    fn declaration(&mut self, at: &Declaration) -> String {
        let qualifiers = self.qualifiers(&at.qualifiers);
        let default = self.literal(&at.default);
        format!(
            "Declaration {{ name: {}, ty: {}, ref_class: {}, array: {}, array_size: {:?}, default: {default}, qualifiers: {qualifiers}, origin: None }}",
            name(&at.name),
            type_path(at.ty),
            option(at.ref_class.as_ref()),
            at.array,
            at.array_size,
        )
    }

    fn qualifiers(&mut self, qualifiers: &[Qualifier]) -> String {
        let items: Vec<String> = qualifiers
            .iter()
            .map(|q| {
                format!(
                    "Qualifier {{ name: {}, value: {} }}",
                    name(&q.name),
                    self.literal(&q.value)
                )
            })
            .collect();
        self.list("Qualifier", &items)
    }

    fn literal(&mut self, literal: &Literal) -> String {
        match literal {
            Literal::Null => "Literal::Null".to_owned(),
            Literal::Boolean(b) => format!("Literal::Boolean({b})"),
            Literal::Integer(n) => format!("Literal::Integer({n})"),
            Literal::Real(r) => format!("Literal::Real({r:?})"),
            Literal::Text(text) => format!("Literal::Text(B({text:?}))"),
            Literal::List(items) => {
                let items: Vec<String> = items.iter().map(|i| self.literal(i)).collect();
                format!("Literal::List({})", self.list("Literal", &items))
            }
        }
    }
}

fn name(name: &Name) -> String {
    format!("Name::of({:?})", name.as_str())
}

fn option(found: Option<&Name>) -> String {
    found.map_or_else(|| "None".to_owned(), |n| format!("Some({})", name(n)))
}

fn type_path(ty: Type) -> String {
    format!("Type::{ty:?}")
}

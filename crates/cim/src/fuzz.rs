//! Entry points for fuzzing: each feeds bytes to one reader and checks what must hold whenever the
//! reader takes them. They panic when it does not; that is what a fuzzer looks for.

use crate::xml::{self, Element, Limits, Writer};
use crate::{ClassTable, Instance, Path, Value, embedded, mof, wql};

const LIMITS: Limits = Limits {
    bytes: 1 << 16,
    depth: 32,
    attributes: 32,
    elements: 4_000,
    text: 1 << 16,
};

/// The XML reader: a tree written again reads as the same tree, in every encoding.
pub fn xml(data: &[u8]) {
    let Ok(document) = xml::parse(data, &LIMITS) else {
        return;
    };
    let mut w = Writer::new();
    rewrite(&document.root, &mut w);
    let text = w.finish();
    let roomy = Limits {
        bytes: 1 << 24,
        attributes: 128,
        ..LIMITS
    };
    let again = xml::parse(&document.encoding.encode(&text), &roomy);
    assert!(
        again
            .as_ref()
            .is_ok_and(|again| same(&document.root, &again.root)),
        "{document:?}\n{text}\n{again:?}"
    );
}

fn rewrite(at: &Element, w: &mut Writer) {
    // Every element tells its own default namespace, so no prefix is needed but for attributes.
    w.open(&at.local)
        .attr("xmlns", at.namespace.as_deref().unwrap_or_default());
    for (i, attribute) in at.attributes.iter().enumerate() {
        match attribute.namespace.as_deref() {
            None => w.attr(&attribute.local, &attribute.value),
            Some("http://www.w3.org/XML/1998/namespace") => {
                w.attr(&format!("xml:{}", attribute.local), &attribute.value)
            }
            Some(uri) => w
                .attr(&format!("xmlns:a{i}"), uri)
                .attr(&format!("a{i}:{}", attribute.local), &attribute.value),
        };
    }
    if !at.text.is_empty() {
        w.text(&at.text);
    }
    for child in &at.children {
        rewrite(child, w);
    }
    w.close();
}

fn same(a: &Element, b: &Element) -> bool {
    a.local == b.local
        && a.namespace == b.namespace
        && a.attributes == b.attributes
        && a.text == b.text
        && a.children.len() == b.children.len()
        && a.children.iter().zip(&b.children).all(|(a, b)| same(a, b))
}

/// The MOF reader, and putting together what it read.
pub fn mof(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match mof::parse(text) {
        Ok(read) => drop(ClassTable::resolve(read.classes)),
        Err(err) => assert!(err.line > 0 && err.column > 0),
    }
}

/// The WQL reader, and testing an instance with what it read.
pub fn wql(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(wql::Query::Select(select)) = wql::parse(text) else {
        return;
    };
    let schema = ClassTable::default();
    let env = wql::Environment {
        schema: &schema,
        host: "H",
        namespace: "root/x",
    };
    let inner = Instance::new(select.class.clone()).with("A", "b\\c");
    let instance = Instance::new(select.class.clone())
        .with("A", "b\\c")
        .with("B", vec![1u16, 2])
        .with("C", Path::class("X").key("K", "v"))
        .with("D", true)
        .with("E", 0.5)
        .with("F", embedded::write(&inner))
        .with("G", inner);
    let kept = select.project(instance.clone());
    assert!(kept.properties.len() <= instance.properties.len());
    if select.matches(&instance, &env) {
        for (name, value) in select.key_equalities() {
            let narrow = wql::Select {
                filter: Some(wql::Condition::Compare {
                    left: wql::Operand::Property(vec![name.clone()]),
                    op: wql::Comparison::Equal,
                    right: wql::Operand::Literal(value.clone()),
                }),
                ..select.clone()
            };
            assert!(narrow.matches(&instance, &env), "{name} = {value:?}");
        }
    }
}

/// The reader of embedded instances: what it takes is written in a shape that reads back.
pub fn embedded(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let context = embedded::Context {
        limits: LIMITS,
        schema: None,
    };
    let Ok(instance) = embedded::read(text, &context) else {
        return;
    };
    let roomy = embedded::Context {
        limits: Limits {
            depth: 64,
            ..Limits::default()
        },
        schema: None,
    };
    // Once written, embedded objects are text and what XML cannot hold is replaced: stable from there.
    let once = embedded::write(&instance);
    let first = embedded::read(&once, &roomy);
    assert!(first.is_ok(), "{once}\n{first:?}");
    let Ok(first) = first else { return };
    let twice = embedded::write(&first);
    let second = embedded::read(&twice, &roomy).map(|i| embedded::write(&i));
    assert!(
        second.as_ref().is_ok_and(|text| *text == twice),
        "{twice}\n{second:?}"
    );
}

/// The reader of object paths: what it takes survives being written.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(path) = Path::parse(text) else { return };
    let written = path.to_string();
    let again = Path::parse(&written);
    assert_eq!(Ok(&path), again.as_ref(), "{written}");
    assert_eq!(Value::from(path.clone()).as_path().as_ref(), Some(&path));
}

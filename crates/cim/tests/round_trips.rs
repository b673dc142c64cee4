//! What is written reads back the same, for values made at random.

use cim::wql::{self, Condition, Operand, Query};
use cim::xml::{Limits, Writer};
use cim::{Datetime, Instance, Path, Property, Type, Value, cimxml, embedded};
use proptest::prelude::*;

/// Any text XML can hold.
fn text() -> impl Strategy<Value = String> {
    "[ -~\\t\\n\\r\u{80}-\u{2ff}\u{1f600}-\u{1f640}]{0,24}"
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z_][A-Za-z0-9_]{0,11}"
}

fn datetime() -> impl Strategy<Value = Datetime> {
    prop_oneof![
        (0..253_000_000_000_000_000i64, -720..=840i16)
            .prop_map(|(micros, offset)| Datetime::Timestamp { micros, offset }),
        (0..8_639_999_999_999_999_999u64).prop_map(|micros| Datetime::Interval { micros }),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<u8>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        text().prop_map(Value::from),
        datetime().prop_map(Value::from),
    ]
}

fn key() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (i64::MIN..0).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    let keys = proptest::collection::btree_map(name().prop_map(|n| n.to_lowercase()), key(), 0..4);
    let place = proptest::option::of(("[a-z][a-z0-9.-]{0,8}", "[a-z]{1,6}(/[a-z0-9]{1,6}){0,2}"));
    (name(), keys, place).prop_map(|(class, keys, place)| {
        let path = keys
            .into_iter()
            .fold(Path::class(class), |path, (name, value)| {
                path.key(name, value)
            });
        match place {
            Some((host, namespace)) => path.in_namespace(&namespace).on_host(host),
            None => path,
        }
    })
}

fn property() -> impl Strategy<Value = Property> {
    let same_type = (scalar(), 0..4usize).prop_map(|(value, n)| Property {
        name: "".into(),
        ty: value.ty().unwrap_or(Type::String),
        array: true,
        value: Value::Array(vec![value; n]),
    });
    let plain = scalar().prop_map(|value| Property {
        name: "".into(),
        ty: value.ty().unwrap_or(Type::String),
        array: false,
        value,
    });
    let null = Just(Property {
        name: "".into(),
        ty: Type::Uint32,
        array: false,
        value: Value::Null,
    });
    let reference = path().prop_map(|p| Property {
        name: "".into(),
        ty: Type::Reference,
        array: false,
        value: p.into(),
    });
    prop_oneof![plain, same_type, null, reference]
}

fn instance() -> impl Strategy<Value = Instance> {
    let properties =
        proptest::collection::btree_map(name().prop_map(|n| n.to_lowercase()), property(), 0..8);
    (name(), properties).prop_map(|(class, properties)| {
        let mut instance = Instance::new(class);
        for (name, property) in properties {
            instance.properties.push(Property {
                name: name.into(),
                ..property
            });
        }
        instance
    })
}

proptest! {
    #[test]
    fn a_path_survives_its_text(path in path()) {
        prop_assert_eq!(Path::parse(&path.to_string()).expect("path"), path);
    }

    #[test]
    fn a_path_survives_its_xml(path in path()) {
        let mut w = Writer::new();
        cimxml::write_reference(&mut w, &path);
        let element = cim::xml::parse_str(&w.finish(), &Limits::default()).expect("xml");
        let (read, _) = cimxml::path(&element).expect("path");
        prop_assert_eq!(&read, &path);
        prop_assert_eq!(read.host, path.host);
    }

    #[test]
    fn a_datetime_survives_its_text(at in datetime()) {
        prop_assert_eq!(at.to_string().parse::<Datetime>().expect("datetime"), at);
    }

    #[test]
    fn an_embedded_instance_survives_its_text(instance in instance()) {
        let read = embedded::read(&embedded::write(&instance), &embedded::Context::default());
        prop_assert_eq!(read.expect("instance"), instance);
    }

    #[test]
    fn a_quoted_literal_stands_for_its_text(wanted in text()) {
        let query = wql::parse(&format!("SELECT * FROM X WHERE A = {}", wql::quote(&wanted)));
        let Ok(Query::Select(select)) = query else { panic!("{query:?}") };
        match select.filter {
            Some(Condition::Compare { right: Operand::Literal(Value::String(read)), .. }) => {
                prop_assert_eq!(read, wanted);
            }
            other => panic!("{other:?}"),
        }
    }
}

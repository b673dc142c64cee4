use super::*;
use crate::{Path, Property};

fn read_plain(text: &str) -> Instance {
    read(text, &Context::default()).expect(text)
}

#[test]
fn the_cim_dtd_shape_with_white_space_is_read() {
    let i = read_plain(
        "<?xml version=\"1.0\"?>\n<INSTANCE CLASSNAME=\"Msvm_ProcessorSettingData\">\n  \
         <PROPERTY NAME=\"VirtualQuantity\" TYPE=\"uint64\">\n    <VALUE>2</VALUE>\n  </PROPERTY>\n  \
         <PROPERTY.ARRAY NAME=\"HostResource\" TYPE=\"string\">\n    <VALUE.ARRAY>\n      <VALUE>/a b</VALUE>\n    </VALUE.ARRAY>\n  \
         </PROPERTY.ARRAY>\n</INSTANCE>\n",
    );
    assert_eq!(i.class, "Msvm_ProcessorSettingData");
    assert_eq!(i.get("VirtualQuantity"), &Value::Uint64(2));
    assert_eq!(
        i.get("HostResource"),
        &Value::Array(vec![Value::from("/a b")])
    );
}

#[test]
fn the_wmi_dtd_shape_keeps_null_and_absent_apart() {
    let i = read_plain(
        "<INSTANCE CLASSNAME=\"C\"><QUALIFIER NAME=\"dynamic\" TYPE=\"boolean\"><VALUE>TRUE</VALUE></QUALIFIER>\
         <PROPERTY NAME=\"A\" CLASSORIGIN=\"B\" PROPAGATED=\"TRUE\" TYPE=\"string\"><QUALIFIER NAME=\"CIMTYPE\" \
         PROPAGATED=\"TRUE\" TYPE=\"string\" TOINSTANCE=\"true\"><VALUE>string</VALUE></QUALIFIER><VALUE>x</VALUE></PROPERTY>\
         <PROPERTY NAME=\"N\" CLASSORIGIN=\"B\" TYPE=\"uint16\"><QUALIFIER NAME=\"CIMTYPE\" TYPE=\"string\"><VALUE>uint16</VALUE>\
         </QUALIFIER></PROPERTY>\
         <PROPERTY.OBJECT NAME=\"O\"><VALUE.OBJECT><INSTANCE CLASSNAME=\"D\"><PROPERTY NAME=\"X\" TYPE=\"uint8\"><VALUE>1</VALUE>\
         </PROPERTY></INSTANCE></VALUE.OBJECT></PROPERTY.OBJECT>\
         <PROPERTY.REFERENCE NAME=\"R\" REFERENCECLASS=\"E\"><VALUE.REFERENCE>\\\\H\\root\\x:E.K=\"v\"</VALUE.REFERENCE>\
         </PROPERTY.REFERENCE></INSTANCE>",
    );
    assert_eq!(i.get_str("A"), Some("x"));
    assert_eq!(
        i.property("N").map(|p| (p.ty, p.value.clone())),
        Some((Type::Uint16, Value::Null))
    );
    assert!(i.property("Absent").is_none());
    assert_eq!(i.get("O"), &Value::from(Instance::new("D").with("X", 1u8)));
    assert_eq!(i.get("R").as_path(), Some(Path::class("E").key("K", "v")));
}

#[test]
fn the_mi_shape_is_found_beside_its_class() {
    let i = read_plain(
        "\u{feff}<?xml version=\"1.0\" encoding=\"utf-16\"?><DECLARATIONS><DECLGROUP><VALUE.OBJECT><CLASS NAME=\"C\"/></VALUE.OBJECT>\
         <VALUE.OBJECT><INSTANCE CLASSNAME=\"C\"><PROPERTY NAME=\"A\" TYPE=\"boolean\" MODIFIED=\"TRUE\"><VALUE>true</VALUE>\
         </PROPERTY></INSTANCE></VALUE.OBJECT></DECLGROUP></DECLARATIONS>\0",
    );
    assert_eq!(i, Instance::new("C").with("A", true));
}

#[test]
fn the_least_that_will_do_is_strings() {
    let i = read_plain(
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A'><VALUE>5</VALUE></PROPERTY></INSTANCE>",
    );
    assert_eq!(i, Instance::new("C").with("A", "5"));
}

#[test]
fn mof_is_read_and_typed_by_the_schema() {
    let text = "\n instance of msvm_x { name = \"a\\\\b\"; QUANTITY = {1, 2}; Count = \"7\"; \
                Inner = instance of Msvm_Y { A = 1; }; More = 5; None = NULL; };\n";
    let plain = read_plain(text);
    assert_eq!(plain.get("Quantity"), &Value::from(vec![1u64, 2]));
    let schema = crate::ClassTable::resolve(
        mof::parse(
            "class Msvm_X { string Name; uint16 Quantity[]; uint32 Count; uint8 None[];
               [EmbeddedInstance(\"Msvm_Y\")] string Inner; };",
        )
        .expect("mof")
        .classes,
    )
    .expect("schema");
    let i = read(text, &Context::with(&schema)).expect("typed");
    assert_eq!(
        (i.class.as_str(), i.get_str("Name")),
        ("Msvm_X", Some("a\\b"))
    );
    let quantity = i.property("Quantity").expect("Quantity");
    assert_eq!(quantity.name.as_str(), "Quantity");
    assert_eq!(quantity.value, Value::from(vec![1u16, 2]));
    assert_eq!(i.get("Count"), &Value::Uint32(7));
    assert!(
        i.property("None")
            .is_some_and(|p| p.array && p.ty == Type::Uint8)
    );
    assert_eq!(
        read_plain(i.get_str("Inner").expect("text")).get("A"),
        &Value::Uint64(1)
    );
    assert_eq!(
        i.get("More"),
        &Value::Uint64(5),
        "what the schema does not know stays"
    );

    let wrong = read(
        "instance of Msvm_X { Count = -1; };",
        &Context::with(&schema),
    );
    let err = wrong.expect_err("negative");
    assert_eq!(
        err.to_string(),
        "property Count of Msvm_X has the wrong type"
    );
    assert!(matches!(
        read("class C {};", &Context::default()),
        Err(EmbeddedError::MofCount(0))
    ));
    assert!(matches!(
        read("hello", &Context::default()),
        Err(EmbeddedError::Mof(_))
    ));
}

#[test]
fn what_is_written_reads_back_the_same() {
    let mut i = Instance::new("Msvm_Error")
        .with("Message", "a \"b\" <c> & \u{e9}\n")
        .with("Codes", vec![1u32, 2])
        .with("Empty", "")
        .with("Ref", Path::class("X").key("K", "a\\b"))
        .with(
            "When",
            Value::from_text(Type::Datetime, "20261120184500.000000+000").expect("datetime"),
        );
    i.properties.push(Property {
        name: "Nothing".into(),
        ty: Type::Uint16,
        array: true,
        value: Value::Null,
    });
    let text = write(&i);
    assert!(text.starts_with(
        "<INSTANCE CLASSNAME=\"Msvm_Error\"><PROPERTY NAME=\"Message\" TYPE=\"string\"><VALUE>"
    ));
    assert_eq!(read_plain(&text), i);
}

#[test]
fn an_embedded_instance_inside_another_stays_text() {
    let inner = Instance::new("Msvm_VirtualMachineToDisks").with("VirtualMachineId", "<x>");
    let outer = Instance::new("C").with("Settings", vec![inner.clone()]);
    let read_back = read_plain(&write(&outer));
    let text = read_back
        .get("Settings")
        .items()
        .first()
        .and_then(Value::as_str)
        .expect("text");
    assert_eq!(read_plain(text), inner);
    let objects = coerce(
        read_back.get("Settings").clone(),
        Type::Object,
        true,
        &Context::default(),
    );
    assert_eq!(objects, Ok(Value::from(vec![inner])));
}

#[test]
fn what_is_no_instance_is_refused() {
    assert!(matches!(
        read(" \n", &Context::default()),
        Err(EmbeddedError::Empty)
    ));
    assert!(matches!(
        read("<CLASS NAME='C'/>", &Context::default()),
        Err(EmbeddedError::NotAnInstance(_))
    ));
    assert!(matches!(
        read("<INSTANCE", &Context::default()),
        Err(EmbeddedError::Xml(_))
    ));
    assert!(matches!(
        read("<INSTANCE/>", &Context::default()),
        Err(EmbeddedError::CimXml(_))
    ));
    let bomb = "<!DOCTYPE a [<!ENTITY x 'y'>]><INSTANCE CLASSNAME='&x;'/>";
    assert!(matches!(
        read(bomb, &Context::default()),
        Err(EmbeddedError::Xml(_))
    ));
}

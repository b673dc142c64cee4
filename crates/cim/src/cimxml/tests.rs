use std::borrow::Cow;

use super::*;
use crate::xml::{Limits, Writer, parse_str};
use crate::{Class, Instance, Literal, Name, Path, Property, Qualifier, Type, Value};

fn element(text: &str) -> Element {
    parse_str(text, &Limits::default()).expect(text)
}

fn written(write: impl FnOnce(&mut Writer)) -> String {
    let mut w = Writer::new();
    write(&mut w);
    w.finish()
}

fn sample_path() -> Path {
    Path::class("Msvm_ReferencePointOfVirtualSystem")
        .key(
            "Antecedent",
            Path::class("Msvm_ComputerSystem").key("Name", "a\\b\"c"),
        )
        .key("Slot", 7u64)
        .key("On", true)
        .in_namespace("root\\virtualization\\v2")
        .on_host("H")
}

#[test]
fn paths_survive_at_every_length() {
    let full = sample_path();
    let mut local = full.clone();
    local.host = None;
    let mut bare = local.clone();
    bare.namespace = None;
    for (path_in, tag) in [
        (&full, "INSTANCEPATH"),
        (&local, "LOCALINSTANCEPATH"),
        (&bare, "INSTANCENAME"),
    ] {
        let text = written(|w| write_path(w, path_in));
        assert!(text.starts_with(&format!("<{tag}")), "{text}");
        let (read, target) = path(&element(&text)).expect("path");
        assert_eq!((&read, target), (path_in, Target::Instance));
        assert_eq!(read.host, path_in.host);
        assert_eq!(read.namespace, path_in.namespace);
    }
    let class = Path::class("CIM_X").in_namespace("root/interop");
    let text = written(|w| write_class_path(w, &class));
    assert_eq!(
        text,
        "<LOCALCLASSPATH><LOCALNAMESPACEPATH><NAMESPACE NAME=\"root\"/><NAMESPACE NAME=\"interop\"/>\
         </LOCALNAMESPACEPATH><CLASSNAME NAME=\"CIM_X\"/></LOCALCLASSPATH>"
    );
    assert_eq!(path(&element(&text)).expect("class").1, Target::Class);
}

#[test]
fn key_values_are_typed_by_either_attribute() {
    let key = |attributes: &str, text: &str| {
        let text = format!(
            "<INSTANCENAME CLASSNAME='C'><KEYBINDING NAME='K'><KEYVALUE {attributes}>{text}</KEYVALUE>\
             </KEYBINDING></INSTANCENAME>"
        );
        path(&element(&text)).map(|(p, _)| p.get("k").cloned())
    };
    assert_eq!(key("", " a "), Ok(Some(Value::from(" a "))));
    assert_eq!(key("VALUETYPE='numeric'", "5"), Ok(Some(Value::Uint64(5))));
    assert_eq!(
        key("VALUETYPE='numeric' TYPE='uint8'", "5"),
        Ok(Some(Value::Uint8(5)))
    );
    assert_eq!(
        key("VALUETYPE='boolean'", "TRUE"),
        Ok(Some(Value::Boolean(true)))
    );
    assert!(key("VALUETYPE='numeric'", "five").is_err());
    assert!(key("VALUETYPE='odd'", "5").is_err());
}

#[test]
fn an_instance_is_written_to_the_letter() {
    let mut instance = Instance::new("C")
        .with("Name", "a<b")
        .with("State", vec![2u16, 3])
        .with("Inner", Instance::new("D").with("X", "&"));
    instance.properties.push(Property {
        name: Name::of("Ref"),
        ty: Type::Reference,
        array: false,
        value: Path::class("E").key("K", "v").into(),
    });
    instance.properties.push(Property {
        name: Name::of("None"),
        ty: Type::Uint8,
        array: true,
        value: Value::Null,
    });
    let text = written(|w| write_instance(w, &instance, &InstanceShape::default()));
    assert_eq!(
        text,
        "<INSTANCE CLASSNAME=\"C\">\
         <PROPERTY NAME=\"Name\" TYPE=\"string\"><VALUE>a&lt;b</VALUE></PROPERTY>\
         <PROPERTY.ARRAY NAME=\"State\" TYPE=\"uint16\"><VALUE.ARRAY><VALUE>2</VALUE><VALUE>3</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>\
         <PROPERTY NAME=\"Inner\" TYPE=\"string\" EmbeddedObject=\"instance\"><VALUE>&lt;INSTANCE CLASSNAME=\"D\"&gt;\
         &lt;PROPERTY NAME=\"X\" TYPE=\"string\"&gt;&lt;VALUE&gt;&amp;amp;&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;</VALUE></PROPERTY>\
         <PROPERTY.REFERENCE NAME=\"Ref\"><VALUE.REFERENCE><INSTANCENAME CLASSNAME=\"E\"><KEYBINDING NAME=\"K\">\
         <KEYVALUE VALUETYPE=\"string\" TYPE=\"string\">v</KEYVALUE></KEYBINDING></INSTANCENAME></VALUE.REFERENCE></PROPERTY.REFERENCE>\
         <PROPERTY.ARRAY NAME=\"None\" TYPE=\"uint8\"></PROPERTY.ARRAY></INSTANCE>"
    );
    let only = [Name::of("name")];
    let shape = InstanceShape {
        properties: Some(&only),
        ..InstanceShape::default()
    };
    assert_eq!(
        written(|w| write_instance(w, &instance, &shape)),
        "<INSTANCE CLASSNAME=\"C\"><PROPERTY NAME=\"Name\" TYPE=\"string\"><VALUE>a&lt;b</VALUE></PROPERTY></INSTANCE>"
    );
}

#[test]
fn parameters_tell_type_and_kind() {
    let read = |text: &str| param_value(&element(text)).expect(text);
    let (name, value) = read(
        "<PARAMVALUE NAME='A' PARAMTYPE='uint16'><VALUE.ARRAY><VALUE>1</VALUE><VALUE.NULL/></VALUE.ARRAY></PARAMVALUE>",
    );
    assert_eq!(name, "a");
    assert_eq!(value, Value::Array(vec![Value::Uint16(1), Value::Null]));
    assert_eq!(read("<PARAMVALUE NAME='A'/>").1, Value::Null);
    assert_eq!(
        read("<IPARAMVALUE NAME='C'><CLASSNAME NAME='CIM_X'/></IPARAMVALUE>").1,
        Value::from(Path::class("CIM_X"))
    );
    assert!(matches!(
        read("<IPARAMVALUE NAME='I'><INSTANCE CLASSNAME='C'/></IPARAMVALUE>").1,
        Value::Object(_)
    ));
    let text = written(|w| {
        write_param_value(w, "Job", &Path::class("J").key("K", "1").into(), None);
        write_param_value(w, "None", &Value::Null, None);
        write_return_value(w, &Value::Uint32(4096));
    });
    assert_eq!(
        text,
        "<PARAMVALUE NAME=\"Job\" PARAMTYPE=\"reference\"><VALUE.REFERENCE><INSTANCENAME CLASSNAME=\"J\"><KEYBINDING NAME=\"K\">\
         <KEYVALUE VALUETYPE=\"string\" TYPE=\"string\">1</KEYVALUE></KEYBINDING></INSTANCENAME></VALUE.REFERENCE></PARAMVALUE>\
         <PARAMVALUE NAME=\"None\" PARAMTYPE=\"string\"/>\
         <RETURNVALUE PARAMTYPE=\"uint32\"><VALUE>4096</VALUE></RETURNVALUE>"
    );
}

#[test]
fn wrong_elements_are_refused_with_their_place() {
    for text in [
        "<INSTANCE/>",
        "<INSTANCE CLASSNAME='C'><PROPERTY TYPE='string'/></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A' TYPE='uint8'><VALUE>300</VALUE></PROPERTY></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A' TYPE='odd'/></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A'/><PROPERTY NAME='a'/></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A'>5</PROPERTY></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A'><VALUE/><VALUE/></PROPERTY></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><PROPERTY NAME='A'><VALUE.ARRAY/></PROPERTY></INSTANCE>",
        "<INSTANCE CLASSNAME='C'><ODD NAME='A'/></INSTANCE>",
        "<ODD/>",
    ] {
        let err = instance(&element(text)).expect_err(text);
        assert_eq!(err.line, 1, "{err}");
    }
}

fn declaration(name: &'static str, ty: Type) -> crate::Declaration {
    crate::Declaration {
        name: Name::of(name),
        ty,
        ref_class: (ty == Type::Reference).then(|| Name::of("CIM_Job")),
        array: false,
        array_size: None,
        default: Literal::Null,
        qualifiers: Cow::Owned(vec![Qualifier {
            name: Name::of("Key"),
            value: Literal::Boolean(true),
        }]),
        origin: Some(Name::of("C")),
    }
}

#[test]
fn a_class_survives_the_way_out_and_in() {
    let mut state = declaration("State", Type::Uint16);
    state.array = true;
    state.array_size = Some(3);
    state.default = Literal::List(Cow::Owned(vec![Literal::Integer(2)]));
    state.origin = Some(Name::of("B"));
    state.qualifiers = Cow::Owned(vec![Qualifier {
        name: Name::of("ValueMap"),
        value: Literal::List(Cow::Owned(vec![Literal::Text("2".into())])),
    }]);
    let method = crate::Method {
        name: Name::of("Do"),
        return_type: Type::Uint32,
        qualifiers: Cow::Borrowed(&[]),
        parameters: Cow::Owned(vec![crate::Declaration {
            origin: None,
            ..declaration("Job", Type::Reference)
        }]),
        origin: Some(Name::of("C")),
    };
    let wanted = Class {
        name: Name::of("C"),
        superclass: Some(Name::of("B")),
        qualifiers: Cow::Owned(vec![Qualifier {
            name: Name::of("Version"),
            value: Literal::Text("1.0".into()),
        }]),
        properties: Cow::Owned(vec![
            declaration("Name", Type::String),
            state,
            declaration("Ref", Type::Reference),
        ]),
        methods: Cow::Owned(vec![method]),
    };
    let whole = ClassShape {
        class_origin: true,
        ..ClassShape::default()
    };
    let text = written(|w| write_class(w, &wanted, &whole));
    assert_eq!(class(&element(&text)).expect("class"), wanted, "{text}");
    assert!(text.contains(
        "<PROPERTY.ARRAY NAME=\"State\" TYPE=\"uint16\" ARRAYSIZE=\"3\" CLASSORIGIN=\"B\" PROPAGATED=\"true\">"
    ));
    assert!(text.contains("<QUALIFIER NAME=\"Key\" TYPE=\"boolean\" OVERRIDABLE=\"false\"><VALUE>true</VALUE></QUALIFIER>"));

    let lean = ClassShape {
        local_only: true,
        qualifiers: false,
        ..ClassShape::default()
    };
    let text = written(|w| write_class(w, &wanted, &lean));
    assert_eq!(
        text,
        "<CLASS NAME=\"C\" SUPERCLASS=\"B\"><PROPERTY NAME=\"Name\" TYPE=\"string\"/>\
         <PROPERTY.REFERENCE NAME=\"Ref\" REFERENCECLASS=\"CIM_Job\"/>\
         <METHOD NAME=\"Do\" TYPE=\"uint32\"><PARAMETER.REFERENCE NAME=\"Job\" REFERENCECLASS=\"CIM_Job\"/></METHOD></CLASS>"
    );
}

#[test]
fn qualifier_declarations_tell_scope_and_flavor() {
    let key = crate::standard_qualifier("Key").expect("Key");
    assert_eq!(
        written(|w| write_qualifier_declaration(w, key)),
        "<QUALIFIER.DECLARATION NAME=\"Key\" TYPE=\"boolean\" ISARRAY=\"false\" OVERRIDABLE=\"false\">\
         <SCOPE REFERENCE=\"true\" PROPERTY=\"true\"/><VALUE>false</VALUE></QUALIFIER.DECLARATION>"
    );
}

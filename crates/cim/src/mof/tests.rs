use super::*;
use crate::{Literal, Name, Type, Value, has_qualifier, qualifier};

const CLASSES: &str = r#"
// what a file begins with
#pragma locale ("en_US")
#pragma namespace("root\\virtualization\\v2")
Qualifier Key : boolean = false, Scope(property, reference), Flavor(DisableOverride, ToSubclass);
Qualifier Values : string[], Scope(any), Flavor(Translatable);
/* a class
   with everything */
[Abstract, Version("1" ".0"): Restricted, Description ( "say \"a\\b\"\n\x41" ) : Translatable ToSubclass]
class Msvm_Job as $Job : CIM_Job {
    [Key, ValueMap{"0", "4096.."}, Values {"Completed", "Rest"}, MaxLen(256)] string InstanceID = "x" "y";
    uint16 State[] = {2, 0x10, 101b, -5, +7, 010};
    [Read(false)] CIM_Thing ref Owner;
    boolean Done = TRUE;
    real64 Part = 1.5E1;
    char16 Letter = 'a';
    uint8 Bits[4];
    object Inner;
    datetime When = NULL;
    [Static] uint32 Go([In] uint16 A, [In(false), Out, EmbeddedInstance("CIM_Error")] string Errors[], [Out] CIM_ConcreteJob REF Job);
    uint32 Stop();
};
class Empty {};
"#;

#[test]
fn every_part_of_a_class_is_read() {
    let mof = parse(CLASSES).expect("classes");
    assert_eq!(
        mof.pragmas[1],
        (
            "namespace".to_owned(),
            "root\\virtualization\\v2".to_owned()
        )
    );
    let [key, values] = mof.qualifiers.as_slice() else {
        panic!("two qualifiers")
    };
    assert!(!key.overridable && key.to_subclass && key.scopes.len() == 2);
    assert!(values.array && values.translatable && values.default == Literal::Null);
    let [job, empty] = mof.classes.as_slice() else {
        panic!("two classes")
    };
    assert_eq!(job.superclass, Some(Name::of("CIM_Job")));
    assert!(job.is_abstract() && !has_qualifier(&job.qualifiers, "Association"));
    assert_eq!(
        qualifier(&job.qualifiers, "version").and_then(Literal::as_text),
        Some("1.0")
    );
    assert_eq!(
        qualifier(&job.qualifiers, "Description").and_then(Literal::as_text),
        Some("say \"a\\b\"\nA")
    );
    let of = |name: &str| job.property(name).expect(name);
    assert!(of("instanceid").is_key());
    assert_eq!(of("InstanceID").default, Literal::Text("xy".into()));
    assert_eq!(
        of("State").default.to_value(Type::Sint16, true),
        Some(Value::from(vec![2i16, 16, 5, -5, 7, 8]))
    );
    assert_eq!(
        (of("Owner").ty, of("Owner").ref_class.clone()),
        (Type::Reference, Some("CIM_Thing".into()))
    );
    assert_eq!(of("Part").default, Literal::Real(15.0));
    assert_eq!(of("Letter").default, Literal::Text("a".into()));
    assert_eq!((of("Bits").array, of("Bits").array_size), (true, Some(4)));
    assert_eq!(of("Inner").ty, Type::Object);
    let go = job.method("go").expect("Go");
    let directions: Vec<_> = go
        .parameters
        .iter()
        .map(|p| (p.is_in(), p.is_out(), p.array))
        .collect();
    assert_eq!(
        directions,
        [
            (true, false, false),
            (false, true, true),
            (false, true, false)
        ]
    );
    assert_eq!(go.parameters[1].embedded_class(), Some("CIM_Error"));
    assert_eq!(job.methods.len(), 2);
    assert!(empty.properties.is_empty() && empty.superclass.is_none());
}

#[test]
fn instances_with_nested_ones_are_read() {
    let mof = parse(
        "\u{feff}instance of Msvm_X as $x {\n A = \"b\\\\c\" \"d\"; c = {1, -2}; E = {}; n = NULL; t = true; r = -1.5;\n\
         i = instance of Y { Z = 1; }; l = { instance of Y {} };\n}",
    )
    .expect("instance");
    let [x] = mof.instances.as_slice() else {
        panic!("one instance")
    };
    assert_eq!(x.get_str("a"), Some("b\\cd"));
    assert_eq!(x.get("C").items(), [Value::Sint64(1), Value::Sint64(-2)]);
    assert_eq!(x.get("E"), &Value::Array(vec![]));
    assert!(x.property("n").is_some_and(|p| p.value.is_null()));
    assert_eq!(x.get("r"), &Value::Real64(-1.5));
    assert_eq!(x.get("i"), &Value::from(Instance::new("Y").with("Z", 1u64)));
    assert_eq!(x.get("l").items().len(), 1);
}

#[test]
fn an_error_says_where_and_what() {
    let cases = [
        (
            "class X {\n  strin A;\n};",
            2,
            3,
            "strin is no type, and no REF follows",
        ),
        ("class X { string A }", 1, 20, "'}' instead of ';'"),
        ("class X {}", 1, 11, "the end instead of ';'"),
        (
            "instance of X { A = 1; a = 2; };",
            1,
            26,
            "the property a stands twice",
        ),
        (
            "instance of X { A = \"x };",
            1,
            26,
            "the string is not closed",
        ),
        (
            "instance of X { A = $b; };",
            1,
            21,
            "the alias $b as a value is not supported",
        ),
        (
            "instance of X { A = 340282366920938463463374607431768211455; };",
            1,
            60,
            "",
        ),
        (
            "instance of X { A = 99999999999999999999; };",
            1,
            21,
            "the number is too large",
        ),
        (
            "instance of X { A = {1, \"a\"}; };",
            1,
            21,
            "a list holds values of one type",
        ),
        ("instance of X { A = {{1}}; };", 1, 21, "a list in a list"),
        (
            "class X { string A = \"\\q\"; };",
            1,
            24,
            "an unknown escape after '\\'",
        ),
        ("/* x", 1, 1, "the comment is not closed"),
        ("? ", 1, 1, "'?' does not belong here"),
    ];
    for (text, line, column, message) in cases {
        let err = parse(text).expect_err(text);
        assert_eq!((err.line, err.column), (line, column), "{text}: {err}");
        assert!(err.message.contains(message), "{text}: {err}");
    }
}

#[test]
fn nesting_has_a_bound() {
    let nested = |levels: usize| {
        format!(
            "class X {{ uint8 A[] = {}1{}; }};",
            "{".repeat(levels),
            "}".repeat(levels)
        )
    };
    assert!(parse(&nested(10)).is_ok());
    for levels in [20, 100_000] {
        assert!(
            parse(&nested(levels))
                .expect_err("deep")
                .message
                .contains("too deeply")
        );
    }
    let inner = "instance of X { A = ".repeat(50_000);
    assert!(
        parse(&inner)
            .expect_err("deep")
            .message
            .contains("too deeply")
    );
}

use super::*;
use crate::{ClassTable, Datetime, Instance, mof};

fn schema() -> ClassTable {
    let classes = mof::parse(
        "class CIM_System { [Key] string CreationClassName; [Key] string Name; };
         class Msvm_ComputerSystem : CIM_System { string ElementName; uint16 EnabledState; uint32 ProcessID;
           uint16 OperationalStatus[]; boolean On; datetime TimeOfLastStateChange; datetime Up; string Address; real64 Load;
           [EmbeddedInstance(\"CIM_System\")] string Inner; };
         [Association] class CIM_Affected { [Key] CIM_System REF AffectedElement; };",
    );
    ClassTable::resolve(classes.expect("mof").classes).expect("schema")
}

const ID: &str = "4764334D-E001-4176-82EE-5594EC9B530E";

fn machine() -> Instance {
    let at: Datetime = "20261120184500.000000+060".parse().expect("datetime");
    let up: Datetime = "00000000000500.000000:000".parse().expect("interval");
    Instance::new("Msvm_ComputerSystem")
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", ID)
        .with("ElementName", "It's Caf\u{e9} \\ one")
        .with("EnabledState", 2u16)
        .with("ProcessID", Value::Null)
        .with("OperationalStatus", vec![2u16, 32768])
        .with("On", true)
        .with("TimeOfLastStateChange", at)
        .with("Up", up)
        .with("Address", "0")
        .with("Load", 0.5)
        .with(
            "Inner",
            Instance::new("Msvm_ComputerSystem").with("Name", "inner"),
        )
}

fn select(text: &str) -> Select {
    match parse(text) {
        Ok(Query::Select(select)) => select,
        other => panic!("{text}: {other:?}"),
    }
}

fn holds(condition: &str, instance: &Instance) -> bool {
    let schema = schema();
    let env = Environment {
        schema: &schema,
        host: "HV1",
        namespace: "root/virtualization/v2",
    };
    select(&format!(
        "SELECT * FROM {} WHERE {condition}",
        instance.class
    ))
    .matches(instance, &env)
}

#[test]
fn conditions_hold_as_clients_expect() {
    let id = ID.to_lowercase();
    for condition in [
        "Name != __SERVER ",
        "Name != __SERVER AND (EnabledState != 0 and EnabledState != 3 and EnabledState != 32769) ",
        &format!("Name='{id}'"),
        &format!("nAmE = \"{id}\" AND ElementName = 'it\\'s CAF\u{c9} \\\\ One'"),
        "ElementName = 'It\\'s Caf\u{e9} \\ one'",
        "ElementName = \"It's Caf\u{e9} \\\\\\\\ one\"",
        "ElementName LIKE '%%caf\u{e9}%%'",
        "ElementName LIKE '% \\\\ one'",
        "ElementName NOT LIKE 'x%'",
        "EnabledState = '2' AND EnabledState = 0x2 AND 2 = EnabledState AND EnabledState > -1",
        "EnabledState >= 2 AND EnabledState <= 2 AND EnabledState < 2.5 AND NOT EnabledState <> 2",
        "Address = 0 AND Address = '0'",
        "ProcessID IS NULL AND ProcessID = NULL AND Missing is null",
        "Name IS NOT NULL AND Name <> NULL",
        "NOT (ProcessID IS NOT NULL) AND (ProcessID = 5 OR On = TRUE)",
        "On = 'true' AND On = 1 AND On != false",
        "OperationalStatus = 32768 AND OperationalStatus != 5 AND OperationalStatus LIKE '32%'",
        "TimeOfLastStateChange = '20261120174500.000000+000'",
        "TimeOfLastStateChange > '2026-11-20T17:44:59Z' AND Up = 'PT5M'",
        "Load > 0.25 AND Load = '0.5' AND Load < 1 AND Load < 5e-1 OR Load = 0.5",
        "__CLASS = 'msvm_computersystem' AND __SUPERCLASS = 'CIM_System'",
        "__DERIVATION = 'CIM_System' AND __DYNASTY = 'CIM_System' AND __SERVER = 'hv1'",
        "__NAMESPACE = 'ROOT\\\\virtualization\\\\v2'",
        "__THIS ISA 'CIM_System' AND __CLASS ISA Msvm_ComputerSystem",
        "Inner ISA 'CIM_System' AND Inner.Name = 'INNER' AND Msvm_ComputerSystem.On = TRUE",
        &format!(
            "__PATH = '\\\\\\\\hv1\\\\Root\\\\Virtualization\\\\V2:Msvm_ComputerSystem.CreationClassName=\"Msvm_ComputerSystem\",Name=\"{id}\"'"
        ),
        &format!(
            "__RELPATH = 'Msvm_ComputerSystem.Name=\"{id}\",CreationClassName=\"Msvm_ComputerSystem\"'"
        ),
    ] {
        assert!(holds(condition, &machine()), "{condition}");
    }
}

#[test]
fn conditions_fail_where_they_should() {
    for condition in [
        "Name = __SERVER",
        "EnabledState = 0 or EnabledState = 3 or EnabledState = 32769",
        "ProcessID = 5",
        "ProcessID != 5",
        "NOT ProcessID = 5",
        "NOT ProcessID != 5",
        "ProcessID < 5 OR ProcessID >= 5",
        "Name IS NULL",
        "OperationalStatus = 5",
        "OperationalStatus != 2",
        "Name = 5",
        "EnabledState = 'two'",
        "EnabledState < 'two'",
        "On = 'maybe'",
        "TimeOfLastStateChange < 'PT5M'",
        "__PATH = 'nonsense'",
        "__THIS ISA 'CIM_Job'",
        "Name ISA 'CIM_System'",
        "ElementName LIKE 'Caf'",
    ] {
        assert!(!holds(condition, &machine()), "{condition}");
    }
}

#[test]
fn backslashes_match_doubled_and_single() {
    let setting = Instance::new("CIM_System").with("Name", "Microsoft:ABC\\83F8\\0\\0\\D");
    for literal in [
        "microsoft:abc\\83f8\\0\\0\\d",
        "Microsoft:ABC\\\\83F8\\\\0\\\\0\\\\D",
        "Microsoft:ABC\\\\\\\\83F8\\\\\\\\0\\\\\\\\0\\\\\\\\D",
    ] {
        assert!(holds(&format!("Name = '{literal}'"), &setting), "{literal}");
    }
    assert!(holds("Name LIKE 'Microsoft:ABC\\\\%\\D'", &setting));
    assert!(!holds("Name = 'Microsoft:ABC83F800D'", &setting));
}

#[test]
fn references_are_compared_as_paths() {
    let job = Instance::new("CIM_Affected").with(
        "AffectedElement",
        Path::class("Msvm_ComputerSystem")
            .key("Name", "a\\b")
            .in_namespace("root/virtualization/v2"),
    );
    for literal in [
        "\\\\\\\\OTHER\\\\root\\\\virtualization\\\\v2:msvm_computersystem.name=\"A\\\\\\\\b\"",
        "\\\\HV1\\root\\virtualization\\v2:Msvm_ComputerSystem.Name=\"a\\\\b\"",
        "//HV1/root/virtualization/v2:Msvm_ComputerSystem.Name=\"a\\b\"",
        "Msvm_ComputerSystem.Name=\\'a\\b\\'",
    ] {
        assert!(
            holds(&format!("AffectedElement = '{literal}'"), &job),
            "{literal}"
        );
        assert!(
            !holds(&format!("AffectedElement != '{literal}'"), &job),
            "{literal}"
        );
    }
    assert!(!holds(
        "AffectedElement = 'Msvm_ComputerSystem.Name=\"c\"'",
        &job
    ));
    assert!(!holds(
        "AffectedElement < 'Msvm_ComputerSystem.Name=\"c\"'",
        &job
    ));
    assert!(holds("AffectedElement ISA 'CIM_System'", &job));
}

#[test]
fn subclasses_count_and_other_classes_do_not() {
    let schema = schema();
    let env = Environment {
        schema: &schema,
        host: "HV1",
        namespace: "root/virtualization/v2",
    };
    assert!(select("select * from cim_system").matches(&machine(), &env));
    assert!(!select("select * from CIM_Affected").matches(&machine(), &env));
    assert!(
        !select("select * from Msvm_ComputerSystem").matches(&Instance::new("CIM_System"), &env)
    );
}

#[test]
fn a_projection_keeps_what_was_asked_for() {
    let mut wanted = machine();
    wanted.path = Some(Path::class("Msvm_ComputerSystem").key("Name", ID));
    let found =
        select("SELECT enabledstate, Name,__PATH FROM Msvm_ComputerSystem").project(wanted.clone());
    let names: Vec<_> = found.properties.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["Name", "EnabledState"]);
    assert_eq!(found.path, wanted.path);
    assert_eq!(select("SELECT * FROM X").project(wanted.clone()), wanted);
}

#[test]
fn equalities_that_must_hold_are_told() {
    let query = select(
        "SELECT * FROM X WHERE A = 'x' AND (B = 1 AND (C = 2 OR D = 3)) AND 5 = E AND NOT F = 6 AND G != 7 AND H.I = 8",
    );
    let found = query.key_equalities();
    assert_eq!(
        found,
        [
            (&Name::of("A"), &Value::from("x")),
            (&Name::of("B"), &Value::Uint64(1)),
            (&Name::of("E"), &Value::Uint64(5)),
        ]
    );
    assert!(
        select("SELECT * FROM X WHERE A = 1 OR B = 2")
            .key_equalities()
            .is_empty()
    );
}

#[test]
fn unknown_properties_are_found() {
    let schema = schema();
    let unknown = |text: &str| select(text).unknown_property(&schema).map(Name::to_string);
    assert_eq!(
        unknown("SELECT Name, __PATH FROM CIM_System WHERE __CLASS = 'x'"),
        None
    );
    assert_eq!(unknown("SELECT Odd FROM CIM_System"), Some("Odd".into()));
    assert_eq!(
        unknown("SELECT * FROM CIM_System WHERE Name = 'x' OR NOT (Even IS NULL)"),
        Some("Even".into())
    );
    assert_eq!(unknown("SELECT Odd FROM Unknown"), None);
}

#[test]
fn walks_are_read_with_all_their_clauses() {
    let text = "associators of {\\\\.\\root\\virtualization\\v2:Msvm_ComputerSystem.CreationClassName='Msvm_ComputerSystem',Name='a}\\b'} \
                where AssocClass = Msvm_SettingsDefineState resultclass=\"Msvm_VirtualSystemSettingData\" Role = A ResultRole = B KeysOnly";
    let Ok(Query::Associators(walk)) = parse(text) else {
        panic!("{:?}", parse(text))
    };
    assert_eq!(walk.path.get_str("Name"), Some("a}\\b"));
    assert_eq!(
        walk.path.namespace.as_deref(),
        Some("root/virtualization/v2")
    );
    assert_eq!(walk.assoc_class, Some("Msvm_SettingsDefineState".into()));
    assert_eq!(
        walk.result_class,
        Some("Msvm_VirtualSystemSettingData".into())
    );
    assert_eq!(
        (walk.role, walk.result_role),
        (Some("A".into()), Some("B".into()))
    );
    assert!(walk.keys_only && !walk.class_defs_only);
    let Ok(Query::References(walk)) =
        parse("REFERENCES OF {X.K=1} WHERE ResultClass = Y ClassDefsOnly")
    else {
        panic!("references")
    };
    assert!(walk.class_defs_only);
    assert!(matches!(
        parse("ASSOCIATORS OF {X.K=\"1\"}"),
        Ok(Query::Associators(_))
    ));
}

#[test]
fn within_and_dotted_names_are_read() {
    let query = select(
        "SELECT TargetInstance.Name FROM __InstanceModificationEvent WITHIN 2 WHERE TargetInstance ISA \"Msvm_ComputerSystem\"",
    );
    assert_eq!(query.within, Some(2.0));
    assert_eq!(
        query.properties,
        Some(vec![Name::of("TargetInstance.Name")])
    );
    assert!(matches!(query.filter, Some(Condition::IsA { .. })));
}

#[test]
fn an_error_says_where_and_what() {
    for (text, line, column, message) in [
        ("", 1, 1, "the end instead of SELECT"),
        ("DELETE FROM X", 1, 1, "\"DELETE\" instead of SELECT"),
        ("SELECT * FROM", 1, 14, "the end instead of a class"),
        (
            "SELECT *\nFROM X\n  WHERE A ~ 1",
            3,
            11,
            "'~' does not belong here",
        ),
        (
            "SELECT * FROM X WHERE A",
            1,
            24,
            "the end instead of a comparison",
        ),
        (
            "SELECT * FROM X WHERE (A = 1",
            1,
            29,
            "the end instead of ')'",
        ),
        (
            "SELECT * FROM X WHERE A = 'x",
            1,
            27,
            "the string is not closed",
        ),
        ("SELECT * FROM X WHERE A < NULL", 1, 25, "NULL has no order"),
        ("SELECT * FROM X WHERE A = 1z", 1, 27, "\"1z\" is no number"),
        (
            "SELECT * FROM X ORDER BY A",
            1,
            17,
            "ORDER is not supported",
        ),
        (
            "SELECT * FROM X WHERE A = 1 B",
            1,
            29,
            "\"B\" instead of the end",
        ),
        (
            "ASSOCIATORS OF {X.K=",
            1,
            16,
            "the closing brace is missing",
        ),
        ("ASSOCIATORS OF {X.K}", 1, 16, "not an object path"),
        (
            "ASSOCIATORS OF {X.K=1} WHERE",
            1,
            29,
            "a clause such as ResultClass",
        ),
        (
            "ASSOCIATORS OF {X.K=1} WHERE Role = A Role = B",
            1,
            39,
            "Role stands twice",
        ),
        (
            "REFERENCES OF {X.K=1} WHERE AssocClass = A",
            1,
            29,
            "a clause such as ResultClass",
        ),
    ] {
        let err = parse(text).expect_err(text);
        assert_eq!((err.line, err.column), (line, column), "{text}: {err}");
        assert!(err.message.contains(message), "{text}: {err}");
    }
}

#[test]
fn size_and_nesting_are_bounded() {
    let nested = |n: usize| {
        format!(
            "SELECT * FROM X WHERE {}A=1{}",
            "(".repeat(n),
            ")".repeat(n)
        )
    };
    assert!(parse(&nested(60)).is_ok());
    assert!(
        parse(&nested(65))
            .expect_err("deep")
            .message
            .contains("too deeply")
    );
    assert!(
        parse(&format!(
            "SELECT * FROM X WHERE {} A=1",
            "NOT ".repeat(10_000)
        ))
        .is_err()
    );
    assert!(
        parse(&" ".repeat(70_000))
            .expect_err("long")
            .message
            .contains("64 KiB")
    );
    let wide = |n: usize| {
        let conditions = vec!["A = 1"; n].join(" OR ");
        parse(&format!("SELECT * FROM X WHERE {conditions}"))
    };
    assert!(wide(5_000).is_ok());
    let error = wide(5_001).expect_err("wide");
    assert!(error.message.contains("5000 conditions"), "{error}");
    let dotted = |n: usize| {
        let names = vec!["X"; n].join(".");
        parse(&format!("SELECT * FROM X WHERE {names} = 1"))
    };
    assert!(dotted(16).is_ok());
    let error = dotted(17).expect_err("dotted");
    assert!(error.message.contains("16 names"), "{error}");
    let like = |pattern: &str| parse(&format!("SELECT * FROM X WHERE A LIKE {pattern}"));
    assert!(like(&format!("'{}'", "[".repeat(1024))).is_ok());
    let error = like(&format!("'{}'", "[".repeat(18_000))).expect_err("a long pattern");
    assert!(error.message.contains("1024 characters"), "{error}");
    assert!(like("NULL").is_err());
    assert!(like("B").is_err(), "WMI takes no property there either");
}

#[test]
fn a_quoted_literal_stands_for_its_text() {
    for text in ["", "a'b", "a\\b", "\\\\h\\", "\"x\"", "\\'"] {
        let query = select(&format!("SELECT * FROM X WHERE A = {}", quote(text)));
        assert_eq!(
            query.key_equalities(),
            [(&Name::of("A"), &Value::from(text))]
        );
    }
}

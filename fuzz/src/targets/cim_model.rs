//! Texts of the CIM model: XML, MOF, WQL, embedded instances, object paths, datetimes.

use super::Target;
use cim::Datetime;
use cim::xml::Limits;

pub(super) const XML: Target = Target {
    name: "xml",
    run: xml,
    limit: 4096,
    also: Some("crates/cim/tests/corpus/xml"),
    dictionary: &[
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>",
        "<?xml version=\"1.0\" encoding=\"utf-16\"?>",
        "<!DOCTYPE x [<!ENTITY a \"b\">]>",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "&lt;",
        "&amp;",
        "&#x10ffff;",
        "&#0;",
        "&a;",
        "xmlns:a=\"u\"",
        "xmlns=\"\"",
        "<a:b>",
        "</a:b>",
        "<b/>",
        "xsi:type=\"a:t\"",
        "\u{feff}",
    ],
};

fn xml(input: &[u8]) {
    cim::fuzz::xml(input);
    let tight = Limits {
        bytes: 4096,
        depth: 4,
        attributes: 3,
        elements: 20,
        text: 64,
    };
    if let Ok(document) = cim::xml::parse(input, &tight) {
        assert!(input.len() <= tight.bytes);
        assert!(
            depth(&document.root) <= tight.depth,
            "the bound on depth holds"
        );
    }
}

fn depth(element: &cim::xml::Element) -> usize {
    1 + element.children.iter().map(depth).max().unwrap_or(0)
}

pub(super) const MOF: Target = Target {
    name: "mof",
    run: cim::fuzz::mof,
    limit: 4096,
    also: Some("crates/cim/tests/corpus/mof"),
    dictionary: &[
        "class ",
        "instance of ",
        "qualifier ",
        "#pragma namespace (\"root/cimv2\")",
        "[key, read]",
        "[ValueMap{\"1\",\"..\"}: ToSubclass]",
        "uint8 ",
        "sint64 ",
        "real32 ",
        "string ",
        "boolean ",
        "datetime ",
        "char16 ",
        "REF ",
        "[]",
        "[4]",
        "{1, 2}",
        "NULL",
        "TRUE",
        "0x7f",
        "101b",
        "-1.5e300",
        "\"a\\x41\\n\" \"b\"",
        "'c'",
        "as $alias",
        "/*",
        "*/",
        "//",
        ";",
        "};",
        ": CIM_Base {",
    ],
};

pub(super) const WQL: Target = Target {
    name: "wql",
    run: cim::fuzz::wql,
    limit: 4096,
    also: Some("crates/cim/tests/corpus/wql"),
    dictionary: &[
        "SELECT * FROM ",
        "SELECT A, B.C FROM X",
        " WHERE ",
        " AND ",
        " OR ",
        "NOT ",
        "(",
        ")",
        " = ",
        " <> ",
        " != ",
        " <= ",
        " >= ",
        " LIKE '%a_[b-d]%'",
        " IS NULL",
        " IS NOT NULL",
        " ISA \"X\"",
        "__CLASS",
        "__SERVER",
        "__PATH",
        "__THIS",
        "'b\\\\c'",
        "\"b\\c\"",
        "TRUE",
        "NULL",
        "-1.5e3",
        "WITHIN 2",
        "ASSOCIATORS OF {X.K='v'}",
        "REFERENCES OF {X.K='v'}",
        "AssocClass = Y",
        "ResultClass = Y",
        "Role = Z",
        "ResultRole = Z",
        "KeysOnly",
        "ClassDefsOnly",
    ],
};

pub(super) const EMBEDDED: Target = Target {
    name: "embedded",
    run: cim::fuzz::embedded,
    limit: 4096,
    also: Some("crates/cim/tests/corpus/embedded"),
    dictionary: &[
        "<INSTANCE CLASSNAME=\"A\">",
        "</INSTANCE>",
        "<PROPERTY NAME=\"p\" TYPE=\"uint16\" MODIFIED=\"TRUE\">",
        "</PROPERTY>",
        "<PROPERTY.ARRAY NAME=\"p\" TYPE=\"string\">",
        "<PROPERTY.REFERENCE NAME=\"r\" REFERENCECLASS=\"A\">",
        "<VALUE>",
        "</VALUE>",
        "<VALUE.ARRAY>",
        "<VALUE.NULL/>",
        "<VALUE.REFERENCE>",
        "<INSTANCENAME CLASSNAME=\"A\">",
        "<KEYBINDING NAME=\"k\">",
        "<KEYVALUE VALUETYPE=\"numeric\">",
        "<INSTANCEPATH>",
        "<NAMESPACEPATH><HOST>",
        "<LOCALNAMESPACEPATH><NAMESPACE NAME=\"root\"/>",
        "EmbeddedObject=\"instance\"",
        "<QUALIFIER NAME=\"q\" TYPE=\"boolean\">",
        "<DECLGROUP>",
        "<VALUE.OBJECT>",
        "<CIM CIMVERSION=\"2.0\">",
        "instance of A { p = {1, \"x\"}; };",
        "20261120185230.000000+000",
        "00000001000000.000000:000",
    ],
};

pub(super) const PATH: Target = Target {
    name: "path",
    run: cim::fuzz::path,
    limit: 4096,
    also: Some("crates/cim/tests/corpus/path"),
    dictionary: &[
        "\\\\HOST\\",
        "//host/",
        "root\\virtualization\\v2:",
        "root/virtualization/v2:",
        "Msvm_ComputerSystem",
        ".",
        "Name=\"a\"",
        ",",
        "CreationClassName='b'",
        "=@",
        "\\\"",
        "\\\\",
        "True",
        "-1",
        "1.5",
        "Microsoft:0B1C\\\\0\\\\D",
        "R=\"C.K=\\\"v\\\"\"",
    ],
};

pub(super) const DATETIME: Target = Target {
    name: "datetime",
    run: datetime,
    limit: 4096,
    also: None,
    dictionary: &[
        "20261120185230.123456+060",
        "00000001000000.000000:000",
        "********",
        "2026-11-20T18:52:30Z",
        "P1DT2H3M4.5S",
        "+000",
        "-720",
        ":000",
    ],
};

fn datetime(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(time) = text.parse::<Datetime>() {
        let written = time.to_string();
        assert_eq!(
            written.parse::<Datetime>().ok(),
            Some(time),
            "by way of {written}"
        );
    }
    if let Ok(time) = Datetime::parse_lenient(&text) {
        let _ = (time.as_duration(), time.as_system_time(), time.to_xsd());
    }
}

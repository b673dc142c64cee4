//! CIM-XML over a real socket.

use cim::xml::{Element, Limits};

use crate::wire::{Connection, Got, Running, basic, post, start};

const PLACE: &str = "<LOCALNAMESPACEPATH><NAMESPACE NAME=\"root\"/><NAMESPACE NAME=\"virtualization\"/><NAMESPACE NAME=\"v2\"/></LOCALNAMESPACEPATH>";
const JOB: &str = "<INSTANCENAME CLASSNAME=\"Msvm_ConcreteJob\"><KEYBINDING NAME=\"InstanceID\"><KEYVALUE VALUETYPE=\"string\">J1</KEYVALUE></KEYBINDING></INSTANCENAME>";

fn message(inner: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\" ?>\n<CIM CIMVERSION=\"2.0\" DTDVERSION=\"2.0\">\
         <MESSAGE ID=\"4711\" PROTOCOLVERSION=\"1.0\"><SIMPLEREQ>{inner}</SIMPLEREQ></MESSAGE></CIM>"
    )
}

async fn send(running: &Running, headers: &str, text: &str) -> Got {
    post(running.addr, "/cimom", headers, text).await
}

/// An intrinsic call; gives IMETHODRESPONSE.
pub(crate) async fn call(running: &Running, name: &str, parameters: &str) -> (String, Element) {
    let text = message(&format!(
        "<IMETHODCALL NAME=\"{name}\">{PLACE}{parameters}</IMETHODCALL>"
    ));
    let headers = format!(
        "CIMOperation: MethodCall\r\nCIMMethod: {name}\r\nCIMObject: root%2Fvirtualization%2Fv2\r\n"
    );
    let got = send(running, &headers, &text).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert!(
        got.head
            .to_ascii_lowercase()
            .contains("cimoperation: methodresponse")
    );
    let text = got.text();
    assert!(text.contains("<MESSAGE ID=\"4711\" PROTOCOLVERSION=\"1.0\"><SIMPLERSP>"));
    let root = cim::xml::parse(text.as_bytes(), &Limits::default())
        .expect("xml")
        .root;
    let response = root
        .descend(&[("", "MESSAGE"), ("", "SIMPLERSP"), ("", "IMETHODRESPONSE")])
        .expect("response")
        .clone();
    assert_eq!(response.attr("NAME"), Some(name));
    (text, response)
}

pub(crate) fn parameter(name: &str, inner: &str) -> String {
    format!("<IPARAMVALUE NAME=\"{name}\">{inner}</IPARAMVALUE>")
}

fn class(name: &str) -> String {
    parameter("ClassName", &format!("<CLASSNAME NAME=\"{name}\"/>"))
}

fn flag(name: &str, value: &str) -> String {
    parameter(name, &format!("<VALUE>{value}</VALUE>"))
}

fn found(response: &Element) -> Vec<String> {
    let value = response.child("", "IRETURNVALUE").expect("IRETURNVALUE");
    value.children.iter().map(|c| c.local.clone()).collect()
}

fn error(response: &Element) -> u32 {
    let error = response
        .child("", "ERROR")
        .unwrap_or_else(|| panic!("no error: {response:?}"));
    error.attr("CODE").expect("code").parse().expect("number")
}

#[tokio::test]
async fn instances_come_in_the_element_each_operation_wants() {
    let running = start().await;
    let job = class("Msvm_ConcreteJob");
    let object = parameter("ObjectName", JOB);
    for (name, parameters, element) in [
        ("EnumerateInstances", &job, "VALUE.NAMEDINSTANCE"),
        ("EnumerateInstanceNames", &job, "INSTANCENAME"),
        ("GetInstance", &parameter("InstanceName", JOB), "INSTANCE"),
        ("Associators", &object, "VALUE.OBJECTWITHPATH"),
        ("AssociatorNames", &object, "OBJECTPATH"),
        ("References", &object, "VALUE.OBJECTWITHPATH"),
        ("ReferenceNames", &object, "OBJECTPATH"),
    ] {
        let (_, response) = call(&running, name, parameters).await;
        assert_eq!(found(&response), [element], "{name}");
    }
    let query = |language: &str| {
        let text = "SELECT * FROM Msvm_ComputerSystem WHERE EnabledState = 2";
        format!(
            "{}{}",
            parameter("QueryLanguage", &format!("<VALUE>{language}</VALUE>")),
            parameter("Query", &format!("<VALUE>{text}</VALUE>"))
        )
    };
    let (_, response) = call(&running, "ExecQuery", &query("WQL")).await;
    assert_eq!(
        found(&response),
        ["VALUE.OBJECTWITHPATH", "VALUE.OBJECTWITHPATH"]
    );
    let (_, response) = call(&running, "ExecQuery", &query("DMTF:CQL")).await;
    assert_eq!(error(&response), 14);
}

#[tokio::test]
async fn an_instance_is_strict_cim_xml() {
    let running = start().await;
    let parameters = format!(
        "{}{}",
        parameter("InstanceName", JOB),
        flag("IncludeClassOrigin", "TRUE")
    );
    let (text, _) = call(&running, "GetInstance", &parameters).await;
    let expected = concat!(
        "<IRETURNVALUE><INSTANCE CLASSNAME=\"Msvm_ConcreteJob\">",
        "<PROPERTY NAME=\"InstanceID\" TYPE=\"string\" CLASSORIGIN=\"CIM_ConcreteJob\"><VALUE>J1</VALUE></PROPERTY>",
        "<PROPERTY NAME=\"JobState\" TYPE=\"uint16\" CLASSORIGIN=\"CIM_ConcreteJob\"><VALUE>7</VALUE></PROPERTY>",
        "<PROPERTY NAME=\"ElapsedTime\" TYPE=\"datetime\" CLASSORIGIN=\"CIM_ConcreteJob\"><VALUE>00000000000101.500000:000</VALUE></PROPERTY>",
        "<PROPERTY NAME=\"Caption\" TYPE=\"string\" CLASSORIGIN=\"CIM_ManagedElement\"></PROPERTY>",
        "<PROPERTY NAME=\"ElementName\" TYPE=\"string\" CLASSORIGIN=\"CIM_ManagedElement\"></PROPERTY>",
        "</INSTANCE></IRETURNVALUE>"
    );
    assert!(text.contains(expected), "{text}");
}

#[tokio::test]
async fn property_lists_and_inheritance_cut_what_is_sent() {
    let running = start().await;
    let list = |names: &[&str]| {
        let values: String = names
            .iter()
            .map(|n| format!("<VALUE>{n}</VALUE>"))
            .collect();
        parameter(
            "PropertyList",
            &format!("<VALUE.ARRAY>{values}</VALUE.ARRAY>"),
        )
    };
    let system = class("Msvm_ComputerSystem");
    let (text, _) = call(
        &running,
        "EnumerateInstances",
        &format!("{system}{}", list(&["name", "Nothing"])),
    )
    .await;
    assert_eq!(text.matches("<PROPERTY").count(), 4);
    let (text, _) = call(
        &running,
        "EnumerateInstances",
        &format!("{system}{}", list(&[])),
    )
    .await;
    assert_eq!(text.matches("<PROPERTY").count(), 0);
    let (text, _) = call(&running, "EnumerateInstances", &system).await;
    assert!(text.contains("NAME=\"Extra\""));
    let (text, _) = call(
        &running,
        "EnumerateInstances",
        &format!("{system}{}", flag("DeepInheritance", "FALSE")),
    )
    .await;
    assert!(!text.contains("NAME=\"Extra\"") && text.contains("NAME=\"Enabled\""));
}

#[tokio::test]
async fn an_embedded_instance_is_marked_as_one() {
    let running = start().await;
    let (text, _) = call(&running, "EnumerateInstances", &class("Msvm_SpecialSystem")).await;
    assert!(
        text.contains("<PROPERTY NAME=\"Settings\" TYPE=\"string\" EmbeddedObject=\"instance\"><VALUE>&lt;INSTANCE CLASSNAME="),
        "{text}"
    );
}

#[tokio::test]
async fn classes_follow_their_flags() {
    let running = start().await;
    let system = class("msvm_computersystem");
    let (text, response) = call(&running, "GetClass", &system).await;
    assert_eq!(found(&response), ["CLASS"]);
    assert!(
        text.contains("<CLASS NAME=\"Msvm_ComputerSystem\" SUPERCLASS=\"CIM_System\">"),
        "{text}"
    );
    assert!(
        !text.contains("NAME=\"CreationClassName\""),
        "local only is the default"
    );
    let all = format!(
        "{system}{}{}",
        flag("LocalOnly", "false"),
        flag("IncludeQualifiers", "false")
    );
    let (text, _) = call(&running, "GetClass", &all).await;
    assert!(text.contains("NAME=\"CreationClassName\"") && !text.contains("<QUALIFIER"));
    let (_, response) = call(&running, "EnumerateClassNames", "").await;
    assert_eq!(found(&response), ["CLASSNAME", "CLASSNAME"]);
    let (_, response) = call(
        &running,
        "EnumerateClasses",
        &flag("DeepInheritance", "true"),
    )
    .await;
    assert_eq!(found(&response).len(), 10);
    let (_, response) = call(&running, "EnumerateQualifiers", "").await;
    assert!(found(&response).len() > 40);
    let (text, _) = call(&running, "GetQualifier", &flag("QualifierName", "key")).await;
    assert!(text.contains("<QUALIFIER.DECLARATION NAME=\"Key\" TYPE=\"boolean\" ISARRAY=\"false\" OVERRIDABLE=\"false\">"), "{text}");
}

#[tokio::test]
async fn errors_have_the_code_of_their_cause() {
    let running = start().await;
    let name = parameter("InstanceName", &JOB.replace("J1", "J9"));
    assert_eq!(error(&call(&running, "GetInstance", &name).await.1), 6);
    assert_eq!(
        error(
            &call(&running, "EnumerateInstances", &class("Nothing"))
                .await
                .1
        ),
        5
    );
    assert_eq!(error(&call(&running, "EnumerateInstances", "").await.1), 4);
    let unknown = format!("{}{}", class("CIM_System"), flag("Tea", "1"));
    assert_eq!(
        error(&call(&running, "EnumerateInstances", &unknown).await.1),
        4
    );
    let wrong = format!(
        "{}{}",
        class("CIM_System"),
        flag("DeepInheritance", "maybe")
    );
    assert_eq!(
        error(&call(&running, "EnumerateInstances", &wrong).await.1),
        4
    );
    assert_eq!(error(&call(&running, "DeleteClass", "").await.1), 7);
    let object = parameter("ObjectName", "<CLASSNAME NAME=\"CIM_System\"/>");
    assert_eq!(error(&call(&running, "Associators", &object).await.1), 7);
    let delete = parameter("InstanceName", JOB);
    assert_eq!(error(&call(&running, "DeleteInstance", &delete).await.1), 7);
    let elsewhere = message(
        "<IMETHODCALL NAME=\"EnumerateClassNames\"><LOCALNAMESPACEPATH><NAMESPACE NAME=\"x\"/></LOCALNAMESPACEPATH></IMETHODCALL>",
    );
    let got = send(&running, "CIMOperation: MethodCall\r\n", &elsewhere).await;
    assert!(
        got.text()
            .contains("<ERROR CODE=\"3\" DESCRIPTION=\"There is no namespace x.\"/>"),
        "{}",
        got.text()
    );
}

#[tokio::test]
async fn an_enumeration_is_pulled_in_pieces_and_closed() {
    let running = start().await;
    let number = |name: &str, n: u32| flag(name, &n.to_string());
    let value = |response: &Element, name: &str| {
        response
            .children
            .iter()
            .find(|c| c.local == "PARAMVALUE" && c.attr("NAME") == Some(name))
            .and_then(|c| c.child("", "VALUE"))
            .map(|v| v.text.clone())
    };
    let open = format!(
        "{}{}",
        class("Msvm_ComputerSystem"),
        number("MaxObjectCount", 3)
    );
    let (_, response) = call(&running, "OpenEnumerateInstances", &open).await;
    assert_eq!(found(&response), ["VALUE.INSTANCEWITHPATH"; 3]);
    assert_eq!(value(&response, "EndOfSequence").as_deref(), Some("FALSE"));
    let context = flag(
        "EnumerationContext",
        &value(&response, "EnumerationContext").expect("context"),
    );
    let pull = format!("{context}{}", number("MaxObjectCount", 3));
    let (_, response) = call(&running, "PullInstancePaths", &pull).await;
    assert_eq!(error(&response), 21, "another kind of pull");
    let (_, response) = call(&running, "PullInstancesWithPath", &pull).await;
    assert_eq!(found(&response), ["VALUE.INSTANCEWITHPATH"]);
    assert_eq!(value(&response, "EndOfSequence").as_deref(), Some("TRUE"));
    assert_eq!(value(&response, "EnumerationContext"), None);
    assert_eq!(
        error(&call(&running, "PullInstancesWithPath", &pull).await.1),
        21
    );
    for (open, parameters, element) in [
        (
            "OpenEnumerateInstancePaths",
            class("Msvm_ComputerSystem"),
            "PullInstancePaths",
        ),
        (
            "OpenAssociatorInstances",
            parameter("InstanceName", JOB),
            "PullInstancesWithPath",
        ),
        (
            "OpenReferenceInstancePaths",
            parameter("InstanceName", JOB),
            "PullInstancePaths",
        ),
        (
            "OpenQueryInstances",
            format!(
                "{}{}",
                flag("FilterQueryLanguage", "WQL"),
                flag("FilterQuery", "SELECT * FROM CIM_System")
            ),
            "PullInstances",
        ),
    ] {
        let (_, response) = call(&running, open, &parameters).await;
        assert!(
            found(&response).is_empty(),
            "{open}: the default is none at first"
        );
        let context = flag(
            "EnumerationContext",
            &value(&response, "EnumerationContext").expect("context"),
        );
        let (_, response) = call(
            &running,
            element,
            &format!("{context}{}", number("MaxObjectCount", 100)),
        )
        .await;
        assert!(!found(&response).is_empty(), "{open}");
    }
    let (_, response) = call(&running, "OpenEnumerateInstancePaths", &class("CIM_System")).await;
    let context = flag(
        "EnumerationContext",
        &value(&response, "EnumerationContext").expect("context"),
    );
    let (_, response) = call(&running, "CloseEnumeration", &context).await;
    assert!(response.children.is_empty(), "void");
    assert_eq!(
        error(&call(&running, "CloseEnumeration", &context).await.1),
        21
    );
}

async fn method(running: &Running, name: &str, parameters: &str) -> String {
    let path = format!(
        "<LOCALINSTANCEPATH>{PLACE}<INSTANCENAME CLASSNAME=\"Msvm_VirtualSystemManagementService\"/></LOCALINSTANCEPATH>"
    );
    let text = message(&format!(
        "<METHODCALL NAME=\"{name}\">{path}{parameters}</METHODCALL>"
    ));
    let headers = format!(
        "CIMOperation: MethodCall\r\nCIMMethod: {name}\r\nCIMObject: root/virtualization/v2:Msvm_VirtualSystemManagementService.A=\"x:y\"\r\n"
    );
    let got = send(running, &headers, &text).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.text()
}

#[tokio::test]
async fn a_method_takes_and_gives_typed_parameters() {
    let running = start().await;
    let settings = "&lt;INSTANCE CLASSNAME=&quot;Msvm_VirtualSystemSettingData&quot;&gt;&lt;PROPERTY NAME=&quot;ElementName&quot; TYPE=&quot;string&quot;&gt;&lt;VALUE&gt;new&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;";
    let parameters = format!(
        "<PARAMVALUE NAME=\"SystemSettings\" PARAMTYPE=\"string\" EmbeddedObject=\"instance\"><VALUE>{settings}</VALUE></PARAMVALUE>\
         <PARAMVALUE NAME=\"ResourceSettings\" PARAMTYPE=\"string\"><VALUE.ARRAY><VALUE>a</VALUE></VALUE.ARRAY></PARAMVALUE>"
    );
    let text = method(&running, "DefineSystem", &parameters).await;
    assert!(text.contains("<METHODRESPONSE NAME=\"DefineSystem\"><RETURNVALUE PARAMTYPE=\"uint32\"><VALUE>4096</VALUE></RETURNVALUE>"), "{text}");
    assert!(text.contains("<PARAMVALUE NAME=\"ResultingSystem\" PARAMTYPE=\"reference\"><VALUE.REFERENCE><INSTANCEPATH><NAMESPACEPATH><HOST>HV1</HOST>"), "{text}");
    assert!(text.contains(">new+1</KEYVALUE>"));
    let numbers = "<PARAMVALUE NAME=\"Numbers\" PARAMTYPE=\"uint32\"><VALUE.ARRAY><VALUE>1</VALUE><VALUE>2</VALUE></VALUE.ARRAY></PARAMVALUE>";
    let text = method(&running, "Echo", numbers).await;
    assert!(
        text.contains("<VALUE>Numbers=Array([Uint32(1), Uint32(2)])</VALUE>"),
        "{text}"
    );
    assert!(
        text.contains("<PARAMVALUE NAME=\"OutText\" PARAMTYPE=\"string\"/>"),
        "null keeps its type: {text}"
    );
    assert!(text.contains("<VALUE>20260102030405.000000+060</VALUE>"));
    let text = method(&running, "Fail", "").await;
    assert!(text.contains("<ERROR CODE=\"1\" DESCRIPTION=\"It failed, as asked for.\"><INSTANCE CLASSNAME=\"Msvm_Error\">"), "{text}");
    let text = method(&running, "NoSuch", "").await;
    assert!(text.contains("<ERROR CODE=\"17\""), "{text}");
}

#[tokio::test]
async fn requests_that_are_none_get_an_http_error_with_its_name() {
    let running = start().await;
    let good = message(&format!(
        "<IMETHODCALL NAME=\"EnumerateClassNames\">{PLACE}</IMETHODCALL>"
    ));
    let operation = "CIMOperation: MethodCall\r\n";
    for (headers, text, status, name) in [
        ("", good.as_str(), 400, "unsupported-operation"),
        ("CIMOperation: Tea\r\n", &good, 400, "unsupported-operation"),
        (operation, "<CIM", 400, "request-not-well-formed"),
        (operation, "<a/>", 400, "request-not-valid"),
        (
            "CIMOperation: MethodCall\r\nCIMMethod: GetClass\r\n",
            &good,
            400,
            "header-mismatch",
        ),
        (
            "CIMOperation: MethodCall\r\nCIMObject: root/cimv2\r\n",
            &good,
            400,
            "header-mismatch",
        ),
    ] {
        let got = send(&running, headers, text).await;
        assert_eq!(got.status, status, "{headers}");
        assert!(
            got.head
                .to_ascii_lowercase()
                .contains(&format!("cimerror: {name}\r\n")),
            "{}",
            got.head
        );
    }
    let got = Connection::to(running.addr)
        .await
        .post("/", &format!("{}{operation}", basic()), good.as_bytes())
        .await;
    assert_eq!(got.status, 200, "the root path serves it too");
}

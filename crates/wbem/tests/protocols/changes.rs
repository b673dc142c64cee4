//! Both front ends decode the creation, change and deletion of an instance into one operation each.

use cim::Value;
use wbem::Operation;

use crate::scripted::Scripted;
use crate::wire::start;
use crate::{cimxml, wsman};

const CLASS: &str = "Msvm_SpecialSystem";

fn taken(handler: &Scripted) -> Operation {
    let mut changes = handler.changes.lock().expect("lock");
    assert_eq!(changes.len(), 1, "{changes:?}");
    changes.remove(0)
}

/// Created, then changed: the properties sent, null ones among them, in their declared types; and which instance.
fn check(handler: &Scripted, verb: &str) {
    let (path, instance) = match (verb, taken(handler)) {
        ("create", Operation::CreateInstance { instance }) => (None, Some(instance)),
        ("change", Operation::ModifyInstance { path, instance }) => (Some(path), Some(instance)),
        ("delete", Operation::DeleteInstance { path }) => (Some(path), None),
        (_, other) => panic!("{verb}: {other:?}"),
    };
    if let Some(path) = path {
        assert!(path.class.is(CLASS), "{path}");
        assert_eq!(path.get_str("Name"), Some("special"));
    }
    if let Some(instance) = instance {
        assert!(instance.class.is(CLASS));
        assert_eq!(instance.get_str("ElementName"), Some("a <b>"));
        assert_eq!(instance.get("EnabledState"), &Value::Uint16(3));
        assert!(
            instance
                .property("Caption")
                .is_some_and(|p| p.value.is_null())
        );
    }
}

#[tokio::test]
async fn ws_management_puts_creates_and_deletes() {
    let running = start().await;
    let uri = format!("{}/{CLASS}", wsman::WMI);
    let selectors = "<W:SelectorSet><W:Selector Name=\"CreationClassName\">Msvm_ComputerSystem</W:Selector>\
                     <W:Selector Name=\"Name\">special</W:Selector></W:SelectorSet>";
    let body = format!(
        "<p:{CLASS} xmlns:p=\"{uri}\"><p:ElementName>a &lt;b&gt;</p:ElementName>\
         <p:EnabledState>3</p:EnabledState><p:Caption xsi:nil=\"true\"/></p:{CLASS}>"
    );
    for (action, verb, headers, body, answer) in [
        ("Create", "create", "", body.as_str(), "ResourceCreated"),
        ("Put", "change", selectors, body.as_str(), CLASS),
        ("Delete", "delete", selectors, "", ""),
    ] {
        let action = format!("{}/{action}", wsman::TRANSFER);
        let asked = wsman::envelope(&action, &uri, headers, body);
        let (got, told) = wsman::ask(&running, &asked).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let first = told.children.first().map_or("", |c| c.local.as_str());
        assert_eq!(first, answer, "{verb}");
        check(&running.handler, verb);
    }
}

#[tokio::test]
async fn cim_xml_creates_modifies_and_deletes() {
    let running = start().await;
    let name = format!(
        "<INSTANCENAME CLASSNAME=\"{CLASS}\"><KEYBINDING NAME=\"CreationClassName\"><KEYVALUE VALUETYPE=\"string\">\
         Msvm_ComputerSystem</KEYVALUE></KEYBINDING><KEYBINDING NAME=\"Name\"><KEYVALUE VALUETYPE=\"string\">special\
         </KEYVALUE></KEYBINDING></INSTANCENAME>"
    );
    let instance = format!(
        "<INSTANCE CLASSNAME=\"{CLASS}\"><PROPERTY NAME=\"ElementName\" TYPE=\"string\"><VALUE>a &lt;b&gt;</VALUE></PROPERTY>\
         <PROPERTY NAME=\"EnabledState\" TYPE=\"uint16\"><VALUE>3</VALUE></PROPERTY>\
         <PROPERTY NAME=\"Caption\" TYPE=\"string\"></PROPERTY></INSTANCE>"
    );
    let changed = format!("<VALUE.NAMEDINSTANCE>{name}{instance}</VALUE.NAMEDINSTANCE>");
    for (operation, verb, parameter, value) in [
        ("CreateInstance", "create", "NewInstance", &instance),
        ("ModifyInstance", "change", "ModifiedInstance", &changed),
        ("DeleteInstance", "delete", "InstanceName", &name),
    ] {
        let value = cimxml::parameter(parameter, value);
        let (text, told) = cimxml::call(&running, operation, &value).await;
        let path = told
            .child("", "IRETURNVALUE")
            .and_then(|r| r.children.first());
        let expected = (verb == "create").then_some("INSTANCENAME");
        assert_eq!(path.map(|p| p.local.as_str()), expected, "{text}");
        assert!(!text.contains("<ERROR"), "{text}");
        check(&running.handler, verb);
    }
}

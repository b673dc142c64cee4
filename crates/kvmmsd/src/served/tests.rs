//! Every class of the schema is served or listed, and everything that is served fits its class.

mod bench;
mod changes;
mod hidden;
mod migration;
mod page;
mod queries;
mod told;

use cim::{Schema as _, Value};
use msvm::Namespace;

use super::unserved::UNSERVED;
use crate::provider::associations as table;
use bench::Bench;

fn problems(found: Vec<String>) {
    assert!(
        found.is_empty(),
        "{} problems:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[tokio::test]
async fn every_concrete_class_is_served_or_listed_with_a_reason() {
    let bench = Bench::new().await;
    let namespace = msvm::virtualization();
    // Of a class without subclasses; others are served by theirs.
    let served = |name: &str| bench.serves(namespace, name);
    let mut found = Vec::new();
    for class in namespace.classes().iter().filter(|c| !c.is_abstract()) {
        let name = class.name.as_str();
        match (served(name), super::reason(name)) {
            (false, None) => found.push(format!("{name} is neither served nor listed")),
            (true, Some(_)) => found.push(format!("{name} is served and listed")),
            _ => {}
        }
    }
    for (why, classes) in UNSERVED {
        assert!(!why.is_empty());
        for class in *classes {
            match namespace.class(class) {
                Some(declared) if declared.name.as_str() == *class => {}
                _ => found.push(format!("{class} is listed, but no class")),
            }
        }
    }
    problems(found);
}

/// All instances of a namespace.
async fn all(bench: &Bench, namespace: &'static Namespace) -> Vec<cim::Instance> {
    let mut out = Vec::new();
    for class in namespace.classes().iter().filter(|c| !c.is_abstract()) {
        let found = bench.list(namespace.name(), class.name.as_str()).await;
        // Lists hold subclasses too; each instance is looked at once.
        out.extend(found.into_iter().filter(|i| i.class == class.name));
    }
    out
}

#[tokio::test]
async fn everything_that_is_served_fits_its_class_and_is_found_by_its_path() {
    let bench = Bench::new().await;
    let mut found = Vec::new();
    for namespace in msvm::namespaces() {
        for instance in all(&bench, namespace).await {
            let name = instance.class.to_string();
            if let Err(error) = namespace.complete(&mut instance.clone()) {
                found.push(format!(
                    "{name}: {error} {:?}",
                    std::error::Error::source(&error).map(ToString::to_string)
                ));
            }
            let class = namespace.class(&name).expect("a class");
            let missing: Vec<_> = class
                .properties
                .iter()
                .filter(|p| instance.property(p.name.as_str()).is_none())
                .collect();
            assert!(missing.is_empty(), "{name} lacks {missing:?}");
            let path = instance.path.as_ref().expect("a path");
            for key in class.keys() {
                let in_path = path.get(key.name.as_str());
                if in_path.is_none_or(Value::is_null)
                    || Some(instance.get(key.name.as_str())) != in_path
                {
                    found.push(format!("{name}.{}: {in_path:?} in {path}", key.name));
                }
            }
            match bench.get(namespace.name(), path).await {
                Ok(again) if again.class == instance.class && again.path == instance.path => {}
                Ok(other) => found.push(format!("{path} found {:?}", other.path)),
                Err(error) => found.push(format!("{path}: {}", error.message)),
            }
        }
    }
    problems(found);
}

#[tokio::test]
async fn every_provider_and_association_has_instances_on_a_full_host() {
    let bench = Bench::new().await;
    // Classes whose instances come and go, or need what the bench does not have.
    let empty = [
        "Msvm_PlannedComputerSystem",
        "Msvm_StorageJob",
        "Msvm_AffectedStorageJobElement", // tests/test_jobs.py has one
        "Msvm_MigrationJob",
        "Kvmms_MigrationDetail",
        "Kvmms_MigrationPermit",
        "Msvm_VirtualSystemReferencePointExportJob",
        "Msvm_CollectionReferencePointExportJob",
        "Msvm_CopyFileToGuestJob",
        // A container may have no file system of its own.
        "Win32_LogicalDisk",
    ];
    let mut found = Vec::new();
    for namespace in msvm::namespaces() {
        let instances = all(&bench, namespace).await;
        let has = |name: &str| instances.iter().any(|i| i.class.is(name));
        let served = crate::provider::all()
            .into_iter()
            .filter(|p| p.namespace() == namespace.name());
        let classes = served.flat_map(|p| p.classes().to_vec());
        let associations = table(namespace).iter().map(|a| a.class);
        for class in classes.chain(associations).filter(|c| !empty.contains(c)) {
            if !has(class) {
                found.push(class.to_owned());
            }
        }
    }
    problems(found);
}

#[tokio::test]
async fn associations_are_walked_alike_from_both_ends() {
    let bench = Bench::new().await;
    let mut found = Vec::new();
    for namespace in msvm::namespaces() {
        let name = namespace.name();
        for instance in all(&bench, namespace).await {
            let path = instance.path.as_ref().expect("a path");
            let class = namespace.class(instance.class.as_str()).expect("a class");
            if !class.is_association() {
                if let Err(error) = bench.associators(name, path).await {
                    found.push(format!("{path}: {}", error.message));
                }
                continue;
            }
            let ends = path.keys.iter().filter_map(|(_, v)| v.as_path());
            for end in ends {
                if let Err(error) = bench.get(name, &end).await {
                    found.push(format!("{} names {end}: {}", instance.class, error.message));
                }
                let back = bench.references(name, &end).await.expect("references");
                if !back.iter().any(|b| b.path.as_ref() == Some(path)) {
                    found.push(format!("{path} is not found from {end}"));
                }
            }
        }
    }
    problems(found);
}

#[tokio::test]
async fn methods_of_unserved_classes_are_refused_with_a_reason_and_a_remedy() {
    let bench = Bench::new().await;
    let namespace = msvm::virtualization();
    let mut tried = 0;
    for (why, classes) in UNSERVED {
        for class in *classes {
            let declared = namespace.class(class).expect(class);
            let Some(method) = declared.methods.first() else {
                continue;
            };
            let path = cim::Path::class(declared.name.clone());
            let error = bench
                .invoke(path, method.name.as_str())
                .await
                .expect_err(class);
            assert_eq!(
                error.status,
                wbem::Status::NotSupported,
                "{class}: {}",
                error.message
            );
            assert!(error.message.contains(why), "{class}: {}", error.message);
            let first = error.chain.first().expect("an Msvm_Error");
            assert!(!first.get("RecommendedActions").items().is_empty());
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}

#[tokio::test]
async fn the_management_capabilities_list_what_is_served_and_nothing_else() {
    let bench = Bench::new().await;
    let namespace = msvm::virtualization();
    let found = bench
        .list(namespace.name(), "Msvm_VirtualSystemManagementCapabilities")
        .await;
    let capabilities = found.first().expect("capabilities");
    let class = namespace
        .class("Msvm_VirtualSystemManagementCapabilities")
        .expect("a class");
    let mut listed: Vec<String> = Vec::new();
    for property in [
        "SynchronousMethodsSupported",
        "AsynchronousMethodsSupported",
    ] {
        let declared = class.property(property).expect("a property");
        for number in capabilities.get(property).items() {
            let number = number.to_text().unwrap_or_default();
            // The numbers below 32767 are CIM's and have names of their own.
            listed.push(match number.as_str() {
                "2" => "DefineSystem".to_owned(),
                "3" => "DestroySystem".to_owned(),
                "5" => "ModifyResourceSettings".to_owned(),
                "6" => "ModifySystemSettings".to_owned(),
                "7" => "RemoveResourceSettings".to_owned(),
                "10" => "AddResourceSettings".to_owned(),
                _ => label(&declared.qualifiers, &number).expect("a listed method"),
            });
        }
    }
    let service = namespace
        .class("Msvm_VirtualSystemManagementService")
        .expect("a class");
    let mut wrong = Vec::new();
    for method in service.methods.iter() {
        let name = method.name.as_str();
        let path = cim::Path::class(service.name.clone());
        let answer = bench.invoke(path, name).await;
        let Ok(wbem::Response::Invoked { return_value, .. }) = answer else {
            // A parameter that names nothing: the method is there.
            continue;
        };
        let refused = return_value == Value::Uint32(msvm::code::NOT_SUPPORTED);
        if refused == listed.iter().any(|l| l == name) {
            wrong.push(format!("{name}: refused {refused}"));
        }
    }
    problems(wrong);
}

/// The name a value map gives a number.
fn label(qualifiers: &[cim::Qualifier], number: &str) -> Option<String> {
    let texts = |name: &str| match cim::qualifier(qualifiers, name) {
        Some(cim::Literal::List(items)) => items
            .iter()
            .filter_map(cim::Literal::as_text)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    let at = texts("ValueMap").iter().position(|n| n == number)?;
    texts("Values").get(at).cloned()
}

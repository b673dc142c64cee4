//! Instances are created, changed and deleted by the provider of their class, which refuses unless it knows better.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cim::{Instance, Path, Schema as _};
use msvm::class;
use vmms::Fault;
use vmms::machine::Asked;
use wbem::{Operation, Response, Role, Status};

use super::bench::Bench;
use crate::object::{NAMESPACE, Object, What};
use crate::view::{Provider, View, named};

fn changes(class: &str) -> [Operation; 3] {
    let path = Path::class(class.to_owned()).key("InstanceID", "x");
    let instance = Instance::new(class.to_owned());
    [
        Operation::CreateInstance {
            instance: instance.clone(),
        },
        Operation::ModifyInstance {
            path: path.clone(),
            instance,
        },
        Operation::DeleteInstance { path },
    ]
}

#[tokio::test]
async fn instances_of_no_class_are_changed_directly_and_the_refusal_names_a_way() {
    let bench = Bench::new().await;
    for namespace in msvm::namespaces() {
        for class in namespace.classes() {
            for change in changes(class.name.as_str()) {
                let error = bench.ask(namespace.name(), change).await;
                let error = error.expect_err(class.name.as_str());
                assert_eq!(error.status, Status::NotSupported, "{}", class.name);
                let first = error.chain.first().expect("an Msvm_Error");
                assert!(!first.get("RecommendedActions").items().is_empty());
            }
        }
    }
    for change in changes("Msvm_NoSuchClass") {
        let error = bench.ask(NAMESPACE, change).await.expect_err("no class");
        assert_eq!(error.status, Status::InvalidClass);
    }
}

/// Keeps one class in memory.
#[derive(Default)]
struct Kept {
    all: Mutex<Vec<(String, Instance)>>,
}

impl Kept {
    fn names(&self) -> Vec<String> {
        let all = self.all.lock().expect("lock");
        all.iter().map(|(id, _)| id.clone()).collect()
    }

    fn id(path: &Path) -> String {
        path.get_str("InstanceID").unwrap_or_default().to_owned()
    }
}

#[async_trait]
impl Provider for Kept {
    fn classes(&self) -> &'static [&'static str] {
        &[class::MSVM_RESOURCE_POOL]
    }

    async fn objects(
        &self,
        _view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let all = self.all.lock().expect("lock");
        let object = |(id, i): &(String, Instance)| {
            Object::with_id(
                class::MSVM_RESOURCE_POOL,
                id.clone(),
                What::fixed(i.clone()),
            )
        };
        Ok(named(all.iter().map(object).collect(), wanted))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }

    async fn create(&self, view: &View, given: &Instance, asked: &Asked) -> Result<Object, Fault> {
        let mut given = given.clone();
        let id = given.get_str("InstanceID").unwrap_or_default().to_owned();
        given.set("Caption", asked.owner.as_str());
        self.all.lock().expect("lock").push((id.clone(), given));
        let path = Path::class(class::MSVM_RESOURCE_POOL).key("InstanceID", id);
        view.find(msvm::virtualization(), &path).await
    }

    async fn modify(
        &self,
        _view: &View,
        path: &Path,
        properties: &Instance,
        _asked: &Asked,
    ) -> Result<(), Fault> {
        let mut all = self.all.lock().expect("lock");
        for (_, kept) in all.iter_mut().filter(|(id, _)| *id == Kept::id(path)) {
            for property in &properties.properties {
                kept.set(property.name.clone(), property.value.clone());
            }
        }
        Ok(())
    }

    async fn delete(&self, _view: &View, path: &Path, _asked: &Asked) -> Result<(), Fault> {
        let mut all = self.all.lock().expect("lock");
        all.retain(|(id, _)| *id != Kept::id(path));
        Ok(())
    }
}

#[tokio::test]
async fn a_provider_that_knows_better_creates_changes_and_deletes_and_only_for_administrators() {
    let kept = Arc::new(Kept::default());
    let bench = Bench::new().await.with(vec![Arc::clone(&kept) as _]);
    let new = |name: &'static str| Operation::CreateInstance {
        instance: Instance::new("msvm_resourcepool")
            .with("instanceid", "Microsoft:p")
            .with(name, "one"),
    };
    let refused = bench.ask(NAMESPACE, new("NoSuchProperty")).await;
    assert_eq!(
        refused.expect_err("unknown").status,
        Status::InvalidParameter
    );
    for role in [Role::Viewer, Role::Operator] {
        let refused = bench.ask_as(role, NAMESPACE, new("elementname")).await;
        assert_eq!(refused.expect_err("role").status, Status::AccessDenied);
    }
    let Ok(Response::Created(path)) = bench.ask(NAMESPACE, new("elementname")).await else {
        panic!("not created");
    };
    assert_eq!(kept.names(), ["Microsoft:p"]);
    let shown = bench.get(NAMESPACE, &path).await.expect("made");
    assert_eq!(shown.get_str("Caption"), Some("tester"));
    assert_eq!(shown.get_str("ElementName"), Some("one"));
    let change = Operation::ModifyInstance {
        path: path.clone(),
        instance: Instance::new("Msvm_ResourcePool").with("ElementName", "two"),
    };
    assert!(matches!(
        bench.ask(NAMESPACE, change).await,
        Ok(Response::Done)
    ));
    let shown = bench.get(NAMESPACE, &path).await.expect("changed");
    assert_eq!(shown.get_str("ElementName"), Some("two"));
    let delete = Operation::DeleteInstance { path };
    assert!(matches!(
        bench.ask(NAMESPACE, delete).await,
        Ok(Response::Done)
    ));
    assert!(kept.names().is_empty());
    assert!(msvm::virtualization().class("Msvm_ResourcePool").is_some());
}

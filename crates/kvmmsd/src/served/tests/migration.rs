//! What another host said names that host; how the migration service is set; what a machine needs of a host.

use cim::embedded::{Context, read};
use cim::{Path, Value};
use vmms::job::{JobClass, Refuse, Service};
use vmms::machine::Asked;
use vmms::migration::compatibility::{info, reasons_against};
use vmms::{Effect, Element, Fault, Message, fault, guid};
use wbem::Response;

use super::bench::Bench;

#[tokio::test]
async fn errors_of_another_host_name_that_host_and_its_own_object() {
    let bench = Bench::new().await;
    let theirs = fault!(NoSpace, "/x").caused_by(fault!(Os, "write /x", "full", 28));
    let refused = Refuse {
        class: JobClass::Migration,
        service: Service::Migration,
        job_type: 305,
        fault: fault!(ExportFailed, "P", "/x").caused_by(theirs.from_host("BETA")),
    };
    let affected = vec![(Element::Vm(bench.full), Effect::Other)];
    let submission = Asked::default().submission(affected);
    let job = bench.vmms.submit(refused, submission).await.expect("a job");
    bench.vmms.wait(job).await.expect("its end");
    let path = Path::class("Msvm_MigrationJob").key("InstanceID", guid(job));
    let answer = bench.invoke(path, "GetErrorEx").await.expect("an answer");
    let Response::Invoked { parameters, .. } = answer else {
        panic!("{answer:?}");
    };
    let errors = parameters.iter().find(|p| p.name.is("Errors"));
    let errors = errors.map(|p| p.value.items()).expect("errors");
    let context = Context::with(msvm::virtualization());
    let sources = errors.iter().map(|text| {
        let text = text.as_str().expect("a text");
        let error = read(text, &context).expect("an error");
        error.get("ErrorSource").to_text().unwrap_or_default()
    });
    let sources: Vec<String> = sources.collect();
    let machine = guid(bench.full);
    assert_eq!(sources.len(), 3, "{sources:?}");
    for (source, host) in sources.iter().zip(["HOST", "BETA", "BETA"]) {
        assert!(source.starts_with(&format!("\\\\{host}\\")), "{source}");
        assert!(source.contains(&machine), "{source}");
    }
    let first = parameters.first().map(|p| p.value.clone());
    assert_ne!(first, Some(Value::Null));
}

#[tokio::test]
async fn what_is_set_stays_and_a_network_that_is_not_there_changes_nothing() {
    let bench = Bench::new().await;
    let vmms = &bench.vmms;
    let there = vmms.migration_service();
    assert_eq!((there.enabled, there.networks.len()), (true, 1));
    let off = vmms.set_migration_service(|service| {
        service.enabled = false;
        Ok(())
    });
    off.await.expect("off");
    let known = there.networks[0].id;
    let gone = [known, uuid::Uuid::from_u128(7)];
    assert!(vmms.remove_migration_networks(&gone).await.is_err());
    let now = vmms.migration_service();
    assert!(!now.enabled && now.networks.len() == 1);
    let removed = vmms.remove_migration_networks(&[known]).await;
    removed.expect("removed");
    assert!(vmms.migration_service().networks.is_empty());
}

#[tokio::test]
async fn a_machine_fits_its_own_host_and_not_one_that_lacks_processors_and_foreign_bytes_are_not_believed()
 {
    let bench = Bench::new().await;
    let vmms = &bench.vmms;
    let told = info(vmms, bench.full).await.expect("info");
    assert_eq!(reasons_against(vmms, &told).await, Ok(Vec::new()));
    let text = String::from_utf8(told.clone()).expect("text");
    let more = text.replace("\"processors\":1", "\"processors\":99999");
    assert_ne!(text, more);
    let against = reasons_against(vmms, more.as_bytes()).await;
    let against: Vec<String> = against.expect("reasons").iter().map(Fault::text).collect();
    assert!(
        against.len() == 1 && against[0].contains("99999"),
        "{against:?}"
    );
    let cut = &told[..told.len() - 3];
    for bytes in [b"".as_slice(), b"{}", cut, &[0; 70_000]] {
        let answer = reasons_against(vmms, bytes).await.map_err(|f| f.message);
        assert_eq!(answer, Err(Message::CompatibilityUnreadable));
    }
}

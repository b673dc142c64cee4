//! `docs/served.md` says what the code does: it is made of asking each class of the schema on a full host.

use std::fmt::Write as _;
use std::path::Path as FilePath;

use cim::Path;
use wbem::{Response, Status};

use super::super::unserved::UNSERVED;
use super::bench::Bench;

/// What a method answers that is asked for without parameters.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    /// It is there, and says what it lacks.
    Served,
    /// Refused as not supported.
    Refused,
    /// There is nothing to ask it of.
    Untried,
}

/// Objects of one class may differ in what they can: it is served where one does.
async fn ask(bench: &Bench, objects: &[Path], method: &str) -> Told {
    let refused = msvm::code::NOT_SUPPORTED.to_string();
    for path in objects {
        match bench.invoke(path.clone(), method).await {
            Ok(Response::Invoked { return_value, .. })
                if return_value.to_text().as_ref() == Some(&refused) => {}
            Err(error) if error.status == Status::NotSupported => {}
            _ => return Told::Served,
        }
    }
    match objects {
        [] => Told::Untried,
        _ => Told::Refused,
    }
}

async fn page(bench: &Bench) -> String {
    let namespace = msvm::virtualization();
    let mut out = "# What is served\n\n\
        Each class of `root\\virtualization\\v2` with what a client finds here. A test makes this page by asking the service; it fails when the page \
        is not what the service does. `KVMMS_BLESS=1 cargo test -p kvmmsd served` writes it anew.\n\n\
        A refused method answers `Not Supported`, with an `Msvm_Error` that says why and what to do instead.\n\n\
        ## Classes with instances\n\
        | class | methods served | refused |\n|---|---|---|\n"
        .to_owned();
    let mut served: Vec<_> = namespace
        .classes()
        .iter()
        .filter(|c| !c.is_abstract() && bench.serves(namespace, c.name.as_str()))
        .collect();
    served.sort_by_key(|c| c.name.to_string());
    for class in served {
        let name = class.name.as_str();
        let all = bench.list(namespace.name(), name).await;
        let own = all.into_iter().filter(|i| i.class == class.name);
        let objects: Vec<Path> = own.filter_map(|i| i.path).collect();
        let (mut answers, mut refused, mut untried) = (Vec::new(), Vec::new(), false);
        for method in class.methods.iter() {
            let method = method.name.as_str();
            match ask(bench, &objects, method).await {
                Told::Served => answers.push(method),
                Told::Refused => refused.push(method),
                Told::Untried => untried = true,
            }
        }
        answers.sort_unstable();
        refused.sort_unstable();
        let answers = match untried {
            true => "(only where there is an instance: those of its base class)".to_owned(),
            false => answers.join(", "),
        };
        let refused = refused.join(", ");
        writeln!(out, "| `{name}` | {answers} | {refused} |").expect("text");
    }
    out.push_str(
        "\n## Classes without instances here\nTheir methods are refused with the reason.\n",
    );
    for (why, classes) in UNSERVED {
        let names: Vec<String> = classes.iter().map(|c| format!("`{c}`")).collect();
        write!(out, "\n**Because {why}:** {}\n", names.join(", ")).expect("text");
    }
    out
}

#[tokio::test]
async fn the_page_of_what_is_served_says_what_the_service_does() {
    let bench = Bench::new().await;
    let made = page(&bench).await;
    let file = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/served.md");
    if std::env::var_os("KVMMS_BLESS").is_some() {
        std::fs::write(&file, &made).expect("the page");
    }
    let stands = std::fs::read_to_string(&file).unwrap_or_default();
    let differ = made.lines().zip(stands.lines()).find(|(a, b)| a != b);
    assert!(
        made == stands,
        "docs/served.md is not what the service does, from {differ:?} on: KVMMS_BLESS=1 writes it anew"
    );
}

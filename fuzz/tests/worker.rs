//! The fuzzer finds what is there to be found.

use fuzz::work::{Orders, run};
use fuzz::{Target, inputs};
use std::time::Duration;

static FRAGILE: Target = Target {
    name: "fragile",
    run: |input| {
        assert!(!input.starts_with(b"ab"), "cannot stand it");
        assert!(input.len() < 60, "nor that");
    },
    limit: 64,
    also: None,
    dictionary: &["ab"],
};

#[test]
fn each_place_that_panics_is_one_finding_with_its_input() {
    let home = tempfile::tempdir().expect("a directory");
    let orders = Orders {
        seed: 1,
        time: Duration::from_secs(1),
        limit: FRAGILE.limit,
        corpora: vec![home.path().join("corpus")],
        findings_in: home.path().join("findings"),
        current: home.path().join("current"),
    };
    let found = run(&FRAGILE, orders).expect("a run");
    assert_eq!(found, 2);
    let kept = inputs(&home.path().join("findings")).expect("findings");
    assert_eq!(kept.len(), 2);
    for (name, input) in kept {
        assert!(name.starts_with("panic-"), "{name}");
        assert!(input.starts_with(b"ab") || input.len() >= 60, "{input:?}");
    }
}

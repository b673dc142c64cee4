//! Every input that ever reached something new, or was a finding, is read again.

use fuzz::{TARGETS, home, inputs};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn every_target_stands_its_corpus() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let mut corpus = Vec::new();
        for directory in target.corpora() {
            corpus.extend(inputs(&directory).expect("a corpus"));
        }
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        for (name, input) in corpus {
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                failed.push(format!("{} of {}", name, target.name));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn every_corpus_has_its_target() {
    for entry in std::fs::read_dir(home().join("corpus")).expect("the corpora") {
        let name = entry.expect("an entry").file_name();
        let known = TARGETS.iter().any(|target| name == target.name);
        assert!(known, "no target reads corpus/{}", name.display());
    }
}

//! What a file that something else changed invalidates.
//!
//! A frozen file is written by nobody but kvmms. When one is found changed:
//!
//! * the *content* of its instant, and of every frozen instant above it, is not what it was: these are `lost`. Instants frozen
//!   later hold what the guest saw afterwards and are good;
//! * a *difference* is unknown where the file is part of the later instant's content and the earlier one was frozen before the change.
//!   Differences between instants that do not read the file, or that were both frozen after the change, stay known: their maps are files
//!   of our own with check sums.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{LayerTree, Stamp};

/// That a frozen file was changed by something other than kvmms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The file.
    pub file: PathBuf,
    /// What it was when kvmms knew it last.
    pub was: Stamp,
    /// What it was found to be.
    pub found: Stamp,
    /// When that was noticed.
    pub noticed: SystemTime,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.found.len.cmp(&self.was.len) {
            std::cmp::Ordering::Less => "cut",
            std::cmp::Ordering::Equal => "written to or exchanged",
            std::cmp::Ordering::Greater => "enlarged",
        };
        let noticed = jiff::Timestamp::try_from(self.noticed).unwrap_or_default();
        write!(
            f,
            "{} was changed by something other than kvmms: {how} ({} bytes, then {}), noticed {noticed:.0}",
            self.file.display(),
            self.was.len,
            self.found.len
        )
    }
}

impl LayerTree {
    /// Records that the file of a frozen node is not what it was; from now on it is taken as it was found.
    pub fn distrust(&mut self, node: Uuid, foreign: Foreign) {
        let above: Vec<Uuid> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| *id != self.active && self.is_ancestor(node, *id))
            .collect();
        for id in above {
            if let Some(record) = self.nodes.get_mut(&id) {
                record.lost = true;
            }
        }
        if let Some(record) = self.nodes.get_mut(&node) {
            record.stamp = Some(foreign.found);
            record.foreign = Some(foreign);
        }
    }

    /// Why the content of a lost node is lost: the changed file that it is read from, where that is known.
    pub fn why_lost(&self, node: Uuid) -> Option<&Foreign> {
        self.line(node)
            .into_iter()
            .find_map(|id| self.nodes.get(&id)?.foreign.as_ref())
    }

    /// Why the difference between two instants is not known, as far as changed files are concerned.
    pub fn doubt(&self, from: Uuid, to: Uuid) -> Option<Doubt> {
        let (earlier, later) = (self.line(from), self.line(to));
        let lost = |id: Uuid| self.nodes.get(&id).is_none_or(|n| n.lost);
        if lost(to) {
            return Some(Doubt::of(self.why_lost(to)));
        }
        let mut named = false;
        for id in &later {
            let Some(foreign) = self.nodes.get(id).and_then(|n| n.foreign.as_ref()) else {
                continue;
            };
            // One that both read may have been changed before either was frozen.
            if !earlier.contains(id) || lost(from) {
                return Some(Doubt::of(Some(foreign)));
            }
            named = true;
        }
        // Something that only the earlier instant reads: it was what it was when it was exported, and the maps still tell what
        // changed. Where nothing names the reason, nothing can be concluded.
        if lost(from) && !named && self.why_lost(from).is_none() {
            return Some(Doubt::of(None));
        }
        None
    }
}

/// Why something about an instant cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The file it is about, where it is known.
    pub file: Option<PathBuf>,
    /// The reason.
    pub reason: String,
}

impl Doubt {
    fn of(foreign: Option<&Foreign>) -> Self {
        match foreign {
            Some(foreign) => Doubt {
                file: Some(foreign.file.clone()),
                reason: foreign.to_string(),
            },
            None => Doubt {
                file: None,
                reason: "a file it is read from was changed by something other than kvmms"
                    .to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_tree::{Frozen, LayerRef};
    use hypervisor::ImageFormat;

    fn stamp(len: u64) -> Stamp {
        Stamp {
            len,
            seconds: 0,
            nanos: 0,
        }
    }

    fn foreign() -> Foreign {
        Foreign {
            file: "f".into(),
            was: stamp(2),
            found: stamp(1),
            noticed: SystemTime::UNIX_EPOCH,
        }
    }

    fn layer() -> LayerRef {
        LayerRef {
            layer: Uuid::new_v4(),
            path: "l".into(),
            format: ImageFormat::Qcow2,
            shared: false,
        }
    }

    fn grow(tree: &mut LayerTree) -> Uuid {
        let node = Uuid::new_v4();
        let frozen = Frozen {
            map: Some("m".into()),
            size: 1,
            stamp: Some(stamp(2)),
        };
        tree.freeze(node, layer(), frozen);
        node
    }

    /// root <- a <- b <- c (active)
    fn four() -> (LayerTree, [Uuid; 4]) {
        let mut tree = LayerTree::new("base".into(), ImageFormat::Raw, 1);
        let root = tree.active;
        let ids = [root, grow(&mut tree), grow(&mut tree), grow(&mut tree)];
        (tree, ids)
    }

    #[test]
    fn a_changed_file_condemns_what_is_read_through_it_and_nothing_beneath() {
        let (mut tree, [root, a, b, c]) = four();
        tree.distrust(a, foreign());
        let lost = |id: Uuid| tree.nodes.get(&id).is_some_and(|n| n.lost);
        assert_eq!([root, a, b, c].map(lost), [false, true, true, false]);
        assert!(
            tree.why_lost(b)
                .is_some_and(|f| f.to_string().contains("cut"))
        );
    }

    #[test]
    fn a_difference_is_unknown_only_across_the_change() {
        let (mut tree, [root, a, b, c]) = four();
        tree.distrust(a, foreign());
        for from in [root, a, b] {
            assert!(tree.doubt(from, c).is_some());
        }
        // Frozen after the change: good, and a good base.
        let d = grow(&mut tree);
        assert!(tree.doubt(c, d).is_none());
        assert!(tree.doubt(root, c).is_some());
        assert!(tree.doubt(root, b).is_some(), "its content is lost");
        assert!(tree.doubt(root, root).is_none());
    }

    #[test]
    fn a_branch_that_does_not_read_the_file_is_not_condemned() {
        let (mut tree, [root, a, b, _]) = four();
        let other = Uuid::new_v4();
        tree.branch(root, other, layer());
        tree.distrust(b, foreign());
        assert!(tree.doubt(root, other).is_none());
        assert!(tree.doubt(a, other).is_none());
        // What b was is known from its export, what changed since from the maps.
        assert!(tree.doubt(b, other).is_none());
    }

    #[test]
    fn a_dropped_instant_leaves_the_doubt_to_its_child() {
        let (mut tree, [root, a, b, c]) = four();
        tree.distrust(a, foreign());
        tree.committed(b);
        let prune = tree.next_prune(&|n| n != a);
        assert_eq!(prune.as_ref().map(|p| p.node), Some(a));
        if let Some(prune) = prune {
            tree.pruned(&prune, Some("joined".into()));
        }
        assert!(tree.doubt(root, c).is_some());
        assert!(tree.doubt(b, c).is_some());
    }

    #[test]
    fn a_record_that_gives_no_reason_is_not_trusted() {
        let (mut tree, [_, a, _, c]) = four();
        if let Some(node) = tree.nodes.get_mut(&a) {
            node.lost = true;
        }
        assert!(tree.doubt(a, c).is_some());
    }
}

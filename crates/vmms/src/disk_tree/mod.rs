//! A disk as a tree of layers.
//!
//! A *node* is an instant of the disk. The root node is the disk as it was attached; each further node
//! descends from the one before it, and the one `active` node is the present. A node holds two things, either
//! of which may be missing:
//!
//! * a *file* with its content (together with the files of its ancestors), as long as nobody merged it away;
//! * a *map* of what changed from its parent to it, kept once the node is frozen.
//!
//! ```text
//!  root ---- A ---- B ---- active        nodes (instants)
//!  base.q2   -     l2.q2   l3.q2         files: A was committed into the base, which now has A's content
//!            mapA  mapB    -             maps: the difference root->B is mapA + mapB
//! ```
//!
//! Merging a frozen node's file into the file beneath hands that file on: the file beneath then holds
//! the *later* instant. So a node without file can still be the base of a difference, only not be read.
//! Everything here is pure; what it decides is carried out by [`crate::point`].

mod trust;

pub use trust::{Doubt, Foreign};

use std::collections::BTreeMap;
use std::path::PathBuf;

use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The layers of one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerTree {
    /// The node the guest writes to.
    pub active: Uuid,
    /// All nodes.
    pub nodes: BTreeMap<Uuid, LayerNode>,
    /// A change of the files that was begun; what is on disk decides whether it happened.
    #[serde(default)]
    pub pending: Option<Pending>,
    /// Files whose content was merged into others and that still have to be deleted.
    #[serde(default)]
    pub leftovers: Vec<PathBuf>,
}

/// An instant of a disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNode {
    /// The instant before it; `None` for the root.
    pub parent: Option<Uuid>,
    /// The topmost file of its content; `None` once a later instant was merged into it.
    pub file: Option<LayerRef>,
    /// The change map from the parent, for frozen nodes with a parent.
    #[serde(default)]
    pub map: Option<PathBuf>,
    /// The size of the disk at that instant, in bytes (of the active node: when it was last looked at).
    pub size: u64,
    /// What `file` looked like when it was last written by QEMU or by us; `None` for the active node.
    #[serde(default)]
    pub stamp: Option<Stamp>,
    /// Something else wrote to a file this instant is read from, after it was frozen: its content is not what it was.
    #[serde(default)]
    pub lost: bool,
    /// What was found of its file when something else had changed it.
    #[serde(default)]
    pub foreign: Option<Foreign>,
}

/// What a frozen file looks like from outside; a frozen file never changes, so any difference means that
/// something else wrote to it or put another file in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its length in bytes.
    pub len: u64,
    /// When it was modified last: whole seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: i64,
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(path: &std::path::Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path)?;
        Ok(Stamp {
            len: meta.len(),
            seconds: meta.mtime(),
            nanos: meta.mtime_nsec(),
        })
    }
}

/// What is known of an instant once it is frozen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frozen {
    /// Its change map, where it has a parent.
    pub map: Option<PathBuf>,
    /// Its size in bytes.
    pub size: u64,
    /// The stamp of its file.
    pub stamp: Option<Stamp>,
}

/// A layer's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerRef {
    /// The layer's own id; QEMU's node name comes from it. Stays with the file when a later instant is merged into it.
    pub layer: Uuid,
    /// Where it is.
    pub path: PathBuf,
    /// What it is; only the base may be anything but qcow2.
    pub format: ImageFormat,
    /// Whether others may use it too (it was the backing file of the image the user attached): never written.
    #[serde(default)]
    pub shared: bool,
}

/// A change of files in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pending {
    /// A new active layer is being put on top: node `node` in `file`.
    Freeze {
        /// The new active node.
        node: Uuid,
        /// Its file.
        file: LayerRef,
    },
    /// The file of the frozen `node` is being merged into the next file beneath.
    Commit {
        /// The node whose file goes.
        node: Uuid,
    },
    /// A new active layer is being made on an older instant. It becomes the active one by the record alone: as long as
    /// this stands, it has not.
    Branch {
        /// The new layer's file.
        file: LayerRef,
    },
    /// The active layer is being merged into the file beneath while the guest stands still.
    Fold {
        /// The guest ran before, and must go on afterwards.
        resume: bool,
    },
    /// The active layer was merged while the guest stood still; the guest must go on.
    Resume,
}

impl LayerTree {
    /// The tree of a disk just attached: one node, active, no map.
    pub fn new(path: PathBuf, format: ImageFormat, size: u64) -> Self {
        let root = Uuid::new_v4();
        let file = LayerRef {
            layer: Uuid::new_v4(),
            path,
            format,
            shared: false,
        };
        let node = LayerNode {
            parent: None,
            file: Some(file),
            map: None,
            size,
            stamp: None,
            lost: false,
            foreign: None,
        };
        LayerTree {
            active: root,
            nodes: BTreeMap::from([(root, node)]),
            pending: None,
            leftovers: Vec::new(),
        }
    }

    /// The disk as it is now, without its history and its files: what a copy of its settings needs.
    pub fn bare(&self) -> Self {
        let size = self.nodes.get(&self.active).map_or(0, |n| n.size);
        let node = LayerNode {
            parent: None,
            file: None,
            map: None,
            size,
            stamp: None,
            lost: false,
            foreign: None,
        };
        LayerTree {
            active: self.active,
            nodes: BTreeMap::from([(self.active, node)]),
            pending: None,
            leftovers: Vec::new(),
        }
    }

    /// The tree of a disk whose image has backing files of its own, base first, the attached image last. The
    /// backing files count as shared: nothing is ever merged into them.
    pub fn with_backing(files: Vec<(PathBuf, ImageFormat, u64)>) -> Option<Self> {
        let mut nodes = BTreeMap::new();
        let mut parent = None;
        let last = files.len().checked_sub(1)?;
        for (i, (path, format, size)) in files.into_iter().enumerate() {
            let id = Uuid::new_v4();
            let file = LayerRef {
                layer: Uuid::new_v4(),
                path,
                format,
                shared: i < last,
            };
            nodes.insert(
                id,
                LayerNode {
                    parent,
                    file: Some(file),
                    map: None,
                    size,
                    stamp: None,
                    lost: false,
                    foreign: None,
                },
            );
            parent = Some(id);
        }
        Some(LayerTree {
            active: parent?,
            nodes,
            pending: None,
            leftovers: Vec::new(),
        })
    }

    fn is_shared(&self, node: Uuid) -> bool {
        self.nodes
            .get(&node)
            .and_then(|n| n.file.as_ref())
            .is_some_and(|f| f.shared)
    }

    /// The nodes from `node` to the root, `node` first. Stops at a node that is missing.
    pub fn line(&self, node: Uuid) -> Vec<Uuid> {
        let mut out = Vec::new();
        let mut at = Some(node);
        while let Some(id) = at {
            // A loop in a damaged record must not hang the service.
            if out.contains(&id) || out.len() > self.nodes.len() {
                break;
            }
            let Some(node) = self.nodes.get(&id) else {
                break;
            };
            out.push(id);
            at = node.parent;
        }
        out
    }

    /// The files that hold the content of `node`, base first, or `None` when it cannot be read any more.
    pub fn chain(&self, node: Uuid) -> Option<Vec<LayerRef>> {
        self.nodes.get(&node)?.file.as_ref()?;
        let line = self.line(node);
        let mut files: Vec<LayerRef> = line
            .iter()
            .filter_map(|id| self.nodes.get(id)?.file.clone())
            .collect();
        files.reverse();
        Some(files)
    }

    /// The files the guest runs on, base first.
    pub fn active_chain(&self) -> Vec<LayerRef> {
        self.chain(self.active).unwrap_or_default()
    }

    /// The nodes whose maps make up the difference between two instants, or `None` when they are not in one
    /// tree. The active node stands in the list where its own, live map is needed.
    pub fn path_between(&self, from: Uuid, to: Uuid) -> Option<Vec<Uuid>> {
        let (a, b) = (self.line(from), self.line(to));
        let meet = b.iter().find(|id| a.contains(id))?;
        let down = a.iter().take_while(|id| *id != meet);
        let up = b.iter().take_while(|id| *id != meet);
        Some(down.chain(up).copied().collect())
    }

    /// Whether `node` is an ancestor of `of`, or `of` itself.
    pub fn is_ancestor(&self, node: Uuid, of: Uuid) -> bool {
        self.line(of).contains(&node)
    }

    /// Records a freeze: the present becomes a frozen instant, `node` in `file` the new present.
    pub fn freeze(&mut self, node: Uuid, file: LayerRef, frozen: Frozen) {
        if let Some(old) = self.nodes.get_mut(&self.active) {
            old.map = frozen.map;
            old.size = frozen.size;
            old.stamp = frozen.stamp;
        }
        let new = LayerNode {
            parent: Some(self.active),
            file: Some(file),
            map: None,
            size: frozen.size,
            stamp: None,
            lost: false,
            foreign: None,
        };
        self.nodes.insert(node, new);
        self.active = node;
        self.pending = None;
    }

    /// Records that the present was given up for a new one, `node` in `file`, that descends from the instant `on`.
    pub fn branch(&mut self, on: Uuid, node: Uuid, file: LayerRef) {
        let size = self.nodes.get(&on).map_or(0, |n| n.size);
        // Points and snapshots name frozen nodes only, so nothing else knows the old present.
        let given_up = self.nodes.remove(&self.active).and_then(|n| n.file);
        self.leftovers.extend(given_up.map(|f| f.path));
        let new = LayerNode {
            parent: Some(on),
            file: Some(file),
            map: None,
            size,
            stamp: None,
            lost: false,
            foreign: None,
        };
        self.nodes.insert(node, new);
        self.active = node;
        self.pending = None;
    }

    /// Records an instant beside the present, `node` in `file`, that descends from the instant `on`.
    pub fn aside(&mut self, on: Uuid, node: Uuid, file: LayerRef, frozen: Frozen) {
        let new = LayerNode {
            parent: Some(on),
            file: Some(file),
            map: frozen.map,
            size: frozen.size,
            stamp: frozen.stamp,
            lost: false,
            foreign: None,
        };
        self.nodes.insert(node, new);
    }

    /// A node on a branch that was left whose file nobody needs and nothing lies on. Its map stays.
    pub fn next_drop(&self, needed: &dyn Fn(Uuid) -> bool) -> Option<Uuid> {
        let line = self.line(self.active);
        self.nodes
            .iter()
            .filter(|(id, n)| n.file.as_ref().is_some_and(|f| !f.shared) && !line.contains(id))
            .map(|(id, _)| *id)
            .find(|id| !needed(*id) && self.above(*id).is_empty())
    }

    /// Records that the file of `node` goes.
    pub fn dropped(&mut self, node: Uuid) {
        if let Some(n) = self.nodes.get_mut(&node) {
            self.leftovers.extend(n.file.take().map(|f| f.path));
            n.stamp = None;
        }
    }

    /// The files above and beneath `node` along its own branch, base first: the active chain where it is part of it.
    pub fn chain_through(&self, node: Uuid) -> Vec<LayerRef> {
        let mut tip = node;
        if self.is_ancestor(node, self.active) {
            tip = self.active;
        } else {
            while let Some(above) = self.above(tip).first() {
                tip = *above;
            }
        }
        self.chain(tip).unwrap_or_default()
    }

    /// The nearest ancestor of `node` that has a file: what its file is merged into.
    pub fn beneath(&self, node: Uuid) -> Option<Uuid> {
        let has_file = |id: &Uuid| self.nodes.get(id).is_some_and(|n| n.file.is_some());
        self.line(node).into_iter().skip(1).find(has_file)
    }

    /// The children whose file lies directly on the file of `node`.
    pub fn above(&self, node: Uuid) -> Vec<Uuid> {
        let has_file = |n: &LayerNode| n.file.is_some();
        self.nodes
            .iter()
            .filter(|(id, n)| has_file(n) && self.beneath(**id) == Some(node))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Records that the file of `node` was merged into the file beneath: that file now holds `node`'s content.
    pub fn committed(&mut self, node: Uuid) {
        if let Some(beneath) = self.beneath(node) {
            let file = self.nodes.get_mut(&beneath).and_then(|n| n.file.take());
            if let Some(n) = self.nodes.get_mut(&node) {
                let merged = std::mem::replace(&mut n.file, file);
                self.leftovers.extend(merged.map(|m| m.path));
                // The file was written: whoever merged it stamps it anew.
                n.stamp = None;
            }
        }
        self.pending = match self.pending {
            Some(Pending::Fold { resume: true }) => Some(Pending::Resume),
            _ => None,
        };
    }

    /// A node whose file may be merged into the one beneath, given which instants must stay readable:
    /// frozen, something beneath it that nobody needs and that nothing else lies on, and not where branches begin. The
    /// lowest of the present's line first, then branches that were left.
    pub fn next_commit(&self, needed: &dyn Fn(Uuid) -> bool) -> Option<Uuid> {
        let mut line = self.line(self.active);
        line.reverse();
        // Branches that were left after the one the guest runs on, each from below.
        let mut left: Vec<Uuid> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| !line.contains(id))
            .collect();
        left.sort_by_key(|id| self.line(*id).len());
        line.into_iter().chain(left).find(|id| {
            *id != self.active
                && self.nodes.get(id).is_some_and(|n| n.file.is_some())
                // Where a branch begins, more than one layer would have to be told what lies beneath it now.
                && self.above(*id).len() <= 1
                && self
                    .beneath(*id)
                    .is_some_and(|b| !needed(b) && !self.is_shared(b) && self.above(b).len() == 1)
        })
    }

    /// Whether the active layer itself may be folded into the file beneath: no instant but the present is
    /// needed, readable or as the start of a difference, and only one file lies beneath.
    pub fn can_fold(&self, wanted: &dyn Fn(Uuid) -> bool) -> bool {
        self.beneath(self.active)
            .is_some_and(|b| !self.is_shared(b) && self.above(b).len() == 1)
            && self.active_chain().iter().filter(|f| !f.shared).count() == 2
            && !self
                .nodes
                .keys()
                .any(|id| *id != self.active && wanted(*id))
    }

    /// Drops nodes that nobody wants: without file, not wanted as an instant, with at most one child. Returns for each the map files
    /// that must be merged (`into` takes over what changed before it), in the order in which to do it.
    pub fn next_prune(&self, wanted: &dyn Fn(Uuid) -> bool) -> Option<Prune> {
        self.nodes.iter().find_map(|(id, node)| {
            let children: Vec<Uuid> = self
                .nodes
                .iter()
                .filter(|(_, n)| n.parent == Some(*id))
                .map(|(c, _)| *c)
                .collect();
            let gone = *id != self.active && node.file.is_none() && !wanted(*id);
            match (gone, children.as_slice()) {
                (true, []) => Some(Prune {
                    node: *id,
                    child: None,
                }),
                // An active child took over the file, and with it what that file says of changes.
                (true, [child]) => Some(Prune {
                    node: *id,
                    child: Some(*child),
                }),
                _ => None,
            }
        })
    }

    /// Records a prune; the child descends from the pruned node's parent and has `map` as its map.
    pub fn pruned(&mut self, prune: &Prune, map: Option<PathBuf>) {
        let Some(gone) = self.nodes.remove(&prune.node) else {
            return;
        };
        if let Some(child) = prune.child.and_then(|c| self.nodes.get_mut(&c)) {
            child.parent = gone.parent;
            child.map = map;
            child.foreign = child.foreign.take().or(gone.foreign);
        }
    }
}

/// A node to drop, and the child that takes over its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prune {
    /// The node that goes.
    pub node: Uuid,
    /// Its only child.
    pub child: Option<Uuid>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> LayerRef {
        LayerRef {
            layer: Uuid::new_v4(),
            path: name.into(),
            format: ImageFormat::Qcow2,
            shared: false,
        }
    }

    fn names(chain: Option<Vec<LayerRef>>) -> Vec<String> {
        chain
            .into_iter()
            .flatten()
            .map(|l| l.path.display().to_string())
            .collect()
    }

    /// root(base) <- a(l1) <- b(l2) <- active(l3)
    fn three() -> (LayerTree, [Uuid; 4]) {
        let mut tree = LayerTree::new("base".into(), ImageFormat::Raw, 100);
        let root = tree.active;
        let ids = [root, Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
        let frozen = |map: Option<&str>| Frozen {
            map: map.map(Into::into),
            size: 100,
            stamp: None,
        };
        tree.freeze(ids[1], layer("l1"), frozen(None));
        tree.freeze(ids[2], layer("l2"), frozen(Some("map-a")));
        tree.freeze(ids[3], layer("l3"), frozen(Some("map-b")));
        (tree, ids)
    }

    #[test]
    fn each_instant_is_read_from_the_files_up_to_it() {
        let (tree, [root, a, b, active]) = three();
        assert_eq!(names(tree.chain(root)), ["base"]);
        assert_eq!(names(tree.chain(a)), ["base", "l1"]);
        assert_eq!(names(tree.chain(b)), ["base", "l1", "l2"]);
        assert_eq!(names(tree.chain(active)), ["base", "l1", "l2", "l3"]);
    }

    #[test]
    fn a_commit_hands_the_file_beneath_to_the_later_instant() {
        let (mut tree, [root, a, b, active]) = three();
        // Nobody needs the root's content: a's file goes into the base.
        assert_eq!(tree.next_commit(&|_| false), Some(a));
        tree.committed(a);
        assert_eq!(tree.chain(root), None);
        assert_eq!(names(tree.chain(a)), ["base"]);
        assert_eq!(names(tree.chain(active)), ["base", "l2", "l3"]);
        assert_eq!(
            tree.next_commit(&|id| id == a),
            None,
            "a must stay readable"
        );
        assert_eq!(tree.next_commit(&|_| false), Some(b));
        tree.committed(b);
        assert_eq!(names(tree.chain(active)), ["base", "l3"]);
        assert_eq!(
            tree.next_commit(&|_| false),
            None,
            "the active layer is not a frozen one"
        );
    }

    #[test]
    fn the_difference_of_two_instants_is_the_maps_between_them() {
        let (tree, [root, a, b, active]) = three();
        assert_eq!(tree.path_between(root, b), Some(vec![b, a]));
        assert_eq!(tree.path_between(a, active), Some(vec![active, b]));
        assert_eq!(tree.path_between(b, b), Some(vec![]));
        assert_eq!(
            tree.path_between(b, a),
            Some(vec![b]),
            "also backwards, across an applied snapshot"
        );
        assert_eq!(tree.path_between(Uuid::new_v4(), a), None);
    }

    #[test]
    fn a_dropped_instant_leaves_its_changes_to_its_child() {
        let (mut tree, [root, a, b, active]) = three();
        tree.committed(a);
        tree.committed(b);
        // root and a have no file any more; a is still wanted as a base.
        let wanted = |id: Uuid| id == a || id == b;
        let prune = tree.next_prune(&wanted).expect("root goes");
        assert_eq!(
            prune,
            Prune {
                node: root,
                child: Some(a)
            }
        );
        tree.pruned(&prune, None);
        assert_eq!(tree.next_prune(&wanted), None);
        let prune = tree.next_prune(&|id| id == b).expect("a goes");
        assert_eq!(
            prune,
            Prune {
                node: a,
                child: Some(b)
            }
        );
        tree.pruned(&prune, None);
        assert_eq!(tree.line(active), [active, b]);
        assert!(!tree.can_fold(&|id| id == b));
        assert!(tree.can_fold(&|_| false));
    }

    /// The tree of `three`, gone back to `a`: root <- a <- b (left), a <- here (active)
    fn branched() -> (LayerTree, [Uuid; 4]) {
        let (mut tree, [root, a, b, _]) = three();
        let here = Uuid::new_v4();
        tree.branch(a, here, layer("l4"));
        (tree, [root, a, b, here])
    }

    #[test]
    fn a_branch_gives_up_the_present_and_keeps_every_other_instant() {
        let (tree, [root, a, b, here]) = branched();
        assert_eq!(tree.active, here);
        assert_eq!(tree.leftovers, [PathBuf::from("l3")]);
        assert_eq!(names(tree.chain(here)), ["base", "l1", "l4"]);
        assert_eq!(names(tree.chain(b)), ["base", "l1", "l2"]);
        assert_eq!(
            tree.path_between(b, here),
            Some(vec![b, here]),
            "down one branch, up the other"
        );
        assert_eq!(tree.path_between(root, here), Some(vec![here, a]));
        assert_eq!(tree.chain_through(b).len(), 3);
        assert_eq!(
            tree.chain_through(a).last().map(|f| f.path.clone()),
            Some("l4".into())
        );
    }

    #[test]
    fn nothing_is_merged_into_or_out_of_the_place_where_branches_begin() {
        let (tree, [_, a, b, here]) = branched();
        // Somebody needs b: a has two layers on it.
        assert_eq!(tree.next_drop(&|n| n == b), None);
        assert_eq!(
            tree.next_commit(&|n| n == b),
            None,
            "neither a into the base, nor b into a"
        );
        assert!(!tree.can_fold(&|n| n == b));
        let (mut tree, _) = (tree, here);
        // Nobody needs b: its file goes, its map stays, and what is left is one line again.
        assert_eq!(tree.next_drop(&|_| false), Some(b));
        tree.dropped(b);
        assert_eq!(tree.chain(b), None);
        assert!(tree.nodes.get(&b).is_some_and(|n| n.map.is_some()));
        assert_eq!(tree.leftovers, [PathBuf::from("l3"), PathBuf::from("l2")]);
        assert_eq!(tree.next_commit(&|_| false), Some(a));
    }

    #[test]
    fn a_branch_that_was_left_is_merged_by_itself() {
        let (mut tree, [_, a, b, here]) = branched();
        let frozen = Frozen {
            map: Some("map-here".into()),
            size: 100,
            stamp: None,
        };
        // Go on from here, freeze twice, and go back to b: the line over `here` is left.
        let (upper, top) = (Uuid::new_v4(), Uuid::new_v4());
        tree.freeze(upper, layer("l5"), frozen.clone());
        tree.freeze(top, layer("l6"), frozen);
        let back = Uuid::new_v4();
        tree.branch(b, back, layer("l7"));
        let needed = |n: Uuid| n == upper || n == b || n == a;
        assert_eq!(
            tree.next_commit(&needed),
            Some(upper),
            "into `here`, which nobody needs"
        );
        let chain: Vec<_> = tree
            .chain_through(upper)
            .into_iter()
            .map(|f| f.path)
            .collect();
        assert_eq!(chain, ["base", "l1", "l4", "l5"].map(PathBuf::from));
        tree.committed(upper);
        assert_eq!(names(tree.chain(upper)), ["base", "l1", "l4"]);
        assert_eq!(names(tree.chain(back)), ["base", "l1", "l2", "l7"]);
        assert_eq!(tree.next_commit(&needed), None);
        assert!(tree.nodes.contains_key(&here));
    }
}

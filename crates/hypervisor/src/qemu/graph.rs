//! QEMU's block graph, read into drives and layers.
//!
//! Names and edges are cheap to ask for. What a layer's file, size and format are is not: QEMU spells out the whole
//! chain beneath each node, with its main loop and so the guest's disks standing still (0.3 s for two chains of 60
//! layers). So these facts are asked for once and kept; sizes only change through us.
//!
//! While a job runs QEMU puts filter nodes of its own into a chain, named `#block…`; they are walked through and not
//! shown.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::machine::QemuMachine;
use crate::block::{BlockState, DriveState, ExportState, JobState, NodeState};
use crate::config::ImageFormat;
use crate::error::{Error, Result};
use crate::names;
use crate::qmp::codec::{flag, items, number, text};

/// Longer than any chain QEMU opens; stops a walk in circles.
const MAX_DEPTH: usize = 1000;

/// Facts of nodes, as last asked.
#[derive(Debug, Default)]
pub(super) struct Facts {
    known: Mutex<HashMap<String, NodeState>>,
}

impl Facts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, NodeState>> {
        // A panic while the map was held leaves a usable map.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer we have just made: no need to ask.
    pub(super) fn learn(&self, node: NodeState) {
        self.lock().insert(node.node_name.clone(), node);
    }

    /// A layer changed: ask again.
    pub(super) fn forget(&self, node: &str) {
        self.lock().remove(node);
    }

    /// The facts of these nodes, from memory where all are known.
    async fn of(&self, machine: &QemuMachine, nodes: &[String]) -> Result<Vec<NodeState>> {
        let all = |known: &HashMap<String, NodeState>| -> Option<Vec<NodeState>> {
            nodes.iter().map(|name| known.get(name).cloned()).collect()
        };
        let kept = all(&self.lock());
        if let Some(kept) = kept {
            return Ok(kept);
        }
        self.refresh(machine).await?;
        all(&self.lock())
            .ok_or_else(|| Error::conflict("the disks changed while they were looked at"))
    }

    async fn refresh(&self, machine: &QemuMachine) -> Result<()> {
        let nodes = machine
            .execute("query-named-block-nodes", json!({ "flat": true }))
            .await?;
        *self.lock() = parse_facts(&nodes);
        Ok(())
    }
}

/// Names and edges as QEMU told them.
#[derive(Debug, Default)]
pub(super) struct Graph {
    names: HashSet<String>,
    /// Child of each node that holds the rest of its contents: `backing`, for filters also `file`.
    beneath: HashMap<String, String>,
    drives: Vec<Root>,
}

#[derive(Debug)]
struct Root {
    id: String,
    node: Option<String>,
    cdrom: bool,
}

impl Graph {
    pub(super) async fn read(machine: &QemuMachine) -> Result<Self> {
        let graph = machine
            .execute("x-debug-query-block-graph", Value::Null)
            .await?;
        let mut found = Self::parse(&graph);
        let devices = machine
            .execute("qom-list", json!({ "path": "/machine/peripheral" }))
            .await?;
        for device in items(&devices) {
            let (Some(name), Some(kind)) = (text(device, "name"), text(device, "type")) else {
                continue;
            };
            let Some(id) = names::drive_of_device(name) else {
                continue;
            };
            let question =
                json!({ "path": format!("/machine/peripheral/{name}"), "property": "drive" });
            let node = match machine.execute("qom-get", question).await {
                Ok(node) => node
                    .as_str()
                    .filter(|node| !node.is_empty())
                    .map(str::to_owned),
                // Unplugged a moment ago.
                Err(Error::Qmp { .. }) => continue,
                Err(error) => return Err(error),
            };
            found.drives.push(Root {
                id: id.to_owned(),
                node,
                cdrom: kind.contains("-cd>"),
            });
        }
        Ok(found)
    }

    fn parse(graph: &Value) -> Self {
        let list = |name| graph.get(name).map(items).unwrap_or_default();
        let names: HashMap<u64, &str> = list("nodes")
            .iter()
            .filter(|node| text(node, "type") == Some("block-driver"))
            .filter_map(|node| Some((number(node, "id")?, text(node, "name")?)))
            .collect();
        let mut beneath = HashMap::new();
        for edge in list("edges") {
            let end = |name| number(edge, name).and_then(|id| names.get(&id).copied());
            let (Some(parent), Some(child)) = (end("parent"), end("child")) else {
                continue;
            };
            match text(edge, "name") {
                Some("backing") => drop(beneath.insert(parent.to_owned(), child.to_owned())),
                Some("file") if is_filter(parent) => {
                    beneath
                        .entry(parent.to_owned())
                        .or_insert_with(|| child.to_owned());
                }
                _ => {}
            }
        }
        Self {
            names: names.into_values().map(str::to_owned).collect(),
            beneath,
            drives: Vec::new(),
        }
    }

    /// Layers from that node down, topmost first.
    pub(super) fn downwards(&self, from: &str) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = Some(from);
        for _ in 0..MAX_DEPTH {
            let Some(name) = next.filter(|name| self.names.contains(*name)) else {
                break;
            };
            if !is_filter(name) {
                chain.push(name.to_owned());
            }
            next = self.beneath.get(name).map(String::as_str);
        }
        chain
    }

    pub(super) fn has_node(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    pub(super) fn drives(&self) -> impl Iterator<Item = &str> {
        self.drives.iter().map(|root| root.id.as_str())
    }

    fn root(&self, drive: &str) -> Result<&Root> {
        self.drives
            .iter()
            .find(|root| root.id == drive)
            .ok_or_else(|| Error::not_found(format!("drive `{drive}`")))
    }

    pub(super) fn has_drive(&self, drive: &str) -> bool {
        self.root(drive).is_ok()
    }

    pub(super) fn is_cdrom(&self, drive: &str) -> Result<bool> {
        Ok(self.root(drive)?.cdrom)
    }

    /// Layers of a drive, base first.
    pub(super) fn chain(&self, drive: &str) -> Result<Vec<String>> {
        let root = self.root(drive)?;
        let mut chain = root
            .node
            .as_deref()
            .map(|node| self.downwards(node))
            .unwrap_or_default();
        chain.reverse();
        Ok(chain)
    }

    /// The topmost layer of a drive.
    pub(super) fn active(&self, drive: &str) -> Result<String> {
        let no_medium = || Error::conflict(format!("drive `{drive}` has no medium"));
        self.chain(drive)?.pop().ok_or_else(no_medium)
    }

    /// The layers of a drive with their facts, base first.
    pub(super) async fn chain_facts(
        &self,
        machine: &QemuMachine,
        drive: &str,
    ) -> Result<Vec<NodeState>> {
        machine.facts().of(machine, &self.chain(drive)?).await
    }

    /// Names of all layers that a drive uses.
    pub(super) fn used(&self) -> BTreeSet<String> {
        let roots = self.drives.iter().filter_map(|root| root.node.as_deref());
        roots.flat_map(|node| self.downwards(node)).collect()
    }

    /// Layers of ours that no drive uses.
    pub(super) fn loose(&self) -> Vec<String> {
        let used = self.used();
        let ours = |name: &&String| {
            self.names.contains(&names::file_node(name)) && !name.starts_with("firmware")
        };
        let mut loose: Vec<String> = self
            .names
            .iter()
            .filter(ours)
            .filter(|name| !used.contains(*name))
            .cloned()
            .collect();
        loose.sort();
        loose
    }

    /// The layer, of a drive or loose, that has that file.
    pub(super) async fn node_of_path(
        &self,
        machine: &QemuMachine,
        path: &Path,
    ) -> Result<Option<String>> {
        let layers: Vec<String> = self.used().into_iter().chain(self.loose()).collect();
        let facts = machine.facts().of(machine, &layers).await?;
        Ok(facts
            .into_iter()
            .find(|node| node.path.as_deref() == Some(path))
            .map(|node| node.node_name))
    }
}

fn is_filter(name: &str) -> bool {
    name.starts_with('#')
}

fn parse_facts(nodes: &Value) -> HashMap<String, NodeState> {
    let files: HashMap<&str, &str> = items(nodes)
        .iter()
        .filter_map(|node| Some((text(node, "node-name")?, text(node, "file")?)))
        .collect();
    let facts = |node: &Value| {
        let name = text(node, "node-name")?;
        // The file node's own name for its file; the layer's would spell out its whole chain.
        let path = files
            .get(names::file_node(name).as_str())
            .map(|file| plain_path(file));
        Some(NodeState {
            node_name: name.to_owned(),
            path,
            format: text(node, "drv").and_then(ImageFormat::from_driver),
            size: node
                .pointer("/image/virtual-size")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            read_only: flag(node, "ro"),
        })
    };
    items(nodes)
        .iter()
        .filter_map(facts)
        .map(|node| (node.node_name.clone(), node))
        .collect()
}

/// QEMU prefixes a path with `file:` where it could be taken for a protocol.
fn plain_path(file: &str) -> PathBuf {
    PathBuf::from(file.strip_prefix("file:").unwrap_or(file))
}

pub(super) async fn jobs(machine: &QemuMachine) -> Result<Vec<JobState>> {
    let jobs = machine.execute("query-jobs", Value::Null).await?;
    let job = |job: &Value| {
        Some(JobState {
            id: text(job, "id")?.to_owned(),
            kind: text(job, "type").unwrap_or_default().to_owned(),
            status: text(job, "status").unwrap_or_default().to_owned(),
            done: number(job, "current-progress").unwrap_or(0),
            total: number(job, "total-progress").unwrap_or(0),
            error: text(job, "error").map(str::to_owned),
        })
    };
    Ok(items(&jobs).iter().filter_map(job).collect())
}

pub(super) async fn exports(machine: &QemuMachine) -> Result<Vec<ExportState>> {
    let exports = machine.execute("query-block-exports", Value::Null).await?;
    let export = |export: &Value| {
        Some(ExportState {
            id: text(export, "id")?.to_owned(),
            node_name: text(export, "node-name").unwrap_or_default().to_owned(),
            shutting_down: flag(export, "shutting-down"),
        })
    };
    Ok(items(&exports).iter().filter_map(export).collect())
}

/// Everything, asked anew.
pub(super) async fn reconcile(machine: &QemuMachine) -> Result<BlockState> {
    machine.facts().refresh(machine).await?;
    let graph = Graph::read(machine).await?;
    let open = if graph.drives.iter().any(|root| root.cdrom) {
        open_trays(machine).await?
    } else {
        HashSet::new()
    };
    let mut drives = Vec::new();
    for root in &graph.drives {
        let chain = graph.chain_facts(machine, &root.id).await?;
        drives.push(DriveState {
            id: root.id.clone(),
            chain,
            tray_open: open.contains(&root.id),
        });
    }
    drives.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(BlockState {
        drives,
        loose_nodes: machine.facts().of(machine, &graph.loose()).await?,
        jobs: jobs(machine).await?,
        exports: exports(machine).await?,
    })
}

async fn open_trays(machine: &QemuMachine) -> Result<HashSet<String>> {
    let block = machine.execute("query-block", Value::Null).await?;
    let open = items(&block)
        .iter()
        .filter(|drive| flag(drive, "tray_open"));
    Ok(open
        .filter_map(|drive| names::drive_of_device(text(drive, "qdev")?))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Graph {
        let nodes = [
            "base", "base.f", "top", "top.f", "#block1", "next", "next.f",
        ];
        let nodes: Vec<Value> = (1..)
            .zip(nodes)
            .map(|(id, name)| json!({"id": id, "type": "block-driver", "name": name}))
            .chain([json!({"id": 9, "type": "block-backend", "name": ""})])
            .collect();
        let graph = json!({
            "nodes": nodes,
            "edges": [
                {"parent": 9, "child": 5, "name": "root"}, {"parent": 5, "child": 3, "name": "backing"},
                {"parent": 3, "child": 1, "name": "backing"}, {"parent": 3, "child": 4, "name": "file"},
                {"parent": 1, "child": 2, "name": "file"}, {"parent": 6, "child": 7, "name": "file"},
            ],
        });
        let mut graph = Graph::parse(&graph);
        graph.drives.push(Root {
            id: "sda".into(),
            node: Some("#block1".into()),
            cdrom: false,
        });
        graph.drives.push(Root {
            id: "dvd".into(),
            node: None,
            cdrom: true,
        });
        graph
    }

    #[test]
    fn a_chain_is_read_through_the_filter_of_a_job() {
        let graph = sample();
        assert_eq!(graph.chain("sda").unwrap(), ["base", "top"]);
        assert_eq!(graph.active("sda").unwrap(), "top");
    }

    #[test]
    fn a_node_of_no_drive_is_loose() {
        assert_eq!(sample().loose(), ["next"]);
    }

    #[test]
    fn an_empty_dvd_drive_has_no_layers() {
        let graph = sample();
        assert!(graph.chain("dvd").unwrap().is_empty());
        assert!(graph.is_cdrom("dvd").unwrap());
        assert!(graph.active("dvd").is_err());
        assert!(graph.chain("sdz").is_err());
    }

    #[test]
    fn a_layer_has_the_path_of_its_file_node() {
        let facts = parse_facts(&json!([
            {"node-name": "top.f", "drv": "file", "file": "file:/d/a:b"},
            {"node-name": "top", "drv": "qcow2", "file": "json:{}", "ro": true, "image": {"virtual-size": 512}},
        ]));
        let top = &facts["top"];
        assert_eq!(
            (top.path.as_deref(), top.size, top.read_only),
            (Some(Path::new("/d/a:b")), 512, true)
        );
        assert_eq!(top.format, Some(ImageFormat::Qcow2));
    }

    #[test]
    fn a_graph_in_circles_is_left_at_some_point() {
        let graph = json!({
            "nodes": [{"id": 1, "type": "block-driver", "name": "a"}],
            "edges": [{"parent": 1, "child": 1, "name": "backing"}],
        });
        assert_eq!(Graph::parse(&graph).downwards("a").len(), MAX_DEPTH);
    }
}

//! QEMU's block graph, read into drives and layers.
//!
//! While a job runs QEMU puts filter nodes of its own into a chain; they are walked through and not shown.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::machine::QemuMachine;
use crate::block::{BlockState, DriveState, ExportState, JobState, NodeState};
use crate::config::ImageFormat;
use crate::error::{Error, Result};
use crate::names;
use crate::qmp::codec::{flag, items, number, text};

/// Longer than any chain QEMU opens; stops a walk in circles.
const MAX_DEPTH: usize = 1000;

/// The graph as QEMU told it.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, NodeState>,
    /// Child of each node that holds the rest of its contents: `backing`, for filters also `file`.
    beneath: HashMap<String, String>,
    drives: Vec<Root>,
}

#[derive(Debug)]
struct Root {
    id: String,
    node: Option<String>,
    tray_open: bool,
    removable: bool,
}

impl Graph {
    pub(super) async fn read(machine: &QemuMachine) -> Result<Self> {
        let nodes = machine
            .execute("query-named-block-nodes", json!({ "flat": true }))
            .await?;
        let graph = machine
            .execute("x-debug-query-block-graph", Value::Null)
            .await?;
        let block = machine.execute("query-block", Value::Null).await?;
        Ok(Self::parse(&nodes, &graph, &block))
    }

    fn parse(nodes: &Value, graph: &Value, block: &Value) -> Self {
        let mut files: HashMap<&str, &str> = HashMap::new();
        for node in items(nodes) {
            if let (Some(name), Some(file)) = (text(node, "node-name"), text(node, "file")) {
                files.insert(name, file);
            }
        }
        let mut found = Self::default();
        for node in items(nodes) {
            let Some(name) = text(node, "node-name") else {
                continue;
            };
            let path = files
                .get(names::file_node(name).as_str())
                .map(|file| plain_path(file));
            found.nodes.insert(
                name.to_owned(),
                NodeState {
                    node_name: name.to_owned(),
                    path,
                    format: text(node, "drv").and_then(ImageFormat::from_driver),
                    size: node
                        .pointer("/image/virtual-size")
                        .and_then(Value::as_u64)
                        .unwrap_or(0),
                    read_only: flag(node, "ro"),
                },
            );
        }
        found.beneath = edges(graph, &found.nodes);
        for drive in items(block) {
            let Some(id) = text(drive, "qdev").and_then(names::drive_of_device) else {
                continue;
            };
            found.drives.push(Root {
                id: id.to_owned(),
                node: drive
                    .get("inserted")
                    .and_then(|inserted| text(inserted, "node-name"))
                    .map(str::to_owned),
                tray_open: flag(drive, "tray_open"),
                removable: flag(drive, "removable"),
            });
        }
        found
    }

    /// Layers from that node down, topmost first.
    pub(super) fn downwards(&self, from: &str) -> Vec<&NodeState> {
        let mut chain = Vec::new();
        let mut next = Some(from);
        for _ in 0..MAX_DEPTH {
            let Some(node) = next.and_then(|name| self.nodes.get(name)) else {
                break;
            };
            if node.format.is_some() {
                chain.push(node);
            }
            next = self.beneath.get(&node.node_name).map(String::as_str);
        }
        chain
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.get(name)
    }

    /// The layer that has that file, in a drive or loose.
    pub(super) fn node_of_path(&self, path: &std::path::Path) -> Option<&NodeState> {
        self.nodes
            .values()
            .find(|node| node.path.as_deref() == Some(path))
    }

    fn root(&self, drive: &str) -> Result<&Root> {
        self.drives
            .iter()
            .find(|root| root.id == drive)
            .ok_or_else(|| Error::not_found(format!("drive `{drive}`")))
    }

    pub(super) fn has_drive(&self, drive: &str) -> bool {
        self.drives.iter().any(|root| root.id == drive)
    }

    pub(super) fn is_removable(&self, drive: &str) -> Result<bool> {
        Ok(self.root(drive)?.removable)
    }

    /// Layers of a drive, base first.
    pub(super) fn chain(&self, drive: &str) -> Result<Vec<&NodeState>> {
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
    pub(super) fn active(&self, drive: &str) -> Result<&NodeState> {
        let no_medium = || Error::conflict(format!("drive `{drive}` has no medium"));
        self.chain(drive)?.last().copied().ok_or_else(no_medium)
    }

    /// Names of all layers that a drive uses.
    pub(super) fn used(&self) -> BTreeSet<&str> {
        let roots = self.drives.iter().filter_map(|root| root.node.as_deref());
        roots
            .flat_map(|node| self.downwards(node))
            .map(|node| node.node_name.as_str())
            .collect()
    }

    pub(super) fn drive_states(&self) -> Vec<DriveState> {
        let state = |root: &Root| DriveState {
            id: root.id.clone(),
            chain: self
                .chain(&root.id)
                .unwrap_or_default()
                .into_iter()
                .cloned()
                .collect(),
            tray_open: root.tray_open,
        };
        self.drives.iter().map(state).collect()
    }

    /// Format nodes of ours that no drive uses.
    pub(super) fn loose(&self) -> Vec<NodeState> {
        let used = self.used();
        let ours = |node: &&NodeState| {
            node.format.is_some() && self.nodes.contains_key(&names::file_node(&node.node_name))
        };
        let mut loose: Vec<NodeState> = self
            .nodes
            .values()
            .filter(ours)
            .filter(|node| {
                !used.contains(node.node_name.as_str()) && !node.node_name.starts_with("firmware")
            })
            .cloned()
            .collect();
        loose.sort_by(|one, other| one.node_name.cmp(&other.node_name));
        loose
    }
}

fn edges(graph: &Value, nodes: &HashMap<String, NodeState>) -> HashMap<String, String> {
    let names: HashMap<u64, &str> = items(graph.get("nodes").unwrap_or(&Value::Null))
        .iter()
        .filter(|node| text(node, "type") == Some("block-driver"))
        .filter_map(|node| Some((number(node, "id")?, text(node, "name")?)))
        .collect();
    let mut beneath = HashMap::new();
    for edge in items(graph.get("edges").unwrap_or(&Value::Null)) {
        let end = |name| number(edge, name).and_then(|id| names.get(&id).copied());
        let (Some(parent), Some(child)) = (end("parent"), end("child")) else {
            continue;
        };
        let filter = nodes.get(parent).is_some_and(|node| node.format.is_none());
        match text(edge, "name") {
            Some("backing") => drop(beneath.insert(parent.to_owned(), child.to_owned())),
            Some("file") if filter => drop(
                beneath
                    .entry(parent.to_owned())
                    .or_insert_with(|| child.to_owned()),
            ),
            _ => {}
        }
    }
    beneath
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

pub(super) async fn reconcile(machine: &QemuMachine) -> Result<BlockState> {
    let graph = Graph::read(machine).await?;
    Ok(BlockState {
        drives: graph.drive_states(),
        loose_nodes: graph.loose(),
        jobs: jobs(machine).await?,
        exports: exports(machine).await?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Graph {
        let node = |name: &str, drv: &str, file: &str| json!({"node-name": name, "drv": drv, "file": file, "ro": false, "image": {"virtual-size": 512}});
        let nodes = json!([
            node("base.f", "file", "/d/base"),
            node("base", "raw", "/d/base"),
            node("top.f", "file", "/d/top"),
            node("top", "qcow2", "json:{}"),
            node("#block1", "commit_top", "json:{}"),
            node("next.f", "file", "/d/next"),
            node("next", "qcow2", "/d/next"),
        ]);
        let graph = json!({
            "nodes": [
                {"id": 1, "type": "block-driver", "name": "base"}, {"id": 2, "type": "block-driver", "name": "top"},
                {"id": 3, "type": "block-driver", "name": "#block1"}, {"id": 4, "type": "block-backend", "name": ""},
                {"id": 5, "type": "block-driver", "name": "base.f"},
            ],
            "edges": [
                {"parent": 4, "child": 3, "name": "root"}, {"parent": 3, "child": 2, "name": "backing"},
                {"parent": 2, "child": 1, "name": "backing"}, {"parent": 1, "child": 5, "name": "file"},
            ],
        });
        let block = json!([
            {"qdev": "/machine/peripheral/drive-sda", "inserted": {"node-name": "#block1"}},
            {"qdev": "drive-dvd", "removable": true, "tray_open": true},
        ]);
        Graph::parse(&nodes, &graph, &block)
    }

    #[test]
    fn a_chain_is_read_through_the_filter_of_a_job() {
        let graph = sample();
        let names: Vec<&str> = graph
            .chain("sda")
            .unwrap()
            .iter()
            .map(|node| node.node_name.as_str())
            .collect();
        assert_eq!(names, ["base", "top"]);
        assert_eq!(
            graph.active("sda").unwrap().path.as_deref(),
            Some(std::path::Path::new("/d/top"))
        );
    }

    #[test]
    fn a_node_of_no_drive_is_loose() {
        let loose: Vec<String> = sample()
            .loose()
            .into_iter()
            .map(|node| node.node_name)
            .collect();
        assert_eq!(loose, ["next"]);
    }

    #[test]
    fn an_empty_dvd_drive_has_no_layers() {
        let graph = sample();
        assert!(graph.chain("dvd").unwrap().is_empty());
        assert!(graph.is_removable("dvd").unwrap());
        assert!(graph.active("dvd").is_err());
        assert!(graph.chain("sdz").is_err());
    }
}

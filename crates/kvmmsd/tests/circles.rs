//! No top-level modules of a crate need each other in a ring, but those that are said to.
#![expect(
    clippy::expect_used,
    reason = "a workspace that cannot be read is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// A source file: the modules it stands in, from the root, and its code without comments, texts and tests.
struct Source {
    module: Vec<String>,
    code: String,
}

/// Code without comments and without what is inside of texts.
fn bare(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|c| *c != '\n').is_some() {},
            '"' => {
                while let Some(c) = chars.next_if(|c| *c != '"') {
                    if c == '\\' {
                        chars.next();
                    }
                }
                chars.next();
            }
            '\'' => {
                // A character, or the name of a lifetime.
                let ahead: Vec<char> = chars.clone().take(2).collect();
                match ahead.as_slice() {
                    ['\\', _] => {
                        chars.next();
                        chars.next();
                        while chars.next_if(|c| *c != '\'').is_some() {}
                        chars.next();
                    }
                    [_, '\''] => {
                        chars.next();
                        chars.next();
                    }
                    _ => {}
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// The length of an item: to its semicolon, or to the end of its braces.
fn item(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Takes the items out that are there for tests only; the modules among them that have files of their own.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut files) = (String::new(), Vec::new());
    let mut rest = code;
    while let Some((before, after)) = rest.split_once(MARK) {
        out.push_str(before);
        let (taken, left) = after.split_at(item(after));
        let words: Vec<&str> = taken.split_whitespace().collect();
        if let ["mod", name] | [.., "mod", name] = words.as_slice()
            && let Some(name) = name.strip_suffix(';')
        {
            files.push(name.to_owned());
        }
        rest = left;
    }
    out.push_str(rest);
    (out, files)
}

/// Reads the module of a file and those below it, but those of tests.
fn read(file: &Path, module: &[String], out: &mut Vec<Source>) {
    let text = std::fs::read_to_string(file).expect("a source");
    let (code, tests) = without_tests(&bare(&text));
    let stem = file
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    let parent = file.parent().expect("a directory");
    let dir = if ["mod", "lib", "main"].contains(&stem) {
        parent.to_owned()
    } else {
        parent.join(stem)
    };
    let below = std::fs::read_dir(&dir).into_iter().flatten();
    let mut paths: Vec<PathBuf> = below.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        let inside = if path.is_dir() {
            path.join("mod.rs")
        } else {
            path.clone()
        };
        let is_source = inside.extension().is_some_and(|e| e == "rs") && inside.is_file();
        if !is_source || ["mod", "lib", "main"].contains(&name) || tests.iter().any(|t| t == name) {
            continue;
        }
        let mut module = module.to_vec();
        module.push(name.to_owned());
        read(&inside, &module, out);
    }
    out.push(Source {
        module: module.to_vec(),
        code,
    });
}

/// The paths of a tree of imports: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn leaves(tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![tree.trim().to_owned()];
    };
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let (mut parts, mut depth) = (vec![String::new()], 0usize);
    for c in inside.chars() {
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            c => {
                match c {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    let parts = parts.iter().filter(|p| !p.trim().is_empty());
    parts
        .flat_map(|part| leaves(part))
        .map(|leaf| format!("{}{leaf}", head.trim()))
        .collect()
}

/// All paths in a source that begin at the root of its crate, without `crate`.
fn rooted(source: &Source) -> Vec<String> {
    let mut out = Vec::new();
    let depth = source.module.len();
    let up = "super::".repeat(depth);
    for start in ["crate::", up.as_str()]
        .into_iter()
        .filter(|s| !s.is_empty())
    {
        for (at, _) in source.code.match_indices(start) {
            let before = source.code.get(..at).unwrap_or_default();
            let goes_on =
                before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
            let after = source.code.get(at + start.len()..).unwrap_or_default();
            if goes_on || after.starts_with("super::") {
                continue;
            }
            let is_use = before.ends_with("use ") || after.starts_with('{');
            let end = if is_use {
                item(after)
            } else {
                after
                    .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
                    .unwrap_or(after.len())
            };
            let tree = after.get(..end).unwrap_or_default();
            out.extend(leaves(tree.trim_end_matches(';')));
        }
    }
    out
}

fn first(path: &str) -> &str {
    path.split("::").next().unwrap_or_default().trim()
}

/// Which top-level module of a crate names which.
fn graph(krate: &str) -> Graph {
    let src = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(krate)
        .join("src");
    let root = ["lib.rs", "main.rs"]
        .map(|f| src.join(f))
        .into_iter()
        .find(|f| f.is_file());
    let mut sources = Vec::new();
    read(&root.expect("a root"), &[], &mut sources);
    let modules: BTreeSet<&str> = sources
        .iter()
        .filter_map(|s| s.module.first())
        .map(String::as_str)
        .collect();
    assert!(modules.len() > 5, "{modules:?}");
    // Names the root passes on stand for the module they come from.
    let mut passed_on: BTreeMap<String, String> = BTreeMap::new();
    for source in sources.iter().filter(|s| s.module.is_empty()) {
        for (at, _) in source.code.match_indices("use ") {
            let after = source.code.get(at + 4..).unwrap_or_default();
            for path in leaves(
                after
                    .get(..item(after))
                    .unwrap_or_default()
                    .trim_end_matches(';'),
            ) {
                let path = path.trim_start_matches("crate::");
                let name = path.rsplit("::").next().unwrap_or_default();
                let name = name.rsplit(" as ").next().unwrap_or_default().trim();
                if modules.contains(first(path)) {
                    passed_on.insert(name.to_owned(), first(path).to_owned());
                }
            }
        }
    }
    let mut graph = Graph::new();
    for source in &sources {
        let Some(from) = source.module.first() else {
            continue;
        };
        let named = graph.entry(from.clone()).or_default();
        for path in rooted(source) {
            let name = first(&path);
            let module = match passed_on.get(name) {
                _ if modules.contains(name) => name,
                Some(module) => module,
                None => continue,
            };
            if module != from {
                named.insert(module.to_owned());
            }
        }
    }
    graph
}

/// Everything that can be reached from a module.
fn reached<'a>(graph: &'a Graph, from: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut left = vec![from];
    while let Some(at) = left.pop() {
        for next in graph.get(at).into_iter().flatten() {
            if found.insert(next.as_str()) {
                left.push(next);
            }
        }
    }
    found
}

/// The sets of modules that reach each other.
fn circles(graph: &Graph) -> BTreeSet<BTreeSet<&str>> {
    let reach: BTreeMap<&str, BTreeSet<&str>> = graph
        .keys()
        .map(|m| (m.as_str(), reached(graph, m)))
        .collect();
    let both = |a: &str, b: &str| {
        let leads = |from: &str, to: &str| reach.get(from).is_some_and(|r| r.contains(to));
        leads(a, b) && leads(b, a)
    };
    let ring = |a: &str| {
        reach
            .keys()
            .copied()
            .filter(|b| both(a, b))
            .collect::<BTreeSet<_>>()
    };
    reach
        .keys()
        .map(|a| ring(a))
        .filter(|ring| ring.len() > 1)
        .collect()
}

/// That the modules of a crate have these circles and no others.
fn check(krate: &str, allowed: &[&[&str]]) {
    let graph = graph(krate);
    let found = circles(&graph);
    let allowed = allowed
        .iter()
        .map(|c| c.iter().copied().collect())
        .collect();
    assert_eq!(found, allowed, "{krate}: {graph:#?}");
}

#[test]
fn the_modules_of_the_service_need_each_other_in_no_circle() {
    check("kvmmsd", &[]);
}

#[test]
fn a_circle_is_seen() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph
                .entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned());
            graph.entry((*to).to_owned()).or_default();
        }
        graph
    };
    assert!(circles(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    let ringed = graph(&[("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]);
    assert_eq!(
        circles(&ringed),
        BTreeSet::from([BTreeSet::from(["a", "b", "c"])])
    );
    let source = |module: &[&str], code: &str| Source {
        module: module.iter().map(|m| (*m).to_owned()).collect(),
        code: without_tests(&bare(code)).0,
    };
    let code = "use crate::{a::{B, c}, d}; // crate::e\nfn f() { crate::g::h(\"crate::i\") }\n#[cfg(test)]\nmod tests { use crate::j; }";
    assert_eq!(rooted(&source(&["x"], code)), ["a::B", "a::c", "d", "g::h"]);
    let inner = "use super::super::k::L; use super::m;";
    assert_eq!(rooted(&source(&["x", "y"], inner)), ["k::L"]);
}

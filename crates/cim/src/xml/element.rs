//! The tree a document is read into.

use std::sync::Arc;

/// An attribute, namespace declarations excepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Its namespace; none without a prefix.
    pub namespace: Option<Arc<str>>,
    /// Its local name.
    pub local: String,
    /// Its value, references replaced and white space normalised.
    pub value: String,
}

/// An element with everything in it.
#[derive(Clone, Debug)]
pub struct Element {
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// The prefix it was written with; empty without one.
    pub prefix: String,
    /// Its local name.
    pub local: String,
    /// Its attributes, in order.
    pub attributes: Vec<Attribute>,
    /// The elements directly in it, in order.
    pub children: Vec<Element>,
    /// The text directly in it, pieces joined (CDATA included, comments left out).
    pub text: String,
    /// Where it begins: line and column, both from 1.
    pub position: (u32, u32),
    pub(super) scope: Option<Arc<Scope>>,
}

/// Namespace declarations of an element, with those around it.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) declared: Vec<(String, Option<Arc<str>>)>,
    pub(super) outer: Option<Arc<Scope>>,
}

impl Scope {
    pub(super) fn find(scope: Option<&Arc<Scope>>, prefix: &str) -> Option<Arc<str>> {
        let mut at = scope;
        while let Some(scope) = at {
            if let Some((_, uri)) = scope.declared.iter().rev().find(|(p, _)| p == prefix) {
                return uri.clone();
            }
            at = scope.outer.as_ref();
        }
        None
    }
}

impl Element {
    /// Whether this is the element `local` of `namespace` (empty: none).
    pub fn is(&self, namespace: &str, local: &str) -> bool {
        self.local == local && self.namespace.as_deref().unwrap_or_default() == namespace
    }

    /// The first child of that namespace (empty: none) and name.
    pub fn child(&self, namespace: &str, local: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.is(namespace, local))
    }

    /// The children of that namespace (empty: none) and name.
    pub fn children_named<'a>(
        &'a self,
        namespace: &'a str,
        local: &'a str,
    ) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.is(namespace, local))
    }

    /// The descendant reached by these names from here, each the first of its kind.
    pub fn descend(&self, steps: &[(&str, &str)]) -> Option<&Element> {
        steps
            .iter()
            .try_fold(self, |at, (ns, local)| at.child(ns, local))
    }

    /// The text, without white space at its ends.
    pub fn text(&self) -> &str {
        self.text.trim()
    }

    /// The value of an attribute without namespace.
    pub fn attr(&self, local: &str) -> Option<&str> {
        self.attr_ns("", local)
    }

    /// The value of the attribute of that namespace (empty: none) and name.
    pub fn attr_ns(&self, namespace: &str, local: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|a| a.local == local && a.namespace.as_deref().unwrap_or_default() == namespace)
            .map(|a| a.value.as_str())
    }

    /// The namespace a prefix stands for here; the empty prefix asks for the default namespace.
    pub fn namespace_of(&self, prefix: &str) -> Option<Arc<str>> {
        match prefix {
            "xml" => Some(XML.into()),
            _ => Scope::find(self.scope.as_ref(), prefix),
        }
    }

    /// Namespace and local name of a qualified name found in a value (`xsi:type="p:Msvm_X_Type"`).
    /// `None` when its prefix is not declared here.
    pub fn qname<'a>(&self, value: &'a str) -> Option<(Option<Arc<str>>, &'a str)> {
        match value.trim().split_once(':') {
            Some((prefix, local)) => Some((Some(self.namespace_of(prefix)?), local)),
            None => Some((self.namespace_of(""), value.trim())),
        }
    }
}

pub(super) const XML: &str = "http://www.w3.org/XML/1998/namespace";

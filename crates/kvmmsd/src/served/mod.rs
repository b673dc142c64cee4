//! Which classes of the schema are served, and why the others are not.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod queries;
#[cfg(test)]
mod tests;
mod unserved;

use crate::Service;
use crate::association::table;
use msvm::Namespace;

/// Why a class is not served; `None` for one that is, or that no list knows.
pub(crate) fn reason(class: &str) -> Option<&'static str> {
    let groups = unserved::UNSERVED.iter();
    groups
        .flat_map(|(why, classes)| classes.iter().map(move |c| (*why, *c)))
        .find(|(_, c)| c.eq_ignore_ascii_case(class))
        .map(|(why, _)| why)
}

impl Service {
    /// Whether objects of a class or of one below it can exist here.
    pub(crate) fn serves(&self, namespace: &'static Namespace, class: &str) -> bool {
        namespace.concrete(class).any(|c| {
            let name = c.name.as_str();
            self.provider(namespace.name(), name).is_some()
                || table(namespace)
                    .iter()
                    .any(|a| a.class.eq_ignore_ascii_case(name))
        })
    }
}

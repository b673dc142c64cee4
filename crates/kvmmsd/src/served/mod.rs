//! Which classes of the schema are served, and why the others are not.

#[cfg(test)]
mod tests;
mod unserved;

/// Why a class is not served; `None` for one that is, or that no list knows.
pub(crate) fn reason(class: &str) -> Option<&'static str> {
    let collections = unserved::UNSERVED.iter();
    collections
        .flat_map(|(why, classes)| classes.iter().map(move |c| (*why, *c)))
        .find(|(_, c)| c.eq_ignore_ascii_case(class))
        .map(|(why, _)| why)
}

//! Who may do what.

mod gate;
mod roles;

pub(crate) use gate::{AllSeeing, Gate};

use cim::Name;
use msvm::Namespace;
use msvm::method::Any;
use wbem::Role;

/// The role that creating, changing and deleting instances takes.
pub(crate) const TO_CHANGE_INSTANCES: Role = Role::Admin;

/// The role a method of a class needs, whichever class below it the object called turns out to be of.
pub(crate) fn needed(namespace: &Namespace, class: &Name, method: &Name) -> Role {
    namespace
        .concrete(class.as_str())
        .filter_map(|class| Any::of(class.name.as_str(), method.as_str()))
        .map(roles::of)
        .max()
        .unwrap_or(Role::Admin)
}

#[cfg(test)]
mod tests;

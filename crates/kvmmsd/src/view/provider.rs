//! What serves a class.

use async_trait::async_trait;
use cim::{Instance, Path};
use vmms::machine::Asked;
use vmms::{Fault, fault};

use super::{Call, CallResult, View, unserved};
use crate::object::{NAMESPACE, Object};

/// Serves the instances and methods of some classes.
#[async_trait]
pub(crate) trait Provider: Send + Sync {
    /// The namespace.
    fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// The concrete classes it serves.
    fn classes(&self) -> &'static [&'static str];

    /// The objects of one of them; with `wanted`, at least those whose keys are as the path says, and as few others as it is
    /// easy to tell ([`named`]).
    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault>;

    /// The properties of an object; keys and what is left out are filled in by the caller.
    fn instance(&self, view: &View, object: &Object) -> Instance;

    /// Calls a method.
    async fn invoke(&self, _view: &View, call: Call<'_>) -> CallResult {
        Err(unserved(call.target.class, call.method))
    }

    /// Makes an instance of one of the classes; the properties given are some that the class has.
    async fn create(
        &self,
        _view: &View,
        instance: &Instance,
        _asked: &Asked,
    ) -> Result<Object, Fault> {
        Err(fault!(NotDirectly, instance.class, "created"))
    }

    /// Gives the instance a path names (it may name none) these properties, some that its class has.
    async fn modify(
        &self,
        _view: &View,
        path: &Path,
        _properties: &Instance,
        _asked: &Asked,
    ) -> Result<(), Fault> {
        Err(fault!(NotDirectly, path.class, "changed"))
    }

    /// Deletes the instance a path names (it may name none).
    async fn delete(&self, _view: &View, path: &Path, _asked: &Asked) -> Result<(), Fault> {
        Err(fault!(NotDirectly, path.class, "deleted"))
    }
}

/// Those of the objects that a path names.
pub(crate) fn named(mut all: Vec<Object>, wanted: Option<&Path>) -> Vec<Object> {
    if let Some(path) = wanted {
        all.retain(|o| o.is_named_by(path));
    }
    all
}

//! How associations are walked: from either end by a function from an object to the objects at the other end.
//! Which there are is a table of the providers.

use cim::{Instance, Path, Schema, Value};
use msvm::Namespace;
use wbem::{Error, Status, Walk};

use crate::errors;
use crate::object::Object;
use crate::view::View;

/// From one end of an association to the other.
pub(crate) type Follow = fn(&View, &Object) -> Vec<Object>;

/// An association class and how it is walked.
pub(crate) struct Association {
    /// The class.
    pub(crate) class: &'static str,
    /// The role of the first end, and the class of objects that can stand there.
    pub(crate) left: (&'static str, &'static str),
    /// The role of the second end, and the class of objects that can stand there.
    pub(crate) right: (&'static str, &'static str),
    /// From the first end to the second.
    pub(crate) forward: Follow,
    /// From the second end to the first.
    pub(crate) back: Follow,
    /// Properties besides the two ends.
    pub(crate) more: Option<fn(&View, &Object, &Object, &mut Instance)>,
}

/// The associations of a namespace.
pub(crate) type Table = &'static [Association];

/// An association without properties besides its ends.
pub(crate) const fn link(
    class: &'static str,
    left: (&'static str, &'static str),
    right: (&'static str, &'static str),
    forward: Follow,
    back: Follow,
) -> Association {
    Association {
        class,
        left,
        right,
        forward,
        back,
        more: None,
    }
}

/// One direction of a link.
struct Side {
    association: &'static Association,
    forward: bool,
}

impl Side {
    fn near(&self) -> (&'static str, &'static str) {
        if self.forward {
            self.association.left
        } else {
            self.association.right
        }
    }
    fn far(&self) -> (&'static str, &'static str) {
        if self.forward {
            self.association.right
        } else {
            self.association.left
        }
    }
    /// What the caller sees at the far end.
    fn follow(&self, view: &View, from: &Object) -> Vec<Object> {
        let follow = if self.forward {
            self.association.forward
        } else {
            self.association.back
        };
        let mut found = follow(view, from);
        found.retain(|o| view.may_see(&o.what));
        found
    }

    /// The association between an object at the near end and one at the far end.
    fn between(
        &self,
        view: &View,
        namespace: &'static Namespace,
        near: &Object,
        far: &Object,
    ) -> Instance {
        let (left, right) = if self.forward {
            (near, far)
        } else {
            (far, near)
        };
        instance(view, namespace, self.association, left, right)
    }
}

fn both(association: &'static Association) -> [Side; 2] {
    [
        Side {
            association,
            forward: true,
        },
        Side {
            association,
            forward: false,
        },
    ]
}

/// The sides by which an association can be walked from `object` under a filter of association class and near role.
fn sides<'a>(
    table: Table,
    namespace: &'static Namespace,
    object: &'a Object,
    assoc_class: Option<&'a str>,
    role: Option<&'a str>,
) -> impl Iterator<Item = Side> + 'a {
    table
        .iter()
        .filter(move |a| assoc_class.is_none_or(|wanted| namespace.is_a(a.class, wanted)))
        .flat_map(both)
        .filter(move |s| namespace.is_a(object.class, s.near().1))
        .filter(move |s| role.is_none_or(|role| s.near().0.eq_ignore_ascii_case(role)))
}

async fn start(
    view: &View,
    namespace: &'static Namespace,
    path: &Path,
    walk: &Walk,
) -> Result<Object, Error> {
    for class in [&walk.assoc_class, &walk.result_class]
        .into_iter()
        .flatten()
    {
        if namespace.class(class.as_str()).is_none() {
            return Err(Error::new(
                Status::InvalidParameter,
                format!("there is no class {class}"),
            ));
        }
    }
    let found = view.find(namespace, path).await;
    found.map_err(|fault| errors::operation_error(view, &fault))
}

/// What is associated with an object.
pub(crate) async fn associators(
    view: &View,
    table: Table,
    namespace: &'static Namespace,
    path: &Path,
    walk: &Walk,
) -> Result<Vec<Instance>, Error> {
    let object = start(view, namespace, path, walk).await?;
    let assoc = walk.assoc_class.as_ref().map(cim::Name::as_str);
    let role = walk.role.as_ref().map(cim::Name::as_str);
    let mut seen: Vec<(&'static str, Vec<(&'static str, String)>)> = Vec::new();
    let mut found = Vec::new();
    for side in sides(table, namespace, &object, assoc, role) {
        if walk
            .result_role
            .as_ref()
            .is_some_and(|wanted| !wanted.is(side.far().0))
        {
            continue;
        }
        for other in side.follow(view, &object) {
            if walk
                .result_class
                .as_ref()
                .is_some_and(|c| !namespace.is_a(other.class, c.as_str()))
            {
                continue;
            }
            let key = (other.class, other.keys.clone());
            if !seen.contains(&key) {
                seen.push(key);
                found.push(view.instance(namespace, &other));
            }
        }
    }
    Ok(found)
}

/// The association instances that name an object.
pub(crate) async fn references(
    view: &View,
    table: Table,
    namespace: &'static Namespace,
    path: &Path,
    walk: &Walk,
) -> Result<Vec<Instance>, Error> {
    let object = start(view, namespace, path, walk).await?;
    let result = walk.result_class.as_ref().map(cim::Name::as_str);
    let role = walk.role.as_ref().map(cim::Name::as_str);
    let mut found = Vec::new();
    for side in sides(table, namespace, &object, result, role) {
        for other in side.follow(view, &object) {
            found.push(side.between(view, namespace, &object, &other));
        }
    }
    Ok(found)
}

fn instance(
    view: &View,
    namespace: &'static Namespace,
    association: &'static Association,
    left: &Object,
    right: &Object,
) -> Instance {
    let paths = [
        (association.left.0, left.path(&view.host, namespace.name())),
        (
            association.right.0,
            right.path(&view.host, namespace.name()),
        ),
    ];
    let mut instance = Instance::new(association.class);
    let mut path = Path::class(association.class)
        .in_namespace(namespace.name())
        .on_host(&*view.host);
    for (role, end) in paths {
        instance.set(role, end.clone());
        path = path.key(role, end);
    }
    if let Some(more) = association.more {
        more(view, left, right, &mut instance);
    }
    if let Err(error) = namespace.complete(&mut instance) {
        tracing::error!(class = association.class, %error, "an association does not fit its class");
    }
    instance.path = Some(path);
    instance
}

/// All instances of an association class and its subclasses.
pub(crate) async fn instances(
    view: &View,
    table: Table,
    namespace: &'static Namespace,
    class: &str,
) -> Result<Vec<Instance>, Error> {
    let mut found = Vec::new();
    for association in table.iter().filter(|a| namespace.is_a(a.class, class)) {
        // From the end where fewer classes can stand: jobs are fewer than everything a job can affect.
        let kinds = |side: &Side| namespace.concrete(side.near().1).count();
        let [forward, back] = both(association);
        let side = if kinds(&back) < kinds(&forward) {
            back
        } else {
            forward
        };
        let all = view.objects(namespace, side.near().1, None).await;
        for near in all.map_err(|fault| errors::operation_error(view, &fault))? {
            for far in side.follow(view, &near) {
                found.push(side.between(view, namespace, &near, &far));
            }
        }
    }
    Ok(found)
}

/// The association instance a path names by its two ends.
pub(crate) async fn get(
    view: &View,
    table: Table,
    namespace: &'static Namespace,
    path: &Path,
) -> Result<Instance, Error> {
    let end = path.keys.iter().find_map(|(_, value)| value.as_path());
    let end = end.ok_or_else(|| errors::not_found(view, path))?;
    let walk = Walk {
        result_class: Some(path.class.clone()),
        ..Walk::default()
    };
    let found = references(view, table, namespace, &end, &walk).await?;
    let same = |instance: &Instance| {
        path.keys.iter().all(
            |(role, value)| match (value.as_path(), instance.get(role.as_str())) {
                (Some(wanted), Value::Reference(actual)) => wanted == **actual,
                _ => false,
            },
        )
    };
    found
        .into_iter()
        .find(same)
        .ok_or_else(|| errors::not_found(view, path))
}

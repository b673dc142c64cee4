//! Testing instances.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::like::{Pattern, without_doubled_backslashes as single};
use super::{Comparison, Condition, Operand, Select};
use crate::embedded::{self, Context};
use crate::{Instance, Name, Path, Schema, Type, Value, normal_namespace};

/// What a query is tested in.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// The classes of the namespace.
    pub schema: &'a dyn Schema,
    /// The name of the host, which `__SERVER` stands for.
    pub host: &'a str,
    /// The namespace, in either slash.
    pub namespace: &'a str,
}

/// `None`: unknown, because a null was compared.
type Truth = Option<bool>;

impl Select {
    /// Whether the instance is of the class and satisfies the condition.
    pub fn matches(&self, instance: &Instance, env: &Environment<'_>) -> bool {
        let of_class = instance.class == self.class
            || env
                .schema
                .is_a(instance.class.as_str(), self.class.as_str());
        of_class
            && self
                .filter
                .as_ref()
                .is_none_or(|f| truth(f, instance, env) == Some(true))
    }

    /// The instance with the properties asked for only, in its own order; the path stays.
    pub fn project(&self, mut instance: Instance) -> Instance {
        if let Some(wanted) = &self.properties {
            instance.properties.retain(|property| {
                wanted.iter().any(|name| {
                    let last = name.as_str().rsplit('.').next().unwrap_or_default();
                    property.name == *name || property.name.is(last)
                })
            });
        }
        instance
    }
}

fn truth(condition: &Condition, instance: &Instance, env: &Environment<'_>) -> Truth {
    match condition {
        Condition::And(all) => fold(all, false, instance, env),
        Condition::Or(any) => fold(any, true, instance, env),
        Condition::Not(inner) => truth(inner, instance, env).map(|found| !found),
        Condition::Like { operand, pattern } => like(&value_of(operand, instance, env), pattern),
        Condition::IsNull { operand, negated } => {
            Some(value_of(operand, instance, env).is_null() != *negated)
        }
        Condition::IsA { operand, class } => is_a(operand, class, instance, env),
        Condition::Compare { left, op, right } => {
            let (a, b) = (
                value_of(left, instance, env),
                value_of(right, instance, env),
            );
            compare(&a, *op, &b)
        }
    }
}

/// AND ends at the first false, OR at the first true; an unknown on the way leaves it unknown.
fn fold(all: &[Condition], ends: bool, instance: &Instance, env: &Environment<'_>) -> Truth {
    let mut found = Some(!ends);
    for one in all {
        match truth(one, instance, env) {
            Some(t) if t == ends => return Some(ends),
            Some(_) => {}
            None => found = None,
        }
    }
    found
}

fn is_a(operand: &Operand, class: &Name, instance: &Instance, env: &Environment<'_>) -> Truth {
    let test = |name: &str| class.is(name) || env.schema.is_a(name, class.as_str());
    if let Operand::Property(names) = operand
        && let [name] = names.as_slice()
        && (name.is("__THIS") || name.is("__CLASS"))
    {
        return Some(test(instance.class.as_str()));
    }
    match value_of(operand, instance, env).as_ref() {
        Value::Object(inner) => Some(test(inner.class.as_str())),
        Value::Reference(path) => Some(test(path.class.as_str())),
        Value::String(text) => Some(embedded_in(text, env).is_some_and(|i| test(i.class.as_str()))),
        _ => None,
    }
}

fn value_of<'a>(
    operand: &'a Operand,
    instance: &'a Instance,
    env: &Environment<'_>,
) -> Cow<'a, Value> {
    match operand {
        Operand::Literal(value) => Cow::Borrowed(value),
        Operand::Property(names) => property_of(names, instance, env),
    }
}

fn property_of<'a>(
    names: &[Name],
    instance: &'a Instance,
    env: &Environment<'_>,
) -> Cow<'a, Value> {
    let Some((first, rest)) = names.split_first() else {
        return Cow::Owned(Value::Null);
    };
    if rest.is_empty() {
        return match system_property(first, instance, env) {
            Some(value) => Cow::Owned(value),
            None => Cow::Borrowed(instance.get(first.as_str())),
        };
    }
    match instance.property(first.as_str()).map(|p| &p.value) {
        Some(Value::Object(inner)) => property_of(rest, inner, env),
        Some(Value::String(text)) => match embedded_in(text, env) {
            Some(inner) => Cow::Owned(property_of(rest, &inner, env).into_owned()),
            None => Cow::Owned(Value::Null),
        },
        // `Class.Property` is the property itself.
        None if env.schema.is_a(instance.class.as_str(), first.as_str()) => {
            property_of(rest, instance, env)
        }
        _ => Cow::Owned(Value::Null),
    }
}

fn embedded_in(text: &str, env: &Environment<'_>) -> Option<Instance> {
    text.starts_with('<')
        .then(|| embedded::read(text, &Context::with(env.schema)).ok())
        .flatten()
}

fn system_property(name: &Name, instance: &Instance, env: &Environment<'_>) -> Option<Value> {
    if !name.as_str().starts_with("__") || instance.property(name.as_str()).is_some() {
        return None;
    }
    let class = instance.class.as_str();
    Some(match name.as_str().to_ascii_uppercase().as_str() {
        "__CLASS" => class.into(),
        "__SERVER" => env.host.into(),
        "__NAMESPACE" => normal_namespace(env.namespace)
            .replace('/', "\\")
            .as_str()
            .into(),
        "__PATH" => path_of(instance, env)
            .in_namespace(env.namespace)
            .on_host(env.host)
            .into(),
        "__RELPATH" => Path {
            host: None,
            namespace: None,
            ..path_of(instance, env)
        }
        .into(),
        "__SUPERCLASS" => env
            .schema
            .superclass(class)
            .map(|s| s.as_str().to_owned())
            .into(),
        "__DYNASTY" => {
            let ancestors = env.schema.ancestors(class);
            ancestors.last().unwrap_or(&instance.class).as_str().into()
        }
        "__DERIVATION" => {
            let ancestors = env.schema.ancestors(class);
            Value::Array(ancestors.iter().map(|a| Value::from(a.as_str())).collect())
        }
        "__GENUS" => Value::Sint32(2),
        "__PROPERTY_COUNT" => i32::try_from(instance.properties.len())
            .unwrap_or(i32::MAX)
            .into(),
        _ => Value::Null,
    })
}

/// The path the instance has, else the one its class and keys make.
fn path_of(instance: &Instance, env: &Environment<'_>) -> Path {
    if let Some(path) = &instance.path {
        return path.clone();
    }
    let mut path = Path::class(instance.class.clone());
    if let Some(class) = env.schema.class(instance.class.as_str()) {
        for key in class.keys() {
            path = path.key(key.name.clone(), instance.get(key.name.as_str()).clone());
        }
    }
    path
}

fn compare(a: &Value, op: Comparison, b: &Value) -> Truth {
    match (a, b) {
        (Value::Null, _) | (_, Value::Null) => None,
        (Value::Array(items), other) => any_of(items, |item| (item.clone(), other.clone()), op),
        (other, Value::Array(items)) => any_of(items, |item| (other.clone(), item.clone()), op),
        _ => compare_scalars(a, op, b),
    }
}

fn any_of(items: &[Value], pair: impl Fn(&Value) -> (Value, Value), op: Comparison) -> Truth {
    let asked = match op {
        Comparison::NotEqual => Comparison::Equal,
        other => other,
    };
    let found = items.iter().any(|item| {
        let (a, b) = pair(item);
        !item.is_null() && compare(&a, asked, &b) == Some(true)
    });
    Some(found != (op == Comparison::NotEqual))
}

/// Null is like nothing, an array is when an element is.
fn like(value: &Value, pattern: &Pattern) -> Truth {
    match value {
        Value::Null => None,
        Value::Array(items) => Some(
            items
                .iter()
                .any(|item| item.to_text().is_some_and(|text| pattern.matches(&text))),
        ),
        value => Some(pattern.matches(&value.to_text()?)),
    }
}

fn compare_scalars(a: &Value, op: Comparison, b: &Value) -> Truth {
    let order = match (a.ty()?, b.ty()?) {
        (Type::Object, _) | (_, Type::Object) => return None,
        (Type::Reference, _) => return same_path(a, op, b),
        (_, Type::Reference) => return same_path(b, op, a),
        (Type::Datetime, _) | (_, Type::Datetime) => datetimes(a, b),
        (Type::Boolean, _) | (_, Type::Boolean) => booleans(a, b),
        (Type::String | Type::Char16, Type::String | Type::Char16) => texts(a, b),
        _ => numbers(a, b),
    };
    // Two values that cannot be the same kind of thing are different, and neither comes first.
    Some(match (op, order) {
        (Comparison::Equal, order) => order == Some(Ordering::Equal),
        (Comparison::NotEqual, order) => order != Some(Ordering::Equal),
        (_, None) => false,
        (Comparison::Less, Some(order)) => order.is_lt(),
        (Comparison::LessOrEqual, Some(order)) => order.is_le(),
        (Comparison::Greater, Some(order)) => order.is_gt(),
        (Comparison::GreaterOrEqual, Some(order)) => order.is_ge(),
    })
}

fn same_path(reference: &Value, op: Comparison, other: &Value) -> Truth {
    let same = match (reference.as_path(), other) {
        (Some(a), Value::Reference(b)) => a == **b,
        (Some(a), Value::String(text)) => {
            // A host's two backslashes arrive as one where the client did not double them.
            let spellings = [text.clone(), format!("\\{text}")];
            spellings
                .iter()
                .any(|text| Path::parse(text).is_ok_and(|b| a == b))
        }
        _ => false,
    };
    match op {
        Comparison::Equal => Some(same),
        Comparison::NotEqual => Some(!same),
        _ => None,
    }
}

fn datetimes(a: &Value, b: &Value) -> Option<Ordering> {
    use crate::Datetime::{Interval, Timestamp};
    let read = |value: &Value| match value {
        Value::Datetime(at) => Some(*at),
        Value::String(text) => crate::Datetime::parse_lenient(text).ok(),
        _ => None,
    };
    match (read(a)?, read(b)?) {
        (Timestamp { micros: a, .. }, Timestamp { micros: b, .. }) => Some(a.cmp(&b)),
        (Interval { micros: a }, Interval { micros: b }) => Some(a.cmp(&b)),
        _ => None,
    }
}

fn booleans(a: &Value, b: &Value) -> Option<Ordering> {
    let read = |value: &Value| match value {
        Value::Boolean(b) => Some(*b),
        Value::String(text) => Value::from_text(Type::Boolean, text).ok()?.as_bool(),
        number => match number.as_int()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
    };
    Some(read(a)?.cmp(&read(b)?))
}

fn numbers(a: &Value, b: &Value) -> Option<Ordering> {
    let whole = |value: &Value| match value {
        Value::String(text) => Value::from_text(Type::Sint64, text)
            .or_else(|_| Value::from_text(Type::Uint64, text))
            .ok()?
            .as_int(),
        number => number.as_int(),
    };
    if let (Some(a), Some(b)) = (whole(a), whole(b)) {
        return Some(a.cmp(&b));
    }
    let real = |value: &Value| value.to_text()?.trim().parse::<f64>().ok();
    real(a)?.partial_cmp(&real(b)?)
}

fn texts(a: &Value, b: &Value) -> Option<Ordering> {
    let (a, b) = (text_of(a)?, text_of(b)?);
    if a.eq_ignore_ascii_case(&b) {
        return Some(Ordering::Equal);
    }
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    if a.contains('\\') && single(&a) == single(&b) {
        return Some(Ordering::Equal);
    }
    Some(a.cmp(&b))
}

fn text_of(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        other => other.to_text().map(Cow::Owned),
    }
}

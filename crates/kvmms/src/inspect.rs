//! Reading instances. Values of classes the schema does not know arrive as text; everything here takes
//! either.

use std::time::{Duration, SystemTime};

use cim::embedded::Context;
use cim::{Datetime, Instance, Value};
use serde_json::json;

/// A property as text; empty where it is null or missing.
pub(crate) fn text(i: &Instance, property: &str) -> String {
    i.get(property)
        .items()
        .iter()
        .find_map(Value::to_text)
        .unwrap_or_default()
}

/// A property as text, unless it is null, missing or empty.
pub(crate) fn some_text(i: &Instance, property: &str) -> Option<String> {
    Some(text(i, property)).filter(|t| !t.is_empty())
}

/// The texts of an array.
pub(crate) fn texts(i: &Instance, property: &str) -> Vec<String> {
    let items = i.get(property).items().iter();
    items.filter_map(Value::to_text).collect()
}

/// The texts of an out parameter; none where it is null.
pub(crate) fn lines(value: &Value) -> Vec<String> {
    value.items().iter().filter_map(Value::to_text).collect()
}

/// A number of any type, or the digits of one.
pub(crate) fn as_number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64(),
    }
}

/// A property as a number.
pub(crate) fn number(i: &Instance, property: &str) -> Option<u64> {
    i.get(property).items().first().and_then(as_number)
}

/// A property as a boolean.
pub(crate) fn boolean(i: &Instance, property: &str) -> Option<bool> {
    match i.get(property) {
        Value::Boolean(b) => Some(*b),
        other => match other.as_str()?.trim() {
            t if t.eq_ignore_ascii_case("true") => Some(true),
            t if t.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        },
    }
}

fn datetime(i: &Instance, property: &str) -> Option<Datetime> {
    match i.get(property) {
        Value::Datetime(at) => Some(*at),
        other => Datetime::parse_lenient(other.as_str()?).ok(),
    }
}

/// A property as a span of time.
pub(crate) fn duration(i: &Instance, property: &str) -> Option<Duration> {
    datetime(i, property)?.as_duration()
}

/// A property as an instant.
pub(crate) fn instant(i: &Instance, property: &str) -> Option<SystemTime> {
    datetime(i, property)?.as_system_time()
}

/// An instant for people: UTC, to the second.
pub(crate) fn moment(at: SystemTime) -> String {
    let text = Datetime::from(at).to_xsd();
    let text = text.trim_end_matches('Z');
    let text = text.split('.').next().unwrap_or(text);
    format!("{} UTC", text.replace('T', " "))
}

/// The instances a string or object array holds, such as `Errors` of GetErrorEx.
pub(crate) fn embedded(value: &Value) -> Vec<Instance> {
    let context = Context::with(msvm::virtualization());
    let items = value.items().iter();
    items
        .filter_map(|item| match item {
            Value::Object(instance) => Some((**instance).clone()),
            Value::String(text) => cim::embedded::read(text, &context).ok(),
            _ => None,
        })
        .collect()
}

/// The GUID at the end of an id (`Microsoft:GUID`, `Microsoft:<machine>\<point>`), or the id itself.
pub(crate) fn short_id(id: &str) -> &str {
    id.rsplit(['\\', ':']).next().unwrap_or(id)
}

/// Any value as JSON: numbers and booleans as such, datetimes in the XML Schema form, references as
/// paths, instances as objects.
pub(crate) fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Boolean(b) => json!(b),
        Value::Real32(v) => json!(v),
        Value::Real64(v) => json!(v),
        Value::Datetime(at) => json!(at.to_xsd()),
        Value::Array(items) => items.iter().map(json).collect(),
        Value::Object(instance) => json_instance(instance),
        other => match (other.as_u64(), other.as_int()) {
            (Some(n), _) => json!(n),
            (None, Some(n)) => i64::try_from(n).map_or_else(|_| json!(n.to_string()), |n| json!(n)),
            (None, None) => json!(other.to_text()),
        },
    }
}

/// An instance as JSON, with its class and path.
pub(crate) fn json_instance(instance: &Instance) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("__CLASS".to_owned(), json!(instance.class.as_str()));
    if let Some(path) = &instance.path {
        object.insert("__PATH".to_owned(), json!(path.to_string()));
    }
    for property in &instance.properties {
        object.insert(property.name.to_string(), json(&property.value));
    }
    serde_json::Value::Object(object)
}

/// Any value for people.
pub(crate) fn words(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Datetime(at) => match (at.as_duration(), at.as_system_time()) {
            (Some(span), _) => crate::size::span(span),
            (None, Some(at)) => moment(at),
            (None, None) => at.to_xsd(),
        },
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join("\n"),
        Value::Object(instance) => {
            let set = instance.properties.iter().filter(|p| !p.value.is_null());
            let set: Vec<_> = set
                .map(|p| format!("{}={}", p.name, words(&p.value)))
                .collect();
            format!("{} {{{}}}", instance.class, set.join(", "))
        }
        other => other.to_text().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_values_and_their_texts_read_the_same() {
        let typed = Instance::new("A")
            .with("N", 5u16)
            .with("B", true)
            .with("D", Datetime::interval(Duration::from_secs(90)));
        let text = Instance::new("A")
            .with("N", "5")
            .with("B", "TRUE")
            .with("D", "P0DT0H1M30S");
        for i in [typed, text] {
            assert_eq!(number(&i, "n"), Some(5));
            assert_eq!(boolean(&i, "B"), Some(true));
            assert_eq!(duration(&i, "D"), Some(Duration::from_secs(90)));
            assert_eq!((number(&i, "missing"), boolean(&i, "N")), (None, None));
        }
    }

    #[test]
    fn instances_come_out_of_texts() {
        let error = Instance::new("Msvm_Error").with("Message", "no <space>");
        let array = Value::Array(vec![
            Value::from(cim::embedded::write(&error)),
            Value::from("rubbish"),
        ]);
        let read = embedded(&array);
        assert_eq!(read.len(), 1);
        assert_eq!(text(&read[0], "Message"), "no <space>");
    }

    #[test]
    fn json_keeps_types_and_large_numbers() {
        let i = Instance::new("A")
            .with("Big", u64::MAX)
            .with("Low", i64::MIN)
            .with("List", vec![1u16, 2])
            .with("No", Value::Null);
        assert_eq!(
            json_instance(&i).to_string(),
            r#"{"Big":18446744073709551615,"List":[1,2],"Low":-9223372036854775808,"No":null,"__CLASS":"A"}"#
        );
    }

    #[test]
    fn the_last_part_of_an_id_is_its_short_form() {
        assert_eq!(short_id("Microsoft:AB"), "AB");
        assert_eq!(short_id("Microsoft:VM\\AB"), "AB");
        assert_eq!(short_id("AB"), "AB");
    }

    #[test]
    fn moments_are_in_utc_and_whole_seconds() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        assert_eq!(moment(at), "1970-01-01 00:00:01 UTC");
    }
}

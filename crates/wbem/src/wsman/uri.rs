//! Resource URIs: which namespace and class a request is about, and in which family of names to answer.

use cim::Name;

use super::fault::{Fault, Subcode};
use super::ns;

/// The two families of class URIs. Answers use the family of the request, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Windows': the namespace is in the URI; here as the client spelled it.
    Wmi { namespace: String },
    /// The standard's: the namespace is the selector `__cimnamespace`.
    CimSchema { namespace: String },
}

impl Family {
    /// The URI of a class.
    pub(crate) fn class_uri(&self, class: &str) -> String {
        match self {
            Family::Wmi { namespace } => format!("{}{namespace}/{class}", ns::WMI),
            Family::CimSchema { .. } => format!("{}{class}", ns::CIM_SCHEMA),
        }
    }

    /// The namespace as the client spelled it.
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Family::Wmi { namespace } | Family::CimSchema { namespace } => namespace,
        }
    }

    /// The same family in another namespace (of a path that names its own).
    pub(crate) fn at(&self, other: &str) -> Family {
        let same = self.namespace().eq_ignore_ascii_case(other);
        let namespace = if same { self.namespace() } else { other }.to_owned();
        match self {
            Family::Wmi { .. } => Family::Wmi { namespace },
            Family::CimSchema { .. } => Family::CimSchema { namespace },
        }
    }
}

/// What a resource URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Instances of a class (`None`: of all, the class comes from a filter).
    Instances {
        family: Family,
        class: Option<Name>,
        /// Whether the URI left the namespace open and no selector named it.
        default_namespace: bool,
    },
    /// Class declarations.
    Classes {
        namespace: Option<String>,
        /// Where the URI names one itself; most clients do it with the selector `ClassName`.
        class: Option<Name>,
    },
    /// The server's settings.
    Config,
}

/// Reads a resource URI with the namespace selector that came with it. Case does not matter in the fixed
/// part (Windows: "case is preserved, not significant").
pub(crate) fn parse(uri: &str, selector: Option<&str>) -> Result<Resource, Fault> {
    let uri = uri.trim();
    // Clients turn a query into selectors themselves; what is left of one carries nothing.
    let uri = uri.split_once('?').map_or(uri, |(before, _)| before);
    let selected = selector.map(cim::normal_namespace);
    if let Some(rest) = strip(uri, ns::WMI) {
        let (namespace, class) = rest
            .trim_end_matches('/')
            .rsplit_once('/')
            .ok_or_else(|| unknown(uri, "a namespace and a class were expected after /wmi/"))?;
        if let Some(selected) = selected
            && !selected.eq_ignore_ascii_case(&cim::normal_namespace(namespace))
        {
            return Err(Fault::sender(
                Subcode::InvalidSelectors,
                format!("__cimnamespace says {selected}, the resource URI {namespace}."),
            )
            .detail("UnexpectedSelectors"));
        }
        return Ok(Resource::Instances {
            family: Family::Wmi {
                namespace: namespace.to_owned(),
            },
            class: class_name(uri, class)?,
            default_namespace: false,
        });
    }
    if let Some(class) = strip(uri, ns::CIM_XML) {
        return Ok(Resource::Classes {
            namespace: selected,
            class: class_name(uri, class)?,
        });
    }
    let class = if uri.eq_ignore_ascii_case(ns::CIM_ALL) {
        Some("*")
    } else {
        strip(uri, ns::CIM_SCHEMA)
    };
    if let Some(class) = class {
        return Ok(Resource::Instances {
            class: class_name(uri, class)?,
            default_namespace: selected.is_none(),
            family: Family::CimSchema {
                namespace: selected.unwrap_or_default(),
            },
        });
    }
    if uri.eq_ignore_ascii_case(ns::MS_CONFIG) {
        return Ok(Resource::Config);
    }
    Err(unknown(uri, "no such family of resources is served"))
}

fn unknown(uri: &str, why: &str) -> Fault {
    let shown: String = uri.chars().take(200).collect();
    Fault::sender(
        Subcode::DestinationUnreachable,
        format!("The resource URI {shown:?} names nothing here: {why}."),
    )
    .detail("InvalidResourceURI")
}

fn class_name(uri: &str, class: &str) -> Result<Option<Name>, Fault> {
    if class == "*" {
        return Ok(None);
    }
    let good = |c: char| c.is_alphanumeric() || c == '_';
    if class.is_empty() || class.len() > 256 || !class.chars().all(good) {
        return Err(unknown(uri, "it does not end in a class name"));
    }
    Ok(Some(class.to_owned().into()))
}

fn strip<'a>(uri: &'a str, prefix: &str) -> Option<&'a str> {
    let head = uri.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| uri.get(prefix.len()..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(uri: &str, selector: Option<&str>) -> (Option<Name>, String, String) {
        match parse(uri, selector).expect(uri) {
            Resource::Instances { family, class, .. } => {
                (class, family.namespace().to_owned(), family.class_uri("X"))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_families_and_their_wildcards_are_read() {
        let wmi = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/";
        let (class, namespace, uri) = class_of(&format!("{wmi}Msvm_ConcreteJob"), None);
        assert_eq!(class, Some(Name::of("Msvm_ConcreteJob")));
        assert_eq!(namespace, "root/virtualization/v2");
        assert_eq!(uri, format!("{wmi}X"));
        assert_eq!(class_of(&format!("{wmi}*"), None).0, None);
        let (class, namespace, uri) = class_of(
            "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_Job",
            Some("root\\virtualization\\v2"),
        );
        assert_eq!(class, Some(Name::of("CIM_Job")));
        assert_eq!(namespace, "root/virtualization/v2");
        assert_eq!(uri, "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/X");
        assert_eq!(class_of(ns::CIM_ALL, Some("root/cimv2")).0, None);
        assert_eq!(
            parse(&format!("{}*", ns::CIM_XML), None),
            Ok(Resource::Classes {
                namespace: None,
                class: None,
            })
        );
    }

    #[test]
    fn the_spelling_of_the_namespace_is_kept_for_the_answer() {
        let uri = "HTTP://schemas.microsoft.com/wbem/wsman/1/WMI/Root/CIMv2/Win32_Processor";
        let (_, namespace, class_uri) = class_of(uri, Some("root/cimv2"));
        assert_eq!(namespace, "Root/CIMv2");
        assert_eq!(class_uri, format!("{}Root/CIMv2/X", ns::WMI));
    }

    #[test]
    fn other_uris_and_contradictions_are_faults() {
        let wmi = format!("{}root/cimv2/X", ns::WMI);
        assert!(parse(&wmi, Some("root/virtualization/v2")).is_err());
        for uri in [
            "",
            "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/cmd",
            "http://schemas.microsoft.com/wbem/wsman/1/wmi/root",
            "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/a b",
            "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/",
        ] {
            assert!(parse(uri, None).is_err(), "{uri}");
        }
    }
}

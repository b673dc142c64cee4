//! The intrinsic operations of DSP0200.

use cim::xml::Element;
use cim::{Instance, Name, Path, standard_qualifier, standard_qualifiers};

use super::answer::{Answer, ClassDetail, InstanceDetail};
use super::method::misfit;
use super::parameters::Parameters;
use super::pull::{self, Left};
use super::service::Asked;
use crate::{Error, Instances, Operation, Response, Status, Walk};

/// Parameters of everything that gives instances.
const DETAIL: [&str; 5] = [
    "LocalOnly",
    "DeepInheritance",
    "IncludeQualifiers",
    "IncludeClassOrigin",
    "PropertyList",
];
const WALK: [&str; 6] = [
    "ObjectName",
    "InstanceName",
    "AssocClass",
    "ResultClass",
    "Role",
    "ResultRole",
];

/// Carries out one operation; its name counts in any case.
pub(super) async fn perform(asked: &Asked<'_>, name: &str, at: &Element) -> Result<Answer, Error> {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "getclass" | "enumerateclasses" | "enumerateclassnames" => classes(asked, &lower, at).await,
        "getinstance" => {
            let p = Parameters::read(at, &[&["InstanceName"][..], &DETAIL].concat())?;
            let path = p.instance_name("InstanceName")?;
            let instance = get(asked, path).await?;
            Ok(Answer::Instance(Box::new(instance), detail(&p)?))
        }
        "getproperty" => {
            let p = Parameters::read(at, &["InstanceName", "PropertyName"])?;
            let instance = get(asked, p.instance_name("InstanceName")?).await?;
            let wanted = p.required_text("PropertyName")?;
            match instance.property(&wanted) {
                Some(property) => Ok(Answer::Value(property.value.clone())),
                None => Err(Error::new(
                    Status::NoSuchProperty,
                    format!("{} has no property {wanted}.", instance.class),
                )),
            }
        }
        "enumerateinstances" => {
            let p = Parameters::read(at, &[&["ClassName"][..], &DETAIL].concat())?;
            let class = p.required_class("ClassName")?;
            let detail = shallow(asked, &p, &class, detail(&p)?)?;
            let found = enumerate(asked, class).await?;
            Ok(Answer::NamedInstances(found.collect(), detail))
        }
        "enumerateinstancenames" => {
            let p = Parameters::read(at, &["ClassName"])?;
            let found = enumerate(asked, p.required_class("ClassName")?).await?;
            Ok(Answer::InstanceNames(paths(found)))
        }
        "associators" | "associatornames" | "references" | "referencenames" => {
            let p = Parameters::read(at, &[&WALK[..], &DETAIL].concat())?;
            let found = walk(asked, &p, "ObjectName", lower.starts_with('a')).await?;
            if lower.ends_with("names") {
                Ok(Answer::ObjectPaths(paths(found)))
            } else {
                Ok(Answer::ObjectsWithPath(found.collect(), detail(&p)?))
            }
        }
        "execquery" => {
            let p = Parameters::read(at, &["QueryLanguage", "Query"])?;
            let found = query(asked, &p, "QueryLanguage", "Query").await?;
            Ok(Answer::ObjectsWithPath(
                found.collect(),
                InstanceDetail::default(),
            ))
        }
        "createinstance" => {
            let p = Parameters::read(at, &["NewInstance"])?;
            let instance = p.instance("NewInstance")?;
            match asked.run(Operation::CreateInstance { instance }).await? {
                Response::Created(path) => Ok(Answer::InstanceNames(vec![path])),
                _ => Err(misfit()),
            }
        }
        "modifyinstance" => {
            let known = ["ModifiedInstance", "IncludeQualifiers", "PropertyList"];
            let p = Parameters::read(at, &known)?;
            let mut instance = p.instance("ModifiedInstance")?;
            let path = instance.path.clone().ok_or_else(|| {
                Error::new(
                    Status::InvalidParameter,
                    "ModifiedInstance has no path: VALUE.NAMEDINSTANCE is expected.",
                )
            })?;
            if let Some(wanted) = p.names("PropertyList")? {
                instance.properties.retain(|p| wanted.contains(&p.name));
            }
            asked
                .run(Operation::ModifyInstance { path, instance })
                .await?;
            Ok(Answer::Void)
        }
        "deleteinstance" => {
            let p = Parameters::read(at, &["InstanceName"])?;
            let path = p.instance_name("InstanceName")?;
            asked.run(Operation::DeleteInstance { path }).await?;
            Ok(Answer::Void)
        }
        "enumeratequalifiers" => {
            Parameters::read(at, &[])?;
            Ok(Answer::Qualifiers(standard_qualifiers().iter().collect()))
        }
        "getqualifier" => {
            let p = Parameters::read(at, &["QualifierName"])?;
            let wanted = p.required_text("QualifierName")?;
            match standard_qualifier(&wanted) {
                Some(found) => Ok(Answer::Qualifiers(vec![found])),
                None => Err(Error::new(
                    Status::NotFound,
                    format!("There is no qualifier {wanted}."),
                )),
            }
        }
        "pullinstanceswithpath" | "pullinstancepaths" | "pullinstances" => {
            pull::pull(asked, &lower, at)
        }
        "closeenumeration" => pull::close(asked, at),
        _ if lower.starts_with("open") => open(asked, &lower, at).await,
        _ => Err(unsupported(name)),
    }
}

fn unsupported(name: &str) -> Error {
    let shown: String = name.chars().take(80).collect();
    Error::new(
        Status::NotSupported,
        format!("The operation {shown:?} is not supported."),
    )
}

async fn open(asked: &Asked<'_>, lower: &str, at: &Element) -> Result<Answer, Error> {
    let known = |own: &[&'static str]| [own, &DETAIL, &pull::OPEN].concat();
    match lower {
        "openenumerateinstances" | "openenumerateinstancepaths" => {
            let p = Parameters::read(at, &known(&["ClassName"]))?;
            pull::check(&p)?;
            unfiltered(&p)?;
            let class = p.required_class("ClassName")?;
            let detail = shallow(asked, &p, &class, detail(&p)?)?;
            let found = enumerate(asked, class).await?;
            pull::open(asked, &p, left(found, lower), detail)
        }
        "openassociatorinstances"
        | "openassociatorinstancepaths"
        | "openreferenceinstances"
        | "openreferenceinstancepaths" => {
            let p = Parameters::read(at, &known(&WALK))?;
            pull::check(&p)?;
            unfiltered(&p)?;
            let found = walk(asked, &p, "InstanceName", lower.starts_with("opena")).await?;
            pull::open(asked, &p, left(found, lower), detail(&p)?)
        }
        "openqueryinstances" => {
            let p = Parameters::read(at, &known(&["ReturnQueryResultClass"]))?;
            pull::check(&p)?;
            if p.flag("ReturnQueryResultClass", false)? {
                return Err(Error::new(
                    Status::NotSupported,
                    "ReturnQueryResultClass is not supported.",
                ));
            }
            let found = query(asked, &p, "FilterQueryLanguage", "FilterQuery").await?;
            let left = Left::Bare(found);
            pull::open(asked, &p, left, InstanceDetail::default())
        }
        other => Err(unsupported(other)),
    }
}

fn left(found: Instances, lower: &str) -> Left {
    if lower.ends_with("paths") {
        Left::Paths(found)
    } else {
        Left::WithPath(found)
    }
}

/// Open operations may carry a filter in DMTF's filter language, which is not spoken here.
fn unfiltered(p: &Parameters<'_>) -> Result<(), Error> {
    match p.text("FilterQuery")? {
        Some(filter) if !filter.trim().is_empty() => Err(Error::new(
            Status::QueryLanguageNotSupported,
            "Filters of Open operations are not supported; OpenQueryInstances takes WQL.",
        )),
        _ => Ok(()),
    }
}

fn paths(found: Instances) -> Vec<Path> {
    found.filter_map(|i| i.path).collect()
}

fn detail(p: &Parameters<'_>) -> Result<InstanceDetail, Error> {
    // LocalOnly of instances is deprecated, and every property is the allowed answer. Qualifiers of instances
    // are deprecated too, and none is the allowed answer.
    p.flag("LocalOnly", true)?;
    p.flag("IncludeQualifiers", false)?;
    Ok(InstanceDetail {
        class_origin: p.flag("IncludeClassOrigin", false)?,
        properties: p.names("PropertyList")?,
    })
}

/// Without DeepInheritance, only properties of the class asked for.
fn shallow(
    asked: &Asked<'_>,
    p: &Parameters<'_>,
    class: &Name,
    mut detail: InstanceDetail,
) -> Result<InstanceDetail, Error> {
    if p.flag("DeepInheritance", true)? {
        return Ok(detail);
    }
    let schema = asked.service.handler.schema(asked.namespace);
    if let Some(class) = schema.and_then(|s| s.class(class.as_str())) {
        detail.properties = Some(match detail.properties {
            None => class.properties.iter().map(|p| p.name.clone()).collect(),
            Some(mut wanted) => {
                wanted.retain(|name| class.property(name.as_str()).is_some());
                wanted
            }
        });
    }
    Ok(detail)
}

fn instances(response: Response) -> Result<Instances, Error> {
    response.instances().ok_or_else(misfit)
}

async fn get(asked: &Asked<'_>, path: Path) -> Result<Instance, Error> {
    let found = asked.run(Operation::GetInstance { path }).await?;
    instances(found)?.next().ok_or_else(misfit)
}

async fn enumerate(asked: &Asked<'_>, class: Name) -> Result<Instances, Error> {
    instances(asked.run(Operation::EnumerateInstances { class }).await?)
}

async fn walk(
    asked: &Asked<'_>,
    p: &Parameters<'_>,
    object: &str,
    associated: bool,
) -> Result<Instances, Error> {
    let path = p.instance_name(object)?;
    let role = |name: &str| -> Result<Option<Name>, Error> {
        Ok(p.text(name)?.filter(|r| !r.is_empty()).map(Name::from))
    };
    let walk = Walk {
        assoc_class: p.class("AssocClass")?.filter(|_| associated),
        result_class: p.class("ResultClass")?,
        role: role("Role")?,
        result_role: role("ResultRole")?.filter(|_| associated),
    };
    instances(
        asked
            .run(if associated {
                Operation::Associators { path, walk }
            } else {
                Operation::References { path, walk }
            })
            .await?,
    )
}

async fn query(
    asked: &Asked<'_>,
    p: &Parameters<'_>,
    language: &str,
    query: &str,
) -> Result<Instances, Error> {
    let spoken = p.required_text(language)?;
    if !spoken.trim().eq_ignore_ascii_case("WQL") {
        return Err(Error::new(
            Status::QueryLanguageNotSupported,
            format!("The query language {spoken:?} is not supported; WQL is."),
        ));
    }
    let query = cim::wql::parse(&p.required_text(query)?).map_err(|e| {
        let why = crate::wsman::envelope::chain(&e);
        Error::new(Status::InvalidQuery, format!("{why}."))
    })?;
    instances(asked.run(Operation::Query { query }).await?)
}

async fn classes(asked: &Asked<'_>, lower: &str, at: &Element) -> Result<Answer, Error> {
    let p = Parameters::read(at, &[&["ClassName"][..], &DETAIL].concat())?;
    let operation = if lower == "getclass" {
        Operation::GetClass {
            class: p.required_class("ClassName")?,
        }
    } else {
        Operation::EnumerateClasses {
            class: p.class("ClassName")?,
            deep: p.flag("DeepInheritance", false)?,
        }
    };
    let Response::Classes(classes) = asked.run(operation).await? else {
        return Err(misfit());
    };
    if lower == "enumerateclassnames" {
        let names = classes.into_iter().map(|c| c.name).collect();
        return Ok(Answer::ClassNames(names));
    }
    let detail = ClassDetail {
        local_only: p.flag("LocalOnly", true)?,
        qualifiers: p.flag("IncludeQualifiers", true)?,
        class_origin: p.flag("IncludeClassOrigin", false)?,
        properties: p.names("PropertyList")?,
    };
    Ok(Answer::Classes { classes, detail })
}

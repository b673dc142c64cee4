//! From names to objects.

use cim::{Instance, Path};
use msvm::class;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::inspect::{short_id, text};
use crate::session::{Session, quoted};
use crate::vendor;

/// Something that can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its GUID or another unique id.
    pub(crate) id: String,
    /// Its name for people; need not be unique.
    pub(crate) name: String,
}

/// Which candidate a text names: by id, by name, or by the beginning of either where only one fits.
/// Ids and names in their whole length go before beginnings, and the exact spelling before another case.
pub(crate) fn pick(
    kind: &'static str,
    candidates: &[Candidate],
    wanted: &str,
    hint: &str,
) -> Result<usize> {
    let wanted = wanted.trim();
    let bare = short_id(wanted).trim_matches(['{', '}']).to_lowercase();
    let lower = wanted.to_lowercase();
    let ways: [&dyn Fn(&Candidate) -> bool; 4] = [
        &|c| c.id.to_lowercase() == bare || c.id.to_lowercase() == lower,
        &|c| c.name == wanted,
        &|c| c.name.to_lowercase() == lower,
        &|c| c.id.to_lowercase().starts_with(&bare) || c.name.to_lowercase().starts_with(&lower),
    ];
    if !wanted.is_empty() && !bare.is_empty() {
        for way in ways {
            let fits: Vec<usize> = (0..candidates.len())
                .filter(|i| candidates.get(*i).is_some_and(way))
                .collect();
            match fits.as_slice() {
                [] => {}
                [one] => return Ok(*one),
                many => {
                    let named = many.iter().filter_map(|i| candidates.get(*i));
                    return Err(Error::Ambiguous {
                        kind,
                        text: wanted.to_owned(),
                        candidates: named.map(|c| format!("{} ({})", c.name, c.id)).collect(),
                    });
                }
            }
        }
    }
    Err(Error::NotFound {
        kind,
        text: wanted.to_owned(),
        hint: hint.to_owned(),
    })
}

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Its GUID, as the server spells it.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// The instance of Msvm_ComputerSystem.
    pub(crate) instance: Instance,
}

impl Machine {
    /// Its path.
    pub(crate) fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(class::MSVM_COMPUTER_SYSTEM)
                .key("CreationClassName", class::MSVM_COMPUTER_SYSTEM)
                .key("Name", self.id.as_str())
        })
    }

    /// The path of its settings.
    pub(crate) fn settings_path(&self) -> Path {
        Path::class(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA)
            .in_namespace(crate::session::NAMESPACE)
            .key("InstanceID", format!("Microsoft:{}", self.id))
    }

    fn of(instance: Instance) -> Option<Self> {
        let id = text(&instance, "Name");
        // The host is a computer system too; its name is no GUID.
        Uuid::parse_str(id.trim_matches(['{', '}'])).ok()?;
        Some(Machine {
            id,
            name: text(&instance, "ElementName"),
            instance,
        })
    }
}

/// Every machine, sorted by name.
pub(crate) async fn machines(session: &Session) -> Result<Vec<Machine>> {
    let found = session
        .client
        .enumerate(class::MSVM_COMPUTER_SYSTEM)
        .await?;
    let mut machines: Vec<_> = found.into_iter().filter_map(Machine::of).collect();
    machines.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(machines)
}

/// The machine a text names.
pub(crate) async fn machine(session: &Session, wanted: &str) -> Result<Machine> {
    choose(machines(session).await?, wanted)
}

fn choose(mut machines: Vec<Machine>, wanted: &str) -> Result<Machine> {
    let candidates: Vec<_> = machines
        .iter()
        .map(|m| Candidate {
            id: m.id.clone(),
            name: m.name.clone(),
        })
        .collect();
    let at = pick("machine", &candidates, wanted, "kvmms vm list shows them.")?;
    Ok(machines.swap_remove(at))
}

/// A reference point.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// Its GUID.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// The GUID of its machine.
    pub(crate) machine: String,
    /// The instance of Msvm_VirtualSystemReferencePoint.
    pub(crate) instance: Instance,
    /// What a kvmms knows beyond that.
    pub(crate) detail: Option<Instance>,
}

impl Point {
    /// Reads one.
    pub(crate) fn of(instance: Instance) -> Self {
        Point {
            id: short_id(&text(&instance, "InstanceID")).to_owned(),
            name: text(&instance, "ElementName"),
            machine: text(&instance, "VirtualSystemIdentifier"),
            instance,
            detail: None,
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT)
                .in_namespace(crate::session::NAMESPACE)
                .key("InstanceID", text(&self.instance, "InstanceID"))
        })
    }
}

/// The points of a machine, or all; in the server's order, which is that of their making.
pub(crate) async fn points(session: &Session, machine: Option<&Machine>) -> Result<Vec<Point>> {
    let found = session
        .client
        .enumerate(class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT)
        .await?;
    let mut details = match session.is_kvmms() && !found.is_empty() {
        true => {
            let wql = format!("SELECT * FROM {}", vendor::POINT_DETAIL);
            session.optional(&wql).await?
        }
        false => Vec::new(),
    };
    let points = found.into_iter().map(|instance| {
        let id = text(&instance, "InstanceID");
        let at = details
            .iter()
            .position(|d| text(d, "InstanceID").eq_ignore_ascii_case(&id));
        Point {
            detail: at.map(|at| details.swap_remove(at)),
            ..Point::of(instance)
        }
    });
    Ok(points
        .filter(|p| machine.is_none_or(|m| m.id.eq_ignore_ascii_case(&p.machine)))
        .collect())
}

/// The point a text names, among those of a machine or all; `MACHINE/POINT` names both.
pub(crate) async fn point(
    session: &Session,
    machine: Option<&Machine>,
    wanted: &str,
) -> Result<Point> {
    let all = points(session, machine).await?;
    let missing = match choose_point(all.clone(), wanted) {
        Err(error @ Error::NotFound { .. }) => error,
        other => return other,
    };
    // Names may hold a slash themselves: they go first.
    let Some((vm, name)) = wanted.split_once('/') else {
        return Err(missing);
    };
    let vm = self::machine(session, vm).await?;
    choose_point(of_machine(all, &vm), name)
}

fn of_machine(mut points: Vec<Point>, machine: &Machine) -> Vec<Point> {
    points.retain(|p| p.machine.eq_ignore_ascii_case(&machine.id));
    points
}

fn choose_point(mut points: Vec<Point>, wanted: &str) -> Result<Point> {
    let candidates: Vec<_> = points
        .iter()
        .map(|p| Candidate {
            id: p.id.clone(),
            name: p.name.clone(),
        })
        .collect();
    let at = pick("point", &candidates, wanted, "kvmms point list shows them.")?;
    Ok(points.swap_remove(at))
}

/// The point a text names, or the newest one of the machine it names.
pub(crate) async fn point_or_newest(session: &Session, wanted: &str) -> Result<Point> {
    let missing = match point(session, None, wanted).await {
        Err(error @ Error::NotFound { .. }) => error,
        other => return other,
    };
    let machine = match machine(session, wanted).await {
        Err(Error::NotFound { .. }) => return Err(missing),
        other => other?,
    };
    newest(points(session, Some(&machine)).await?, &machine)
}

/// The newest of a machine's points.
pub(crate) fn newest(mut points: Vec<Point>, machine: &Machine) -> Result<Point> {
    points.pop().ok_or_else(|| Error::NotFound {
        kind: "point of the machine",
        text: machine.name.clone(),
        hint: format!("Take one: kvmms point create {}", machine.name),
    })
}

/// The job a text names, among those the server shows.
pub(crate) async fn job(session: &Session, wanted: &str) -> Result<Instance> {
    // A whole id needs no list.
    if let Ok(id) = Uuid::parse_str(wanted.trim().trim_matches(['{', '}'])) {
        let id = id.hyphenated().to_string().to_uppercase();
        let wql = format!(
            "SELECT * FROM CIM_ConcreteJob WHERE InstanceID = {}",
            quoted(&id)
        );
        if let Some(job) = session.client.query(&wql).await?.pop() {
            return Ok(job);
        }
    }
    let mut jobs = session.client.enumerate("CIM_ConcreteJob").await?;
    let candidates: Vec<_> = jobs
        .iter()
        .map(|j| Candidate {
            id: text(j, "InstanceID"),
            name: crate::watch::title(j),
        })
        .collect();
    let hint = "Jobs vanish some minutes after their end; kvmms job list --all shows them all.";
    let at = pick("job", &candidates, wanted, hint)?;
    Ok(jobs.swap_remove(at))
}

/// The path of a job.
pub(crate) fn job_path(job: &Instance) -> Path {
    job.path.clone().unwrap_or_else(|| {
        Path::class(job.class.clone())
            .in_namespace(crate::session::NAMESPACE)
            .key("InstanceID", text(job, "InstanceID"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        [
            ("11111111-AAAA-4000-8000-000000000001", "web"),
            ("22222222-AAAA-4000-8000-000000000002", "web-2"),
            ("33333333-AAAA-4000-8000-000000000003", "Web"),
            ("33444444-AAAA-4000-8000-000000000004", "twin"),
            ("55555555-AAAA-4000-8000-000000000005", "twin"),
            ("66666666-AAAA-4000-8000-000000000006", "5"),
        ]
        .map(|(id, name)| Candidate {
            id: id.into(),
            name: name.into(),
        })
        .to_vec()
    }

    fn picked(wanted: &str) -> Result<usize> {
        pick("machine", &candidates(), wanted, "look")
    }

    #[test]
    fn the_exact_spelling_goes_before_everything_else() {
        assert_eq!(picked("web").ok(), Some(0));
        assert_eq!(picked("Web").ok(), Some(2));
        assert_eq!(
            picked("5").ok(),
            Some(5),
            "a name goes before the beginning of an id"
        );
    }

    #[test]
    fn ids_are_found_in_every_spelling() {
        for wanted in [
            "22222222-AAAA-4000-8000-000000000002",
            "22222222-aaaa-4000-8000-000000000002",
            "{22222222-AAAA-4000-8000-000000000002}",
            "Microsoft:22222222-AAAA-4000-8000-000000000002",
            "2222",
        ] {
            assert_eq!(picked(wanted).ok(), Some(1), "{wanted}");
        }
    }

    #[test]
    fn a_unique_beginning_is_enough() {
        assert_eq!(picked("web-").ok(), Some(1));
        assert_eq!(picked("334").ok(), Some(3));
    }

    #[test]
    fn what_fits_several_lists_them() {
        for wanted in ["twin", "33", "WEB", "tw"] {
            let Err(Error::Ambiguous { candidates, .. }) = picked(wanted) else {
                panic!("{wanted}");
            };
            assert_eq!(candidates.len(), 2, "{wanted}");
        }
    }

    #[test]
    fn what_fits_nothing_is_an_error_also_when_empty() {
        for wanted in ["db", "", " ", "{}", "Microsoft:"] {
            assert!(
                matches!(picked(wanted), Err(Error::NotFound { .. })),
                "{wanted}"
            );
        }
    }
}

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

/// How much of a name has to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// All of it, in its own spelling; of a GUID all digits. For everything that changes, ends or deletes something: who misspells a
    /// name, or names what is gone, must not meet another object.
    Whole,
    /// A beginning that fits only one, in any case. For what is only shown.
    Beginning,
}

/// A GUID as people write it: with braces, or with the prefix of an InstanceID.
fn bare(wanted: &str) -> String {
    let wanted = wanted.trim();
    let prefixed = wanted
        .get(..10)
        .filter(|p| p.eq_ignore_ascii_case("microsoft:"));
    let rest = prefixed.map_or(wanted, |p| &wanted[p.len()..]);
    rest.trim_matches(['{', '}']).to_lowercase()
}

impl Candidate {
    fn told(&self) -> String {
        format!("{} ({})", self.name, self.id)
    }

    fn is_whole(&self, wanted: &str, bare: &str) -> bool {
        self.id.to_lowercase() == bare
            || self.id.eq_ignore_ascii_case(wanted)
            || self.name == wanted
    }

    fn begins_with(&self, bare: &str, lower: &str) -> bool {
        self.id.to_lowercase().starts_with(bare) || self.name.to_lowercase().starts_with(lower)
    }
}

/// Which candidate a text names. What is named in its whole length goes before beginnings, and where two are named alike, neither is taken.
pub(crate) fn pick(
    kind: &'static str,
    candidates: &[Candidate],
    wanted: &str,
    naming: Naming,
    hint: &str,
) -> Result<usize> {
    let (short, lower) = (bare(wanted), wanted.trim().to_lowercase());
    let ways: [&dyn Fn(&Candidate) -> bool; 3] = [
        &|c| c.is_whole(wanted, &short),
        &|c| c.name.to_lowercase() == lower,
        &|c| c.begins_with(&short, &lower),
    ];
    let said = !lower.is_empty() && !short.is_empty();
    let needed = match naming {
        Naming::Whole => 1,
        Naming::Beginning => ways.len(),
    };
    for way in ways.iter().take(if said { needed } else { 0 }) {
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
                    candidates: named.map(Candidate::told).collect(),
                });
            }
        }
    }
    let near: Vec<String> = candidates
        .iter()
        .filter(|c| said && c.begins_with(&short, &lower))
        .take(5)
        .map(Candidate::told)
        .collect();
    let hint = match near.as_slice() {
        [] => hint.to_owned(),
        near => format!(
            "{hint} Here a name or GUID has to be said whole; it is the beginning of {}.",
            near.join(", ")
        ),
    };
    Err(Error::NotFound {
        kind,
        text: wanted.to_owned(),
        hint,
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

    /// Reads one; `None` for the host.
    pub(crate) fn of(instance: Instance) -> Option<Self> {
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
pub(crate) async fn machine(session: &Session, wanted: &str, naming: Naming) -> Result<Machine> {
    choose(machines(session).await?, wanted, naming)
}

fn choose(mut machines: Vec<Machine>, wanted: &str, naming: Naming) -> Result<Machine> {
    let candidates: Vec<_> = machines
        .iter()
        .map(|m| Candidate {
            id: m.id.clone(),
            name: m.name.clone(),
        })
        .collect();
    let hint = "kvmms vm list shows them.";
    let at = pick("machine", &candidates, wanted, naming, hint)?;
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
    naming: Naming,
) -> Result<Point> {
    let all = points(session, machine).await?;
    let machines = match machine {
        Some(machine) => vec![machine.clone()],
        None => machines(session).await?,
    };
    choose_point(all, &machines, wanted, naming)
}

/// Something that belongs to a machine: a point, a snapshot.
pub(crate) trait OfMachine {
    /// The kind of thing.
    const KIND: &'static str;
    /// Its GUID and name.
    fn candidate(&self) -> Candidate;
    /// The GUID of its machine.
    fn machine(&self) -> &str;
}

impl OfMachine for Point {
    const KIND: &'static str = "point";

    fn candidate(&self) -> Candidate {
        Candidate {
            id: self.id.clone(),
            name: self.name.clone(),
        }
    }

    fn machine(&self) -> &str {
        &self.machine
    }
}

fn choose_point(
    points: Vec<Point>,
    machines: &[Machine],
    wanted: &str,
    naming: Naming,
) -> Result<Point> {
    choose_of(
        points,
        machines,
        wanted,
        naming,
        "kvmms point list shows them.",
    )
}

/// Which of these a text names, as `NAME` or as `MACHINE/NAME`. Names may hold a slash themselves: where both readings fit, something
/// that is only shown is the one of that whole name, and nothing is changed.
pub(crate) fn choose_of<T: OfMachine>(
    mut all: Vec<T>,
    machines: &[Machine],
    wanted: &str,
    naming: Naming,
    hint: &str,
) -> Result<T> {
    let owner = |item: &T| {
        let id = item.machine();
        machines.iter().find(|m| m.id.eq_ignore_ascii_case(id))
    };
    // With the machine, because two of one name belong to different ones, as a rule.
    let candidates: Vec<Candidate> = all.iter().map(T::candidate).collect();
    let told = |at: usize| {
        let (item, candidate) = (all.get(at)?, candidates.get(at)?);
        let of = owner(item).map_or(item.machine(), |m| &m.name);
        Some(format!("{} of {of} ({})", candidate.name, candidate.id))
    };
    let pick_among = |which: &[usize], wanted: &str| -> Result<usize> {
        let some: Vec<Candidate> = which
            .iter()
            .filter_map(|at| candidates.get(*at).cloned())
            .collect();
        let picked = pick(T::KIND, &some, wanted, naming, hint).map_err(|error| match error {
            Error::Ambiguous {
                kind,
                text,
                candidates: named,
            } => Error::Ambiguous {
                kind,
                text,
                candidates: which
                    .iter()
                    .filter(|at| {
                        candidates
                            .get(**at)
                            .is_some_and(|c| named.contains(&c.told()))
                    })
                    .filter_map(|at| told(*at))
                    .collect(),
            },
            other => other,
        })?;
        let missing = || Error::usage(hint);
        which.get(picked).copied().ok_or_else(missing)
    };
    let every: Vec<usize> = (0..all.len()).collect();
    let direct = pick_among(&every, wanted);
    let below = wanted.split_once('/').and_then(|(vm, name)| {
        let vm = choose(machines.to_vec(), vm, naming).ok()?;
        let its = |at: &usize| all.get(*at).and_then(owner).is_some_and(|m| m.id == vm.id);
        let own: Vec<usize> = every.iter().copied().filter(its).collect();
        Some(pick_among(&own, name))
    });
    let at = match (direct, below) {
        (Ok(one), Some(Ok(other))) if one != other && naming == Naming::Whole => {
            return Err(Error::Ambiguous {
                kind: T::KIND,
                text: wanted.to_owned(),
                candidates: [one, other].into_iter().filter_map(told).collect(),
            });
        }
        (Err(Error::NotFound { .. }), Some(other)) => other?,
        (direct, _) => direct?,
    };
    Ok(all.swap_remove(at))
}

/// The point a text names whole, or the newest one of the machine it names whole. One that names both is refused: which of the two was
/// meant cannot be told.
pub(crate) async fn point_or_newest(session: &Session, wanted: &str) -> Result<Point> {
    let point = point(session, None, wanted, Naming::Whole).await;
    let machine = machine(session, wanted, Naming::Whole).await;
    match (point, machine) {
        (Ok(point), Ok(machine)) => Err(Error::Ambiguous {
            kind: "point or machine",
            text: wanted.to_owned(),
            candidates: vec![
                format!("point {} ({})", point.name, point.id),
                format!("machine {} ({})", machine.name, machine.id),
            ],
        }),
        (Ok(point), Err(Error::NotFound { .. })) => Ok(point),
        (Err(Error::NotFound { .. }), Ok(machine)) => {
            newest(points(session, Some(&machine)).await?, &machine)
        }
        (Err(missing @ Error::NotFound { .. }), Err(Error::NotFound { .. })) => Err(missing),
        (Err(Error::NotFound { .. }) | Ok(_), Err(error)) | (Err(error), _) => Err(error),
    }
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
pub(crate) async fn job(session: &Session, wanted: &str, naming: Naming) -> Result<Instance> {
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
    let at = pick("job", &candidates, wanted, naming, hint)?;
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

    fn pick_as(wanted: &str, naming: Naming) -> Result<usize> {
        pick("machine", &candidates(), wanted, naming, "look")
    }

    fn picked(wanted: &str) -> Result<usize> {
        pick_as(wanted, Naming::Beginning)
    }

    #[test]
    fn the_exact_spelling_goes_before_everything_else() {
        for naming in [Naming::Whole, Naming::Beginning] {
            assert_eq!(pick_as("web", naming).ok(), Some(0));
            assert_eq!(pick_as("Web", naming).ok(), Some(2));
            assert_eq!(
                pick_as("5", naming).ok(),
                Some(5),
                "a name goes before the beginning of an id"
            );
        }
    }

    #[test]
    fn ids_are_found_in_every_spelling() {
        for wanted in [
            "22222222-AAAA-4000-8000-000000000002",
            "22222222-aaaa-4000-8000-000000000002",
            "{22222222-AAAA-4000-8000-000000000002}",
            "Microsoft:22222222-AAAA-4000-8000-000000000002",
        ] {
            for naming in [Naming::Whole, Naming::Beginning] {
                assert_eq!(pick_as(wanted, naming).ok(), Some(1), "{wanted}");
            }
        }
    }

    #[test]
    fn a_unique_beginning_is_enough_to_look() {
        assert_eq!(picked("web-").ok(), Some(1));
        assert_eq!(picked("334").ok(), Some(3));
        assert_eq!(picked("2222").ok(), Some(1));
    }

    #[test]
    fn nothing_is_changed_by_the_beginning_of_a_name_or_guid_or_in_another_case() {
        for wanted in [
            "web-",
            "334",
            "2222",
            "WEB",
            "we",
            "33333333-AAAA-4000-8000-00000000000",
        ] {
            let Err(Error::NotFound { hint, .. }) = pick_as(wanted, Naming::Whole) else {
                panic!("{wanted}");
            };
            assert!(hint.contains("has to be said whole"), "{hint}");
        }
        let other =
            "Microsoft:99999999-AAAA-4000-8000-000000000009\\22222222-AAAA-4000-8000-000000000002";
        assert!(
            pick_as(other, Naming::Whole).is_err(),
            "a point of another machine than the one that is named"
        );
    }

    #[test]
    fn two_that_are_named_alike_are_both_refused_with_their_guids() {
        let mut all = candidates();
        all.push(Candidate {
            id: "77777777-AAAA-4000-8000-000000000007".into(),
            name: "22222222-AAAA-4000-8000-000000000002".into(),
        });
        for wanted in ["twin", "22222222-AAAA-4000-8000-000000000002"] {
            let Err(Error::Ambiguous { candidates, .. }) =
                pick("machine", &all, wanted, Naming::Whole, "look")
            else {
                panic!("{wanted}");
            };
            assert_eq!(candidates.len(), 2, "{wanted}");
            assert!(candidates.iter().all(|c| c.contains("-AAAA-4000-")));
        }
    }

    fn machine(id: &str, name: &str) -> Machine {
        Machine {
            id: id.into(),
            name: name.into(),
            instance: Instance::new(class::MSVM_COMPUTER_SYSTEM),
        }
    }

    fn point(id: &str, name: &str, machine: &str) -> Point {
        Point {
            id: id.into(),
            name: name.into(),
            machine: machine.into(),
            instance: Instance::new(class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT),
            detail: None,
        }
    }

    #[test]
    fn a_point_may_be_named_with_its_machine_and_two_readings_are_refused() {
        let machines = [machine("M1", "web"), machine("M2", "db")];
        let mut all = vec![
            point("P1", "nightly", "M1"),
            point("P2", "nightly", "M2"),
            point("P3", "nightly 2", "M2"),
        ];
        let choose = |all: &[Point], wanted: &str, naming| {
            choose_point(all.to_vec(), &machines, wanted, naming)
        };
        for naming in [Naming::Whole, Naming::Beginning] {
            let found = choose(&all, "db/nightly", naming);
            assert_eq!(found.ok().map(|p| p.id), Some("P2".to_owned()));
            let Err(Error::Ambiguous { candidates, .. }) = choose(&all, "nightly", naming) else {
                panic!("two have that name");
            };
            assert!(
                candidates.iter().any(|c| c == "nightly of web (P1)"),
                "{candidates:?}"
            );
            assert!(
                candidates.iter().any(|c| c == "nightly of db (P2)"),
                "{candidates:?}"
            );
        }
        assert!(choose(&all, "db/night", Naming::Whole).is_err());
        all.push(point("P4", "db/nightly", "M1"));
        assert!(matches!(
            choose(&all, "db/nightly", Naming::Whole),
            Err(Error::Ambiguous { .. })
        ));
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
            for naming in [Naming::Whole, Naming::Beginning] {
                assert!(
                    matches!(pick_as(wanted, naming), Err(Error::NotFound { .. })),
                    "{wanted}"
                );
            }
        }
    }
}

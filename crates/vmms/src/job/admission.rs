//! Which job may start while which other one runs on the same machine. Pure: what cannot run together is refused at
//! once with the job that is in the way; short conflicts wait inside the job for the machine's lock.

use uuid::Uuid;

use super::{Access, Claims, StateChange};

/// Whether a job with the claims `new` may not start while one with the claims `running` runs, both on one machine.
pub fn excludes(running: &Claims, new: &Claims) -> bool {
    match (running.access, new.access) {
        // Merging in the background makes way for everything but itself.
        (Access::Background, Access::Background) => true,
        (Access::Background, _) => false,
        // A machine that is being deleted, or made, takes nothing else.
        (Access::Whole, _) | (_, Access::Whole) => true,
        // A hard stop overtakes a shutdown the guest does not follow.
        (
            Access::State(StateChange::Shutdown | StateChange::Reboot),
            Access::State(StateChange::Stop),
        ) => false,
        // Applying a snapshot replaces what everything else works on; exports read only what it leaves alone.
        (Access::Replaces, Access::Frozen) | (Access::Frozen, Access::Replaces) => false,
        (Access::Replaces | Access::Alone, _) | (_, Access::Replaces | Access::Alone) => true,
        (Access::State(_), Access::State(_)) => true,
        _ => instants_collide(running, new),
    }
}

/// Whether one takes away instants, or their data, that the other needs or takes away as well.
fn instants_collide(a: &Claims, b: &Claims) -> bool {
    let meet = |x: &[Uuid], y: &[Uuid]| x.iter().any(|p| y.contains(p));
    // An export reads frozen layers; nothing else on the machine disturbs it, but its points must stay.
    let takes_from = |export: &Claims, other: &Claims| {
        meet(&export.reads, &other.deletes)
            || meet(&export.builds_on, &other.deletes)
            || meet(&export.reads, &other.drops_data)
    };
    // One directory takes each point once. Under another name of the directory the job finds out.
    let one_target =
        a.writes_to.iter().any(|d| b.writes_to.contains(d)) && meet(&a.reads, &b.reads);
    let gone = |c: &Claims| [c.deletes.as_slice(), &c.drops_data].concat();
    one_target || takes_from(a, b) || takes_from(b, a) || meet(&gone(a), &gone(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{MemberExport, MemberTask, Task};
    use crate::point::{PointType, Proof};

    fn excludes(running: &Task, new: &Task) -> bool {
        super::excludes(&running.claims(), &new.claims())
    }

    fn state(to: StateChange) -> Task {
        Task::ChangeState {
            vm: Uuid::nil(),
            to,
        }
    }

    fn export(point: u128, base: Option<u128>) -> Task {
        Task::ExportPoint {
            point: Uuid::from_u128(point),
            base: base.map(Uuid::from_u128),
            directory: format!("/{point}").into(),
            disks: Vec::new(),
        }
    }

    fn destroy_point(point: u128) -> Task {
        Task::DestroyPoint {
            point: Uuid::from_u128(point),
        }
    }

    #[test]
    fn a_machine_being_deleted_takes_nothing_else() {
        let destroy = Task::DestroyVm { vm: Uuid::nil() };
        for other in [
            state(StateChange::Start),
            export(1, None),
            destroy_point(1),
            destroy.clone(),
        ] {
            assert!(excludes(&destroy, &other), "{other:?}");
            assert!(excludes(&other, &destroy), "{other:?}");
        }
    }

    #[test]
    fn a_hard_stop_overtakes_a_shutdown_but_no_other_state_change_does() {
        let shutdown = state(StateChange::Shutdown);
        assert!(!excludes(&shutdown, &state(StateChange::Stop)));
        assert!(excludes(&shutdown, &state(StateChange::Save)));
        assert!(excludes(&state(StateChange::Stop), &shutdown));
    }

    #[test]
    fn an_export_runs_beside_everything_that_leaves_its_points_alone() {
        let create = Task::CreatePoint {
            vm: Uuid::nil(),
            point: Uuid::from_u128(3),
            kind: PointType::Rct,
            consistency: None,
            name: String::new(),
        };
        let running = export(2, Some(1));
        for fine in [
            create,
            state(StateChange::Stop),
            destroy_point(3),
            export(4, None),
        ] {
            assert!(!excludes(&running, &fine), "{fine:?}");
        }
        assert!(excludes(&running, &destroy_point(2)));
        assert!(excludes(&running, &destroy_point(1)), "the base too");
        assert!(
            excludes(&running, &running),
            "one directory takes each point once"
        );
        let beside = Task::ExportPoint {
            point: Uuid::from_u128(5),
            base: None,
            directory: "/2".into(),
            disks: Vec::new(),
        };
        assert!(!excludes(&running, &beside), "but several points at once");
    }

    #[test]
    fn an_audit_keeps_both_points_and_reads_the_older_one_only_from_layers() {
        let audit = |proof| Task::AuditPoint {
            point: Uuid::from_u128(2),
            base: Uuid::from_u128(1),
            proof,
        };
        let drop_data = |point| Task::RemoveData {
            point: Uuid::from_u128(point),
        };
        for proof in [Proof::Layers, Proof::Hashes] {
            let running = audit(proof);
            assert!(excludes(&running, &destroy_point(1)), "{proof:?}");
            assert!(excludes(&running, &destroy_point(2)), "{proof:?}");
            assert!(excludes(&running, &drop_data(2)), "{proof:?}");
            assert!(!excludes(&running, &destroy_point(3)), "{proof:?}");
            assert!(!excludes(&running, &running), "two may read");
        }
        assert!(excludes(&audit(Proof::Layers), &drop_data(1)));
        assert!(!excludes(&audit(Proof::Hashes), &drop_data(1)));
    }

    #[test]
    fn background_merging_makes_way() {
        let tidy = Task::Tidy { vm: Uuid::nil() };
        assert!(!excludes(&tidy, &state(StateChange::Stop)));
        assert!(excludes(&tidy, &tidy), "one is enough");
    }

    fn group_export(points: &[u128]) -> Task {
        Task::ExportGroupPoint {
            point: Uuid::from_u128(100),
            base: None,
            directory: "/all".into(),
            members: points
                .iter()
                .map(|p| MemberExport {
                    vm: Uuid::nil(),
                    point: Uuid::from_u128(*p),
                    base: Some(Uuid::from_u128(p + 10)),
                    disks: Vec::new(),
                })
                .collect(),
        }
    }

    #[test]
    fn a_collection_export_keeps_the_points_of_all_its_members() {
        let running = group_export(&[1, 2]);
        for gone in [1, 2, 11, 12] {
            assert!(excludes(&running, &destroy_point(gone)), "{gone}");
            assert!(excludes(&destroy_point(gone), &running), "{gone}");
        }
        assert!(!excludes(&running, &destroy_point(3)));
        let member = MemberTask {
            vm: Uuid::nil(),
            point: Uuid::from_u128(2),
        };
        let drop_data = Task::RemoveGroupData {
            point: Uuid::from_u128(100),
            members: vec![member],
        };
        assert!(excludes(&running, &drop_data));
        let delete = Task::DestroyGroupPoint {
            point: Uuid::from_u128(100),
            members: vec![member],
        };
        assert!(excludes(&running, &delete) && excludes(&delete, &drop_data));
        assert!(
            excludes(&running, &running),
            "one directory takes each point once"
        );
    }
}

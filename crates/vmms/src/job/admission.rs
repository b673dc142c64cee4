//! Which job may start while which other one runs on the same machine. Pure: what cannot run together is refused at
//! once with the job that is in the way; short conflicts wait inside the job for the machine's lock.

use super::{StateChange, Task};

/// Whether `new` may not start while `running` runs, both on one machine.
pub fn excludes(running: &Task, new: &Task) -> bool {
    match (running, new) {
        // Merging in the background makes way for everything but itself.
        (Task::Tidy { .. }, Task::Tidy { .. }) => true,
        (Task::Tidy { .. }, _) => false,
        // A machine that is being deleted, or made, takes nothing else.
        (Task::DestroyVm { .. } | Task::Import { .. }, _) | (_, Task::DestroyVm { .. }) => true,
        // A hard stop overtakes a shutdown the guest does not follow.
        (
            Task::ChangeState { to: StateChange::Shutdown | StateChange::Reboot, .. },
            Task::ChangeState { to: StateChange::Stop, .. },
        ) => false,
        (Task::ChangeState { .. }, Task::ChangeState { .. }) => true,
        // One point at a time: the second would be of the same instant or wait for minutes in a freeze.
        (Task::CreatePoint { .. }, Task::CreatePoint { .. }) => false,
        // An export reads frozen layers; nothing else on the machine disturbs it, but its point must stay.
        (Task::ExportPoint { point, base, .. }, Task::DestroyPoint { point: gone }) => {
            point == gone || *base == Some(*gone)
        }
        (Task::ExportPoint { point, .. }, Task::RemoveData { point: gone }) => point == gone,
        // Two exports into one directory would write the same manifest.
        (Task::ExportPoint { directory: a, .. }, Task::ExportPoint { directory: b, .. }) => a == b,
        (Task::DestroyPoint { point: gone }, Task::ExportPoint { point, base, .. }) => {
            point == gone || *base == Some(*gone)
        }
        (Task::RemoveData { point: gone }, Task::ExportPoint { point, .. }) => point == gone,
        (Task::DestroyPoint { point: a }, Task::DestroyPoint { point: b })
        | (Task::RemoveData { point: a }, Task::RemoveData { point: b } | Task::DestroyPoint { point: b })
        | (Task::DestroyPoint { point: a }, Task::RemoveData { point: b }) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::PointType;
    use uuid::Uuid;

    fn state(to: StateChange) -> Task {
        Task::ChangeState { vm: Uuid::nil(), to }
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
        Task::DestroyPoint { point: Uuid::from_u128(point) }
    }

    #[test]
    fn a_machine_being_deleted_takes_nothing_else() {
        let destroy = Task::DestroyVm { vm: Uuid::nil() };
        for other in [state(StateChange::Start), export(1, None), destroy_point(1), destroy.clone()] {
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
        for fine in [create, state(StateChange::Stop), destroy_point(3), export(4, None)] {
            assert!(!excludes(&running, &fine), "{fine:?}");
        }
        assert!(excludes(&running, &destroy_point(2)));
        assert!(excludes(&running, &destroy_point(1)), "the base too");
        assert!(excludes(&running, &running), "one directory takes one export at a time");
    }

    #[test]
    fn background_merging_makes_way() {
        let tidy = Task::Tidy { vm: Uuid::nil() };
        assert!(!excludes(&tidy, &state(StateChange::Stop)));
        assert!(excludes(&tidy, &tidy), "one is enough");
    }
}

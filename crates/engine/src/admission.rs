//! Which job may start while which other one runs on the same machine. Pure: what cannot run together is refused at
//! once with the job that is in the way; short conflicts wait inside the job for the machine's lock.

use uuid::Uuid;

use crate::{Access, Claims};

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
            Access::State { waits: true, .. },
            Access::State {
                last_word: true, ..
            },
        ) => false,
        // Applying a snapshot replaces what everything else works on; exports read only what it leaves alone.
        (Access::Replaces, Access::Frozen) | (Access::Frozen, Access::Replaces) => false,
        (Access::Replaces | Access::Alone, _) | (_, Access::Replaces | Access::Alone) => true,
        (Access::State { .. }, Access::State { .. }) => true,
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
    use crate::{Layers, Subject};

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn claims(access: Access) -> Claims {
        Claims::of_machine(Uuid::nil(), access, Layers::Kept, &[])
    }

    fn state(last_word: bool, waits: bool) -> Claims {
        claims(Access::State { last_word, waits })
    }

    fn export(point: u128, base: Option<u128>, to: &str) -> Claims {
        Claims {
            reads: vec![id(point)],
            builds_on: base.into_iter().map(id).collect(),
            writes_to: vec![to.into()],
            ..Claims::of_point(id(point), Access::Frozen, Layers::Kept)
        }
    }

    fn delete(point: u128) -> Claims {
        Claims {
            deletes: vec![id(point)],
            ..claims(Access::Shared)
        }
    }

    fn drop_data(point: u128) -> Claims {
        Claims {
            drops_data: vec![id(point)],
            ..claims(Access::Shared)
        }
    }

    #[test]
    fn a_machine_that_comes_or_goes_takes_nothing_else() {
        let whole = claims(Access::Whole);
        for other in [
            state(false, false),
            export(1, None, "/1"),
            delete(1),
            whole.clone(),
        ] {
            assert!(excludes(&whole, &other), "{other:?}");
            assert!(excludes(&other, &whole), "{other:?}");
        }
    }

    #[test]
    fn what_has_the_last_word_overtakes_what_waits_and_nothing_else_does() {
        let (shutdown, stop, save) = (state(false, true), state(true, false), state(false, false));
        assert!(!excludes(&shutdown, &stop));
        assert!(excludes(&shutdown, &save) && excludes(&save, &stop));
        assert!(excludes(&stop, &shutdown));
    }

    #[test]
    fn an_export_runs_beside_everything_that_leaves_its_points_alone() {
        let running = export(2, Some(1), "/2");
        for fine in [
            claims(Access::Shared),
            state(true, false),
            delete(3),
            export(4, None, "/4"),
            export(5, None, "/2"),
            claims(Access::Replaces),
        ] {
            assert!(!excludes(&running, &fine), "{fine:?}");
        }
        assert!(excludes(&running, &delete(2)) && excludes(&delete(2), &running));
        assert!(excludes(&running, &delete(1)), "the base too");
        assert!(excludes(&running, &drop_data(2)));
        assert!(!excludes(&running, &drop_data(1)), "a base needs no data");
        assert!(
            excludes(&running, &running),
            "one directory takes each point once"
        );
    }

    #[test]
    fn what_two_would_take_away_is_taken_away_once() {
        assert!(excludes(&delete(1), &delete(1)));
        assert!(excludes(&delete(1), &drop_data(1)));
        assert!(!excludes(&delete(1), &drop_data(2)));
    }

    #[test]
    fn background_work_makes_way() {
        let background = claims(Access::Background);
        assert!(!excludes(&background, &state(true, false)));
        assert!(excludes(&background, &background), "one is enough");
    }

    #[test]
    fn every_identifier_of_a_claim_is_told() {
        let claims = Claims {
            deletes: vec![id(4)],
            others: vec![id(5)],
            machines: vec![Subject::Vm(id(6))],
            ..export(1, Some(2), "/x")
        };
        let mut ids: Vec<u128> = claims.ids().iter().map(Uuid::as_u128).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 4, 5, 6]);
    }
}

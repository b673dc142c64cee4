//! Open enumerations between a client's first request and its last pull: bounded in number, in bytes, per user, and in
//! time; each belongs to the user who opened it. A timer ends what nobody pulls ([`Contexts::sweep`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::Limit;

/// Bounds on open enumerations.
#[derive(Clone, Debug)]
pub struct ContextLimits {
    /// Of all users together.
    pub total: usize,
    /// Of one user.
    pub per_user: usize,
    /// Bytes all of them hold together. One alone may hold more: what it holds was in memory anyway.
    pub bytes: usize,
    /// Bytes those of one user hold together; the same goes for one alone.
    pub bytes_per_user: usize,
    /// How long one may stay unused, unless the client asks for less.
    pub idle: Duration,
}

impl Default for ContextLimits {
    fn default() -> Self {
        ContextLimits {
            total: 1000,
            per_user: 200,
            bytes: 256 << 20,
            bytes_per_user: 64 << 20,
            idle: Duration::from_secs(300),
        }
    }
}

/// What an enumeration keeps until it is pulled.
pub(crate) trait Held {
    /// About how many bytes of memory it holds.
    fn bytes(&self) -> usize;
}

pub(crate) struct Contexts<S> {
    limits: ContextLimits,
    open: Mutex<HashMap<Uuid, Open<S>>>,
}

struct Open<S> {
    user: String,
    idle: Duration,
    used: Instant,
    /// What the state held when it was last here.
    bytes: usize,
    /// `None` while a pull works on it.
    state: Option<S>,
}

/// A context taken out for one pull; put it back with [`Contexts::put`], or drop it to end it.
pub(crate) struct Taken<S> {
    pub(crate) id: Uuid,
    pub(crate) state: S,
}

impl<S: Held> Contexts<S> {
    pub(crate) fn new(limits: ContextLimits) -> Self {
        Contexts {
            limits,
            open: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Open<S>>> {
        // No code that can panic runs under this lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an enumeration; `idle` shortens how long it may stay unused.
    pub(crate) fn open(&self, user: &str, idle: Option<Duration>, state: S) -> Result<Uuid, Limit> {
        let bytes = state.bytes();
        let mut open = self.lock();
        let ended = take_ended(&mut open);
        let outcome = self.admit(&open, user, bytes).map(|()| {
            let id = Uuid::new_v4();
            let idle = idle.map_or(self.limits.idle, |i| i.min(self.limits.idle));
            let context = Open {
                user: user.to_owned(),
                idle,
                used: Instant::now(),
                bytes,
                state: Some(state),
            };
            open.insert(id, context);
            id
        });
        drop(open);
        // Millions of values may go with them: not under the lock.
        drop(ended);
        outcome
    }

    fn admit(&self, open: &HashMap<Uuid, Open<S>>, user: &str, bytes: usize) -> Result<(), Limit> {
        let ours = || open.values().filter(|o| o.user == user);
        let sum = |found: &mut dyn Iterator<Item = &Open<S>>| -> (usize, usize) {
            found.fold((0, 0), |(n, held), o| (n + 1, held + o.bytes))
        };
        let limits = &self.limits;
        for (own, (count, held), most, most_bytes) in [
            (false, sum(&mut open.values()), limits.total, limits.bytes),
            (
                true,
                sum(&mut ours()),
                limits.per_user,
                limits.bytes_per_user,
            ),
        ] {
            if count >= most {
                return Err(Limit::Enumerations { open: count, own });
            }
            if count > 0 && held + bytes > most_bytes {
                return Err(Limit::EnumerationBytes {
                    held: held + bytes,
                    allowed: most_bytes,
                    own,
                });
            }
        }
        Ok(())
    }

    /// Ends what was not used for too long; says how many that were.
    pub(crate) fn sweep(&self) -> usize {
        let ended = take_ended(&mut self.lock());
        ended.len()
    }

    /// Takes the state out for one pull. `None`: unknown, expired, another user's, or being pulled just now.
    pub(crate) fn take(&self, user: &str, id: &str) -> Option<Taken<S>> {
        let id = Uuid::parse_str(id.trim().trim_start_matches("uuid:")).ok()?;
        let mut open = self.lock();
        let context = open.get_mut(&id).filter(|o| o.user == user)?;
        if context.used.elapsed() >= context.idle {
            open.remove(&id);
            return None;
        }
        let state = context.state.take()?;
        Some(Taken { id, state })
    }

    /// Puts a state back after a pull.
    pub(crate) fn put(&self, taken: Taken<S>) {
        let bytes = taken.state.bytes();
        if let Some(context) = self.lock().get_mut(&taken.id) {
            context.bytes = bytes;
            context.state = Some(taken.state);
            context.used = Instant::now();
        }
    }

    /// Ends an enumeration; says whether it was there.
    pub(crate) fn close(&self, user: &str, id: &str) -> bool {
        let taken = self.take(user, id);
        taken.is_some_and(|t| self.lock().remove(&t.id).is_some())
    }

    /// Ends one that was taken.
    pub(crate) fn end(&self, taken: Taken<S>) -> S {
        self.lock().remove(&taken.id);
        taken.state
    }
}

/// Lets go of the room of items that were pulled.
pub(crate) fn give_back<T>(left: &mut VecDeque<T>) {
    if left.capacity() / 4 > left.len() {
        left.shrink_to_fit();
    }
}

/// Takes out what was not used for too long. One that is being pulled is in use, unless its pull never ended.
fn take_ended<S>(open: &mut HashMap<Uuid, Open<S>>) -> Vec<Open<S>> {
    const STUCK: Duration = Duration::from_secs(3600);
    open.extract_if(|_, o| {
        let unused = o.used.elapsed();
        unused >= o.idle && (o.state.is_some() || unused >= STUCK)
    })
    .map(|(_, ended)| ended)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Held for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    fn limits(total: usize, per_user: usize, idle: u64) -> ContextLimits {
        ContextLimits {
            total,
            per_user,
            bytes: 100,
            bytes_per_user: 50,
            idle: Duration::from_secs(idle),
        }
    }

    #[test]
    fn a_context_belongs_to_who_opened_it_and_is_pulled_by_one_at_a_time() {
        let contexts = Contexts::new(limits(9, 9, 60));
        let id = contexts.open("a", None, 1).expect("open").to_string();
        assert!(contexts.take("b", &id).is_none());
        let taken = contexts.take("a", &id).expect("taken");
        assert!(contexts.take("a", &id).is_none(), "being pulled");
        contexts.put(taken);
        assert!(contexts.close("a", &format!("uuid:{}", id.to_uppercase())));
        assert!(!contexts.close("a", &id));
    }

    #[test]
    fn limits_hold_and_ended_ones_make_room() {
        let contexts = Contexts::new(limits(3, 2, 60));
        let first = contexts.open("a", None, 1).expect("1").to_string();
        contexts.open("a", None, 1).expect("2");
        assert!(contexts.open("a", None, 1).is_err(), "per user");
        contexts.open("b", None, 1).expect("3");
        assert!(contexts.open("c", None, 1).is_err(), "total");
        let taken = contexts.take("a", &first).expect("taken");
        contexts.end(taken);
        contexts.open("c", None, 1).expect("room again");
    }

    #[test]
    fn an_unused_context_expires() {
        let contexts = Contexts::new(limits(3, 2, 60));
        let id = contexts.open("a", Some(Duration::ZERO), 1).expect("open");
        assert!(contexts.take("a", &id.to_string()).is_none());
        assert!(contexts.take("a", "nonsense").is_none());
    }

    #[test]
    fn what_is_held_is_bounded_for_each_user_and_for_all_but_one_always_fits() {
        let contexts = Contexts::new(limits(9, 9, 60));
        let large = contexts.open("a", None, 60).expect("alone").to_string();
        let refused = contexts.open("a", None, 1);
        assert!(matches!(
            refused,
            Err(Limit::EnumerationBytes {
                held: 61,
                own: true,
                ..
            })
        ));
        contexts.open("b", None, 30).expect("another user's");
        let refused = contexts.open("c", None, 11);
        assert!(matches!(
            refused,
            Err(Limit::EnumerationBytes {
                held: 101,
                own: false,
                ..
            })
        ));
        let mut taken = contexts.take("a", &large).expect("taken");
        taken.state = 20;
        contexts.put(taken);
        contexts
            .open("a", None, 30)
            .expect("what was pulled makes room");
    }

    #[test]
    fn a_sweep_ends_what_nobody_pulls_and_nothing_else() {
        let contexts = Contexts::new(limits(9, 9, 60));
        contexts.open("a", Some(Duration::ZERO), 1).expect("old");
        let pulled = contexts.open("a", Some(Duration::ZERO), 1).expect("pulled");
        // Taken the moment it was opened, as a pull does whose client asked for no time.
        let state = contexts
            .lock()
            .get_mut(&pulled)
            .and_then(|o| o.state.take());
        contexts.open("a", None, 1).expect("fresh");
        assert_eq!(contexts.sweep(), 0, "the open before swept the old one");
        assert_eq!(contexts.lock().len(), 2);
        contexts.put(Taken {
            id: pulled,
            state: state.expect("was there"),
        });
        assert_eq!(contexts.sweep(), 1);
    }
}

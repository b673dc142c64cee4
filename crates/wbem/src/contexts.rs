//! Open enumerations between a client's first request and its last pull: bounded in number, per user, and in
//! time; each belongs to the user who opened it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Bounds on open enumerations.
#[derive(Clone, Debug)]
pub struct ContextLimits {
    /// Of all users together.
    pub total: usize,
    /// Of one user.
    pub per_user: usize,
    /// How long one may stay unused, unless the client asks for less.
    pub idle: Duration,
}

impl Default for ContextLimits {
    fn default() -> Self {
        ContextLimits {
            total: 1000,
            per_user: 200,
            idle: Duration::from_secs(300),
        }
    }
}

/// Too many enumerations are open.
#[derive(Debug, thiserror::Error)]
#[error(
    "{open} enumerations of this {scope} are open, more are not allowed; pull them to their end or release them"
)]
pub(crate) struct TooMany {
    open: usize,
    scope: &'static str,
}

pub(crate) struct Contexts<S> {
    limits: ContextLimits,
    open: Mutex<HashMap<Uuid, Open<S>>>,
}

struct Open<S> {
    user: String,
    idle: Duration,
    used: Instant,
    /// `None` while a pull works on it.
    state: Option<S>,
}

/// A context taken out for one pull; put it back with [`Contexts::put`], or drop it to end it.
pub(crate) struct Taken<S> {
    pub(crate) id: Uuid,
    pub(crate) state: S,
}

impl<S> Contexts<S> {
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
    pub(crate) fn open(
        &self,
        user: &str,
        idle: Option<Duration>,
        state: S,
    ) -> Result<Uuid, TooMany> {
        let mut open = self.lock();
        open.retain(|_, o| o.used.elapsed() < o.idle);
        if open.len() >= self.limits.total {
            return Err(TooMany {
                open: open.len(),
                scope: "server",
            });
        }
        let own = open.values().filter(|o| o.user == user).count();
        if own >= self.limits.per_user {
            return Err(TooMany {
                open: own,
                scope: "user",
            });
        }
        let id = Uuid::new_v4();
        let idle = idle.map_or(self.limits.idle, |i| i.min(self.limits.idle));
        let context = Open {
            user: user.to_owned(),
            idle,
            used: Instant::now(),
            state: Some(state),
        };
        open.insert(id, context);
        Ok(id)
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
        if let Some(context) = self.lock().get_mut(&taken.id) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(total: usize, per_user: usize, idle: u64) -> ContextLimits {
        ContextLimits {
            total,
            per_user,
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
        let first = contexts.open("a", None, ()).expect("1").to_string();
        contexts.open("a", None, ()).expect("2");
        assert!(contexts.open("a", None, ()).is_err(), "per user");
        contexts.open("b", None, ()).expect("3");
        assert!(contexts.open("c", None, ()).is_err(), "total");
        let taken = contexts.take("a", &first).expect("taken");
        contexts.end(taken);
        contexts.open("c", None, ()).expect("room again");
    }

    #[test]
    fn an_unused_context_expires() {
        let contexts = Contexts::new(limits(3, 2, 60));
        let id = contexts.open("a", Some(Duration::ZERO), ()).expect("open");
        assert!(contexts.take("a", &id.to_string()).is_none());
        assert!(contexts.take("a", "nonsense").is_none());
    }
}

//! Places of connections: so many of a listener, so many of them for one origin. Whoever finds none is told so at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limit::{Limit, Origin};

/// The places of one listener.
pub(super) struct Places {
    all: usize,
    each: usize,
    taken: Mutex<HashMap<Origin, usize>>,
}

/// A place; given back when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    origin: Origin,
}

impl Places {
    pub(super) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Places {
            all: all.max(1),
            each: each.max(1),
            taken: Mutex::default(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Origin, usize>> {
        // No code that can panic runs under this lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(self: &Arc<Self>, origin: Origin) -> Result<Place, Limit> {
        let mut taken = self.taken();
        let own = taken.get(&origin).copied().unwrap_or(0);
        if own >= self.each {
            return Err(Limit::ConnectionsFrom {
                origin,
                allowed: self.each,
            });
        }
        if taken.values().sum::<usize>() >= self.all {
            return Err(Limit::Connections { allowed: self.all });
        }
        taken.insert(origin, own + 1);
        Ok(Place {
            places: Arc::clone(self),
            origin,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.origin) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_origin_cannot_have_the_places_of_all() {
        let from = |last: u8| Origin::of(std::net::SocketAddr::from(([192, 0, 2, last], 1)));
        let places = Places::new(3, 2);
        let held: Vec<_> = (0..2).map(|_| places.take(from(1)).ok()).collect();
        assert!(held.iter().all(Option::is_some));
        let refused = places.take(from(1)).err();
        assert!(matches!(
            refused,
            Some(Limit::ConnectionsFrom { allowed: 2, .. })
        ));
        let third = places.take(from(2)).ok();
        let refused = places.take(from(3)).err();
        assert!(matches!(refused, Some(Limit::Connections { allowed: 3 })));
        drop(held);
        assert!(places.take(from(3)).is_ok());
        drop(third);
        assert!(
            places.taken().is_empty(),
            "nothing is remembered of who has left"
        );
    }
}

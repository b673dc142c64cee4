//! How many wrong passwords there may be, from where and for whom, and how long the next has to wait.
//!
//! Three tallies, each with tries that are free and a wait that doubles after them: of a user at one origin, of an origin, of a user
//! wherever from. The last two do not hold back a user who was let in from that origin before, so guessing from elsewhere locks
//! nobody out. Nothing here knows a clock: the caller says what time it is.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::limit::Origin;

/// A tally's bounds.
#[derive(Clone, Copy, Debug)]
struct Rule {
    free: u32,
    longest: Duration,
}

const PAIR: Rule = Rule {
    free: 5,
    longest: Duration::from_secs(60),
};
const ORIGIN: Rule = Rule {
    free: 20,
    longest: Duration::from_secs(60),
};
const USER: Rule = Rule {
    free: 50,
    longest: Duration::from_secs(30),
};
/// The first wait.
const FIRST: Duration = Duration::from_secs(1);
/// What a tally remembers after the last wrong password.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// How long a user counts as known at an origin.
const KNOWN: Duration = Duration::from_secs(24 * 3600);
/// The most entries of each table: what cannot be told apart any more is forgotten first.
const ENTRIES: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Tally {
    failures: u32,
    last: Instant,
    until: Instant,
}

#[derive(Default)]
pub(super) struct Guard {
    pairs: HashMap<(Origin, String), Tally>,
    origins: HashMap<Origin, Tally>,
    users: HashMap<String, Tally>,
    known: HashMap<(Origin, String), Instant>,
}

impl Guard {
    /// How long an attempt has to wait, if it has to.
    pub(super) fn wait(&self, origin: Origin, user: &str, now: Instant) -> Option<Duration> {
        let pair = (origin, name(user));
        let known = self
            .known
            .get(&pair)
            .is_some_and(|at| now.saturating_duration_since(*at) < KNOWN);
        let tallies = [
            self.pairs.get(&pair),
            self.origins.get(&origin).filter(|_| !known),
            self.users.get(&pair.1).filter(|_| !known),
        ];
        tallies
            .into_iter()
            .flatten()
            .map(|tally| tally.until.saturating_duration_since(now))
            .filter(|wait| !wait.is_zero())
            .max()
    }

    /// Notes a wrong password, or an unknown user.
    pub(super) fn failed(&mut self, origin: Origin, user: &str, now: Instant) {
        let user = name(user);
        count(&mut self.pairs, (origin, user.clone()), PAIR, now);
        count(&mut self.origins, origin, ORIGIN, now);
        count(&mut self.users, user, USER, now);
    }

    /// Notes a right one: the user is forgiven at this origin, and known there. Guesses at other users are not forgiven.
    pub(super) fn succeeded(&mut self, origin: Origin, user: &str, now: Instant) {
        let pair = (origin, name(user));
        self.pairs.remove(&pair);
        make_room(&mut self.known, |at| *at);
        self.known.insert(pair, now);
    }

    /// Forgets what no longer matters.
    pub(super) fn sweep(&mut self, now: Instant) {
        let fresh = |tally: &Tally| now.saturating_duration_since(tally.last) < MEMORY;
        self.pairs.retain(|_, tally| fresh(tally));
        self.origins.retain(|_, tally| fresh(tally));
        self.users.retain(|_, tally| fresh(tally));
        self.known
            .retain(|_, at| now.saturating_duration_since(*at) < KNOWN);
    }
}

/// A name as a key: no user's is longer.
fn name(user: &str) -> String {
    user.chars().take(64).collect()
}

fn count<K: Eq + Hash + Clone>(tallies: &mut HashMap<K, Tally>, key: K, rule: Rule, now: Instant) {
    if !tallies.contains_key(&key) {
        make_room(tallies, |tally| tally.last);
    }
    let tally = tallies.entry(key).or_insert(Tally {
        failures: 0,
        last: now,
        until: now,
    });
    if now.saturating_duration_since(tally.last) >= MEMORY {
        tally.failures = 0;
    }
    tally.failures = tally.failures.saturating_add(1);
    tally.last = now;
    if let Some(over) = tally.failures.checked_sub(rule.free) {
        let wait = FIRST.saturating_mul(1 << over.min(6));
        tally.until = now + wait.min(rule.longest);
    }
}

/// Drops the older half of a full table.
fn make_room<K: Eq + Hash + Clone, V>(table: &mut HashMap<K, V>, at: impl Fn(&V) -> Instant) {
    if table.len() < ENTRIES {
        return;
    }
    let mut times: Vec<Instant> = table.values().map(&at).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    table.retain(|_, value| at(value) > median);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> Origin {
        Origin::of(std::net::SocketAddr::from(([192, 0, 2, last], 1)))
    }

    fn fail(guard: &mut Guard, origin: Origin, user: &str, times: u32, now: Instant) {
        for _ in 0..times {
            guard.failed(origin, user, now);
        }
    }

    #[test]
    fn a_few_wrong_passwords_are_free_and_then_the_wait_doubles() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        fail(&mut guard, from(1), "alice", 4, now);
        assert_eq!(guard.wait(from(1), "alice", now), None);
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                guard.failed(from(1), "alice", now);
                guard.wait(from(1), "alice", now).map_or(0, |w| w.as_secs())
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        let later = now + Duration::from_secs(60);
        assert_eq!(guard.wait(from(1), "alice", later), None);
    }

    #[test]
    fn a_success_forgives_the_user_at_that_origin_only() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        fail(&mut guard, from(1), "alice", 9, now);
        guard.succeeded(from(1), "alice", now);
        assert_eq!(guard.wait(from(1), "alice", now), None);
        fail(&mut guard, from(1), "bob", 9, now);
        guard.succeeded(from(1), "alice", now);
        assert!(guard.wait(from(1), "bob", now).is_some());
    }

    #[test]
    fn guessing_many_names_from_one_origin_is_slowed_down_too() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        for n in 0..20 {
            assert_eq!(guard.wait(from(1), &format!("u{n}"), now), None, "{n}");
            guard.failed(from(1), &format!("u{n}"), now);
        }
        assert!(guard.wait(from(1), "another", now).is_some());
        assert_eq!(guard.wait(from(2), "another", now), None);
    }

    #[test]
    fn guessing_from_everywhere_does_not_lock_out_who_was_let_in_before() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        guard.succeeded(from(200), "alice", now);
        for n in 0..100 {
            guard.failed(from(n), "alice", now);
        }
        assert!(guard.wait(from(201), "alice", now).is_some());
        assert_eq!(guard.wait(from(200), "alice", now), None);
    }

    #[test]
    fn the_tables_stay_small_whatever_names_are_tried() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        for n in 0..20_000u32 {
            let at = now + Duration::from_millis(u64::from(n));
            guard.failed(from(1), &format!("u{n}"), at);
        }
        assert!(guard.pairs.len() <= ENTRIES && guard.users.len() <= ENTRIES);
        assert!(guard.origins.len() == 1);
        guard.sweep(now + MEMORY + Duration::from_secs(30));
        assert!(guard.pairs.is_empty() && guard.origins.is_empty());
    }
}

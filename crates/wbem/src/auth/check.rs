//! Checks passwords against the users file. Argon2 is meant to be slow, so recent successes are
//! remembered under a keyed hash; a client that polls ten times a second pays for one.
//!
//! What a stranger can make this cost: `parallel` hashes at once, whoever has left meanwhile, `waiting` more in line, `waiting_each`
//! of one origin, and after a few wrong ones no more than [`Guard`] lets through. Known users' remembered passwords pass by all that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use async_trait::async_trait;
use ntlm::{ChannelBinding, Claim, NtHash};
use tokio::sync::Semaphore;

use super::guard::Guard;
use super::users::{User, UsersError, UsersFile, hash_password};
use super::{Authenticator, Proof, Ticket, Verdict};
use crate::{Caller, Origin};

/// How [`Accounts`] treats guesses and successes.
#[derive(Clone, Debug)]
pub struct AccountsOptions {
    /// How long a success is remembered after its last use. A changed or removed user is forgotten at once.
    pub remember: Duration,
    /// How many passwords are hashed at once; each takes about 19 MiB.
    pub parallel: usize,
    /// How many more may wait for that.
    pub waiting: usize,
    /// How many of them from one origin.
    pub waiting_each: usize,
}

impl Default for AccountsOptions {
    fn default() -> Self {
        AccountsOptions {
            remember: Duration::from_secs(300),
            parallel: 2,
            waiting: 256,
            waiting_each: 32,
        }
    }
}

const REMEMBERED: usize = 256;

/// The accounts of the users file; changes to the file take effect with the next request.
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    file: UsersFile,
    options: AccountsOptions,
    key: [u8; 32],
    /// A hash to spend time on where there is no such user.
    decoy: String,
    /// The same for NTLM.
    nobody: NtHash,
    hashing: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stamp: Option<Stamp>,
    users: Vec<User>,
    successes: HashMap<blake3::Hash, Instant>,
    guard: Guard,
    /// Attempts in line or being hashed.
    waiting: HashMap<Origin, usize>,
}

#[derive(PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    inode: u64,
    length: u64,
}

impl Accounts {
    /// Accounts of that file. Fails where a file is there that cannot be read.
    pub fn open(file: UsersFile, options: AccountsOptions) -> Result<Self, UsersError> {
        file.list()?;
        let random = |bytes: &mut [u8]| {
            let provider = rustls::crypto::ring::default_provider();
            let filled = provider.secure_random.fill(bytes);
            filled.map_err(|_| UsersError::Hash {
                reason: "the system has no random numbers".to_owned(),
            })
        };
        let (mut key, mut nobody) = ([0; 32], [0; 16]);
        random(&mut key)?;
        random(&mut nobody)?;
        Ok(Accounts {
            inner: Arc::new(Inner {
                file,
                decoy: hash_password("no user has this password")?,
                nobody: NtHash::of_nobody(nobody),
                hashing: Arc::new(Semaphore::new(options.parallel.max(1))),
                options,
                key,
                state: Mutex::default(),
            }),
        })
    }
}

/// A place in the line; given back when dropped.
struct Turn {
    inner: Arc<Inner>,
    origin: Origin,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(count) = state.waiting.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                state.waiting.remove(&self.origin);
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // What is inside is a cache: a panic elsewhere leaves nothing half-done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self, name: &str) -> Option<User> {
        let state = self.users();
        state.users.iter().find(|u| u.name == name).cloned()
    }

    /// The users as the file has them now.
    fn users(&self) -> MutexGuard<'_, State> {
        use std::os::unix::fs::MetadataExt as _;
        let stamp = std::fs::metadata(self.file.path()).ok().map(|m| Stamp {
            modified: m.modified().ok(),
            inode: m.ino(),
            length: m.len(),
        });
        let mut state = self.state();
        if stamp.is_none() || state.stamp != stamp {
            state.users = match self.file.list() {
                Ok(users) => users,
                Err(error) => {
                    // Refusing everybody is the safe answer to a file nobody can read.
                    tracing::error!(error = &error as &dyn std::error::Error, "users file");
                    Vec::new()
                }
            };
            state.stamp = stamp;
        }
        state
    }

    /// Stands for a user's NTLM secret, as it is now.
    fn stamp(&self, user: &User, secret: &NtHash) -> blake3::Hash {
        // No password is as long as this and the secret's digits, so that none has the same fingerprint.
        self.fingerprint(user, &format!("{:1100}ntlm {}", "", secret.to_hex()))
    }

    fn prove(
        &self,
        origin: Origin,
        claim: Box<Claim>,
        binding: Option<&ChannelBinding>,
    ) -> Result<Proof, Verdict> {
        let name = claim.user().to_owned();
        let user = self.user(&name);
        let known = user.as_ref().and_then(|u| u.nt.map(|secret| (u, secret)));
        // The same work for everybody: an unknown name, or one without this secret, has one nobody knows.
        let secret = known.map_or(self.nobody, |(_, secret)| secret);
        let proved = claim.prove(&secret, binding);
        let wait = self.state().guard.wait(origin, &name, Instant::now());
        let right = match (proved, known) {
            (Ok(proved), Some((user, secret))) => Some((proved, user, self.stamp(user, &secret))),
            (Err(refused), _) => {
                tracing::debug!(%origin, %refused, "a proof was refused");
                None
            }
            (Ok(_), None) => None,
        };
        match (right, wait) {
            (Some((proved, user, stamp)), wait) if wait.is_none() || self.remembered(&stamp) => {
                self.succeeded(origin, &name, stamp);
                Ok(Proof {
                    caller: Caller {
                        user: user.name.clone(),
                        role: user.role,
                    },
                    ticket: Ticket {
                        user: name,
                        stamp: *stamp.as_bytes(),
                    },
                    proved,
                })
            }
            (_, Some(wait)) => Err(Verdict::Wait(wait)),
            (_, None) => {
                self.failed(origin, &name);
                Err(Verdict::Wrong)
            }
        }
    }

    fn fingerprint(&self, user: &User, password: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [&user.name, &user.hash, password] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize()
    }

    fn remembered(&self, fingerprint: &blake3::Hash) -> bool {
        let mut state = self.state();
        match state.successes.get_mut(fingerprint) {
            Some(at) if at.elapsed() < self.options.remember => {
                *at = Instant::now();
                true
            }
            _ => false,
        }
    }

    fn succeeded(&self, origin: Origin, name: &str, fingerprint: blake3::Hash) {
        let mut state = self.state();
        let now = Instant::now();
        state.guard.succeeded(origin, name, now);
        if state.successes.len() >= REMEMBERED {
            let remember = self.options.remember;
            state.successes.retain(|_, at| at.elapsed() < remember);
            if state.successes.len() >= REMEMBERED {
                state.successes.clear();
            }
        }
        state.successes.insert(fingerprint, now);
    }

    fn failed(&self, origin: Origin, name: &str) {
        let mut state = self.state();
        let now = Instant::now();
        state.guard.sweep(now);
        state.guard.failed(origin, name, now);
        drop(state);
        let shown: String = name.chars().take(64).collect();
        tracing::warn!(user = shown, %origin, "wrong user name or password");
    }

    /// A place in the line, where there is one.
    fn stand_in_line(self: &Arc<Self>, origin: Origin, name: &str) -> Result<Turn, Verdict> {
        let mut state = self.state();
        if let Some(wait) = state.guard.wait(origin, name, Instant::now()) {
            return Err(Verdict::Wait(wait));
        }
        let each = state.waiting.get(&origin).copied().unwrap_or(0);
        let all: usize = state.waiting.values().sum();
        if each >= self.options.waiting_each.max(1) || all >= self.options.waiting.max(1) {
            return Err(Verdict::Busy);
        }
        state.waiting.insert(origin, each + 1);
        drop(state);
        Ok(Turn {
            inner: Arc::clone(self),
            origin,
        })
    }

    async fn check(self: Arc<Self>, origin: Origin, name: String, password: String) -> Verdict {
        let user = self.user(&name);
        let caller = |user: &User| {
            Verdict::Caller(Caller {
                user: user.name.clone(),
                role: user.role,
            })
        };
        let known = user.as_ref().map(|u| (u, self.fingerprint(u, &password)));
        if let Some((user, fingerprint)) = &known
            && self.remembered(fingerprint)
        {
            return caller(user);
        }
        let turn = match self.stand_in_line(origin, &name) {
            Ok(turn) => turn,
            Err(refused) => return refused,
        };
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else {
            return Verdict::Busy;
        };
        // Others of the same origin or user may have had their turn meanwhile: right ones spare this hash, wrong ones end it.
        if let Some((user, fingerprint)) = &known
            && self.remembered(fingerprint)
        {
            return caller(user);
        }
        if let Some(wait) = self.state().guard.wait(origin, &name, Instant::now()) {
            return Verdict::Wait(wait);
        }
        // An unknown name takes as long as a wrong password.
        let hash = known.as_ref().map_or(&self.decoy, |(user, _)| &user.hash);
        let hash = hash.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let Ok(hash) = PasswordHash::new(&hash) else {
                return false;
            };
            Argon2::default()
                .verify_password(password.as_bytes(), &hash)
                .is_ok()
        });
        let verified = hashed.await.unwrap_or(false);
        // Noted before the next one has its turn.
        let _held = (permit, turn);
        match known {
            Some((user, fingerprint)) if verified => {
                self.succeeded(origin, &name, fingerprint);
                caller(user)
            }
            _ => {
                self.failed(origin, &name);
                Verdict::Wrong
            }
        }
    }
}

#[async_trait]
impl Authenticator for Accounts {
    async fn check(&self, origin: Origin, name: &str, password: &str) -> Verdict {
        // Longer than any password that can be set: not worth hashing.
        if password.len() > 1024 {
            self.inner.failed(origin, name);
            return Verdict::Wrong;
        }
        let check = Arc::clone(&self.inner).check(origin, name.to_owned(), password.to_owned());
        // A task of its own: a client that leaves before it hears of its wrong password has still sent one.
        tokio::spawn(check).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a password check failed");
            Verdict::Busy
        })
    }

    fn knows_ntlm(&self) -> bool {
        self.inner.users().users.iter().any(|u| u.nt.is_some())
    }

    async fn prove(
        &self,
        origin: Origin,
        claim: Box<Claim>,
        binding: Option<ChannelBinding>,
    ) -> Result<Proof, Verdict> {
        self.inner.prove(origin, claim, binding.as_ref())
    }

    fn still(&self, ticket: &Ticket) -> Option<Caller> {
        let user = self.inner.user(&ticket.user)?;
        let secret = user.nt?;
        let same = self.inner.stamp(&user, &secret) == blake3::Hash::from_bytes(ticket.stamp);
        same.then_some(Caller {
            user: user.name,
            role: user.role,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn accounts(dir: &tempfile::TempDir, options: AccountsOptions) -> Accounts {
        let file = UsersFile::new(dir.path().join("users"));
        file.add("alice", Role::Admin, "correct horse")
            .expect("add");
        Accounts::open(file, options).expect("open")
    }

    fn from(last: u8) -> Origin {
        Origin::of(std::net::SocketAddr::from(([192, 0, 2, last], 1)))
    }

    async fn role(accounts: &Accounts, name: &str, password: &str) -> Option<Role> {
        match accounts.check(from(1), name, password).await {
            Verdict::Caller(caller) => Some(caller.role),
            Verdict::Wrong => None,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_passes() {
        let dir = tempfile::tempdir().expect("dir");
        let accounts = accounts(&dir, AccountsOptions::default());
        assert_eq!(
            role(&accounts, "alice", "correct horse").await,
            Some(Role::Admin)
        );
        assert_eq!(role(&accounts, "alice", "correct horsf").await, None);
        assert_eq!(role(&accounts, "alice", "").await, None);
        assert_eq!(role(&accounts, "bob", "correct horse").await, None);
        assert_eq!(role(&accounts, "Alice", "correct horse").await, None);
        assert_eq!(role(&accounts, "alice", &"x".repeat(2000)).await, None);
    }

    #[tokio::test]
    async fn a_remembered_success_ends_with_a_new_password_or_the_user() {
        let dir = tempfile::tempdir().expect("dir");
        let accounts = accounts(&dir, AccountsOptions::default());
        assert!(role(&accounts, "alice", "correct horse").await.is_some());
        assert_eq!(
            accounts.inner.state().successes.len(),
            1,
            "it is remembered"
        );
        assert!(role(&accounts, "alice", "correct horse").await.is_some());
        let file = UsersFile::new(dir.path().join("users"));
        file.add("alice", Role::Viewer, "battery staple")
            .expect("new password");
        assert_eq!(role(&accounts, "alice", "correct horse").await, None);
        assert_eq!(
            role(&accounts, "alice", "battery staple").await,
            Some(Role::Viewer)
        );
        file.remove("alice").expect("remove");
        assert_eq!(role(&accounts, "alice", "battery staple").await, None);
    }

    #[tokio::test]
    async fn guesses_have_to_wait_and_are_not_looked_at_meanwhile() {
        let dir = tempfile::tempdir().expect("dir");
        let accounts = accounts(&dir, AccountsOptions::default());
        for _ in 0..5 {
            assert_eq!(role(&accounts, "alice", "wrong").await, None);
        }
        let right = accounts.check(from(1), "alice", "correct horse").await;
        assert!(matches!(right, Verdict::Wait(_)), "{right:?}");
        let elsewhere = accounts.check(from(2), "alice", "correct horse").await;
        assert!(matches!(elsewhere, Verdict::Caller(_)), "{elsewhere:?}");
        // It was let in elsewhere, so its password is remembered, and passes by what guesses have brought about.
        assert!(role(&accounts, "alice", "correct horse").await.is_some());
    }

    #[tokio::test]
    async fn of_a_burst_of_wrong_passwords_a_few_are_hashed() {
        let dir = tempfile::tempdir().expect("dir");
        let options = AccountsOptions {
            waiting_each: 8,
            ..AccountsOptions::default()
        };
        let accounts = Arc::new(accounts(&dir, options));
        let mut burst = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let accounts = Arc::clone(&accounts);
            burst.spawn(async move { accounts.check(from(1), "alice", "wrong").await });
        }
        let answers = burst.join_all().await;
        let wrong = answers.iter().filter(|a| **a == Verdict::Wrong).count();
        // Five are free, and as many as are hashed at once may have begun before the fifth was told.
        assert!((5..=7).contains(&wrong), "{wrong}");
        assert!(answers.contains(&Verdict::Busy), "more than may wait");
        let waits = answers.iter().filter(|a| matches!(a, Verdict::Wait(_)));
        assert!(waits.count() > 0, "in line when the fifth was wrong");
        assert!(accounts.inner.state().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_guess_counts_though_its_client_did_not_wait() {
        let dir = tempfile::tempdir().expect("dir");
        let accounts = accounts(&dir, AccountsOptions::default());
        for _ in 0..5 {
            let check = accounts.check(from(1), "alice", "wrong");
            let left = tokio::time::timeout(Duration::ZERO, check).await;
            assert!(left.is_err(), "it did not wait");
        }
        let held_back = || {
            let now = Instant::now();
            accounts.inner.state().guard.wait(from(1), "alice", now)
        };
        // Were they not counted, this would wait for ever.
        while held_back().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

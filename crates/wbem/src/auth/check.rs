//! Checks passwords against the users file. Argon2 is meant to be slow, so recent successes are
//! remembered under a keyed hash; a client that polls ten times a second pays for one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::Authenticator;
use super::users::{User, UsersError, UsersFile, hash_password};
use crate::Caller;

/// How [`Accounts`] treats guesses and successes.
#[derive(Clone, Debug)]
pub struct AccountsOptions {
    /// How long a success is remembered. A changed or removed user is forgotten at once.
    pub remember: Duration,
    /// How long the answer to the first wrong password of a user is held back; it doubles with each further
    /// one, five times at most, and is forgotten with the next right one or after a minute.
    pub failure_delay: Duration,
    /// How many passwords are hashed at once; each takes about 19 MiB.
    pub parallel: usize,
}

impl Default for AccountsOptions {
    fn default() -> Self {
        AccountsOptions {
            remember: Duration::from_secs(300),
            failure_delay: Duration::from_millis(250),
            parallel: 2,
        }
    }
}

const REMEMBERED: usize = 256;
const FAILURE_MEMORY: Duration = Duration::from_secs(60);

/// The accounts of the users file; changes to the file take effect with the next request.
pub struct Accounts {
    file: UsersFile,
    options: AccountsOptions,
    key: [u8; 32],
    /// A hash to spend time on where there is no such user.
    decoy: String,
    hashing: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stamp: Option<Stamp>,
    users: Vec<User>,
    successes: HashMap<blake3::Hash, Instant>,
    failures: HashMap<String, (u32, Instant)>,
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
        let mut key = [0; 32];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut key)
            .map_err(|_| UsersError::Hash {
                reason: "the system has no random numbers".to_owned(),
            })?;
        Ok(Accounts {
            file,
            decoy: hash_password("no user has this password")?,
            hashing: Semaphore::new(options.parallel.max(1)),
            options,
            key,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // What is inside is a cache: a panic elsewhere leaves nothing half-done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self, name: &str) -> Option<User> {
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
        state.users.iter().find(|u| u.name == name).cloned()
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
        let state = self.state();
        state
            .successes
            .get(fingerprint)
            .is_some_and(|at| at.elapsed() < self.options.remember)
    }

    fn succeeded(&self, name: &str, fingerprint: blake3::Hash) {
        let mut state = self.state();
        state.failures.remove(name);
        if state.successes.len() >= REMEMBERED {
            let remember = self.options.remember;
            state.successes.retain(|_, at| at.elapsed() < remember);
            if state.successes.len() >= REMEMBERED {
                state.successes.clear();
            }
        }
        state.successes.insert(fingerprint, Instant::now());
    }

    /// Notes a failure and says how long to hold the answer back.
    fn failed(&self, name: &str) -> Duration {
        let mut state = self.state();
        if state.failures.len() >= REMEMBERED {
            state
                .failures
                .retain(|_, (_, at)| at.elapsed() < FAILURE_MEMORY);
            if state.failures.len() >= REMEMBERED {
                state.failures.clear();
            }
        }
        let key: String = name.chars().take(64).collect();
        let entry = state.failures.entry(key).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= FAILURE_MEMORY {
            entry.0 = 0;
        }
        let delay = self.options.failure_delay * 2u32.pow(entry.0.min(5));
        *entry = (entry.0.saturating_add(1), Instant::now());
        delay
    }

    async fn verify(&self, hash: String, password: String) -> bool {
        let Ok(_permit) = self.hashing.acquire().await else {
            return false;
        };
        let verified = tokio::task::spawn_blocking(move || {
            let Ok(hash) = PasswordHash::new(&hash) else {
                return false;
            };
            Argon2::default()
                .verify_password(password.as_bytes(), &hash)
                .is_ok()
        });
        verified.await.unwrap_or(false)
    }
}

#[async_trait]
impl Authenticator for Accounts {
    async fn check(&self, name: &str, password: &str) -> Option<Caller> {
        // Longer than any password that can be set: not worth hashing.
        if password.len() > 1024 {
            return None;
        }
        let user = self.user(name);
        if let Some(user) = user {
            let fingerprint = self.fingerprint(&user, password);
            if self.remembered(&fingerprint)
                || self.verify(user.hash.clone(), password.to_owned()).await
            {
                self.succeeded(name, fingerprint);
                return Some(Caller {
                    user: user.name,
                    role: user.role,
                });
            }
        } else {
            // An unknown name takes as long as a wrong password.
            self.verify(self.decoy.clone(), password.to_owned()).await;
        }
        let delay = self.failed(name);
        tracing::warn!(user = name, "wrong user name or password");
        tokio::time::sleep(delay).await;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn accounts(dir: &tempfile::TempDir) -> Accounts {
        let file = UsersFile::new(dir.path().join("users"));
        file.add("alice", Role::Admin, "correct horse")
            .expect("add");
        let options = AccountsOptions {
            failure_delay: Duration::ZERO,
            ..AccountsOptions::default()
        };
        Accounts::open(file, options).expect("open")
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_passes() {
        let dir = tempfile::tempdir().expect("dir");
        let accounts = accounts(&dir);
        let alice = accounts.check("alice", "correct horse").await;
        assert_eq!(alice.map(|c| c.role), Some(Role::Admin));
        assert_eq!(accounts.check("alice", "correct horsf").await, None);
        assert_eq!(accounts.check("alice", "").await, None);
        assert_eq!(accounts.check("bob", "correct horse").await, None);
        assert_eq!(accounts.check("Alice", "correct horse").await, None);
    }

    #[tokio::test]
    async fn a_remembered_success_ends_with_a_new_password_or_the_user() {
        let dir = tempfile::tempdir().expect("dir");
        let accounts = accounts(&dir);
        assert!(accounts.check("alice", "correct horse").await.is_some());
        assert_eq!(accounts.state().successes.len(), 1, "it is remembered");
        assert!(accounts.check("alice", "correct horse").await.is_some());
        let file = UsersFile::new(dir.path().join("users"));
        file.add("alice", Role::Viewer, "battery staple")
            .expect("new password");
        assert_eq!(accounts.check("alice", "correct horse").await, None);
        let alice = accounts.check("alice", "battery staple").await;
        assert_eq!(alice.map(|c| c.role), Some(Role::Viewer));
        file.remove("alice").expect("remove");
        assert_eq!(accounts.check("alice", "battery staple").await, None);
    }

    #[tokio::test]
    async fn guessing_gets_slower_and_a_success_forgives() {
        let dir = tempfile::tempdir().expect("dir");
        let mut accounts = accounts(&dir);
        accounts.options.failure_delay = Duration::from_secs(1);
        let delays: Vec<_> = (0..7).map(|_| accounts.failed("alice").as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 32]);
        assert!(accounts.check("alice", "correct horse").await.is_some());
        assert_eq!(accounts.failed("alice").as_secs(), 1);
    }
}

//! The users file: one JSON object per line with name, role, Argon2id hash and, of who asked for it, NT hash, mode 0600, replaced as a
//! whole. It is read and written by the service and by `kvmmsd user …` at once, so every change takes a lock
//! on a file beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use ntlm::NtHash;
use serde::{Deserialize, Serialize};

use crate::Role;

/// Why the users file could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// Reading, writing or locking the file failed.
    #[error("{what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not a user.
    #[error("line {line} of {} is not a user", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The name cannot be one.
    #[error(
        "{name:?} cannot be a user name: 1 to 64 characters, no colon, backslash, blank or control character"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The password is too short or too long.
    #[error("a password has 8 to 1024 bytes, this one has {length}")]
    Password {
        /// Its length in bytes.
        length: usize,
    },
    /// There is no such user.
    #[error("there is no user {name:?}")]
    NoSuchUser {
        /// The name.
        name: String,
    },
    /// Hashing failed.
    #[error("the password could not be hashed: {reason}")]
    Hash {
        /// What the hash function says.
        reason: String,
    },
}

/// One user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name; compared exactly.
    pub name: String,
    /// What the user may do.
    #[serde(with = "role_text")]
    pub role: Role,
    /// The Argon2id hash in PHC form.
    pub hash: String,
    /// The NT hash that NTLM needs: as good as the password to whoever reads it, so only where it was asked for.
    #[serde(default, with = "nt_text", skip_serializing_if = "Option::is_none")]
    pub nt: Option<NtHash>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The name of a role as the command line and the users file write it.
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// The role of that name.
pub fn role_named(name: &str) -> Option<Role> {
    [Role::Viewer, Role::Operator, Role::Admin]
        .into_iter()
        .find(|r| role_name(*r) == name)
}

mod role_text {
    use super::{Role, role_name, role_named};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the shape serde asks for"
    )]
    pub(super) fn serialize<S: Serializer>(role: &Role, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(role_name(*role))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
        let name = String::deserialize(from)?;
        role_named(&name).ok_or_else(|| D::Error::custom(format!("{name:?} is not a role")))
    }
}

mod nt_text {
    use super::NtHash;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "the shape serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        hash: &Option<NtHash>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => to.serialize_str(&hash.to_hex()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<NtHash>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        // The text itself is a secret, whatever is wrong with it.
        let read =
            |text: String| NtHash::from_hex(&text).ok_or_else(|| D::Error::custom("no NT hash"));
        text.map(read).transpose()
    }
}

/// The users file at one path.
#[derive(Clone, Debug)]
pub struct UsersFile {
    path: PathBuf,
}

impl UsersFile {
    /// The file at `path`; it need not exist, an absent file has no users.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        UsersFile { path: path.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io<T>(&self, what: &'static str, result: io::Result<T>) -> Result<T, UsersError> {
        result.map_err(|source| UsersError::Io {
            what,
            path: self.path.clone(),
            source,
        })
    }

    /// All users, in the order of the file.
    pub fn list(&self) -> Result<Vec<User>, UsersError> {
        let text = match fs::read_to_string(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => self.io("cannot read", other)?,
        };
        text.lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| {
                serde_json::from_str(line).map_err(|source| UsersError::Line {
                    path: self.path.clone(),
                    line: i + 1,
                    source,
                })
            })
            .collect()
    }

    /// Adds a user, or gives an existing one a new password and role; a secret for NTLM that was there goes with the old password.
    /// Takes some tens of milliseconds of CPU (Argon2id) and blocks: not for an async task.
    pub fn add(&self, name: &str, role: Role, password: &str) -> Result<(), UsersError> {
        self.put(name, role, password, None)
    }

    /// The same, and keeps what NTLM needs of the password.
    pub fn add_with_ntlm(&self, name: &str, role: Role, password: &str) -> Result<(), UsersError> {
        self.put(name, role, password, Some(NtHash::of(password)))
    }

    fn put(
        &self,
        name: &str,
        role: Role,
        password: &str,
        nt: Option<NtHash>,
    ) -> Result<(), UsersError> {
        let fine = |c: char| !cim::steers(c) && !c.is_whitespace() && c != ':' && c != '\\';
        if name.is_empty() || name.chars().count() > 64 || !name.chars().all(fine) {
            return Err(UsersError::Name {
                name: name.chars().take(80).collect(),
            });
        }
        if !(8..=1024).contains(&password.len()) {
            return Err(UsersError::Password {
                length: password.len(),
            });
        }
        let hash = hash_password(password)?;
        self.change(|users| {
            users.retain(|u| u.name != name);
            users.push(User {
                name: name.to_owned(),
                role,
                hash,
                nt,
            });
            Ok(())
        })
    }

    /// Removes a user.
    pub fn remove(&self, name: &str) -> Result<(), UsersError> {
        self.change(|users| {
            let before = users.len();
            users.retain(|u| u.name != name);
            if users.len() == before {
                return Err(UsersError::NoSuchUser {
                    name: name.chars().take(80).collect(),
                });
            }
            Ok(())
        })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Vec<User>) -> Result<(), UsersError>,
    ) -> Result<(), UsersError> {
        let private = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
        };
        let lock = self.io("cannot lock", private(&self.path.with_extension("lock")))?;
        self.io("cannot lock", lock.lock())?;
        let mut users = self.list()?;
        change(&mut users)?;
        let mut text = String::new();
        for user in &users {
            let line = serde_json::to_string(user).map_err(|e| UsersError::Io {
                what: "cannot write",
                path: self.path.clone(),
                source: e.into(),
            })?;
            text.push_str(&line);
            text.push('\n');
        }
        let fresh = self.path.with_extension("new");
        // A left-over of a crash may have any content and mode.
        let _ = fs::remove_file(&fresh);
        let write = || -> io::Result<()> {
            let mut file = private(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)?;
            match self.path.parent() {
                Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
                _ => Ok(()),
            }
        };
        self.io("cannot write", write())
    }
}

/// The Argon2id hash of a password in PHC form, with a fresh salt.
pub fn hash_password(password: &str) -> Result<String, UsersError> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|e| UsersError::Hash {
            reason: e.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn users_are_added_replaced_listed_and_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let file = UsersFile::new(dir.path().join("users"));
        assert!(file.list().expect("no file yet").is_empty());
        file.add("alice", Role::Admin, "correct horse")
            .expect("add");
        file.add("bob", Role::Viewer, "battery staple")
            .expect("add");
        file.add("alice", Role::Operator, "new password")
            .expect("replace");
        let users = file.list().expect("list");
        let names: Vec<_> = users.iter().map(|u| (u.name.as_str(), u.role)).collect();
        assert_eq!(names, [("bob", Role::Viewer), ("alice", Role::Operator)]);
        let mode = fs::metadata(file.path())
            .expect("stat")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        file.remove("bob").expect("remove");
        assert!(matches!(
            file.remove("bob"),
            Err(UsersError::NoSuchUser { .. })
        ));
    }

    #[test]
    fn the_secret_of_ntlm_is_kept_where_asked_for_and_goes_with_the_password() {
        let dir = tempfile::tempdir().expect("dir");
        let file = UsersFile::new(dir.path().join("users"));
        file.add_with_ntlm("alice", Role::Admin, "correct horse")
            .expect("add");
        file.add("bob", Role::Viewer, "battery staple")
            .expect("add");
        let users = file.list().expect("list");
        assert_eq!(users[0].nt, Some(NtHash::of("correct horse")));
        assert_eq!(users[1].nt, None);
        let text = fs::read_to_string(file.path()).expect("text");
        assert_eq!(text.matches("\"nt\"").count(), 1, "{text}");
        assert!(!format!("{users:?}").contains(&NtHash::of("correct horse").to_hex()));
        file.add("alice", Role::Admin, "another password")
            .expect("a new password");
        assert!(file.list().expect("list").iter().all(|u| u.nt.is_none()));
    }

    #[test]
    fn names_and_passwords_that_cannot_work_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let file = UsersFile::new(dir.path().join("users"));
        for name in ["", "a:b", "a b", "a\\b", "a\nb", "a\u{202e}b", "a\u{1b}b"] {
            let added = file.add(name, Role::Admin, "long enough");
            assert!(matches!(added, Err(UsersError::Name { .. })), "{name:?}");
        }
        let short = file.add("a", Role::Admin, "short");
        assert!(matches!(short, Err(UsersError::Password { length: 5 })));
        assert!(!file.path().exists());
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("users");
        fs::write(&path, "\n{\"name\":\"a\"}\n").expect("write");
        let listed = UsersFile::new(&path).list();
        assert!(matches!(listed, Err(UsersError::Line { line: 2, .. })));
    }
}

//! Access lists of files (POSIX.1e), as Linux stores them: a user without a name gets what it needs, and nobody else anything.
//!
//! Two traps. The first entry for a user turns the group bits of the mode into a mask: a file of mode 0600 then shows 0660, although its
//! group still has nothing. And whoever only removes the list leaves these bits behind, where they really are the group's. So an entry
//! that is put never changes what others can do, and the last one that is taken leaves the mode that was meant.

use std::path::Path;

use rustix::io::Errno;

const NAME: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
const NOBODY: u32 = u32::MAX;

/// Permission to read, to write, to search a directory.
pub(crate) const READ: u16 = 4;
/// As above.
pub(crate) const WRITE: u16 = 2;
/// As above.
pub(crate) const SEARCH: u16 = 1;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OWNER: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// One file's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

/// What is left when an entry was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// There was none.
    Unchanged,
    /// A list that others need.
    List(Acl),
    /// Nothing that a mode cannot say: these are the group's bits.
    Group(u16),
}

impl Acl {
    /// What a mode says.
    pub(crate) fn of_mode(mode: u32) -> Self {
        let bits = |shift: u32| u16::try_from((mode >> shift) & 7).unwrap_or(0);
        let entry = |tag, permissions| Entry {
            tag,
            id: NOBODY,
            permissions,
        };
        Self {
            entries: vec![
                entry(OWNER, bits(6)),
                entry(GROUP_OWNER, bits(3)),
                entry(OTHER, bits(0)),
            ],
        }
    }

    /// From the bytes of the attribute. `None`: not a list we know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, entries) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
            return None;
        }
        let entry = |bytes: &[u8]| match *bytes {
            [t0, t1, p0, p1, i0, i1, i2, i3] => Some(Entry {
                tag: u16::from_le_bytes([t0, t1]),
                permissions: u16::from_le_bytes([p0, p1]),
                id: u32::from_le_bytes([i0, i1, i2, i3]),
            }),
            _ => None,
        };
        let entries = entries.chunks(8).map(entry).collect::<Option<Vec<_>>>()?;
        Some(Self { entries })
    }

    /// The bytes of the attribute.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    fn of(&self, tag: u16) -> Option<u16> {
        let found = self.entries.iter().find(|entry| entry.tag == tag);
        found.map(|entry| entry.permissions)
    }

    fn has_names(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry.tag, USER | GROUP))
    }

    /// What the owning group really has.
    fn group(&self) -> u16 {
        self.of(GROUP_OWNER).unwrap_or(0) & self.of(MASK).unwrap_or(7)
    }

    /// What a user has who is neither the owner nor in any group named here.
    pub(crate) fn allows(&self, user: u32) -> u16 {
        let named = self
            .entries
            .iter()
            .find(|entry| (entry.tag, entry.id) == (USER, user));
        match named {
            Some(entry) => entry.permissions & self.of(MASK).unwrap_or(7),
            None => self.of(OTHER).unwrap_or(0),
        }
    }

    /// With exactly these permissions for the user. Nobody else has more or less than before.
    pub(crate) fn with(mut self, user: u32, permissions: u16) -> Self {
        let old_mask = self.of(MASK).unwrap_or(7);
        self.entries
            .retain(|entry| entry.tag != MASK && (entry.tag, entry.id) != (USER, user));
        let mut mask = permissions;
        for entry in &mut self.entries {
            if matches!(entry.tag, USER | GROUP | GROUP_OWNER) {
                // A wider mask must not give back what the old one withheld.
                entry.permissions &= old_mask;
                mask |= entry.permissions;
            }
        }
        let entry = |tag, id, permissions| Entry {
            tag,
            id,
            permissions,
        };
        self.entries.push(entry(USER, user, permissions));
        self.entries.push(entry(MASK, NOBODY, mask));
        self.entries.sort_unstable();
        self
    }

    /// Without the user's entry.
    pub(crate) fn without(mut self, user: u32) -> Left {
        let mask = self.of(MASK).unwrap_or(7);
        let before = self.entries.len();
        self.entries
            .retain(|entry| (entry.tag, entry.id) != (USER, user));
        if self.entries.len() == before {
            return Left::Unchanged;
        }
        if !self.has_names() {
            return Left::Group(self.group());
        }
        let mut rest = 0;
        for entry in &self.entries {
            if matches!(entry.tag, USER | GROUP | GROUP_OWNER) {
                rest |= entry.permissions;
            }
        }
        for entry in &mut self.entries {
            if entry.tag == MASK {
                entry.permissions = rest & mask;
            }
        }
        Left::List(self)
    }
}

/// The list of an open file, or what its mode says. `file` is a path in `/proc/self/fd`.
pub(crate) fn read(file: &Path, mode: u32) -> Result<Acl, Errno> {
    let mut bytes = vec![0_u8; 4096];
    match rustix::fs::getxattr(file, NAME, &mut bytes) {
        Ok(length) => {
            let bytes = bytes.get(..length).unwrap_or_default();
            Acl::decode(bytes).ok_or(Errno::INVAL)
        }
        // No list; or a file system without lists, which says so when one is set.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(Acl::of_mode(mode)),
        Err(error) => Err(error),
    }
}

/// Sets it.
pub(crate) fn write(file: &Path, acl: &Acl) -> Result<(), Errno> {
    rustix::fs::setxattr(file, NAME, &acl.encode(), rustix::fs::XattrFlags::empty())
}

/// Leaves a file with a mode only.
pub(crate) fn clear(file: &Path, mode: u32, group: u16) -> Result<(), Errno> {
    let mode = (mode & 0o7707) | (u32::from(group) << 3);
    // First the mode: in between the mask is the group's own, never wider.
    rustix::fs::chmod(file, rustix::fs::Mode::from_raw_mode(mode))?;
    rustix::fs::removexattr(file, NAME)
}

/// A file's mode as it is without the entries of machines: what to give a file that shall be like it. Where there is a list the mode
/// that `stat` tells has a mask in the place of the group's bits.
///
/// # Errors
/// As the system says.
pub fn plain_mode(path: &Path) -> std::io::Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = std::fs::metadata(path)?.mode();
    let group = read(path, mode)?.group();
    Ok((mode & 0o7707) | (u32::from(group) << 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const U: u32 = 2_080_000_001;

    #[test]
    fn a_private_file_is_opened_for_one_user_and_closed_again() {
        let private = Acl::of_mode(0o100_600);
        assert_eq!(private.allows(U), 0);
        let granted = private.with(U, READ | WRITE);
        assert_eq!(
            (granted.allows(U), granted.allows(U + 1)),
            (READ | WRITE, 0)
        );
        assert_eq!(granted.group(), 0, "the mask is not the group's");
        assert_eq!(Acl::decode(&granted.encode()), Some(granted.clone()));
        let less = granted.with(U, READ);
        assert_eq!(less.allows(U), READ);
        assert_eq!(less.without(U), Left::Group(0));
    }

    #[test]
    fn a_mask_that_withheld_something_goes_on_withholding_it() {
        let bob = 1000;
        // user:bob:rw- with mask r--: bob may only read.
        let mut acl = Acl::of_mode(0o640).with(bob, READ | WRITE);
        for entry in &mut acl.entries {
            if entry.tag == MASK {
                entry.permissions = READ;
            }
        }
        let granted = acl.clone().with(U, READ | WRITE);
        assert_eq!(
            (granted.allows(bob), granted.allows(U)),
            (READ, READ | WRITE)
        );
        let Left::List(left) = granted.without(U) else {
            panic!("bob's entry stays")
        };
        assert_eq!(
            (left.allows(bob), left.allows(U), left.group()),
            (READ, 0, READ)
        );
    }

    #[test]
    fn machines_that_share_a_file_do_not_take_each_others_entry() {
        let both = Acl::of_mode(0o600).with(U, READ).with(U + 1, READ | WRITE);
        assert_eq!(both.clone().without(U + 2), Left::Unchanged);
        let Left::List(one) = both.without(U + 1) else {
            panic!("the first one's entry stays")
        };
        assert_eq!((one.allows(U), one.allows(U + 1)), (READ, 0));
    }

    #[test]
    fn a_mode_that_was_closed_meanwhile_stays_closed() {
        let mut granted = Acl::of_mode(0o660).with(U, READ);
        for entry in &mut granted.entries {
            if entry.tag == MASK {
                // What `chmod 600` does to a file with a list.
                entry.permissions = 0;
            }
        }
        assert_eq!(granted.allows(U), 0);
        assert_eq!(granted.without(U), Left::Group(0));
    }

    #[test]
    fn nonsense_is_no_list() {
        assert_eq!(Acl::decode(&[]), None);
        assert_eq!(Acl::decode(&[3, 0, 0, 0]), None);
        assert_eq!(Acl::decode(&[2, 0, 0, 0, 1]), None);
    }

    #[test]
    fn the_kernel_takes_the_list_and_the_mode_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        match write(&path, &Acl::of_mode(0o600).with(U, READ | WRITE)) {
            // This file system has no lists.
            Err(Errno::OPNOTSUPP) => return,
            other => other.unwrap(),
        }
        let mode = || {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(&path).unwrap().mode() & 0o7777
        };
        assert_eq!((mode(), plain_mode(&path).unwrap() & 0o777), (0o660, 0o600));
        assert_eq!(read(&path, mode()).unwrap().allows(U), READ | WRITE);
        if let Ok(told) = std::process::Command::new("getfacl")
            .arg("-np")
            .arg(&path)
            .output()
        {
            let told = String::from_utf8(told.stdout).unwrap();
            for line in [
                format!("user:{U}:rw-"),
                "group::---".into(),
                "mask::rw-".into(),
            ] {
                assert!(told.contains(&line), "{line}: {told}");
            }
        }
        let Left::Group(group) = read(&path, mode()).unwrap().without(U) else {
            panic!("only a mode is left")
        };
        clear(&path, mode(), group).unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(read(&path, mode()).unwrap(), Acl::of_mode(0o600));
    }
}

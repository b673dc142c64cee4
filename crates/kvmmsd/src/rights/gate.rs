//! The one place that decides which objects a caller sees.
//!
//! Every record a provider reads for a caller, and every object that is listed, found, followed to, or named by a
//! reference, passes [`Gate::may_see`]. What it hides is, for that caller, not there.

use vmms::db::Db;
use wbem::Caller;

use crate::object::What;

/// Which objects a caller sees.
pub(crate) trait Gate: Send + Sync {
    /// Whether they see this one; [`What::vms`] tells which machines it is about.
    fn may_see(&self, caller: &Caller, what: &What, db: &Db) -> bool;
}

/// Every role sees everything: there are no grants for single machines.
pub(crate) struct AllSeeing;

impl Gate for AllSeeing {
    fn may_see(&self, _caller: &Caller, _what: &What, _db: &Db) -> bool {
        true
    }
}

//! Open, Pull and Close: enumerations in pieces.

use std::time::Duration;

use cim::xml::Element;

use super::answer::{Answer, InstanceDetail, Piece};
use super::parameters::Parameters;
use super::service::Asked;
use crate::contexts::Held;
use crate::{Error, Instances, Status};

/// The most items of one piece.
const MAX_PIECE: u32 = 10_000;

/// What is left of an enumeration.
pub(crate) struct Opened {
    left: Left,
    detail: InstanceDetail,
}

impl Held for Opened {
    fn bytes(&self) -> usize {
        self.left.all().bytes()
    }
}

/// Which pull an enumeration is for, with what is left.
pub(super) enum Left {
    WithPath(Instances),
    Paths(Instances),
    Bare(Instances),
}

impl Left {
    fn all(&self) -> &Instances {
        let (Left::WithPath(all) | Left::Paths(all) | Left::Bare(all)) = self;
        all
    }
}

impl Opened {
    fn len(&self) -> usize {
        self.left.all().len()
    }

    fn piece(&mut self, count: u32) -> Piece {
        let count = usize::try_from(count.min(MAX_PIECE)).unwrap_or(usize::MAX);
        match &mut self.left {
            Left::WithPath(left) => {
                Piece::WithPath(left.take(count).collect(), self.detail.clone())
            }
            Left::Paths(left) => Piece::Paths(left.take(count).filter_map(|i| i.path).collect()),
            Left::Bare(left) => Piece::Bare(left.take(count).collect(), self.detail.clone()),
        }
    }

    fn is_for(&self, pull: &str) -> bool {
        matches!(
            (&self.left, pull),
            (Left::WithPath(_), "pullinstanceswithpath")
                | (Left::Paths(_), "pullinstancepaths")
                | (Left::Bare(_), "pullinstances")
        )
    }
}

/// The parameters every Open operation has.
pub(super) const OPEN: [&str; 5] = [
    "FilterQueryLanguage",
    "FilterQuery",
    "OperationTimeout",
    "ContinueOnError",
    "MaxObjectCount",
];

/// Refuses what an Open operation may ask for and does not get here.
pub(super) fn check(parameters: &Parameters<'_>) -> Result<(), Error> {
    if parameters.flag("ContinueOnError", false)? {
        return Err(Error::new(
            Status::NotSupported,
            "ContinueOnError is not supported.",
        ));
    }
    Ok(())
}

/// The first piece of an enumeration just run.
pub(super) fn open(
    asked: &Asked<'_>,
    parameters: &Parameters<'_>,
    left: Left,
    detail: InstanceDetail,
) -> Result<Answer, Error> {
    let count = parameters.number("MaxObjectCount")?.unwrap_or(0);
    let idle = parameters
        .number("OperationTimeout")?
        .filter(|s| *s > 0)
        .map(|s| Duration::from_secs(u64::from(s)));
    let mut opened = Opened { left, detail };
    let piece = opened.piece(count);
    let context = if opened.len() == 0 {
        None
    } else {
        let contexts = &asked.service.contexts;
        let id = contexts
            .open(&asked.caller.user, idle, opened)
            .map_err(|limit| asked.service.handler.limit(&limit))?;
        Some(id.to_string())
    };
    Ok(Answer::Piece { piece, context })
}

fn unknown() -> Error {
    Error::new(
        Status::InvalidEnumerationContext,
        "The enumeration context is unknown, ended, expired, or being pulled just now.",
    )
}

pub(super) fn pull(asked: &Asked<'_>, operation: &str, at: &Element) -> Result<Answer, Error> {
    let parameters = Parameters::read(at, &["EnumerationContext", "MaxObjectCount"])?;
    let id = parameters.required_text("EnumerationContext")?;
    let count = parameters.number("MaxObjectCount")?.ok_or_else(|| {
        Error::new(
            Status::InvalidParameter,
            "The parameter MaxObjectCount is missing.",
        )
    })?;
    let contexts = &asked.service.contexts;
    let mut taken = contexts.take(&asked.caller.user, &id).ok_or_else(unknown)?;
    if !taken.state.is_for(operation) {
        contexts.put(taken);
        return Err(Error::new(
            Status::InvalidEnumerationContext,
            "The enumeration context was opened for another kind of pull.",
        ));
    }
    let piece = taken.state.piece(count);
    let context = if taken.state.len() == 0 {
        contexts.end(taken);
        None
    } else {
        let id = taken.id.to_string();
        contexts.put(taken);
        Some(id)
    };
    Ok(Answer::Piece { piece, context })
}

pub(super) fn close(asked: &Asked<'_>, at: &Element) -> Result<Answer, Error> {
    let parameters = Parameters::read(at, &["EnumerationContext"])?;
    let id = parameters.required_text("EnumerationContext")?;
    if asked.service.contexts.close(&asked.caller.user, &id) {
        Ok(Answer::Void)
    } else {
        Err(unknown())
    }
}

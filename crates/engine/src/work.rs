//! What a long operation is.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{Claims, Domain, JobContext, Stored};

/// A kind of long operation, with its parameters: one type, in the module it belongs to.
#[async_trait]
pub trait Work<D: Domain>: Send + Sync {
    /// How it behaves as a job.
    fn traits(&self) -> Traits<D>;

    /// What it touches. It holds from the moment the job is durable until its undo has finished.
    fn claims(&self) -> Claims;

    /// Does it. Called again after a restart where [`Traits::recovery`] says so: every step is idempotent, and what was done is in the
    /// job's notes. Between steps it asks [`JobContext::checkpoint`]; it is never dropped at an await.
    async fn run(&self, host: &Arc<D::Host>, ctx: &JobContext<D>) -> Result<(), D::Fault>;

    /// Takes back what `run` has begun, however far it came; called when it failed, was stopped or cannot go on. Idempotent: a
    /// restart in the middle calls it again. When it returns `Ok`, nothing of the job is left.
    async fn undo(&self, host: &Arc<D::Host>, ctx: &JobContext<D>) -> Result<(), D::Fault>;
}

/// The stored form of all kinds of work.
pub trait Task<D: Domain>: Stored {
    /// The work.
    fn work(&self) -> &dyn Work<D>;

    /// See [`Work::traits`].
    fn traits(&self) -> Traits<D> {
        self.work().traits()
    }

    /// See [`Work::claims`].
    fn claims(&self) -> Claims {
        self.work().claims()
    }
}

/// How a kind of work behaves as a job.
#[derive(Clone, Debug)]
pub struct Traits<D: Domain> {
    /// What it is shown as.
    pub class: D::Class,
    /// Its JobType within that class; 0: none.
    pub job_type: u16,
    /// What it belongs to.
    pub service: D::Service,
    /// Whether a client may stop it.
    pub cancellable: bool,
    /// Whether a client may suspend it.
    pub suspendable: bool,
    /// What becomes of it when the service was restarted while it ran.
    pub recovery: Recovery,
    /// Its title.
    pub title: &'static str,
    /// What its subject shows meanwhile.
    pub activity: Option<D::Activity>,
}

impl<D: Domain> Traits<D> {
    /// Of work that can be stopped, not suspended, and does not show.
    pub fn new(
        class: D::Class,
        service: D::Service,
        job_type: u16,
        title: &'static str,
        recovery: Recovery,
    ) -> Self {
        Traits {
            class,
            job_type,
            service,
            cancellable: true,
            suspendable: false,
            recovery,
            title,
            activity: None,
        }
    }

    /// It cannot be stopped.
    pub fn to_the_end(self) -> Self {
        Traits {
            cancellable: false,
            ..self
        }
    }

    /// It can be suspended.
    pub fn suspendable(self) -> Self {
        Traits {
            suspendable: true,
            ..self
        }
    }

    /// It is shown as another class.
    pub fn of_class(self, class: D::Class) -> Self {
        Traits { class, ..self }
    }

    /// Its subject shows what it is doing.
    pub fn shown_as(self, activity: D::Activity) -> Self {
        Traits {
            activity: Some(activity),
            ..self
        }
    }
}

/// What becomes of a job whose service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It is run again from its notes: its steps are idempotent.
    Resume,
    /// What it began is undone and it fails as interrupted.
    Undo,
}

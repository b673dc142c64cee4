//! The memory of a machine that was saved when a point was taken: it belongs to the same instant, and is exported with it.

use std::sync::Arc;

use crate::job::Job;
use crate::machine::Power;
use crate::point::Point;
use crate::point::create::Begun;
use crate::snapshot::create::keep_memory;
use crate::{Fault, Result, Vmms, guid};

impl Begun {
    /// Keeps the machine's saved memory beside the point, if it has any.
    pub(crate) async fn keep_saved_memory(&mut self) -> Result<()> {
        let saved = self.vm.saved_state.clone();
        let Some(saved) = saved.filter(|_| self.vm.power == Power::Saved) else {
            return Ok(());
        };
        let config = self.point.config.clone();
        self.point.memory = Some(keep_memory(&saved, &config).await?);
        Ok(())
    }
}

/// Removes the memory of points that do not hold their content any more: what it belongs to cannot be exported.
pub(crate) async fn forget_memories(vmms: &Arc<Vmms>) {
    for point in vmms.db.all::<Point>() {
        if point.memory.is_none() || !point.complete || is_needed(vmms, &point) {
            continue;
        }
        if let Err(error) = forget(vmms, &point).await {
            tracing::warn!(point = %guid(point.id), %error, "the memory kept with a point could not be removed");
        }
    }
}

fn is_needed(vmms: &Vmms, point: &Point) -> bool {
    let jobs = vmms.db.all::<Job>();
    point.holds_content() || jobs.iter().any(|j| j.claims().reads.contains(&point.id))
}

/// The record goes last: until then it says where the file may still be.
async fn forget(vmms: &Arc<Vmms>, point: &Point) -> Result<()> {
    let Some(file) = point.memory.clone() else {
        return Ok(());
    };
    match std::fs::remove_file(&file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Fault::io("remove", &file, &e));
        }
        _ => {}
    }
    vmms.db
        .change(|draft| {
            draft.get_mut::<Point>(point.id)?.memory = None;
            Ok(())
        })
        .await
}

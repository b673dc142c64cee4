//! From a job's task to the code that does it. Both functions are exhaustive: a new task does not compile until it has a
//! way to run and a way to be undone.

use std::sync::Arc;

use crate::job::{JobContext, Task};
use crate::{Result, Vmms, export, image, import, point, verify, vm};

/// Does the work of a job.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, task: &Task) -> Result<()> {
    match task {
        Task::ChangeState { vm, to } => vm::run_state_change(vmms, ctx, *vm, *to).await,
        Task::DestroyVm { vm } => vm::run_destroy(vmms, ctx, *vm).await,
        Task::CreatePoint { vm, point, kind, consistency, name } => {
            point::create::run(vmms, ctx, *vm, *point, *kind, *consistency, name).await
        }
        Task::DestroyPoint { point } => point::destroy::run(vmms, ctx, *point).await,
        Task::RemoveData { point } => point::release::run(vmms, ctx, *point).await,
        Task::ExportPoint { point, base, directory, disks } => {
            export::run(vmms, ctx, *point, *base, directory, disks).await
        }
        Task::Tidy { vm } => point::tidy::run(vmms, ctx, *vm).await,
        Task::CreateImage(spec) => image::run_create(vmms, ctx, spec).await,
        Task::ResizeImage { path, size } => image::run_resize(vmms, ctx, path, *size).await,
        Task::ConvertImage { source, target } => image::run_convert(vmms, ctx, source, target).await,
        Task::ValidateImage { path } => image::run_validate(vmms, ctx, path).await,
        Task::Import { directory, vm, name, disks } => {
            import::run(vmms, ctx, directory, *vm, name.as_deref(), disks).await
        }
        Task::Verify { directory } => verify::run(vmms, ctx, directory).await,
    }
}

/// Takes back what a job that failed, was stopped or was interrupted has begun.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, task: &Task) -> Result<()> {
    match task {
        Task::ChangeState { vm, .. } => vm::undo_state_change(vmms, *vm).await,
        // Deleting goes on where it stopped when it is asked for again.
        Task::DestroyVm { .. } => Ok(()),
        Task::CreatePoint { vm, point, .. } => point::create::undo(vmms, ctx, *vm, *point).await,
        Task::DestroyPoint { point } => point::destroy::undo(vmms, ctx, *point).await,
        Task::RemoveData { point } => point::release::undo(vmms, ctx, *point).await,
        Task::ExportPoint { point, directory, .. } => {
            export::undo(vmms, ctx, *point, directory).await
        }
        Task::Tidy { vm } => point::tidy::undo(vmms, ctx, *vm).await,
        Task::CreateImage(spec) => image::undo_create(ctx, &spec.path),
        Task::ConvertImage { target, .. } => image::undo_create(ctx, &target.path),
        // A resize either happened or did not; a check changes nothing.
        Task::ResizeImage { .. } | Task::ValidateImage { .. } | Task::Verify { .. } => Ok(()),
        Task::Import { vm, disks, .. } => import::undo(vmms, ctx, *vm, disks).await,
    }
}

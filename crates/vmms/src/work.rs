//! From a job's task to the code that does it. Both functions are exhaustive: a new task does not compile until it has a
//! way to run and a way to be undone.

use std::sync::Arc;

use crate::job::{JobContext, Task};
use crate::{
    Result, Vmms, boot, check, export, group, image, import, import_group, point, snapshot, verify,
    vm,
};

/// Does the work of a job.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, task: &Task) -> Result<()> {
    match task {
        Task::Refuse { fault, .. } => Err((**fault).clone()),
        Task::ChangeState { vm, to } => vm::run_state_change(vmms, ctx, *vm, *to).await,
        Task::DestroyVm { vm } => vm::run_destroy(vmms, ctx, *vm).await,
        Task::CreatePoint {
            vm,
            point,
            kind,
            consistency,
            name,
        } => point::create::run(vmms, ctx, *vm, *point, *kind, *consistency, name).await,
        Task::DestroyPoint { point } => point::destroy::run(vmms, ctx, *point).await,
        Task::RemoveData { point } => point::release::run(vmms, ctx, *point).await,
        Task::ExportPoint {
            point,
            base,
            directory,
            disks,
        } => export::run(vmms, ctx, *point, *base, directory, disks).await,
        Task::AuditPoint { point, base, proof } => {
            point::audit::run(vmms, ctx, *point, *base, *proof).await
        }
        Task::CreateGroupPoint {
            group,
            point,
            members,
            kind,
            consistency,
            name,
        } => {
            let new = group::NewGroupPoint {
                group: *group,
                point: *point,
                kind: *kind,
                consistency: *consistency,
                name,
            };
            group::create::run(vmms, ctx, &new, members).await
        }
        Task::DestroyGroupPoint { point, members } => {
            group::discard::run(vmms, ctx, *point, members).await
        }
        Task::RemoveGroupData { members, .. } => {
            group::discard::run_release(vmms, ctx, members).await
        }
        Task::ExportGroupPoint {
            point,
            directory,
            members,
            ..
        } => {
            let whole = group::export::Whole::Point(*point);
            group::export::run(vmms, ctx, whole, directory, members).await
        }
        Task::CreateGroupSnapshot {
            group,
            snapshot,
            members,
            kind,
            consistency,
            name,
        } => {
            let new = group::snapshot::NewGroupSnapshot {
                group: *group,
                snapshot: *snapshot,
                kind: *kind,
                consistency: *consistency,
                name,
            };
            group::snapshot::run_create(vmms, ctx, &new, members).await
        }
        Task::ApplyGroupSnapshot { snapshot, members } => {
            group::snapshot::run_apply(vmms, ctx, *snapshot, members).await
        }
        Task::DestroyGroupSnapshot { snapshot, members } => {
            group::snapshot::run_destroy(vmms, ctx, *snapshot, members).await
        }
        Task::ConvertGroupSnapshot { snapshot, members } => {
            group::snapshot::run_convert(vmms, ctx, *snapshot, members).await
        }
        Task::ExportGroupSnapshot {
            snapshot,
            base,
            directory,
            members,
            merge,
        } => {
            let whole = group::export::Whole::Snapshot(*snapshot, base.filter(|_| *merge));
            group::export::run(vmms, ctx, whole, directory, members).await
        }
        Task::CreateSnapshot {
            vm,
            snapshot,
            kind,
            consistency,
            name,
        } => snapshot::run_create(vmms, ctx, *vm, *snapshot, *kind, *consistency, name).await,
        Task::ApplySnapshot { vm, snapshot } => {
            snapshot::run_apply(vmms, ctx, *vm, *snapshot).await
        }
        Task::DestroySnapshot { vm, snapshot, tree } => {
            snapshot::run_destroy(vmms, ctx, *vm, *snapshot, *tree).await
        }
        Task::ClearSnapshot { vm, snapshot } => {
            snapshot::run_clear(vmms, ctx, *vm, *snapshot).await
        }
        Task::ConvertSnapshot { vm, snapshot } => {
            snapshot::run_convert(vmms, ctx, *vm, *snapshot).await
        }
        Task::ExportSystem { vm, order } => export::run_system(vmms, ctx, *vm, order).await,
        Task::Tidy { vm } => point::tidy::run(vmms, ctx, *vm).await,
        Task::CreateImage(spec) => image::run_create(vmms, ctx, spec).await,
        Task::ResizeImage { path, size } => image::run_resize(vmms, ctx, path, *size).await,
        Task::ConvertImage { source, target } => {
            image::run_convert(vmms, ctx, source, target).await
        }
        Task::ValidateImage { path } => image::run_validate(vmms, ctx, path).await,
        Task::Import {
            directory,
            vm,
            name,
            disks,
            planned,
            memory,
            keep_identity,
        } => {
            let wanted = import::Wanted {
                name: name.as_deref(),
                disks,
                planned: *planned,
                take: import::Take {
                    memory: *memory,
                    identity: *keep_identity,
                },
            };
            import::run(vmms, ctx, directory, *vm, &wanted).await
        }
        Task::ImportGroup {
            group,
            name,
            members,
            memory,
            keep_identity,
        } => {
            let take = import::Take {
                memory: *memory,
                identity: *keep_identity,
            };
            import_group::run(vmms, ctx, *group, name, members, take).await
        }
        Task::ImportSnapshots {
            vm,
            folder,
            snapshots,
            descends_from,
        } => {
            let parent = *descends_from;
            snapshot::run_import(vmms, ctx, *vm, folder, snapshots, parent).await
        }
        Task::AdoptPoint {
            vm,
            point,
            directory,
        } => point::adopt::run(vmms, ctx, *vm, *point, directory).await,
        Task::ValidatePlanned { vm } => vm::run_validate(vmms, ctx, *vm).await,
        Task::Realize { vm } => vm::run_realize(vmms, ctx, *vm).await,
        Task::BootExports(order) => boot::run(vmms, ctx, order).await,
        Task::CleanHost { kinds } => check::run_clean(vmms, ctx, kinds).await,
        Task::ShutDownGuests { seconds } => vm::host_shutdown::run(vmms, ctx, *seconds).await,
        Task::Verify { directory } => verify::run(vmms, ctx, directory).await,
    }
}

/// Takes back what a job that failed, was stopped or was interrupted has begun.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, task: &Task) -> Result<()> {
    match task {
        Task::Refuse { .. } => Ok(()),
        Task::ChangeState { vm, .. } => vm::undo_state_change(vmms, *vm).await,
        // Deleting goes on where it stopped when it is asked for again.
        Task::DestroyVm { .. } => Ok(()),
        Task::CreatePoint { vm, point, .. } => point::create::undo(vmms, ctx, *vm, *point).await,
        Task::DestroyPoint { point } => point::destroy::undo(vmms, ctx, *point).await,
        Task::RemoveData { point } => point::release::undo(vmms, ctx, *point).await,
        Task::ExportPoint { .. }
        | Task::ExportGroupPoint { .. }
        | Task::ExportGroupSnapshot { .. } => export::undo(vmms, ctx).await,
        Task::CreateGroupSnapshot {
            snapshot, members, ..
        } => group::snapshot::undo_create(vmms, ctx, *snapshot, members).await,
        Task::ApplyGroupSnapshot { members, .. } => {
            group::snapshot::undo_apply(vmms, members).await
        }
        Task::CreateGroupPoint { point, members, .. } => {
            group::create::undo(vmms, *point, members).await
        }
        Task::DestroyGroupPoint { members, .. }
        | Task::RemoveGroupData { members, .. }
        | Task::DestroyGroupSnapshot { members, .. } => {
            group::discard::undo(vmms, ctx, members).await
        }
        Task::CreateSnapshot { vm, snapshot, .. } => {
            snapshot::undo_create(vmms, ctx, *vm, *snapshot).await
        }
        Task::ApplySnapshot { vm, .. } => snapshot::undo_apply(vmms, *vm).await,
        Task::ImportSnapshots { vm, snapshots, .. } => {
            snapshot::undo_import(vmms, ctx, *vm, snapshots).await
        }
        Task::AdoptPoint { vm, point, .. } => point::create::undo(vmms, ctx, *vm, *point).await,
        Task::ValidatePlanned { .. } | Task::Realize { .. } => Ok(()),
        // The snapshot is there or gone; merging goes on by itself.
        Task::DestroySnapshot { vm, .. } => point::tidy::undo(vmms, ctx, *vm).await,
        // One transaction each: whole or not at all.
        Task::ClearSnapshot { .. }
        | Task::ConvertSnapshot { .. }
        | Task::ConvertGroupSnapshot { .. } => Ok(()),
        Task::ExportSystem { vm, order } => export::undo_system(vmms, ctx, *vm, order).await,
        Task::Tidy { vm } => point::tidy::undo(vmms, ctx, *vm).await,
        Task::CreateImage(spec) => image::undo_create(ctx, &spec.path),
        Task::ConvertImage { target, .. } => image::undo_create(ctx, &target.path),
        // A resize either happened or did not; a check changes nothing, an audit but its result.
        Task::ResizeImage { .. } | Task::ValidateImage { .. } | Task::Verify { .. } => Ok(()),
        Task::BootExports(order) => boot::undo(vmms, order).await,
        Task::AuditPoint { .. } => Ok(()),
        // What has ended has ended; what has not goes on.
        Task::ShutDownGuests { .. } => Ok(()),
        // What is clean is clean.
        Task::CleanHost { .. } => Ok(()),
        Task::Import { vm, .. } => import::undo(vmms, ctx, *vm).await,
        Task::ImportGroup { group, .. } => import_group::undo(vmms, ctx, *group).await,
    }
}

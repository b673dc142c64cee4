//! The logs of consoles stay within bounds, however much guests write.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hypervisor::console;

use super::{Vm, spec};
use crate::Vmms;

/// Whether logs are being cut just now.
#[derive(Default)]
pub(crate) struct Consoles {
    busy: Arc<AtomicBool>,
}

/// At the start of the service: what guests wrote while none was there to cut it.
pub(super) async fn bound_all(vmms: &Vmms) {
    let logs = vmms.db.all::<Vm>();
    let logs = logs.iter().map(|vm| spec::console_log(&vmms.dirs, vm.id));
    let (logs, most) = (logs.collect(), vmms.options.console_bytes);
    let done = tokio::task::spawn_blocking(move || bound(logs, most)).await;
    if let Err(error) = done {
        tracing::error!(%error, "the logs of consoles could not be looked at");
    }
}

/// Comes round: cuts the logs of running machines.
pub(super) fn look(vmms: &Vmms) {
    if vmms.consoles.busy.swap(true, Ordering::AcqRel) {
        return;
    }
    let all = vmms.db.all::<Vm>().into_iter();
    let running = all.filter(|vm| vmms.machine(vm.id).is_some());
    let logs = running.map(|vm| spec::console_log(&vmms.dirs, vm.id));
    let (logs, most) = (logs.collect(), vmms.options.console_bytes);
    let busy = Arc::clone(&vmms.consoles.busy);
    tokio::task::spawn_blocking(move || {
        bound(logs, most);
        busy.store(false, Ordering::Release);
    });
}

fn bound(logs: Vec<PathBuf>, most: u64) {
    for log in logs {
        match console::bound(&log, most) {
            Ok(true) => tracing::debug!(log = %log.display(), "the log of a console was cut"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(log = %log.display(), %error, "the log of a console could not be cut");
            }
        }
    }
}

//! The run directory: processes nobody knows, and what processes left that are gone.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use hypervisor::names::RunFiles;
use hypervisor::process::Process;

use super::known::{Known, Opened};
use super::{Finding, FindingKind, Target, entries, is_dir, is_plain, name_of};
use crate::machine::{Power, spec};
use crate::{Fault, Result, Vmms, guid};

pub(super) fn look(vmms: &Vmms) -> Result<Vec<Finding>> {
    let dirs = entries(&vmms.dirs.run);
    let known = Known::of(vmms);
    let opened = Opened::now();
    let mut out = Vec::new();
    for dir in dirs.iter().filter(|d| is_dir(d) && is_machine_dir(d)) {
        out.extend(one(vmms, dir, &known, &opened)?);
    }
    Ok(out)
}

/// The first sixteen digits of a machine's identifier.
fn is_machine_dir(dir: &Path) -> bool {
    let name = name_of(dir);
    name.len() == 16 && name.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

fn one(vmms: &Vmms, dir: &Path, known: &Known, opened: &Opened) -> Result<Option<Finding>> {
    let vm = known
        .vms
        .iter()
        .find(|vm| spec::run_dir(&vmms.dirs, vm.id) == *dir);
    if let Some(vm) = vm
        && (vmms.machine(vm.id).is_some() || known.is_busy(vm.id))
    {
        return Ok(None);
    }
    if vm.is_none() && known.is_run_dir_spoken_of(&vmms.dirs, dir) {
        return Ok(None);
    }
    let process = Process::find(&RunFiles::new(dir)).map_err(Fault::from)?;
    let Some(process) = process else {
        return Ok(left(dir, vm.is_some(), opened));
    };
    let subject = format!("process {} of {}", process.pid(), dir.display());
    let Some(vm) = vm else {
        if !crate::host::owner::is_run_dir_of(&vmms.identity, dir) {
            let why = "no machine here has its run directory, and it was not started by this service: another one may run it";
            let found = Finding::new(FindingKind::Process, subject, why);
            let action = "Ask the other service, or end the process by hand if there is none.";
            return Ok(Some(found.left_to(action)));
        }
        let why = "it is a QEMU of ours, and no machine has its run directory";
        let found = Finding::new(FindingKind::Process, subject, why);
        let action = "Ends the process at once; its guest loses what it has not written.";
        return Ok(Some(
            found.cleaned_by(Target::Process(dir.to_owned()), action),
        ));
    };
    let off = matches!(vm.power, Power::Off | Power::Saved);
    let why = format!(
        "machine {} ({}) is {} by its record, and its process runs",
        vm.name,
        guid(vm.id),
        if off { "off" } else { "not reachable" }
    );
    let action = "Restart the service, which takes the process over; if that does not help, end the process.";
    Ok(Some(
        Finding::new(FindingKind::Process, subject, why).left_to(action),
    ))
}

/// What a process left behind. Of a machine that is still there only sockets count: they lead nowhere.
fn left(dir: &Path, known: bool, opened: &Opened) -> Option<Finding> {
    let is_socket =
        |f: &Path| std::fs::symlink_metadata(f).is_ok_and(|m| m.file_type().is_socket());
    let files = RunFiles::new(dir);
    let notes = [
        files.pid(),
        files.identity(),
        files.log(),
        files.frozen(),
        files.thaw_log(),
        crate::host::owner::mark_in(dir),
    ];
    let old_log = |f: &Path| name_of(f).starts_with("qemu.log");
    let ours: Vec<PathBuf> = entries(dir)
        .into_iter()
        .filter(|f| {
            let socket = name_of(f).ends_with(".sock") && is_socket(f);
            socket || (!known && is_plain(f) && (notes.contains(f) || old_log(f)))
        })
        .collect();
    if ours.is_empty() {
        return None;
    }
    let why = match known {
        true => "sockets of a process that is gone",
        false => "sockets and notes of a process that is gone, of a machine that does not exist",
    };
    let dirs = match known {
        true => Vec::new(),
        false => vec![dir.to_owned()],
    };
    let found = Finding::new(FindingKind::Socket, dir.display(), why);
    Some(found.files(ours, dirs, opened))
}

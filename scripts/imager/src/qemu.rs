//! The machine as QEMU's arguments.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::plan::Folders;
use crate::report::Report;
use crate::source::make_state_file;
use crate::system::{Machine, System};

/// What every system runs on.
const MACHINE: &str = "virt,virtualization=on,gic-version=3,iommu=smmuv3";

/// Returns the arguments for a system, and makes the disks that are missing.
///
/// # Errors
///
/// If the `[machine]` table has mistakes, or a disk cannot be made.
pub fn arguments(system: &System, folders: &Folders, image: &Path) -> Result<Vec<String>, Report> {
    Report::of(mistakes(system))?;
    let machine = &system.tables.machine;
    let state = make_disks(system, folders)?;
    let megabytes = machine.memory.as_ref().0.div_ceil(1 << 20);
    let pcpus = machine.pcpus.as_ref();
    let (memory, smp) = (format!("{megabytes}M"), pcpus.to_string());
    let image = image.display().to_string();
    let fixed = [
        ("-M", MACHINE),
        ("-cpu", &machine.cpu),
        ("-smp", &smp),
        ("-m", &memory),
        ("-nic", "none"),
        ("-kernel", &image),
    ];
    let fixed = fixed
        .into_iter()
        .flat_map(|(option, value)| [option, value]);
    let own = machine.qemu.iter();
    let own = own.map(|argument| with_paths(argument.as_ref(), &state));
    Ok(fixed.map(String::from).chain(own).collect())
}

/// Returns what is wrong with the `[machine]` table, beyond keys and types.
pub(crate) fn mistakes(system: &System) -> Vec<String> {
    let machine = &system.tables.machine;
    let mut lines = vec![];
    let mut refuse = |place, what: String| lines.push(system.file.line(&place, what));
    if *machine.pcpus.as_ref() == 0 {
        refuse(
            machine.pcpus.span(),
            "pcpus: a machine has at least one; write 1 or more".into(),
        );
    }
    if machine.memory.as_ref().0 < 64 << 20 {
        refuse(
            machine.memory.span(),
            "memory: too little to boot in; write \"64M\" or more".into(),
        );
    }
    let mut names = HashSet::new();
    for disk in &machine.disk {
        let name = disk.name.as_ref();
        if name.is_empty() || name.starts_with('.') || !name.chars().all(in_name) {
            let what = format!(
                "disk: {name:?} is not a file's name; write letters, digits, '-', '_' and '.'"
            );
            refuse(disk.name.span(), what);
        }
        if !names.insert(name) {
            refuse(
                disk.name.span(),
                format!("disk: {name} is there already; choose another name"),
            );
        }
    }
    for argument in &machine.qemu {
        for name in references(argument.as_ref()) {
            if !names.iter().any(|known| *known == name) {
                let what =
                    format!("qemu: there is no disk {name:?}; add [[machine.disk]] with that name");
                refuse(argument.span(), what);
            }
        }
    }
    lines
}

/// Makes the disks that are missing, and returns the folder they are in.
fn make_disks(system: &System, folders: &Folders) -> Result<PathBuf, Report> {
    let Machine { disk: disks, .. } = &system.tables.machine;
    let Some(state) = &folders.state else {
        return match disks.first() {
            Some(disk) => {
                let what = format!("@{} needs --files DIR", disk.name.as_ref());
                Err(system.file.refuse(&disk.name.span(), what))
            }
            None => Ok(PathBuf::new()),
        };
    };
    for disk in disks {
        let path = state.join(disk.name.as_ref());
        make_state_file(&path, disk.size.0).map_err(|error| Report::about(&path, error))?;
    }
    Ok(state.clone())
}

/// Returns the names that stand behind an `@`.
fn references(argument: &str) -> impl Iterator<Item = &str> {
    let pieces = argument.split('@').skip(1);
    pieces.map(|piece| &piece[..name_len(piece)])
}

/// Puts the state folder in place of each `@`.
fn with_paths(argument: &str, state: &Path) -> String {
    // QEMU reads two commas as one that does not separate options.
    let folder = state.display().to_string().replace(',', ",,");
    argument.replace('@', &format!("{folder}/"))
}

fn name_len(text: &str) -> usize {
    text.find(|c| !in_name(c)).unwrap_or(text.len())
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

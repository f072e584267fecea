//! What is said of a crash that breaks an invariant: what was done, what became of each effect, and what that left.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::io::Write as _;

use super::run::{HOME, Setting};
use super::search::{Crash, Violation};
use super::states::{Fate, Fates};
use super::workload::{Act, Members};
use crate::fs::sim::{Image, Inode, Mark, Op, ROOT, Shown};

/// Tells something even when the test passes: what is printed with a macro is shown only when it fails.
pub(super) fn line(line: &str) {
    // Nothing depends on it.
    _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Members and their values.
pub(super) fn members(members: &Members) -> String {
    let shown: Vec<String> = members.iter().map(|(key, held)| format!("{key}: {held}")).collect();
    format!("{{{}}}", shown.join(", "))
}

/// A workload in one line.
pub(super) fn workload(workload: &[Act]) -> String {
    let acts: Vec<String> = workload.iter().map(ToString::to_string).collect();
    format!("{}; close", acts.join("; "))
}

/// A record, with what became of each effect.
pub(super) fn log(start: &Image, log: &[Op], fates: &Fates, workload: &[Act]) -> String {
    let mut paths = Paths::new(start);
    let mut text = String::new();
    for (place, op) in log.iter().enumerate() {
        let fate = match fates.iter().find(|(other, _)| *other == place) {
            None => String::new(),
            Some((_, Fate::Kept)) => "kept".into(),
            Some((_, Fate::Dropped)) => "LOST".into(),
            Some((_, Fate::Zeroed)) => "ZEROS".into(),
            Some((_, Fate::Cut(bytes))) => format!("TORN at {bytes}"),
            Some((_, Fate::CutZeros(bytes))) => format!("ZEROS from {bytes}"),
            Some((_, Fate::Headless(bytes))) => format!("ZEROS to {bytes}"),
        };
        // Writing to a string cannot fail.
        _ = writeln!(text, "  {place:4}  {fate:14}  {}", paths.told(op, workload));
    }
    text
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.broken)?;
        tell(f, &self.crash)?;
        writeln!(f, "the disk after it:\n{}", self.image)
    }
}

impl Violation {
    /// In one line: what was done, what the crash took, and what that broke.
    pub(super) fn short(&self) -> String {
        const MOST: usize = 480;
        let Crash { recording, at, model, fates, .. } = &self.crash;
        let log = log(&recording.start, &recording.log[..*at], fates, &recording.history.workload);
        let is_lost = |line: &&str| ["LOST", "ZEROS", "TORN"].iter().any(|fate| line.contains(fate));
        let of_line = |line: &str| {
            // Without the bytes.
            let told = line.split('"').next().unwrap_or_default();
            told.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        let lost: Vec<String> = log.lines().filter(is_lost).map(of_line).collect();
        let what = self.broken.details.lines().next().unwrap_or_default();
        let done = workload(&recording.history.workload);
        let told = format!("{}: {what}; after {done}; {model:?}: {}", self.broken.invariant, lost.join(", "));
        let told = told.replace(&format!("{HOME}/"), "").replace(&format!("{}/", &HOME[1..]), "");
        if told.chars().count() > MOST { told.chars().take(MOST).chain("…".chars()).collect() } else { told }
    }
}

fn tell(f: &mut fmt::Formatter<'_>, crash: &Crash) -> fmt::Result {
    if let Some(before) = &crash.before {
        tell(f, before)?;
        writeln!(f, "and a crash again, of the store that was opened on what that left:")?;
    }
    let Crash { recording, at, model, fates, .. } = crash;
    let Setting { immediate, sync_fs, settle, layout } = recording.setting;
    writeln!(
        f,
        "{layout:?}; model {model:?}; Immediate: {immediate}; sync_fs: {sync_fs}; waits between operations: {settle}"
    )?;
    writeln!(f, "workload: {}", workload(&recording.history.workload))?;
    writeln!(f, "what was done until the crash, and what became of it:")?;
    f.write_str(&log(&recording.start, &recording.log[..*at], fates, &recording.history.workload))
}

/// The paths of files and directories, as the record goes on.
struct Paths(BTreeMap<Inode, String>);

impl Paths {
    fn new(image: &Image) -> Paths {
        let mut paths: BTreeMap<Inode, String> = (ROOT + 1..).zip(image.0.keys().cloned()).collect();
        paths.insert(ROOT, String::new());
        Paths(paths)
    }

    fn of(&self, dir: Inode, name: &str) -> String {
        format!("{}/{name}", self.0.get(&dir).map_or("?", |path| path))
    }

    fn told(&mut self, op: &Op, workload: &[Act]) -> String {
        let mut text = String::new();
        let told = match op {
            Op::Create { dir, name, inode } | Op::MakeDir { dir, name, inode } => {
                let path = self.of(*dir, name).trim_start_matches('/').to_owned();
                let what = if matches!(op, Op::Create { .. }) { "create" } else { "mkdir" };
                self.0.insert(*inode, path.clone());
                write!(text, "{what} {path}")
            }
            Op::Write { inode, offset, bytes } => {
                write!(text, "write {} at {offset}: {}", self.0[inode], Shown(bytes))
            }
            Op::Cut { inode, length } => write!(text, "cut {} at {length}", self.0[inode]),
            Op::Rename { from, from_name, to, to_name, inode, .. } => {
                let (from, to) = (self.of(*from, from_name), self.of(*to, to_name));
                let (from, to) = (from.trim_start_matches('/').to_owned(), to.trim_start_matches('/').to_owned());
                let inside = format!("{from}/");
                for path in self.0.values_mut().filter(|path| path.starts_with(&inside)) {
                    *path = format!("{to}/{}", &path[inside.len()..]);
                }
                self.0.insert(*inode, to.clone());
                write!(text, "rename {from} to {to}")
            }
            Op::Unlink { dir, name } => write!(text, "unlink {}", self.of(*dir, name)),
            Op::RemoveDir { dir, name } => write!(text, "rmdir {}", self.of(*dir, name)),
            Op::SyncData { inode } => write!(text, "sync_data {}", self.0[inode]),
            Op::SyncDir { dir } => write!(text, "sync_dir {}/", self.0[dir]),
            Op::SyncFs => write!(text, "sync_fs"),
            Op::SyncDataFailed { inode } => write!(text, "sync_data {} FAILED", self.0[inode]),
            Op::SyncFsFailed => write!(text, "sync_fs FAILED"),
            Op::Skipped(barrier) => write!(text, "(left out: {barrier})"),
            Op::Mark(Mark::Began(number)) => write!(text, "-- operation {number}: {}", workload[*number]),
            Op::Mark(Mark::Promised(operations)) => {
                write!(text, "-- promised: everything before operation {operations}")
            }
        };
        // Writing to a string cannot fail.
        _ = told;
        text
    }
}

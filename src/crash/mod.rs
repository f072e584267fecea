//! What a crash of the machine takes, and what it does not: small and long workloads on a file system in memory,
//! crashed after every operation in every way that two models of file systems allow, and opened again.
//!
//! `workload` says what is done and what may be left of it, `run` does it and records it, `states` makes the disks that
//! a crash may leave, `search` opens them, `tell` says what it found. `barriers` shows that the search finds what it is
//! for: it takes each class of syncs away in turn. `faults` makes every call fail in turn.
//!
//! A process can be killed in the middle of a run. The next one goes on with the same file system, where what the first
//! left unsynced is as it was: seen by everybody, and gone with a crash. What the first had promised stays, and what it
//! had not may come or go until the second promises what it has found.
//!
//! Every run has a clock that goes when the workload says so. What is on a disk is compared with its deadlines, expired
//! or not; a store that is opened on it shows what has not expired by its own clock.
//!
//! `LARDER_CRASH_STATES=5000000 cargo test --release --lib crash -- --nocapture` looks at that many states.

mod backup;
mod barriers;
mod convert;
#[cfg(unix)]
mod faults;
mod repair;
mod run;
mod search;
mod states;
mod tell;
mod workload;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use run::{Recording, Setting, Start, record};
use search::Search;
use states::Rng;
use workload::{Workload, expiring, killed, long, many, short};

use crate::backend::Layout;
use crate::fs::sim::{Sim, Without};

/// A run to be crashed.
#[derive(Debug, Clone)]
struct Job {
    start: Start,
    workload: Workload,
    setting: Setting,
    seed: u64,
}

impl Job {
    fn record(&self, without: Option<&Without>) -> (Recording, Sim) {
        let recorded = record(&self.start, self.workload.clone(), self.setting, without.cloned());
        recorded.unwrap_or_else(|broken| panic!("{broken}"))
    }
}

/// Every short workload, on a new store or on one that has members, in several settings; those in which the process is
/// killed; those of many members; and long ones, in one setting each.
fn jobs(longest: usize, long_ones: usize) -> Vec<Job> {
    let starts = starts();
    let mut jobs = Vec::new();
    for (number, workload) in (0..).zip(short(longest)) {
        // The longest ones, which are most of them, in four settings each: every setting comes round.
        let settings = if workload.len() < 3 { 32 } else { 4 };
        jobs.extend((0..settings).map(|setting| job(&starts, workload.clone(), number + setting * 11)));
    }
    // Deadlines are stored with values, whatever the file system is synced with.
    for (number, workload) in (0..).zip(expiring(longest)) {
        let settings = if workload.len() < 3 { 8 } else { 2 };
        jobs.extend((0..settings).map(|setting| job(&starts, workload.clone(), number + setting * 19)));
    }
    for (number, workload) in (0..).zip(killed()) {
        // In both layouts, with all at rest or not, and mostly with something left unsynced.
        let random = Rng(number).next();
        let number = if random & 0x300 == 0 { random } else { random & !2 };
        jobs.extend([0, 8, 16, 24].map(|bits| job(&starts, workload.clone(), (number & 7) | bits)));
    }
    // What many members are synced with differs by the setting, and little else does.
    for workload in many() {
        jobs.extend([0, 5, 16, 21].map(|number| job(&starts, workload.clone(), number)));
    }
    jobs.extend((0..long_ones as u64).map(|seed| job(&starts, long(seed), seed)));
    jobs
}

/// What runs begin with: nothing, and a store of each layout.
fn starts() -> [Start; 3] {
    [Start::empty(), Start::filled(Layout::Files), Start::filled(Layout::Packed)]
}

/// Thirty-two numbers in a row are all settings in both layouts, on both starts.
fn job(starts: &[Start; 3], workload: Workload, number: u64) -> Job {
    let is_set = |bit: u64| number & 1 << bit != 0;
    let layout = if is_set(4) { Layout::Packed } else { Layout::Files };
    let setting = Setting { immediate: is_set(1), sync_fs: is_set(2), settle: is_set(3), layout };
    let start = if is_set(0) { 1 + usize::from(is_set(4)) } else { 0 };
    Job { start: starts[start].clone(), workload, setting, seed: number }
}

/// Does the work on every item until one says that it was the last, on more threads than there are cores: a run waits
/// more than it works.
fn for_each<I: Sync>(items: &[I], work: impl Fn(&I) -> bool + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 16) * 2;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Does the jobs until one shows a violation.
fn search_all(search: &Search, jobs: &[Job], without: Option<&Without>) {
    for_each(jobs, |job| {
        search.crash(job.record(without).0, job.seed);
        !search.is_over()
    });
}

/// How many states are to be looked at, at least.
fn wanted() -> usize {
    let number = std::env::var("LARDER_CRASH_STATES").ok().and_then(|number| number.replace('_', "").parse().ok());
    number.unwrap_or(100_000)
}

#[test]
fn after_a_crash_anywhere_the_store_holds_what_was_promised() {
    let started = Instant::now();
    let wanted = wanted();
    let search = Search::new(if wanted <= 100_000 { 5 } else { 12 * wanted.div_ceil(100_000).min(64) });
    search_all(&search, &jobs(3, 100), None);
    let starts = starts();
    let mut seeds = 100..;
    while search.states() < wanted && !search.is_over() {
        println!("so far {}, in {:?}", search.counts(), started.elapsed());
        let more: Vec<Job> = seeds.by_ref().take(64).map(|seed| job(&starts, long(seed), seed)).collect();
        search_all(&search, &more, None);
    }
    if let Some(violation) = search.violation() {
        panic!("{violation}");
    }
    tell::line(&format!("crashes: {}; in {:.0?}", search.counts(), started.elapsed()));
    assert!(search.states() >= wanted);
}

/// Also the names of directories above it that were made for it.
#[test]
fn a_store_below_new_directories_is_as_durable_as_any() {
    let search = Search::new(12);
    for layout in [Layout::Files, Layout::Packed] {
        let setting = Setting { immediate: true, sync_fs: true, settle: false, layout };
        let job = |workload| Job { start: Start::nothing(), workload, setting, seed: 0 };
        let jobs: Vec<Job> = short(1).into_iter().map(job).collect();
        search_all(&search, &jobs, None);
    }
    if let Some(violation) = search.violation() {
        panic!("{violation}");
    }
}

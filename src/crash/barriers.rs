//! The search finds what it is for: without any one class of barriers, there is a crash that breaks an invariant.

use std::collections::BTreeSet;
use std::time::Instant;

use super::search::Search;
use super::{Job, for_each, jobs, search_all, tell};
use crate::backend::Layout;
use crate::fs::sim::{Barrier, Without};
use crate::sync::Mutex;

/// Barriers without which no crash shows anything, and why.
const REDUNDANT: &[(Layout, &str, &str)] = &[
    (
        Layout::Files,
        "sync_dir of .larder, after mkdir journal, in a load",
        "the one after the format follows before anything is stored, and makes the same names durable",
    ),
    (Layout::Packed, "sync_dir of .larder, after mkdir journal, in a load", "the same"),
    (
        Layout::Packed,
        "sync_dir of .larder, after rename to format, in a load",
        "a load forgets the list of segments next, if there is one or not, and makes the same name durable",
    ),
    (
        Layout::Packed,
        "sync_dir of .larder/journal, after unlink *",
        "what was unlinked counts for nothing as long as the segment that says so is there, and before that is \
         unlinked the one that replaces it has its name, with a sync of the same directory",
    ),
    (Layout::Packed, "sync_dir of .larder/journal, after unlink *, in a load", "the same"),
];

/// The most images of one moment.
const MOST: usize = 8;

/// How often the runs are done again, at most, when nothing was found: another time what is done in the background
/// comes at other moments, and other images are made.
const ROUNDS: usize = 4;

/// Where few runs meet a barrier they are done again until there were as many as this.
const RUNS: usize = 256;

/// How often it is looked, at most, which runs meet a barrier. On a busy machine those that few meet are met by others each
/// time, and by some in a way that no crash shows.
const LOOKS: usize = 4;

/// The classes by place; where a place has several kinds of changes, also by these. What makes nothing durable is none:
/// nobody can tell whether it was done.
pub(super) fn classes(barriers: &BTreeSet<Barrier>) -> BTreeSet<Without> {
    let barriers: Vec<&Barrier> = barriers.iter().filter(|barrier| !barrier.is_idle()).collect();
    let mut classes = BTreeSet::new();
    for Barrier { call, place, what } in &barriers {
        let class = Without { call, place: place.clone(), what: None };
        let others = barriers.iter().any(|other| (other.call, &other.place) == (*call, place) && other.what != *what);
        if others {
            classes.insert(Without { what: Some(what.clone()), ..class.clone() });
        }
        classes.insert(class);
    }
    classes
}

/// The runs of a layout, each with the barriers that it met.
fn runs(layout: Layout) -> Vec<(Job, BTreeSet<Barrier>)> {
    let jobs: Vec<Job> = jobs(2, 48).into_iter().filter(|job| job.setting.layout == layout).collect();
    let runs = Mutex::new(Vec::new());
    for_each(&jobs, |job| {
        let barriers = job.record(None).1.barriers();
        runs.lock().push((job.clone(), barriers));
        true
    });
    std::mem::take(&mut *runs.lock())
}

#[test]
fn a_barrier_that_is_left_out_is_missed() {
    let started = Instant::now();
    let (mut missed, mut found) = (Vec::new(), 0);
    for layout in [Layout::Files, Layout::Packed] {
        let runs = runs(layout);
        let barriers = runs.iter().flat_map(|(_, barriers)| barriers.iter().cloned()).collect();
        for class in classes(&barriers) {
            let name = format!("without {class} ({layout:?})");
            let is_redundant = REDUNDANT.iter().any(|(of, barrier, _)| *of == layout && *barrier == class.to_string());
            // Where it is not met, nothing is to be found.
            let met_by = |runs: &[(Job, BTreeSet<Barrier>)]| -> Vec<Job> {
                let met = runs.iter().filter(|(_, barriers)| barriers.iter().any(|barrier| class.covers(barrier)));
                met.map(|(job, _)| job.clone()).collect()
            };
            let mut jobs = met_by(&runs);
            let search = Search::new(MOST);
            let looks = if is_redundant { 1 } else { LOOKS };
            for look in 0..looks {
                if look > 0 {
                    jobs = met_by(&self::runs(layout));
                }
                let rounds = if is_redundant { 1 } else { ROUNDS.max(RUNS / jobs.len().max(1)) };
                for _ in 0..rounds {
                    // Where there is nothing to be found, only some are looked at.
                    let few = if is_redundant { jobs.len().div_ceil(16) } else { jobs.len() };
                    search_all(&search, &jobs[..few], Some(&class));
                    jobs.iter_mut().for_each(|job| job.seed += 1 << 20);
                    if search.is_over() {
                        break;
                    }
                }
                if search.is_over() {
                    break;
                }
            }
            match search.violation() {
                Some(violation) if is_redundant => panic!("not redundant: {class}, {violation}"),
                Some(violation) => {
                    found += 1;
                    tell::line(&format!("{name}, after {} states: {}", search.states(), violation.short()));
                    println!("{name}: {violation}");
                }
                None if is_redundant => println!("{name}: nothing found, and nothing expected"),
                None => missed.push(format!("{name}: nothing found in {} runs. {}", jobs.len(), search.counts())),
            }
        }
    }
    tell::line(&format!("barriers: {found} left out in turn and found to be missing; in {:.0?}", started.elapsed()));
    assert!(missed.is_empty(), "{missed:#?}");
}

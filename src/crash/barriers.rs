//! The search finds what it is for: without any one class of barriers, there is a crash that breaks an invariant.

use std::collections::BTreeSet;
use std::time::Instant;

use super::search::Search;
use super::{Job, jobs, search_all};
use crate::fs::sim::{Barrier, Without};

/// Barriers without which no crash shows anything, and why.
const REDUNDANT: &[(&str, &str)] = &[
    ("sync_dir of .larder/journal, after no change", "it is for what a process that was killed had changed"),
    (
        "sync_dir of a collection's directory, after no change",
        "it is for what a process that was killed had changed: see `folder`'s tests",
    ),
    ("sync_dir of .larder, after no change", "it is for what a load that failed had changed: see `faults`"),
    (
        "sync_dir of .larder, after mkdir journal",
        "the one after the format follows before anything is stored, and makes the same names durable",
    ),
    (
        "sync_dir of the store's directory, after no change",
        "it is for what a process that was killed had changed: see `folder`'s tests",
    ),
];

/// The most images of one moment.
const MOST: usize = 8;

/// The classes by place; where a place has several kinds of changes, also by these.
pub(super) fn classes(barriers: &BTreeSet<Barrier>) -> BTreeSet<Without> {
    let mut classes = BTreeSet::new();
    for Barrier { call, place, after } in barriers {
        let class = Without { call, place: place.clone(), after: None };
        let others = barriers.iter().any(|other| (other.call, &other.place) == (*call, place) && other.after != *after);
        if others {
            classes.insert(Without { after: Some(after.clone()), ..class.clone() });
        }
        classes.insert(class);
    }
    classes
}

/// The runs, and the classes that are met in them.
fn runs() -> (Vec<Job>, BTreeSet<Without>) {
    let jobs = jobs(2, 48);
    let mut barriers = BTreeSet::new();
    // Every class that there is shows in a few of them.
    for job in jobs.iter().step_by(7).chain(jobs.iter().rev().take(64)) {
        barriers.extend(job.record(None).1.barriers());
    }
    (jobs, classes(&barriers))
}

#[test]
fn a_barrier_that_is_left_out_is_missed() {
    let started = Instant::now();
    let (jobs, classes) = runs();
    let mut missed = Vec::new();
    for class in classes {
        // Where there is nothing to be found, only some are looked at.
        let is_redundant = REDUNDANT.iter().any(|(redundant, _)| *redundant == class.to_string());
        let few = if is_redundant { 16 } else { 1 };
        let search = Search::new(MOST);
        search_all(&search, &jobs[..jobs.len() / few], Some(&class));
        match search.violation() {
            Some(violation) if is_redundant => panic!("not redundant: {class}, {violation}"),
            Some(violation) => println!("WITHOUT {class}, after {} states: {violation}", search.states()),
            None if is_redundant => println!("WITHOUT {class}: nothing found, and nothing expected\n"),
            None => missed.push(format!("{class}: nothing found. {}", search.counts())),
        }
    }
    println!("in {:?}", started.elapsed());
    assert!(missed.is_empty(), "WITHOUT {missed:#?}");
}

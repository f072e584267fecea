//! The search finds what it is for: without any one class of barriers, there is a crash that breaks an invariant.

use std::collections::BTreeSet;
use std::time::Instant;

use super::run::record;
use super::search::Search;
use super::workload::Act;
use super::{Job, jobs, search_all};
use crate::fs::sim::{Barrier, Without};

/// Barriers without which no crash shows anything, and why.
const REDUNDANT: &[(&str, &str)] = &[
    (
        "sync_dir of .larder, after mkdir quarantine",
        "the one after the format follows before anything is stored, and makes the same names durable",
    ),
    (
        "sync_dir of .larder, after rename to format",
        "the counter's first mark follows before anything is stored, and its directory is synced with it",
    ),
];

/// The most images of one moment.
const MOST: usize = 8;

/// The classes by place; where a place has several kinds of changes, also by these.
fn classes(barriers: &BTreeSet<Barrier>) -> BTreeSet<Without> {
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

/// What is known not to hold shows here with all barriers in place: something is deleted before anything is put.
fn shows_what_is_known(job: &Job) -> bool {
    let lives = job.workload.split(|act| *act == Act::CloseAndLoad);
    let at_once = !job.setting.immediate && !job.setting.settle;
    lives.into_iter().any(|life| {
        let puts = |act: &Act| matches!(act, Act::Put(..) | Act::Transaction(_));
        let deletes = |act: &Act| matches!(act, Act::Delete(_) | Act::DeleteAll(_));
        let put = life.iter().position(puts).unwrap_or(usize::MAX);
        life.iter().position(deletes).is_some_and(|deleted| at_once || deleted < put)
    })
}

#[test]
fn a_barrier_that_is_left_out_is_missed() {
    let started = Instant::now();
    let jobs = jobs(2, 48);
    let mut barriers = BTreeSet::new();
    // Every class that there is shows in a few of them.
    for job in jobs.iter().step_by(7) {
        let recorded = record(&job.start, job.workload.clone(), job.setting, None);
        barriers.extend(recorded.unwrap_or_else(|broken| panic!("{broken:?} in {job:?}")).1.barriers());
    }
    let (unsound, sound): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(shows_what_is_known);
    println!("{} runs, {} more for what is not known; barriers: {barriers:#?}", sound.len(), unsound.len());
    let mut missed = Vec::new();
    for class in classes(&barriers) {
        // There is nothing to be found, so only some are looked at.
        let is_redundant = REDUNDANT.iter().any(|(redundant, _)| *redundant == class.to_string());
        let few = if is_redundant { 16 } else { 1 };
        let (sound, unsound) = (&sound[..sound.len() / few], &unsound[..unsound.len() / few]);
        let strict = Search::strict(MOST);
        search_all(&strict, sound, Some(&class));
        let mut found = strict.violation();
        if found.is_none() {
            let search = Search::new(MOST);
            search_all(&search, unsound, Some(&class));
            found = search.violation();
        }
        match found {
            Some(violation) if is_redundant => panic!("not redundant: {class}, {violation}"),
            Some(violation) => println!("WITHOUT {class}, after {} states: {violation}", strict.states()),
            None => {
                println!("WITHOUT {class}: nothing found. {}\n", strict.counts());
                if !is_redundant {
                    missed.push(class.to_string());
                }
            }
        }
    }
    println!("in {:?}", started.elapsed());
    assert!(missed.is_empty(), "nothing was found without {missed:?}");
}

//! A backup, crashed anywhere: there is nothing under its name, or a whole store. Each of its calls failing in turn: it says
//! so, and there is nothing under its name, or all of it where the name could not be taken back. The same of a backup beside
//! writes and a compaction of the store on the same disk.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::run::{HOME, Start, clock_at, look_at, members, same, swept};
use super::states::{Disk, MODELS, Rng};
use super::tell;
use super::workload::{BEGIN, Broken, Members};
use crate::backend::{Files, Layout, Packed};
use crate::fs::sim::{EIO, EMFILE, ENOSPC, EROFS, Fault, Image, Mark, Op, Sim};
use crate::options::Durability;
use crate::report::BackupReport;
use crate::{Options, Store};

/// The most images that are made of one moment of a run, under one model.
const MOST: usize = 24;

/// The same where there are many runs.
const FEW: usize = 6;

const ERRORS: [(i32, &str); 4] = [(EIO, "EIO"), (ENOSPC, "ENOSPC"), (EMFILE, "EMFILE"), (EROFS, "EROFS")];

/// A store in RAM, of more members than are written in one lot, and of more than one block. Some have a deadline, and
/// one has expired.
fn store() -> (Store, Members) {
    let clock = clock_at(BEGIN);
    let store = Options::in_memory().clock(&clock).open().unwrap();
    for number in 0..20u8 {
        store.put(format!("many/{number}"), vec![number; 40]).unwrap();
    }
    store.put("a/large", vec![b'x'; 3000]).unwrap();
    store.put("b/empty", "").unwrap();
    store.put("b/gone", "").unwrap();
    store.delete("b/gone").unwrap();
    store.put_with_ttl("b/short", "", Duration::from_millis(10)).unwrap();
    store.put_with_ttl("b/expires", "soon", Duration::from_millis(20)).unwrap();
    store.expire("many/7", Duration::from_millis(1000)).unwrap();
    clock.advance(Duration::from_millis(10));
    swept(&store).unwrap();
    let members = members(&store).unwrap();
    (store, members)
}

fn back_up(store: &Store, sim: &Sim, layout: Layout) -> crate::Result<BackupReport> {
    let engine = store.core().open()?;
    crate::backend::backup::back_up(Arc::new(sim.clone()), engine, layout, Path::new(HOME))
}

/// Whether there is something under the backup's name.
fn is_there(image: &Image) -> bool {
    let home = HOME.trim_start_matches('/');
    image.0.keys().any(|path| path == home || path.strip_prefix(home).is_some_and(|rest| rest.starts_with('/')))
}

#[test]
fn a_backup_that_is_crashed_anywhere_is_whole_or_not_there() {
    let (store, members) = store();
    let (mut images, mut whole) = (0, 0);
    for layout in [Layout::Files, Layout::Packed] {
        for sync_fs in [true, false] {
            for start in [Start::empty(), Start::nothing()] {
                let sim = Sim::new(&start.image, HOME, sync_fs);
                sim.record();
                assert_eq!(back_up(&store, &sim, layout).unwrap().members, members.len());
                sim.mark(Mark::Promised(0));
                let log = sim.take_log();
                let found = crash(&start.image, &log, 0, MOST, &mut |image| is_whole(image, layout, &members));
                (images, whole) = (images + found.0, whole + found.1);
            }
        }
    }
    tell::line(&format!("crashed backups: {images} distinct images, {whole} of them with a backup"));
    assert!(images > 1000 && whole >= 4);
}

/// Crashes what is recorded from this place on, in about `most` ways a moment. The number of distinct images, and of those
/// with something under the backup's name.
fn crash(
    start: &Image,
    log: &[Op],
    from: usize,
    most: usize,
    check: &mut dyn FnMut(&Image) -> Result<(), Broken>,
) -> (usize, usize) {
    let (mut seen, mut whole) = (HashSet::new(), 0);
    for model in MODELS {
        let mut rng = Rng(7);
        let mut disk = Disk::new(model, start);
        for (place, op) in log.iter().enumerate() {
            let last = match op {
                Op::Mark(_) => None,
                op if disk.follow(place, op) => Some(place),
                _ => continue,
            };
            if place < from {
                continue;
            }
            disk.images(last, most, &mut rng, &mut |image, fates| {
                let told = || tell::log(start, log, &fates, &Vec::new());
                assert!(last.is_some() || is_there(&image), "it returned, and is gone\n{}", told());
                if seen.insert(image.hash()) && is_there(&image) {
                    whole += 1;
                    check(&image).unwrap_or_else(|broken| panic!("{model:?}: {broken}\n{}", told()));
                }
                true
            });
        }
    }
    (seen.len(), whole)
}

/// What is under the backup's name is a whole store.
fn is_whole(image: &Image, layout: Layout, members: &Members) -> Result<(), Broken> {
    let found = look_at(&Sim::new(image, HOME, true), HOME, layout)?;
    same("a backup is whole", &found, members)
}

#[test]
fn a_backup_whose_calls_fail_in_turn_says_so_and_leaves_nothing_under_its_name_or_all_of_it() {
    let (store, members) = store();
    let (mut failed, mut stands, mut images) = (0, 0, 0);
    for (layout, start, (errno, name), sticky) in sweeps() {
        for at in 0.. {
            let sim = Sim::new(&start.image, HOME, true);
            sim.record();
            sim.set_fault(Some(Fault { at, sticky, errno }));
            let done = back_up(&store, &sim, layout);
            if sim.struck() == 0 {
                assert!(at > 5, "{at}");
                done.unwrap();
                break;
            }
            sim.set_fault(None);
            if done.is_ok() {
                // Only what is for people may fail in silence.
                sim.mark(Mark::Promised(0));
            }
            let (log, image) = (sim.take_log(), sim.image());
            let told = |what: &dyn std::fmt::Display| {
                let log = tell::log(&start.image, &log, &Vec::new(), &Vec::new());
                format!("{layout}, {name} at call {at}, sticky {sticky}: {what}\n{log}")
            };
            let there = is_there(&image);
            if there {
                is_whole(&image, layout, &members).unwrap_or_else(|broken| panic!("{}", told(&broken)));
            }
            if let Err(error) = &done {
                failed += 1;
                stands += usize::from(there);
                assert!(matches!(error, crate::Error::Io { .. }), "{}", told(error));
                assert!(sticky || !there, "{}", told(&"it says that it failed, and is there"));
                // The directory above it may be new.
                let left: Vec<&String> = image.0.keys().filter(|path| path.contains(".partial-")).collect();
                assert!(sticky || left.is_empty(), "{}", told(&format!("{left:?} is left")));
            }
            // The same call again, on a disk that is well.
            match back_up(&store, &sim, layout) {
                Err(error) => assert!(there, "{}", told(&error)),
                Ok(_) => assert!(!there, "{}", told(&"it replaced what was there")),
            }
            is_whole(&sim.image(), layout, &members).unwrap_or_else(|broken| panic!("{}", told(&broken)));
            let mut check = |image: &Image| {
                is_whole(image, layout, &members).map_err(|broken| Broken::new("a backup is whole", told(&broken)))
            };
            images += crash(&start.image, &log, 0, FEW, &mut check).0;
        }
    }
    tell::line(&format!(
        "backups that fail: {failed}, {stands} of them there all the same; {images} images of crashes"
    ));
    assert!(failed > 500 && stands > 0 && stands < 40, "{failed} failed, {stands} are there");
}

fn sweeps() -> impl Iterator<Item = (Layout, Start, (i32, &'static str), bool)> {
    let scenes = [Layout::Files, Layout::Packed].into_iter().flat_map(|layout| {
        [(layout, Start::empty()), (layout, Start::nothing())].into_iter().take(if layout == Layout::Files {
            2
        } else {
            1
        })
    });
    scenes.flat_map(|(layout, start)| {
        ERRORS.into_iter().flat_map(move |error| [false, true].map(|sticky| (layout, start.clone(), error, sticky)))
    })
}

// ---- of a store on the same disk ----

/// Where the store is that is copied.
const SOURCE: &str = "/larder-simulated/source";

/// So many keys are written again and again, in turn. Each is in a collection of its own: these are copied one after the
/// other.
const TURNS: usize = 16;

fn turn(number: usize) -> String {
    format!("turn-{}/member", number % TURNS)
}

/// A store on the disk, with members, and with much that a compaction takes away.
fn source(sim: &Sim, layout: Layout) -> Store {
    let (fs, path) = (Arc::new(sim.clone()), Path::new(SOURCE));
    let options = Store::options(SOURCE).durability(Durability::Buffered).clock(&clock_at(BEGIN));
    let store = match layout {
        Layout::Files => options.backend(Files::on(fs, path).unwrap()).open(),
        Layout::Packed => options.backend(Packed::on(fs, path).unwrap()).open(),
    };
    let store = store.unwrap();
    for round in 0..3u8 {
        for number in 0..12u8 {
            store.put(format!("many/{number}"), vec![round; 40]).unwrap();
        }
        store.flush().unwrap();
    }
    store.delete("many/0").unwrap();
    store.expire("many/7", Duration::from_millis(1000)).unwrap();
    store.flush().unwrap();
    store
}

/// Copies the store while somebody writes to it, makes what is written durable, and compacts it. What was in it before, how
/// many writes had been made by then, and what the copy said.
fn copy_beside_writers(store: &Store, sim: &Sim, layout: Layout) -> (Members, usize, crate::Result<BackupReport>) {
    let before = members(store).unwrap();
    let (done, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                store.put(turn(number), number.to_string()).unwrap();
                written.store(number + 1, Ordering::SeqCst);
                if number % 200 == 199 {
                    // What a fault does to it is another test's concern.
                    _ = store.flush();
                }
                // The copy begins after the first round, and the writer goes on until it is there, but not for ever.
                if done.load(Ordering::SeqCst) && number > TURNS || number > 100_000 {
                    break;
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                _ = store.compact();
            }
        });
        while written.load(Ordering::SeqCst) < TURNS {
            std::thread::yield_now();
        }
        let least = written.load(Ordering::SeqCst);
        sim.mark(Mark::Began(0));
        let copied = back_up(store, sim, layout);
        if copied.is_ok() {
            sim.mark(Mark::Promised(0));
        }
        done.store(true, Ordering::SeqCst);
        (before, least, copied)
    })
}

/// The copy holds what was there before, and the writes up to one of them, and none after that.
fn is_of_one_moment(image: &Image, layout: Layout, before: &Members, least: usize) -> Result<(), Broken> {
    const ONE: &str = "a backup is of one moment";
    let mut found = look_at(&Sim::new(image, HOME, true), HOME, layout)?;
    let mut numbers = Vec::new();
    for place in 0..TURNS {
        let held = found.remove(&turn(place)).ok_or_else(|| Broken::new(ONE, format!("{} is missing", turn(place))))?;
        let number = std::str::from_utf8(&held.value).ok().and_then(|text| text.parse::<usize>().ok());
        numbers.push(number.ok_or_else(|| Broken::new(ONE, "a value that nobody wrote"))?);
    }
    let last = numbers.iter().copied().max().unwrap_or(0);
    let are_the_last =
        numbers.iter().enumerate().all(|(place, number)| number % TURNS == place && number + TURNS > last);
    if !are_the_last || last + 1 < least {
        return Err(Broken::new(ONE, format!("{numbers:?}, after {least} writes")));
    }
    same(ONE, &found, before)
}

#[test]
fn a_backup_beside_writes_and_a_compaction_that_is_crashed_anywhere_is_of_one_moment_or_not_there() {
    let (mut images, mut whole) = (0, 0);
    for layout in [Layout::Files, Layout::Packed] {
        for sync_fs in [true, false] {
            let start = Start::empty();
            let sim = Sim::new(&start.image, HOME, sync_fs);
            sim.record();
            let store = source(&sim, layout);
            let (before, least, copied) = copy_beside_writers(&store, &sim, layout);
            copied.unwrap();
            store.close().unwrap();
            let log = sim.take_log();
            let from = log.iter().position(|op| matches!(op, Op::Mark(Mark::Began(_)))).unwrap() + 1;
            let mut check = |image: &Image| {
                // The store itself opens, whatever was under way.
                look_at(&Sim::new(image, SOURCE, true), SOURCE, layout)?;
                is_of_one_moment(image, layout, &before, least)
            };
            let found = crash(&start.image, &log, from, FEW, &mut check);
            (images, whole) = (images + found.0, whole + found.1);
        }
    }
    tell::line(&format!("crashed backups: {images} distinct images, {whole} of them with a backup"));
    assert!(images > 1000 && whole > 50, "{images} images, {whole} with a backup");
}

#[test]
fn a_backup_beside_writes_and_a_compaction_on_a_disk_that_fails_is_of_one_moment_or_says_so() {
    let (mut failed, mut copied) = (0, 0);
    for layout in [Layout::Files, Layout::Packed] {
        for (errno, name) in ERRORS {
            for sticky in [false, true] {
                // Whose call it is differs from run to run.
                for at in (0..).step_by(7) {
                    let sim = Sim::new(&Start::empty().image, HOME, true);
                    let store = source(&sim, layout);
                    sim.set_fault(Some(Fault { at, sticky, errno }));
                    let (before, least, done) = copy_beside_writers(&store, &sim, layout);
                    let struck = sim.struck();
                    sim.set_fault(None);
                    let told = |broken: Broken| format!("{layout}, {name} at call {at}, sticky {sticky}: {broken}");
                    let image = sim.image();
                    if is_there(&image) {
                        is_of_one_moment(&image, layout, &before, least).map_err(told).unwrap();
                    }
                    match done {
                        Ok(_) => assert!(is_there(&image)),
                        Err(error) => {
                            failed += 1;
                            assert!(sticky || !is_there(&image));
                            assert!(matches!(error, crate::Error::Io { .. }), "{error}");
                        }
                    }
                    copied += usize::from(is_there(&image));
                    // The store itself loses nothing, and is copied when the disk is well.
                    if !is_there(&image) {
                        back_up(&store, &sim, layout).unwrap();
                        is_of_one_moment(&sim.image(), layout, &before, least).map_err(told).unwrap();
                    }
                    let held = members(&store).unwrap();
                    store.flush().or_else(|_| store.flush()).unwrap();
                    let found = look_at(&Sim::new(&sim.image(), SOURCE, true), SOURCE, layout).map_err(told).unwrap();
                    same("what was flushed is there", &found, &held).map_err(told).unwrap();
                    if struck == 0 {
                        break;
                    }
                }
            }
        }
    }
    tell::line(&format!("backups beside what fails: {failed} failed, {copied} did not"));
    assert!(failed > 100 && copied > 10, "{failed} failed, {copied} did not");
}

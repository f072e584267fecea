//! A backup, crashed anywhere: there is nothing under its name, or a whole store. Each of its calls failing in turn: it says
//! so, and there is nothing under its name.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::run::{HOME, Start, clock_at, look_at, members, same, swept};
use super::states::{Disk, MODELS, Rng};
use super::tell;
use super::workload::{BEGIN, Members};
use crate::backend::Layout;
use crate::fs::sim::{EIO, ENOSPC, Fault, Image, Mark, Op, Sim};
use crate::report::BackupReport;
use crate::{Options, Store};

/// The most images that are made of one moment of a run, under one model.
const MOST: usize = 24;

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
    let mut whole = 0;
    let mut seen = HashSet::new();
    for layout in [Layout::Files, Layout::Packed] {
        for sync_fs in [true, false] {
            for start in [Start::empty(), Start::nothing()] {
                let sim = Sim::new(&start.image, HOME, sync_fs);
                sim.record();
                assert_eq!(back_up(&store, &sim, layout).unwrap().members, members.len());
                sim.mark(Mark::Promised(0));
                let log = sim.take_log();
                for model in MODELS {
                    let mut rng = Rng(7);
                    let mut disk = Disk::new(model, &start.image);
                    for (place, op) in log.iter().enumerate() {
                        let last = match op {
                            Op::Mark(_) => None,
                            op if disk.follow(place, op) => Some(place),
                            _ => continue,
                        };
                        disk.images(last, MOST, &mut rng, &mut |image, fates| {
                            let told = || tell::log(&start.image, &log, &fates, &Vec::new());
                            assert!(last.is_some() || is_there(&image), "it returned, and is gone\n{}", told());
                            if seen.insert(image.hash()) && is_there(&image) {
                                whole += 1;
                                let found = look_at(&Sim::new(&image, HOME, true), HOME, layout)
                                    .and_then(|found| same("a backup is whole", &found, &members));
                                found.unwrap_or_else(|broken| panic!("{broken}\n{}", told()));
                            }
                            true
                        });
                    }
                }
            }
        }
    }
    tell::line(&format!("crashed backups: {} distinct images, {whole} of them with a backup", seen.len()));
    assert!(seen.len() > 1000 && whole >= 4);
}

#[test]
fn a_backup_whose_calls_fail_in_turn_says_so_and_leaves_nothing_under_its_name() {
    let (store, members) = store();
    for layout in [Layout::Files, Layout::Packed] {
        for errno in [EIO, ENOSPC] {
            let mut faults = 0;
            loop {
                let sim = Sim::new(&Start::empty().image, HOME, true);
                sim.set_fault(Some(Fault { at: faults, sticky: true, errno }));
                let done = back_up(&store, &sim, layout);
                if sim.struck() == 0 {
                    done.unwrap();
                    break;
                }
                sim.set_fault(None);
                match done {
                    Err(error) => assert!(matches!(error, crate::Error::Io { .. }), "{error}"),
                    // Only what is for people may fail in silence.
                    Ok(_) => {
                        let found = look_at(&Sim::new(&sim.image(), HOME, true), HOME, layout).unwrap();
                        same("a backup is whole", &found, &members).unwrap();
                    }
                }
                faults += 1;
            }
            assert!(faults > 20, "{faults}");
        }
    }
}

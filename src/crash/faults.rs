//! Every call of the file system fails in turn, once and from then on, in a normal run and in a recovery from a crash:
//! the store says so, serves what it has, and heals when the fault goes. What it had promised survives a crash on top
//! of that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::run::{HOME, Recording, Setting, Start, act_on, build, clock_at, layout_of, members, open, same, swept};
use super::search::{Search, afterwards};
use super::tell;
use super::workload::{A_WHILE, Act, BEGIN, Broken, History, LATE, Members, SOON, Workload, many};
use super::{for_each, jobs};
use crate::ManualClock;
use crate::backend::Layout;
use crate::error::{Error, Result};
use crate::fs::sim::{EIO, EMFILE, ENOSPC, EROFS, Fault, Mark, Sim};
use crate::report::Health;
use crate::store::Store;

const ERRORS: [(i32, &str); 4] = [(EIO, "EIO"), (ENOSPC, "ENOSPC"), (EMFILE, "EMFILE"), (EROFS, "EROFS")];

const HEALS: &str = "it heals when the fault goes";
const TELLS: &str = "a fault is told as what it is";
const READS: &str = "reads always work";

/// A run with a fault in it.
struct Faulted<'a> {
    sim: Sim,
    setting: Setting,
    fault: Fault,
    start: &'a Start,
    clock: ManualClock,
}

/// What a load found. `whole` unless something was put into quarantine.
struct Found {
    store: Store,
    members: Members,
    whole: bool,
}

impl Faulted<'_> {
    fn new(start: &Start, setting: Setting, fault: Fault) -> Faulted<'_> {
        let sim = Sim::new(&start.image, HOME, setting.sync_fs);
        sim.record();
        sim.set_fault(Some(fault));
        Faulted { sim, setting, fault, start, clock: start.clock() }
    }

    fn lift(&self) {
        self.sim.set_fault(None);
    }

    /// An error is one of the disk's, with a path, and is there only if the disk had one.
    fn expect_told(&self, error: &Error) -> Result<(), Broken> {
        let told = matches!(error, Error::Io { path, .. } if path.is_absolute());
        if told && self.sim.struck() > 0 { Ok(()) } else { Err(Broken::new(TELLS, format!("{error:?}"))) }
    }

    /// What was done, or what is done again after the fault has been lifted.
    fn with_patience<T>(&self, done: Result<T>, again: impl FnOnce() -> Result<T>) -> Result<T, Broken> {
        done.or_else(|error| {
            self.expect_told(&error)?;
            self.lift();
            again().map_err(|error| Broken::new(HEALS, error.to_string()))
        })
    }

    fn open(&self, expected: &Members) -> Result<Found, Broken> {
        let built = || build(&self.sim, self.setting, &self.clock);
        let store = self.with_patience(built(), built)?;
        self.with_patience(store.load(), || store.load())?;
        let found = members(&store).map_err(|error| Broken::new(READS, error.to_string()))?;
        let whole = store.load_report().quarantined.is_empty();
        if whole {
            same("a load that failed loses nothing", &found, expected)?;
        } else {
            self.check_quarantine(&store, &found, expected)?;
        }
        Ok(Found { store, members: found, whole })
    }

    /// The one exception: a member's file that could not be read because the medium is bad is put aside, and kept.
    fn check_quarantine(&self, store: &Store, found: &Members, expected: &Members) -> Result<(), Broken> {
        let quarantined = store.load_report().quarantined;
        let lost = expected.keys().filter(|key| !found.contains_key(*key)).count();
        let rest_is_there = found.iter().all(|(key, held)| expected.get(key) == Some(held));
        let image = self.sim.image();
        let is_kept = |path: &std::path::Path| {
            let path = path.to_string_lossy();
            image.0.get(path.trim_start_matches('/')).is_some_and(Option::is_some)
        };
        let is_member = |path: &std::path::Path| !path.to_string_lossy().contains("/.larder");
        let all = quarantined.iter().all(|what| is_member(&what.path) && is_kept(&what.moved_to));
        let few = self.fault.sticky || quarantined.len() == 1;
        if self.fault.errno == EIO && all && few && rest_is_there && lost <= quarantined.len() {
            return Ok(());
        }
        Err(Broken::new("a fault is no damage", format!("{quarantined:?}; there is {}", tell::members(found))))
    }

    fn agree(&self, store: &Store, expected: &Members) -> Result<(), Broken> {
        let found = members(store).map_err(|error| Broken::new(READS, error.to_string()))?;
        same(READS, &found, expected)
    }

    /// Whether all that was written is durable: at the second try, unless the fault is there to stay.
    fn flush(&self, store: &Store) -> Result<bool, Broken> {
        let Err(error) = store.flush() else { return Ok(true) };
        self.expect_told(&error)?;
        if !self.fault.sticky {
            return store.flush().map(|()| true).map_err(|error| Broken::new(HEALS, error.to_string()));
        }
        if store.health().is_well() { Err(Broken::new("health tells", error.to_string())) } else { Ok(false) }
    }

    /// Closes the store, and if the fault is in the way, lifts it and looks whether the store heals.
    fn close(&self, store: &Store, expected: &Members) -> Result<(), Broken> {
        let closed = store.close().map(drop);
        if closed.is_err() {
            self.agree(store, expected)?;
        }
        self.with_patience(closed, || {
            store.flush()?;
            healed(store)?;
            store.close().map(drop)
        })
    }

    /// Does one operation that does not end the store. Whether everything is promised.
    fn act(&self, store: &Store, history: &History, number: usize) -> Result<bool, Broken> {
        let act = &history.workload[number];
        if *act == Act::Flush {
            return self.flush(store);
        }
        // Nobody waits until the removal of what has expired is durable, and what changes nothing may wait for nothing.
        let writes = history.numbers(number + 1) > history.numbers(number);
        let waits = self.setting.immediate && writes && !matches!(act, Act::Pass(_));
        match act_on(store, &self.clock, number, act) {
            Ok(()) => Ok(waits && store.health().is_well()),
            Err(error) if self.setting.immediate => self.expect_told(&error).map(|()| false),
            Err(error) => Err(Broken::new("a write does not wait for the disk", error.to_string())),
        }
    }

    /// Runs the workload. Gives the record of it, unless a member was put into quarantine: that is another history.
    fn run(&self, workload: Workload) -> Result<Option<Recording>, Broken> {
        let mut now = self.open(&self.start.members)?;
        let mut whole = now.whole;
        let history = History::new(now.members, self.start.numbers, self.start.time, workload);
        for (number, act) in history.workload.iter().enumerate() {
            self.sim.mark(Mark::Began(number));
            if let Act::CloseAndLoad(time) = act {
                self.close(&now.store, &history.after(number))?;
                self.sim.mark(Mark::Promised(number));
                self.clock.advance(Duration::from_millis(*time));
                now = self.open(&history.after(number + 1))?;
                if !now.whole {
                    whole = false;
                    break;
                }
                swept(&now.store).map_err(|error| Broken::new(HEALS, error.to_string()))?;
            } else {
                if self.act(&now.store, &history, number)? {
                    self.sim.mark(Mark::Promised(number + 1));
                }
                self.agree(&now.store, &history.after(number + 1))?;
            }
        }
        let expected = members(&now.store).map_err(|error| Broken::new(READS, error.to_string()))?;
        self.close(&now.store, &expected)?;
        self.sim.mark(Mark::Promised(history.workload.len()));
        self.lift();
        let log = self.sim.take_log();
        let (_again, found) = open(&self.sim, self.setting, &self.clock)?;
        same("what was closed is there", &found, &expected)?;
        Ok(whole.then(|| Recording { setting: self.setting, start: self.start.image.clone(), log, history }))
    }
}

/// Waits until the store says that it is well again.
fn healed(store: &Store) -> Result<()> {
    let started = Instant::now();
    loop {
        match store.health() {
            Health::Well => return Ok(()),
            Health::Failing { problems, .. } if started.elapsed() > Duration::from_secs(30) => {
                return problems.first().map_or(Ok(()), |problem| Err(problem.clone()));
            }
            Health::Failing { .. } => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// What is done, from what, to have all calls of it fail in turn.
struct Scene {
    start: Start,
    workload: Workload,
    setting: Setting,
}

#[derive(Debug, Default)]
struct Counts {
    runs: AtomicUsize,
    struck: AtomicUsize,
}

/// Every call of every scene fails in turn, with every error, once and from then on; and what the disk held at any
/// moment of it is crashed.
fn sweep(scenes: &[Scene], crashes: &Search) -> [Counts; ERRORS.len()] {
    let counts: [Counts; ERRORS.len()] = Default::default();
    let kinds = ERRORS.iter().enumerate().flat_map(|(index, error)| [(index, error, false), (index, error, true)]);
    let kinds: Vec<_> = scenes.iter().flat_map(|scene| kinds.clone().map(move |kind| (scene, kind))).collect();
    for_each(&kinds, |(scene, (index, (errno, name), sticky))| {
        for at in 0.. {
            let fault = Fault { at, sticky: *sticky, errno: *errno };
            let faulted = Faulted::new(&scene.start, scene.setting, fault);
            let outcome = faulted.run(scene.workload.clone());
            let struck = faulted.sim.struck();
            counts[*index].runs.fetch_add(1, Ordering::Relaxed);
            counts[*index].struck.fetch_add(struck, Ordering::Relaxed);
            match outcome {
                Err(broken) => panic!(
                    "{broken}\nwith {name} at call {at}, sticky {sticky}, {:?}\nworkload: {}\n{}from\n{}",
                    scene.setting,
                    tell::workload(&scene.workload),
                    tell::log(&scene.start.image, &faulted.sim.take_log(), &Vec::new(), &scene.workload),
                    scene.start.image
                ),
                Ok(Some(recording)) => crashes.crash(recording, at as u64),
                Ok(None) => {}
            }
            if struck == 0 || crashes.is_over() {
                break;
            }
        }
        !crashes.is_over()
    });
    if let Some(violation) = crashes.violation() {
        panic!("{violation}");
    }
    counts
}

fn told(what: &str, counts: &[Counts], crashes: &Search, started: Instant) -> usize {
    let mut struck = 0;
    for ((_, name), of_error) in ERRORS.iter().zip(counts) {
        let (runs, faults) = (of_error.runs.load(Ordering::Relaxed), of_error.struck.load(Ordering::Relaxed));
        tell::line(&format!("faults {what}, {name}: {faults} in {runs} runs"));
        struck += faults;
    }
    let (states, elapsed) = (crashes.counts(), started.elapsed());
    tell::line(&format!("faults {what}: {struck}; crashed beside them: {states}; in {elapsed:.0?}"));
    struck
}

#[test]
fn every_call_fails_in_turn_and_nothing_promised_is_lost() {
    let started = Instant::now();
    let put = |key: &str| Act::Put(key.into(), 16);
    let delete = |key: &str| Act::Delete(key.into());
    let clear = |collection: &str| Act::DeleteAll(collection.into());
    let part = |key: &str, put: bool| (key.to_owned(), put.then_some((16, None)));
    let transaction = |parts: [(String, Option<_>); 2]| Act::Transaction(parts.into());
    let all_kinds = [
        vec![
            put("a/1"),
            Act::PutFor("a/3".into(), 16, SOON),
            put("A/1"),
            Act::Flush,
            put("a/1"),
            delete("a/2"),
            clear("b"),
            put("b/3"),
            transaction([part("a/1", false), part("b/3", true)]),
            Act::Flush,
        ],
        vec![Act::CloseAndLoad(0), delete("a/1"), delete("A/1"), Act::Flush, put("a/1"), put("b/1")],
        vec![transaction([part("a/1", true), part("c/1", true)])],
        vec![Act::Expire("b/3".into(), Some(LATE)), Act::Pass(A_WHILE)],
    ];
    let all_kinds = all_kinds.concat();
    // What is packed is compacted at each sync. The files follow at each sync, or at the next close.
    let setting = |layout, bits: u8| Setting {
        immediate: bits & 1 != 0,
        sync_fs: bits & 2 != 0,
        settle: layout == Layout::Packed || bits & 4 != 0,
        layout,
    };
    let mut scenes = Vec::new();
    for layout in [Layout::Files, Layout::Packed] {
        for bits in 0..2 {
            let setting = setting(layout, bits);
            let scene = |start: Start, workload: &Workload| Scene { start, workload: workload.clone(), setting };
            scenes.push(scene(Start::filled(layout), &all_kinds));
            scenes.push(scene(Start::empty(), &vec![put("a/1"), Act::Flush, delete("a/1"), Act::Flush]));
        }
    }
    for bits in [4, 5] {
        let setting = setting(Layout::Files, bits);
        scenes.push(Scene { start: Start::filled(Layout::Files), workload: all_kinds.clone(), setting });
    }
    // Enough to be synced all together.
    let start = Start::filled(Layout::Files);
    scenes.push(Scene { start, workload: many().swap_remove(3), setting: setting(Layout::Files, 2) });
    let crashes = Search::of_promises(4);
    let counts = sweep(&scenes, &crashes);
    assert!(told("in a normal run", &counts, &crashes, started) > 5_000);
}

#[test]
fn every_call_of_a_recovery_fails_in_turn_and_nothing_is_lost() {
    let started = Instant::now();
    // Crashes of all kinds of runs, and of each run a few.
    let search = Search::new(3);
    for job in jobs(2, 16).into_iter().step_by(13) {
        search.crash(job.record(None).0, job.seed);
    }
    let images = search.samples();
    let images = images.iter().step_by((images.len() / 24).max(1)).take(24);
    let scene = |image: &crate::fs::sim::Image| {
        let hash = image.hash();
        let layout = layout_of(image);
        let settle = layout == Layout::Packed;
        let setting = Setting { immediate: hash & 1 != 0, sync_fs: hash & 2 != 0, settle, layout };
        let healthy = Sim::new(image, HOME, setting.sync_fs);
        let (_store, found) = open(&healthy, setting, &clock_at(BEGIN)).unwrap_or_else(|broken| panic!("{broken}"));
        let start = Start { image: image.clone(), members: found, numbers: 0, time: BEGIN };
        let mut workload = afterwards(hash);
        // What a kill takes is another matter.
        workload.retain(|act| !matches!(act, Act::Kill(..)));
        Scene { start, workload, setting }
    };
    let scenes: Vec<Scene> = images.map(scene).collect();
    let crashes = Search::of_promises(4);
    let counts = sweep(&scenes, &crashes);
    assert!(told("in a recovery", &counts, &crashes, started) > 5_000);
}

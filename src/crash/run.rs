//! One life of a store on a [`Sim`], or several, if its process is killed: a workload is run, and the record says where
//! each operation began and what was promised when.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::tell;
use super::workload::{
    A_WHILE, Act, BEGIN, Broken, Effect, Expected, Held, History, Killed, LATE, Members, Workload, effects, is_in,
    visible,
};
use crate::ManualClock;
use crate::backend::{Backend, Change, Files, Inflow, Layout, Loader, Packed, Progress, Quarantined, Sink};
use crate::background::Population;
use crate::error::{Error, Result};
use crate::fs::sim::{Image, Mark, Op, Sim, Without};
use crate::journal::PROCESS;
use crate::options::Durability;
use crate::shelf::AnyShelf;
use crate::store::Store;
use crate::sync::Mutex;

/// Where the store is. Nothing of the kind must exist on the real disk.
pub(super) const HOME: &str = "/larder-simulated/store";

/// What a run is like, beside what is done in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) immediate: bool,
    pub(super) sync_fs: bool,
    /// After each operation, wait until the store has nothing to do. Otherwise what comes fast goes to the disk at
    /// once.
    pub(super) settle: bool,
    pub(super) layout: Layout,
}

impl Setting {
    fn durability(self) -> Durability {
        if self.immediate { Durability::Immediate } else { Durability::Interval(Duration::from_secs(3600)) }
    }
}

/// A disk and what a store on it holds.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) image: Image,
    /// Expired ones, too.
    pub(super) members: Members,
    /// How many numbers writes have used up, at least.
    pub(super) numbers: u64,
    /// When it is opened, in milliseconds since 1970.
    pub(super) time: u64,
}

impl Start {
    /// Nothing but the directory that the store is to be made in.
    pub(super) fn empty() -> Start {
        let image = Image::of_dirs(&[HOME.trim_start_matches('/').split('/').next().unwrap_or_default()]);
        Start { image, members: Members::new(), numbers: 0, time: BEGIN }
    }

    /// Not even that.
    pub(super) fn nothing() -> Start {
        Start { image: Image::default(), members: Members::new(), numbers: 0, time: BEGIN }
    }

    /// A store with members, closed. Some of them have a deadline.
    pub(super) fn filled(layout: Layout) -> Start {
        let put = |key: &str| Act::Put(key.into(), 0);
        let workload =
            vec![Act::PutFor("a/1".into(), 0, A_WHILE / 2), put("a/2"), put("b/1"), Act::PutFor("b/2".into(), 0, LATE)];
        let operations = workload.len();
        let sim = Sim::new(&Start::empty().image, HOME, false);
        let setting = Setting { immediate: false, sync_fs: false, settle: false, layout };
        let history = live(&sim, setting, &Start::empty(), workload).unwrap_or_else(|broken| panic!("{broken}"));
        let (members, numbers) = (history.after(operations), history.numbers(operations));
        Start { image: sim.image(), members, numbers, time: BEGIN }
    }

    pub(super) fn clock(&self) -> ManualClock {
        clock_at(self.time)
    }
}

pub(super) fn clock_at(time: u64) -> ManualClock {
    ManualClock::new(UNIX_EPOCH + Duration::from_millis(time))
}

/// What was done in a run, in order, and why.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) setting: Setting,
    pub(super) start: Image,
    pub(super) log: Vec<Op>,
    pub(super) history: History,
}

/// Runs a workload from `start` and records it.
///
/// # Errors
///
/// As [`live`].
pub(super) fn record(
    start: &Start,
    workload: Workload,
    setting: Setting,
    without: Option<Without>,
) -> Result<(Recording, Sim), Broken> {
    let sim = Sim::new(&start.image, HOME, setting.sync_fs);
    sim.leave_out(without);
    sim.record();
    let history = live(&sim, setting, start, workload.clone()).map_err(|broken| {
        let log = tell::log(&start.image, &sim.take_log(), &Vec::new(), &workload);
        let Broken { invariant, details } = broken;
        let details = format!("{details}\n{setting:?}\nworkload: {}\n{log}", tell::workload(&workload));
        Broken { invariant, details }
    })?;
    Ok((Recording { setting, start: start.image.clone(), log: sim.take_log(), history }, sim))
}

/// A store on the file system, not loaded.
pub(super) fn build(sim: &Sim, setting: Setting, clock: &ManualClock) -> Result<Store> {
    let (fs, home) = (Arc::new(sim.clone()), Path::new(HOME));
    let options = Store::options(HOME).durability(setting.durability()).clock(clock);
    let options = match setting.layout {
        Layout::Files => {
            let mut files = Files::on(fs, home)?;
            files.eager = setting.settle;
            options.backend(files)
        }
        Layout::Packed => {
            let mut packed = Packed::on(fs, home)?;
            packed.eager = setting.settle;
            options.backend(packed)
        }
    };
    options.build()
}

/// What a store with a clock that stands still holds, with deadlines.
pub(super) fn members(store: &Store) -> Result<Members> {
    let now = store.core().open()?.clock.now();
    let mut members = Members::new();
    for collection in store.collections()? {
        for (member, value) in store.get_all(&collection)? {
            let key = format!("{collection}/{member}");
            let left = store.ttl(&key)?;
            let deadline = left.map(|left| now + left.as_millis() as u64);
            members.insert(key, Held { value: Arc::new(value.to_vec()), deadline });
        }
    }
    Ok(members)
}

fn failed(invariant: &'static str) -> impl Fn(crate::Error) -> Broken {
    move |error| Broken::new(invariant, error.to_string())
}

fn load(sim: &Sim, setting: Setting, clock: &ManualClock) -> Result<Store> {
    sim.set_loading(true);
    PROCESS.set(sim.process());
    let loaded = build(sim, setting, clock).and_then(|store| store.load().map(|_| store));
    PROCESS.set(0);
    sim.set_loading(false);
    loaded
}

/// A loaded store, and what it holds.
pub(super) fn open(sim: &Sim, setting: Setting, clock: &ManualClock) -> Result<(Store, Members), Broken> {
    let store = load(sim, setting, clock).map_err(failed("the store opens"))?;
    if let Some(quarantined) = store.load_report().quarantined.first() {
        return Err(Broken::new("a crash is no damage", format!("quarantined: {quarantined:?}")));
    }
    let members = members(&store).map_err(failed("a loaded store can be read"))?;
    Ok((store, members))
}

/// Runs a workload on a healthy file system, with marks, and closes the store.
///
/// # Errors
///
/// The store does not open, something fails, or it does not hold in RAM what was put into it.
pub(super) fn live(sim: &Sim, setting: Setting, start: &Start, workload: Workload) -> Result<History, Broken> {
    let mut sim = sim.next_process();
    let clock = start.clock();
    if let Some(Act::Pass(_)) = workload.first() {
        // What has expired already is removed from the load on.
        sim.mark(Mark::Began(0));
    }
    let (mut store, found) = open(&sim, setting, &clock)?;
    let mut promised = 0;
    let mut history = History::new(start.members.clone(), start.numbers, start.time, workload.clone());
    same("what was closed is there, but for what has expired", &found, &history.before())?;
    let went_wrong = failed("nothing fails on a healthy disk");
    for (number, act) in workload.iter().enumerate() {
        let logged = sim.logged();
        match act {
            Act::CloseAndLoad(time) => {
                sim.mark(Mark::Began(number));
                store.close().map_err(&went_wrong)?;
                sim.mark(Mark::Promised(number));
                promised = number;
                clock.advance(Duration::from_millis(*time));
                let found;
                (store, found) = open(&sim, setting, &clock)?;
                same("what was closed is there, but for what has expired", &found, &history.after(number + 1))?;
                swept(&store).map_err(&went_wrong)?;
            }
            Act::Kill(closing, loading) => {
                kill(&sim, store, *closing);
                sim = sim.next_process();
                let mut found = look(&Sim::new(&sim.image(), HOME, setting.sync_fs), setting.layout)?;
                Expected { history: &history, begun: number, promised }.check(&found)?;
                // From here on nothing of what it did can come any more.
                sim.mark(Mark::Began(number));
                if let Some(calls) = loading {
                    kill_load(&sim, setting, &clock, *calls);
                    sim = sim.next_process();
                    let again = look(&Sim::new(&sim.image(), HOME, setting.sync_fs), setting.layout)?;
                    let now = history.time(number);
                    same("a load that is killed changes nothing", &visible(&again, now), &visible(&found, now))?;
                    found = again;
                }
                history = history.killed(Killed { found, promised });
                let found;
                (store, found) = open(&sim, setting, &clock)?;
                same("what a process that was killed left is there", &found, &history.after(number + 1))?;
                swept(&store).map_err(&went_wrong)?;
            }
            _ => {
                sim.mark(Mark::Began(number));
                act_on(&store, &clock, number, act).map_err(&went_wrong)?;
            }
        }
        // Nobody waits until the removal of what has expired is durable, nor until what was found is.
        let unawaited = matches!(act, Act::Transaction(_) | Act::Pass(_) | Act::CloseAndLoad(_) | Act::Kill(..));
        if setting.immediate && unawaited {
            store.flush().map_err(&went_wrong)?;
        }
        if setting.immediate || *act == Act::Flush {
            sim.mark(Mark::Promised(number + 1));
            promised = number + 1;
        }
        if setting.settle {
            settle(&sim, logged + 1);
        }
    }
    let operations = history.workload.len();
    same("reads see what was written", &members(&store).map_err(&went_wrong)?, &history.after(operations))?;
    store.close().map_err(&went_wrong)?;
    sim.mark(Mark::Promised(operations));
    Ok(history)
}

/// Kills the process that has a store, so many calls into closing it.
fn kill(sim: &Sim, store: Store, calls: usize) {
    if calls > 0 {
        sim.kill_after(calls);
        // Mostly it does not come to an end.
        _ = store.close();
    }
    sim.kill();
    // What is left of it are threads, which find that nothing works any more.
    drop(store);
}

/// The same, so many calls into loading one.
fn kill_load(sim: &Sim, setting: Setting, clock: &ManualClock, calls: usize) {
    sim.kill_after(calls);
    // It may have been done by then.
    let loaded = load(sim, setting, clock);
    sim.kill();
    drop(loaded);
}

pub(super) fn same(invariant: &'static str, found: &Members, expected: &Members) -> Result<(), Broken> {
    if found == expected {
        return Ok(());
    }
    let keys = found.keys().chain(expected.keys()).filter(|key| found.get(*key) != expected.get(*key));
    let keys: Vec<&String> = keys.collect();
    let (found, expected) = (tell::members(found), tell::members(expected));
    Err(Broken::new(invariant, format!("{keys:?} differ: there is {found}, and should be {expected}")))
}

/// Does an operation that does not end the store.
pub(super) fn act_on(store: &Store, clock: &ManualClock, number: usize, act: &Act) -> Result<()> {
    match act {
        Act::Flush => return store.flush(),
        Act::Transaction(_) => return transact(store, &effects(number, act)),
        _ => {}
    }
    for effect in effects(number, act) {
        match effect {
            Effect::Put(key, value, None) => _ = store.put(key, &**value)?,
            Effect::Put(key, value, Some(ttl)) => _ = store.put_with_ttl(key, &**value, Duration::from_millis(ttl))?,
            Effect::Expire(key, Some(ttl)) => _ = store.expire(key, Duration::from_millis(ttl))?,
            Effect::Expire(key, None) => _ = store.persist(key)?,
            Effect::Pass(time) => {
                clock.advance(Duration::from_millis(time));
                swept(store)?;
            }
            Effect::Slip(time) => clock.advance(Duration::from_millis(time)),
            Effect::Delete(key) => _ = store.delete(key)?,
            Effect::Clear(collection) => _ = store.delete_all(collection)?,
        }
    }
    Ok(())
}

/// All of it or nothing.
fn transact(store: &Store, parts: &[Effect<'_>]) -> Result<()> {
    store.transaction(|tx| {
        parts.iter().try_for_each(|part| match part {
            Effect::Put(key, value, None) => tx.put(key, &value[..]),
            Effect::Put(key, value, Some(ttl)) => tx.put_with_ttl(key, &value[..], Duration::from_millis(*ttl)),
            Effect::Delete(key) => tx.delete(key),
            Effect::Expire(..) | Effect::Pass(_) | Effect::Slip(_) | Effect::Clear(_) => {
                unreachable!("no transaction does it")
            }
        })
    })
}

/// Waits until everything that has expired is removed, and not only hidden.
pub(super) fn swept(store: &Store) -> Result<()> {
    const LONG: Duration = Duration::from_secs(30);
    let engine = store.core().open()?;
    let started = Instant::now();
    let is_left = || {
        let mut left = false;
        let now = engine.clock.now();
        for shelves in engine.registry.all() {
            AnyShelf::each_deadline(&shelves.raw, &mut |_, deadline| left |= deadline <= now);
        }
        left
    };
    while is_left() {
        if started.elapsed() > LONG {
            return Err(Error::Degraded { reason: "what has expired is not removed".into(), source: None });
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Waits until something was done after `logged` and then nothing for a while, or until it is clear that there is
/// nothing to do. What is missed here is only found less often.
fn settle(sim: &Sim, logged: usize) {
    const QUIET: Duration = Duration::from_micros(400);
    const IDLE: Duration = Duration::from_micros(2500);
    let started = Instant::now();
    let (mut seen, mut since) = (logged, started);
    loop {
        std::thread::sleep(Duration::from_micros(60));
        let now = sim.logged();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > if seen > logged { QUIET } else { IDLE } {
            return;
        }
    }
}

/// What a load finds, taken in by the rules of versions and nothing else: no map, and no threads.
#[derive(Default)]
struct Found {
    /// By key: the version, and what is held, expired or not, or `None` for a delete.
    members: Mutex<BTreeMap<String, (u64, Option<Held>)>>,
    quarantined: Mutex<Vec<Quarantined>>,
}

impl Found {
    fn take(&self, collection: &str, member: &str, version: u64, put: Option<(&[u8], Option<u64>)>) {
        let mut members = self.members.lock();
        let found = members.entry(format!("{collection}/{member}")).or_default();
        if found.0 < version {
            let held = |(value, deadline): (&[u8], _)| Held { value: Arc::new(value.to_vec()), deadline };
            *found = (version, put.map(held));
        }
    }
}

impl Inflow for &Found {
    fn put(
        &mut self,
        collection: &str,
        member: &str,
        version: u64,
        deadline: Option<u64>,
        _codec: &str,
        value: &[u8],
    ) -> Result<()> {
        self.take(collection, member, version, Some((value, deadline)));
        Ok(())
    }
}

impl Sink for Found {
    fn inflow(&self) -> Box<dyn Inflow + '_> {
        Box::new(self)
    }

    fn recover(&self, changes: &[Change<'_>], _at_rest: bool) -> Result<()> {
        for change in changes {
            match *change {
                Change::Put { collection, member, version, deadline, value, .. } => {
                    self.take(collection, member, version, Some((value, deadline)));
                }
                Change::Delete { collection, member, version } => self.take(collection, member, version, None),
                Change::Clear { collection, version } => {
                    let mut members = self.members.lock();
                    let cleared = members.iter_mut().filter(|(key, found)| is_in(key, collection) && found.0 < version);
                    cleared.for_each(|(_, found)| *found = (version, None));
                }
                Change::Deadline { collection, member, version, deadline } => {
                    if let Some((found, Some(held))) = self.members.lock().get_mut(&format!("{collection}/{member}"))
                        && *found < version
                    {
                        (*found, held.deadline) = (version, deadline);
                    }
                }
            }
        }
        Ok(())
    }

    fn newest(&self, _collection: &str, _member: &str) -> Option<u64> {
        None
    }

    fn recovered(&self) {}

    fn population(&self) -> Population {
        let members = self.members.lock();
        let live = members.iter().filter_map(|(key, (_, held))| Some(key.len() + held.as_ref()?.value.len()));
        Population { members: live.clone().count() as u64, bytes: live.sum::<usize>() as u64, looks: 0 }
    }

    fn quarantined(&self, what: Quarantined) {
        self.quarantined.lock().push(what);
    }

    fn progress(&self, _progress: Progress) {}
}

/// How the store on a disk keeps its members.
pub(super) fn layout_of(image: &Image) -> Layout {
    let format = image.0.get(&format!("{}/.larder/format", HOME.trim_start_matches('/')));
    let line = format.cloned().flatten().unwrap_or_default();
    if String::from_utf8_lossy(&line).contains("packed") { Layout::Packed } else { Layout::Files }
}

/// What a load finds on a disk that is not used any more.
pub(super) fn look(sim: &Sim, layout: Layout) -> Result<Members, Broken> {
    look_at(sim, HOME, layout)
}

pub(super) fn look_at(sim: &Sim, home: &str, layout: Layout) -> Result<Members, Broken> {
    let found = Found::default();
    let (fs, home) = (Arc::new(sim.clone()), Path::new(home));
    let loader = Loader { sink: &found, background: Arc::default() };
    let looked = match layout {
        Layout::Files => Files::on(fs, home).and_then(|mut files| {
            files.only_looks = true;
            files.load(&loader)
        }),
        Layout::Packed => Packed::on(fs, home).and_then(|mut packed| {
            packed.only_looks = true;
            packed.load(&loader)
        }),
    };
    looked.map_err(failed("the store opens"))?;
    if let Some(quarantined) = found.quarantined.lock().first() {
        return Err(Broken::new("a crash is no damage", format!("quarantined: {quarantined:?}")));
    }
    let members = std::mem::take(&mut *found.members.lock()).into_iter();
    Ok(members.filter_map(|(key, (_, held))| Some((key, held?))).collect())
}

//! The search: every crash of a recorded run, and what a store makes of it. A state is an image together with what was
//! promised; each is looked at once, and each image is opened once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::run::{look, HOME, Recording, Setting, Start, live, open, same};
use super::states::{Disk, Fate, Fates, MODELS, Model, Rng};
use super::workload::{Act, Broken, Expected, Members, Workload};
use crate::fs::sim::{Hash128, Image, Inode, Mark, Op, ROOT, Shown, Sim};
use crate::sync::Mutex;

/// One image in so many is opened in such a way that the opening itself, and what is done after it, is crashed too.
const COMPOUND: u128 = 48;

/// One image in so many is, once the store on it is closed, opened again.
const REOPENED: u128 = 2;

/// One image in so many is used by a store, with all its threads, and closed. The others are only looked at.
const USED: u128 = 5;

/// Invariants that are known not to hold. They are told, and the search goes on.
pub(super) const KNOWN: &[&str] = &[NUMBERS];

const NUMBERS: &str = "numbers never go back";

/// What a store found on an image, and did afterwards.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    members: Arc<Members>,
    /// The number of a put after it, and the highest number that could be seen in the image. `None` where numbers
    /// cannot be seen.
    numbers: Option<(u64, u64)>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    /// Distinct states, whatever the model.
    pub(super) states: usize,
    pub(super) by_model: [usize; MODELS.len()],
    /// Those of a crash during or after the recovery from a crash.
    pub(super) compound: usize,
    /// Images opened.
    pub(super) images: usize,
    pub(super) runs: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { states, by_model: [posix, ordered], compound, images, runs } = self;
        write!(f, "{states} distinct states: Posix {posix}, Ordered {ordered} (some are of both); ")?;
        write!(f, "{compound} of them of a crash after a crash; {images} distinct images opened; {runs} runs")
    }
}

/// A crash of a recorded run.
#[derive(Debug, Clone)]
struct Crash {
    recording: Arc<Recording>,
    /// How many of the record were done.
    at: usize,
    model: Model,
    fates: Fates,
    /// The crash that the run began with.
    before: Option<Arc<Crash>>,
}

/// A crash that breaks an invariant.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) broken: Broken,
    crash: Crash,
    image: Image,
}

impl Violation {
    /// Of as little lost or torn as it takes.
    fn new(broken: Broken, crash: Crash, image: Image, expected: &Expected<'_>) -> Violation {
        let (crash, image) = minimal(crash, image, expected, &broken);
        let broken = open_and_check(&image, crash.recording.setting, expected).err().unwrap_or(broken);
        Violation { broken, crash, image }
    }
}

/// What has been looked at, and what was found.
#[derive(Debug)]
pub(super) struct Search {
    /// Whether what is known not to hold ends the search too.
    strict: bool,
    /// Whether crashes are looked at only where something has just been promised.
    only_promises: bool,
    /// The most images that are made of one moment of a run, under one model. More are made of long windows by and by.
    most: usize,
    /// By state, the models it was met under, as bits.
    seen: Mutex<HashMap<u128, u8>>,
    /// By image.
    opened: Mutex<HashMap<u128, Result<Opened, Broken>>>,
    /// Equal ones are kept once.
    members: Mutex<HashMap<u128, Arc<Members>>>,
    compound: AtomicUsize,
    runs: AtomicUsize,
    violation: Mutex<Option<Violation>>,
    /// By invariant, the first of each that is known.
    known: Mutex<BTreeMap<&'static str, Violation>>,
    over: AtomicBool,
    samples: Mutex<Vec<Image>>,
}

impl Search {
    pub(super) fn new(most: usize) -> Search {
        Search {
            strict: false,
            only_promises: false,
            most,
            seen: Mutex::default(),
            opened: Mutex::default(),
            members: Mutex::default(),
            compound: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            violation: Mutex::default(),
            known: Mutex::default(),
            over: AtomicBool::new(false),
            samples: Mutex::default(),
        }
    }

    /// One that ends with anything that does not hold, known or not.
    pub(super) fn strict(most: usize) -> Search {
        Search { strict: true, ..Search::new(most) }
    }

    /// One that looks at crashes only where something has just been promised.
    pub(super) fn of_promises(most: usize) -> Search {
        Search { only_promises: true, ..Search::new(most) }
    }

    pub(super) fn counts(&self) -> Counts {
        let seen = self.seen.lock();
        let of_model = |model: usize| seen.values().filter(|models| **models & (1 << model) != 0).count();
        Counts {
            states: seen.len(),
            by_model: std::array::from_fn(of_model),
            compound: self.compound.load(Ordering::Relaxed),
            images: self.opened.lock().len(),
            runs: self.runs.load(Ordering::Relaxed),
        }
    }

    pub(super) fn states(&self) -> usize {
        self.seen.lock().len()
    }

    /// Whether a violation has been found.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The first violation found.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.lock().take()
    }

    /// What was found of what is known not to hold.
    pub(super) fn known(&self) -> Vec<Violation> {
        std::mem::take(&mut *self.known.lock()).into_values().collect()
    }

    /// Some of the images that were met.
    pub(super) fn samples(&self) -> Vec<Image> {
        std::mem::take(&mut self.samples.lock())
    }

    /// Crashes a recorded run everywhere.
    pub(super) fn crash(&self, recording: Recording, seed: u64) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let recording = Arc::new(recording);
        for model in MODELS {
            self.crash_under(&recording, model, seed, None);
        }
    }

    fn crash_under(&self, recording: &Arc<Recording>, model: Model, seed: u64, before: Option<&Arc<Crash>>) {
        let mut rng = Rng(seed);
        let mut disk = Disk::new(model, &recording.start);
        let mut expected = Expected { history: &recording.history, begun: 0, promised: 0 };
        let mut hash = expected.hash();
        for (place, op) in std::iter::once((0, None)).chain((1..).zip(recording.log.iter().map(Some))) {
            // Only a crash right after an effect, with it, or after a promise, shows anything new.
            let last = match op {
                None => None,
                Some(Op::Mark(Mark::Began(number))) => {
                    expected.begun = number + 1;
                    hash = expected.hash();
                    continue;
                }
                Some(Op::Mark(Mark::Promised(operations))) => {
                    expected.promised = *operations;
                    hash = expected.hash();
                    None
                }
                Some(op) if disk.follow(place - 1, op) && !self.only_promises => Some(place - 1),
                Some(_) => continue,
            };
            let most = if before.is_some() { self.most.div_ceil(4) } else { self.most };
            disk.images(last, most, &mut rng, &mut |image, fates| {
                let crash = || Crash {
                    recording: recording.clone(),
                    at: place,
                    model,
                    fates: fates.clone(),
                    before: before.cloned(),
                };
                self.look_at(image, &expected, hash, crash);
                !self.is_over()
            });
            if self.is_over() {
                return;
            }
        }
    }

    fn look_at(&self, image: Image, expected: &Expected<'_>, promise: u128, crash: impl Fn() -> Crash) {
        let image_hash = image.hash();
        let mut state = Hash128(image_hash);
        state.add(&promise.to_le_bytes());
        let Crash { model, before, recording, .. } = crash();
        let bit = 1 << MODELS.iter().position(|other| *other == model).unwrap_or_default();
        let met_before = {
            let mut seen = self.seen.lock();
            let models = seen.entry(state.0).or_insert(0);
            std::mem::replace(models, *models | bit)
        };
        if met_before != 0 {
            return;
        }
        if before.is_some() {
            self.compound.fetch_add(1, Ordering::Relaxed);
        }
        // Otherwise the lock would be held during what follows.
        let known = self.opened.lock().get(&image_hash).cloned();
        let opened = known.unwrap_or_else(|| {
            let again = image_hash % COMPOUND == 0 && before.is_none() && !self.only_promises;
            let (opened, recovery) = self.open(&image, image_hash, recording.setting, again);
            self.opened.lock().insert(image_hash, opened.clone());
            if let Some(recovery) = recovery {
                self.samples.lock().push(image.clone());
                let first = Arc::new(crash());
                self.crash_under(&Arc::new(recovery), model, image_hash as u64, Some(&first));
            }
            opened
        });
        let Err(broken) = check(&opened, expected) else { return };
        if KNOWN.contains(&broken.invariant) && !self.strict {
            if !self.known.lock().contains_key(broken.invariant) {
                let violation = Violation::new(broken, crash(), image, expected);
                self.known.lock().insert(violation.broken.invariant, violation);
            }
        } else if !self.over.swap(true, Ordering::Relaxed) {
            *self.violation.lock() = Some(Violation::new(broken, crash(), image, expected));
        }
    }

    /// Opens an image and goes on from there. With `again`, gives a record of that too.
    fn open(
        &self,
        image: &Image,
        hash: u128,
        setting: Setting,
        again: bool,
    ) -> (Result<Opened, Broken>, Option<Recording>) {
        let sim = Sim::new(image, HOME, setting.sync_fs);
        if !again && hash % USED != 0 {
            let opened = look(&sim).map(|members| Opened { members: Arc::new(members), numbers: None });
            return (opened, None);
        }
        if again {
            sim.record();
        }
        match go_on(&sim, image, hash, setting) {
            Ok((mut opened, recording)) => {
                let mut hash = Hash128::default();
                for (key, value) in &*opened.members {
                    hash.add(key.as_bytes());
                    hash.add(value);
                }
                let mut members = self.members.lock();
                opened.members = members.entry(hash.0).or_insert_with(|| opened.members.clone()).clone();
                (Ok(opened), again.then_some(recording))
            }
            Err(broken) => (Err(broken), None),
        }
    }
}

/// What is done on every image before the store is closed: put something new, and perhaps delete something. A load of few collections is cheap, so
/// the new one is mostly in one that may be there.
pub(super) fn afterwards(hash: u128) -> Workload {
    let new = Act::Put(NEW[usize::from((hash >> 8) % 8 == 0)].into(), 16);
    let collection = ["a", "b", "many"][(hash >> 12) as usize % 3];
    match (hash >> 16) % 4 {
        0 => vec![new, Act::Flush],
        1 => vec![new, Act::Delete(format!("{collection}/1")), Act::Flush],
        2 => vec![new, Act::Put(format!("{collection}/1"), 16), Act::Flush],
        _ => vec![Act::DeleteAll(collection.into()), new, Act::Flush],
    }
}

/// No workload puts these.
const NEW: [&str; 2] = ["a/new", "new/new"];

pub(super) fn go_on(sim: &Sim, image: &Image, hash: u128, setting: Setting) -> Result<(Opened, Recording), Broken> {
    let setting = Setting { immediate: hash >> 20 & 7 == 0, settle: false, ..setting };
    let start = Start { image: image.clone(), members: None, numbers: 0 };
    let history = live(sim, setting, &start, afterwards(hash))?;
    let log = sim.take_log();
    let closed = history.after(history.workload.len());
    let after = numbers(&sim.image());
    if hash % REOPENED == 0 {
        let (_again, members) = open(sim, setting)?;
        same("what was closed is there", &members, &closed)?;
    }
    let is_new = |act: &Act| matches!(act, Act::Put(key, _) if NEW.contains(&&**key));
    let new = history.workload.iter().find(|act| is_new(act));
    let number_of_new = new.and_then(|act| if let Act::Put(key, _) = act { after.get(key).copied() } else { None });
    let seen = numbers(image).values().copied().max().unwrap_or(0);
    let members = Arc::new(history.base.clone());
    let opened = Opened { members, numbers: number_of_new.map(|number| (number, seen)) };
    Ok((opened, Recording { setting, start: image.clone(), log, history }))
}

fn check(opened: &Result<Opened, Broken>, expected: &Expected<'_>) -> Result<(), Broken> {
    let opened = opened.as_ref().map_err(Clone::clone)?;
    expected.check(&opened.members)?;
    let used = expected.history.numbers(expected.promised);
    match opened.numbers {
        Some((new, seen)) if new <= used.max(seen) => Err(Broken::new(
            NUMBERS,
            format!("a put after the crash has number {new}; {seen} can be seen, and at least {used} were used up"),
        )),
        _ => Ok(()),
    }
}

fn open_and_check(image: &Image, setting: Setting, expected: &Expected<'_>) -> Result<(), Broken> {
    let sim = Sim::new(image, HOME, setting.sync_fs);
    let opened = go_on(&sim, image, image.hash(), setting).map(|(opened, _)| opened);
    check(&opened, expected)
}

/// The numbers in members' files, by key. Where members are kept otherwise there are none to be seen.
fn numbers(image: &Image) -> BTreeMap<String, u64> {
    let number = |bytes: &[u8]| {
        let line = std::str::from_utf8(bytes.split(|&byte| byte == b'\n').next()?).ok()?;
        let rest = line.strip_prefix("larder 1 ")?.split_once("version=")?.1;
        let (number, rest) = rest.split_once(' ')?;
        let key = rest.split_once("key=\"")?.1.split_once('"')?.0;
        Some((key.to_owned(), number.parse().ok()?))
    };
    let home = &HOME[1..];
    let of_file = |(path, bytes): (&String, &Option<_>)| {
        let bytes: &Arc<Vec<u8>> = bytes.as_ref()?;
        let inside = path.strip_prefix(home)?;
        if inside.starts_with("/.larder") { None } else { number(bytes) }
    };
    image.0.iter().filter_map(of_file).collect()
}

/// The same crash with as few effects lost or torn as break the same invariant.
fn minimal(mut crash: Crash, mut image: Image, expected: &Expected<'_>, broken: &Broken) -> (Crash, Image) {
    let mut disk = Disk::new(crash.model, &crash.recording.start);
    for (place, op) in crash.recording.log.iter().take(crash.at).enumerate() {
        disk.follow(place, op);
    }
    let setting = crash.recording.setting;
    for index in 0..crash.fates.len() {
        if crash.fates[index].1 == Fate::Kept {
            continue;
        }
        let mut fates = crash.fates.clone();
        fates[index].1 = Fate::Kept;
        let Some(fewer) = disk.image_of(&fates) else { continue };
        if open_and_check(&fewer, setting, expected).is_err_and(|still| still.invariant == broken.invariant) {
            (crash.fates, image) = (fates, fewer);
        }
    }
    (crash, image)
}

// ---- telling ----

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "BROKEN: {}", self.broken.invariant)?;
        writeln!(f, "{}", self.broken.details)?;
        tell(f, &self.crash)?;
        writeln!(f, "the disk after it:\n{}", self.image)
    }
}

fn tell(f: &mut fmt::Formatter<'_>, crash: &Crash) -> fmt::Result {
    if let Some(before) = &crash.before {
        tell(f, before)?;
        writeln!(f, "and a crash again, of the store that was opened on what that left:")?;
    }
    let Crash { recording, at, model, fates, .. } = crash;
    let Setting { immediate, sync_fs, settle } = recording.setting;
    writeln!(f, "model {model:?}; Immediate: {immediate}; sync_fs: {sync_fs}; waits between operations: {settle}")?;
    let acts: Vec<String> = recording.history.workload.iter().map(ToString::to_string).collect();
    writeln!(f, "workload: {}; close", acts.join("; "))?;
    writeln!(f, "what was done until the crash, and what became of it:")?;
    let mut paths = Paths::new(&recording.start);
    for (place, op) in recording.log.iter().take(*at).enumerate() {
        let fate = match fates.iter().find(|(other, _)| *other == place) {
            None => String::new(),
            Some((_, Fate::Kept)) => "kept".into(),
            Some((_, Fate::Dropped)) => "LOST".into(),
            Some((_, Fate::Zeroed)) => "ZEROS".into(),
            Some((_, Fate::Cut(bytes))) => format!("TORN at {bytes}"),
            Some((_, Fate::CutZeros(bytes))) => format!("ZEROS from {bytes}"),
            Some((_, Fate::Headless(bytes))) => format!("ZEROS to {bytes}"),
        };
        writeln!(f, "  {place:4}  {fate:14}  {}", paths.told(op, &recording.history.workload))?;
    }
    Ok(())
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

    fn told(&mut self, op: &Op, workload: &Workload) -> String {
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

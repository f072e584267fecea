//! The search: every crash of a recorded run, and what a store makes of it. A state is an image together with what was
//! promised; each is looked at once, and each image is opened once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::run::{HOME, Recording, Setting, Start, clock_at, live, look, open, same};
use super::states::{Disk, Fate, Fates, MODELS, Model, Rng};
use super::workload::{A_WHILE, Act, BEGIN, Broken, Expected, LATE, Members, SOON, Workload};
use crate::backend::Layout;
use crate::fs::sim::{Hash128, Image, Mark, Op, Sim};
use crate::sync::Mutex;

/// One image in so many is opened in such a way that the opening itself, and what is done after it, is crashed too.
const COMPOUND: u128 = 48;

/// One image in so many is kept for other tests.
const SAMPLED: u128 = 17;

/// One image in so many is, once the store on it is closed, opened again.
const REOPENED: u128 = 2;

/// One image in so many is used by a store, with all its threads, and closed. The others are only looked at.
const USED: u128 = 5;

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
pub(super) struct Crash {
    pub(super) recording: Arc<Recording>,
    /// How many of the record were done.
    pub(super) at: usize,
    pub(super) model: Model,
    pub(super) fates: Fates,
    /// The crash that the run began with.
    pub(super) before: Option<Arc<Crash>>,
}

/// Where in a record a crash may fall, and what it may take there.
struct Moment<'a> {
    recording: &'a Arc<Recording>,
    at: usize,
    model: Model,
    before: Option<&'a Arc<Crash>>,
    expected: Expected<'a>,
    /// The hash of what is expected.
    promise: u128,
}

impl Moment<'_> {
    fn crash(&self, fates: Fates) -> Crash {
        let (recording, before) = (self.recording.clone(), self.before.cloned());
        Crash { recording, at: self.at, model: self.model, fates, before }
    }
}

/// A crash that breaks an invariant.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) broken: Broken,
    pub(super) crash: Crash,
    pub(super) image: Image,
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
    over: AtomicBool,
    samples: Mutex<Vec<Image>>,
}

impl Search {
    pub(super) fn new(most: usize) -> Search {
        Search {
            only_promises: false,
            most,
            seen: Mutex::default(),
            opened: Mutex::default(),
            members: Mutex::default(),
            compound: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            violation: Mutex::default(),
            over: AtomicBool::new(false),
            samples: Mutex::default(),
        }
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
            // A promise is where most can break.
            let most = if last.is_none() { self.most * 4 } else { self.most };
            let most = if before.is_some() { most.div_ceil(4) } else { most };
            let moment = Moment { recording, at: place, model, before, expected, promise: hash };
            disk.images(last, most, &mut rng, &mut |image, fates| {
                self.look_at(image, fates, &moment);
                !self.is_over()
            });
            if self.is_over() {
                return;
            }
        }
    }

    fn look_at(&self, image: Image, fates: Fates, moment: &Moment<'_>) {
        let image_hash = image.hash();
        let is_new = self.is_new(image_hash, moment);
        // Otherwise the lock would be held during what follows.
        let known = self.opened.lock().get(&image_hash).cloned();
        let opened = match known {
            Some(opened) => opened,
            None if is_new => self.open_first(&image, image_hash, &fates, moment),
            // Somebody else is opening it.
            None => return,
        };
        let Err(broken) = check(&opened, &moment.expected) else { return };
        if !self.over.swap(true, Ordering::Relaxed) {
            *self.violation.lock() = Some(Violation::new(broken, moment.crash(fates), image, &moment.expected));
        }
    }

    /// Notes a state. False if it was met before.
    fn is_new(&self, image: u128, moment: &Moment<'_>) -> bool {
        let mut state = Hash128(image);
        state.add(&moment.promise.to_le_bytes());
        let bit = 1 << MODELS.iter().position(|other| *other == moment.model).unwrap_or_default();
        let mut seen = self.seen.lock();
        let models = seen.entry(state.0).or_insert(0);
        let is_new = *models == 0;
        *models |= bit;
        if is_new && moment.before.is_some() {
            self.compound.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// Opens an image that was not opened before, and of some crashes that, too.
    fn open_first(&self, image: &Image, hash: u128, fates: &Fates, moment: &Moment<'_>) -> Result<Opened, Broken> {
        let again = hash.is_multiple_of(COMPOUND) && moment.before.is_none() && !self.only_promises;
        let (opened, recovery) = self.open(image, hash, moment.recording.setting, again);
        self.opened.lock().insert(hash, opened.clone());
        if hash.is_multiple_of(SAMPLED) {
            self.samples.lock().push(image.clone());
        }
        if let Some(recovery) = recovery {
            let first = Arc::new(moment.crash(fates.clone()));
            self.crash_under(&Arc::new(recovery), moment.model, hash as u64, Some(&first));
        }
        opened
    }

    /// The same for equal members, so that they are kept once.
    fn once(&self, found: Members) -> Arc<Members> {
        let mut hash = Hash128::default();
        for (key, held) in &found {
            hash.add(key.as_bytes());
            held.add_to(&mut hash);
        }
        self.members.lock().entry(hash.0).or_insert_with(|| Arc::new(found)).clone()
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
        if !again && !hash.is_multiple_of(USED) {
            let opened =
                look(&sim, setting.layout).map(|members| Opened { members: self.once(members), numbers: None });
            return (opened, None);
        }
        if again {
            sim.record();
        }
        match go_on(&sim, image, hash, setting) {
            Ok((mut opened, recording)) => {
                opened.members = self.once(Members::clone(&opened.members));
                (Ok(opened), again.then_some(recording))
            }
            Err(broken) => (Err(broken), None),
        }
    }
}

/// When the store on an image is opened: mostly when nothing has expired, or when much has.
fn time_of(hash: u128) -> u64 {
    BEGIN + [0, 0, 0, 0, SOON, A_WHILE, LATE, 10 * LATE][(hash >> 26) as usize % 8]
}

/// What is done on every image before the store is closed: let what has expired go, perhaps be killed, put something
/// new, and perhaps delete something. A load of few collections is cheap, so the new one is mostly in one that may be
/// there.
pub(super) fn afterwards(hash: u128) -> Workload {
    let new = Act::Put(NEW[usize::from((hash >> 8).is_multiple_of(8))].into(), 16);
    let collection = ["a", "b", "many"][(hash >> 12) as usize % 3];
    let pass = Act::Pass([0, 0, 0, A_WHILE][(hash >> 29) as usize % 4]);
    let mut workload = match (hash >> 16) % 4 {
        0 => vec![pass, new, Act::Flush],
        1 => vec![pass, new, Act::Delete(format!("{collection}/1")), Act::Flush],
        2 => vec![pass, new, Act::Put(format!("{collection}/1"), 16), Act::Flush],
        _ => vec![pass, Act::DeleteAll(collection.into()), new, Act::Flush],
    };
    if (hash >> 33).is_multiple_of(8) {
        workload.insert(1, Act::Kill((hash >> 40) as usize % 24, None));
    }
    workload
}

/// No workload puts these.
const NEW: [&str; 2] = ["a/new", "new/new"];

pub(super) fn go_on(sim: &Sim, image: &Image, hash: u128, setting: Setting) -> Result<(Opened, Recording), Broken> {
    // What is packed is compacted in some.
    let settle = setting.layout == Layout::Packed && hash >> 23 & 7 == 0;
    let setting = Setting { immediate: hash >> 20 & 7 == 0, settle, ..setting };
    // What has expired, a look finds all the same.
    let members = look(&Sim::new(image, HOME, setting.sync_fs), setting.layout)?;
    let start = Start { image: image.clone(), members, numbers: 0, time: time_of(hash) };
    let history = live(sim, setting, &start, afterwards(hash))?;
    let log = sim.take_log();
    let closed = history.after(history.workload.len());
    let after = numbers(&sim.image());
    if hash.is_multiple_of(REOPENED) {
        // By a clock that was set back.
        let (_again, members) = open(&sim.next_process(), setting, &clock_at(BEGIN))?;
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

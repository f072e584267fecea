//! larder with [`Layout::Packed`], at two sizes: filling it, overwriting it, compacting it, and opening what is left.
//!
//! Each step has a process of its own, for which the program calls itself: what one has freed and not given back is
//! neither memory of the next nor memory that it gets for less.
//!
//! A packed store compacts itself when it is mostly garbage, so a writer is never sure to be alone. How long the thread
//! that compacts has run is looked at from outside, in `/proc`.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder::{Layout, Store};

use crate::input::{self, COLLECTIONS, KEY, Random, VALUE};
use crate::measure::Samples;
use crate::{Config, Result, child, machine, settle};

pub(crate) const NAME: &str = "packed";

/// The larger size takes part in so many rounds.
const ROUNDS_OF_THE_LARGER: usize = 1;

/// As its thread is called.
const COMPACTOR: &str = "larder-compact";

/// A compactor that does nothing for so long has nothing to do.
const REST: Duration = Duration::from_millis(500);

/// For it to come to rest.
const PATIENCE: Duration = Duration::from_secs(600);

/// Overwriting counts in pieces of this length, in each of which the compactor did nothing.
const PIECE: Duration = Duration::from_millis(50);

/// Looking for such pieces is given up after so many times the time that they are to make.
const TRIES: u32 = 10;

// What writes a value is told in it, so that whoever reads it knows whether it may still be there.
const PUT: u64 = 0;
const OVERWRITTEN: RangeInclusive<u64> = 1..=2;
const BESIDE: u64 = 3;
const ALONE: u64 = 4;

/// Of one size, of each round. Times are in seconds unless it says otherwise.
#[derive(Default)]
struct Figures {
    put: Samples,
    durable: Samples,
    closed: Samples,
    load: Samples,
    cold: Samples,
    backup: Samples,
    /// In milliseconds, of overwriting without a compaction and beside one.
    longest_alone: Samples,
    longest_beside: Samples,
    /// Overwriting without a compaction, as long as there was of it, and the puts per second.
    alone: Samples,
    rate: Samples,
    /// Puts while it was compacted.
    meanwhile: Samples,
    /// How long the compaction took, beside a writer and by itself.
    compaction_beside: Samples,
    compaction: Samples,
    disk: [Disk; 4],
    /// In bytes per member.
    resident: Samples,
    peak: Samples,
}

/// What the store takes of the disk.
#[derive(Default)]
struct Disk {
    megabytes: Samples,
    /// To the bytes of keys and values.
    ratio: Samples,
}

impl Disk {
    const WHEN: [&str; 4] = [
        "closed after the puts",
        "everything overwritten twice, and durable",
        "the same, at rest: it has compacted what it wanted to",
        "after `compact`",
    ];
}

pub(crate) fn run(config: &Config) -> Result<()> {
    let sizes = &config.size.packed[..config.size.sizes.min(2)];
    let mut figures: [Figures; 2] = Default::default();
    for round in 0..config.size.rounds {
        for (which, (&members, figures)) in sizes.iter().zip(&mut figures).enumerate() {
            if which == 0 || round < ROUNDS_OF_THE_LARGER {
                one(config, round, members, figures)?;
            }
        }
    }
    println!("\n## packed\n");
    println!(
        "larder with `Layout::Packed`, in default durability: {sizes:?} members in {COLLECTIONS} collections, keys of \
         {KEY} bytes, values of {VALUE}, from one thread. The larger size runs once."
    );
    let of_each = || sizes.iter().zip(&figures);

    println!("\nSeconds, but for the puts:\n");
    println!(
        "| members | puts per second | the puts returned | all was durable | durable and closed | opened, warm | cold | \
         backup |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (&members, Figures { put, durable, closed, load, cold, backup, .. }) in of_each() {
        let rate = put.per(members);
        println!(
            "| {members} | {rate} | {put:.2} | {durable:.2} | {closed:.2} | {load:.2} | {cold:.2} | {backup:.2} |"
        );
    }

    println!("\nOne thread overwrites members at random, as fast as it can:\n");
    println!(
        "| members | longest put without a compaction, ms | in so many seconds | puts per second | longest put beside one, \
         ms | puts meanwhile | that compaction took, s | one without a writer, s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (members, figures) in of_each() {
        let Figures { longest_alone, alone, rate, longest_beside, meanwhile, .. } = figures;
        let Figures { compaction_beside, compaction, .. } = figures;
        println!(
            "| {members} | {longest_alone:.2} | {alone:.1} | {rate} | {longest_beside:.2} | {meanwhile} | \
             {compaction_beside:.2} | {compaction:.2} |"
        );
    }

    println!("\n| members | on the disk | MB | to keys and values |");
    println!("| --- | --- | --- | --- |");
    for (members, figures) in of_each() {
        for (when, Disk { megabytes, ratio }) in Disk::WHEN.iter().zip(&figures.disk) {
            println!("| {members} | {when} | {megabytes:.1} | {ratio:.2} |");
        }
    }

    println!("\nOf the whole process, bytes per member:\n");
    println!("| members | resident after the puts | the most until the end of the compaction beside a writer |");
    println!("| --- | --- | --- |");
    for (members, Figures { resident, peak, .. }) in of_each() {
        println!("| {members} | {resident:.0} | {peak:.0} |");
    }
    println!(
        "\nWithout a compaction: {:?} of overwriting, made of pieces of {PIECE:?} in which the thread that compacts did \
         not run; less if there were not enough of them in {TRIES} times as long.",
        config.size.run
    );
    Ok(())
}

fn one(config: &Config, round: usize, members: usize, figures: &mut Figures) -> Result<()> {
    let dir = config.temporary()?;
    let mut disk = Vec::new();

    let [put, durable, closed, resident] = Step::Put.run(config, round, members, dir.path())?;
    figures.put.push(put);
    figures.durable.push(durable);
    figures.closed.push(closed);
    push(&mut figures.resident, resident / members as f64);
    disk.push(machine::taken(&store_in(dir.path()))? as f64);

    let [overwritten, at_rest, compacted, times @ ..]: [f64; 11] =
        Step::Overwrite.run(config, round, members, dir.path())?;
    disk.extend([overwritten, at_rest, compacted]);
    let [longest_alone, alone, rate, longest_beside, meanwhile, compaction_beside, compaction, peak] = times;
    push(&mut figures.longest_alone, longest_alone * 1e3);
    push(&mut figures.alone, alone);
    push(&mut figures.rate, rate);
    figures.longest_beside.push(longest_beside * 1e3);
    figures.meanwhile.push(meanwhile);
    figures.compaction_beside.push(compaction_beside);
    figures.compaction.push(compaction);
    push(&mut figures.peak, peak / members as f64);

    let [load, backup] = Step::Load.run(config, round, members, dir.path())?;
    figures.load.push(load);
    figures.backup.push(backup);
    let [cold] = Step::Cold.run(config, round, members, dir.path())?;
    push(&mut figures.cold, cold);

    for (figure, bytes) in figures.disk.iter_mut().zip(disk) {
        push(&mut figure.megabytes, bytes / 1e6);
        push(&mut figure.ratio, bytes / (members * (KEY + VALUE)) as f64);
    }
    Ok(dir.close()?)
}

/// What could not be found out is left away.
fn push(samples: &mut Samples, sample: f64) {
    if !sample.is_nan() {
        samples.push(sample);
    }
}

// ---- in a process of its own ----

/// What is done in one.
#[derive(Clone, Copy)]
enum Step {
    Put,
    Overwrite,
    Load,
    Cold,
}

impl Step {
    const ALL: [Step; 4] = [Step::Put, Step::Overwrite, Step::Load, Step::Cold];

    fn name(self) -> &'static str {
        match self {
            Step::Put => "put",
            Step::Overwrite => "overwrite and compact",
            Step::Load => "load and back up",
            Step::Cold => "load, cold",
        }
    }

    /// Has another process do it, and returns its figures.
    fn run<const N: usize>(self, config: &Config, round: usize, members: usize, dir: &Path) -> Result<[f64; N]> {
        let name = self.name();
        progress!(config, round, "packed, {members} members: {name}");
        settle(config)?;
        let run = config.size.run.as_millis().to_string();
        let path = dir.to_str().ok_or("the directory has no plain name")?;
        child::exactly(NAME, &[name, &members.to_string(), &run, path])
    }
}

/// Does the step that is asked for, in a process of its own.
pub(crate) fn part(what: &[String]) -> Result<Vec<f64>> {
    let [name, members, run, dir] = what else { return Err("a step wants its name and three more".into()) };
    let (members, dir) = (members.parse()?, PathBuf::from(dir));
    let step = Step::ALL.into_iter().find(|step| step.name() == name).ok_or("there is no such step")?;
    Ok(match step {
        Step::Put => put_all(&dir, members)?,
        Step::Overwrite => overwrite_and_compact(&dir, members, Duration::from_millis(run.parse()?))?,
        Step::Load => {
            let (store, load) = load(&dir, members)?;
            let began = Instant::now();
            let report = store.backup(dir.join("copy"))?;
            let backup = began.elapsed().as_secs_f64();
            if report.members != members {
                return Err(format!("{} members of {members} were copied", report.members).into());
            }
            store.close()?;
            vec![load, backup]
        }
        Step::Cold if machine::drop_cache() => {
            let (store, load) = load(&dir, members)?;
            store.close()?;
            vec![load]
        }
        Step::Cold => vec![f64::NAN],
    })
}

fn store_in(dir: &Path) -> PathBuf {
    dir.join("store")
}

fn put_all(dir: &Path, members: usize) -> Result<Vec<f64>> {
    let store = Store::options(store_in(dir)).layout(Layout::Packed).open()?;
    let began = Instant::now();
    put_each(&store, members, PUT)?;
    let put = began.elapsed().as_secs_f64();
    store.flush()?;
    let durable = began.elapsed().as_secs_f64();
    let resident = machine::memory("VmRSS");
    let began = Instant::now();
    store.close()?;
    Ok(vec![put, durable, durable + began.elapsed().as_secs_f64(), resident])
}

fn overwrite_and_compact(dir: &Path, members: usize, run: Duration) -> Result<Vec<f64>> {
    let path = store_in(dir);
    let store = Store::open(&path)?;
    check(&store, members, PUT..=PUT)?;
    for pass in OVERWRITTEN {
        put_each(&store, members, pass)?;
    }
    store.flush()?;
    let overwritten = machine::taken(&path)? as f64;
    let at_rest = if comes_to_rest()? { machine::taken(&path)? as f64 } else { f64::NAN };

    let mut random = Random::new(11);
    let (compacted, beside) = std::thread::scope(|scope| {
        let compaction = scope.spawn(|| {
            let began = Instant::now();
            store.compact().map(|()| began.elapsed())
        });
        let beside = overwrite(&store, members, &mut random, BESIDE, |_| !compaction.is_finished());
        (compaction.join().expect("the compacting thread panicked"), beside)
    });
    let (compaction_beside, beside) = (compacted?.as_secs_f64(), beside?);
    let peak = machine::memory("VmHWM");

    // What was overwritten meanwhile is garbage again.
    store.flush()?;
    comes_to_rest()?;
    let began = Instant::now();
    store.compact()?;
    let compaction = began.elapsed().as_secs_f64();
    let compacted = machine::taken(&path)? as f64;

    let alone = overwrite_alone(&store, members, &mut random, run)?;
    // So that it is found compacted.
    store.compact()?;
    store.close()?;
    let alone = match alone {
        Overwritten { took: Duration::ZERO, .. } => [f64::NAN; 3],
        Overwritten { longest, puts, took } => {
            [longest.as_secs_f64(), took.as_secs_f64(), puts as f64 / took.as_secs_f64()]
        }
    };
    let longest_beside = beside.longest.as_secs_f64();
    let disk = [overwritten, at_rest, compacted];
    let beside = [longest_beside, beside.puts as f64, compaction_beside, compaction, peak];
    Ok([&disk[..], &alone, &beside].concat())
}

/// Opens the store, and looks whether it has what it should. In seconds, without the looking.
fn load(dir: &Path, members: usize) -> Result<(Store, f64)> {
    let began = Instant::now();
    let store = Store::open(store_in(dir))?;
    let load = began.elapsed().as_secs_f64();
    check(&store, members, *OVERWRITTEN.end()..=ALONE)?;
    Ok((store, load))
}

/// All members are there, and of a hundred the value, as one of these passes wrote it.
fn check(store: &Store, members: usize, passes: RangeInclusive<u64>) -> Result<()> {
    let found = store.load_report();
    if found.members != members || !found.quarantined.is_empty() {
        return Err(format!("{} members of {members}, {} damaged", found.members, found.quarantined.len()).into());
    }
    let mut key = String::with_capacity(KEY);
    for member in (0..members).step_by((members / 100).max(1)) {
        input::set_key(&mut key, member);
        let value = store.get(&key)?.ok_or_else(|| format!("{key} is lost"))?;
        if !passes.clone().any(|pass| value[..] == written(member, pass)) {
            return Err(format!("{key} has a value that was not the last").into());
        }
    }
    Ok(())
}

// ---- writing ----

/// The value that a member gets in a pass.
fn written(member: usize, pass: u64) -> [u8; VALUE] {
    input::value(member as u64 | pass << 48)
}

/// Puts all members, one after the other. They are made on the way: held, they would count as memory.
fn put_each(store: &Store, members: usize, pass: u64) -> Result<()> {
    let mut key = String::with_capacity(KEY);
    for member in 0..members {
        input::set_key(&mut key, member);
        store.put(&key, written(member, pass))?;
    }
    Ok(())
}

#[derive(Default)]
struct Overwritten {
    longest: Duration,
    puts: u64,
    took: Duration,
}

/// Overwrites members at random, while there are to be `more`, which is told the time.
fn overwrite(
    store: &Store,
    members: usize,
    random: &mut Random,
    pass: u64,
    more: impl Fn(Instant) -> bool,
) -> Result<Overwritten> {
    let mut key = String::with_capacity(KEY);
    let (mut longest, mut puts, first) = (Duration::ZERO, 0, Instant::now());
    loop {
        let member = random.below(members);
        input::set_key(&mut key, member);
        let value = written(member, pass);
        let began = Instant::now();
        store.put(&key, value)?;
        let ended = Instant::now();
        longest = longest.max(ended - began);
        puts += 1;
        if !more(ended) {
            return Ok(Overwritten { longest, puts, took: ended - first });
        }
    }
}

/// The same for as long as `run`, of which only that counts in which nothing was compacted.
fn overwrite_alone(store: &Store, members: usize, random: &mut Random, run: Duration) -> Result<Overwritten> {
    let (mut alone, first) = (Overwritten::default(), Instant::now());
    let mut before = compactor();
    while alone.took < run && first.elapsed() < run * TRIES {
        let end = Instant::now() + PIECE;
        let piece = overwrite(store, members, random, ALONE, |now| now < end)?;
        let now = compactor();
        if did_nothing(before, now) {
            alone.longest = alone.longest.max(piece.longest);
            alone.puts += piece.puts;
            alone.took += piece.took;
        }
        before = now;
    }
    Ok(alone)
}

// ---- the compactor, seen from outside ----

/// What its thread did so far.
#[derive(Clone, Copy, PartialEq)]
struct Activity {
    /// How long it ran, in nanoseconds.
    ran: u64,
    /// It waits, and not for the disk.
    sleeps: bool,
}

/// Of this process's compactor, which is no thread before it has something to do. `None` where the system does not
/// tell.
fn compactor() -> Option<Activity> {
    for thread in fs::read_dir("/proc/self/task").ok()? {
        let thread = thread.ok()?.path();
        // Others may end while they are looked at.
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        if name.trim_end() == COMPACTOR {
            let ran = fs::read_to_string(thread.join("schedstat")).ok()?;
            let ran = ran.split_whitespace().next()?.parse().ok()?;
            let stat = fs::read_to_string(thread.join("stat")).ok()?;
            let sleeps = stat.rsplit_once(')')?.1.trim_start().starts_with('S');
            return Some(Activity { ran, sleeps });
        }
    }
    Some(Activity { ran: 0, sleeps: true })
}

fn did_nothing(before: Option<Activity>, after: Option<Activity>) -> bool {
    before == after && after.is_some_and(|activity| activity.sleeps)
}

/// Waits until it has nothing to do. False where that cannot be told.
fn comes_to_rest() -> Result<bool> {
    let first = Instant::now();
    while let before @ Some(_) = compactor() {
        sleep(REST);
        if did_nothing(before, compactor()) {
            return Ok(true);
        }
        if first.elapsed() > PATIENCE {
            return Err("the store does not cease to compact itself".into());
        }
    }
    Ok(false)
}

//! From a put to durable, in larder's default mode.
//!
//! A store does not tell when a put became durable. It tells how many bytes are not: names and values, which are all of the
//! same size here. All members are new, so each put counts once, and they become durable in the order in which they came. So when
//! `n` puts have returned and `stats` says then that `m` are not durable, the first `n - m` are. Whoever looks often
//! knows when each of them became so, and errs on the late side, by the time between two looks.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder::{Durability, Store};

use crate::input::{self, COLLECTIONS, MEMBER, Random, VALUE};
use crate::measure::{Distribution, Samples};
use crate::peers::floor::{Floor, RECORD};
use crate::{Config, Result, settle};

/// The default.
const INTERVAL: Durability = Durability::Interval(Duration::from_millis(100));

/// What a member counts among the bytes that are not durable.
const UNIT: usize = MEMBER + VALUE;

/// Between two puts of the light load there are so many microseconds, at random.
const PAUSE: std::ops::Range<u64> = 2_000..12_000;

/// Between two looks at a store that has little to do, and at one that has much.
const OFTEN: Duration = Duration::from_micros(100);
const SELDOM: Duration = Duration::from_millis(1);

/// For what was put to become durable.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Figures {
    light: Distribution,
    burst: Distribution,
    /// The same in `Buffered` mode: until it is handed to the system.
    light_handed: Distribution,
    burst_handed: Distribution,
    /// At each look at the burst: the age of the oldest put that was not durable, and what `stats` said it was.
    burst_oldest: Distribution,
    burst_says: Distribution,
    full_says: Distribution,
    /// Puts per second at full load.
    full_rate: Samples,
    floor: Distribution,
}

pub(crate) fn run(config: &Config) -> Result<()> {
    let mut figures = Figures::default();
    for round in 0..config.size.rounds {
        progress!(config, round, "latency, light load");
        figures.light.push(light(config, INTERVAL)?);
        figures.light_handed.push(light(config, Durability::Buffered)?);
        progress!(config, round, "latency, burst");
        let seen = burst(config, INTERVAL)?;
        figures.burst.push(seen.to_durable);
        figures.burst_oldest.push(seen.oldest);
        figures.burst_says.push(seen.says);
        figures.burst_handed.push(burst(config, Durability::Buffered)?.to_durable);
        progress!(config, round, "latency, full load");
        full(config, &mut figures)?;
        progress!(config, round, "latency, floor");
        floor(config, &mut figures)?;
    }
    let Config { size, .. } = config;
    let Figures { light, burst, light_handed, burst_handed, burst_oldest, burst_says, full_says, full_rate, floor } =
        figures;
    println!("\n## latency\n");
    println!("larder in default mode, `Durability::Interval` of 100 ms; milliseconds.\n");
    println!("| load | what | {} |", Distribution::COLUMNS);
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    println!("| light | put to durable | {light:.1} |");
    println!("| burst | put to durable | {burst:.1} |");
    println!("| burst | age of the oldest put not durable | {burst_oldest:.1} |");
    println!("| burst | the same, as `stats().oldest_dirty` says | {burst_says:.1} |");
    println!("| light | put to handed to the system, `Durability::Buffered` | {light_handed:.1} |");
    println!("| burst | the same | {burst_handed:.1} |");
    println!("| full | `stats().oldest_dirty` | {full_says:.1} |");
    println!("| floor | append and `fdatasync` | {floor:.3} |");
    println!(
        "\nLight: a new member every 7 ms, 2 to 12 at random, for {:?}. Burst: {} new members, as fast as one thread puts \
         them; looked at every millisecond until all are durable. Full: one thread overwrites {} members at random, as \
         fast as it can, for {:?}, {full_rate:.0} puts per second; looked at every millisecond. Floor: {} times.",
        size.load, size.burst, size.hot, size.load, size.syncs
    );
    println!(
        "\nThe goal: a p99 of the light load below the interval and three times the p99 of the floor. What is looked at \
         is seen late, by up to the time between two looks. What `oldest_dirty` says is worth as much as the two rows of \
         the burst agree."
    );
    Ok(())
}

/// A store with its collections' directories, and all of it durable.
fn store(path: &Path, durability: Durability) -> Result<Store> {
    let store = Store::options(path.join("store")).durability(durability).open()?;
    for collection in 0..COLLECTIONS {
        store.put(format!("coll{collection:02}/first"), [0; VALUE])?;
    }
    store.flush()?;
    Ok(store)
}

fn put(store: &Store, key: &mut String, member: usize, seed: u64) -> Result<()> {
    input::set_key(key, member);
    store.put(&*key, input::value(seed))?;
    Ok(())
}

fn light(config: &Config, durability: Durability) -> Result<Vec<Duration>> {
    let dir = config.temporary()?;
    let store = store(dir.path(), durability)?;
    settle(config)?;
    let watched = Watched::new(&store, usize::MAX);
    let seen = std::thread::scope(|scope| -> Result<Seen> {
        let seen = scope.spawn(|| watched.watch(OFTEN));
        let ended = watched.put_all(|random| {
            sleep(Duration::from_micros(PAUSE.start + random.next() % (PAUSE.end - PAUSE.start)));
            watched.epoch.elapsed() < config.size.load
        });
        let seen = seen.join().expect("the watching thread panicked");
        ended?;
        seen
    })?;
    store.close()?;
    dir.close()?;
    Ok(seen.to_durable)
}

fn burst(config: &Config, durability: Durability) -> Result<Seen> {
    let dir = config.temporary()?;
    let store = store(dir.path(), durability)?;
    settle(config)?;
    let watched = Watched::new(&store, config.size.burst);
    let seen = std::thread::scope(|scope| -> Result<Seen> {
        let seen = scope.spawn(|| watched.watch(SELDOM));
        let ended = watched.put_all(|_| true);
        let seen = seen.join().expect("the watching thread panicked");
        ended?;
        seen
    })?;
    store.close()?;
    dir.close()?;
    Ok(seen)
}

/// A store while new members are put into it.
struct Watched<'a> {
    store: &'a Store,
    epoch: Instant,
    /// When each put began, in nanoseconds since then.
    began: Vec<AtomicU64>,
    /// Puts that have returned.
    returned: AtomicUsize,
    /// There will be no more.
    ended: AtomicBool,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    to_durable: Vec<Duration>,
    oldest: Vec<Duration>,
    says: Vec<Duration>,
}

impl<'a> Watched<'a> {
    /// For `most` puts, or for as many as can come in the time of a light load.
    fn new(store: &'a Store, most: usize) -> Watched<'a> {
        let began = std::iter::repeat_with(AtomicU64::default).take(most.min(1 << 20)).collect();
        let (returned, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        Watched { store, epoch: Instant::now(), began, returned, ended }
    }

    /// Puts one member after the other, while `more` and as long as there is room.
    fn put_all(&self, mut more: impl FnMut(&mut Random) -> bool) -> Result<()> {
        let mut random = Random::new(7);
        let mut key = String::with_capacity(input::KEY);
        let mut outcome = Ok(());
        for (member, began) in self.began.iter().enumerate() {
            if !more(&mut random) {
                break;
            }
            began.store(self.epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
            outcome = put(self.store, &mut key, member, member as u64);
            if outcome.is_err() {
                break;
            }
            self.returned.store(member + 1, Ordering::Release);
        }
        self.ended.store(true, Ordering::Release);
        outcome
    }

    /// Looks at the store now and then, until all puts are durable.
    fn watch(&self, pause: Duration) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut last_moved = Instant::now();
        loop {
            // In this order: what is put in between counts as not durable, and nothing as durable that is not.
            let ended = self.ended.load(Ordering::Acquire);
            let returned = self.returned.load(Ordering::Acquire);
            let stats = self.store.stats();
            let now = self.epoch.elapsed();
            if !stats.unsaved_bytes.is_multiple_of(UNIT) {
                return Err(format!("{} bytes are not {UNIT} for each member", stats.unsaved_bytes).into());
            }
            let durable = returned.saturating_sub(stats.unsaved_bytes / UNIT);
            let since = |put: &AtomicU64| now.saturating_sub(Duration::from_nanos(put.load(Ordering::Relaxed)));
            let before = seen.to_durable.len();
            if durable > before {
                seen.to_durable.extend(self.began[before..durable].iter().map(since));
                last_moved = Instant::now();
            }
            let durable = seen.to_durable.len();
            if durable < returned {
                seen.oldest.push(since(&self.began[durable]));
                seen.says.push(stats.oldest_dirty.unwrap_or_default());
            } else if ended {
                return Ok(seen);
            }
            if last_moved.elapsed() > PATIENCE {
                return Err(format!("{} of {returned} puts do not become durable", returned - durable).into());
            }
            sleep(pause);
        }
    }
}

fn full(config: &Config, figures: &mut Figures) -> Result<()> {
    let dir = config.temporary()?;
    let store = store(dir.path(), INTERVAL)?;
    let mut key = String::with_capacity(input::KEY);
    for member in 0..config.size.hot {
        put(&store, &mut key, member, member as u64)?;
    }
    store.flush()?;
    settle(config)?;

    let ended = AtomicBool::new(false);
    let (puts, says) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut key = String::with_capacity(input::KEY);
            let mut random = Random::new(11);
            let (mut puts, mut outcome, began) = (0_u32, Ok(()), Instant::now());
            while outcome.is_ok() && began.elapsed() < config.size.load {
                outcome = put(&store, &mut key, random.below(config.size.hot), random.next());
                puts += 1;
            }
            ended.store(true, Ordering::Release);
            outcome.map(|()| puts)
        });
        let mut says = Vec::new();
        while !ended.load(Ordering::Acquire) {
            says.push(store.stats().oldest_dirty.unwrap_or_default());
            sleep(SELDOM);
        }
        (writer.join().expect("the writing thread panicked"), says)
    });
    figures.full_rate.push(f64::from(puts?) / config.size.load.as_secs_f64());
    figures.full_says.push(says);
    store.close()?;
    Ok(dir.close()?)
}

fn floor(config: &Config, figures: &mut Figures) -> Result<()> {
    let dir = config.temporary()?;
    let floor = Floor::open(dir.path())?;
    settle(config)?;
    let mut times = Vec::with_capacity(config.size.syncs);
    for _ in 0..config.size.syncs {
        let began = Instant::now();
        floor.append_durably(&[b'.'; RECORD])?;
        times.push(began.elapsed());
    }
    figures.floor.push(times);
    Ok(dir.close()?)
}

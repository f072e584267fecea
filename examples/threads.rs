//! A store shared between threads while it is being written: four that write, two that read, one that walks all of it
//! again and again, and one that clears. Nobody locks anything, and everybody checks what they see:
//!
//! - a value is whole and belongs to its key, and whoever reads a member twice never sees it go back;
//! - a walk meets no member twice;
//! - every member that was ever new is counted once: deleted, cleared, or there in the end;
//! - what is there in the end is there after closing and opening again.
//!
//! ```text
//! cargo run --release --example threads
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder::{Collection, Store};
use serde::{Deserialize, Serialize};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Where the last measurement of each sensor is kept, and where events come and are cleared away.
const SENSORS: &str = "sensor";
const EVENTS: &str = "event";

const WRITERS: usize = 4;
const SENSORS_EACH: usize = 250;
const RUN: Duration = Duration::from_millis(1500);

/// A value that tells whether it is whole: who it belongs to, the number of the write, and a sum over both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Reading {
    sensor: String,
    number: u64,
    sum: u64,
}

impl Reading {
    fn new(sensor: &str, number: u64) -> Reading {
        Reading { sensor: sensor.to_owned(), number, sum: sum(sensor, number) }
    }

    fn check(&self, sensor: &str) -> Result<()> {
        if self.sensor != sensor || self.sum != sum(&self.sensor, self.number) {
            return Err(format!("{sensor} holds {self:?}").into());
        }
        Ok(())
    }
}

fn sum(sensor: &str, number: u64) -> u64 {
    sensor.bytes().fold(number, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

/// What all threads count together.
#[derive(Default)]
struct Counts {
    puts: AtomicUsize,
    gets: AtomicUsize,
    walked: AtomicUsize,
    /// Events that were put where there was none.
    new_events: AtomicUsize,
    deleted_events: AtomicUsize,
    cleared_events: AtomicUsize,
}

fn add(count: &AtomicUsize, how_many: usize) {
    count.fetch_add(how_many, Ordering::Relaxed);
}

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("readings");
    let store = Store::open(&path)?;
    let (counts, stop) = (Counts::default(), AtomicBool::new(false));

    println!("before: {:?}", store.stats());
    let started = Instant::now();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for writer in 0..WRITERS {
            // A handle is cheap to clone; the store lives as long as the last one.
            let store = store.clone();
            let (counts, stop) = (&counts, &stop);
            threads.push(scope.spawn(move || write(&store, writer, counts, stop)));
        }
        for _ in 0..2 {
            threads.push(scope.spawn(|| read(&store, &counts, &stop)));
        }
        threads.push(scope.spawn(|| walk(&store, &counts, &stop)));
        threads.push(scope.spawn(|| clear(&store, &counts, &stop)));

        thread::sleep(RUN);
        println!("amidst: {:?}", store.stats());
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
    })?;
    let ran = started.elapsed();
    println!("after:  {:?}", store.stats());

    // Every write that returned is in RAM; when flush returns, no crash loses one of them.
    let started = Instant::now();
    store.flush()?;
    println!("flushed in {:.0?}: {:?}", started.elapsed(), store.stats());

    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "in {ran:.1?}: {} puts, {} gets, {} members walked past",
        count(&counts.puts),
        count(&counts.gets),
        count(&counts.walked)
    );
    let left = store.len(EVENTS)?;
    let (new, deleted, cleared) =
        (count(&counts.new_events), count(&counts.deleted_events), count(&counts.cleared_events));
    println!("{new} new events: {deleted} deleted, {cleared} cleared, {left} left");
    if new != deleted + cleared + left || store.len(SENSORS)? != WRITERS * SENSORS_EACH {
        return Err("the counts do not add up".into());
    }

    let sensors = last_readings(&store.collection(SENSORS)?)?;
    let report = store.close()?;
    println!("closed in {:.0?}: {} members, {} changes to store", report.elapsed, report.members, report.flushed);

    let store = Store::open(&path)?;
    if last_readings(&store.collection(SENSORS)?)? != sensors || store.len(EVENTS)? != left {
        return Err("it is not what it was".into());
    }
    println!("opened again: all {} members are there", store.load_report().members);
    Ok(())
}

/// Writes its own sensors round and round, typed; and beside them events, by key in bytes, which others clear away.
fn write(store: &Store, writer: usize, counts: &Counts, stop: &AtomicBool) -> Result<()> {
    let sensors: Collection<Reading> = store.collection(SENSORS)?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        for sensor in 0..SENSORS_EACH {
            let sensor = format!("{writer}-{sensor}");
            let old = sensors.put(&sensor, Reading::new(&sensor, number))?;
            // Nobody else writes it, so what was there is what this thread put there.
            if old.map_or(0, |old| old.number) != number - 1 {
                return Err(format!("{sensor} was not at its last reading").into());
            }
        }
        let event = format!("{EVENTS}/{writer}-{}", number % 100);
        let new = store.put(&event, format!("reading {number} of all sensors is done"))?.is_none();
        add(&counts.new_events, usize::from(new));
        if number % 3 == 0 {
            add(&counts.deleted_events, usize::from(store.delete(&event)?.is_some()));
        }
        add(&counts.puts, SENSORS_EACH + 1);
    }
    Ok(())
}

/// Reads sensors here and there.
fn read(store: &Store, counts: &Counts, stop: &AtomicBool) -> Result<()> {
    let sensors: Collection<Reading> = store.collection(SENSORS)?;
    let mut seen = BTreeMap::<String, u64>::new();
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        at = (at + 7919) % (WRITERS * SENSORS_EACH);
        let sensor = format!("{}-{}", at % WRITERS, at / WRITERS);
        add(&counts.gets, 1);
        let Some(reading) = sensors.get(&sensor) else { continue };
        reading.check(&sensor)?;
        let last = seen.entry(sensor).or_default();
        if reading.number < *last {
            return Err(format!("{reading:?} came after number {last}").into());
        }
        *last = reading.number;
    }
    Ok(())
}

/// Walks over all sensors while they are being written.
fn walk(store: &Store, counts: &Counts, stop: &AtomicBool) -> Result<()> {
    let sensors: Collection<Reading> = store.collection(SENSORS)?;
    while !stop.load(Ordering::Relaxed) {
        let mut met = BTreeSet::new();
        let there_before = sensors.len();
        for (sensor, reading) in sensors.iter() {
            reading.check(&sensor)?;
            if !met.insert(sensor) {
                return Err("a walk met a sensor twice".into());
            }
        }
        // None of them is ever deleted.
        if met.len() < there_before {
            return Err(format!("a walk met {} of {there_before} sensors", met.len()).into());
        }
        add(&counts.walked, met.len());
    }
    Ok(())
}

/// Clears the events now and then. A put that races it is wholly before it, and counted here, or wholly after.
fn clear(store: &Store, counts: &Counts, stop: &AtomicBool) -> Result<()> {
    loop {
        thread::sleep(Duration::from_millis(20));
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        add(&counts.cleared_events, store.delete_all(EVENTS)?);
    }
}

fn last_readings(sensors: &Collection<Reading>) -> Result<BTreeMap<String, u64>> {
    let mut readings = BTreeMap::new();
    for (sensor, reading) in sensors.get_all() {
        reading.check(&sensor)?;
        readings.insert(String::from(sensor), reading.number);
    }
    Ok(readings)
}

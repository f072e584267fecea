//! The longest put while one collection grows: what a table that doubles costs the one who is there when it does.

use std::time::{Duration, Instant};

use crate::child;
use crate::input::Ops;
use crate::maps::{self, LOOP, MapContender};
use crate::measure::{Samples, Table, turns};
use crate::{Config, Result};

pub(crate) const NAME: &str = "longest";

const FIGURES: [&str; 5] =
    ["longest, ms", "of which on the processor, at most, ms", "p99.99, µs", "p50, µs", "puts per second"];

/// After so many puts the processor time that the thread has had is looked at.
const BETWEEN: usize = 64;

/// Of a put that takes longer than this it is looked at as well.
const LONG: Duration = Duration::from_micros(500);

pub(crate) fn run(config: &Config) -> Result<()> {
    let contenders: Vec<&MapContender> = maps::ALL.iter().filter(|map| map.name != LOOP).collect();
    let members = config.size.grown;
    let mut figures = FIGURES.map(|_| vec![Samples::default(); contenders.len()]);
    for round in 0..config.size.rounds {
        for which in turns(round, contenders.len()) {
            let name = contenders[which].name;
            let dir = config.temporary()?;
            let path = dir.path().to_str().ok_or("the directory has no plain name")?;
            let seen: [f64; FIGURES.len()] = child::exactly(NAME, &[name, &members.to_string(), path])?;
            for (samples, seen) in figures.iter_mut().zip(seen) {
                samples[which].push(seen);
            }
            dir.close()?;
            progress!(config, round, "longest put, {name}: {:.2} ms", seen[0]);
        }
    }
    println!("\n## longest\n");
    println!(
        "One collection grows from nothing to {members} members, put by one thread; each contender in a process of its \
         own. The time of a put is that of the call, and {:.0} ns for the two looks at the clock. \"On the processor\" is the most \
         that any put had of it, and the puts before it since the last look, {BETWEEN} at most: what is beyond that the thread \
         was stopped, or waited.",
        looks()
    );
    let mut table = Table::new("", contenders.iter().map(|map| map.name));
    for (what, samples) in FIGURES.iter().zip(figures) {
        table.row(*what, samples);
    }
    table.turned("").print(2);
    println!("\nThe goal for larder: 5 ms with 10 million members.");
    Ok(())
}

/// Between two of them, in nanoseconds.
fn looks() -> f64 {
    const LOOKS: u32 = 100_000;
    let began = Instant::now();
    for _ in 0..LOOKS {
        std::hint::black_box(Instant::now());
    }
    began.elapsed().as_nanos() as f64 / f64::from(LOOKS)
}

/// In a process of its own.
pub(crate) fn part(args: &[String]) -> Result<Vec<f64>> {
    let [name, members, dir] = args else { return Err("a map, a number and a directory are wanted".into()) };
    let members: usize = members.parse()?;
    let map = (maps::named(name)?.new)(dir.as_ref())?;
    let ops = Ops::of_collection(0, members);
    let mut times: Vec<u64> = Vec::with_capacity(members);
    let (mut had, mut longest) = (processor_time(), Duration::ZERO);
    let first = Instant::now();
    for at in 0..members {
        if at % BETWEEN == 0 {
            had = processor_time();
        }
        let began = Instant::now();
        let failed = map.put(ops.key(at));
        let took = began.elapsed();
        if failed != 0 {
            return Err("a put failed".into());
        }
        if took > LONG {
            let has = processor_time();
            longest = longest.max(took.min(has.saturating_sub(had)));
            had = has;
        }
        times.push(took.as_nanos() as u64);
    }
    let rate = members as f64 / first.elapsed().as_secs_f64();
    map.settle()?;
    times.sort_unstable();
    let at = |share: f64| times[((members - 1) as f64 * share) as usize] as f64 / 1e3;
    Ok(vec![at(1.0) / 1e3, longest.as_secs_f64() * 1e3, at(0.9999), at(0.5), rate])
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

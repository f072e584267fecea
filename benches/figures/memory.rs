//! Memory per member, and allocations per get.
//!
//! Each contender is filled in a process of its own, so that none inherits what another has left behind: the program
//! calls itself with `--measure`. Two figures: bytes that live allocations asked for, counted by the allocator, and by
//! how much the process grew, which includes what the allocator itself needs and what it keeps after growing tables.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use dashmap::DashMap;
use foldhash::fast::RandomState;
use larder::{Bincode, Store};

use crate::counting::{count_from_now_on, counted};
use crate::input::{ROW, Row, row_bytes};
use crate::measure::Samples;
use crate::{Config, Result};

// ---- in a process of its own ----

/// Names of 25 bytes in all, whatever the number of collections.
struct Names {
    key: String,
    slash: usize,
}

impl Names {
    fn new() -> Names {
        Names { key: String::with_capacity(64), slash: 0 }
    }

    fn set(&mut self, member: usize, collections: usize) {
        self.key.clear();
        // Writing to a string does not fail.
        _ = write!(self.key, "c{:05}/member-{member:011}", member % collections);
        self.slash = 6;
    }

    fn collection(&self) -> &str {
        &self.key[..self.slash]
    }

    fn member(&self) -> &str {
        &self.key[self.slash + 1..]
    }
}

/// Fills the contender that is asked for, and prints what that took.
pub(crate) fn measure(what: &[String]) -> Result<()> {
    let [contender, members, collections] = what else { return Err("--measure is for figures itself".into()) };
    let (members, collections) = (members.parse()?, collections.parse()?);
    let value = row_bytes();
    let hasher = RandomState::default();
    match contender.as_str() {
        "dashmap" => {
            let map = DashMap::<Box<str>, Arc<[u8]>, _>::with_hasher(hasher);
            report(
                members,
                collections,
                |names| _ = map.insert(names.key.as_str().into(), Arc::from(&value[..])),
                |names| map.get(names.key.as_str()).map(|entry| entry.value().clone()).is_some(),
            )
        }
        "dashmap-typed" => {
            let map = DashMap::<Box<str>, Arc<Row>, _>::with_hasher(hasher);
            report(
                members,
                collections,
                |names| _ = map.insert(names.key.as_str().into(), Arc::new(ROW)),
                |names| map.get(names.key.as_str()).map(|entry| entry.value().clone()).is_some(),
            )
        }
        "larder" => {
            let store = Store::in_memory();
            report(
                members,
                collections,
                |names| _ = store.put(&names.key, &value[..]),
                |names| store.get(&names.key).is_ok_and(|value| value.is_some()),
            )
        }
        "larder-typed" => {
            let store = Store::in_memory();
            // One collection is opened once; of many, each is opened for each put, and no handle is kept.
            let open = |name: &str| store.collection_with::<Row, Bincode>(name);
            let one = open("c00000")?;
            if collections == 1 {
                report(
                    members,
                    collections,
                    |names| _ = one.put(names.member(), ROW),
                    |names| one.get(names.member()).is_some(),
                )
            } else {
                let put = |names: &Names| _ = open(names.collection()).and_then(|it| it.put(names.member(), ROW));
                report(members, collections, put, |names| one.get(names.member()).is_some())
            }
        }
        other => Err(format!("{other:?} is no contender").into()),
    }
}

fn report(members: usize, collections: usize, put: impl Fn(&Names), get: impl Fn(&Names) -> bool) -> Result<()> {
    let mut names = Names::new();
    let before = resident();
    count_from_now_on(true);
    for member in 0..members {
        names.set(member, collections);
        put(&names);
    }
    let (live, _) = counted();
    let grown = resident().zip(before).map_or(f64::NAN, |(after, before)| after - before);

    let (_, before) = counted();
    let mut gets = 0;
    for member in 0..members.min(10_000) {
        // Members of the first collection.
        names.set(member * collections % members, collections);
        gets += usize::from(get(&names));
    }
    let allocations = counted().1 - before;
    count_from_now_on(false);
    if gets != members.min(10_000) {
        return Err("a get found nothing".into());
    }
    println!("{live} {grown} {}", allocations as f64 / gets as f64);
    Ok(())
}

/// `VmRSS`, in bytes.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

// ---- the table ----

struct Measured {
    live: Samples,
    resident: Samples,
    allocations_per_get: Samples,
}

fn in_process(config: &Config, contender: &str, members: usize, collections: usize) -> Result<Measured> {
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..config.size.rounds.min(3) {
        let output = Command::new(std::env::current_exe()?)
            .args(["--measure", contender, &members.to_string(), &collections.to_string()])
            .output()?;
        if !output.status.success() {
            return Err(format!("--measure {contender}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        for (figure, number) in figures.iter_mut().zip(str::from_utf8(&output.stdout)?.split_whitespace()) {
            figure.push(number.parse()?);
        }
    }
    let [live, resident, allocations] = figures.map(Samples::new);
    Ok(Measured { live, resident, allocations_per_get: allocations })
}

const CONTENDERS: [&str; 4] = ["dashmap", "larder", "dashmap-typed", "larder-typed"];

pub(crate) fn run(config: &Config) -> Result<()> {
    let members = config.size.members;
    let many = members / 10;
    println!("\n## memory\n");
    println!("Bytes, keys of 25 and values of 100 included; each contender in a process of its own.\n");
    println!(
        "| {members} members in one collection | asked for, per member | grown by, per member | allocations per get | goal |"
    );
    println!("| --- | --- | --- | --- | --- |");
    let mut alone = Vec::new();
    for contender in CONTENDERS {
        let measured = in_process(config, contender, members, 1)?;
        let (live, resident) = (measured.live.each(members), measured.resident.each(members));
        let goal = if contender == "larder" { "200, 0" } else { "" };
        println!("| {contender} | {live:.1} | {resident:.1} | {:.2} | {goal} |", measured.allocations_per_get);
        alone.push(measured);
    }
    println!(
        "\n| {many} collections of 10 | asked for, MB | grown by, MB | beyond the members' own, asked for, MB | grown by, MB | goal |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (contender, alone) in CONTENDERS.into_iter().zip(alone) {
        let measured = in_process(config, contender, members, many)?;
        let (live, resident) = (measured.live.each(1_000_000), measured.resident.each(1_000_000));
        let beyond = measured.live.minus(&alone.live).each(1_000_000);
        let grown = measured.resident.minus(&alone.resident).each(1_000_000);
        let goal = if contender == "larder" { "60" } else { "" };
        println!("| {contender} | {live:.1} | {resident:.1} | {beyond:.1} | {grown:.1} | {goal} |");
    }
    Ok(())
}

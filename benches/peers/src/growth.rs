//! How gets, puts, memory and opening grow with the number of members and of threads. The results are a file of lines,
//! from which the program `plots` draws.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use larder::{Layout, Store};

use crate::footprint::{fill_map, taken};
use crate::input::{self, COLLECTIONS, KEY, Keys, Mix, VALUE};
use crate::loops::Loop;
use crate::maps::{self, LOOP, ON_DISK};
use crate::measure::{Samples, turns};
use crate::peers::PACKED;
use crate::{Config, FULL, Result, child, machine, settle};

pub(crate) const NAME: &str = "growth";

const THREADS: [usize; 4] = [1, 2, 4, 8];

/// How a store is opened, and up to how many members it is looked at.
const LAYOUTS: [(&str, Layout, usize); 2] =
    [(PACKED, Layout::Packed, usize::MAX), ("larder, files", Layout::Files, 100_000)];

/// What is done in a process of its own.
const MAP: &str = "map";
const FILL: &str = "fill";
const OPEN: &str = "open";

/// One line of the file, without the figures.
struct Line {
    what: &'static str,
    unit: &'static str,
    contender: &'static str,
    members: usize,
    threads: usize,
    samples: Samples,
}

pub(crate) fn run(config: &Config) -> Result<()> {
    let sizes = config.size.growth;
    let sizes = &sizes[..config.size.sizes.min(sizes.len())];
    let mut lines = Vec::new();
    for &members in sizes {
        lines.extend(in_maps(config, members)?);
        for (contender, _, most) in LAYOUTS {
            if members <= most {
                lines.push(opened(config, contender, members)?);
            }
        }
    }
    let csv = written(&lines)?;
    println!("\n## growth\n");
    println!(
        "Keys of {KEY} bytes, values of {VALUE}, {COLLECTIONS} collections; uniform keys, overlapping loops; each contender \
         in a process of its own. Opening is with the system's cache as it is."
    );
    // A short run is no result to keep, unless one says where.
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/growth.csv");
    let kept = config.csv.clone().or((sizes.last() == FULL.growth.last()).then_some(kept));
    if let Some(path) = kept {
        fs::write(&path, &csv)?;
        println!("\nWritten to {}.", path.display());
    }
    println!("\n```text\n{}```", csv);
    Ok(())
}

/// The file: what it was measured on, the names of the columns, and a line for each figure.
fn written(lines: &[Line]) -> Result<String> {
    let mut csv = String::new();
    writeln!(csv, "# larder {}, {}, load {}", machine::code(), machine::processor(), machine::load_average())?;
    writeln!(csv, "what,unit,contender,members,threads,median,least,most")?;
    for Line { what, unit, contender, members, threads, samples } in lines {
        let Some([median, least, most]) = samples.summary() else { continue };
        // Commas separate.
        let contender = contender.replace(',', "");
        writeln!(csv, "{what},{unit},{contender},{members},{threads},{median:.1},{least:.1},{most:.1}")?;
    }
    Ok(csv)
}

fn in_maps(config: &Config, members: usize) -> Result<Vec<Line>> {
    let names: Vec<&str> = maps::ALL.iter().map(|map| map.name).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| ![LOOP, maps::ALL[ON_DISK].name].contains(name)).collect();
    let figures = || {
        let memory = [("memory", "bytes per member asked for", 1), ("resident", "bytes per member", 1)];
        let operations = THREADS.iter().flat_map(|&threads| [("get", "ns", threads), ("put", "ns", threads)]);
        memory.into_iter().chain(operations)
    };
    let mut samples = vec![vec![Samples::default(); figures().count()]; names.len()];
    for round in 0..config.size.rounds {
        for which in turns(round, names.len()) {
            let args = [MAP, names[which], &members.to_string(), &config.size.members.to_string()];
            let seen = child::figures(NAME, &args)?;
            if seen.len() != samples[which].len() {
                return Err(format!("growth: {} figures", seen.len()).into());
            }
            samples[which].iter_mut().zip(seen).for_each(|(samples, seen)| samples.push(seen));
        }
        progress!(config, round, "growth: maps of {members} members");
    }
    let mut lines = Vec::new();
    for (&contender, samples) in names.iter().zip(samples) {
        for ((what, unit, threads), samples) in figures().zip(samples) {
            lines.push(Line { what, unit, contender, members, threads, samples });
        }
    }
    Ok(lines)
}

fn opened(config: &Config, contender: &'static str, members: usize) -> Result<Line> {
    let dir = config.temporary()?;
    let path = dir.path().to_str().ok_or("the directory has no plain name")?;
    let args = |what| [what, contender, &members.to_string(), path].map(str::to_owned);
    let run = |what| child::exactly::<1>(NAME, &args(what).each_ref().map(String::as_str));
    run(FILL)?;
    settle(config)?;
    let mut samples = Samples::default();
    for round in 0..config.size.rounds {
        let [seconds] = run(OPEN)?;
        samples.push(seconds * 1e3);
        progress!(config, round, "growth: {contender} of {members} members opened");
    }
    dir.close()?;
    Ok(Line { what: "open", unit: "ms", contender, members, threads: 1, samples })
}

/// In a process of its own.
pub(crate) fn part(args: &[String]) -> Result<Vec<f64>> {
    let [what, name, members, more] = args else { return Err("a part wants its name and three more".into()) };
    let members = members.parse()?;
    match what.as_str() {
        MAP => map(name, members, more.parse()?),
        FILL => {
            let store = open(name, more)?;
            let mut key = String::with_capacity(KEY);
            for member in 0..members {
                input::set_key(&mut key, member);
                store.put(&key, input::value(member as u64))?;
            }
            store.close()?;
            Ok(vec![0.0])
        }
        OPEN => {
            let began = Instant::now();
            let store = open(name, more)?;
            let took = began.elapsed().as_secs_f64();
            let found = store.load_report().members;
            store.close()?;
            if found == members { Ok(vec![took]) } else { Err(format!("{found} members of {members}").into()) }
        }
        other => Err(format!("{other:?} is no part").into()),
    }
}

fn open(name: &str, dir: &str) -> Result<Store> {
    let (_, layout, _) = LAYOUTS.into_iter().find(|(layout, ..)| *layout == name).ok_or("there is no such layout")?;
    Ok(Store::options(PathBuf::from(dir).join("store")).layout(layout).open()?)
}

/// Bytes per member asked for and resident, and for each number of threads nanoseconds for a get and for a put.
fn map(name: &str, members: usize, operations: usize) -> Result<Vec<f64>> {
    let map = (maps::named(name)?.new)(Path::new(""))?;
    let mut figures = taken(|| fill_map(&*map, members))?;
    figures.iter_mut().for_each(|bytes| *bytes /= members as f64);
    for threads in THREADS {
        for puts in [0, 100] {
            let ops = Mix { keys: Keys::Uniform, puts }.operations(members, operations, threads);
            figures.push(map.run(&ops, Loop::Overlapping));
        }
    }
    Ok(figures)
}

//! larder's figures, each beside its floor: the same work done by the best plain means, in the same process, in turns.
//!
//! ```text
//! cargo bench --bench figures                      # everything: 1M members, about half an hour, 10 GB of disk
//! cargo bench --bench figures -- --quick           # a tenth of it, a minute or two
//! cargo bench --bench figures -- get put           # some sections: get, put, memory, store, load
//! cargo bench --bench figures -- --dir /mnt/disk   # another file system than that of the target directory
//! ```
//!
//! It prints Markdown. Every figure is the median of several rounds, with the least and the most in parentheses. In a
//! round all contenders of a row run once, one after the other, and a ratio is the median of the rounds' own ratios, so
//! that a machine which is busy for a while spoils a round and not the comparison. Read the ratios: absolute times
//! differ from machine to machine and from day to day.
//!
//! | section | what | floor |
//! | --- | --- | --- |
//! | get | by key and through typed handles | dashmap with foldhash, whole keys, the same values |
//! | put | overwrite, new, one hot member; in RAM, and with the janitor storing beside it | the same |
//! | memory | bytes per member, allocations per get | the same |
//! | store | members stored per second, one file each | the bare system calls, with the same barriers |
//! | load | opening a store | reading the same files on several threads |

#[path = "figures/contenders.rs"]
mod contenders;
#[path = "figures/counting.rs"]
mod counting;
#[path = "figures/files.rs"]
mod files;
#[path = "figures/get.rs"]
mod get;
#[path = "figures/input.rs"]
mod input;
#[path = "figures/loops.rs"]
mod loops;
#[path = "figures/machine.rs"]
mod machine;
#[path = "figures/measure.rs"]
mod measure;
#[path = "figures/memory.rs"]
mod memory;
#[path = "figures/put.rs"]
mod put;

use std::path::PathBuf;
use std::process::ExitCode;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const SECTIONS: [&str; 5] = ["get", "put", "memory", "store", "load"];

/// How much of everything.
struct Size {
    /// Members in the map.
    members: usize,
    /// Puts in a round that end up as files.
    puts_to_files: usize,
    /// Members in the sections about files.
    files: usize,
    rounds: usize,
}

const FULL: Size = Size { members: 1_000_000, puts_to_files: 100_000, files: 100_000, rounds: 5 };
const QUICK: Size = Size { members: 100_000, puts_to_files: 10_000, files: 10_000, rounds: 5 };
/// What `cargo test --benches` asks for: that it runs, and nothing about how fast.
const TEST: Size = Size { members: 2_000, puts_to_files: 500, files: 500, rounds: 1 };

struct Config {
    size: Size,
    /// Where stores are made, in temporary directories that are removed.
    dir: PathBuf,
    /// Whether the caches of the file system may be dropped, which slows everything else on the machine.
    cold: bool,
    sections: Vec<String>,
}

impl Config {
    fn parse(args: impl Iterator<Item = String>) -> Result<Config> {
        let mut config =
            Config { size: FULL, dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")), cold: true, sections: Vec::new() };
        let mut args = args;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {}
                "--quick" => (config.size, config.cold) = (QUICK, false),
                "--test" => (config.size, config.cold) = (TEST, false),
                "--dir" => config.dir = args.next().ok_or("--dir wants a path")?.into(),
                section if SECTIONS.contains(&section) => config.sections.push(arg),
                _ => return Err(format!("{arg:?} is neither --quick, --dir nor one of {SECTIONS:?}").into()),
            }
        }
        Ok(config)
    }

    fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|wanted| wanted == section)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--measure", what)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return memory::measure(what);
    }
    let config = Config::parse(args.into_iter())?;
    machine::describe(&config)?;
    if config.wants("get") {
        get::run(&config)?;
    }
    if config.wants("put") {
        put::run(&config)?;
    }
    if config.wants("memory") {
        memory::run(&config)?;
    }
    if config.wants("store") || config.wants("load") {
        files::run(&config)?;
    }
    println!("\nLoad average at the end: {}.", machine::load_average());
    Ok(())
}

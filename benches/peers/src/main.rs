//! larder beside what one would use in its place: the same work, each set up as its own documents advise, in one process,
//! in turns.
//!
//! ```text
//! cargo run --release                      # everything: two to three hours, 10 GB of disk, 8 GB of memory
//! cargo run --release -- --quick           # one round of everything, smaller: four minutes
//! cargo run --release -- --only durable    # one section; may be given more than once
//! cargo run --release -- --dir /mnt/disk   # another file system than that of the current directory
//! cargo run --release -- --sizes 1         # of the section packed the smaller size alone, of growth so many sizes
//! cargo run --release -- --rounds 9        # more rounds than 5
//! cargo run --release -- --seconds 60      # longer runs of durable writes, and of overwriting, than 3 s
//! cargo run --release -- --csv FILE        # where growth writes its results
//! ```
//!
//! It prints Markdown. Every figure is the median of the rounds, with the least and the most in parentheses. In a round
//! all contenders of a row run once, one after the other, and a ratio is the median of the rounds' own ratios.
//!
//! | section | what |
//! | --- | --- |
//! | durable | single writes, each of which returns when a power cut cannot take it any more; 1, 4 and 16 threads |
//! | bulk | many members from one thread, until all are durable; opened again, and all read |
//! | latency | larder only: from a put to durable, in default mode |
//! | packed | larder only, `Layout::Packed`, two sizes: times, the longest put beside a compaction, disk, memory |
//! | operations | single gets and puts: maps in RAM, with what hashing alone takes, and stores without a sync |
//! | typed | gets and puts of a struct, which maps hold and stores encode and decode |
//! | collections | all members of a collection got, and deleted |
//! | longest | the longest put while one collection grows |
//! | footprint | memory and disk for each member, and what a store does that has nothing to do |
//! | growth | gets, puts, memory and opening at 1,000 to 10 million members and 1 to 8 threads, to be drawn by `plots` |
//!
//! The floor of durable writes is what the disk allows: records appended to one file, which is written to its size
//! beforehand, and `fdatasync`.

/// Tells on stderr how far it has come: the tables appear at the end of each section.
macro_rules! progress {
    ($config:expr, $round:expr, $($what:tt)*) => {
        eprintln!("round {} of {}: {}", $round + 1, $config.size.rounds, format_args!($($what)*))
    };
}

mod bulk;
mod child;
mod collections;
#[path = "../../figures/counting.rs"]
mod counting;
mod durable;
mod footprint;
mod growth;
mod input;
mod latency;
mod longest;
#[path = "../../figures/loops.rs"]
mod loops;
mod machine;
mod maps;
mod measure;
mod operations;
mod packed;
mod peers;
mod typed;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tempfile::TempDir;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

type Section = fn(&Config) -> Result<()>;

/// In the order in which they run.
const SECTIONS: [(&str, Section); 10] = [
    ("durable", durable::run),
    ("bulk", bulk::run),
    ("latency", latency::run),
    (packed::NAME, packed::run),
    ("operations", operations::run),
    ("typed", typed::run),
    ("collections", collections::run),
    (longest::NAME, longest::run),
    (footprint::NAME, footprint::run),
    (growth::NAME, growth::run),
];

/// Those of which parts have a process of their own.
const PARTS: [(&str, child::Part); 4] = [
    (packed::NAME, packed::part),
    (longest::NAME, longest::part),
    (footprint::NAME, footprint::part),
    (growth::NAME, growth::part),
];

/// How much of everything.
struct Size {
    rounds: usize,
    /// How long a run waits at most for the disk to have nothing to do.
    patience: Duration,
    /// Members that are there before the durable writes begin, and that are overwritten.
    there: usize,
    /// How long each run of durable writes takes, and overwriting a packed store without a compaction.
    run: Duration,
    /// Members in a bulk load.
    bulk: usize,
    /// How long puts come now and then, and how long they come as fast as they can.
    load: Duration,
    /// New members that are put at once.
    burst: usize,
    /// Members that are overwritten at full load.
    hot: usize,
    /// Raw syncs that are timed.
    syncs: usize,
    /// Members of a packed store. The larger one is made once, however many rounds there are.
    packed: [usize; 2],
    /// How many of the sizes that a section has.
    sizes: usize,
    /// Members in a store that makes a file for each, where others have more.
    files: usize,
    /// Members that single operations go to.
    members: usize,
    /// Single operations on a store, if they take no longer than this.
    store_ops: usize,
    store_time: Duration,
    /// Members in each collection that is got and deleted as a whole.
    collections: [usize; 3],
    /// Members of a collection that grows.
    grown: usize,
    /// How long a store is watched that has nothing to do.
    idle: Duration,
    /// Members at which growth is looked at.
    growth: &'static [usize],
}

const FULL: Size = Size {
    rounds: 5,
    patience: Duration::from_secs(10),
    there: 10_000,
    run: Duration::from_secs(3),
    bulk: 1_000_000,
    load: Duration::from_secs(10),
    burst: 200_000,
    hot: 100_000,
    syncs: 5_000,
    packed: [1_000_000, 10_000_000],
    sizes: usize::MAX,
    files: 100_000,
    members: 1_000_000,
    store_ops: 100_000,
    store_time: Duration::from_secs(3),
    collections: [10, 1_000, 100_000],
    grown: 10_000_000,
    idle: Duration::from_secs(10),
    growth: &[1_000, 10_000, 100_000, 1_000_000, 10_000_000],
};
const QUICK: Size = Size {
    rounds: 1,
    patience: Duration::from_millis(400),
    there: 1_000,
    run: Duration::from_millis(200),
    bulk: 50_000,
    load: Duration::from_secs(3),
    burst: 20_000,
    hot: 10_000,
    syncs: 300,
    packed: [20_000, 50_000],
    sizes: usize::MAX,
    files: 5_000,
    members: 20_000,
    store_ops: 5_000,
    store_time: Duration::from_millis(100),
    collections: [10, 1_000, 10_000],
    grown: 1_000_000,
    idle: Duration::from_secs(1),
    growth: &[1_000, 5_000, 20_000],
};

struct Config {
    size: Size,
    /// Where stores are made, in temporary directories that are removed.
    dir: PathBuf,
    /// Where growth writes its results.
    csv: Option<PathBuf>,
    sections: Vec<String>,
}

impl Config {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Config> {
        let mut config = Config { size: FULL, dir: PathBuf::from("."), csv: None, sections: Vec::new() };
        let (mut rounds, mut seconds, mut sizes) = (None, None, None);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            let number = |value: String| match value.parse::<usize>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("{arg} wants a number, and not {value:?}")),
            };
            match arg.as_str() {
                "--quick" => config.size = QUICK,
                "--dir" => config.dir = value()?.into(),
                "--csv" => config.csv = Some(value()?.into()),
                "--rounds" => rounds = Some(number(value()?)?),
                "--seconds" => seconds = Some(number(value()?)?),
                "--sizes" => sizes = Some(number(value()?)?),
                "--only" => match value()? {
                    section if SECTIONS.iter().any(|(name, _)| *name == section) => config.sections.push(section),
                    other => return Err(format!("{other:?} is none of {:?}", SECTIONS.map(|(name, _)| name)).into()),
                },
                _ => {
                    let known = "--quick, --dir, --csv, --rounds, --seconds, --sizes, --only";
                    return Err(format!("{arg:?} is none of {known}").into());
                }
            }
        }
        let size = &mut config.size;
        size.rounds = rounds.unwrap_or(size.rounds);
        size.run = seconds.map_or(size.run, |seconds| Duration::from_secs(seconds as u64));
        size.sizes = sizes.unwrap_or(size.sizes);
        Ok(config)
    }

    fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|wanted| wanted == section)
    }

    /// A new directory, which goes with its handle.
    fn temporary(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("larder-peers-").tempdir_in(&self.dir)?)
    }
}

/// Brings to the disk what earlier runs have left to the system, and waits until the disk has nothing to do, so that the
/// next run does not pay for the one before. Where others use the disk it does not wait for ever.
fn settle(config: &Config) -> Result<()> {
    const MOMENT: Duration = Duration::from_millis(200);
    rustix::fs::syncfs(std::fs::File::open(&config.dir)?)?;
    let mut before = machine::disk(&config.dir);
    let began = Instant::now();
    while began.elapsed() < config.size.patience {
        std::thread::sleep(MOMENT);
        let now = machine::disk(&config.dir);
        if now == before {
            break;
        }
        before = now;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, section, what @ ..] = &args[..]
        && first == child::CHILD
    {
        let part = PARTS.iter().find(|(name, _)| name == section).ok_or("no section of this name has parts")?;
        return child::run(part.1, what);
    }
    let config = Config::parse(args.into_iter())?;
    machine::describe(&config)?;
    peers::describe();
    for (section, run) in SECTIONS {
        if config.wants(section) {
            run(&config)?;
        }
    }
    println!("\nLoad average at the end: {}.", machine::load_average());
    Ok(())
}

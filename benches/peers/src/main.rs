//! larder beside other embedded stores: the same work, each store set up as its own documents advise, in one process, in
//! turns.
//!
//! ```text
//! cargo run --release                      # everything: more than an hour, 8 GB of disk, 8 GB of memory
//! cargo run --release -- --quick           # one round of everything, smaller: three minutes
//! cargo run --release -- --only durable    # one section: durable, bulk, latency, packed; may be given more than once
//! cargo run --release -- --dir /mnt/disk   # another file system than that of the current directory
//! cargo run --release -- --sizes 1         # of the section packed, the smaller size alone
//! cargo run --release -- --rounds 9        # more rounds than 5
//! cargo run --release -- --seconds 60      # longer runs of durable writes, and of overwriting, than 3 s
//! ```
//!
//! It prints Markdown. Every figure is the median of the rounds, with the least and the most in parentheses. In a round
//! all contenders of a row run once, one after the other, and a ratio is the median of the rounds' own ratios.
//!
//! | section | what |
//! | --- | --- |
//! | durable | single writes, each of which returns when a power cut cannot take it any more; 1, 4 and 16 threads |
//! | bulk | many members from one thread, until all are durable |
//! | latency | larder only: from a put to durable, in default mode |
//! | packed | larder only, `Layout::Packed`, two sizes: times, the longest put beside a compaction, disk, memory |
//!
//! The floor is what the disk allows: records appended to one file, which is written to its size beforehand, and
//! `fdatasync`.

/// Tells on stderr how far it has come: the tables appear at the end of each section.
macro_rules! progress {
    ($config:expr, $round:expr, $($what:tt)*) => {
        eprintln!("round {} of {}: {}", $round + 1, $config.size.rounds, format_args!($($what)*))
    };
}

mod bulk;
mod durable;
mod input;
mod latency;
mod machine;
mod measure;
mod packed;
mod peers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tempfile::TempDir;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const SECTIONS: [&str; 4] = ["durable", "bulk", "latency", "packed"];

/// How much of everything.
struct Size {
    rounds: usize,
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
    /// How many of these sizes.
    sizes: usize,
}

const FULL: Size = Size {
    rounds: 5,
    there: 10_000,
    run: Duration::from_secs(3),
    bulk: 1_000_000,
    load: Duration::from_secs(10),
    burst: 200_000,
    hot: 100_000,
    syncs: 5_000,
    packed: [1_000_000, 10_000_000],
    sizes: 2,
};
const QUICK: Size = Size {
    rounds: 1,
    there: 1_000,
    run: Duration::from_millis(500),
    bulk: 50_000,
    load: Duration::from_secs(3),
    burst: 20_000,
    hot: 10_000,
    syncs: 1_000,
    packed: [20_000, 50_000],
    sizes: 2,
};

struct Config {
    size: Size,
    /// Where stores are made, in temporary directories that are removed.
    dir: PathBuf,
    sections: Vec<String>,
}

impl Config {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Config> {
        let mut config = Config { size: FULL, dir: PathBuf::from("."), sections: Vec::new() };
        let (mut rounds, mut seconds) = (None, None);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg.as_str() {
                "--quick" => config.size = QUICK,
                "--dir" => config.dir = value()?.into(),
                "--rounds" => rounds = Some(value()?.parse::<usize>().map_err(|_| "--rounds wants a number")?.max(1)),
                "--seconds" => {
                    seconds = Some(value()?.parse::<u64>().map_err(|_| "--seconds wants a number")?.max(1));
                }
                "--sizes" => {
                    config.size.sizes = value()?.parse::<usize>().map_err(|_| "--sizes wants a number")?.clamp(1, 2);
                }
                "--only" => match value()? {
                    section if SECTIONS.contains(&section.as_str()) => config.sections.push(section),
                    other => return Err(format!("{other:?} is none of {SECTIONS:?}").into()),
                },
                _ => {
                    return Err(
                        format!("{arg:?} is none of --quick, --dir, --rounds, --seconds, --sizes, --only").into()
                    );
                }
            }
        }
        config.size.rounds = rounds.unwrap_or(config.size.rounds);
        config.size.run = seconds.map_or(config.size.run, Duration::from_secs);
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
fn settle(dir: &Path) -> Result<()> {
    const MOMENT: Duration = Duration::from_millis(200);
    const PATIENCE: u32 = 50;
    rustix::fs::syncfs(std::fs::File::open(dir)?)?;
    let mut before = machine::disk(dir);
    for _ in 0..PATIENCE {
        std::thread::sleep(MOMENT);
        let now = machine::disk(dir);
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
    if let [first, what @ ..] = &args[..]
        && first == packed::STEP
    {
        return packed::step(what);
    }
    let config = Config::parse(args.into_iter())?;
    machine::describe(&config)?;
    peers::describe();
    if config.wants("durable") {
        durable::run(&config)?;
    }
    if config.wants("bulk") {
        bulk::run(&config)?;
    }
    if config.wants("latency") {
        latency::run(&config)?;
    }
    if config.wants("packed") {
        packed::run(&config)?;
    }
    println!("\nLoad average at the end: {}.", machine::load_average());
    Ok(())
}

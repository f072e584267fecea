//! What larder's operations cost in instructions, allocations and system calls: counted, so that a busy machine counts the same.
//!
//! ```text
//! benches/counts/run                   # counts, and fails where something has risen
//! benches/counts/run --accept "why"    # takes the new counts over into counts.txt
//! benches/counts/run --misses          # misses of the cache among a million members: ten minutes, and nothing is held against it
//! ```
//!
//! `counts.txt` keeps what was counted, each with a reason. `docs/benchmarks.md` says how it is counted. It needs Linux on
//! x86-64 with glibc, and valgrind.

#![allow(missing_docs)]

#[path = "counts/allocator.rs"]
mod allocator;
#[path = "counts/calls.rs"]
mod calls;
#[path = "counts/gate.rs"]
mod gate;
#[path = "counts/kept.rs"]
mod kept;
#[path = "counts/maps.rs"]
mod maps;
#[path = "counts/operations.rs"]
mod operations;
#[path = "counts/valgrind.rs"]
mod valgrind;

use std::fs;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};

use calls::Calls;
use kept::{Count, Kept, Unit, percent};
use operations::{Operation, Where};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts/counts.txt");

/// How many of dashmap's instructions an operation may take: what this project wants, and what it would like.
const GOAL: f64 = 1.5;
const STRETCH: f64 = 1.2;

/// With another toolchain: how much the ratio to dashmap's instructions may rise.
const RATIO_TOLERANCE: f64 = 0.10;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => check(),
        ["--accept", reason] if !reason.trim().is_empty() && !reason.contains(['|', '\n']) => accept(reason),
        ["--test"] => test(),
        ["--misses"] => misses(),
        ["--among-many", number] => one(&Operation::all(), number, Operation::run_among_many),
        ["--operation", number] => one(&Operation::all(), number, Operation::run),
        ["--calls", number] => one(&Calls::ALL, number, Calls::run),
        _ => Err("it takes nothing, --accept \"why\" (in one line, without a |), --misses, or --test".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::FAILURE
        }
    }
}

fn one<T: Copy>(all: &[T], number: &str, run: impl Fn(T) -> Result<()>) -> Result<bool> {
    let which = all.get(number.parse::<usize>()?).ok_or("there is no such one")?;
    run(*which).map(|()| true)
}

/// That everything runs, without valgrind, and counts nothing.
fn test() -> Result<bool> {
    for (what, many) in [("--operation", Operation::all().len()), ("--calls", Calls::ALL.len())] {
        for number in 0..many {
            let status = Command::new(std::env::current_exe()?).args([what, &number.to_string()]).status()?;
            if !status.success() {
                return Err(format!("{what} {number}: {status}").into());
            }
        }
    }
    Ok(true)
}

fn misses() -> Result<bool> {
    println!("| misses per operation, 1,000,000 members | of 512 KiB | of 32 MiB |\n| --- | --- | --- |");
    let counted = in_parallel(&Operation::counted_for_misses(), |&(number, operation)| {
        valgrind::misses(number, operation).map(|misses| (operation, misses))
    })?;
    for (operation, misses) in counted {
        println!("| {operation} | {:.2} | {:.2} |", misses.own, misses.shared);
    }
    Ok(true)
}

fn check() -> Result<bool> {
    // By itself, `cargo bench` runs this with all the others, and cuts the crate up as it likes.
    if option_env!("CARGO_PROFILE_BENCH_CODEGEN_UNITS") != Some("1") {
        println!("counts: nothing is counted here; it is benches/counts/run that does.");
        return Ok(true);
    }
    let toolchain = toolchain()?;
    let kept = Kept::parse(&fs::read_to_string(FILE)?)?;
    let counted = count()?;
    println!("{}", table(&counted));
    println!("Counted with {toolchain}; {}.", valgrind::version().unwrap_or_default());
    let comparable = kept.toolchain == toolchain;
    let mut verdict = kept.check(&counted, comparable);
    if !comparable {
        println!(
            "Those kept are of {}: what is held against them here is the ratio of instructions to dashmap's, with {:.0} % of leeway.",
            kept.toolchain,
            RATIO_TOLERANCE * 100.0
        );
        verdict.rises.extend(ratio_rises(&kept, &counted));
    }
    if !verdict.falls.is_empty() {
        println!("\nFallen. Take them over, or the next rise goes unseen: benches/counts/run --accept \"why\"");
        verdict.falls.iter().for_each(|line| println!("  {line}"));
    }
    if !verdict.rises.is_empty() {
        println!("\nRISEN. If it has to be: benches/counts/run --accept \"why\", and commit counts.txt with it.");
        verdict.rises.iter().for_each(|line| println!("  {line}"));
    }
    Ok(verdict.rises.is_empty())
}

fn accept(reason: &str) -> Result<bool> {
    let toolchain = toolchain()?;
    let kept = match fs::read_to_string(FILE) {
        Ok(text) => Kept::parse(&text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Kept { toolchain: toolchain.clone(), counts: Vec::new() }
        }
        Err(error) => return Err(error.into()),
    };
    let new = kept.accept(&count()?, &toolchain, reason);
    for count in new.counts.iter().filter(|count| !kept.counts.contains(count)) {
        let before = kept.find(count).map_or("none".to_owned(), |kept| kept.count.to_string());
        println!("{}: {before} -> {}", count.name, count.count);
    }
    fs::write(FILE, new.text())?;
    Ok(true)
}

/// What decides how many instructions there are, besides the code: the compiler, and the C library with its allocator.
fn toolchain() -> Result<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        return Err("counts are kept for Linux on x86-64 with glibc".into());
    }
    if valgrind::version().is_none() {
        return Err("valgrind is needed: apt-get install valgrind".into());
    }
    let said = |program: &str| -> Result<String> {
        let output = Command::new(program).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    };
    let minor = |version: &str| version.split('.').take(2).collect::<Vec<_>>().join(".");
    let rustc = said(&std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))?;
    let rustc = rustc.split_whitespace().nth(1).map(minor).unwrap_or_default();
    let glibc = said("ldd")?;
    let glibc = glibc.split_whitespace().last().map(minor).unwrap_or_default();
    Ok(format!("rustc {rustc}, glibc {glibc}, x86_64"))
}

/// Everything.
fn count() -> Result<Vec<Count>> {
    let operations = Operation::all();
    let numbers: Vec<usize> = (0..operations.len() + Calls::ALL.len()).collect();
    let counts = in_parallel(&numbers, |&number| match operations.get(number) {
        Some(operation) => of_operation(number, *operation),
        None => {
            let number = number - operations.len();
            of_calls(number, Calls::ALL[number])
        }
    })?;
    let mut counts: Vec<Count> = counts.into_iter().flatten().collect();
    counts.sort_by_key(|count| count.unit as u8);
    Ok(counts)
}

/// Several at a time, for processes do not disturb each other's counts; in their order.
fn in_parallel<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let some = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = all.get(number) else { return Ok(done) };
            done.push((number, work(one)?));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut done = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        for thread in threads {
            done.extend(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(())
    })?;
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

fn of_operation(number: usize, operation: Operation) -> Result<Vec<Count>> {
    let cost = valgrind::cost(number, operation)?;
    let new = |unit, count| Count { unit, name: operation.to_string(), count, reason: String::new() };
    let mut counts = vec![new(Unit::Instructions, cost.instructions)];
    if operation.place != Where::Dashmap {
        counts.push(new(Unit::Allocations, cost.allocations));
        if !operation.gets() {
            counts.push(new(Unit::Bytes, cost.bytes));
        }
    }
    Ok(counts)
}

fn of_calls(number: usize, calls: Calls) -> Result<Vec<Count>> {
    let traced = valgrind::trace(number, calls)?;
    let new = |unit, count| Count { unit, name: calls.to_string(), count, reason: String::new() };
    let mut counts = vec![new(Unit::Calls, traced.calls as f64)];
    if !calls.alone() {
        counts.push(new(Unit::Syncs, traced.syncs as f64));
        counts.push(new(Unit::Written, traced.bytes_written as f64 / calls::TIMES as f64));
    }
    Ok(counts)
}

/// Instructions beside those of dashmap.
fn ratios(counts: &[Count]) -> Vec<(Operation, f64, f64)> {
    let find = |operation: Operation| {
        let name = operation.to_string();
        counts.iter().find(|count| count.unit == Unit::Instructions && count.name == name).map(|count| count.count)
    };
    let larder = Operation::all().into_iter().filter(|operation| operation.place != Where::Dashmap);
    larder.filter_map(|operation| Some((operation, find(operation)?, find(operation.yardstick())?))).collect()
}

fn ratio_rises(kept: &Kept, counted: &[Count]) -> Vec<String> {
    let (before, now) = (ratios(&kept.counts), ratios(counted));
    let mut rises = Vec::new();
    for (operation, larder, dashmap) in now {
        let Some((_, larder_before, dashmap_before)) = before.iter().find(|(kept, ..)| *kept == operation) else {
            continue;
        };
        let (before, now) = (larder_before / dashmap_before, larder / dashmap);
        if now > before * (1.0 + RATIO_TOLERANCE) {
            rises.push(format!(
                "instructions of \"{operation}\", by those of dashmap: {before:.2} -> {now:.2} ({})",
                percent(now / before)
            ));
        }
    }
    rises
}

fn table(counts: &[Count]) -> String {
    let mut table = format!(
        "| instructions per operation | dashmap | larder | ratio | goal {GOAL}, stretch {STRETCH} |\n| --- | --- | --- | --- | --- |\n"
    );
    for (operation, larder, dashmap) in ratios(counts) {
        let ratio = larder / dashmap;
        let goal = match ratio {
            ..=STRETCH => "stretch",
            ..=GOAL => "met",
            _ => "behind",
        };
        table += &format!("| {operation} | {dashmap:.0} | {larder:.0} | {ratio:.2} | {goal} |\n");
    }
    table
        + "\n| the rest | of what | count |\n| --- | --- | --- |\n"
        + &counts
            .iter()
            .filter(|count| count.unit != Unit::Instructions)
            .map(|count| format!("| {} | {} | {} |\n", count.unit.name(), count.name, count.shown()))
            .collect::<String>()
}

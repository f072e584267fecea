//! Runs this program under valgrind, with one thing to count, and reads what valgrind says.

use std::process::{Command, Output};

use crate::Result;
use crate::calls::{BEGIN, Calls, END};
use crate::operations::{MEMBERS, Operation, SOME};

/// Of one operation.
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    pub(crate) bytes: f64,
}

pub(crate) fn version() -> Option<String> {
    let output = Command::new("valgrind").arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run(tool: &[&str], what: &[&str]) -> Result<Output> {
    let output = Command::new("valgrind").args(tool).arg(std::env::current_exe()?).args(what).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind {tool:?} {what:?}: {}\n{said}", output.status).into());
    }
    Ok(output)
}

/// Callgrind keeps what is collected, and whether it collects, for each thread: only the thread that is in `measured` is
/// counted.
pub(crate) fn cost(number: usize, operation: Operation) -> Result<Cost> {
    let tool = ["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*operations*measured*"];
    let output = run(&tool, &["--operation", &number.to_string()])?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<f64>().ok());
    let asked = String::from_utf8_lossy(&output.stdout);
    let mut asked = asked.split_whitespace().map(str::parse::<f64>);
    let (Some(collected), Some(Ok(times)), Some(Ok(bytes))) = (collected, asked.next(), asked.next()) else {
        return Err(format!("{operation}: not understood: {said}").into());
    };
    if collected == 0.0 {
        return Err(format!("{operation}: callgrind has not seen it: {said}").into());
    }
    let each = |count: f64| count / MEMBERS as f64;
    Ok(Cost { instructions: each(collected), allocations: each(times), bytes: each(bytes) })
}

/// Of one operation among many members, in caches that valgrind simulates: of 64-byte lines, without anything that fetches ahead.
pub(crate) struct Misses {
    /// In a cache of the size of a core's own second level, 512 KiB.
    pub(crate) own: f64,
    /// In one of the size of the third level, 32 MiB.
    pub(crate) shared: f64,
}

pub(crate) fn misses(number: usize, operation: Operation) -> Result<Misses> {
    let tool = [
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--toggle-collect=*operations*measured*",
        "--cache-sim=yes",
        "--D1=524288,8,64",
        "--LL=33554432,16,64",
    ];
    let output = run(&tool, &["--among-many", &number.to_string()])?;
    let said = String::from_utf8_lossy(&output.stderr);
    let find = |name: &str| {
        let line = said.lines().find_map(|line| line.split_once(name))?.1;
        let total = line.split_once('(')?.0.trim().replace(',', "");
        total.parse::<f64>().ok().map(|total| total / SOME as f64)
    };
    match (find("D1  misses:"), find("LLd misses:")) {
        (Some(own), Some(shared)) => Ok(Misses { own, shared }),
        _ => Err(format!("{operation}: not understood: {said}").into()),
    }
}

/// Between the two marks.
pub(crate) struct Traced {
    pub(crate) calls: usize,
    pub(crate) syncs: usize,
    pub(crate) bytes_written: u64,
}

/// What a process asks about itself: memory, threads, signals, clocks, chance. How often it does depends on the allocator
/// and on who waits for whom.
const OF_THE_PROCESS: [&str; 26] = [
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "futex",
    "clone",
    "clone3",
    "exit",
    "exit_group",
    "set_robust_list",
    "rseq",
    "sched_yield",
    "sched_getaffinity",
    "gettid",
    "getpid",
    "prctl",
    "rt_sigprocmask",
    "rt_sigaction",
    "sigaltstack",
    "clock_gettime",
    "clock_nanosleep",
    "gettimeofday",
    "getrandom",
    "unimplemented",
];
const SYNCS: [&str; 4] = ["fsync", "fdatasync", "syncfs", "sync_file_range"];
const WRITES: [&str; 4] = ["write", "pwrite64", "writev", "pwritev"];

/// Counts in valgrind's own trace, which needs no more rights than to run a program: tracing by the system is often
/// forbidden in containers.
pub(crate) fn trace(number: usize, calls: Calls) -> Result<Traced> {
    let output = run(&["--tool=none", "--trace-syscalls=yes"], &["--calls", &number.to_string()])?;
    let said = String::from_utf8_lossy(&output.stderr);
    read_trace(&said, calls.alone()).ok_or_else(|| format!("{calls}: the marks are not in the trace").into())
}

fn read_trace(trace: &str, first_thread_only: bool) -> Option<Traced> {
    let mut traced = Traced { calls: 0, syncs: 0, bytes_written: 0 };
    // What each thread is in the middle of.
    let mut writing = Vec::new();
    let mut lines = trace.lines().skip_while(|line| !line.contains(BEGIN)).skip(1);
    for line in lines.by_ref().take_while(|line| !line.contains(END)) {
        // `SYSCALL[26996,2](18) sys_pwrite64 ( 6, 0x4c6c010, 176064, 0 ) --> [async] ... `, and later, or at once,
        // `SYSCALL[26996,2](18) ... [async] --> Success(0x2afc0) `.
        let Some((who, rest)) = line.strip_prefix("SYSCALL[").and_then(|line| line.split_once(']')) else { continue };
        let Some((_, thread)) = who.split_once(',') else { continue };
        let Some((_, rest)) = rest.split_once(')') else { continue };
        let rest = rest.trim_start();
        if first_thread_only && thread != "1" {
            continue;
        }
        if !rest.starts_with("...") {
            let name = rest.split([' ', '(']).next().unwrap_or_default();
            let name = name.strip_prefix("sys_").unwrap_or(name);
            if OF_THE_PROCESS.contains(&name) {
                continue;
            }
            traced.calls += 1;
            traced.syncs += usize::from(SYNCS.contains(&name));
            if WRITES.contains(&name) {
                writing.push(thread);
            }
        }
        if let Some((_, result)) = rest.split_once("Success(0x")
            && let Some(at) = writing.iter().position(|writer| *writer == thread)
        {
            writing.swap_remove(at);
            traced.bytes_written += u64::from_str_radix(result.split(')').next()?, 16).ok()?;
        }
    }
    // Both marks were there if something comes after the second.
    lines.next().map(|_| traced)
}

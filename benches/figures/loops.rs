//! The loops that are timed.

use std::fmt;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::input::Ops;

/// How the operations of a loop hang together.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Loop {
    /// They do not: the processor works on several at once.
    Overlapping,
    /// Which key comes next depends on the value that was read, as in an application that uses what it reads.
    Dependent,
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Loop::Overlapping => "overlapping",
            Loop::Dependent => "dependent",
        })
    }
}

/// Does all operations, each thread its own, and returns nanoseconds per operation: from the first thread's beginning
/// to the last one's end, by the number of all operations.
///
/// `operation` gets the number of the operation and returns 0: the first byte of the value, which the compiler does
/// not know to be 0.
pub(crate) fn drive(all: &[Ops], how: Loop, operation: impl Fn(&Ops, usize) -> usize + Sync) -> f64 {
    // No thread begins before all are there.
    let start = Barrier::new(all.len());
    let run = |ops| {
        start.wait();
        let started = Instant::now();
        let sum = one_loop(ops, how, &operation);
        (sum, started, Instant::now())
    };
    let runs: Vec<_> = match all {
        // On this thread, which is warm.
        [ops] => vec![run(ops)],
        _ => std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = all.iter().map(|ops| scope.spawn(move || run(ops))).collect();
            threads.into_iter().map(|thread| thread.join().expect("an operation panicked")).collect()
        }),
    };
    let failed: usize = runs.iter().map(|(sum, ..)| sum).sum();
    assert!(failed == 0, "a get found nothing, or a put failed");
    let operations: usize = all.iter().map(Ops::len).sum();
    let began = runs.iter().map(|(_, began, _)| *began).min();
    let ended = runs.iter().map(|(.., ended)| *ended).max();
    let took = began.zip(ended).map_or(f64::NAN, |(began, ended)| (ended - began).as_nanos() as f64);
    took / operations as f64
}

#[inline(never)]
fn one_loop(ops: &Ops, how: Loop, operation: &impl Fn(&Ops, usize) -> usize) -> usize {
    let mut sum = 0;
    match how {
        Loop::Overlapping => {
            for at in 0..ops.len() {
                sum += operation(ops, at);
            }
        }
        Loop::Dependent => {
            let mut at = 0;
            while at < ops.len() {
                let zero = operation(ops, at);
                sum += zero;
                at += 1 + zero;
            }
        }
    }
    black_box(sum)
}

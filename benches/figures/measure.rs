//! Rounds, medians and ratios.

use std::fmt;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::input::Ops;

/// One figure of each round.
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(samples: Vec<f64>) -> Samples {
        Samples(samples)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// Divided by a number of things.
    pub(crate) fn each(&self, things: usize) -> Samples {
        Samples(self.0.iter().map(|sample| sample / things as f64).collect())
    }

    pub(crate) fn minus(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(this, other)| this - other).collect())
    }

    /// Round by round.
    pub(crate) fn over(&self, floor: &Samples) -> Samples {
        Samples(self.0.iter().zip(&floor.0).map(|(this, floor)| this / floor).collect())
    }
}

/// The median, and the least and the most of several, with as many decimals as asked for.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        let decimals = f.precision().unwrap_or(0);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return f.write_str("-") };
        write!(f, "{:.decimals$}", sorted[sorted.len() / 2])?;
        if sorted.len() > 1 { write!(f, " ({least:.decimals$}–{most:.decimals$})") } else { Ok(()) }
    }
}

/// Runs all contenders once in each round, beginning with another one each time.
pub(crate) fn in_turns<const N: usize>(rounds: usize, contenders: [&mut dyn FnMut() -> f64; N]) -> [Samples; N] {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..rounds {
        for turn in 0..N {
            let which = (round + turn) % N;
            samples[which].push(contenders[which]());
        }
    }
    samples.map(Samples)
}

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
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        }),
    };
    let failed: usize = runs.iter().map(|(sum, ..)| sum).sum();
    assert!(runs.len() == all.len() && failed == 0, "a get found nothing, a put failed, or a thread panicked");
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

//! Rounds, medians, ratios and percentiles.

use std::fmt;
use std::time::{Duration, Instant};

/// One figure of each round.
#[derive(Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// That of the last round.
    pub(crate) fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// Round by round.
    pub(crate) fn over(&self, floor: &Samples) -> Samples {
        Samples(self.0.iter().zip(&floor.0).map(|(this, floor)| this / floor).collect())
    }

    /// So many divided by each.
    pub(crate) fn per(&self, things: usize) -> Samples {
        Samples(self.0.iter().map(|sample| things as f64 / sample).collect())
    }
}

/// The median, and the least and the most of several, with as many decimals as asked for.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let decimals = f.precision().unwrap_or(0);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return f.write_str("-") };
        write!(f, "{:.decimals$}", sorted[sorted.len() / 2])?;
        if sorted.len() > 1 { write!(f, " ({least:.decimals$}–{most:.decimals$})") } else { Ok(()) }
    }
}

/// Who runs first in one round runs last in the next.
pub(crate) fn turns(round: usize, contenders: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |turn| (round + turn) % contenders)
}

/// How times are distributed, of each round; in milliseconds.
#[derive(Default)]
pub(crate) struct Distribution {
    percentiles: [Samples; 4],
    samples: usize,
}

impl Distribution {
    /// The columns that [`Display`](fmt::Display) fills.
    pub(crate) const COLUMNS: &str = "samples | p50 | p99 | p99.9 | max";

    /// Adds a round.
    pub(crate) fn push(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        self.samples += times.len();
        let Some(last) = times.len().checked_sub(1) else { return };
        for (percentile, share) in self.percentiles.iter_mut().zip([0.5, 0.99, 0.999, 1.0]) {
            // Of few samples the next higher one.
            let at = (last as f64 * share).ceil() as usize;
            percentile.push(times[at].as_secs_f64() * 1000.0);
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(0);
        let [half, most, nearly, all] = &self.percentiles;
        write!(f, "{}", self.samples)?;
        write!(f, " | {half:.decimals$} | {most:.decimals$} | {nearly:.decimals$} | {all:.decimals$}")
    }
}

/// Takes a time between the beginning and the end.
pub(crate) struct Lap {
    started: Instant,
    taken: Option<Duration>,
}

impl Lap {
    pub(crate) fn start() -> Lap {
        Lap { started: Instant::now(), taken: None }
    }

    pub(crate) fn take(&mut self) {
        self.taken = Some(self.started.elapsed());
    }

    /// The time that was taken, if one was, and the time until now, in seconds.
    pub(crate) fn stop(self) -> (Option<f64>, f64) {
        let total = self.started.elapsed().as_secs_f64();
        (self.taken.map(|lap| lap.as_secs_f64()), total)
    }
}

//! Rounds, medians and ratios.

use std::fmt;

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

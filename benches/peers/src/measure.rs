//! Rounds, medians, ratios, percentiles and tables, and steps that are timed.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Result;

/// One figure of each round.
#[derive(Clone, Default)]
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

    /// Divided by a number of things.
    pub(crate) fn each(&self, things: f64) -> Samples {
        Samples(self.0.iter().map(|sample| sample / things).collect())
    }

    /// The median, the least and the most.
    pub(crate) fn summary(&self) -> Option<[f64; 3]> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        Some([sorted.get(sorted.len() / 2).copied()?, *sorted.first()?, *sorted.last()?])
    }

    /// So many divided by each.
    pub(crate) fn per(&self, things: usize) -> Samples {
        Samples(self.0.iter().map(|sample| things as f64 / sample).collect())
    }
}

/// The median, and the least and the most of several, with as many decimals as asked for.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(0);
        let Some([median, least, most]) = self.summary() else { return f.write_str("-") };
        write!(f, "{median:.decimals$}")?;
        if self.0.len() > 1 { write!(f, " ({least:.decimals$}–{most:.decimals$})") } else { Ok(()) }
    }
}

/// Figures, with what was done in rows and who did it in columns.
pub(crate) struct Table {
    head: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Samples>)>,
}

impl Table {
    pub(crate) fn new<T: Into<String>>(head: impl Into<String>, columns: impl IntoIterator<Item = T>) -> Table {
        Table { head: head.into(), columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = Samples>) {
        self.rows.push((name.into(), cells.into_iter().collect()));
    }

    fn derived(&self, head: &str, cells: impl Fn(&[Samples]) -> Vec<Samples>) -> Table {
        let rows = self.rows.iter().map(|(name, row)| (name.clone(), cells(row))).collect();
        Table { head: head.to_owned(), columns: self.columns.clone(), rows }
    }

    /// Each figure to that of one column.
    pub(crate) fn over(&self, head: &str, column: usize) -> Table {
        self.derived(head, |row| row.iter().map(|cell| cell.over(&row[column])).collect())
    }

    /// The figure of one column to each.
    pub(crate) fn under(&self, head: &str, column: usize) -> Table {
        self.derived(head, |row| row.iter().map(|cell| row[column].over(cell)).collect())
    }

    pub(crate) fn without(mut self, columns: &[&str]) -> Table {
        let stays: Vec<bool> = self.columns.iter().map(|column| !columns.contains(&column.as_str())).collect();
        let mut stay = stays.iter().cycle().copied();
        self.columns.retain(|_| stay.next().unwrap_or(true));
        for (_, row) in &mut self.rows {
            let mut stay = stays.iter().copied();
            row.retain(|_| stay.next().unwrap_or(true));
        }
        self
    }

    /// With who did it in rows.
    pub(crate) fn turned(&self, head: &str) -> Table {
        let row = |(place, name): (usize, &String)| {
            (name.clone(), self.rows.iter().map(|(_, row)| row[place].clone()).collect())
        };
        let rows = self.columns.iter().enumerate().map(row).collect();
        Table { head: head.to_owned(), columns: self.rows.iter().map(|(name, _)| name.clone()).collect(), rows }
    }

    pub(crate) fn print(&self, decimals: usize) {
        let columns = self.head.matches(" | ").count() + 1 + self.columns.len();
        println!("\n| {} | {} |", self.head, self.columns.join(" | "));
        println!("|{}", " --- |".repeat(columns));
        for (name, row) in &self.rows {
            let cells: Vec<String> = row.iter().map(|cell| format!("{cell:.decimals$}")).collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
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

/// Does steps of so many operations each until there are `most` of them, or `time` is over, and returns nanoseconds per
/// operation. For operations that take microseconds: the clock is looked at after each step.
pub(crate) fn steps(
    most: usize,
    each: usize,
    time: Duration,
    mut step: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    let (began, mut done) = (Instant::now(), 0);
    loop {
        step(done)?;
        done += each;
        let took = began.elapsed();
        if done >= most || took > time {
            return Ok(took.as_nanos() as f64 / done as f64);
        }
    }
}

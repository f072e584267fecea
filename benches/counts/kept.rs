//! The counts that are kept in `counts.txt`, and what new ones are held against them.

use std::fmt::Write;

use crate::Result;

/// What is counted, with how it is kept and how much more of it is no rise.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Unit {
    /// Of one operation.
    Instructions,
    /// Of one operation.
    Allocations,
    /// Asked of the allocator by one operation.
    Bytes,
    /// For 1,000 operations.
    Calls,
    /// For 1,000 operations.
    Syncs,
    /// Written to files for one operation.
    Written,
}

const UNITS: [Unit; 6] = [Unit::Instructions, Unit::Allocations, Unit::Bytes, Unit::Calls, Unit::Syncs, Unit::Written];

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::Instructions => "instructions",
            Unit::Allocations => "allocations",
            Unit::Bytes => "bytes asked for",
            Unit::Calls => "system calls",
            Unit::Syncs => "syncs",
            Unit::Written => "bytes written",
        }
    }

    fn decimals(self) -> usize {
        match self {
            Unit::Instructions | Unit::Bytes | Unit::Written => 1,
            Unit::Allocations => 3,
            Unit::Calls | Unit::Syncs => 0,
        }
    }

    /// How far a count may be from the one kept. Names are hashed with a seed that is another one each time, so tables grow a
    /// little sooner or later; which thread comes first, and what the system is asked about the machine, makes a few calls.
    fn tolerance(self, kept: f64) -> f64 {
        match self {
            Unit::Instructions => kept * 0.02,
            // None is none; else one in a hundred operations.
            Unit::Allocations => {
                if kept == 0.0 {
                    0.0
                } else {
                    0.01
                }
            }
            Unit::Bytes => kept * 0.02,
            Unit::Calls => {
                if kept == 0.0 {
                    0.0
                } else {
                    20.0 + kept * 0.02
                }
            }
            Unit::Syncs => 3.0,
            Unit::Written => kept * 0.02,
        }
    }
}

#[derive(Clone, PartialEq)]
pub(crate) struct Count {
    pub(crate) unit: Unit,
    pub(crate) name: String,
    pub(crate) count: f64,
    /// Why it is what it is: of those kept only.
    pub(crate) reason: String,
}

impl Count {
    fn is(&self, other: &Count) -> bool {
        self.unit == other.unit && self.name == other.name
    }

    pub(crate) fn shown(&self) -> String {
        format!("{:.*}", self.unit.decimals(), self.count)
    }
}

pub(crate) struct Kept {
    /// What the instructions were counted with: they hold for nothing else.
    pub(crate) toolchain: String,
    pub(crate) counts: Vec<Count>,
}

const HEAD: &str = "\
# What operations cost, counted. `benches/counts/run` checks it; `benches/counts/run --accept 'why'` takes over what has changed.
# Instructions, allocations and bytes are of one operation, system calls and syncs of 1,000.
# what | of what | count | why it is so
";

const TOOLCHAIN: &str = "toolchain";

impl Kept {
    pub(crate) fn parse(text: &str) -> Result<Kept> {
        let mut kept = Kept { toolchain: String::new(), counts: Vec::new() };
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let fields: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
            match fields[..] {
                [TOOLCHAIN, toolchain] => kept.toolchain = toolchain.to_owned(),
                [unit, name, count, reason] => {
                    let unit = UNITS.into_iter().find(|known| known.name() == unit);
                    let (Some(unit), Ok(count)) = (unit, count.parse()) else {
                        return Err(format!("not a count: {line:?}").into());
                    };
                    kept.counts.push(Count { unit, name: name.into(), count, reason: reason.into() });
                }
                _ => return Err(format!("not a count: {line:?}").into()),
            }
        }
        Ok(kept)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("{HEAD}\n{TOOLCHAIN} | {}\n", self.toolchain);
        let longest = self.counts.iter().map(|count| count.name.len()).max().unwrap_or_default();
        let mut unit = None;
        for count in &self.counts {
            if unit.replace(count.unit) != Some(count.unit) {
                text.push('\n');
            }
            let (unit, shown) = (count.unit.name(), count.shown());
            _ = writeln!(text, "{unit:15} | {:longest$} | {shown:>8} | {}", count.name, count.reason);
        }
        text
    }

    pub(crate) fn find(&self, count: &Count) -> Option<&Count> {
        self.counts.iter().find(|kept| kept.is(count))
    }

    /// What is to be said about `counted`. `comparable` says whether the instructions were counted with the toolchain of those kept.
    pub(crate) fn check(&self, counted: &[Count], comparable: bool) -> Verdict {
        let mut verdict = Verdict::default();
        for count in counted {
            let (what, shown) = (format!("{} of {:?}", count.unit.name(), count.name), count.shown());
            let Some(kept) = self.find(count) else {
                verdict.rises.push(format!("{what}: {shown}, and none is kept"));
                continue;
            };
            if count.unit == Unit::Instructions && !comparable {
                continue;
            }
            let tolerance = count.unit.tolerance(kept.count);
            let change =
                if kept.count == 0.0 { String::new() } else { format!(" ({})", percent(count.count / kept.count)) };
            let line = format!("{what}: {} -> {shown}{change}", kept.shown());
            if count.count > kept.count + tolerance {
                verdict.rises.push(line);
            } else if count.count < kept.count - tolerance {
                verdict.falls.push(line);
            }
        }
        for kept in &self.counts {
            if !counted.iter().any(|count| count.is(kept)) {
                verdict.rises.push(format!("{} of {:?}: kept, and not counted any more", kept.unit.name(), kept.name));
            }
        }
        verdict
    }

    /// Those counted in the place of those kept, with the reason, where they differ by more than the tolerance: so what moves by
    /// a little at a time is seen in the end.
    pub(crate) fn accept(&self, counted: &[Count], toolchain: &str, reason: &str) -> Kept {
        let comparable = toolchain == self.toolchain;
        let take = |count: &Count| match self.find(count) {
            Some(kept) if count.unit == Unit::Instructions && !comparable => {
                let why = format!("{}; counted anew: {reason}", kept.reason);
                Count { reason: why, ..count.clone() }
            }
            Some(kept) if (count.count - kept.count).abs() <= count.unit.tolerance(kept.count) => kept.clone(),
            _ => Count { reason: reason.to_owned(), ..count.clone() },
        };
        Kept { toolchain: toolchain.to_owned(), counts: counted.iter().map(take).collect() }
    }
}

pub(crate) fn percent(ratio: f64) -> String {
    format!("{:+.1} %", (ratio - 1.0) * 100.0)
}

#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) rises: Vec<String>,
    pub(crate) falls: Vec<String>,
}

//! Single writes, each of which returns when a power cut cannot take it any more.

use std::fmt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::input::{self, Member, Random};
use crate::measure::{Lap, Samples, Table, turns};
use crate::peers::{self, Contender, FLOOR, LARDER, PACKED, Peer, Work};
use crate::{Config, Result, settle};

/// Which members are written.
#[derive(Clone, Copy, PartialEq)]
enum Writes {
    /// Ones that were not there, one after the other; the collections come in turns.
    New,
    /// Ones that are there, every one as likely as any other.
    Overwrite,
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Writes::New => "new",
            Writes::Overwrite => "overwrite",
        })
    }
}

const ROWS: [(Writes, usize); 6] = [
    (Writes::New, 1),
    (Writes::New, 4),
    (Writes::New, 16),
    (Writes::Overwrite, 1),
    (Writes::Overwrite, 4),
    (Writes::Overwrite, 16),
];

pub(crate) fn run(config: &Config) -> Result<()> {
    let there = input::members(config.size.there);
    let contenders = peers::doing(Work::Durable);
    let mut figures = ROWS.map(|_| contenders.iter().map(|_| Figures::default()).collect::<Vec<_>>());
    // Whoever creates files soon after others were removed waits for the file system, and with it all who write (ext4 gives a
    // number again only after minutes, and looks at each that it may not give): so all stores stay until the end.
    let stores = config.temporary()?;
    for round in 0..config.size.rounds {
        for (row, &(writes, threads)) in ROWS.iter().enumerate() {
            for which in turns(round, contenders.len()) {
                let contender = contenders[which];
                // More threads do not make a floor: nobody syncs one record at a time faster than one thread does.
                let threads = if contender.name == FLOOR { 1 } else { threads };
                let figures = &mut figures[row][which];
                let dir = stores.path().join(format!("{round}-{row}-{which}"));
                std::fs::create_dir(&dir)?;
                one(config, contender, &dir, &there, (writes, threads), figures)?;
                progress!(config, round, "{writes}, {threads} threads, {}: {}", contender.name, figures.last());
            }
        }
    }
    print(config, &contenders, &figures);
    Ok(stores.close()?)
}

/// Of each round.
#[derive(Default)]
struct Figures {
    /// Writes per second.
    rate: Samples,
    /// What the close took, in seconds.
    close: Samples,
}

impl Figures {
    fn last(&self) -> String {
        format!("{:.0} writes per second, closed in {:.2} s", self.rate.last(), self.close.last())
    }
}

/// A run into a store of its own. It is closed before anybody else runs: what a store leaves to a thread behind it, it does
/// in its own time.
fn one(
    config: &Config,
    contender: &Contender,
    dir: &Path,
    there: &[Member],
    (writes, threads): (Writes, usize),
    figures: &mut Figures,
) -> Result<()> {
    let open = |work| (contender.open)(dir, work);
    let peer = open(Work::Bulk)?;
    peer.load(there, &mut Lap::start())?;
    peer.close()?;
    let peer = open(Work::Durable)?;
    settle(config)?;

    let run = Run { peer: &*peer, there: there.len(), next: AtomicUsize::new(there.len()) };
    let rate = run.writes(writes, threads, config.size.run);
    figures.rate.push(rate.map_err(|error| format!("{}: {error}", contender.name))?);
    let new = there.len()..run.next.into_inner();

    let lap = Lap::start();
    peer.close()?;
    figures.close.push(lap.stop().1);

    // A run that has stored nothing would be fast.
    let peer = open(Work::Bulk)?;
    check(contender, &*peer, new)?;
    peer.close()
}

fn print(config: &Config, contenders: &[&Contender], figures: &[Vec<Figures>]) {
    let Config { size, .. } = config;
    println!("\n## durable\n");
    println!(
        "Each write returns when it is durable. Keys of {} bytes, values of {}; each run takes {:?}, and begins with a \
         store of {} members. Then the store is closed, which includes what it has left for later.",
        input::KEY,
        input::VALUE,
        size.run,
        size.there
    );
    let table = |head: &str, figure: &dyn Fn(&Figures) -> &Samples| {
        let mut table = Table::new(format!("{head} | threads"), contenders.iter().map(|contender| contender.name));
        for ((writes, threads), figures) in ROWS.iter().zip(figures) {
            table.row(format!("{writes} | {threads}"), figures.iter().map(|figures| figure(figures).clone()));
        }
        table
    };
    let (floor, larder) = (peers::place(contenders, FLOOR), peers::place(contenders, LARDER));
    let rates = table("writes per second", &|figures| &figures.rate);
    rates.print(0);
    rates.over("writes per raw `fdatasync` of one thread | threads", floor).without(&[FLOOR]).print(2);
    println!("\nThe goals for larder: 0.83 with one thread, and 9.6, which is 0.6 for each thread, with 16.");
    rates.under("larder's writes to one of | threads", larder).without(&[FLOOR, LARDER, PACKED]).print(2);
    table("seconds to close afterwards", &|figures| &figures.close).without(&[FLOOR]).print(2);
}

/// Some threads that write.
struct Run<'a> {
    peer: &'a dyn Peer,
    /// The members that were there from the beginning, and the first one that is not there yet.
    there: usize,
    next: AtomicUsize,
}

impl Run<'_> {
    /// Writes for so long, and returns writes per second: those that have returned by then. A thread that waits for the
    /// others at the end, as SQLite's do, sleeping, does not make the time longer.
    fn writes(&self, writes: Writes, threads: usize, run: Duration) -> Result<f64> {
        let start = Barrier::new(threads);
        let one = |thread: usize| -> Result<usize> {
            let session = self.peer.session();
            // Nobody waits for a thread that has failed before.
            start.wait();
            let mut session = session?;
            let mut random = Random::new((threads * 100 + thread) as u64);
            let mut key = String::with_capacity(input::KEY);
            let (mut done, began) = (0, Instant::now());
            loop {
                let (member, seed) = match writes {
                    Writes::New => {
                        let member = self.next.fetch_add(1, Ordering::Relaxed);
                        (member, member as u64)
                    }
                    Writes::Overwrite => (random.below(self.there), random.next()),
                };
                input::set_key(&mut key, member);
                session.put(&key, &input::value(seed))?;
                if began.elapsed() > run {
                    return Ok(done);
                }
                done += 1;
            }
        };
        let done: usize = std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().expect("a writer panicked"));
            joined.sum::<Result<usize>>()
        })?;
        Ok(done as f64 / run.as_secs_f64())
    }
}

/// Whether members are there: the last one, and some of those before.
pub(crate) fn check(contender: &Contender, peer: &dyn Peer, members: std::ops::Range<usize>) -> Result<()> {
    let last = members.clone().next_back();
    for member in members.clone().step_by((members.len() / 100).max(1)).chain(last) {
        let member = Member::new(member);
        if !peer.holds(&member)? {
            return Err(format!("{} has lost {}", contender.name, member.key).into());
        }
    }
    Ok(())
}

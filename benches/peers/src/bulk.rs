//! Many members from one thread, until all are durable.

use crate::durable::check;
use crate::input::{self, COLLECTIONS, Member};
use crate::measure::{Lap, Samples, Table, turns};
use crate::peers::{self, Contender, FLOOR, LARDER, PACKED, Work, weight};
use crate::{Config, Result, machine, settle};

/// In seconds, of each round.
#[derive(Default)]
struct Times {
    /// Until the last put returned. Where there is one call for all, there is no such time.
    put: Samples,
    durable: Samples,
    close: Samples,
    /// The two together.
    rest: Samples,
    /// Opened again, and every member read, from the system's cache.
    reread: Samples,
    /// The same, from the disk, where the cache can be dropped.
    cold: Samples,
    /// Of the disk, in millions.
    megabytes: Samples,
}

impl Times {
    const COLUMNS: [&str; 7] = [
        "the puts returned",
        "all was durable",
        "close",
        "durable and closed",
        "opened and all read, warm",
        "cold",
        "MB on the disk",
    ];

    fn all(&self) -> [&Samples; Times::COLUMNS.len()] {
        let Times { put, durable, close, rest, reread, cold, megabytes } = self;
        [put, durable, close, rest, reread, cold, megabytes]
    }
}

pub(crate) fn run(config: &Config) -> Result<()> {
    let members = input::members(config.size.bulk);
    let contenders = peers::doing(Work::Bulk);
    let of = |contender: &Contender| &members[..contender.members(members.len(), config.size.files)];
    let mut times: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    for round in 0..config.size.rounds {
        for which in turns(round, contenders.len()) {
            let contender = contenders[which];
            one(config, contender, of(contender), &mut times[which])?;
            let Times { durable, close, .. } = &times[which];
            let (durable, close) = (durable.last(), close.last());
            progress!(config, round, "bulk, {}: durable in {durable:.2} s, closed in {close:.2} s", contender.name);
        }
    }
    println!("\n## bulk\n");
    println!(
        "Members in {COLLECTIONS} collections, keys of {} bytes, values of {}, from one thread, into an empty store; \
         seconds.",
        input::KEY,
        input::VALUE
    );
    let mut table = Table::new(" | members", Times::COLUMNS);
    for (contender, times) in contenders.iter().zip(&times) {
        table.row(format!("{} | {}", contender.name, of(contender).len()), times.all().map(Clone::clone));
    }
    table.print(2);
    // For as many members: one of them has fewer.
    let mut per_member = Table::new("", contenders.iter().map(|contender| contender.name));
    for (place, column) in Times::COLUMNS.into_iter().enumerate() {
        let each = |(contender, times): (&&Contender, &Times)| times.all()[place].each(of(contender).len() as f64);
        per_member.row(column, contenders.iter().zip(&times).map(each));
    }
    for mine in [LARDER, PACKED] {
        let place = peers::place(&contenders, mine);
        let ratios = per_member.under("", place).without(&[LARDER, PACKED]);
        ratios.turned(&format!("{mine}, for as many members, to that of")).without(&["close"]).print(2);
    }
    Ok(())
}

fn one(config: &Config, contender: &Contender, members: &[Member], times: &mut Times) -> Result<()> {
    let dir = config.temporary()?;
    let peer = (contender.open)(dir.path(), Work::Bulk)?;
    settle(config)?;

    let mut lap = Lap::start();
    peer.load(members, &mut lap)?;
    let (put, durable) = lap.stop();

    let lap = Lap::start();
    peer.close()?;
    let (_, close) = lap.stop();

    if let Some(put) = put {
        times.put.push(put);
    }
    times.durable.push(durable);
    times.close.push(close);
    times.rest.push(durable + close);

    settle(config)?;
    times.megabytes.push(machine::taken(dir.path())? as f64 / 1e6);
    let all: usize = members.iter().map(|member| weight(member.key.len(), &member.value)).sum();
    for cold in [false, true] {
        if cold && !machine::drop_cache() {
            continue;
        }
        let lap = Lap::start();
        let peer = (contender.open)(dir.path(), Work::Bulk)?;
        let read = peer.read_all()?;
        let (_, time) = lap.stop();
        if contender.name != FLOOR {
            if read != all {
                return Err(format!("{} has {read} bytes of {all}", contender.name).into());
            }
            if cold { times.cold.push(time) } else { times.reread.push(time) }
        }
        check(contender, &*peer, 0..members.len())?;
        peer.close()?;
    }
    Ok(dir.close()?)
}

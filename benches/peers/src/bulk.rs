//! Many members from one thread, until all are durable.

use crate::durable::check;
use crate::input::{self, COLLECTIONS, Member};
use crate::measure::{Lap, Samples, turns};
use crate::peers::{ALL, FLOOR, LARDER, PACKED, PEERS, Work};
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

pub(crate) fn run(config: &Config) -> Result<()> {
    let members = input::members(config.size.bulk);
    let mut times: [Times; ALL.len()] = Default::default();
    for round in 0..config.size.rounds {
        for which in turns(round, ALL.len()) {
            one(config, which, &members, &mut times[which])?;
            let Times { durable, close, .. } = &times[which];
            let (durable, close) = (durable.last(), close.last());
            progress!(config, round, "bulk, {}: durable in {durable:.2} s, closed in {close:.2} s", ALL[which].name);
        }
    }
    let count = members.len();
    println!("\n## bulk\n");
    println!(
        "{count} members in {COLLECTIONS} collections, keys of {} bytes, values of {}, from one thread, into an empty \
         store; seconds.\n",
        input::KEY,
        input::VALUE
    );
    println!(
        "| | the puts returned | all was durable | members per second | close | durable and closed | opened and all read, \
         warm | cold | MB on the disk |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (contender, Times { put, durable, close, rest, reread, cold, megabytes }) in ALL.iter().zip(&times) {
        let rate = durable.per(count);
        println!(
            "| {} | {put:.2} | {durable:.2} | {rate} | {close:.2} | {rest:.2} | {reread:.2} | {cold:.2} | {megabytes:.0} |",
            contender.name
        );
    }
    for mine in [LARDER, PACKED] {
        let larder = &times[mine];
        println!(
            "\n| time of {} to that of | until durable | until durable and closed | warm | cold |",
            ALL[mine].name
        );
        println!("| --- | --- | --- | --- | --- |");
        for which in std::iter::once(FLOOR).chain(PEERS) {
            let Times { durable, rest, reread, cold, .. } = &times[which];
            let (durable, rest) = (larder.durable.over(durable), larder.rest.over(rest));
            let (reread, cold) = (larder.reread.over(reread), larder.cold.over(cold));
            println!("| {} | {durable:.2} | {rest:.2} | {reread:.2} | {cold:.2} |", ALL[which].name);
        }
    }
    Ok(())
}

fn one(config: &Config, which: usize, members: &[Member], times: &mut Times) -> Result<()> {
    let dir = config.temporary()?;
    let peer = (ALL[which].open)(dir.path(), Work::Bulk)?;
    settle(&config.dir)?;

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

    settle(&config.dir)?;
    times.megabytes.push(machine::taken(dir.path())? as f64 / 1e6);
    let bytes: usize =
        members.iter().map(|member| member.key.len() + usize::from(member.value[0] & 1) + input::VALUE).sum();
    for cold in [false, true] {
        if cold && !machine::drop_cache() {
            continue;
        }
        let lap = Lap::start();
        let peer = (ALL[which].open)(dir.path(), Work::Bulk)?;
        let read = peer.read_all()?;
        let (_, time) = lap.stop();
        if which != FLOOR && read != bytes {
            return Err(format!("{} has {read} bytes of {bytes}", ALL[which].name).into());
        }
        if cold {
            times.cold.push(time)
        } else {
            times.reread.push(time)
        }
        check(which, &*peer, 0..members.len())?;
        peer.close()?;
    }
    Ok(dir.close()?)
}

//! Gets and puts of a struct. Maps hold it, counted; a store gets its bytes and gives them back, so whoever uses one
//! encodes and decodes.

use serde::{Deserialize, Serialize};

use crate::input::{COLLECTIONS, Keys, Mix, Ops};
use crate::loops::Loop;
use crate::maps::{self, Typed};
use crate::measure::{Samples, Table, steps, turns};
use crate::peers::{self, Contender, PACKED, Peer, Work};
use crate::{Config, Result, settle};

/// Two strings, a number and a list.
#[derive(Clone, Serialize, Deserialize)]
struct Track {
    title: String,
    artist: String,
    /// Always 0, see [`maps::Map`].
    skips: u64,
    plays_by_month: Vec<u32>,
}

impl Typed for Track {
    fn zero(&self) -> usize {
        self.skips as usize
    }
}

fn track() -> Track {
    let (title, artist) = ("Harder, Better, Faster, Stronger".to_owned(), "Daft Punk".to_owned());
    Track { title, artist, skips: 0, plays_by_month: (0..12).map(|month| 1_000 + month * 37).collect() }
}

/// How a store's user encodes it.
struct Codec {
    name: &'static str,
    encode: fn(&Track) -> Result<Vec<u8>>,
    decode: fn(&[u8]) -> Result<Track>,
}

const CODECS: [Codec; 2] = [
    Codec {
        name: "bincode",
        encode: |track| Ok(bincode::serde::encode_to_vec(track, bincode::config::standard())?),
        decode: |bytes| Ok(bincode::serde::decode_from_slice(bytes, bincode::config::standard())?.0),
    },
    Codec {
        name: "JSON",
        encode: |track| Ok(serde_json::to_vec(track)?),
        decode: |bytes| Ok(serde_json::from_slice(bytes)?),
    },
];

/// Members that are put at once, to fill a store.
const BATCH: usize = 1_000;

pub(crate) fn run(config: &Config) -> Result<()> {
    let members = config.size.members;
    let dir = config.temporary()?;
    let all = maps::typed(dir.path(), &track())?;
    for (_, map) in &all {
        maps::fill(&**map, members)?;
    }
    let mut in_maps = Table::new("ns | loop | threads", all.iter().map(|(name, _)| *name));
    for (what, puts) in [("get", 0), ("put, overwrite", 100)] {
        for threads in [1, 2] {
            let ops = Mix { keys: Keys::Uniform, puts }.operations(members, members, threads);
            for how in [Loop::Overlapping, Loop::Dependent] {
                let mut samples = vec![Samples::default(); all.len()];
                for round in 0..config.size.rounds {
                    for which in turns(round, all.len()) {
                        samples[which].push(all[which].1.run(&ops, how));
                        all[which].1.settle()?;
                    }
                }
                in_maps.row(format!("{what} | {how} | {threads}"), samples);
            }
        }
    }
    eprintln!("typed: maps");
    drop(all);
    dir.close()?;

    let sizes = CODECS.iter().map(|codec| Ok(format!("{} bytes of {}", (codec.encode)(&track())?.len(), codec.name)));
    let sizes: Vec<String> = sizes.collect::<Result<_>>()?;
    println!("\n## typed\n");
    println!(
        "{members} members in {COLLECTIONS} collections: a struct with two strings, a number and a list of twelve, {}. \
         Uniform keys. larder and the maps hand out a counted handle, and a put makes a new struct.",
        sizes.join(", ")
    );
    in_maps.print(0);
    in_maps.under("larder, handles, to | loop | threads", 0).without(&["larder, handles"]).print(2);
    in_stores(config, &in_maps)
}

/// The stores, one codec after the other; the first column is larder's, from the table of maps.
fn in_stores(config: &Config, in_maps: &Table) -> Result<()> {
    let contenders = peers::doing(Work::Unsynced);
    let contenders: Vec<&Contender> = contenders.into_iter().filter(|contender| contender.name != PACKED).collect();
    let members = config.size.members;
    let ops = Mix { keys: Keys::Uniform, puts: 0 }.operations(members, config.size.store_ops, 1).remove(0);
    let names = || contenders.iter().map(|contender| contender.name);
    let mut times = Table::new("µs", std::iter::once("larder, handles, packed").chain(names()));
    for codec in &CODECS {
        let mut dirs = Vec::new();
        for contender in &contenders {
            let dir = config.temporary()?;
            let peer = (contender.open)(dir.path(), Work::Unsynced)?;
            fill(&*peer, members, &(codec.encode)(&track())?)?;
            peer.settle()?;
            peer.close()?;
            dirs.push(dir);
        }
        let mut samples = [const { Vec::new() }; 2].map(|_: Vec<Samples>| vec![Samples::default(); contenders.len()]);
        for round in 0..config.size.rounds {
            for which in turns(round, contenders.len()) {
                settle(config)?;
                let peer = (contenders[which].open)(dirs[which].path(), Work::Unsynced)?;
                // Who reads what it needs has it in memory then.
                peer.read_all()?;
                let (get, put) = one(config, &*peer, codec, &ops)
                    .map_err(|error| format!("{}, {}: {error}", contenders[which].name, codec.name))?;
                samples[0][which].push(get / 1e3);
                samples[1][which].push(put / 1e3);
                peer.close()?;
            }
            progress!(config, round, "typed: stores, {}", codec.name);
        }
        for (what, samples) in ["get", "put, overwrite"].into_iter().zip(samples) {
            let larder = in_maps.cell(&format!("{what} | {} | 1", Loop::Dependent), "larder, handles, packed");
            times.row(format!("{what}, {}", codec.name), std::iter::once(larder.each(1e3)).chain(samples));
        }
    }
    times.print(2);
    times.over("to larder's", 0).without(&["larder, handles, packed"]).print(1);
    println!(
        "\nStores in operations of a transaction each, without a sync; encoding and decoding are in the time. larder's are \
         from the table above, of the dependent loop."
    );
    Ok(())
}

fn fill(peer: &dyn Peer, members: usize, value: &[u8]) -> Result<()> {
    let mut session = peer.session()?;
    for first in (0..members).step_by(BATCH) {
        let ops = Ops::each(first..(first + BATCH).min(members));
        let batch: Vec<(&str, &[u8])> = ops.keys(0..ops.len()).into_iter().map(|key| (key, value)).collect();
        session.put_batch(&batch)?;
    }
    Ok(())
}

/// Nanoseconds for a get, and for a put.
fn one(config: &Config, peer: &dyn Peer, codec: &Codec, ops: &Ops) -> Result<(f64, f64)> {
    let mut session = peer.session()?;
    let time = config.size.store_time;
    let get = steps(ops.len(), 1, time, |at| {
        let mut decoded = None;
        session.get(ops.key(at).0, &mut |bytes| decoded = Some((codec.decode)(bytes)))?;
        let track = decoded.ok_or("a get found nothing")??;
        if track.zero() == 0 { Ok(()) } else { Err("a get found something else".into()) }
    })?;
    let template = track();
    let put = steps(ops.len(), 1, time, |at| {
        let bytes = (codec.encode)(&template.clone())?;
        session.put(ops.key(at).0, &bytes)
    })?;
    drop(session);
    peer.settle()?;
    Ok((get, put))
}

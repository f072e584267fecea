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
    in_stores(config)
}

/// larder's name beside the stores.
const LARDER: &str = "larder, handles, packed";

/// The stores, one codec after the other, and larder, which has nothing to encode before the put returns.
fn in_stores(config: &Config) -> Result<()> {
    let contenders = peers::doing(Work::Unsynced);
    let contenders: Vec<&Contender> = contenders.into_iter().filter(|contender| contender.name != PACKED).collect();
    let members = config.size.members;
    let dir = config.temporary()?;
    let larder = maps::typed_on_disk(dir.path(), track())?;
    maps::fill(&*larder, members)?;
    let uniform = |puts| Mix { keys: Keys::Uniform, puts }.operations(members, config.size.store_ops, 1);
    let (gets, puts) = (uniform(0), uniform(100));
    let names = contenders.iter().map(|contender| contender.name);
    let mut times = Table::new("µs", std::iter::once(LARDER).chain(names));
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
        let new = || vec![Samples::default(); contenders.len() + 1];
        let (mut get, mut put) = (new(), new());
        for round in 0..config.size.rounds {
            for which in turns(round, contenders.len() + 1) {
                settle(config)?;
                let (got, took) = match which.checked_sub(1) {
                    None => {
                        let times = (larder.run(&gets, Loop::Dependent), larder.run(&puts, Loop::Dependent));
                        larder.settle()?;
                        times
                    }
                    Some(place) => {
                        let Contender { name, open, .. } = contenders[place];
                        let peer = open(dirs[place].path(), Work::Unsynced)?;
                        // Who reads what it needs has it in memory then.
                        peer.read_all()?;
                        let times = one(config, &*peer, codec, &gets[0]);
                        peer.close()?;
                        times.map_err(|error| format!("{name}, {}: {error}", codec.name))?
                    }
                };
                get[which].push(got / 1e3);
                put[which].push(took / 1e3);
            }
            progress!(config, round, "typed: stores, {}", codec.name);
        }
        times.row(format!("get, {}", codec.name), get);
        times.row(format!("put, overwrite, {}", codec.name), put);
    }
    times.print(2);
    times.over("to larder's", 0).without(&[LARDER]).print(1);
    println!(
        "\nOf stores each operation is a transaction, without a sync; encoding and decoding are in the time. larder's are \
         of a dependent loop."
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

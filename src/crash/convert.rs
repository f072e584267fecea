//! A store that is being moved from one layout to the other, crashed anywhere: it opens as what it was, or as what it was
//! to become, with exactly the same members, and the conversion goes on.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::run::{HOME, Setting, Start, clock_at, layout_of, live, look, open, same};
use super::states::{Disk, MODELS, Model, Rng};
use super::tell;
use super::workload::{Act, BEGIN, Broken, Held, LATE, Members, SOON};
use crate::backend::{Backend, Change, Layout, Packed, convert_on};
use crate::core::Engine;
use crate::fs::sim::{EIO, EMFILE, ENOSPC, EROFS, Fault, Image, Mark, Op, Sim, Without};
use crate::journal::PROCESS;

/// The most images that are made of one moment of a run, under one model.
const MOST: usize = 100;

/// The same where little is to be found.
const FEW: usize = 8;

const ERRORS: [(i32, &str); 4] = [(EIO, "EIO"), (ENOSPC, "ENOSPC"), (EMFILE, "EMFILE"), (EROFS, "EROFS")];

/// One image in so many is used by a store in the layout that it has, and then moved, too.
const USED: u128 = 4;

/// What somebody has put beside the members of a collection: its directory stays.
const FOREIGN: &str = "many/Notes.TXT";

/// A closed store with members, of which some were overwritten, deleted and cleared, and some have a deadline. What is
/// packed is in one segment as far as it is old, and the deletes are in another.
fn filled(layout: Layout, sync_fs: bool) -> Start {
    let start = Start::filled(layout);
    let mut old: Vec<Act> = (0..12).map(|number| Act::Put(format!("many/{number}"), 0)).collect();
    old.extend([Act::Delete("many/0".into()), Act::Expire("many/5".into(), Some(SOON)), Act::Flush]);
    let new = [Act::Put("a/1".into(), 0), Act::Delete("b/1".into()), Act::DeleteAll("a".into())];
    let more = [
        Act::PutFor("a/3".into(), 0, SOON),
        Act::Expire("many/6".into(), Some(LATE)),
        Act::Expire("b/2".into(), None),
        Act::Delete("many/3".into()),
        Act::Flush,
    ];
    let lived = |start: &Start, workload: Vec<Act>, settle| {
        let sim = Sim::new(&start.image, HOME, sync_fs);
        let setting = Setting { immediate: false, sync_fs, settle, layout };
        let operations = workload.len();
        let history = live(&sim, setting, start, workload).unwrap_or_else(|broken| panic!("{broken}"));
        let (members, numbers) = (history.after(operations), history.numbers(operations));
        Start { image: sim.image(), members, numbers, time: start.time }
    };
    let start = lived(&start, old, layout == Layout::Packed);
    let mut start = lived(&start, [&new[..], &more].concat(), false);
    if layout == Layout::Files {
        let foreign = format!("{}/{FOREIGN}", HOME.trim_start_matches('/'));
        start.image.0.insert(foreign, Some(Arc::new(b"somebody's".to_vec())));
    }
    start
}

/// A closed packed store of two segments, with what is older and what is newer. Packed, the older has the higher number: the other
/// was being written meanwhile.
fn of_two_segments(sync_fs: bool, is_packed: bool) -> Start {
    let put = |collection, member, version, value| Change::Put {
        collection,
        member,
        version,
        deadline: None,
        codec: "raw",
        value,
    };
    let old = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2")];
    let old: Vec<_> =
        (1..).zip(old).map(|(version, (collection, member))| put(collection, member, version, b"old")).collect();
    let new = [
        put("a", "1", 6, b"new"),
        Change::Delete { collection: "a", member: "2", version: 7 },
        Change::Clear { collection: "b", version: 8 },
    ];
    let sim = Sim::new(&Start::empty().image, HOME, sync_fs);
    PROCESS.set(sim.process());
    let mut packed = Packed::on(Arc::new(sim.clone()), Path::new(HOME)).unwrap();
    Engine::read(&mut packed).unwrap();
    packed.apply(&old).unwrap();
    packed.sync().unwrap();
    packed.seal();
    packed.apply(&new).unwrap();
    packed.sync().unwrap();
    if is_packed {
        packed.compact_now();
    }
    packed.close(8).unwrap();
    PROCESS.set(0);
    let held = |value: &[u8]| Held { value: Arc::new(value.to_vec()), deadline: None };
    let members = [("a/1".to_owned(), held(b"new")), ("a/3".to_owned(), held(b"old"))].into();
    Start { image: sim.image(), members, numbers: 8, time: BEGIN }
}

/// What is moved, crashed and killed.
fn starts(from: Layout, sync_fs: bool) -> Vec<Start> {
    let mut starts = vec![filled(from, sync_fs)];
    if from == Layout::Packed {
        starts.extend([true, false].map(|is_packed| of_two_segments(sync_fs, is_packed)));
    }
    starts
}

fn convert(sim: &Sim, layout: Layout) -> Result<(), Broken> {
    PROCESS.set(sim.process());
    let done = convert_on(Arc::new(sim.clone()), Path::new(HOME), layout);
    PROCESS.set(0);
    done.map_err(|error| Broken::new("a conversion completes", error.to_string()))
}

fn other(layout: Layout) -> Layout {
    if layout == Layout::Files { Layout::Packed } else { Layout::Files }
}

/// The disk has the layout and the members, and nothing beside them.
fn is_whole(sim: &Sim, layout: Layout, members: &Members) -> Result<(), Broken> {
    let image = sim.image();
    let found = layout_of(&image);
    if found != layout {
        return Err(Broken::new("a conversion ends in its layout", format!("it is {found}")));
    }
    let home = HOME.trim_start_matches('/');
    let files = |part: &str| {
        let below = image.0.iter().filter(|(_, bytes)| bytes.is_some());
        let below = below.filter_map(|(path, _)| path.strip_prefix(home)?.strip_prefix('/'));
        below.filter(|path| path.starts_with(part) && *path != FOREIGN).count()
    };
    let of_members = files("") - files(".larder/");
    let left = (of_members, files(".larder/tmp/"), if layout == Layout::Files { files(".larder/journal/") } else { 0 });
    let expected = (if layout == Layout::Files { members.len() } else { 0 }, 0, 0);
    if left != expected {
        return Err(Broken::new("nothing is left over", format!("{left:?} rather than {expected:?}")));
    }
    same("what was moved is there", &look(&Sim::new(&image, HOME, true), layout)?, members)
}

/// Opens an image as whoever comes next does.
fn check(image: &Image, hash: u128, to: Layout, members: &Members) -> Result<(), Broken> {
    let layout = layout_of(image);
    let new = || Sim::new(image, HOME, true);
    same("every member is there, and no other", &look(&new(), layout)?, members)?;
    let sim = new();
    convert(&sim, to)?;
    is_whole(&sim, to, members)?;
    if hash.is_multiple_of(2) {
        let sim = new();
        convert(&sim, other(to))?;
        is_whole(&sim, other(to), members)?;
    }
    if hash.is_multiple_of(USED) {
        // What is left over must not undo what is written from here on.
        let sim = new();
        let setting = Setting { immediate: false, sync_fs: true, settle: false, layout };
        let went_wrong = |error: crate::Error| Broken::new("nothing fails on a healthy disk", error.to_string());
        let (store, found) = open(&sim, setting, &clock_at(BEGIN))?;
        same("a store finds what a look does", &found, members)?;
        let mut after = found;
        for key in ["many/1", "many/2", "b/2"] {
            store.delete(key).map_err(went_wrong)?;
            after.remove(key);
        }
        store.put("many/4", "new").map_err(went_wrong)?;
        after.insert("many/4".into(), Held { value: Arc::new(b"new".to_vec()), deadline: None });
        store.close().map_err(went_wrong)?;
        same("what was closed is there", &look(&Sim::new(&sim.image(), HOME, true), layout)?, &after)?;
        convert(&sim, other(layout))?;
        is_whole(&sim, other(layout), &after)?;
    }
    Ok(())
}

/// Crashes a conversion everywhere. The number of distinct images, or what is broken.
fn crash(
    start: &Start,
    to: Layout,
    sync_fs: bool,
    without: Option<&Without>,
    most: usize,
) -> Result<(usize, Sim), String> {
    let members = start.members.clone();
    let sim = Sim::new(&start.image, HOME, sync_fs);
    sim.leave_out(without.cloned());
    sim.record();
    convert(&sim, to).map_err(|broken| broken.to_string())?;
    sim.mark(Mark::Promised(0));
    let log = sim.take_log();
    is_whole(&sim, to, &members).map_err(|broken| broken.to_string())?;
    let mut seen = HashSet::new();
    for model in MODELS {
        crash_under(model, (&log, 0), start, to, &members, most, &mut seen).map_err(|(broken, fates)| {
            let log = tell::log(&start.image, &log, &fates, &Vec::new());
            format!("to {to}, {model:?}: {broken}\n{log}")
        })?;
    }
    Ok((seen.len(), sim))
}

/// Crashes a record from a place in it on.
fn crash_under(
    model: Model,
    (log, from): (&[Op], usize),
    start: &Start,
    to: Layout,
    members: &Members,
    most: usize,
    seen: &mut HashSet<u128>,
) -> Result<(), (Broken, super::states::Fates)> {
    let mut rng = Rng(to as u64);
    let mut disk = Disk::new(model, &start.image);
    let mut result = Ok(());
    for (place, op) in log.iter().enumerate() {
        let last = match op {
            Op::Mark(_) => None,
            op if disk.follow(place, op) => Some(place),
            _ => continue,
        };
        if place < from {
            continue;
        }
        let is_over = last.is_none();
        disk.images(last, most, &mut rng, &mut |image, fates| {
            let hash = image.hash();
            if seen.insert(hash) {
                let checked = check(&image, hash, to, members);
                // Once it has returned, a crash does not take it back.
                let checked = checked.and_then(|()| {
                    let stays = !is_over || layout_of(&image) == to;
                    if stays {
                        Ok(())
                    } else {
                        Err(Broken::new("a conversion that returned is durable", String::new()))
                    }
                });
                if let Err(broken) = checked {
                    result = Err((broken, fates));
                }
            }
            result.is_ok()
        });
        result.clone()?;
    }
    Ok(())
}

#[test]
fn a_conversion_that_is_crashed_anywhere_keeps_every_member_and_goes_on() {
    let mut images = 0;
    for from in [Layout::Files, Layout::Packed] {
        for sync_fs in [true, false] {
            for start in starts(from, sync_fs).into_iter().chain([Start::filled(from)]) {
                images += crash(&start, other(from), sync_fs, None, MOST).unwrap_or_else(|broken| panic!("{broken}")).0;
            }
        }
    }
    tell::line(&format!("crashed conversions: {images} distinct images opened and moved"));
    assert!(images > 1000);
}

/// What stands below the store and did not when it began, beside small files that say what was so already.
fn left_over(start: &Image, end: &Image) -> Vec<String> {
    let small = ["counter", "members", "segments", "lock"].map(|name| format!(".larder/{name}"));
    let new = end.0.iter().filter(|(path, bytes)| bytes.is_some() && !start.0.contains_key(*path));
    new.map(|(path, _)| path.clone()).filter(|path| !small.iter().any(|name| path.ends_with(name))).collect()
}

/// The members that there are where a file could not be read since the medium is bad: the rest of them is in quarantine.
fn but_for_what_is_aside(image: &Image, members: &Members) -> Option<Members> {
    let quarantine = format!("{}/.larder/quarantine/", HOME.trim_start_matches('/'));
    let aside = image.0.iter().filter(|(path, _)| path.starts_with(&quarantine) && !path.ends_with(".reason"));
    let aside: Vec<_> = aside.filter_map(|(_, bytes)| bytes.clone()).collect();
    let is_aside = |key: &str| {
        let quoted = format!(" key=\"{key}\" ").into_bytes();
        aside.iter().any(|bytes| bytes.windows(quoted.len()).any(|window| window == quoted))
    };
    let left = members.iter().filter(|(key, _)| !is_aside(key)).map(|(key, held)| (key.clone(), held.clone()));
    (!aside.is_empty()).then(|| left.collect())
}

/// Each call fails, once, as on a full disk on which room is found again, by what is removed, or from then on. When the disk
/// is well again the same call goes on. On top of that it is crashed.
#[test]
fn a_conversion_that_fails_leaves_nothing_of_what_it_wrote_and_every_member_wherever_it_is_crashed() {
    let (mut failed, mut undone, mut unread, mut images) = (0, 0, 0, 0);
    for from in [Layout::Files, Layout::Packed] {
        let sim = Sim::new(&filled(from, true).image, HOME, true);
        // What was left in the journal is in files.
        convert(&sim, from).unwrap_or_else(|broken| panic!("{broken}"));
        let start = Start { image: sim.image(), ..filled(from, true) };
        for (errno, name) in ERRORS {
            for sticky in [false, true] {
                for at in 0.. {
                    let sim = Sim::new(&start.image, HOME, true);
                    sim.record();
                    sim.set_fault(Some(Fault { at, sticky, errno }));
                    let done = convert_on(Arc::new(sim.clone()), Path::new(HOME), other(from));
                    let struck = sim.struck() > 0;
                    sim.set_fault(None);
                    if !struck {
                        done.unwrap();
                        break;
                    }
                    let (end, log) = (sim.image(), sim.take_log());
                    let told = |what: &dyn std::fmt::Display| {
                        format!("from {from}, {name} at call {at}, sticky {sticky}: {what}")
                    };
                    let left = but_for_what_is_aside(&end, &start.members);
                    let members = left.as_ref().unwrap_or(&start.members);
                    match &done {
                        Ok(()) => assert!(layout_of(&end) == other(from), "{}", told(&"it is not moved")),
                        Err(error) => {
                            failed += 1;
                            let is_of_the_disk = matches!(error, crate::Error::Io { path, .. } if path.is_absolute());
                            assert!(is_of_the_disk, "{}", told(error));
                        }
                    }
                    if left.is_some() {
                        unread += 1;
                        assert!(errno == EIO, "{}", told(&"something is in quarantine"));
                    } else if done.is_err() && !sticky && layout_of(&end) == from {
                        undone += 1;
                        let mut left = left_over(&start.image, &end);
                        // The close before it may have failed: the next load removes what that has left.
                        left.retain(|path| errno == ENOSPC || !path.contains("/.larder/tmp/"));
                        assert!(left.is_empty(), "{}", told(&format!("{left:?} is left over")));
                    }
                    // Both there and back, if what is left of it is so.
                    check(&end, at as u128, other(from), members).unwrap_or_else(|broken| panic!("{}", told(&broken)));
                    let often = errno == ENOSPC && !sticky;
                    if left.is_some() || !often && at % 4 != 0 {
                        continue;
                    }
                    let (most, mut seen) = (if often { FEW } else { 2 }, HashSet::new());
                    for model in MODELS {
                        let crashed = crash_under(model, (&log, 0), &start, other(from), members, most, &mut seen);
                        crashed.unwrap_or_else(|(broken, _)| panic!("{}", told(&broken)));
                    }
                    images += seen.len();
                }
            }
        }
    }
    tell::line(&format!(
        "conversions that fail: {failed}, {undone} undone, {unread} that could not read a member; {images} images of them \
         opened and moved"
    ));
    assert!(failed > 1000 && undone > 200, "{failed} failed, {undone} were undone");
}

/// A process that converts is killed, and the next one finds what it left, durable or not: it moves the store on, or uses
/// it as what it is.
#[test]
fn a_conversion_that_is_killed_keeps_every_member_wherever_the_next_process_is_crashed() {
    let (mut kills, mut images) = (0, 0);
    let layouts = [Layout::Files, Layout::Packed];
    for (from, start) in
        layouts.into_iter().flat_map(|from| starts(from, true).into_iter().map(move |start| (from, start)))
    {
        let to = other(from);
        let mut seen = HashSet::new();
        for calls in 0.. {
            let sim = Sim::new(&start.image, HOME, true);
            sim.record();
            sim.kill_after(calls);
            if convert(&sim, to).is_ok() {
                break;
            }
            let (next, killed_at, layout) = (sim.next_process(), sim.logged(), layout_of(&sim.image()));
            let gone_on = if calls % 2 == 0 {
                convert(&next, to).inspect(|()| next.mark(Mark::Promised(0)))
            } else {
                let setting = Setting { immediate: false, sync_fs: true, settle: false, layout };
                open(&next, setting, &clock_at(BEGIN)).and_then(|(store, found)| {
                    same("a store finds what a look does", &found, &start.members)?;
                    store.close().map(drop).map_err(|error| Broken::new("it can be closed", error.to_string()))
                })
            };
            let told = |broken: &Broken| format!("from {from}, killed at {calls}: {broken}");
            gone_on.unwrap_or_else(|broken| panic!("{}", told(&broken)));
            let log = sim.take_log();
            for model in MODELS {
                let crashed = crash_under(model, (&log, killed_at), &start, to, &start.members, FEW, &mut seen);
                crashed.unwrap_or_else(|(broken, fates)| {
                    panic!("{}\n{model:?}\n{}", told(&broken), tell::log(&start.image, &log, &fates, &Vec::new()))
                });
            }
            kills += 1;
        }
        images += seen.len();
    }
    tell::line(&format!("conversions that are killed: {kills}; {images} images of crashes after them opened"));
    assert!(kills > 100, "{kills}");
}

/// Barriers without which no crash shows anything, by where the store comes from, and why.
const REDUNDANT: [(Layout, &str, &str); 5] = [
    (
        Layout::Packed,
        "sync_dir of .larder/journal, after rename to *",
        "another follows, before any segment goes, and until then all that are there say what the files say",
    ),
    (
        Layout::Packed,
        "sync_dir of .larder, after unlink segments",
        "the one after the format follows, before anything that the list speaks of goes",
    ),
    (
        Layout::Files,
        "sync_dir of .larder, after rename to counter",
        "the one after the format follows, and makes the same name durable",
    ),
    (
        Layout::Files,
        "sync_dir of the store's directory",
        "an empty directory may be left of a collection, and counts for nothing",
    ),
    (
        Layout::Packed,
        "sync_dir of .larder, after rename to counter",
        "the one after the format follows, and makes the same name durable",
    ),
];

#[test]
fn a_barrier_that_a_conversion_leaves_out_is_missed() {
    let (mut missed, mut found) = (Vec::new(), 0);
    for from in [Layout::Files, Layout::Packed] {
        for sync_fs in [true, false] {
            // By class: whether it makes a difference to what some store has.
            let mut makes_a_difference = BTreeMap::new();
            for start in starts(from, sync_fs) {
                let whole = crash(&start, other(from), sync_fs, None, FEW);
                let (_, sim) = whole.unwrap_or_else(|broken| panic!("{broken}"));
                for class in super::barriers::classes(&sim.barriers()) {
                    let is_redundant =
                        |(of, barrier, _): &(Layout, &str, &str)| *of == from && *barrier == class.to_string();
                    let is_redundant = REDUNDANT.iter().any(is_redundant);
                    let is_known = makes_a_difference.entry(class.to_string()).or_insert(is_redundant);
                    if *is_known && !is_redundant {
                        continue;
                    }
                    let most = if is_redundant { FEW } else { MOST };
                    if let Err(broken) = crash(&start, other(from), sync_fs, Some(&class), most) {
                        assert!(!is_redundant, "not redundant: {class}: {broken}");
                        *is_known = true;
                        found += 1;
                        let broken = broken.lines().next().unwrap_or_default();
                        tell::line(&format!("conversion without {class} (sync_fs: {sync_fs}), {broken}"));
                    }
                }
            }
            let without = makes_a_difference.into_iter().filter(|(_, known)| !known);
            missed.extend(without.map(|(class, _)| format!("from {from}, {class}, sync_fs: {sync_fs}")));
        }
    }
    tell::line(&format!("barriers of conversions: {found} left out in turn and found to be missing"));
    assert!(missed.is_empty(), "WITHOUT {missed:#?}");
}

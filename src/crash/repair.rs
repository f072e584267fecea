//! A repair of a damaged store, crashed anywhere, and with each of its calls failing in turn: the same call again keeps all
//! that the first one would have kept, and nothing is gone that was put aside.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::run::{HOME, look, same};
use super::states::{Disk, Fate, MODELS, Rng};
use super::tell;
use super::workload::{Broken, Members};
use crate::Store;
use crate::backend::{Files, Layout, Packed, check_on, repair_on};
use crate::error::Error;
use crate::fs::sim::{Bytes, EIO, EMFILE, ENOSPC, EROFS, Fault, Image, Op, Sim};

/// The most images that are made of one moment of a run, under one model.
const MOST: usize = 12;

const ERRORS: [(i32, &str); 4] = [(EIO, "EIO"), (ENOSPC, "ENOSPC"), (EMFILE, "EMFILE"), (EROFS, "EROFS")];

/// A damaged store.
struct Scene {
    name: &'static str,
    layout: Layout,
    image: Image,
    /// What is no member's and must be somewhere in the end.
    precious: Vec<Bytes>,
    /// What a repair finds that nothing comes between.
    members: Members,
}

fn at(path: &str) -> String {
    format!("{}/{path}", HOME.trim_start_matches('/'))
}

/// What is on a disk, to be damaged.
struct Damaged {
    image: Image,
    precious: Vec<Bytes>,
}

impl Damaged {
    fn take(&mut self, path: &str) -> Bytes {
        self.image.0.remove(&at(path)).flatten().unwrap_or_else(|| panic!("no {path} in\n{}", self.image))
    }

    fn put(&mut self, path: &str, bytes: Bytes) {
        self.image.0.insert(at(path), Some(bytes));
    }

    /// Somebody's bytes in the place of a file, or of an empty directory.
    fn put_precious(&mut self, path: &str, bytes: &[u8]) {
        let bytes = Arc::new(bytes.to_vec());
        self.precious.push(bytes.clone());
        self.put(path, bytes);
    }

    /// A directory with somebody's file in the place of a file.
    fn put_dir(&mut self, path: &str) {
        self.image.0.insert(at(path), None);
        self.put_precious(&format!("{path}/mine"), format!("mine, in {path}").as_bytes());
    }

    fn damage(&mut self, path: &str) {
        let mut bytes = self.take(path).to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        self.put_precious(path, &bytes);
    }

    /// Each takes the name of the next, and the last that of the first.
    fn ring(&mut self, paths: &[&str]) {
        let taken: Vec<Bytes> = paths.iter().map(|path| self.take(path)).collect();
        for (place, bytes) in taken.into_iter().enumerate() {
            self.put(paths[(place + 1) % paths.len()], bytes);
        }
    }

    fn segments(&self) -> Vec<String> {
        let journal = at(".larder/journal/");
        let names = self.image.0.keys().filter_map(|path| path.strip_prefix(&journal));
        names.map(|name| format!(".larder/journal/{name}")).collect()
    }

    fn scene(self, name: &'static str, layout: Layout) -> Scene {
        let Damaged { image, precious } = self;
        let sim = Sim::new(&image, HOME, true);
        let report = repair(&sim).unwrap_or_else(|error| panic!("{name}: {error}\n{image}"));
        let members = look(&Sim::new(&sim.image(), HOME, true), layout).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!((report.members, members.is_empty()), (members.len(), false), "{name}");
        let scene = Scene { name, layout, image, precious, members };
        scene.keeps(&sim.image(), true).unwrap_or_else(|broken| panic!("{name}: {broken}"));
        scene
    }
}

fn repair(sim: &Sim) -> crate::Result<crate::RepairReport> {
    repair_on(Arc::new(sim.clone()), Path::new(HOME))
}

fn open(sim: &Sim, layout: Layout) -> Store {
    let (fs, path) = (Arc::new(sim.clone()), Path::new(HOME));
    let store = match layout {
        Layout::Files => Store::options(HOME).backend(Files::on(fs, path).unwrap()).open(),
        Layout::Packed => Store::options(HOME).backend(Packed::on(fs, path).unwrap()).open(),
    };
    store.unwrap()
}

fn new_store(layout: Layout) -> (Sim, Store) {
    let sim = Sim::new(&super::run::Start::empty().image, HOME, true);
    let store = open(&sim, layout);
    for number in 0..8u8 {
        store.put(format!("many/{number}"), vec![number; 40]).unwrap();
    }
    store.put("a/1", "one").unwrap();
    store.put("b/1", "alone").unwrap();
    store.put("many/6", "newer").unwrap();
    (sim, store)
}

/// Files of members in a ring, beyond collections; one in a place that is free, one in whose place damage lies, one that is
/// damaged, and one that is there twice. Of larder's own files some are damaged, or something else.
fn files() -> Scene {
    let (sim, store) = new_store(Layout::Files);
    store.close().unwrap();
    let mut disk = Damaged { image: sim.image(), precious: Vec::new() };
    disk.ring(&["many/1", "many/2", "a/1"]);
    let alone = disk.take("b/1");
    disk.put("many/alone", alone);
    let five = disk.take("many/5");
    disk.put("a/five", five);
    disk.put_precious("many/5", b"no member's file");
    disk.damage("many/3");
    let twice = disk.take("many/4");
    disk.put("many/4", twice.clone());
    disk.put_precious("a/twice", &twice);
    disk.put_precious(".larder/format", b"larder fromat 1\n");
    for dir in ["quarantine", "tmp", "journal"] {
        disk.image.0.remove(&at(&format!(".larder/{dir}")));
        disk.put_precious(&format!(".larder/{dir}"), format!("mine, in place of {dir}").as_bytes());
    }
    disk.put_dir(".larder/counter");
    disk.scene("files", Layout::Files)
}

/// One that was killed, with two files under each other's names, and no format: what it is must be told from the rest.
fn killed_files() -> Scene {
    let (sim, store) = new_store(Layout::Files);
    store.close().unwrap();
    let store = open(&sim, Layout::Files);
    store.put("many/6", "newest").unwrap();
    store.put("c/1", "only in the journal, it may be").unwrap();
    store.flush().unwrap();
    let mut disk = Damaged { image: sim.image(), precious: Vec::new() };
    disk.ring(&["many/1", "many/2"]);
    disk.take(".larder/format");
    disk.image.0.insert(at(".larder/lock"), None);
    disk.put_precious(".larder/lock/mine", b"in place of the lock");
    disk.image.0.remove(&at(".larder/quarantine"));
    disk.put_precious(".larder/quarantine", b"in place of the quarantine");
    disk.scene("files of a killed process", Layout::Files)
}

/// Segments under each other's names, one under a name that is free, and a copy of that; damage in one that is packed.
fn packed() -> Scene {
    let (sim, store) = new_store(Layout::Packed);
    store.compact().unwrap();
    store.put("many/2", "second").unwrap();
    store.delete("many/3").unwrap();
    store.close().unwrap();
    for round in ["third", "fourth"] {
        let store = open(&sim, Layout::Packed);
        store.put("many/1", round).unwrap();
        store.put(format!("{round}/1"), round).unwrap();
        store.close().unwrap();
    }
    let mut disk = Damaged { image: sim.image(), precious: Vec::new() };
    let segments = disk.segments();
    let [first, second, third, fourth] = &segments[..] else { panic!("{segments:?}") };
    let alone = b"alone";
    let mut packed = disk.take(first).to_vec();
    let value = packed.windows(alone.len()).position(|window| window == alone).expect("its value");
    packed[value] ^= 1;
    disk.put(first, Arc::new(packed));
    disk.ring(&[first, second, third]);
    let last = disk.take(fourth);
    disk.put(".larder/journal/0000000077-00000001", last.clone());
    disk.put(".larder/journal/0000000078-00000001", last.clone());
    disk.precious.push(last);
    disk.take(".larder/format");
    disk.put_dir(".larder/counter");
    disk.put_dir(".larder/journal/0000000079-00000001");
    disk.scene("packed", Layout::Packed)
}

fn scenes() -> [Scene; 3] {
    [files(), killed_files(), packed()]
}

impl Scene {
    /// Nothing that is no member's is gone. If `notes`, what is in quarantine has a note.
    fn keeps(&self, image: &Image, notes: bool) -> Result<(), Broken> {
        const KEEPS: &str = "a repair removes nothing";
        for precious in &self.precious {
            if !image.0.values().flatten().any(|bytes| bytes == precious) {
                return Err(Broken::new(
                    KEEPS,
                    format!("{:?} is gone from\n{image}", precious.escape_ascii().to_string()),
                ));
            }
        }
        let quarantine = at(".larder/quarantine/");
        let aside = image.0.keys().filter_map(|path| path.strip_prefix(&quarantine));
        for name in aside.filter(|name| notes && !name.contains('/') && !name.ends_with(".reason")) {
            let note = image.0.get(&format!("{quarantine}{name}.reason")).cloned().flatten();
            if note.is_none_or(|note| note.is_empty()) {
                return Err(Broken::new("what is put aside has a note", format!("{name} has none in\n{image}")));
            }
        }
        Ok(())
    }

    /// Mends what is on a disk, and looks whether everything is there that should be.
    fn mend(&self, image: &Image) -> Result<(), Broken> {
        let sim = Sim::new(image, HOME, true);
        repair(&sim).map_err(|error| Broken::new("a repair goes on", format!("{error} on\n{image}")))?;
        let image = sim.image();
        let found = look(&Sim::new(&image, HOME, true), self.layout)?;
        same("a repair goes on where another ended", &found, &self.members)?;
        self.keeps(&image, false)?;
        let report = check_on(Arc::new(Sim::new(&image, HOME, true)), Path::new(HOME));
        let report = report.map_err(|error| Broken::new("what was mended is sound", error.to_string()))?;
        if report.is_sound() {
            Ok(())
        } else {
            Err(Broken::new("what was mended is sound", format!("{:?} in\n{image}", report.problems)))
        }
    }

    /// Crashes what was done at every moment. The number of distinct images. On a full disk there are no `notes`.
    fn crash(&self, log: &[Op], most: usize, notes: bool) -> Result<usize, String> {
        let mut seen = HashSet::new();
        for model in MODELS {
            let mut rng = Rng(self.name.len() as u64);
            let mut disk = Disk::new(model, &self.image);
            for (place, op) in log.iter().enumerate() {
                if !disk.follow(place, op) {
                    continue;
                }
                let mut result = Ok(());
                disk.images(Some(place), most, &mut rng, &mut |image, fates| {
                    if seen.insert(image.hash()) {
                        // A killed process leaves all that it has done.
                        let killed = fates.iter().all(|(_, fate)| *fate == Fate::Kept);
                        result =
                            self.keeps(&image, killed && notes).and_then(|()| self.mend(&image)).map_err(|broken| {
                                let log = tell::log(&self.image, &log[..=place], &fates, &Vec::new());
                                format!("{}, {model:?}: {broken}\n{log}", self.name)
                            });
                    }
                    result.is_ok()
                });
                result?;
            }
        }
        Ok(seen.len())
    }
}

#[test]
fn a_repair_that_is_crashed_anywhere_goes_on_and_keeps_what_it_would_have_kept() {
    let mut images = 0;
    for scene in scenes() {
        let sim = Sim::new(&scene.image, HOME, true);
        sim.record();
        repair(&sim).unwrap();
        let log = sim.take_log();
        let found = scene.crash(&log, MOST, true).unwrap_or_else(|broken| panic!("{broken}"));
        tell::line(&format!("crashed repairs, {}: {} operations, {found} distinct images", scene.name, log.len()));
        images += found;
    }
    assert!(images > 300, "{images}");
}

/// The files that are in quarantine, by their bytes.
fn aside(image: &Image) -> BTreeMap<&[u8], &str> {
    let quarantine = at(".larder/quarantine/");
    let aside = image.0.iter().filter(|(path, _)| path.starts_with(&quarantine) && !path.ends_with(".reason"));
    aside.filter_map(|(path, bytes)| Some((bytes.as_ref()?.as_slice(), path.as_str()))).collect()
}

/// The one exception: what could not be read since the medium is bad is put aside, and is there.
fn is_aside(scene: &Scene, found: &Members, image: &Image) -> bool {
    let aside = aside(image);
    let lost = scene.members.iter().filter(|(key, held)| found.get(*key) != Some(held));
    let mut lost = lost.map(|(_, held)| &held.value);
    lost.all(|value| {
        value.is_empty() || aside.keys().any(|bytes| bytes.windows(value.len()).any(|window| window == &value[..]))
    })
}

#[test]
fn a_repair_whose_calls_fail_in_turn_says_so_and_goes_on_when_the_disk_is_well() {
    let (mut failed, mut images, mut unread) = (0, 0, 0);
    for scene in scenes() {
        for (errno, name) in ERRORS {
            for sticky in [false, true] {
                for at in 0.. {
                    let sim = Sim::new(&scene.image, HOME, true);
                    sim.record();
                    sim.set_fault(Some(Fault { at, sticky, errno }));
                    let done = repair(&sim);
                    let struck = sim.struck();
                    sim.set_fault(None);
                    if struck == 0 {
                        done.unwrap();
                        break;
                    }
                    let (log, image) = (sim.take_log(), sim.image());
                    let told = |what: &dyn std::fmt::Display| {
                        let log = tell::log(&scene.image, &log, &Vec::new(), &Vec::new());
                        format!("{}, {name} at call {at}, sticky {sticky}: {what}\n{log}", scene.name)
                    };
                    if let Err(error) = &done {
                        failed += 1;
                        assert!(matches!(error, Error::Io { path, .. } if path.is_absolute()), "{}", told(error));
                    }
                    scene.keeps(&image, errno != ENOSPC).unwrap_or_else(|broken| panic!("{}", told(&broken)));
                    let Err(broken) = scene.mend(&image) else {
                        if at % 5 == 0 {
                            images += scene
                                .crash(&log, 2, errno != ENOSPC)
                                .unwrap_or_else(|broken| panic!("{}", told(&broken)));
                        }
                        continue;
                    };
                    repair(&sim).unwrap_or_else(|error| panic!("{}", told(&error)));
                    let image = sim.image();
                    let found = look(&Sim::new(&image, HOME, true), scene.layout);
                    let found = found.unwrap_or_else(|broken| panic!("{}", told(&broken)));
                    assert!(errno == EIO && is_aside(&scene, &found, &image), "{}", told(&broken));
                    unread += 1;
                }
            }
        }
    }
    tell::line(&format!(
        "repairs that fail: {failed}, {unread} that could not read something; {images} images of crashes"
    ));
    assert!(failed > 1000 && images > 1000, "{failed} failed, {images} images");
}

#[test]
fn a_check_whose_calls_fail_in_turn_says_so_or_the_same_and_changes_nothing() {
    for scene in scenes() {
        let check = |sim: &Sim| check_on(Arc::new(sim.clone()), Path::new(HOME));
        let sound = check(&Sim::new(&scene.image, HOME, true)).unwrap();
        assert!(!sound.is_sound());
        for (errno, name) in ERRORS {
            for sticky in [false, true] {
                for at in 0.. {
                    let sim = Sim::new(&scene.image, HOME, true);
                    sim.set_fault(Some(Fault { at, sticky, errno }));
                    let done = check(&sim);
                    let struck = sim.struck();
                    assert_eq!(sim.image(), scene.image, "a check changes nothing");
                    match done {
                        // What cannot be read is told as that.
                        Ok(found) if errno == EIO => assert!(found.members <= sound.members),
                        Ok(found) => assert_eq!(found, sound, "{}, {name} at call {at}", scene.name),
                        Err(error) => assert!(struck > 0 && matches!(error, Error::Io { .. }), "{error}"),
                    }
                    if struck == 0 {
                        break;
                    }
                }
            }
        }
    }
}

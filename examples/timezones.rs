//! The world's time zones in a store: a real table is loaded into typed collections, asked, changed, closed, opened
//! again, and compared with the table, member by member.
//!
//! The table is `zone1970.tab` of the tz database (`examples/data/README.md`). A zone's name, such as
//! `America/Argentina/Ushuaia`, is a key as it stands: the collection is what comes before the first slash.
//!
//! ```text
//! cargo run --example timezones                # in a temporary directory, which is removed
//! cargo run --example timezones -- /tmp/zones  # in a directory of yours, which stays
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use larder::{Collection, Store};
use serde::{Deserialize, Serialize};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/zone1970.tab");

/// What is stored of a zone. Its name is its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Zone {
    /// ISO 3166 codes of the countries that it covers, the most populous city's first.
    countries: Vec<String>,
    /// Of the principal city, in degrees to five decimals, north positive.
    latitude: f64,
    /// As latitude, east positive.
    longitude: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    comments: Option<String>,
}

/// By collection and member: what the store must hold in the end.
type Zones = BTreeMap<String, BTreeMap<String, Zone>>;

fn main() -> Result<()> {
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let temporary = tempfile::tempdir()?;
    let path = given.unwrap_or_else(|| temporary.path().join("zones"));

    let mut expected = timed("parse the table", || parse_table(Path::new(TABLE)))?;

    let store = timed("open the store", || Ok(Store::open(&path)?))?;
    println!("{} holds {} members", path.display(), store.load_report().members);

    // One typed collection for each continent and ocean. From here on the handles are all that is needed.
    let continents = timed("put all zones", || fill(&store, &expected))?;
    println!("{:?}", store.stats());
    timed("flush", || Ok(store.flush()?))?;
    println!("{:?}", store.stats());

    ask(&store, &continents)?;
    change(&continents, &mut expected)?;

    let report = timed("close", || Ok(store.close()?))?;
    println!("{} members in {} collections, {} changes stored", report.members, report.collections, report.flushed);

    let store = timed("open again", || Ok(Store::open(&path)?))?;
    let compared = timed("compare with the table", || compare(&store, &expected))?;
    println!("all {compared} members are as they should be, and there are no others");

    show(&path)?;
    let report = store.close()?;
    println!("closed, with {} members", report.members);
    Ok(())
}

/// Does a step and says how long it took.
fn timed<T>(what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("\n## {what}");
    let started = Instant::now();
    let done = step()?;
    println!("({:.3} ms)", started.elapsed().as_secs_f64() * 1e3);
    Ok(done)
}

// ---- the table ----

fn parse_table(path: &Path) -> Result<Zones> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut zones = Zones::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('#') {
            continue;
        }
        let failed = |reason| format!("{}, line {number}: {reason}: {line:?}", path.display());
        let (name, zone) = parse_line(line).map_err(failed)?;
        let (collection, member) = name.split_once('/').ok_or_else(|| failed("the name has no slash"))?;
        if zones.entry(collection.into()).or_default().insert(member.into(), zone).is_some() {
            return Err(failed("the name came before").into());
        }
    }
    if zones.is_empty() {
        return Err(format!("{} has no zones", path.display()).into());
    }
    Ok(zones)
}

/// Four columns, separated by tabs, of which the last may be missing.
fn parse_line(line: &str) -> Result<(&str, Zone), &'static str> {
    let mut columns = line.split('\t');
    let countries = columns.next().filter(|codes| !codes.is_empty()).ok_or("there are no countries")?;
    let coordinates = columns.next().ok_or("there are no coordinates")?;
    let name = columns.next().filter(|name| !name.is_empty()).ok_or("there is no name")?;
    let comments = columns.next().map(str::to_owned);
    if columns.next().is_some() {
        return Err("there is a fifth column");
    }
    let countries: Vec<String> = countries.split(',').map(str::to_owned).collect();
    if !countries.iter().all(|code| code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase())) {
        return Err("a country is two capital letters");
    }
    let (latitude, longitude) = parse_coordinates(coordinates).ok_or("the coordinates are not ISO 6709")?;
    Ok((name, Zone { countries, latitude, longitude, comments }))
}

/// ISO 6709, either `±DDMM±DDDMM` or `±DDMMSS±DDDMMSS`, in degrees to five decimals: a metre, where the table has thirty.
fn parse_coordinates(text: &str) -> Option<(f64, f64)> {
    let second = text.rfind(['+', '-']).filter(|at| *at > 0)?;
    let (latitude, longitude) = text.split_at(second);
    Some((parse_angle(latitude, 2, 90)?, parse_angle(longitude, 3, 180)?))
}

fn parse_angle(text: &str, degree_digits: usize, most: u32) -> Option<f64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1.0, digits),
        ("-", digits) => (-1.0, digits),
        _ => return None,
    };
    let rest = digits.len().checked_sub(degree_digits)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || (rest != 2 && rest != 4) {
        return None;
    }
    let number = |from: usize, to: usize| digits.get(from..to).map_or(Some(0), |part| part.parse::<u32>().ok());
    let degrees = number(0, degree_digits)?;
    let minutes = number(degree_digits, degree_digits + 2)?;
    let seconds = number(degree_digits + 2, degree_digits + 4)?;
    let all = degrees * 3600 + minutes * 60 + seconds;
    let degrees = sign * (f64::from(all) / 3600.0 * 1e5).round() / 1e5;
    (minutes < 60 && seconds < 60 && all <= most * 3600).then_some(degrees)
}

// ---- the store ----

type Continents = BTreeMap<String, Collection<Zone>>;

fn fill(store: &Store, zones: &Zones) -> Result<Continents> {
    let mut continents = Continents::new();
    for (continent, zones) in zones {
        let collection = store.collection::<Zone>(continent)?;
        for (city, zone) in zones {
            collection.put(city, zone.clone())?;
        }
        continents.insert(continent.clone(), collection);
    }
    Ok(continents)
}

fn ask(store: &Store, continents: &Continents) -> Result<()> {
    timed("all of a continent", || {
        let mut all = continent(continents, "Antarctica")?.get_all();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (city, zone) in all {
            println!("{city:<16} {:>7.2} {:>7.2}  {}", zone.latitude, zone.longitude, zone.countries.join(", "));
        }
        Ok(())
    })?;

    timed("one zone, as a value and as the bytes of its file", || {
        let zone = continent(continents, "America")?.get("Argentina/Ushuaia").ok_or("there is no Ushuaia")?;
        println!("{zone:?}");
        let bytes = store.get("America/Argentina/Ushuaia")?.ok_or("there is no Ushuaia")?;
        println!("{}", bytes.to_str()?);
        if serde_json::from_slice::<Zone>(&bytes)? != *zone {
            return Err("the bytes are not those of the value".into());
        }
        Ok(())
    })?;

    timed("the nearest zone to the top of Mount Everest", || {
        let top = (27.9881, 86.9250);
        let mut nearest: Option<(f64, String)> = None;
        for (continent, zones) in continents {
            // iter() holds no lock and copies no more than a part of the collection at a time.
            for (city, zone) in zones.iter() {
                let distance = kilometres(top, (zone.latitude, zone.longitude));
                if nearest.as_ref().is_none_or(|(least, _)| distance < *least) {
                    nearest = Some((distance, format!("{continent}/{city}")));
                }
            }
        }
        let (distance, name) = nearest.ok_or("there are no zones")?;
        println!("{name}, {distance:.0} km away");
        Ok(())
    })?;

    timed("the countries with the most zones", || {
        let mut count = BTreeMap::<String, usize>::new();
        for zone in continents.values().flat_map(Collection::iter).map(|(_, zone)| zone) {
            for country in &zone.countries {
                *count.entry(country.clone()).or_default() += 1;
            }
        }
        let mut count: Vec<_> = count.into_iter().collect();
        count.sort_by_key(|(_, zones)| std::cmp::Reverse(*zones));
        for (country, zones) in &count[..count.len().min(5)] {
            println!("{country} {zones}");
        }
        Ok(())
    })
}

/// Changes one zone and deletes another, in the store and in what is expected of it.
fn change(continents: &Continents, expected: &mut Zones) -> Result<()> {
    let (america, antarctica) = (continent(continents, "America")?, continent(continents, "Antarctica")?);
    timed("a change and a delete", || {
        // A value that was handed out never changes: a put replaces it, and returns it.
        let mut zone = Zone::clone(&*america.get("Argentina/Ushuaia").ok_or("there is no Ushuaia")?);
        zone.comments = Some("The end of the world".into());
        let old = america.put("Argentina/Ushuaia", zone)?;
        println!("the comment was {:?}", old.and_then(|old| old.comments.clone()));
        let gone = antarctica.delete("Vostok")?;
        println!("deleted {gone:?}");
        Ok(())
    })?;
    let zone = expected.get_mut("America").and_then(|zones| zones.get_mut("Argentina/Ushuaia"));
    zone.ok_or("the table has no Ushuaia")?.comments = Some("The end of the world".into());
    expected.get_mut("Antarctica").and_then(|zones| zones.remove("Vostok")).ok_or("the table has no Vostok")?;
    Ok(())
}

/// That the store holds what it should, all of it, and nothing else.
fn compare(store: &Store, expected: &Zones) -> Result<usize> {
    let mut compared = 0;
    let collections: BTreeSet<String> = store.collections()?.into_iter().collect();
    if !collections.iter().eq(expected.keys()) {
        return Err(format!("the collections are {collections:?}").into());
    }
    for (continent, zones) in expected {
        let collection = store.collection::<Zone>(continent)?;
        for (city, zone) in zones {
            match collection.get(city) {
                Some(found) if *found == *zone => compared += 1,
                found => return Err(format!("{continent}/{city} is {found:?} and should be {zone:?}").into()),
            }
        }
        if collection.len() != zones.len() {
            return Err(format!("{continent} has {} members and should have {}", collection.len(), zones.len()).into());
        }
    }
    Ok(compared)
}

fn continent<'a>(continents: &'a Continents, name: &str) -> Result<&'a Collection<Zone>> {
    Ok(continents.get(name).ok_or_else(|| format!("the table has no {name}"))?)
}

/// Along the great circle, by the haversine formula.
fn kilometres(from: (f64, f64), to: (f64, f64)) -> f64 {
    let (from, to) = ((from.0.to_radians(), from.1.to_radians()), (to.0.to_radians(), to.1.to_radians()));
    let half = |angle: f64| (angle / 2.0).sin().powi(2);
    let h = half(to.0 - from.0) + from.0.cos() * to.0.cos() * half(to.1 - from.1);
    2.0 * 6371.0 * h.sqrt().min(1.0).asin()
}

// ---- the directory ----

fn show(path: &Path) -> Result<()> {
    println!("\n## what is on the disk");
    println!("{}", path.display());
    tree(path, 1)?;
    let file = find(path, "America/Argentina/Ushuaia")?.ok_or("no file says that it is Ushuaia's")?;
    println!("\n$ cat {}", file.display());
    println!("{}", fs::read_to_string(&file)?);
    Ok(())
}

/// Prints a part of a directory: the first few of everything.
fn tree(dir: &Path, depth: usize) -> Result<()> {
    const MOST: usize = 3;
    let entries = sorted(dir)?;
    for entry in &entries[..entries.len().min(MOST)] {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let slash = if entry.is_dir() { "/" } else { "" };
        println!("{:indent$}{name}{slash}", "", indent = depth * 2);
        if entry.is_dir() {
            tree(entry, depth + 1)?;
        }
    }
    if entries.len() > MOST {
        println!("{:indent$}… and {} more", "", entries.len() - MOST, indent = depth * 2);
    }
    Ok(())
}

/// The file whose first line names the key. (A name that is not portable has a hash in its file's name.)
fn find(dir: &Path, key: &str) -> Result<Option<PathBuf>> {
    let wanted = format!(" key={} ", serde_json::to_string(key)?);
    for entry in sorted(dir)? {
        if entry.is_dir() {
            if let Some(found) = find(&entry, key)? {
                return Ok(Some(found));
            }
            continue;
        }
        let mut line = Vec::new();
        BufReader::new(fs::File::open(&entry)?).read_until(b'\n', &mut line)?;
        if String::from_utf8_lossy(&line).contains(&wanted) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

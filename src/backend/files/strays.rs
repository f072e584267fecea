//! Whole files of members under the names of others: somebody has renamed them. The key in the header says whose they are.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use super::meta;
use super::place::{Place, open_or_make};
use super::{header, load, name};
use crate::backend::{Quarantined, Restored};
use crate::error::{Error, Result};
use crate::fs::{Dir, Fs, Kind, read_up_to};
use crate::key;

pub(in crate::backend) struct Stray {
    dir: String,
    file: String,
    own_dir: String,
    own_file: String,
    pub(in crate::backend) key: String,
    version: u64,
}

impl Stray {
    pub(in crate::backend) fn path(&self, root: &Dir) -> PathBuf {
        root.join(&self.dir).join(&self.file)
    }
}

/// All of them, the newest first.
pub(in crate::backend) fn find(fs: &dyn Fs, root: &Dir) -> Result<Vec<Stray>> {
    let mut strays = Vec::new();
    let (mut start, mut whole) = (vec![0; header::MAX_HEADER], Vec::new());
    for dir_name in load::collections(fs, root)? {
        let dir = open(fs, root, &dir_name)?;
        let listed = fs.list(&dir).map_err(|error| Error::io("list", dir.path(), error))?;
        for entry in listed.iter().filter(|entry| entry.kind == Kind::File && name::could_be_ours(&entry.name)) {
            let has_its_name = |header: &header::Header<'_>| {
                name::is_name_of(&dir_name, header.collection()) && name::is_name_of(&entry.name, header.member())
            };
            let read = fs.open(&dir, &entry.name).and_then(|mut file| read_up_to(&mut *file, &mut start));
            match read.map(|length| header::parse(&start[..length]).is_ok_and(|(header, _)| !has_its_name(&header))) {
                Ok(true) => {}
                Ok(false) => continue,
                // What cannot be read is told by whoever loads it.
                Err(error) if error.kind() == io::ErrorKind::NotFound || load::is_bad_medium(&error) => continue,
                Err(error) => return Err(Error::io("read", dir.join(&entry.name), error)),
            }
            let read = fs.open(&dir, &entry.name).and_then(|mut file| load::read_whole(&mut *file, &mut whole));
            let length = read.map_err(|error| Error::io("read", dir.join(&entry.name), error))?;
            let Ok((header, _)) = header::decode(&whole[..length]) else { continue };
            let (collection, member) = (header.collection(), header.member());
            if key::broken_by_collection(collection).or(key::broken_by_member(member)).is_none() {
                strays.push(Stray {
                    dir: dir_name.clone(),
                    file: entry.name.clone(),
                    own_dir: name::file_name(collection),
                    own_file: name::file_name(member),
                    key: key::join(collection, member),
                    version: header.version,
                });
            }
        }
    }
    strays.sort_by_key(|stray| std::cmp::Reverse(stray.version));
    Ok(strays)
}

fn open(fs: &dyn Fs, parent: &Dir, name: &str) -> Result<Dir> {
    fs.open_dir(parent, name).map_err(|error| Error::io("open directory", parent.join(name), error))
}

/// Of these, those that are the newest of their members: nothing as new stands under the names that they should have.
pub(in crate::backend) fn newest<'a>(fs: &dyn Fs, root: &Dir, strays: &'a [Stray]) -> Result<Vec<&'a Stray>> {
    let mut newest: Vec<&Stray> = Vec::new();
    for stray in strays {
        if newest.iter().all(|newer| newer.key != stray.key) && is_newer_than_its_place(fs, root, stray, strays)? {
            newest.push(stray);
        }
    }
    Ok(newest)
}

fn is_newer_than_its_place(fs: &dyn Fs, root: &Dir, stray: &Stray, strays: &[Stray]) -> Result<bool> {
    let dir = match fs.open_dir(root, &stray.own_dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        // Somebody's: the collection cannot be stored.
        Err(_) if meta::is_other(fs, root, &stray.own_dir, Kind::Dir)? => return Ok(false),
        Err(error) => return Err(Error::io("open directory", root.join(&stray.own_dir), error)),
    };
    if meta::is_other(fs, &dir, &stray.own_file, Kind::File)? {
        return Ok(false);
    }
    // What has no right to the place makes room.
    if strays.iter().any(|other| (&other.dir, &other.file) == (&stray.own_dir, &stray.own_file)) {
        return Ok(true);
    }
    let mut whole = Vec::new();
    match fs.open(&dir, &stray.own_file).and_then(|mut file| load::read_whole(&mut *file, &mut whole)) {
        Ok(length) => Ok(header::decode(&whole[..length]).map_or(true, |(header, _)| header.version < stray.version)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || load::is_bad_medium(&error) => Ok(true),
        Err(error) => Err(Error::io("read", dir.join(&stray.own_file), error)),
    }
}

/// A stray that is on its way to its own name.
struct Waiting<'a> {
    stray: &'a Stray,
    /// Where it is now.
    dir: String,
    file: String,
}

impl Waiting<'_> {
    fn is_in_place_of(&self, other: &Waiting<'_>) -> bool {
        (&self.dir, &self.file) == (&other.stray.own_dir, &other.stray.own_file)
    }
}

/// Gives files that have another's name their own, where nothing as new of the member stands, and puts the rest aside.
/// Before the journal is read: what it has of the member counts as beside any file.
///
/// It is one rename after the other, each of them durable before the next, and a file never has a name by which it would not
/// be found again: so wherever this ends, another call goes on.
pub(in crate::backend) fn bring_back(fs: &dyn Fs, root: &Dir, meta: &Dir) -> Result<(Vec<Restored>, Vec<Quarantined>)> {
    let strays = find(fs, root)?;
    let (mut restored, mut left) = (Vec::new(), Vec::new());
    if strays.is_empty() {
        return Ok((restored, left));
    }
    let newest = newest(fs, root, &strays)?;
    let is_newest = |stray: &&Stray| newest.iter().any(|newest| std::ptr::eq(*newest, *stray));
    let (newest, others): (Vec<&Stray>, Vec<&Stray>) = strays.iter().partition(is_newest);
    if !others.is_empty() {
        meta::forget_count(fs, meta)?;
    }
    for stray in others {
        let dir = open(fs, root, &stray.dir)?;
        let reason = format!("it is the file of another key, {:?}", stray.key);
        left.push(Place::put_own_aside(fs, meta, (&dir, &stray.dir), &stray.file, &reason)?);
    }
    let waiting = |stray| Waiting { stray, dir: stray.dir.clone(), file: stray.file.clone() };
    let mut waiting: Vec<Waiting<'_>> = newest.into_iter().map(waiting).collect();
    while !waiting.is_empty() {
        let has_room = |one: &Waiting<'_>| !waiting.iter().any(|other| other.is_in_place_of(one));
        if let Some(next) = waiting.iter().position(has_room) {
            let Waiting { stray, dir, file } = waiting.swap_remove(next);
            let (from, to) = (open(fs, root, &dir)?, open_or_make(fs, root, &stray.own_dir)?);
            sync(fs, root)?;
            let own = to.join(&stray.own_file);
            if fs.kind(&to, &stray.own_file).map_err(|error| Error::io("look at", &own, error))?.is_some() {
                meta::forget_count(fs, meta)?;
                let reason = "it is damaged, or older than the member's file that was found under another name";
                left.push(Place::put_own_aside(fs, meta, (&to, &stray.own_dir), &stray.own_file, reason)?);
            }
            rename(fs, (&from, &file), (&to, &stray.own_file))?;
            restored.push(Restored { path: stray.path(root), moved_to: own });
        } else if let Some(first) = waiting.first_mut() {
            // They have each other's names: one gives its own up for one that is nobody's.
            let dir = open(fs, root, &first.dir)?;
            let name = free_name(fs, &dir)?;
            rename(fs, (&dir, &first.file), (&dir, &name))?;
            first.file = name;
        }
    }
    for dir in strays.iter().map(|stray| &*stray.dir).collect::<BTreeSet<_>>() {
        // It goes if it is empty.
        _ = fs.remove_dir(root, dir);
    }
    sync(fs, root)?;
    Ok((restored, left))
}

/// A name that a member's file could have, and none has.
fn free_name(fs: &dyn Fs, dir: &Dir) -> Result<String> {
    let mut number = 0u64;
    loop {
        let name = format!("stray-{number}");
        if fs.kind(dir, &name).map_err(|error| Error::io("look at", dir.join(&name), error))?.is_none() {
            return Ok(name);
        }
        number += 1;
    }
}

fn rename(fs: &dyn Fs, (from, from_name): (&Dir, &str), (to, to_name): (&Dir, &str)) -> Result<()> {
    let renamed = fs.rename(from, from_name, to, to_name);
    renamed.map_err(|error| Error::io("rename", from.join(from_name), error))?;
    sync(fs, to)?;
    sync(fs, from)
}

fn sync(fs: &dyn Fs, dir: &Dir) -> Result<()> {
    fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error))
}

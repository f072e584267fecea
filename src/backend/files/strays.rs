//! Whole files of members under the names of others: somebody has renamed them. The key in the header says whose they are.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use super::meta::{self, QUARANTINE_DIR};
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
                Err(_) => continue,
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

/// Gives files that have another's name their own, where nothing as new of the member stands, and puts the rest aside.
/// Before the journal is read: what it has of the member counts as beside any file.
pub(in crate::backend) fn bring_back(fs: &dyn Fs, root: &Dir, meta: &Dir) -> Result<(Vec<Restored>, Vec<Quarantined>)> {
    let strays = find(fs, root)?;
    let (mut restored, mut left) = (Vec::new(), Vec::new());
    if strays.is_empty() {
        return Ok((restored, left));
    }
    let newest = newest(fs, root, &strays)?;
    // By way of quarantine: two may have each other's names, and nothing in there is ever removed.
    let mut moved = Vec::new();
    for stray in &strays {
        let dir = open(fs, root, &stray.dir)?;
        let reason = format!("it is the file of another key, {:?}", stray.key);
        moved.push(Place::put_own_aside(fs, meta, (&dir, &stray.dir), &stray.file, &reason)?);
    }
    let quarantine = open_or_make(fs, meta, QUARANTINE_DIR)?;
    for (stray, aside) in strays.iter().zip(moved) {
        if !newest.iter().any(|newest| std::ptr::eq(*newest, stray)) {
            left.push(aside);
            continue;
        }
        let dir = open_or_make(fs, root, &stray.own_dir)?;
        let own = dir.join(&stray.own_file);
        if fs.kind(&dir, &stray.own_file).map_err(|error| Error::io("look at", &own, error))?.is_some() {
            let reason = "it is damaged, or older than the member's file that was found under another name";
            left.push(Place::put_own_aside(fs, meta, (&dir, &stray.own_dir), &stray.own_file, reason)?);
        }
        let target = aside.moved_to.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        fs.rename(&quarantine, target, &dir, &stray.own_file)
            .map_err(|error| Error::io("rename", &aside.moved_to, error))?;
        // It says what is so no more. On a full disk there is none.
        _ = fs.unlink(&quarantine, &format!("{target}.reason"));
        restored.push(Restored { path: aside.path, moved_to: own });
        fs.sync_dir(&dir).map_err(|error| Error::io("sync directory", dir.path(), error))?;
    }
    for dir in strays.iter().map(|stray| &*stray.dir).collect::<BTreeSet<_>>() {
        // It goes if it is empty.
        _ = fs.remove_dir(root, dir);
    }
    for dir in [root, &quarantine] {
        fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error))?;
    }
    if !left.is_empty() {
        meta::forget_count(fs, meta)?;
    }
    Ok((restored, left))
}

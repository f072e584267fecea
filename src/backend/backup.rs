//! A copy of an open store, as it was at one moment.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Layout;
use super::files::meta;
use super::files::place::Place;
use super::writer::Writer;
use crate::core::Engine;
use crate::error::{Error, Result};
use crate::fs::{Dir, Fs, Kind};
use crate::key;
use crate::report::BackupReport;

/// Tells copies that are made at the same time apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Writes everything to a new store at `target`, which gets its name when it is whole.
pub(crate) fn back_up(fs: Arc<dyn Fs>, engine: &Engine, layout: Layout, target: &Path) -> Result<BackupReport> {
    let started = Instant::now();
    let target = meta::absolute(target)?;
    let failed = |error| Error::io("back up to", &target, error);
    let (Some(parent), Some(name)) = (target.parent(), target.file_name().and_then(|name| name.to_str())) else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it has no name in UTF-8")));
    };
    if fs.kind_at(&target, false).map_err(failed)?.is_some() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    if parent.ancestors().any(|above| fs.kind_at(&above.join(meta::META_DIR), false).is_ok_and(|kind| kind.is_some())) {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is inside a store")));
    }
    if fs.kind_at(parent, true).map_err(failed)?.is_none() {
        meta::make_path(&*fs, parent)?;
        meta::sync_path(&*fs, parent.parent())?;
    }
    let parent = fs.open_root(parent).map_err(failed)?;
    // One that a crash has left stays: nobody knows that it is not somebody's by now.
    let partial = loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let partial = format!(".larder.partial-{}-{number}", std::process::id());
        if fs.kind(&parent, &partial).map_err(failed)?.is_none() {
            break partial;
        }
    };
    let partial_path = parent.join(&partial);
    let copied = copy(&fs, engine, layout, &partial_path).and_then(|report| {
        fs.rename(&parent, &partial, &parent, name).map_err(failed)?;
        Ok(report)
    });
    match copied {
        Err(error) => {
            // It is this call's own. What cannot be removed is in nobody's way.
            _ = remove(&*fs, &parent, &partial);
            Err(error)
        }
        Ok(report) => match fs.sync_dir(&parent) {
            Ok(()) => Ok(BackupReport { elapsed: started.elapsed(), ..report }),
            Err(error) => {
                take_back(&*fs, &parent, name, &partial);
                Err(Error::io("sync directory", parent.path(), error))
            }
        },
    }
}

/// Takes the name from a copy that may not have it after a crash. If that fails the copy stays, whole, under one name or the
/// other: nothing of it goes before it is certain that no crash gives it the name back.
fn take_back(fs: &dyn Fs, parent: &Dir, name: &str, partial: &str) {
    if fs.rename(parent, name, parent, partial).is_ok() && fs.sync_dir(parent).is_ok() {
        _ = remove(fs, parent, partial);
    }
}

/// Removes as much as can be of a directory and of everything in it.
fn remove(fs: &dyn Fs, parent: &Dir, name: &str) -> io::Result<()> {
    let dir = fs.open_dir(parent, name)?;
    for entry in fs.list(&dir)? {
        // What stays keeps the directory from going, which tells it.
        _ = match entry.kind {
            Kind::Dir => remove(fs, &dir, &entry.name),
            _ => fs.unlink(&dir, &entry.name),
        };
    }
    fs.remove_dir(parent, name)
}

fn copy(fs: &Arc<dyn Fs>, engine: &Engine, layout: Layout, path: &Path) -> Result<BackupReport> {
    let place = Arc::new(Place::open(path, fs.clone(), layout)?);
    let mut writer = Writer::new(&place, layout)?;
    let mut report = BackupReport::default();
    let moment = engine.walk_at_once(|collection, codec, record| match &record.value {
        Ok(_) => {
            report.members += 1;
            writer.put(collection, codec, record)
        }
        Err(error) => {
            let key = key::join(collection, &record.member);
            report.left_out.push(Error::codec("encode", key, codec, error.to_string().into()));
            Ok(())
        }
    })?;
    writer.finish(moment)?;
    Ok(report)
}

//! Writing a whole store: what is moved to another layout, and what is copied.

use std::sync::Arc;

use super::files::folder::Folder;
use super::files::meta::Count;
use super::files::place::Place;
use super::packed::Out;
use super::{Change, Layout, front};
use crate::error::{Error, Result};
use crate::journal::Numbers;
use crate::shelf::Record;

/// Files that are written before they are made durable together.
const LOT: usize = if cfg!(test) { 8 } else { 4096 };

/// The bytes of values among them, about.
const LOT_BYTES: usize = 32 << 20;

/// Writes members into a directory that has none, or has the same ones.
pub(super) struct Writer<'a> {
    place: &'a Arc<Place>,
    form: Form<'a>,
}

enum Form<'a> {
    Files { folder: Folder, lot: Vec<(Box<str>, Arc<str>, Record)>, bytes: usize, files: u64 },
    Packed { numbers: Numbers, out: Out<'a>, highest: u64 },
}

impl<'a> Writer<'a> {
    pub(super) fn new(place: &'a Arc<Place>, layout: Layout) -> Result<Writer<'a>> {
        let form = match layout {
            Layout::Files => Form::Files { folder: Folder::new(place.clone())?, lot: Vec::new(), bytes: 0, files: 0 },
            Layout::Packed => {
                let numbers = Numbers::after(front::segments(place)?.highest);
                let out = Out::new(place, numbers.next());
                Form::Packed { numbers, out, highest: 0 }
            }
        };
        Ok(Writer { place, form })
    }

    /// Writes a member. Nothing of it is durable before [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// Of the disk, and [`Error::Codec`] if the value does not encode: nothing has happened then.
    pub(super) fn put(&mut self, collection: &str, codec: &Arc<str>, record: Record) -> Result<()> {
        let value = match &record.value {
            Ok(value) => value,
            Err(error) => {
                let key = crate::key::join(collection, &record.member);
                return Err(Error::codec("encode", key, codec, error.to_string().into()));
            }
        };
        match &mut self.form {
            Form::Files { folder, lot, bytes, files } => {
                *files += 1;
                *bytes += value.len();
                lot.push((collection.into(), codec.clone(), record));
                if lot.len() >= LOT || *bytes >= LOT_BYTES {
                    *bytes = 0;
                    write(folder, lot)?;
                }
                Ok(())
            }
            Form::Packed { numbers, out, highest } => {
                *highest = record.version.max(*highest);
                out.put(collection, codec, &record.member, record.version, record.deadline, value)?;
                if out.is_large() {
                    out.finish(*highest)?;
                    *out = Out::new(self.place, numbers.next());
                }
                Ok(())
            }
        }
    }

    /// Makes all of it durable. `counter` is the highest number in use.
    pub(super) fn finish(self, counter: u64) -> Result<()> {
        let mut count = None;
        match self.form {
            Form::Files { mut folder, mut lot, files, .. } => {
                write(&mut folder, &mut lot)?;
                count = Some(Count { files, mark: counter });
            }
            Form::Packed { mut out, .. } => out.finish(counter)?,
        }
        self.place.write_counter(counter)?;
        // It says what the last close would have said, and nothing needs it.
        _ = count.map(|count| self.place.write_count(count));
        Ok(())
    }
}

fn write(folder: &mut Folder, lot: &mut Vec<(Box<str>, Arc<str>, Record)>) -> Result<()> {
    let changes = lot.iter().filter_map(|(collection, codec, record)| {
        let (member, version, value) = (&*record.member, record.version, record.value.as_ref().ok()?);
        Some(Change::Put { collection, member, version, deadline: record.deadline, codec, value })
    });
    let changes: Vec<Change<'_>> = changes.collect();
    folder.apply(&changes, &|| {}).map_err(super::Rejected::into_error)?;
    folder.sync()?;
    lot.clear();
    Ok(())
}

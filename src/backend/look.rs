//! What is behind a view: it reads a store's directory without a lock, and changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::meta::{self, FORMAT_FILE, Kept, META_DIR};
use super::files::place::Place;
use super::{Backend, Change, Layout, Loader, Rejected, files, packed};
use crate::error::{Error, Result};
use crate::fs::{Fs, Native};

#[derive(Debug)]
pub(crate) struct Look {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    kept: Option<Kept>,
}

impl Look {
    pub(crate) fn new(path: &Path) -> Result<Look> {
        Look::on(Arc::new(Native), path)
    }

    pub(crate) fn on(fs: Arc<dyn Fs>, path: &Path) -> Result<Look> {
        let path = meta::absolute(path)?;
        meta::check_path(&*fs, &path)?;
        Ok(Look { fs, path, kept: None })
    }

    /// Whatever the file of the format says.
    pub(super) fn assume(self, kept: Kept) -> Look {
        Look { kept: Some(kept), ..self }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Backend for Look {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let place = Arc::new(Place::look(&self.path, self.fs.clone(), self.kept)?);
        let kept = place.kept;
        let counter = match kept.layout() {
            Layout::Files => files::look(place.clone(), loader),
            Layout::Packed => packed::look(&place, loader),
        }?;
        if self.kept.is_none() && !place.is_kept(kept) {
            // It was moved meanwhile: what was there has gone to another place.
            let moved = std::io::ErrorKind::NotFound.into();
            return Err(Error::io("look at", self.path.join(META_DIR).join(FORMAT_FILE), moved));
        }
        Ok(counter)
    }

    fn apply(&mut self, _batch: &[Change<'_>]) -> Result<(), Rejected> {
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self, _counter: u64) -> Result<()> {
        Ok(())
    }

    fn persists(&self) -> bool {
        false
    }
}

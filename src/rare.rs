//! A box that is nearly always empty.

/// As `Option<Box<T>>`, where dropping an empty one is a comparison in place and not a call.
#[derive(Debug)]
pub(crate) struct Rare<T>(Option<Box<T>>);

impl<T> Rare<T> {
    pub(crate) const fn empty() -> Rare<T> {
        Rare(None)
    }

    pub(crate) fn new(content: T) -> Rare<T> {
        Rare(Some(Box::new(content)))
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }

    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

impl<T> Drop for Rare<T> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn drop_content<T>(content: Box<T>) {
            drop(content);
        }
        if let Some(content) = self.0.take() {
            drop_content(content);
        }
    }
}

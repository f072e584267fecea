//! Something on lines of the cache that nothing else is on: what one thread writes often is not to be in the way of what others
//! read beside it. It knows nothing of what it holds.

#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Apart<T>(pub(crate) T);

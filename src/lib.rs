//! larder
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
mod codec;
mod collection;
mod core;
mod error;
mod fs;
mod janitor;
mod key;
mod map;
mod options;
mod report;
mod shelf;
mod store;
mod sync;
mod value;

pub use backend::{Backend, Progress, Quarantined};
#[cfg(feature = "bincode")]
pub use codec::Bincode;
pub use codec::{Codec, CodecError, Json};
pub use collection::{Collection, TypedIter};
pub use error::{Cause, Error, Result};
pub use key::{MAX_COLLECTION, MAX_MEMBER, MAX_VALUE};
pub use options::{Durability, Options};
pub use report::{CloseReport, Health, LoadReport, Stats};
pub use store::{Iter, Store};
pub use value::{Member, Value};

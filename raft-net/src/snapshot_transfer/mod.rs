//! Transfer of a snapshot file: offered, sent in chunks from where an earlier attempt stopped, then installed.

mod receive;
mod send;

pub(crate) use receive::Incoming;
pub(crate) use send::send;

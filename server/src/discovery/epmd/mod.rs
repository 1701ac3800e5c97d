//! The Erlang port mapper: on each host, a directory from node names to ports. A node registers with the one that is
//! there, Erlang's own or another node's, or serves it.
//!
//! | part | what lives there |
//! |---|---|
//! | `protocol` | requests and answers, as the mapper reads and writes them |
//! | `mapper` | the mapper that a node serves |
//! | `registration` | keeping a name registered, and taking the mapper over |
//! | `lookup` | asking a mapper |

mod lookup;
mod mapper;
mod protocol;
mod registration;
#[cfg(test)]
mod tests;

pub use lookup::{ResolveError, names, resolve};
pub use registration::{Epmd, EpmdError, EpmdRole, EpmdSettings};

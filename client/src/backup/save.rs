//! Asks a node for a snapshot, and hands it on while it is checked.

use std::{io, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{BackupError, Checked, Checker};
use crate::api::Role;
use crate::client::Call;
use crate::transport::chain;
use crate::{Client, Endpoint, Error};

/// A node that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why nothing was saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// No node began to send one.
    #[error(transparent)]
    Client(#[from] Error),
    /// A node broke off.
    #[error("the node broke off after {bytes} bytes: {why}; save again")]
    BrokenOff {
        /// Bytes that had come.
        bytes: u64,
        /// How.
        why: String,
    },
    /// What came is not what the node sent.
    #[error("what came is of no use: {0}")]
    Arrived(#[from] BackupError),
    /// It could not be written.
    #[error("{0}")]
    Written(io::Error),
}

impl Client {
    /// Saves the state as one node has it: everything that was acknowledged before. `write` takes the file's bytes in
    /// order; what it has taken is a backup only once this returns Ok. Waits for the first byte as long as
    /// [`crate::Options::timeout`], because a node makes the whole snapshot before it sends anything.
    ///
    /// # Errors
    /// [`SaveError`].
    pub async fn save_snapshot(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> Result<Checked, SaveError> {
        let mut body = self.open_snapshot().await?;
        let (mut checker, mut bytes) = (Checker::default(), 0);
        loop {
            let broken_off = |why: String| SaveError::BrokenOff { bytes, why };
            let frame = match timeout(SILENCE_MAX, body.frame()).await {
                Ok(Some(frame)) => frame.map_err(|e| broken_off(chain(&e)))?,
                Ok(None) => return Ok(checker.finish()?),
                Err(_) => return Err(broken_off(format!("nothing came for {SILENCE_MAX:?}"))),
            };
            let Ok(piece) = frame.into_data() else { continue };
            checker.push(&piece)?;
            write(&piece).map_err(SaveError::Written)?;
            bytes += piece.len() as u64;
        }
    }

    /// From an endpoint, or where that holds no data, from the nodes that do.
    async fn open_snapshot(&self) -> Result<Incoming, Error> {
        let call = || Call::read("/api/snapshot".to_owned());
        let refused = match self.open(&call()).await {
            Ok(response) => return Ok(response.into_body()),
            Err(error @ Error::Unavailable { code: Some(_), .. }) => error,
            Err(error) => return Err(error),
        };
        let Ok(status) = self.status().await else { return Err(refused) };
        let holders = status.members.iter().filter(|member| member.role == Role::Voter);
        let holders: Vec<Endpoint> = holders.filter_map(|member| member.http.parse().ok()).collect();
        let mut last = refused;
        for holder in holders {
            match Self::with_endpoints(vec![holder], self.options().clone())?.open(&call()).await {
                Ok(response) => return Ok(response.into_body()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

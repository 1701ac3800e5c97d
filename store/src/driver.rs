//! What runs work that blocks: threads, or in simulation the task that asks for it.

use std::time::Duration;

use crate::entropy;

/// What runs work that blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Threads of their own, so that no task waits for a sync.
    Thread,
    /// A task of the current tokio runtime that blocks it while it works: deterministic, for simulated disks.
    Task,
    /// As [`Driver::Task`], on a slow disk: the log's writer waits up to this time before it writes a batch.
    SlowTask(Duration),
}

impl Driver {
    /// Runs `work`, which blocks for long.
    ///
    /// # Errors
    /// With [`Driver::Thread`]: it panicked, or the runtime ends.
    pub async fn run<R: Send + 'static>(
        self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, tokio::task::JoinError> {
        match self {
            Self::Thread => tokio::task::spawn_blocking(work).await,
            Self::Task | Self::SlowTask(_) => Ok(work()),
        }
    }

    /// Waits as long as the disk delays a batch.
    pub(crate) async fn delay(self) {
        match self {
            Self::Thread | Self::Task => {}
            Self::SlowTask(max) => tokio::time::sleep(entropy::random_range(Duration::ZERO..=max)).await,
        }
    }
}

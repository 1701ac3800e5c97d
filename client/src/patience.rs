//! Asking again while nobody can answer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Error;

/// Between two calls.
const PAUSE: Duration = Duration::from_millis(100);

/// Calls until it is answered, or until nobody could for `patience`. What is called is a read, or a change with an
/// idempotency key: it may be sent again whatever became of it.
pub(crate) async fn persist<T, F>(patience: Duration, mut call: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let deadline = Instant::now() + patience;
    loop {
        match call().await {
            Err(error @ (Error::Unavailable { .. } | Error::Indeterminate { .. })) if Instant::now() < deadline => {
                tracing::debug!(%error, "asking again");
                sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

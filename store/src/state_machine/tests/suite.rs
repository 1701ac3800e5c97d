//! openraft's own storage test suite, on the real log.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};

use super::*;
use crate::log::{LogOptions, LogStore};

struct Builder(EngineKind);

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let fs: SharedFs = Arc::new(RealFs);
        let log_options = LogOptions { segment_bytes: 64 * 1024, ..LogOptions::default() };
        let log = LogStore::open(fs.clone(), &dir.path().join("log"), log_options).unwrap();
        // The suite applies entries that it never appended, so all count as durable.
        let machine = StateMachine::open(fs, dir.path(), options(self.0)).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn openraft_suite_sled() {
    Suite::test_all(Builder(SLED)).await.unwrap();
}

#[tokio::test]
async fn openraft_suite_memory() {
    Suite::test_all(Builder(EngineKind::Memory)).await.unwrap();
}

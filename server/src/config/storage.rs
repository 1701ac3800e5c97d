//! What the configuration says of log and state, in the store's terms.

use hexkv_store::{change_log::HistoryLimits, driver::Driver, log::LogOptions, state_machine};

use super::{Config, EngineKind};

impl Config {
    /// The log, written by `driver`.
    pub fn log_options(&self, driver: Driver) -> LogOptions {
        LogOptions { segment_bytes: self.wal_segment_bytes, driver, ..LogOptions::default() }
    }

    /// Where the current state lives.
    pub fn state_engine(&self) -> state_machine::EngineKind {
        match self.engine {
            EngineKind::Sled => state_machine::EngineKind::Sled { cache_bytes: self.sled_cache_bytes },
            EngineKind::Memory => state_machine::EngineKind::Memory,
        }
    }

    /// How much of the history is kept.
    pub fn history_limits(&self) -> HistoryLimits {
        HistoryLimits {
            revisions_min: self.history_revisions,
            age_ms_min: self.history_age.as_millis() as u64,
            bytes_max: self.history_bytes,
        }
    }
}

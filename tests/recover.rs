//! Recoveries.

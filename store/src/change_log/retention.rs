//! How much history is kept.

/// Revisions that are kept at least.
pub const HISTORY_REVISIONS_MIN: u64 = 100_000;
/// Age up to which revisions are kept at least, in milliseconds.
pub const HISTORY_AGE_MS_MIN: u64 = 60 * 60 * 1000;
/// Bytes of history beyond which it goes, however young.
pub const HISTORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How much history is kept: the newest revisions or the youngest, whichever is more, within a bound of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// So many of the newest revisions stay.
    pub revisions_min: u64,
    /// Revisions younger than this stay, in milliseconds.
    pub age_ms_min: u64,
    /// Oldest history goes while there is more than this, whatever the other two say; in bytes.
    pub bytes_max: u64,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { revisions_min: HISTORY_REVISIONS_MIN, age_ms_min: HISTORY_AGE_MS_MIN, bytes_max: HISTORY_BYTES_MAX }
    }
}

/// What retention needs to know of a segment that holds at least one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentSpan {
    pub(super) last_revision: u64,
    /// Latest time of its records: leaders' clocks differ, so it need not be the last one's.
    pub(super) time_ms_max: u64,
    pub(super) bytes: u64,
}

impl HistoryLimits {
    /// The revision to compact at, the last one of the oldest segments (of all, oldest first) that can go whole;
    /// None = nothing can. The newest segment always stays.
    pub(super) fn compaction_target(&self, segments: &[SegmentSpan], now_ms: u64) -> Option<u64> {
        let (newest, older) = segments.split_last()?;
        let keep_after = newest.last_revision.saturating_sub(self.revisions_min);
        let keep_since_ms = now_ms.saturating_sub(self.age_ms_min);
        let mut bytes: u64 = segments.iter().map(|s| s.bytes).sum();
        let mut target = None;
        for segment in older {
            let old = segment.last_revision <= keep_after && segment.time_ms_max < keep_since_ms;
            if !old && bytes <= self.bytes_max {
                break;
            }
            bytes -= segment.bytes;
            target = Some(segment.last_revision);
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HistoryLimits = HistoryLimits { revisions_min: 10, age_ms_min: 1_000, bytes_max: 500 };

    fn span(last_revision: u64, time_ms_max: u64, bytes: u64) -> SegmentSpan {
        SegmentSpan { last_revision, time_ms_max, bytes }
    }

    /// Four segments of ten revisions and 100 bytes each, the newest at time 4000.
    fn four() -> Vec<SegmentSpan> {
        (1..=4).map(|i| span(10 * i, 1_000 * i, 100)).collect()
    }

    #[test]
    fn an_empty_log_and_a_lone_segment_stay() {
        assert_eq!(LIMITS.compaction_target(&[], u64::MAX), None);
        assert_eq!(LIMITS.compaction_target(&[span(1_000_000, 0, 1 << 40)], u64::MAX), None);
    }

    #[test]
    fn both_age_and_number_must_be_exceeded() {
        // At 4001 only segments whose newest record is older than 3001 are old: three of them; number allows three.
        assert_eq!(LIMITS.compaction_target(&four(), 4_001), Some(30));
        // Exactly at the age limit a segment stays.
        assert_eq!(LIMITS.compaction_target(&four(), 4_000), Some(20));
        assert_eq!(LIMITS.compaction_target(&four(), 2_000), None);
        // Far in the future age allows all, and number decides.
        let many = HistoryLimits { revisions_min: 20, ..LIMITS };
        assert_eq!(many.compaction_target(&four(), u64::MAX), Some(20));
        let more = HistoryLimits { revisions_min: 21, ..LIMITS };
        assert_eq!(more.compaction_target(&four(), u64::MAX), Some(10));
        let all = HistoryLimits { revisions_min: 40, ..LIMITS };
        assert_eq!(all.compaction_target(&four(), u64::MAX), None);
    }

    #[test]
    fn bytes_bound_both() {
        let tight = |bytes_max| HistoryLimits { revisions_min: u64::MAX, age_ms_min: u64::MAX, bytes_max };
        assert_eq!(tight(400).compaction_target(&four(), 4_000), None);
        assert_eq!(tight(399).compaction_target(&four(), 4_000), Some(10));
        assert_eq!(tight(200).compaction_target(&four(), 4_000), Some(20));
        assert_eq!(tight(0).compaction_target(&four(), 4_000), Some(30), "the newest segment stays");
    }

    #[test]
    fn a_young_segment_protects_those_after_it() {
        let mut segments = four();
        segments[0].time_ms_max = 9_000;
        assert_eq!(LIMITS.compaction_target(&segments, 9_500), None, "history has no holes");
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let limits = HistoryLimits::default();
        assert_eq!((limits.revisions_min, limits.age_ms_min, limits.bytes_max), (100_000, 3_600_000, 268_435_456));
    }
}

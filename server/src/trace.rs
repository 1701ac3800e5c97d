//! One request followed through the nodes by its W3C `traceparent` (Trace Context, level 1).
//!
//! A request that carries the header is logged under target `hexkv::trace`: at `info` when its `sampled` flag is set, else at `debug`.
//! The trace goes with the request to the leader, and no further: what is replicated does not carry it. The lines of the node that
//! answers and of the leader name the log index; every node logs what it applies, by index, at `debug` under target `hexkv::apply`.
//! A request without the header costs one look for it.

use std::{cell::Cell, fmt, future::Future, str::FromStr};

use axum::http::{HeaderMap, HeaderValue};
use hexkv_raft_net::rpc::TraceParent;
use hexkv_store::{LogId, outcome::Outcome};

/// The header of requests.
const TRACEPARENT: &str = "traceparent";
/// The header of answers to requests that had one: the trace that the node logged it under.
pub const TRACERESPONSE: &str = "traceresponse";
/// The flag that asks for being recorded.
const SAMPLED: u8 = 1;

/// Logs under the target of traces, at the level that the trace asks for.
macro_rules! traced {
    ($trace:expr, $($rest:tt)+) => {
        if $trace.parent.sampled {
            tracing::info!(target: "hexkv::trace", trace_id = %$trace, $($rest)+)
        } else {
            tracing::debug!(target: "hexkv::trace", trace_id = %$trace, $($rest)+)
        }
    };
}
pub(crate) use traced;

/// The trace that a request belongs to. Shows itself as its trace id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// What travels.
    pub parent: TraceParent,
}

/// Not of the form that the standard asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent")]
pub struct Malformed;

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.parent.trace_id)
    }
}

impl FromStr for Trace {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let lower_hex = |part: &str, digits: usize| {
            let fits = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if fits { u128::from_str_radix(part, 16).map_err(|_| Malformed) } else { Err(Malformed) }
        };
        let mut parts = text.split('-');
        let mut part = |digits| lower_hex(parts.next().unwrap_or_default(), digits);
        let (version, trace_id, parent_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        // Later versions may have more parts, which are passed over.
        let too_long = version == 0 && parts.next().is_some();
        if version == 0xff || too_long || trace_id == 0 || parent_id == 0 {
            return Err(Malformed);
        }
        let (parent_id, sampled) = (parent_id as u64, flags as u8 & SAMPLED != 0);
        Ok(Self { parent: TraceParent { trace_id, parent_id, sampled } })
    }
}

impl Trace {
    /// The trace of a request; None when it asks for none. A header that makes no sense is as if the request began a trace of its own.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let header = headers.get(TRACEPARENT)?;
        let given = header.to_str().ok().and_then(|text| text.trim().parse().ok());
        Some(given.unwrap_or_else(|| {
            let parent = TraceParent { trace_id: rand::random::<u128>().max(1), parent_id: 0, sampled: false };
            tracing::debug!(target: "hexkv::trace", ?header, trace_id = %Self { parent }, "a traceparent that makes no sense is ignored");
            Self { parent }
        }))
    }

    /// `traceresponse`: the trace, with a new id of this node's part in it.
    pub fn response_header(&self) -> HeaderValue {
        let own = rand::random::<u64>().max(1);
        let text = format!("00-{self}-{own:016x}-{:02x}", u8::from(self.parent.sampled));
        HeaderValue::from_str(&text).expect("hex digits and dashes")
    }
}

/// What a request under a trace came to so far.
#[derive(Debug)]
struct Scope {
    trace: Trace,
    applied: Cell<Option<(u64, Option<u64>)>>,
}

tokio::task_local! {
    static SCOPE: Scope;
}

/// Runs `work` under `trace`; also answers log index and revision of the last change that it made.
pub async fn scope<T>(trace: Trace, work: impl Future<Output = T>) -> (T, Option<(u64, Option<u64>)>) {
    let noted = async {
        let done = work.await;
        (done, SCOPE.with(|scope| scope.applied.get()))
    };
    SCOPE.scope(Scope { trace, applied: Cell::new(None) }, noted).await
}

/// The trace that this runs under.
pub fn current() -> Option<Trace> {
    SCOPE.try_with(|scope| scope.trace).ok()
}

/// A change under the present trace is applied on the leader: here, or there, whose log lines say more.
pub fn note_applied(index: u64, outcome: &Outcome) {
    // Without a trace there is nothing to note.
    let _ = SCOPE.try_with(|scope| scope.applied.set(Some((index, outcome.revision()))));
}

/// A change under the present trace is applied on this node, which leads.
pub fn applied_here(log_id: &LogId, outcome: &Outcome) {
    let Some(trace) = current() else { return };
    note_applied(log_id.index, outcome);
    traced!(
        trace,
        log_index = log_id.index,
        term = log_id.leader_id.term,
        revision = outcome.revision(),
        "appended, committed and applied"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_header_is_read_as_the_standard_says() {
        let trace: Trace = GOOD.parse().expect("the standard's example");
        assert_eq!(trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((trace.parent.parent_id, trace.parent.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert!(!GOOD.replace("-01", "-00").parse::<Trace>().expect("not sampled").parent.sampled);
        assert!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later".parse::<Trace>().is_ok());
        for bad in [
            "",
            "00",
            &GOOD[..GOOD.len() - 1],
            &GOOD.to_uppercase(),
            &GOOD.replace("00-4bf", "ff-4bf"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("4bf", "+bf"),
            &format!("{GOOD}-more"),
            &GOOD.replace('-', "_"),
        ] {
            assert_eq!(bad.parse::<Trace>(), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn no_header_is_no_trace_and_a_bad_one_a_new_trace() {
        assert_eq!(Trace::of(&HeaderMap::new()), None);
        let with = |text: &'static str| {
            HeaderMap::from_iter([("traceparent".parse().unwrap(), HeaderValue::from_static(text))])
        };
        assert_eq!(Trace::of(&with(GOOD)), GOOD.parse().ok());
        let (one, other) = (Trace::of(&with("nonsense")).unwrap(), Trace::of(&with("nonsense")).unwrap());
        assert!(one != other && !one.parent.sampled && one.parent.trace_id != 0);
        let answered = one.response_header().to_str().unwrap().parse::<Trace>().expect("well formed");
        assert_eq!(answered.parent.trace_id, one.parent.trace_id);
    }
}

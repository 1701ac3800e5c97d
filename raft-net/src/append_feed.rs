//! AppendEntries of one connection on their way through openraft, in order.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use hexkv_store::TypeConfig;
use openraft::{
    Raft,
    errors::Fatal,
    raft::{AppendEntriesRequest, StreamAppendResult},
    storage::RaftStateMachine,
};
use tokio::sync::mpsc;

use crate::message::{Failure, encode_answer, encode_failure};

/// A request that openraft has, by its id and its size on the wire.
struct Fed {
    id: u64,
    bytes: usize,
}

/// A stream of openraft's in use.
struct Open {
    requests: mpsc::UnboundedSender<AppendEntriesRequest<TypeConfig>>,
    results: BoxStream<'static, Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>>,
}

/// Feeds openraft and pairs its results with requests. Invariants: every request gets exactly one answer; results
/// come in the order of `fed`; openraft ends its stream at the first conflict, higher vote or fatal error, after which
/// the requests behind it are answered as not done, and the next request opens a new stream. How many requests
/// wait is bounded by the connection, which does not read more than it may serve.
#[derive(Default)]
pub(crate) struct AppendFeed {
    open: Option<Open>,
    fed: VecDeque<Fed>,
}

impl AppendFeed {
    /// Feeds one request, of `bytes` on the wire.
    pub(crate) fn feed<M: RaftStateMachine<TypeConfig>>(
        &mut self,
        raft: &Raft<TypeConfig, M>,
        id: u64,
        bytes: usize,
        request: AppendEntriesRequest<TypeConfig>,
    ) {
        let open = self.open.get_or_insert_with(|| Open::new(raft));
        if let Err(mpsc::error::SendError(request)) = open.requests.send(request) {
            // openraft stopped reading: the stream is over, and its end will be seen when it is polled.
            tracing::debug!(id, %request, "the append stream has ended");
        }
        self.fed.push_back(Fed { id, bytes });
    }

    /// Encoded answers, each with the size of its request, through `answer`. Wakes `cx` when there are more.
    pub(crate) fn poll_answers(&mut self, cx: &mut Context<'_>, mut answer: impl FnMut(Vec<u8>, usize)) {
        while let Some(open) = &mut self.open {
            let Poll::Ready(result) = open.results.poll_next_unpin(cx) else { break };
            match result {
                Some(Ok(result)) => {
                    let Fed { id, bytes } = self.fed.pop_front().expect("openraft answers only what it was fed");
                    answer(encode_answer(id, &result), bytes);
                    if result.is_err() {
                        self.end("an earlier request of the stream was rejected", &mut answer);
                    }
                }
                Some(Err(fatal)) => self.end(&fatal.to_string(), &mut answer),
                None => self.end("Raft has stopped", &mut answer),
            }
        }
    }

    fn end(&mut self, reason: &str, answer: &mut impl FnMut(Vec<u8>, usize)) {
        self.open = None;
        for Fed { id, bytes } in self.fed.drain(..) {
            answer(encode_failure(id, &Failure::Unavailable(reason.to_string())), bytes);
        }
    }
}

impl Open {
    fn new<M: RaftStateMachine<TypeConfig>>(raft: &Raft<TypeConfig, M>) -> Self {
        let (requests, mut queued) = mpsc::unbounded_channel();
        let input = stream::poll_fn(move |cx| queued.poll_recv(cx));
        Self { requests, results: raft.stream_append(input).boxed() }
    }
}

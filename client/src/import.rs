//! Imports: [`Client::import`].

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};

use crate::api::{Code, CompareOp, CompareTarget, TXN_OPERATIONS_MAX, TxnGet, TxnOp, TxnPut, TxnRequest, TxnResult};
use crate::export::reader::{Numbered, ReadError};
use crate::kv::{Condition, PutOptions};
use crate::patience::persist;
use crate::{Client, Error};

/// Most that one transaction writes, in bytes of keys and values, unless one record alone has more.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Batches that are under way at a time.
const BATCHES_IN_FLIGHT: usize = 4;

/// Longest [`ImportOptions::patience`]. Nodes remember for 10 minutes what they did. A batch is sent for the last time when its
/// patience ends, and that may take as long again: within twice this, and some room, it is known what was done.
pub const PATIENCE_MAX: Duration = Duration::from_secs(4 * 60);

/// What becomes of keys that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// The import stops at the first one.
    #[default]
    Refuse,
    /// They stay as they are.
    Keep,
    /// They are replaced.
    Overwrite,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// What becomes of keys that exist.
    pub existing: Existing,
    /// How long each batch is tried while no node can do it, or while it is unknown whether one did: [`PATIENCE_MAX`] at most.
    pub patience: Duration,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { existing: Existing::default(), patience: Duration::from_secs(60) }
    }
}

/// Records that were imported together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    /// The line of the last one: everything up to it is done.
    pub line: u64,
    /// Records that were written.
    pub written: u64,
    /// Records whose keys existed, and stayed.
    pub kept: u64,
    /// Revision of the change, 0 when there was none.
    pub revision: u64,
}

/// Why an import stopped. Everything before `line` that was told is done, and up to three batches behind it may be.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is not right.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// With [`Existing::Refuse`]: a key exists.
    #[error("line {line}: the key {key:?} exists")]
    Exists {
        /// Its line.
        line: u64,
        /// The key.
        key: String,
    },
    /// A node refused, or nobody could do it. Everything before `line` is done.
    #[error("line {line}: {error}")]
    Client {
        /// The line, or the first of the batch.
        line: u64,
        /// What became of it.
        error: Error,
    },
}

impl Client {
    /// Writes `records`, whose keys must differ, in transactions of up to 128 keys of which some are under way at a time.
    /// Each goes with an idempotency key, so it is done once, however often it has to be sent. Tells each batch when it is
    /// done, in the order of lines. Keys are written without leases.
    ///
    /// The stream ends after its first error: see [`ImportError`].
    pub fn import<'a>(
        &'a self,
        records: impl Stream<Item = Result<Numbered, ReadError>> + 'a,
        options: &'a ImportOptions,
    ) -> impl Stream<Item = Result<Imported, ImportError>> + 'a {
        let run: u64 = rand::random();
        let results = batches(records)
            .map(move |batch| async move { self.import_batch(batch?, options, run).await })
            .buffered(BATCHES_IN_FLIGHT);
        results.scan(false, |failed, result| {
            let go_on = !*failed;
            *failed = result.is_err();
            async move { go_on.then_some(result) }
        })
    }

    async fn import_batch(
        &self,
        batch: Vec<Numbered>,
        options: &ImportOptions,
        run: u64,
    ) -> Result<Imported, ImportError> {
        let first = batch.first().map_or(0, |numbered| numbered.line);
        if options.patience > PATIENCE_MAX {
            let why = format!("an import is tried for {} s at most, so that it is done once", PATIENCE_MAX.as_secs());
            return Err(ImportError::Client { line: first, error: Error::Invalid(why) });
        }
        if batch.len() > 1 {
            match self.import_together(&batch, options, run).await {
                Err(ImportError::Client { error: Error::Rejected { .. }, .. }) => {
                    tracing::debug!(first, "refused: one by one, to see which");
                }
                result => return result,
            }
        }
        let mut done = Imported::default();
        for numbered in &batch {
            let one = self.import_one(numbered, options, run).await?;
            done = Imported {
                line: one.line,
                written: done.written + one.written,
                kept: done.kept + one.kept,
                revision: done.revision.max(one.revision),
            };
        }
        Ok(done)
    }

    /// All of `batch`, or all of it whose keys do not exist, at one revision.
    async fn import_together(
        &self,
        batch: &[Numbered],
        options: &ImportOptions,
        run: u64,
    ) -> Result<Imported, ImportError> {
        let (first, line) = (batch[0].line, batch[batch.len() - 1].line);
        let mut left: Vec<&Numbered> = batch.iter().collect();
        let mut round = 0;
        while !left.is_empty() {
            let txn = transaction(&left, options.existing);
            let key = format!("import-{run:016x}-{first}-{round}");
            let answer = persist(options.patience, || self.txn_once(&txn, &key)).await;
            let answer = answer.map_err(|error| ImportError::Client { line: first, error })?;
            if answer.succeeded {
                let written = left.len() as u64;
                let kept = batch.len() as u64 - written;
                return Ok(Imported { line, written, kept, revision: answer.revision });
            }
            // The other branch read the keys at the same revision, so one of them is there.
            let mut existing = answer.results.iter().map(|result| matches!(result, TxnResult::Get(Some(_))));
            let found = left.iter().zip(existing.by_ref()).find(|(_, exists)| *exists).map(|(numbered, _)| *numbered);
            let Some(found) = found else {
                let why = "a transaction says that a key exists, and then not which one".to_owned();
                return Err(ImportError::Client { line: first, error: Error::Unexpected(why) });
            };
            if options.existing == Existing::Refuse {
                return Err(ImportError::Exists { line: found.line, key: found.record.key.clone() });
            }
            let mut results = answer.results.iter();
            left.retain(|_| !matches!(results.next(), Some(TxnResult::Get(Some(_)))));
            round += 1;
        }
        Ok(Imported { line, written: 0, kept: batch.len() as u64, revision: 0 })
    }

    /// A record alone: it may be too large for a transaction.
    async fn import_one(
        &self,
        numbered: &Numbered,
        options: &ImportOptions,
        run: u64,
    ) -> Result<Imported, ImportError> {
        let Numbered { line, record } = numbered;
        let line = *line;
        let put = PutOptions {
            content_type: record.content_type.clone(),
            condition: (options.existing != Existing::Overwrite).then_some(Condition::Absent),
            idempotency_key: Some(format!("import-{run:016x}-{line}-alone")),
            ..PutOptions::default()
        };
        let answer = persist(options.patience, || self.put(&record.key, record.value.clone(), &put)).await;
        match (answer, options.existing) {
            (Ok(answer), _) => Ok(Imported { line, written: 1, kept: 0, revision: answer.revision }),
            (Err(Error::Rejected { code: Code::PreconditionFailed, .. }), Existing::Keep) => {
                Ok(Imported { line, written: 0, kept: 1, revision: 0 })
            }
            (Err(Error::Rejected { code: Code::PreconditionFailed, .. }), Existing::Refuse) => {
                Err(ImportError::Exists { line, key: record.key.clone() })
            }
            (Err(error), _) => Err(ImportError::Client { line, error }),
        }
    }
}

/// Writes all records when none of their keys exists, and else tells which do; or writes them anyway.
fn transaction(records: &[&Numbered], existing: Existing) -> TxnRequest {
    let mut txn = TxnRequest::default();
    for Numbered { record, .. } in records.iter().copied() {
        if existing != Existing::Overwrite {
            txn = txn
                .when(&record.key, CompareTarget::CreateRevision(0), CompareOp::Equal)
                .otherwise(TxnOp::Get(TxnGet { key: record.key.clone(), keys_only: true }));
        }
        txn = txn.then(TxnOp::Put(TxnPut {
            key: record.key.clone(),
            value: record.value.clone(),
            content_type: record.content_type.clone(),
            ..TxnPut::default()
        }));
    }
    txn
}

/// Records put together as they come, up to the limits. What was read before an error comes before it.
fn batches<'a>(
    records: impl Stream<Item = Result<Numbered, ReadError>> + 'a,
) -> impl Stream<Item = Result<Vec<Numbered>, ImportError>> + 'a {
    type Records<'a> = Pin<Box<dyn Stream<Item = Result<Numbered, ReadError>> + 'a>>;
    struct State<'a> {
        records: Records<'a>,
        /// Read, and too much for the batch before.
        next: Option<Numbered>,
        failed: Option<ReadError>,
    }
    let begin = State { records: Box::pin(records.fuse()), next: None, failed: None };
    stream::unfold(begin, |mut state| async move {
        if let Some(error) = state.failed.take() {
            return Some((Err(error.into()), state));
        }
        let mut batch: Vec<Numbered> = state.next.take().into_iter().collect();
        let mut bytes: usize = batch.iter().map(size).sum();
        while batch.len() < TXN_OPERATIONS_MAX && bytes < BATCH_BYTES_MAX {
            match state.records.next().await {
                Some(Ok(numbered)) if !batch.is_empty() && bytes + size(&numbered) > BATCH_BYTES_MAX => {
                    state.next = Some(numbered);
                    break;
                }
                Some(Ok(numbered)) => {
                    bytes += size(&numbered);
                    batch.push(numbered);
                }
                Some(Err(error)) => {
                    state.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        match (batch.is_empty(), state.failed.take()) {
            (true, None) => None,
            (true, Some(error)) => Some((Err(error.into()), state)),
            (false, failed) => {
                state.failed = failed;
                Some((Ok(batch), state))
            }
        }
    })
}

fn size(numbered: &Numbered) -> usize {
    numbered.record.key.len() + numbered.record.value.len()
}

#[cfg(test)]
mod tests {
    use futures_util::stream::TryStreamExt as _;

    use super::*;
    use crate::export::line::Record;
    use crate::export::reader::Wrong;

    fn numbered(line: u64, bytes: usize) -> Numbered {
        let record = Record { key: format!("{line:08}"), value: vec![0; bytes].into(), content_type: None };
        Numbered { line, record }
    }

    fn lines(sizes: &[usize]) -> Vec<Vec<u64>> {
        let records: Vec<_> = (1..).zip(sizes).map(|(line, bytes)| Ok(numbered(line, *bytes))).collect();
        let batches = batches(stream::iter(records)).map_ok(|batch| batch.iter().map(|one| one.line).collect());
        futures_util::FutureExt::now_or_never(batches.try_collect()).expect("nothing waits").expect("no error")
    }

    #[test]
    fn batches_keep_within_their_limits() {
        assert_eq!(lines(&[]), Vec::<Vec<u64>>::new());
        let many: Vec<usize> = lines(&[1; 300]).iter().map(Vec::len).collect();
        assert_eq!(many, [128, 128, 44]);
        let half = BATCH_BYTES_MAX / 2;
        assert_eq!(lines(&[half, half, 1]), [vec![1], vec![2, 3]]);
        assert_eq!(lines(&[1, 8 << 20, 1]), [vec![1], vec![2], vec![3]], "a large one goes alone");
    }

    #[test]
    fn what_was_read_before_an_error_comes_before_it() {
        let error = ReadError { line: 2, why: Wrong::Cut };
        let records = stream::iter([Ok(numbered(1, 1)), Err(error)]);
        let told: Vec<String> = futures_util::FutureExt::now_or_never(
            batches(records).map(|batch| batch.map_or_else(|e| e.to_string(), |b| b.len().to_string())).collect(),
        )
        .expect("nothing waits");
        assert!(told[0] == "1" && told[1].starts_with("line 2") && told.len() == 2, "{told:?}");
    }
}

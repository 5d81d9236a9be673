//! Reading staging after a start: how far the chain goes, a batch at a time.

use super::apply::check_bounds;
use super::handover::Ready;
use super::medium::aligned;
use super::staging::{Cursor, Segment, list, read_batch, segment_path};
use super::state::State;
use super::stream::Stream;
use crate::batch::{Batch, Keyring};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What staging holds.
#[derive(Debug, Default)]
pub struct Scan {
    pub segments: Vec<Segment>,
    /// Behind the last batch that is applied or was handed out.
    pub cursor: Cursor,
    pub durable: Stream,
    /// Acknowledged batches are missing or damaged: what and where.
    pub damage: Option<String>,
}

/// Follows the chain through all segments. Changes nothing.
pub struct Scanner {
    dir: PathBuf,
    keys: Keyring,
    group: GroupUuid,
    sizes: Vec<u64>,
    /// The last batch that is applied.
    applied: u64,
    /// Segments that are not begun, by their first numbers.
    firsts: VecDeque<u64>,
    current: Option<Current>,
    found: Scan,
    is_over: bool,
}

/// The segment in work.
struct Current {
    path: PathBuf,
    file: File,
    end: u64,
    /// As far as it is known good.
    segment: Segment,
    /// A segment that starts here overrules what lies in this one from that number on.
    next_first: Option<u64>,
}

/// What a segment has at its next place.
enum Step {
    /// The chain's next batch, and the stream after it.
    Next(Batch, Stream),
    /// One that is applied already.
    Applied(Batch),
    /// Nothing: its end, or another segment's place.
    End,
    /// Not a batch, or not the next one.
    Bad(String),
}

impl Scanner {
    /// Begins after what `state` says is applied.
    pub fn new(dir: &Path, state: &State, keys: &Keyring) -> Result<Scanner> {
        Ok(Scanner {
            dir: dir.to_owned(),
            keys: keys.clone(),
            group: state.group_uuid,
            sizes: state.volumes.iter().map(|volume| volume.size_bytes).collect(),
            applied: state.applied.number,
            firsts: list(dir)?.into(),
            current: None,
            found: Scan { durable: state.applied.clone(), ..Scan::default() },
            is_over: false,
        })
    }

    /// The next batch that is not applied; `None` once nothing more follows.
    ///
    /// # Errors
    /// [`ErrorKind::NotAuthorised`] for a batch whose key is not given: it may be sound;
    /// else what cannot be read. The next call tries again.
    pub fn next(&mut self) -> Result<Option<Ready>> {
        let Some((batch, cursor)) = self.advance()? else { return Ok(None) };
        self.found.cursor = cursor;
        Ok(Some(Ready::staged(batch, self.found.durable.clone())))
    }

    /// Whether there is no more.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`Scanner::next`].
    pub fn finish(mut self) -> Result<Scan> {
        while let Some((batch, _)) = self.advance()? {
            batch.retire();
        }
        Ok(self.found)
    }

    /// The next batch, and the place behind it.
    fn advance(&mut self) -> Result<Option<(Batch, Cursor)>> {
        while !self.is_over {
            let Some(mut current) = self.current.take() else {
                self.begin_segment()?;
                continue;
            };
            // After a failure this place is read again.
            let step = self.step(&mut current);
            let cursor = Cursor { segment: current.segment.first, offset: current.segment.bytes };
            match step {
                Ok(Step::End) => self.end_segment(&current, None),
                Ok(Step::Bad(why)) => self.end_segment(&current, Some(why)),
                Ok(Step::Applied(batch)) => {
                    batch.retire();
                    self.found.cursor = cursor;
                    self.current = Some(current);
                }
                Ok(Step::Next(batch, after)) => {
                    self.found.durable = after;
                    self.current = Some(current);
                    return Ok(Some((batch, cursor)));
                }
                Err(error) => {
                    self.current = Some(current);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    fn begin_segment(&mut self) -> Result<()> {
        let Some(first) = self.firsts.front().copied() else {
            self.is_over = true;
            return Ok(());
        };
        let path = segment_path(&self.dir, first);
        if first > self.found.durable.number + 1 {
            self.found.damage = Some(format!("{} does not follow", path.display()));
            self.is_over = true;
            return Ok(());
        }
        let failed = |e| Error::storage(format!("cannot read {}", path.display()), e);
        let file = File::open(&path).map_err(failed)?;
        let end = file.metadata().map_err(failed)?.len();
        let segment = Segment { first, last: first.saturating_sub(1), bytes: 0 };
        let next_first = self.firsts.get(1).copied();
        self.firsts.pop_front();
        self.current = Some(Current { path, file, end, segment, next_first });
        Ok(())
    }

    /// `bad`: what ended its good part.
    fn end_segment(&mut self, ended: &Current, bad: Option<String>) {
        let Current { path, segment, next_first, .. } = ended;
        if segment.bytes > 0 {
            self.found.segments.push(*segment);
        }
        let Some(why) = bad else { return };
        if next_first.is_none_or(|next| next <= self.found.durable.number + 1) {
            tracing::info!(segment = segment.first, "an unfinished write ends staging: {why}");
        } else {
            self.found.damage = Some(format!("{}: {why}", path.display()));
            self.is_over = true;
        }
    }

    fn step(&mut self, current: &mut Current) -> Result<Step> {
        let Current { path, file, end, segment, next_first } = current;
        if segment.bytes >= *end || next_first.is_some_and(|next| segment.last + 1 >= next) {
            return Ok(Step::End);
        }
        let bytes = match read_batch(file, path, segment.bytes, *end) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::Damaged => return Ok(Step::Bad(e.to_string())),
            Err(e) => return Err(e),
        };
        let after = aligned(segment.bytes + bytes.len() as u64);
        let batch = match Batch::open(bytes, &self.keys) {
            Ok(batch) => batch,
            Err(e) if e.kind() == ErrorKind::NotAuthorised => {
                let what = format!("{}: what is staged there", path.display());
                return Err(Error::caused(ErrorKind::NotAuthorised, what, e));
            }
            Err(e) => return Ok(Step::Bad(e.to_string())),
        };
        let stream = match self.follow(&batch, segment.last + 1) {
            Ok(stream) => stream,
            Err(why) => return Ok(Step::Bad(why)),
        };
        segment.last += 1;
        segment.bytes = after;
        Ok(match stream {
            Some(stream) => Step::Next(batch, stream),
            None => Step::Applied(batch),
        })
    }

    /// The stream after the batch; `None` for one that is applied already.
    fn follow(&self, batch: &Batch, number: u64) -> std::result::Result<Option<Stream>, String> {
        let view = batch.view();
        if view.number() != number {
            return Err(format!("batch {} lies where {number} belongs", view.number()));
        }
        if number <= self.applied {
            return Ok(None);
        }
        check_bounds(&view, &self.sizes).map_err(|e| e.to_string())?;
        let followed = self.found.durable.follow(self.group, &view);
        followed.map(Some).map_err(|refusal| refusal.message)
    }
}

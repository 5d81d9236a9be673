//! Where a stream of batches stands, as a pure fold: admission, points, seal.
//!
//! The same value describes what was received, what is durable and what is
//! applied; recovery recomputes the later ones from the earlier by folding the
//! staged batches (docs/formats/receiver.md).

use crate::batch::{BatchView, Control, Kind, Op, Sealed};
use crate::ids::{BatchHash, GroupUuid};
use crate::wire::{Refusal, RefusalCode};
use serde::{Deserialize, Serialize};
use towline_block::{Position, Seq};

/// A batch end at which the target's volumes are exactly the source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub number: u64,
    pub position: Position,
}

/// The stream after batch `number`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// 0 before the first batch.
    pub number: u64,
    pub hash: BatchHash,
    /// Default: not known; the next batch may stand anywhere.
    pub position: Position,
    pub claims_upto: u64,
    pub stream_bytes: u64,
    /// Nothing is lacking here: this batch end is a point.
    pub whole: bool,
    /// The last point up to here.
    pub point: Option<Point>,
    /// The last record of the stream is a SEAL, at this position.
    pub sealed: Option<Position>,
}

impl Stream {
    /// The stream after `batch`, if it is the one that comes next.
    pub fn follow(&self, group: GroupUuid, batch: &BatchView<'_>) -> Result<Stream, Refusal> {
        self.check_chain(group, batch)?;
        self.check_position(batch)?;
        Ok(self.fold(batch))
    }

    fn check_chain(&self, group: GroupUuid, batch: &BatchView<'_>) -> Result<(), Refusal> {
        let number = batch.number();
        if batch.group() != group {
            let what = format!("batch {number} is of group {}, not {group}", batch.group());
            return Err(Refusal::new(RefusalCode::WrongGroup, what));
        }
        if number != self.number + 1 {
            return Err(out_of_order(format!(
                "batch {number} came where batch {} belongs",
                self.number + 1
            )));
        }
        if batch.prev_hash() != self.hash {
            return Err(out_of_order(format!(
                "batch {number} was cut after another batch {} than the one that is here",
                self.number
            )));
        }
        if batch.stream_bytes_before() != self.stream_bytes {
            return Err(out_of_order(format!(
                "batch {number} counts {} bytes before it, here are {}",
                batch.stream_bytes_before(),
                self.stream_bytes
            )));
        }
        Ok(())
    }

    /// The table in docs/formats/batch.md, "The chain".
    fn check_position(&self, batch: &BatchView<'_>) -> Result<(), Refusal> {
        let (here, end) = (self.position, batch.position());
        if here == Position::default() {
            return Ok(());
        }
        let ring = |p: Position| (p.epoch, p.incarnation);
        if end.epoch < here.epoch {
            let what = format!("batch {} is of epoch {}", batch.number(), end.epoch.0);
            return Err(Refusal::new(RefusalCode::OldEpoch, what));
        }
        let same = ring(end) == ring(here);
        let first = batch.first_seq();
        let leaps = matches!(
            batch.ops().next().map(|first| first.op),
            Some(Op::Control { control: Control::Resync, .. })
        );
        let follows = match batch.kind() {
            _ if ring(end) < ring(here) => false,
            Kind::Records if same => first == here.seq.next() || (leaps && first > here.seq),
            Kind::Records => first == Seq(1) || leaps,
            Kind::Blocks if same => end.seq == here.seq,
            Kind::Blocks => end.seq == Seq::NONE,
        };
        if !follows || (same && batch.claims_upto() < self.claims_upto) {
            return Err(out_of_order(format!(
                "batch {} (from seq {first} to {end}, claims up to {}) does not follow {here}, \
                 claims up to {}",
                batch.number(),
                batch.claims_upto(),
                self.claims_upto
            )));
        }
        Ok(())
    }

    fn fold(&self, batch: &BatchView<'_>) -> Stream {
        let position = batch.position();
        let mut whole = self.whole;
        let mut sealed = None;
        for entry in batch.ops() {
            sealed = None;
            match entry.op {
                Op::Control { control: Control::Heal, .. } => whole = true,
                Op::Control { control: Control::Break | Control::Resync, .. } => whole = false,
                Op::Control { control: Control::Seal, .. } if entry.seq == position.seq => {
                    sealed = Some(position);
                }
                _ => {}
            }
        }
        let point = Point { number: batch.number(), position };
        Stream {
            number: batch.number(),
            hash: batch.hash(),
            position,
            claims_upto: batch.claims_upto(),
            stream_bytes: batch.stream_bytes(),
            whole,
            point: if whole { Some(point) } else { self.point },
            sealed,
        }
    }

    /// The stream after a batch of one's own making: it follows, and may be sealed.
    pub fn then(&self, sealed: &Sealed) -> Stream {
        let whole = sealed.whole.unwrap_or(self.whole);
        let point = Point { number: sealed.number, position: sealed.position };
        Stream {
            number: sealed.number,
            hash: sealed.hash,
            position: sealed.position,
            claims_upto: sealed.claims_upto,
            stream_bytes: sealed.stream_bytes,
            whole,
            point: if whole { Some(point) } else { self.point },
            sealed: sealed.ends_in_seal.then_some(sealed.position),
        }
    }

    /// The same chain, of which is no longer known what the disks hold: no point,
    /// and everything has to come again.
    pub fn lost(&self) -> Stream {
        Stream {
            number: self.number,
            hash: self.hash,
            stream_bytes: self.stream_bytes,
            ..Stream::default()
        }
    }
}

fn out_of_order(what: String) -> Refusal {
    Refusal::new(
        RefusalCode::OutOfOrder,
        format!("{what}: connect again and go on after the batch that WELCOME names"),
    )
}

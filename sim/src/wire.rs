//! What travels between shipper and receiver, and the connections it travels on.

use crate::disk::{CELLS_PER_BLOCK, cells_of};
use crate::parts::Parts;
use crate::ring::{Kind, Pos};
use std::collections::VecDeque;

/// Batches that may be under way unacknowledged.
pub const WINDOW_BATCHES: usize = 2;
/// Records one batch carries at most; with them, and never with a block, it is largest.
pub const BATCH_RECORDS_MAX: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A contiguous range of records, ending at the batch's position.
    Records { first: u64, kinds: Vec<Kind> },
    /// One block of a claim, or the cells of it that the target lacks. `ends`: the claim that
    /// this completes.
    Block { block: usize, content: [u32; CELLS_PER_BLOCK], parts: Parts, ends: Option<u64> },
    /// A question: does the block hold this? (The content stands for its digest.)
    Compare { claim: u64, block: usize, content: [u32; CELLS_PER_BLOCK], ends: Option<u64> },
    /// All of a compare claim is equal.
    Equal { ends: u64 },
}

impl Body {
    /// The claim that this completes.
    pub fn ends(&self) -> Option<u64> {
        match self {
            Body::Records { .. } => None,
            Body::Block { ends, .. } | Body::Compare { ends, .. } => *ends,
            Body::Equal { ends } => Some(*ends),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub session: u64,
    pub number: u64,
    pub previous: u64,
    /// Where the stream stands behind this batch.
    pub pos: Pos,
    pub claims: u64,
    /// Bytes of the stream up to and with this batch.
    pub stream_bytes: u64,
    pub body: Body,
}

impl Batch {
    pub fn bytes(body: &Body) -> u64 {
        1 + match body {
            Body::Records { kinds, .. } => {
                kinds.iter().map(|k| 1 + k.values().len() as u64).sum::<u64>()
            }
            Body::Block { .. } => CELLS_PER_BLOCK as u64,
            Body::Compare { .. } => 1,
            Body::Equal { .. } => 0,
        }
    }

    /// Cells it changes, last writer wins.
    pub fn values(&self) -> Vec<(usize, u32)> {
        match &self.body {
            Body::Records { kinds, .. } => kinds.iter().flat_map(Kind::values).collect(),
            Body::Block { block, content, parts, .. } => {
                let cells = cells_of(*block).zip(content.iter().copied()).enumerate();
                let lacking = cells.filter(|(i, _)| parts.is_none_or(|parts| parts[*i]));
                lacking.map(|(_, value)| value).collect()
            }
            Body::Compare { .. } | Body::Equal { .. } => Vec::new(),
        }
    }

    /// Where its marks stand.
    pub fn marks(&self) -> Vec<Pos> {
        let Body::Records { first, kinds } = &self.body else { return Vec::new() };
        let marks = (*first..).zip(kinds).filter(|(_, kind)| **kind == Kind::Mark);
        marks.map(|(seq, _)| Pos { seq, ..self.pos }).collect()
    }

    /// `whole` behind this batch, if it was `whole` before.
    pub fn whole_after(&self, whole: bool) -> bool {
        match &self.body {
            Body::Records { kinds, .. } => {
                kinds.iter().rev().find_map(Kind::whole).unwrap_or(whole)
            }
            _ => whole,
        }
    }

    /// Stands for the cryptographic hash: names number, session and content.
    pub fn hash(&self) -> u64 {
        let mut hash = self.previous ^ self.number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut mix = |value: u64| {
            hash = (hash ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        };
        mix(self.session);
        mix(u64::from(self.pos.inc) << 32 | self.pos.seq);
        mix(self.claims);
        if let Body::Compare { block, content, .. } = &self.body {
            mix(*block as u64 | 1 << 40);
            content.iter().for_each(|value| mix(u64::from(*value)));
        }
        for (cell, value) in self.values() {
            mix((cell as u64) << 32 | u64::from(value));
        }
        hash
    }
}

/// Where a receiver's durable stream ends; the resume state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    pub pos: Pos,
    pub claims: u64,
    pub number: u64,
    pub hash: u64,
    pub stream_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToReceiver {
    Hello { session: u64 },
    Batch(Batch),
    Promote { attempt: u64, pos: Pos },
    Abort { attempt: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToShipper {
    HelloReply {
        durable: Durable,
    },
    Ack {
        durable: Durable,
    },
    Decision {
        attempt: u64,
        promoted: bool,
    },
    /// The answer to the question of batch `number`.
    Compared {
        number: u64,
        claim: u64,
        block: usize,
        differs: bool,
    },
}

/// One TCP connection: in order, without loss, until it breaks. What was sent before a
/// break may still arrive, also after a newer connection was made.
#[derive(Clone, Debug, Default)]
pub struct Conn {
    pub id: u64,
    pub to_receiver: VecDeque<ToReceiver>,
    pub to_shipper: VecDeque<ToShipper>,
    /// The shipper's end is gone.
    pub shipper_gone: bool,
    /// The receiver's end is gone.
    pub receiver_gone: bool,
}

impl Conn {
    pub fn is_over(&self) -> bool {
        self.receiver_gone || (self.shipper_gone && self.to_receiver.is_empty())
    }
}

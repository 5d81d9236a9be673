//! The source and its ring, and what is cut of it.

use crate::{CELL_BYTES, CELLS};
use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_shipper::batch::{BatchBuilder, Chain, Control, Sealed};

pub type Content = [u8; CELLS];

/// The source and its ring: record 1 is RESYNC, 2 is HEAL, each other writes a cell.
pub struct Source {
    pub writes: Vec<(usize, u8)>,
    pub acked: u64,
}

impl Source {
    pub fn head(&self) -> u64 {
        2 + self.writes.len() as u64
    }

    pub fn at(&self, seq: u64) -> Content {
        let mut content = [0; CELLS];
        for (cell, value) in self.writes.iter().take(seq.saturating_sub(2) as usize) {
            content[*cell] = *value;
        }
        content
    }
}

pub fn position(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

pub fn cut(source: &Source, first: u64, last: u64, chain: &Chain) -> Sealed {
    let mut batch = BatchBuilder::records(position(first), 0);
    for seq in first..=last {
        match seq {
            1 => batch.control(Seq(1), Control::Resync, b"").expect("room"),
            2 => batch.control(Seq(2), Control::Heal, b"").expect("room"),
            _ => {
                let (cell, value) = source.writes[seq as usize - 3];
                let volume = VolumeId((cell / (CELLS / 2)) as u16);
                let offset = (cell % (CELLS / 2) * CELL_BYTES) as u64;
                let payload = [value; CELL_BYTES];
                batch.write(Seq(seq), volume, offset, &payload, crc32c(&payload)).expect("room");
            }
        }
        batch.pass(Seq(seq));
    }
    batch.encode(chain, 0)
}

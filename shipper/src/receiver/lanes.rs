//! Further connections of a session: batches come by several and are put in order again.
//!
//! | | |
//! |---|---|
//! | a batch is the next one | admitted, and all that wait for it |
//! | a later one, and there are lanes | waits; its memory is of its lane's own budget |
//! | a later one without lanes | refused as out of order |
//! | the same number twice | refused |
//! | a lane ends | the session ends: what it carried is sent again |
//! | the session ends | its lanes hear the same reason, and end |
//! | the receiver ends | its lanes hear that they may come again |
//!
//! A shipper gives each lane rising numbers. So the lane that carries the next batch has
//! none before it that waits, and room for it: nothing waits in a circle.

use super::order::Outbox;
use crate::batch;
use crate::wire::{Message, Refusal, RefusalCode};
use std::collections::BTreeMap;
use tokio::sync::OwnedSemaphorePermit;

/// Connections of a session besides its first.
pub const LANES_MAX: usize = 7;

/// A batch as it came, with the memory it takes.
pub type Arrived = (Vec<u8>, OwnedSemaphorePermit);

/// Those of one session. Dropping it ends them.
pub struct Lanes {
    join: u64,
    lanes: Vec<(u64, Outbox)>,
    early: BTreeMap<u64, Arrived>,
}

impl Lanes {
    /// None yet; `join` is what they have to say.
    pub fn new(join: u64) -> Lanes {
        Lanes { join, lanes: Vec::new(), early: BTreeMap::new() }
    }

    pub fn has(&self, connection: u64) -> bool {
        self.lanes.iter().any(|(lane, _)| *lane == connection)
    }

    pub fn add(&mut self, join: u64, connection: u64, outbox: Outbox) -> Result<(), Refusal> {
        if join != self.join {
            let what = "the connection to join is over";
            return Err(Refusal::new(RefusalCode::Superseded, what));
        }
        if self.lanes.len() >= LANES_MAX {
            let what = format!("a session has at most {} connections", LANES_MAX + 1);
            return Err(Refusal::new(RefusalCode::Protocol, what));
        }
        let _ = outbox.send(Message::KeepAlive);
        self.lanes.push((connection, outbox));
        Ok(())
    }

    /// The batch itself if it is number `next`, or not for here to judge; `None`: it waits.
    pub fn in_turn(&mut self, batch: Arrived, next: u64) -> Result<Option<Arrived>, Refusal> {
        let number = batch::number_of(&batch.0).filter(|number| *number > next);
        let Some(number) = number.filter(|_| !self.lanes.is_empty()) else {
            return Ok(Some(batch));
        };
        if self.early.insert(number, batch).is_some() {
            let what = format!("batch {number} came twice");
            return Err(Refusal::new(RefusalCode::Protocol, what));
        }
        Ok(None)
    }

    /// The batch of that number, if it waits.
    pub fn next(&mut self, number: u64) -> Option<Arrived> {
        self.early.remove(&number)
    }

    /// The session ends, and this is why.
    pub fn end(mut self, refusal: &Refusal) {
        self.tell(refusal);
    }

    fn tell(&mut self, refusal: &Refusal) {
        for (_, outbox) in self.lanes.drain(..) {
            let _ = outbox.send(Message::Error(refusal.clone()));
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let what = "the session of this connection is over: connect again";
        self.tell(&Refusal::new(RefusalCode::OutOfOrder, what));
    }
}

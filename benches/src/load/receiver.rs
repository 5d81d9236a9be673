//! The receiving half of a connection: one read, all replies in it, one look at the
//! clock.

use super::phase::{Phase, Stage};
use super::replies::Replies;
use super::slots::Slots;
use super::tally::{Kind, Tally};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd_client::Stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// One read takes up to this: the replies of a whole batch, also of large reads.
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Receiver {
    stream: Stream,
    slots: Arc<Slots>,
    stage: Arc<Stage>,
    replies: Replies,
    buffer: Box<[u8]>,
    /// The phase in which the tally was last written.
    phase: Phase,
    pub(super) tally: Tally,
}

impl Receiver {
    pub(super) fn new(stream: Stream, slots: Arc<Slots>, stage: Arc<Stage>) -> Receiver {
        Receiver {
            stream,
            slots,
            stage,
            replies: Replies::default(),
            buffer: vec![0; BUFFER_BYTES].into(),
            phase: Phase::Warm,
            tally: Tally::default(),
        }
    }

    /// Waits up to `timeout` for bytes and tells `done` of each finished request.
    /// Says whether anything came. What ends outside the measured window is not counted.
    pub(super) fn receive(
        &mut self,
        timeout: Duration,
        mut done: impl FnMut(u64, Kind),
    ) -> Result<bool> {
        self.stream.set_read_timeout(timeout).map_err(|e| Error::socket("socket option", e))?;
        let came = match self.stream.receive(&mut self.buffer) {
            Ok(0) => {
                let what = "the server ended the connection";
                return Err(Error::new(ErrorKind::Disconnected, what));
            }
            Ok(came) => came,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(Error::socket("cannot receive replies", e)),
        };
        let now = self.stage.now_ns();
        let phase = self.stage.phase();
        if phase == Phase::Measured && self.phase == Phase::Warm {
            self.tally.clear();
        }
        self.phase = phase;
        let (slots, tally) = (&self.slots, &mut self.tally);
        let payload_of = |cookie| {
            slots
                .get(cookie)
                .map(|(kind, len, _)| if kind == Kind::Read { len as usize } else { 0 })
        };
        self.replies.feed(&self.buffer[..came], payload_of, |cookie| {
            let Some((kind, _, since)) = slots.get(cookie) else { return };
            if phase == Phase::Measured {
                tally.record(kind, now.saturating_sub(since));
            }
            slots.free(cookie);
            done(cookie, kind);
        })?;
        Ok(true)
    }
}

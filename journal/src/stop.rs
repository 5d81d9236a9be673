//! Seal, decision, and the orderly stop.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Control, Counter};
use crate::journal::Journal;
use crate::map::{VolumeMap, runs_of};
use crate::saved::Saved;
use crate::state::{Promoted, Seal, Stopped};
use std::sync::atomic::Ordering;
use towline_block::VolumeId;

impl Journal {
    /// Ends the epoch's stream with a SEAL record, durably. The caller holds all
    /// writes and has flushed the sources. Repeating it for the same attempt
    /// answers the same.
    pub fn seal(&self, attempt: u64) -> Result<Seal> {
        let mut state = self.state.lock().expect("state lock");
        if let Some(seal) = &state.seal {
            return if seal.attempt == attempt {
                Ok(seal.clone())
            } else {
                Err(refused(format!("the group is sealed by attempt {:016x}", seal.attempt)))
            };
        }
        let seq = {
            let mut cursor = self.lock_cursor();
            if cursor.free_slots(self.ring.slots()) < 2 {
                return Err(refused(
                    "the ring has no slot left for a seal: let the target catch up",
                ));
            }
            self.append_control(&mut cursor, Control::Seal, attempt)
        };
        let seal = Seal { attempt, seq, promoted: None };
        state.seal = Some(seal.clone());
        if let Err(error) = self.store(&state) {
            state.seal = None;
            return Err(error);
        }
        Ok(seal)
    }

    /// The target has durably aborted the attempt: the source goes on.
    pub fn unseal(&self, attempt: u64) -> Result<()> {
        let mut state = self.state.lock().expect("state lock");
        match &state.seal {
            None => return Ok(()),
            Some(seal) if seal.attempt != attempt => {
                return Err(refused("another attempt sealed the group"));
            }
            Some(Seal { promoted: Some(_), .. }) => {
                return Err(refused("the target was promoted: a seal that was kept is not lifted"));
            }
            Some(_) => {}
        }
        let mut lifted = state.clone();
        lifted.seal = None;
        self.store(&lifted)?;
        *state = lifted;
        Ok(())
    }

    /// The target has durably promoted the attempt: writes are refused for good.
    pub fn commit(&self, attempt: u64, promoted: Promoted) -> Result<()> {
        let mut state = self.state.lock().expect("state lock");
        match &state.seal {
            Some(seal) if seal.attempt == attempt => {}
            _ => return Err(refused("the group is not sealed by this attempt")),
        }
        let mut kept = state.clone();
        if let Some(seal) = &mut kept.seal {
            seal.promoted = Some(promoted);
        }
        self.store(&kept)?;
        *state = kept;
        Ok(())
    }

    pub fn sealed(&self) -> Option<Seal> {
        self.state.lock().expect("state lock").seal.clone()
    }

    /// Orderly stop. The caller has ended all I/O and flushed the sources. The ring
    /// stays where it is; the map is saved for the case that it does not survive.
    pub fn stop(&self) -> Result<()> {
        let acked_seq = self.ring.get(Counter::Acked);
        let mut words: Vec<Vec<u64>> = (0..self.sources.len())
            .map(|index| VolumeMap::new(&self.ring, VolumeId(index as u16)).pending_words())
            .collect();
        let head = self.lock_cursor().next_seq - 1;
        let spilled = self.spill.as_ref().map_or_else(Vec::new, |s| s.touched_above(acked_seq));
        let in_ring = (acked_seq + 1..=head)
            .filter_map(|seq| self.ring.record(seq).ok())
            .map(|record| (record.volume, record.blocks()));
        let touched = spilled.iter().map(|touched| (touched.volume, touched.range()));
        for (volume, blocks) in touched.chain(in_ring) {
            let Some(words) = words.get_mut(volume.index()) else { continue };
            for block in blocks.first..blocks.end() {
                if let Some(word) = words.get_mut((block / 64) as usize) {
                    *word |= 1 << (block % 64);
                }
            }
        }
        let mut state = self.state.lock().expect("state lock");
        let saved_bytes = Saved {
            group_uuid: state.group_uuid.0,
            ring_id: state.ring.id.0,
            incarnation: state.incarnation,
            acked_seq,
            acked_claims: self.ring.get(Counter::AckedClaims),
            words: words.clone(),
        }
        .store(&self.dir.saved_path())?;
        self.ring.counter(Counter::MapWrittenBytes).fetch_add(saved_bytes, Ordering::Relaxed);
        let mut stamps = Vec::new();
        for source in &self.sources {
            stamps.push(source.disk.stamp()?);
        }
        let mut stopped = state.clone();
        stopped.stopped = Some(Stopped { stamps });
        self.store(&stopped)?;
        *state = stopped;
        let pending: u64 = words
            .iter()
            .enumerate()
            .flat_map(|(index, words)| runs_of(words, self.ring.blocks(index)))
            .map(|run| run.count)
            .sum();
        tracing::info!(group = %self.group, pending_blocks = pending, "journal stopped in order");
        Ok(())
    }
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, what)
}

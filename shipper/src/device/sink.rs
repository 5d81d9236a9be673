//! The shipper's session with its devices: takes batches of the stream in order, writes
//! packs, and acknowledges a pack once it is closed.
//!
//! What lies in a pack that is not closed counts for nothing: a device that is pulled out
//! costs this pack, and its blocks and records are read again.

use super::export::{ExportPlan, ExportView, Shared};
use super::folder::Folder;
use super::pack::PackWriter;
use super::shelf::{Own, Shelf};
use super::{LOOK_EVERY, SETTLE_EVERY, SETTLE_MAX};
use crate::batch::{Header, Sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::BatchHash;
use crate::receiver::Stream as Stand;
use crate::receiver::medium::Medium;
use crate::source::ShipConfig;
use crate::source::stream::{News, Next, Stream};
use crate::wire::{Ack, PROTOCOL, Welcome};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use towline_journal::GroupDir;
use towline_journal::progress::Figure;
use zerocopy::FromBytes;

/// How often a missing group, the end of the baseline, and the wish to stop are looked for.
const POLL: Duration = Duration::from_millis(50);

pub(crate) fn run(
    stream: &Stream,
    plan: &ExportPlan,
    shared: &Shared,
    config: &ShipConfig,
    dir: &GroupDir,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(export(stream, plan, shared, config, dir)),
        Err(e) => Err(Error::storage("cannot start the runtime of the export", e)),
    };
    let error = outcome.as_ref().err().map(ToString::to_string);
    stream.progress().set_error(&error.unwrap_or_default());
    stream.progress().set(Figure::Connected, 0);
    match outcome {
        // Asked to stop.
        Ok(false) => {}
        Ok(true) => shared.end(Ok(())),
        Err(error) => shared.end(Err(error)),
    }
    stream.end();
}

/// False when it was asked to stop before it was finished.
async fn export(
    stream: &Stream,
    plan: &ExportPlan,
    shared: &Shared,
    config: &ShipConfig,
    dir: &GroupDir,
) -> Result<bool> {
    let own = loop {
        if stream.stopping() {
            return Ok(false);
        }
        if let Some(state) = dir.load().map_err(crate::source::from_journal)? {
            break Own::of(state);
        }
        sleep(POLL).await;
    };
    let key = config.keys.newest().map(|key| key.id);
    let shelf = Shelf::open(&own, plan, key, dir, Medium::default())?;
    if shelf.manifest.finished {
        show(shared, &shelf);
        return Ok(true);
    }
    let closed = shelf.manifest.after();
    tracing::info!(
        set = %shelf.manifest.set, packs = shelf.manifest.packs.len(),
        "the devices have everything up to batch {}", closed.number
    );
    stream.welcome(welcome(&closed));
    let mut sink = Sink { stream, shared, shelf, open: None, settling: None };
    show(shared, &sink.shelf);
    sink.run().await
}

fn welcome(closed: &Stand) -> Welcome {
    Welcome {
        version: PROTOCOL,
        batch_format: crate::batch::VERSION,
        number: closed.number,
        hash: closed.hash,
        position: closed.position,
        claims_upto: closed.claims_upto,
        stream_bytes: closed.stream_bytes,
        point: closed.point.map(|point| point.position),
        broken: !closed.whole,
        lacks: 0,
        join: None,
        promoted: None,
    }
}

fn ack(closed: &Stand) -> Ack {
    Ack {
        number: closed.number,
        position: closed.position,
        claims_upto: closed.claims_upto,
        applied: closed.number,
        stream_bytes: closed.stream_bytes,
        point: closed.point.map(|point| point.position),
        broken: !closed.whole,
    }
}

/// Since when nothing was dirty, and when a pack was closed for that last.
#[derive(Clone, Copy)]
struct Settling {
    since: Instant,
    closed: Instant,
}

struct Open {
    writer: PackWriter,
    folder: Folder,
    device: u32,
}

struct Sink<'a> {
    stream: &'a Stream,
    shared: &'a Shared,
    shelf: Shelf,
    open: Option<Open>,
    settling: Option<Settling>,
}

impl Sink<'_> {
    async fn run(&mut self) -> Result<bool> {
        loop {
            let step = self.step().await;
            match step {
                Ok(true) => {
                    self.shelf.finish()?;
                    show(self.shared, &self.shelf);
                    return Ok(true);
                }
                Ok(false) => {}
                Err(error) if is_final(error.kind()) => return Err(error),
                Err(error) => self.wait_for_devices(&error).await,
            }
            if self.stream.stopping() {
                self.close()?;
                show(self.shared, &self.shelf);
                return Ok(false);
            }
        }
    }

    /// Takes one batch, closes what is due; true once the export is finished. There may
    /// always be another batch: guests may write faster than that.
    async fn step(&mut self) -> Result<bool> {
        let next = self.stream.next();
        let is_idle = next.is_none();
        match next {
            Some(Next::Batch(sealed)) => self.put(&sealed).await?,
            Some(Next::Message(_)) => {
                let what = "the group is exported to transport devices, which cannot take over";
                self.stream.tell(News::NotReady(what.into()));
            }
            None => {}
        }
        if is_idle && self.stream.walked().is_none() {
            // The proxy is gone, and the drain waits for what it had cut.
            self.close()?;
        } else if self.settle()? {
            return Ok(true);
        }
        if is_idle {
            let _ = timeout(POLL, self.stream.wait_ready()).await;
        }
        Ok(false)
    }

    async fn put(&mut self, sealed: &Sealed) -> Result<()> {
        self.pass(sealed).await;
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let (folder, device, bytes_max) = self.shelf.choose()?;
                let writer = self.shelf.begin_pack(&folder, bytes_max)?;
                self.open.insert(Open { writer, folder, device })
            }
        };
        if prev_hash(sealed) != Some(open.writer.after.hash) {
            let what = format!("batch {} does not follow in the pack", sealed.number);
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        open.writer.push(sealed)?;
        let is_full = open.writer.is_full();
        self.stream.handed(sealed.number);
        self.stream.progress().set(Figure::SentStreamBytes, sealed.stream_bytes);
        if is_full { self.close() } else { Ok(()) }
    }

    /// The device's disk is read and written at the rate that is in force for the group.
    async fn pass(&self, sealed: &Sealed) {
        let pace = self.stream.pace();
        let (mut rest, mut ops) = (sealed.bytes.len(), u64::from(sealed.op_count));
        while rest > 0 && !self.stream.stopping() {
            let piece = pace.piece_bytes().min(rest);
            pace.pass(piece as u64, std::mem::take(&mut ops)).await;
            rest -= piece;
        }
    }

    /// Closes the pack in work, if it holds anything, and acknowledges it.
    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take().filter(|open| !open.writer.is_empty()) else {
            return Ok(());
        };
        let number = self.shelf.manifest.packs.len() + 1;
        let (map, after) = open.writer.close(&open.folder, number)?;
        self.shelf.add(open.device, &map, after.clone())?;
        tracing::info!(
            pack = number,
            bytes = map.pack_bytes(),
            device = open.device,
            batch = after.number,
            "a pack is closed"
        );
        self.stream.closed(ack(&after), after.hash);
        show(self.shared, &self.shelf);
        Ok(())
    }

    /// Once all blocks were read: small packs while nothing is dirty, so that claims
    /// complete and HEAL can follow. True when there is nothing more to wait for: the group
    /// is whole, or its guests keep it broken.
    fn settle(&mut self) -> Result<bool> {
        let walked = self.stream.walked();
        let Some(walked) = walked.filter(|w| w.dirty_blocks == 0 || w.rounds > 0) else {
            self.settling = None;
            return Ok(false);
        };
        let now = Instant::now();
        let settling = self.settling.get_or_insert(Settling { since: now, closed: now });
        let is_late = now.duration_since(settling.since) >= SETTLE_MAX;
        let is_due = now.duration_since(settling.closed) >= SETTLE_EVERY;
        let is_clean = walked.dirty_blocks == 0;
        if !(is_late || is_due && is_clean) {
            return Ok(false);
        }
        settling.closed = now;
        self.close()?;
        let closed = self.shelf.manifest.after();
        Ok(closed.number > 0 && (is_late || closed.whole && is_clean))
    }

    /// A device failed: the pack in work is lost, the stream goes on behind the last closed
    /// one once any device is there.
    async fn wait_for_devices(&mut self, error: &Error) {
        tracing::warn!("{error}; going on once a device is there");
        self.open = None;
        self.stream.lost();
        self.stream.progress().set_error(&error.to_string());
        loop {
            sleep(LOOK_EVERY).await;
            if self.stream.stopping() {
                return;
            }
            // A device that came back and is full is final: the next step says so.
            let chosen = self.shelf.choose();
            if !chosen.is_err_and(|error| error.kind() == ErrorKind::Unreachable) {
                break;
            }
        }
        self.shelf.bring_up_to_date();
        self.stream.progress().set_error("");
        self.stream.rewind(welcome(&self.shelf.manifest.after()));
    }
}

fn show(shared: &Shared, shelf: &Shelf) {
    let manifest = &shelf.manifest;
    shared.show(ExportView {
        set: Some(manifest.set),
        folders: shelf.views(),
        packs: manifest.packs.len(),
        bytes: manifest.bytes(),
        after: manifest.after(),
    });
}

/// The hash of the batch that it was cut behind.
fn prev_hash(sealed: &Sealed) -> Option<BatchHash> {
    Header::ref_from_prefix(&sealed.bytes).ok().map(|(header, _)| BatchHash(header.prev_hash))
}

/// What waiting does not cure.
fn is_final(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Refused
            | ErrorKind::InvalidInput
            | ErrorKind::Damaged
            | ErrorKind::TooNew
            | ErrorKind::NoSpace
    )
}

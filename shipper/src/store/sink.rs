//! The shipper's session with a store: takes batches of the stream in order, makes
//! objects of them, and acknowledges what is durable.

use super::begun::Begun;
use super::bucket::Bucket;
use super::writer::{Made, Writer, put};
use super::{GroupFile, LINGER, PUTS_MAX, StoreUrl};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use crate::receiver::Stream as Stand;
use crate::source::ShipConfig;
use crate::source::complaint::Complaint;
use crate::source::stream::{News, Next, Stream};
use crate::wire::{Ack, PROTOCOL, VolumeSize, Welcome};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use towline_block::Epoch;
use towline_journal::GroupDir;
use towline_journal::progress::Figure;

/// First and longest pause between two attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// The longest where something has to be put right.
const BACKOFF_REFUSED: Duration = Duration::from_secs(60);
/// How often a missing group, and the wish to stop, is looked for.
const POLL: Duration = Duration::from_millis(50);

pub(crate) fn run(stream: &Arc<Stream>, url: &StoreUrl, config: &ShipConfig, dir: &GroupDir) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                ended = ship(stream, url, config, dir) => {
                    if let Err(error) = ended {
                        tracing::error!("shipping stopped: {error}");
                        stream.progress().set_error(&error.to_string());
                        stream.progress().set(Figure::Connected, 0);
                        stream.end();
                    }
                }
                () = stream.stop_asked() => {}
            }
        }),
        Err(e) => {
            tracing::error!("cannot start the runtime of the store: {e}");
            stream.end();
        }
    }
}

/// The longest pause until the next attempt; `None` where that would take a newer shipper's or
/// epoch's place.
fn longest_pause(kind: ErrorKind) -> Option<Duration> {
    match kind {
        ErrorKind::Refused => None,
        // Somebody has to put it right.
        ErrorKind::InvalidInput | ErrorKind::Damaged | ErrorKind::TooNew => Some(BACKOFF_REFUSED),
        _ => Some(BACKOFF_LAST),
    }
}

/// The same until it succeeds, or fails for good; what failed is shown meanwhile.
async fn repeat<T, F>(stream: &Stream, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let progress = stream.progress();
    let (mut backoff, mut complaint) = (BACKOFF_FIRST, Complaint::default());
    loop {
        let error = match attempt().await {
            Ok(done) => {
                if backoff != BACKOFF_FIRST {
                    progress.set_error("");
                    progress.set(Figure::Connected, u64::from(stream.connected()));
                }
                return Ok(done);
            }
            Err(error) => error,
        };
        let Some(longest) = longest_pause(error.kind()) else { return Err(error) };
        let what = error.to_string();
        complaint.tell(&what, std::time::Instant::now());
        progress.set_error(&what);
        progress.set(Figure::Connected, 0);
        sleep(backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        backoff = (backoff * 2).min(longest);
    }
}

async fn ship(
    stream: &Arc<Stream>,
    url: &StoreUrl,
    config: &ShipConfig,
    dir: &GroupDir,
) -> Result<()> {
    let own = repeat(stream, || own_group(stream, dir)).await?;
    let take_over = || async {
        let begun = Begun::load(dir, url)?;
        let opened = url.open(&config.group, begun.is_none());
        let bucket = match (&begun, opened) {
            (Some(begun), Err(e)) if e.kind() == ErrorKind::Unreachable => {
                return Err(begun.away(dir, &config.group));
            }
            (_, opened) => opened?,
        };
        if let Some(begun) = begun {
            begun.check(dir, &*bucket, &config.group).await?;
        }
        let writer = Writer::take_over(&bucket, &own).await?;
        Ok((bucket, writer))
    };
    let (bucket, writer) = repeat(stream, take_over).await?;
    tracing::info!(
        to = %url, session = writer.session(), number = writer.after().number,
        "the store has everything up to here"
    );
    let welcome = welcome(writer.after());
    // The place in the store is taken: what fails from here on takes no other.
    let settle = || async {
        Begun::keep(dir, url, writer.begun_by())?;
        crate::device::check_travelling(dir, &welcome)
    };
    repeat(stream, settle).await?;
    stream.progress().set_error("");
    stream.welcome(welcome);
    Sink::new(stream, bucket, writer).run().await
}

async fn own_group(stream: &Stream, dir: &GroupDir) -> Result<GroupFile> {
    loop {
        if let Some(state) = dir.load().map_err(crate::source::from_journal)? {
            let size = |v: towline_journal::state::VolumeState| VolumeSize {
                name: v.name,
                size_bytes: v.size_bytes,
            };
            return Ok(GroupFile {
                version: super::group::STORE_VERSION,
                group: state.group,
                group_uuid: GroupUuid(state.group_uuid.0),
                epoch: Epoch(state.epoch),
                volumes: state.volumes.into_iter().map(size).collect(),
                session: stream.session(),
            });
        }
        sleep(POLL).await;
    }
}

fn welcome(durable: &Stand) -> Welcome {
    Welcome {
        version: PROTOCOL,
        batch_format: crate::batch::VERSION,
        number: durable.number,
        hash: durable.hash,
        position: durable.position,
        claims_upto: durable.claims_upto,
        stream_bytes: durable.stream_bytes,
        point: durable.point.map(|point| point.position),
        broken: !durable.whole,
        lacks: 0,
        join: None,
        promoted: None,
    }
}

/// A store applies nothing: what it durably has counts as applied.
fn ack(durable: &Stand) -> Ack {
    Ack {
        number: durable.number,
        position: durable.position,
        claims_upto: durable.claims_upto,
        applied: durable.number,
        stream_bytes: durable.stream_bytes,
        point: durable.point.map(|point| point.position),
        broken: !durable.whole,
    }
}

struct Sink<'a> {
    stream: &'a Arc<Stream>,
    bucket: Arc<dyn Bucket>,
    writer: Writer,
    /// Objects on their way, in order; true once one is there.
    on_way: VecDeque<(u64, Stand, bool)>,
    puts: JoinSet<Result<u64>>,
    /// Number of objects begun, names them here.
    begun: u64,
    /// When the draft got its first batch.
    drafted_at: Instant,
}

impl<'a> Sink<'a> {
    fn new(stream: &'a Arc<Stream>, bucket: Arc<dyn Bucket>, writer: Writer) -> Sink<'a> {
        Sink {
            stream,
            bucket,
            writer,
            on_way: VecDeque::new(),
            puts: JoinSet::new(),
            begun: 0,
            drafted_at: Instant::now(),
        }
    }

    async fn run(mut self) -> Result<()> {
        loop {
            self.draft().await?;
            let due = self.due_at();
            tokio::select! {
                Some(done) = self.puts.join_next() => {
                    let done = done.map_err(|e| {
                        Error::caused(ErrorKind::Storage, "writing to the store ended by a panic", e)
                    })?;
                    self.arrived(done?);
                }
                () = self.stream.wait_ready(), if !self.writer.is_full() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// When the draft is to be sent, if anything but a finished object can make it due.
    fn due_at(&self) -> Option<Instant> {
        let may_go = !self.writer.is_empty() && self.puts.len() < PUTS_MAX;
        match may_go {
            true if self.writer.is_full() => Some(self.drafted_at),
            true if self.puts.is_empty() => Some(self.drafted_at + LINGER),
            _ => None,
        }
    }

    /// Takes what waits, and sends what is due.
    async fn draft(&mut self) -> Result<()> {
        loop {
            if self.due_at().is_some_and(|due| due <= Instant::now()) {
                self.send()?;
            }
            if self.writer.is_full() {
                return Ok(());
            }
            match self.stream.next() {
                Some(Next::Batch(sealed)) => {
                    if self.writer.is_empty() {
                        self.drafted_at = Instant::now();
                    }
                    self.writer.push(&sealed);
                }
                // Of a cutover that was under way when the group was shipped elsewhere.
                Some(Next::Message(_)) => {
                    let what = "the group is shipped to a store, which cannot take over";
                    self.stream.tell(News::NotReady(what.into()));
                }
                None => return Ok(()),
            }
        }
    }

    fn send(&mut self) -> Result<()> {
        let made = self.writer.make()?;
        self.stream.progress().set(Figure::SentStreamBytes, made.after.stream_bytes);
        self.begun += 1;
        self.on_way.push_back((self.begun, made.after.clone(), false));
        let (bucket, stream, id) = (self.bucket.clone(), self.stream.clone(), self.begun);
        self.puts.spawn(async move { deliver(&stream, &*bucket, &made).await.map(|()| id) });
        Ok(())
    }

    fn arrived(&mut self, id: u64) {
        for (begun, _, is_there) in &mut self.on_way {
            *is_there |= *begun == id;
        }
        while self.on_way.front().is_some_and(|(_, _, is_there)| *is_there) {
            if let Some((_, durable, _)) = self.on_way.pop_front() {
                self.stream.acked(ack(&durable));
            }
        }
    }
}

/// The same bytes to the same place until it is known how that went. A limit holds an
/// object back as a whole: a request cannot be slowed down.
async fn deliver(stream: &Stream, bucket: &dyn Bucket, made: &Made) -> Result<()> {
    let pace = stream.pace();
    let (mut rest, mut ops) = (made.len(), made.op_count);
    while rest > 0 {
        let piece = pace.piece_bytes().min(rest);
        pace.pass(piece as u64, std::mem::take(&mut ops)).await;
        rest -= piece;
    }
    repeat(stream, || put(bucket, made)).await
}

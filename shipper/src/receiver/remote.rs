//! A target that is an export of another NBD server, by blocking calls.
//!
//! Changes are sent without waiting for each other, never two that touch each other: a server may
//! make those that are under way in any order. What was written is lost when the connection is lost
//! before a flush was answered (the server may have been killed), and then nothing is done and
//! nothing called durable until the owner begins again from what was flushed.
//!
//! | state | change | read | flush | connection lost |
//! |---|---|---|---|---|
//! | clean: all that was written is flushed | unflushed | the same | the same | connected anew, asked again |
//! | unflushed | the same | the same | clean | torn, and an error |
//! | torn | error | error | error | |
//! | draining: begun again, and the server still makes changes of before | once all are answered: clean | the same | the same | clean: nobody is left to answer |
//!
//! A change or a flush that the server fails, or does not answer for a minute, tears as well.
//! [`Remote::start_over`] leads to clean, or where changes are still under way to draining: a server
//! that made one of them late would write over what is newer. A new connection would not keep it from that.

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use towline_block::upstream::{ANSWER_WAIT, Ask, Client, Ended, Role};
use towline_block::{Disk, Extent, NbdUri, Upstream};

/// Changes under way at once: enough to hide a round trip behind them. Their data is in the
/// sockets, and the server's.
const CHANGES_MAX: usize = 64;
/// And so many bytes of them: a server that is slow to write is to read on all the same.
const BYTES_MAX: u64 = 8 << 20;
/// What zeroes count of their length: a server that has to write them is busy with so much.
const ZERO_SHARE: u64 = 32;
/// One request to write: large for servers to which a request is dear, and many on their way.
const WRITE_BYTES_MAX: u64 = 1 << 20;
/// One request to zero; a server that has to write the zeroes answers in time.
const ZERO_BYTES_MAX: u64 = 128 << 20;

pub struct Remote {
    upstream: Arc<Upstream>,
    link: Mutex<Link>,
    /// How long the server may say nothing to what it was asked.
    patience: Duration,
}

#[derive(Default)]
struct Link {
    client: Option<Client>,
    /// Changes that were sent and are not answered, by the number of their request.
    under_way: Vec<Option<Change>>,
    state: State,
}

#[derive(Clone, Copy)]
struct Change {
    extent: Extent,
    /// Of [`BYTES_MAX`].
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Clean,
    Unflushed,
    Torn,
    Draining,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Remote").field(&self.upstream.path()).finish()
    }
}

impl Remote {
    /// Connects.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an export that cannot be a target: read-only, not able to
    /// flush, of blocks that are too large; [`ErrorKind::Storage`] when its server does not answer.
    pub fn open(uri: NbdUri) -> Result<Remote> {
        use towline_block::ErrorKind as Block;
        let upstream =
            Upstream::open_as(uri, Role::Target).map_err(|error| match error.kind() {
                Block::Unsupported => Error::new(ErrorKind::InvalidInput, error.to_string()),
                _ => error.into(),
            })?;
        let upstream = Arc::new(upstream);
        Ok(Remote { upstream, link: Mutex::default(), patience: ANSWER_WAIT })
    }

    #[cfg(test)]
    pub fn with_patience(self, patience: Duration) -> Remote {
        Remote { patience, ..self }
    }

    /// Its URI.
    pub fn path(&self) -> &Path {
        self.upstream.path()
    }

    pub fn size_bytes(&self) -> u64 {
        self.upstream.size_bytes()
    }

    /// The owner repeats everything since the last flush that succeeded.
    pub fn start_over(&self) {
        let mut link = self.link();
        link.state = match link.is_idle() {
            true => State::Clean,
            false => State::Draining,
        };
    }

    /// Lets go of the connection, and hands the export out for somebody else to use.
    pub fn release(&self) -> Arc<Upstream> {
        let mut link = self.link();
        if let Some(client) = link.client.take()
            && link.is_idle()
            && let Ok(connection) = client.into_connection()
        {
            self.upstream.put_connection(connection);
        }
        Arc::clone(&self.upstream)
    }

    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let link = &mut *self.link();
        self.settle(link)?;
        self.ask(link, |client| client.read_at(buf, offset))
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.change(Extent::new(offset, bytes.len() as u64), Some(bytes), false)
    }

    /// Makes the range read as zero.
    pub fn zero(&self, extent: Extent, keep_allocated: bool) -> Result<()> {
        self.change(extent, None, keep_allocated)
    }

    /// Everything written since the last flush is durable.
    pub fn flush(&self) -> Result<()> {
        let link = &mut *self.link();
        self.settle(link)?;
        let flushed = self.ask(link, Client::flush);
        link.state = if flushed.is_ok() { State::Clean } else { State::Torn };
        flushed
    }

    /// Writes `parts` one behind the other, beginning at `offset`.
    pub fn write_run(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        let extent = Extent::new(offset, len);
        let align = u64::from(self.upstream.terms().align);
        if extent.offset.is_multiple_of(align) && len.is_multiple_of(align) {
            self.check_bounds(extent)?;
            return self.post_run(&mut self.link(), extent, parts);
        }
        let mut at = offset;
        parts.iter().try_for_each(|part| {
            self.write_at(part, at)?;
            at += part.len() as u64;
            Ok(())
        })
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_bounds(&self, extent: Extent) -> Result<()> {
        if extent.within(self.size_bytes()) {
            return Ok(());
        }
        let (path, size) = (self.path().display(), self.size_bytes());
        let what = format!("{extent:?} reaches past the end of {path} ({size} bytes)");
        Err(Error::new(ErrorKind::InvalidInput, what))
    }

    /// `bytes`: none for zeroes.
    fn change(&self, extent: Extent, bytes: Option<&[u8]>, keep_allocated: bool) -> Result<()> {
        self.check_bounds(extent)?;
        let link = &mut *self.link();
        let align = u64::from(self.upstream.terms().align);
        // What covers a part of the server's blocks is read, changed and written as a whole.
        let mut at = extent.offset;
        while at < extent.end() {
            let whole = extent.end() - extent.end() % align;
            let (start, end) = if at.is_multiple_of(align) && at < whole {
                (at, whole)
            } else {
                (at, (at - at % align + align).min(extent.end()))
            };
            let part = bytes.map(|bytes| {
                bytes.get((start - extent.offset) as usize..(end - extent.offset) as usize)
            });
            let part = part.map(Option::unwrap_or_default);
            let piece = Extent::new(start, end - start);
            let is_whole = start.is_multiple_of(align) && end.is_multiple_of(align);
            match part {
                _ if !is_whole => self.patch(link, piece, part, align)?,
                Some(part) => self.post_run(link, piece, &[part])?,
                None => self.post_zeroes(link, piece, keep_allocated)?,
            }
            at = end;
        }
        Ok(())
    }

    /// A part of one of the server's blocks.
    fn patch(&self, link: &mut Link, part: Extent, bytes: Option<&[u8]>, align: u64) -> Result<()> {
        self.settle(link)?;
        let start = part.offset - part.offset % align;
        let mut block = vec![0; align as usize];
        self.ask(link, |client| client.read_at(&mut block, start))?;
        let at = (part.offset - start) as usize;
        let space = block.get_mut(at..at + part.len as usize).unwrap_or_default();
        match bytes {
            Some(bytes) => space.copy_from_slice(bytes),
            None => space.fill(0),
        }
        self.post_run(link, Extent::new(start, align), &[&block])
    }

    /// Writes whole blocks of the server's: the parts, one behind the other.
    fn post_run(&self, link: &mut Link, extent: Extent, parts: &[&[u8]]) -> Result<()> {
        let mut parts = parts.iter().copied();
        let (mut rest, mut data): (&[u8], Vec<&[u8]>) = (&[], Vec::new());
        for piece in extent.pieces(self.write_bytes_max()) {
            data.clear();
            let mut lacking = piece.len as usize;
            while lacking > 0 {
                if rest.is_empty() {
                    let Some(part) = parts.next() else { break };
                    rest = part;
                }
                let (now, later) = rest.split_at(lacking.min(rest.len()));
                data.push(now);
                (lacking, rest) = (lacking - now.len(), later);
            }
            self.post(link, piece, || Ask::Post { extent: piece }, &data)?;
        }
        Ok(())
    }

    /// Makes whole blocks of the server's read as zero.
    fn post_zeroes(&self, link: &mut Link, extent: Extent, keep_allocated: bool) -> Result<()> {
        if self.upstream.terms().can_zero {
            for piece in extent.pieces(self.blocks_of(ZERO_BYTES_MAX)) {
                let ask = || Ask::Zero { extent: piece, keep_allocated, fua: false };
                self.post(link, piece, ask, &[])?;
            }
            return Ok(());
        }
        let most = self.write_bytes_max();
        let zeroes = vec![0; most.min(extent.len) as usize];
        for piece in extent.pieces(most) {
            let data = zeroes.get(..piece.len as usize).unwrap_or_default();
            self.post(link, piece, || Ask::Post { extent: piece }, &[data])?;
        }
        Ok(())
    }

    /// Bytes of one request to write.
    fn write_bytes_max(&self) -> u64 {
        self.blocks_of(WRITE_BYTES_MAX.min(self.upstream.terms().payload_bytes_max.into()))
    }

    /// As many whole blocks of the server's as so many bytes have, one at least.
    fn blocks_of(&self, bytes: u64) -> u64 {
        let align = u64::from(self.upstream.terms().align);
        (bytes / align * align).max(align)
    }

    /// Sends a change. Its answer is taken when others need room, or by [`Remote::settle`].
    fn post(
        &self,
        link: &mut Link,
        extent: Extent,
        ask: impl Fn() -> Ask,
        data: &[&[u8]],
    ) -> Result<()> {
        self.check(link)?;
        if link.under_way.iter().flatten().any(|other| other.extent.overlaps(extent)) {
            self.settle(link)?;
        }
        let bytes = if data.is_empty() { extent.len / ZERO_SHARE } else { extent.len };
        let id = loop {
            // Answers are taken many at a time: by half before any is waited for.
            let changes = link.under_way.iter().flatten();
            let (count, sent) =
                changes.fold((0, 0), |(n, sum), change| (n + 1, sum + change.bytes));
            let is_full = count == CHANGES_MAX || count > 0 && sent + bytes > BYTES_MAX;
            if is_full || count >= CHANGES_MAX / 2 {
                self.collect(link, is_full)?;
            }
            if is_full {
                continue;
            }
            match link.under_way.iter().position(Option::is_none) {
                Some(free) => break free,
                None if link.under_way.len() < CHANGES_MAX => link.under_way.push(None),
                None => {}
            }
        };
        self.ask(link, |client| client.post(id as u32, ask(), data))?;
        link.state = State::Unflushed;
        if let Some(slot) = link.under_way.get_mut(id) {
            *slot = Some(Change { extent, bytes });
        }
        Ok(())
    }

    /// Waits until all changes that were sent are made.
    fn settle(&self, link: &mut Link) -> Result<()> {
        self.check(link)?;
        while !link.is_idle() {
            self.collect(link, true)?;
        }
        Ok(())
    }

    fn check(&self, link: &mut Link) -> Result<()> {
        match link.state {
            State::Clean | State::Unflushed => Ok(()),
            State::Draining => self.drain(link),
            State::Torn => {
                let what = format!(
                    "target {}: what was written since its last flush may be lost and is written again",
                    self.path().display()
                );
                Err(Error::new(ErrorKind::Storage, what))
            }
        }
    }

    /// Waits until nothing of before is under way any more; what became of it does not matter.
    fn drain(&self, link: &mut Link) -> Result<()> {
        let mut ended = Vec::new();
        while !link.is_idle() {
            let Some(client) = &mut link.client else { break };
            match client.collect(true, &mut ended) {
                Ok(true) => ended.drain(..).for_each(|answer| link.free(answer.id)),
                Ok(false) => return Err(self.is_silent(link)),
                // Whoever would have answered is gone.
                Err(_) => link.client = None,
            }
        }
        link.client.take_if(|client| client.is_half());
        link.under_way.clear();
        link.state = State::Clean;
        Ok(())
    }

    fn is_silent(&self, link: &Link) -> Error {
        let count = link.under_way.iter().flatten().count();
        let what = format!(
            "target {}: the server has answered none of {count} changes for {:?}; nothing more is written \
             before it has, or ends the connection",
            self.path().display(),
            self.patience
        );
        Error::new(ErrorKind::Storage, what)
    }

    /// Takes answers to changes.
    fn collect(&self, link: &mut Link, wait: bool) -> Result<()> {
        let mut ended = Vec::new();
        let has_come = self.ask(link, |client| client.collect(wait, &mut ended))?;
        if wait && !has_come {
            link.state = State::Torn;
            return Err(self.is_silent(link));
        }
        let mut failure = None;
        for Ended { id, result, .. } in ended {
            link.free(id);
            failure = failure.or(result.err());
        }
        failure.map_or(Ok(()), |error| {
            link.state = State::Torn;
            Err(Error::storage(format!("cannot write {}", self.path().display()), error))
        })
    }

    /// Asks the server; once more on a new connection where nothing was lost with the old one.
    fn ask<T>(
        &self,
        link: &mut Link,
        mut request: impl FnMut(&mut Client) -> towline_block::Result<T>,
    ) -> Result<T> {
        let lost = match self.connect(link).and_then(&mut request) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind() == towline_block::ErrorKind::Unreachable => error,
            Err(error) => return Err(self.failed(&error)),
        };
        // Nobody is left to answer, unless the server only takes nothing more.
        let awaits = !link.is_idle() && link.client.as_ref().is_some_and(Client::is_half);
        link.client.take_if(|_| !awaits);
        if link.state != State::Clean {
            link.state = State::Torn;
            return Err(self.failed(&lost));
        }
        let again = self.connect(link).and_then(request);
        if again.is_err() {
            link.client = None;
        }
        again.map_err(|error| self.failed(&error))
    }

    fn connect<'a>(&self, link: &'a mut Link) -> towline_block::Result<&'a mut Client> {
        let client = match link.client.take() {
            Some(client) => client,
            None => {
                let connection = match self.upstream.take_connection() {
                    Some(connection) => connection,
                    None => self.upstream.connector().connect()?,
                };
                let client = Client::with_patience(connection, self.patience)?;
                if u64::from(client.payload_bytes_max()) < self.write_bytes_max() {
                    let what = format!(
                        "the server takes writes of at most {} bytes now, and took larger ones: start the \
                         receiver again",
                        client.payload_bytes_max()
                    );
                    return Err(towline_block::Error::new(towline_block::ErrorKind::Open, what));
                }
                client
            }
        };
        Ok(link.client.insert(client))
    }

    fn failed(&self, error: &towline_block::Error) -> Error {
        let kind = match error.kind() {
            towline_block::ErrorKind::NoSpace => ErrorKind::NoSpace,
            _ => ErrorKind::Storage,
        };
        Error::new(kind, format!("target {}: {error}", self.path().display()))
    }
}

impl Link {
    /// No change is under way.
    fn is_idle(&self) -> bool {
        self.under_way.iter().all(Option::is_none)
    }

    fn free(&mut self, id: u32) {
        if let Some(slot) = self.under_way.get_mut(id as usize) {
            *slot = None;
        }
    }
}

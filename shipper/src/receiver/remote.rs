//! A target that is an export of another NBD server, by blocking calls.
//!
//! Changes are sent several at a time, never two that touch each other: a server may make
//! those that are under way in any order. What was written is lost when the connection is lost
//! before a flush was answered (the server may have been killed), and then nothing is done and
//! nothing called durable until the owner begins again from what was flushed.
//!
//! | state | change | read | flush | connection lost |
//! |---|---|---|---|---|
//! | clean: all that was written is flushed | unflushed | the same | the same | connected anew, asked again |
//! | unflushed | the same | the same | clean | torn, and an error |
//! | torn | error | error | error | |
//!
//! A change or a flush that the server fails tears as well. [`Remote::start_over`] leads to clean.

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use towline_block::sys::uring::Window;
use towline_block::upstream::{Ask, Client, Ended, Role};
use towline_block::{Disk, Extent, NbdUri, Upstream};

/// Changes under way at once: enough to hide a round trip behind them.
const CHANGES_MAX: usize = 64;
/// Their data: what a fast link holds, and little memory.
const CHANGES_BYTES_MAX: u64 = 4 << 20;
/// One request to zero; a server that has to write the zeroes answers in time.
const ZERO_BYTES_MAX: u64 = 128 << 20;
/// Zeroes written where the server cannot zero by itself.
const ZEROES_BYTES_MAX: u64 = 1 << 20;

pub struct Remote {
    upstream: Arc<Upstream>,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    client: Option<Client>,
    /// Not sent yet.
    changes: Vec<(Extent, Ask)>,
    change_bytes: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Clean,
    Unflushed,
    Torn,
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
        Ok(Remote { upstream: Arc::new(upstream), link: Mutex::default() })
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
        link.changes.clear();
        link.change_bytes = 0;
        link.state = State::Clean;
    }

    /// Lets go of the connection, and hands the export out for somebody else to use.
    pub fn release(&self) -> Arc<Upstream> {
        let mut link = self.link();
        if let Some(client) = link.client.take()
            && let Ok(connection) = client.into_connection()
        {
            self.upstream.put_connection(connection);
        }
        Arc::clone(&self.upstream)
    }

    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let link = &mut *self.link();
        self.send(link)?;
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
        self.send(link)?;
        let flushed = self.ask(link, Client::flush);
        link.state = if flushed.is_ok() { State::Clean } else { State::Torn };
        flushed
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bytes`: none for zeroes.
    fn change(&self, extent: Extent, bytes: Option<&[u8]>, keep_allocated: bool) -> Result<()> {
        if !extent.within(self.size_bytes()) {
            let (path, size) = (self.path().display(), self.size_bytes());
            let what = format!("{extent:?} reaches past the end of {path} ({size} bytes)");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
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
            match start.is_multiple_of(align) && end.is_multiple_of(align) {
                true => self.queue(link, piece, part, keep_allocated)?,
                false => self.patch(link, piece, part, align)?,
            }
            at = end;
        }
        Ok(())
    }

    /// A part of one of the server's blocks.
    fn patch(&self, link: &mut Link, part: Extent, bytes: Option<&[u8]>, align: u64) -> Result<()> {
        self.send(link)?;
        let start = part.offset - part.offset % align;
        let mut block = vec![0; align as usize];
        self.ask(link, |client| client.read_at(&mut block, start))?;
        let at = (part.offset - start) as usize;
        let space = block.get_mut(at..at + part.len as usize).unwrap_or_default();
        match bytes {
            Some(bytes) => space.copy_from_slice(bytes),
            None => space.fill(0),
        }
        self.queue(link, Extent::new(start, align), Some(&block), true)
    }

    /// A change of whole blocks of the server's.
    fn queue(
        &self,
        link: &mut Link,
        extent: Extent,
        bytes: Option<&[u8]>,
        keep_allocated: bool,
    ) -> Result<()> {
        let terms = self.upstream.terms();
        let (align, payload_max) = (u64::from(terms.align), u64::from(terms.payload_bytes_max));
        let can_zero = bytes.is_none() && terms.can_zero;
        let most = match (bytes, can_zero) {
            (Some(_), _) => payload_max,
            (None, true) => ZERO_BYTES_MAX,
            (None, false) => payload_max.min(ZEROES_BYTES_MAX),
        };
        for piece in extent.pieces((most / align * align).max(align)) {
            let at = (piece.offset - extent.offset) as usize;
            let len = piece.len as usize;
            let ask = match (bytes, can_zero) {
                (None, true) => Ask::Zero { extent: piece, keep_allocated, fua: false },
                (None, false) => Ask::Write {
                    offset: piece.offset,
                    window: Window::new(vec![0; len], 0, len),
                    fua: false,
                },
                (Some(bytes), _) => {
                    let data = bytes.get(at..at + len).unwrap_or_default().to_vec();
                    let window = Window::new(data, 0, len);
                    Ask::Write { offset: piece.offset, window, fua: false }
                }
            };
            let data_bytes = if can_zero { 0 } else { piece.len };
            let is_full = link.changes.len() >= CHANGES_MAX
                || link.change_bytes + data_bytes > CHANGES_BYTES_MAX
                || link.changes.iter().any(|(other, _)| other.overlaps(piece));
            if is_full {
                self.send(link)?;
            }
            link.check(self.path())?;
            link.state = State::Unflushed;
            link.changes.push((piece, ask));
            link.change_bytes += data_bytes;
        }
        Ok(())
    }

    /// Sends the changes that wait, and waits until they are made.
    fn send(&self, link: &mut Link) -> Result<()> {
        link.check(self.path())?;
        let asks: Vec<Ask> =
            std::mem::take(&mut link.changes).into_iter().map(|(_, ask)| ask).collect();
        link.change_bytes = 0;
        if asks.is_empty() {
            return Ok(());
        }
        let mut asks = Some(asks);
        let ended = self.ask(link, |client| client.ask(asks.take().unwrap_or_default()))?;
        let failed = ended.into_iter().find_map(|Ended { result, .. }| result.err());
        failed.map_or(Ok(()), |error| {
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
        link.client = None;
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
                Client::new(connection)?
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
    fn check(&self, path: &Path) -> Result<()> {
        if self.state != State::Torn {
            return Ok(());
        }
        let what = format!(
            "target {}: what was written since its last flush may be lost and is written again",
            path.display()
        );
        Err(Error::new(ErrorKind::Storage, what))
    }
}

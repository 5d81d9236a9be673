//! Background reads of a source through the proxy that serves it (R13): the shipper's end
//! of a connection that is past its handshake.

use super::client::Client;
use super::handshake::{Connection, Stream, Terms};
use super::proto::PAYLOAD_BYTES_MAX;
use super::session::Ask;
use crate::buffer::AlignedBuf;
use crate::error::{Error, Result};
use crate::reader::READS_IN_FLIGHT_MAX;
use crate::{BLOCK_BYTES, Extent};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Reads an export in pieces of at most one block, a few in flight.
pub struct ExportReader(Client);

impl ExportReader {
    /// The socket that the proxy passed, for an export of this size.
    pub fn new(socket: OwnedFd, size_bytes: u64) -> Result<ExportReader> {
        let terms = Terms {
            size_bytes,
            align: 1,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            structured: false,
            read_only: true,
            can_flush: false,
            can_fua: false,
            can_zero: false,
            multi_conn: false,
        };
        let stream = Stream::Unix(UnixStream::from(socket));
        Client::new(Connection { stream, terms }).map(ExportReader)
    }

    /// As [`crate::DirectReader::read`].
    pub fn read(&mut self, extents: &[Extent]) -> Result<Vec<AlignedBuf>> {
        let mut read = Vec::with_capacity(extents.len());
        for group in extents.chunks(READS_IN_FLIGHT_MAX) {
            let ask = |extent: &Extent| {
                assert!(extent.len <= BLOCK_BYTES, "a background read is one block");
                let len = extent.len as usize;
                Ask::Read { offset: extent.offset, window: AlignedBuf::new(len).lend(0, len) }
            };
            for (answer, extent) in
                self.0.ask(group.iter().map(ask).collect())?.into_iter().zip(group)
            {
                let what = || format!("background read of {} at {}", extent.len, extent.offset);
                answer.result.map_err(|e| Error::io(what(), e))?;
                let window = answer.ask.into_window();
                read.push(AlignedBuf::from_parts((window.buf, window.start, window.len)));
            }
        }
        Ok(read)
    }
}

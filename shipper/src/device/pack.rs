//! One pack: being written, and read back.

use super::SYNC_BYTES;
use super::blocks::BlockSet;
use super::folder::{self, Folder};
use super::map::{PackMap, ROWS_MAX};
use crate::batch::{Batch, Keyring, Sealed};
use crate::error::{Error, Result};
use crate::ids::{Digest, GroupUuid};
use crate::receiver::Stream;
use crate::receiver::medium::{LogFile, Medium};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

/// A pack that is not closed. Dropped, it is a file that counts for nobody.
pub(crate) struct PackWriter {
    file: LogFile,
    medium: Medium,
    bytes: u64,
    /// Written through to the device up to here.
    synced: u64,
    /// A write of something else follows beyond this.
    pub bytes_max: u64,
    batches: Vec<(u32, Digest)>,
    touched: BlockSet,
    covered: BlockSet,
    pub after: Stream,
}

impl PackWriter {
    /// Begins pack `number` there, behind `before`. A part that an earlier attempt left is
    /// begun anew.
    pub fn create(
        folder: &Folder,
        number: usize,
        before: Stream,
        sizes: &[u64],
        bytes_max: u64,
        medium: &Medium,
    ) -> Result<PackWriter> {
        Ok(PackWriter {
            file: medium.create_plain(&folder.part(number))?,
            medium: medium.clone(),
            bytes: 0,
            synced: 0,
            bytes_max,
            batches: Vec::new(),
            touched: BlockSet::new(sizes),
            covered: BlockSet::new(sizes),
            after: before,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max || self.batches.len() >= ROWS_MAX / 2
    }

    /// Adds the batch that comes next.
    pub fn push(&mut self, sealed: &Sealed) -> Result<()> {
        self.file.append(&sealed.bytes)?;
        self.bytes += sealed.bytes.len() as u64;
        self.batches.push((sealed.bytes.len() as u32, sealed.digest()));
        for (volume, extent) in &sealed.touches {
            self.touched.insert_touched(*volume, *extent);
            if let Some(whole) = self.covered.whole(*volume, *extent) {
                self.covered.insert(&whole);
            }
        }
        self.after = self.after.then(sealed);
        if self.bytes - self.synced >= SYNC_BYTES {
            self.write_through()?;
        }
        Ok(())
    }

    /// To the device, and out of the page cache, which is the guests'.
    fn write_through(&mut self) -> Result<()> {
        self.file.sync()?;
        self.file.forget_cached(self.synced);
        self.synced = self.bytes;
        Ok(())
    }

    /// Makes it durable under its name. Gives its map.
    pub fn close(mut self, folder: &Folder, number: usize) -> Result<(PackMap, Stream)> {
        self.write_through()?;
        self.medium.rename(self.file.path(), &folder.pack(number))?;
        let map = PackMap {
            batches: self.batches,
            touched: self.touched.runs().collect(),
            covered: self.covered.runs().collect(),
        };
        Ok((map, self.after))
    }
}

/// Reads a pack batch by batch; nothing is given that is not what the map names.
pub(crate) struct PackReader<'a> {
    file: BufReader<File>,
    path: PathBuf,
    rest: std::slice::Iter<'a, (u32, Digest)>,
    group: GroupUuid,
    stream: Stream,
}

/// Of one read of a pack.
const READ_BYTES: usize = 1 << 20;

impl<'a> PackReader<'a> {
    /// `None`: nothing is there. `before`: the stream before the pack.
    pub fn open(
        folder: &Folder,
        number: usize,
        map: &'a PackMap,
        group: GroupUuid,
        before: Stream,
    ) -> Result<Option<PackReader<'a>>> {
        let path = folder.pack(number);
        let Some(file) = folder::open(&path)? else { return Ok(None) };
        let failed = |e| Error::storage(format!("cannot read {}", path.display()), e);
        let len = file.metadata().map_err(failed)?.len();
        if len != map.pack_bytes() {
            let (path, expected) = (path.display(), map.pack_bytes());
            return Err(Error::damaged(format!("{path} has {len} bytes, not {expected}")));
        }
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let file = BufReader::with_capacity(READ_BYTES, file);
        Ok(Some(PackReader { file, path, rest: map.batches.iter(), group, stream: before }))
    }

    /// The next batch's bytes, as they were cut; `None` at the end.
    pub fn next_bytes(&mut self) -> Result<Option<Vec<u8>>> {
        let Some((len, digest)) = self.rest.next() else { return Ok(None) };
        let mut bytes = vec![0; *len as usize];
        self.file
            .read_exact(&mut bytes)
            .map_err(|e| Error::storage(format!("cannot read {}", self.path.display()), e))?;
        if Digest::of(&bytes) != *digest {
            return Err(self.damaged("a batch is not the one that was written"));
        }
        Ok(Some(bytes))
    }

    /// The next batch, checked and unpacked.
    pub fn next(&mut self, keys: &Keyring) -> Result<Option<Batch>> {
        let Some(bytes) = self.next_bytes()? else { return Ok(None) };
        let batch = Batch::open(bytes, keys)?;
        if !batch.is_sealed() && keys.newest().is_some() {
            return Err(self.damaged("a batch is not sealed, though keys were given"));
        }
        let view = batch.view();
        let after = self.stream.follow(self.group, &view);
        self.stream = after.map_err(|refusal| self.damaged(&refusal.message))?;
        Ok(Some(batch))
    }

    /// The stream after the batches read by [`PackReader::next`].
    pub fn after(&self) -> &Stream {
        &self.stream
    }

    pub fn damaged(&self, what: &str) -> Error {
        Error::damaged(format!("{}: {what}", self.path.display()))
    }
}

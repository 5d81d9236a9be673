//! Which engine serves a source: decided at start by facts and reads alone.
//!
//! | wish | source | taken |
//! |---|---|---|
//! | cache page, or engine inline | any | page cache, inline |
//! | cache direct, or engine uring | takes O_DIRECT | O_DIRECT, io_uring |
//! | cache direct, or engine uring | does not | refused |
//! | none | image file | page cache, inline |
//! | none | block device that takes O_DIRECT | O_DIRECT, io_uring |
//! | none | block device that does not | page cache, inline |
//!
//! Nothing is written: the disk is the guest's, and no export is open yet.

use crate::Extent;
use crate::buffer::DIRECT_ALIGN;
use crate::disk::{Access, Cache, DiskKind, FileDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::reader::DirectReader;
use std::path::Path;

/// How a source's operations are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// By the volume's thread, one after the other.
    Inline,
    /// In flight together, by io_uring.
    Uring,
}

/// What the configuration asks for; `None` leaves it to the probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub engine: Option<Engine>,
    pub cache: Option<Cache>,
}

/// What was taken, and why.
#[derive(Debug)]
pub struct Probe {
    pub disk: FileDisk,
    pub engine: Engine,
    pub reason: &'static str,
}

impl Wish {
    /// The cache that is asked for.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a pair that cannot be served.
    pub fn cache(self) -> Result<Option<Cache>> {
        match (self.engine, self.cache) {
            (Some(Engine::Inline), Some(Cache::Direct))
            | (Some(Engine::Uring), Some(Cache::Page)) => Err(Error::new(
                ErrorKind::InvalidInput,
                "engine and cache do not go together: inline needs the page cache, uring needs \
                     cache = \"direct\"; give one of the two",
            )),
            (Some(Engine::Inline), _) | (_, Some(Cache::Page)) => Ok(Some(Cache::Page)),
            (Some(Engine::Uring), _) | (_, Some(Cache::Direct)) => Ok(Some(Cache::Direct)),
            (None, None) => Ok(None),
        }
    }
}

/// Opens a source the way its kind and the wish say.
///
/// # Errors
/// As [`FileDisk::open_cached`] and [`Wish::cache`].
pub fn open(path: &Path, access: Access, wish: Wish) -> Result<Probe> {
    let page = |disk, reason| Probe { disk, engine: Engine::Inline, reason };
    let direct = |disk, reason| Probe { disk, engine: Engine::Uring, reason };
    match wish.cache()? {
        Some(Cache::Page) => Ok(page(FileDisk::open(path, access)?, "as configured")),
        Some(Cache::Direct) => Ok(direct(open_direct(path, access)?, "as configured")),
        None => {
            let disk = FileDisk::open(path, access)?;
            if disk.kind() == DiskKind::File {
                return Ok(page(disk, "an image file: a write into the page cache costs least"));
            }
            // Its lock would stand against the direct one's.
            drop(disk);
            match open_direct(path, access) {
                Ok(disk) => Ok(direct(disk, "a block device that takes O_DIRECT")),
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    let reason = "a block device that does not take O_DIRECT";
                    Ok(page(FileDisk::open(path, access)?, reason))
                }
                Err(e) => Err(e),
            }
        }
    }
}

/// Opens past the page cache, and shows by a read that the disk means it.
fn open_direct(path: &Path, access: Access) -> Result<FileDisk> {
    let disk = FileDisk::open_cached(path, access, Cache::Direct)?;
    let first = Extent::new(0, disk.size_bytes().min(DIRECT_ALIGN as u64));
    if !first.is_empty() {
        DirectReader::new()?.read(disk.fd(), &[first])?;
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const OWN: Access = Access::Own { wait: Duration::ZERO };

    fn wish(engine: Option<Engine>, cache: Option<Cache>) -> Wish {
        Wish { engine, cache }
    }

    #[test]
    fn a_file_is_inline_unless_it_is_asked_otherwise_and_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::write(&path, vec![5; 8192]).unwrap();
        let rows = [
            (wish(None, None), Engine::Inline),
            (wish(Some(Engine::Inline), None), Engine::Inline),
            (wish(None, Some(Cache::Page)), Engine::Inline),
            (wish(Some(Engine::Uring), None), Engine::Uring),
            (wish(None, Some(Cache::Direct)), Engine::Uring),
        ];
        for (wish, engine) in rows {
            let probe = open(&path, OWN, wish).unwrap();
            let is_direct = probe.disk.cache() == Cache::Direct;
            assert_eq!((probe.engine, is_direct), (engine, engine == Engine::Uring), "{wish:?}");
            assert_eq!(FileDisk::open(&path, OWN).unwrap_err().kind(), ErrorKind::Busy);
        }
        assert_eq!(std::fs::read(&path).unwrap(), vec![5; 8192]);
    }

    #[test]
    fn pairs_that_do_not_go_together_are_refused() {
        for (engine, cache) in [(Engine::Inline, Cache::Direct), (Engine::Uring, Cache::Page)] {
            let error = wish(Some(engine), Some(cache)).cache().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn an_odd_size_is_refused_past_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::write(&path, vec![5; 5000]).unwrap();
        let error = open(&path, OWN, wish(None, Some(Cache::Direct))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("cache = \"page\""), "{error}");
    }
}

//! What a disk is: identifiers, block arithmetic, its backends (file, block device,
//! upstream NBD server), and the one place where io_uring is driven.
//!
//! Knows nothing of journals or guests; every other crate may know
//! this one. `unsafe` lives in [`sys`] only.

pub mod blocks;
pub mod buffer;
pub mod checksum;
pub mod copy;
pub mod device;
pub mod disk;
pub mod error;
pub mod extent;
pub mod ids;
pub mod name;
pub mod probe;
pub mod reader;
pub mod size;
pub mod sys;
pub mod upstream;
pub mod zero;

pub use blocks::{BLOCK_BYTES, BlockRange};
pub use buffer::AlignedBuf;
pub use checksum::crc32c;
pub use copy::copy;
pub use device::{Backend, Disk, PlainDisk, Syncer};
pub use disk::{Access, Cache, DiskKind, FileDisk, Identity, Stamp};
pub use error::{Error, ErrorKind, Result};
pub use extent::Extent;
pub use ids::{Epoch, Incarnation, Position, Seq, VolumeId};
pub use name::{GroupName, MarkName, NAME_BYTES_MAX, VolumeName};
pub use probe::{Engine, Probe, Wish};
pub use reader::{DirectReader, SourceReader};
pub use upstream::{NbdUri, Upstream};
pub use zero::is_zero;

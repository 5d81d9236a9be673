//! The words, fences and locks of the journal: the real ones, or those of the model
//! checker (`--cfg loom`), under which the same code runs unchanged.

#[cfg(loom)]
pub use super::model::{AtomicU64, Mutex, MutexGuard, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, fence};
#[cfg(not(loom))]
pub use std::sync::{Mutex, MutexGuard};

pub use std::sync::atomic::Ordering;

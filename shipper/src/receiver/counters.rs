//! What the receiver counts, for metrics. Relaxed: each number is right by
//! itself, no two belong to one instant.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $name: AtomicU64,)*
            /// Bytes of batches that are durable and not yet at the targets. No count: it
            /// falls, too.
            pub backlog_bytes: AtomicU64,
        }

        impl Counters {
            /// Name and value of each count.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Relaxed))),*]
            }
        }
    };
}

counters! {
    /// Connections that got through the handshake.
    connections,
    /// Sessions that took over.
    sessions,
    /// Batches admitted and durable.
    batches,
    /// Bytes of these.
    batch_bytes,
    /// fdatasyncs of staging.
    stage_syncs,
    /// Batches written to the targets, in this process.
    applied_batches,
    /// Groups of batches applied under one flush.
    apply_groups,
    /// Peers, batches and requests refused.
    refused,
    /// Failures of the receiver's own disks.
    storage_errors,
}

pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

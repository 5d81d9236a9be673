//! How fast batches leave a group: its own limits, and those of the link that it shares
//! with the other groups of the shipper.

use super::throttle::{Throttle, link_file};
use std::path::Path;
use std::sync::Arc;
use towline_control::rate::{Limit, Plan};
use towline_journal::progress::{Figure, Progress};

/// Between the reason of a group's limit and that of the link's, in [`Progress::rate_reason`].
pub const LINK_REASON: &str = "; link: ";

/// The limits of one link. Groups that share it get pieces in turn.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    throttle: Throttle,
    /// First come, first served: whoever waits for the bucket holds it.
    turn: tokio::sync::Mutex<()>,
}

impl Link {
    /// Of all groups that are shipped from `state_dir` by this process.
    pub fn new(plan: Plan, state_dir: &Path) -> Link {
        let throttle = Throttle::new(plan, link_file(state_dir));
        Link(Arc::new(Shared { throttle, turn: tokio::sync::Mutex::new(()) }))
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

pub(crate) struct Pace {
    group: Throttle,
    link: Link,
}

impl Pace {
    pub fn new(group: Throttle, link: Link) -> Pace {
        Pace { group, link }
    }

    /// Waits until a piece may go, and counts it. Cancelled, it has counted for the
    /// group at most.
    pub async fn pass(&self, bytes: u64, ops: u64) {
        self.group.pass(bytes, ops).await;
        let _turn = self.link.0.turn.lock().await;
        self.link.0.throttle.pass(bytes, ops).await;
    }

    /// Largest piece that is to be asked for at once.
    pub fn piece_bytes(&self) -> usize {
        self.group.piece_bytes().min(self.link.0.throttle.piece_bytes())
    }

    pub fn govern(&self, limit: Limit) {
        self.group.govern(limit);
    }

    /// Shows what is in force.
    pub fn publish(&self, progress: &Progress) {
        let (group, reason, generation) = self.group.look();
        let (link, link_reason, link_generation) = self.link.0.throttle.look();
        for (figure, value) in [
            (Figure::RateBytesPerS, group.limit.bytes_per_s.unwrap_or(0)),
            (Figure::RateOpsPerS, group.limit.ops_per_s.unwrap_or(0)),
            (Figure::LinkBytesPerS, link.limit.bytes_per_s.unwrap_or(0)),
            (Figure::LinkOpsPerS, link.limit.ops_per_s.unwrap_or(0)),
        ] {
            progress.set(figure, value);
        }
        let reasons = match link.limit == Limit::NONE {
            true => reason,
            false => format!("{reason}{LINK_REASON}{link_reason}"),
        };
        if progress.rate_reason().as_deref() != Some(&reasons) {
            progress.set_rate_reason(&reasons);
        }
        // Last: whoever waits for it finds the rest.
        progress.set(Figure::ThrottleGeneration, generation);
        progress.set(Figure::LinkThrottleGeneration, link_generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn groups_share_a_link_in_equal_parts() {
        let dir = tempfile::tempdir().unwrap();
        let base = Limit { bytes_per_s: Some(4 << 20), ops_per_s: None };
        let link = Link::new(Plan { base, windows: Vec::new() }, dir.path());
        let pace = || {
            let group = Throttle::new(Plan::default(), dir.path().join("none"));
            Pace::new(group, link.clone())
        };
        let passed = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for count in &passed {
                let pace = pace();
                scope.spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    let greedy = async {
                        loop {
                            pace.pass(pace.piece_bytes() as u64, 1).await;
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    runtime.block_on(async {
                        let _ = tokio::time::timeout(Duration::from_secs(1), greedy).await;
                    });
                });
            }
        });
        let counts = passed.map(|count| count.load(Ordering::Relaxed));
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= 10 && most - least <= 2, "{counts:?}");
    }
}

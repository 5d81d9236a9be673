//! Verdicts over a rig's images, as assertions that say what they found.

use crate::Rig;
use crate::rig::Process;
use std::path::{Path, PathBuf};
use towline_bench::check::{self, Prefix, Report};
use towline_bench::stamp::History;

/// Whose images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

impl Rig {
    /// The end of a run that loses nothing: all is shipped and applied, the proxy ends in
    /// order, both sides have every acknowledged write, and they are the same.
    #[track_caller]
    pub fn assert_ends_equal(&mut self, history: &History) {
        self.wait_drained();
        self.settle_target();
        self.terminate(Process::Proxy);
        self.assert_acknowledged(history, Side::Source);
        self.assert_acknowledged(history, Side::Target);
        self.assert_identical();
    }

    /// Source and target read the same, byte by byte.
    #[track_caller]
    pub fn assert_identical(&self) {
        for volume in &self.volumes {
            let comparison = check::identical(&self.source(volume), &self.target(volume))
                .unwrap_or_else(|e| panic!("{e}"));
            assert!(comparison.is_good(), "{volume}: {comparison}");
        }
    }

    /// Every acknowledged write is at the given side.
    #[track_caller]
    pub fn assert_acknowledged(&self, history: &History, side: Side) -> Report {
        let mut sum = Report::default();
        for volume in &history.volumes {
            let image = self.image(&volume.name, side);
            sum.add(check::acknowledged(volume, &image).unwrap_or_else(|e| panic!("{e}")));
        }
        assert!(sum.is_good(), "{side:?}: {sum}");
        let some = sum.stamped_blocks > 0 && sum.acked_writes > 0;
        assert!(some, "nothing was checked: {sum}");
        println!("{side:?}: {sum}");
        sum
    }

    /// The given side is one moment of the history.
    #[track_caller]
    pub fn assert_prefix(&self, history: &History, side: Side) -> Prefix {
        let images: Vec<PathBuf> =
            history.volumes.iter().map(|volume| self.image(&volume.name, side)).collect();
        let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
        let prefix = check::prefix(history, &images).unwrap_or_else(|e| panic!("{e}"));
        assert!(prefix.report.is_good(), "{side:?}: {}", prefix.report);
        prefix
    }

    fn image(&self, volume: &str, side: Side) -> PathBuf {
        match side {
            Side::Source => self.source(volume),
            Side::Target => self.target(volume),
        }
    }
}

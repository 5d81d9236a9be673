//! What a cut showed.

use super::plan::Cut;
use crate::volatile::Lost;
use serde_json::{Value, json};

/// One cut, the disk it left and, if the next boot came to it, the recovery.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub life: usize,
    pub cut: Cut,
    /// What `status` said last before the power went.
    pub state: String,
    /// Writes and flushes acknowledged to the client since the boot.
    pub acked: u64,
    pub flushes: u64,
    pub disk: Lost,
    /// Acknowledged writes, not flushed, that are gone: allowed, and a sign that the cut cut.
    pub unflushed_lost: u64,
    /// What the target was when it was brought up alone: `baseline` has no point.
    pub target: String,
    /// Of the volumes, in hot extents when the power went.
    pub hot_bytes: u64,
    pub total_bytes: u64,
    pub spent: Spent,
    pub recovery: Option<Recovery>,
    /// What should not be. Empty: all promises held.
    pub findings: Vec<String>,
}

/// Where a cut's time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Until the client began: boot, recovery, catching up.
    pub boot_s: f64,
    /// Until the power went.
    pub work_s: f64,
    /// Looking at the disk and the target.
    pub judge_s: f64,
}

/// The boot after a cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovery {
    /// From the emulator's start to a mounted disk.
    pub mounted_s: f64,
    /// From the proxy's start to its first answer.
    pub serving_s: f64,
    /// What it set out to compare or send again.
    pub map_bytes: u64,
    /// The same, as far as it is compared by digest.
    pub compare_bytes: u64,
    /// Durable in the spill of the lost ring, to go to the target before anything is compared.
    pub history_bytes: u64,
    /// Until the target had everything.
    pub whole_s: Option<f64>,
    /// Sent for that.
    pub sent_bytes: u64,
}

impl Outcome {
    /// A cut that could not be made, or not be judged.
    pub fn failed(life: usize, cut: &Cut, finding: String) -> Outcome {
        Outcome {
            life,
            cut: cut.clone(),
            state: "unknown".into(),
            acked: 0,
            flushes: 0,
            disk: Lost::default(),
            unflushed_lost: 0,
            target: "not judged".into(),
            hot_bytes: 0,
            total_bytes: 0,
            spent: Spent::default(),
            recovery: None,
            findings: vec![finding],
        }
    }

    pub fn line(&self, number: usize) -> String {
        let cut = &self.cut;
        let verdict = if self.findings.is_empty() { "ok" } else { "FAILED" };
        let recovery = match &self.recovery {
            None => "cut again or not reached".to_owned(),
            Some(recovery) => format!(
                "mounted {:.1} s, serving {:.1} s, {} of {} MiB to compare ({} hot), history {} KiB, whole {}, \
                 sent {} KiB",
                recovery.mounted_s,
                recovery.serving_s,
                recovery.compare_bytes >> 20,
                self.total_bytes >> 20,
                self.hot_bytes >> 20,
                recovery.history_bytes >> 10,
                recovery.whole_s.map_or("no".to_owned(), |s| format!("{s:.1} s")),
                recovery.sent_bytes >> 10,
            ),
        };
        format!(
            "cut {number:2} life {} {:8} {:7} in {:8}: {} writes, {} flushes; disk lost {} of {} blocks, \
             {} unflushed writes; target {}; {recovery}; boot {:.0} s, work {:.0} s, judge {:.0} s; {verdict}",
            self.life,
            cut.phase.name(),
            cut.durability.name(),
            self.state,
            self.acked,
            self.flushes,
            self.disk.lost,
            self.disk.atoms,
            self.unflushed_lost,
            self.target,
            self.spent.boot_s,
            self.spent.work_s,
            self.spent.judge_s,
        )
    }

    pub fn json(&self) -> Value {
        let recovery = self.recovery.map(|recovery| {
            json!({
                "mounted_s": recovery.mounted_s, "serving_s": recovery.serving_s, "map_bytes": recovery.map_bytes,
                "compare_bytes": recovery.compare_bytes, "history_bytes": recovery.history_bytes,
                "whole_s": recovery.whole_s, "sent_bytes": recovery.sent_bytes,
            })
        });
        json!({
            "life": self.life, "phase": self.cut.phase.name(),
            "durability": self.cut.durability.name(), "seed": self.cut.seed,
            "survival": self.cut.survival, "state": self.state, "acked_writes": self.acked,
            "flushes": self.flushes, "disk_blocks_cached": self.disk.atoms,
            "disk_blocks_lost": self.disk.lost, "unflushed_writes_lost": self.unflushed_lost,
            "target": self.target, "hot_bytes": self.hot_bytes, "total_bytes": self.total_bytes,
            "spent": {
                "boot_s": self.spent.boot_s, "work_s": self.spent.work_s,
                "judge_s": self.spent.judge_s,
            },
            "recovery": recovery, "findings": self.findings,
        })
    }
}

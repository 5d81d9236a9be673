//! Looks at the group's status a few times a second while the guest works.

use crate::report::{GroupStatus, Percentiles};
use crate::view;
use anyhow::Context;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;
use towline_block::GroupName;
use towline_shipper::batch::Keyring;

const EVERY: Duration = Duration::from_millis(200);

/// Keeps sampling until asked for the result, or dropped.
pub struct Sampler {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Samples>>,
}

#[derive(Default)]
pub struct Samples {
    lag_s: Vec<f64>,
    added_p50_us: Vec<f64>,
    added_p99_us: Vec<f64>,
}

impl Sampler {
    pub fn start(state: PathBuf, group: GroupName) -> anyhow::Result<Sampler> {
        let (stop, stopped) = mpsc::channel::<()>();
        let sample = move || {
            let mut samples = Samples::default();
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // A state that is just being replaced is looked at again.
                let Ok(groups) = view::groups(&state, Some(&group), &Keyring::default()) else {
                    continue;
                };
                if let Some(status) = groups.into_iter().next() {
                    samples.take(&status);
                }
            }
            samples
        };
        let thread = std::thread::Builder::new()
            .name("sampler".into())
            .spawn(sample)
            .context("cannot start the sampler")?;
        Ok(Sampler { stop: Some(stop), thread: Some(thread) })
    }

    pub fn finish(mut self) -> Samples {
        self.end()
    }

    fn end(&mut self) -> Samples {
        drop(self.stop.take());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

impl Samples {
    fn take(&mut self, status: &GroupStatus) {
        self.lag_s.push(status.lag_s);
        self.added_p50_us.extend(status.added_write_us.p50);
        self.added_p99_us.extend(status.added_write_us.p99);
    }

    /// The proxy tells its figures second by second: these are the median second's.
    pub fn added_write_us(&self) -> Percentiles {
        Percentiles {
            p50: percentile(&self.added_p50_us, 0.50),
            p99: percentile(&self.added_p99_us, 0.50),
        }
    }

    pub fn lag_s(&self) -> Percentiles {
        Percentiles { p50: percentile(&self.lag_s, 0.50), p99: percentile(&self.lag_s, 0.99) }
    }
}

fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[3.0], 0.99), Some(3.0));
        let values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
    }
}

//! Which compression the next batch gets: a pure decision.
//!
//! Compressing pays where the link is what shipping waits for, and only as long as a
//! core makes smaller batches faster than the link would have carried the larger ones:
//! `min(compressor, link x ratio) > link`. What a compressor reaches is learned from the
//! batches it made; what is not used for a while fades back to what is known of it.
//!
//! | window | link | idle cores | choice |
//! |---|---|---|---|
//! | less than [`BACKLOG_FILL`] full | any | any | none: nothing waits for the link |
//! | fuller | not known | any | as before |
//! | fuller | known | less than [`IDLE_CORES_MIN`] | none: the guests need the CPU more |
//! | fuller | known | enough | the one that ships most payload a second; another than the one in use only for [`GAIN_MIN`] more, none where it gains less than [`KEEP_MIN`] |

/// Past this part of the window the link is what shipping waits for.
pub const BACKLOG_FILL: f64 = 0.5;
/// Below this many idle cores nothing is compressed.
pub const IDLE_CORES_MIN: f64 = 0.25;
/// A change of the compression has to promise so much more.
pub const GAIN_MIN: f64 = 1.1;
/// The one in use has to go on shipping so much more than none would.
pub const KEEP_MIN: f64 = 1.03;
/// How much a new batch counts against what was known.
const LEARN: f64 = 0.2;
/// How far an estimate that is not used goes back with every batch.
const FADE: f64 = 0.001;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    #[default]
    None,
    Lz4,
    Zstd,
}

/// What the decision looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Stream bytes a second that become durable at the target; 0: not known.
    pub link_bytes_per_s: f64,
    /// Sent and not durable, as a part of what may be: 0 to 1.
    pub window_fill: f64,
    pub idle_cores: f64,
}

/// What a compressor does to this group's data.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    bytes_per_s: f64,
    ratio: f64,
}

/// Measured on a core of the laboratory, 64 KiB to 1 MiB of binaries (facts of the data path).
const LZ4: Estimate = Estimate { bytes_per_s: 0.5e9, ratio: 1.6 };
const ZSTD: Estimate = Estimate { bytes_per_s: 0.35e9, ratio: 2.0 };

#[derive(Clone, Debug)]
pub struct Decider {
    lz4: Estimate,
    zstd: Estimate,
    current: Choice,
}

impl Default for Decider {
    fn default() -> Decider {
        Decider { lz4: LZ4, zstd: ZSTD, current: Choice::None }
    }
}

impl Decider {
    pub fn choose(&mut self, seen: &Observed) -> Choice {
        let known = seen.link_bytes_per_s > 0.0;
        self.current = match seen.window_fill >= BACKLOG_FILL {
            false => Choice::None,
            true if !known => self.current,
            true if seen.idle_cores < IDLE_CORES_MIN && self.current == Choice::None => {
                Choice::None
            }
            true => self.best(seen),
        };
        self.current
    }

    fn best(&self, seen: &Observed) -> Choice {
        // The one in use takes its core already: that is not counted against it.
        let taken = if self.current == Choice::None { 0.0 } else { 1.0 };
        let cores = (seen.idle_cores + taken).min(1.0);
        let ships = |choice| match self.of(choice) {
            None => seen.link_bytes_per_s,
            Some(e) => (e.bytes_per_s * cores).min(seen.link_bytes_per_s * e.ratio),
        };
        let plain = ships(Choice::None);
        let keeps = self.current != Choice::None && ships(self.current) >= plain * KEEP_MIN;
        let (kept, at_least) = match keeps {
            true => (self.current, ships(self.current)),
            false => (Choice::None, plain),
        };
        let others = [Choice::Lz4, Choice::Zstd].into_iter();
        let better = others.filter(|choice| ships(*choice) >= at_least * GAIN_MIN);
        better.max_by(|a, b| ships(*a).total_cmp(&ships(*b))).unwrap_or(kept)
    }

    fn of(&self, choice: Choice) -> Option<Estimate> {
        match choice {
            Choice::None => None,
            Choice::Lz4 => Some(self.lz4),
            Choice::Zstd => Some(self.zstd),
        }
    }

    /// A batch of `plain` payload bytes was stored as `stored` in `seconds` of a core.
    pub fn learn(&mut self, used: Choice, plain: u64, stored: u64, seconds: f64) {
        for (choice, estimate, prior) in
            [(Choice::Lz4, &mut self.lz4, LZ4), (Choice::Zstd, &mut self.zstd, ZSTD)]
        {
            let (toward, by) = match choice == used {
                true if plain == 0 || seconds <= 0.0 => continue,
                true => {
                    let ratio = plain as f64 / stored.max(1) as f64;
                    (Estimate { bytes_per_s: plain as f64 / seconds, ratio }, LEARN)
                }
                false => (prior, FADE),
            };
            estimate.bytes_per_s += (toward.bytes_per_s - estimate.bytes_per_s) * by;
            estimate.ratio += (toward.ratio - estimate.ratio) * by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: f64 = 1.5;

    fn seen(link_bytes_per_s: f64, window_fill: f64, idle_cores: f64) -> Observed {
        Observed { link_bytes_per_s, window_fill, idle_cores }
    }

    /// Every row of the table at the head.
    #[test]
    fn the_choice_follows_its_table() {
        let first = |o: Observed| Decider::default().choose(&o);
        assert_eq!(first(seen(12e6, 0.49, IDLE)), Choice::None, "nothing waits");
        assert_eq!(first(seen(0.0, 1.0, IDLE)), Choice::None, "as before");
        assert_eq!(first(seen(12e6, 1.0, 0.2)), Choice::None, "no core is idle");
        assert_eq!(first(seen(12e6, 1.0, IDLE)), Choice::Zstd, "a slow link");
        assert_eq!(first(seen(300e6, 1.0, IDLE)), Choice::Lz4, "a fast link");
        assert_eq!(first(seen(1e9, 1.0, IDLE)), Choice::None, "faster than any compressor");
    }

    #[test]
    fn what_is_not_known_of_the_link_changes_nothing() {
        let mut decider = Decider::default();
        assert_eq!(decider.choose(&seen(12e6, 1.0, IDLE)), Choice::Zstd);
        assert_eq!(decider.choose(&seen(0.0, 1.0, IDLE)), Choice::Zstd);
    }

    #[test]
    fn the_core_that_compresses_is_not_held_against_it() {
        let mut decider = Decider::default();
        assert_eq!(decider.choose(&seen(12e6, 1.0, 1.0)), Choice::Zstd);
        assert_eq!(decider.choose(&seen(12e6, 1.0, 0.0)), Choice::Zstd);
    }

    #[test]
    fn a_small_advantage_does_not_flip_the_choice() {
        let mut decider = Decider::default();
        assert_eq!(decider.choose(&seen(300e6, 1.0, IDLE)), Choice::Lz4);
        // lz4 0.40 GB/s of payload, zstd 0.35: no; 0.32 against 0.35: less than a tenth.
        assert_eq!(decider.choose(&seen(250e6, 1.0, IDLE)), Choice::Lz4);
        assert_eq!(decider.choose(&seen(200e6, 1.0, IDLE)), Choice::Lz4);
        assert_eq!(decider.choose(&seen(100e6, 1.0, IDLE)), Choice::Zstd);
    }

    #[test]
    fn data_that_does_not_get_smaller_ends_the_attempt_and_is_tried_again_later() {
        let mut decider = Decider::default();
        let slow = seen(12e6, 1.0, IDLE);
        let mut used = Vec::new();
        for _ in 0..2000 {
            let choice = decider.choose(&slow);
            used.push(choice);
            decider.learn(choice, 1 << 20, 1 << 20, 0.001);
        }
        let tried = used.iter().filter(|choice| **choice != Choice::None).count();
        assert!((1..400).contains(&tried), "{tried} of 2000");
        assert!(used[1000..].iter().any(|choice| *choice != Choice::None), "tried again");
    }
}

//! Runs of consecutive records: what a spill can replay without a gap.

/// Records `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub first: u64,
    pub last: u64,
}

impl Run {
    pub fn holds(&self, seq: u64) -> bool {
        (self.first..=self.last).contains(&seq)
    }
}

/// Adds a run to a list that is ordered as it was written; a run that goes on where the
/// last one ends becomes part of it.
pub fn push(runs: &mut Vec<Run>, new: Run) {
    match runs.last_mut() {
        Some(last) if last.last.checked_add(1) == Some(new.first) => last.last = new.last,
        _ => runs.push(new),
    }
}

/// Joins what overlaps or adjoins, in any order; the result is ordered and has gaps.
/// Overlaps hold the same records: a killed owner's last round is written again.
pub fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(run.last);
            }
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, last: u64) -> Run {
        Run { first, last }
    }

    #[test]
    fn joining_keeps_gaps_and_nothing_else() {
        let mut runs = Vec::new();
        for new in [run(1, 5), run(6, 9), run(20, 30), run(31, 31)] {
            push(&mut runs, new);
        }
        assert_eq!(runs, [run(1, 9), run(20, 31)]);
        let all = vec![run(25, 40), run(20, 31), run(1, 9), run(10, 10), run(50, 60), run(52, 53)];
        assert_eq!(joined(all), [run(1, 10), run(20, 40), run(50, 60)]);
    }
}

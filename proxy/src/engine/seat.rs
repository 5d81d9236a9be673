//! Whether the volume's thread shares the core of its client.
//!
//! A client that is confined to one core (`iothreadpin`, taskset) leaves that core idle while
//! it waits for us. On the same core the two hand over to each other without waking another
//! core, which costs more than all the rest of a small request, and the other cores are left
//! to the guest's processors and to the shipper; but
//! the scheduler, asked to wake either, prefers a core that is idle. So the thread tries the
//! cores to which threads of the client's process are confined, and stays where requests
//! follow each other clearly faster. Measured, not guessed: which thread of a process sends
//! is not known.
//!
//! ```text
//!                client came, or rest over                    window full, cores to try
//!     RESTING -----------------------------------> MEASURING ---------------------------> TRYING
//!      ^  ^  ^          nothing to try                 |                                  |    |
//!      |  |  +-----------------------------------------+       none was clearly faster    |    |
//!      |  +-------------------------------------------------------------------------------+    |
//!      |            twice half as fast as it was                           one was            |
//!      +-------------------------------------------------- SITTING <---------------------------+
//! ```
//! A new client ends every state. A rest doubles with every trial that was in vain, and with a
//! seat that did not last. How many requests are in flight needs no rule: of a batch each counts
//! its part of the time since the batch before, so it is throughput that is compared.

use std::time::{Duration, Instant};

/// Requests that are timed before and after a move.
const WINDOW: usize = 256;
/// Requests after a move that do not count.
const SETTLE: u32 = 16;
/// The slowest requests of a window do not count: this share is left.
const COUNTED: usize = WINDOW * 19 / 20;
/// A longer interval between requests is the client's own time.
const INTERVAL_MAX: Duration = Duration::from_micros(500);
/// A trial with so many of these is lost: another thread has that core.
const LONG_MAX: usize = WINDOW / 8;
/// Rests between trials.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(64);
/// A seat held for so long was no mistake.
const SEAT_PROVEN: Duration = Duration::from_secs(10);
/// The most cores that are tried.
pub(super) const CORES_MAX: usize = 64;

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// To this core and no other.
    To(usize),
    /// To where the scheduler likes.
    Home,
}

/// Intervals between requests.
struct Window {
    intervals: Vec<Duration>,
    /// Requests left that do not count.
    settle: u32,
    /// Intervals of [`INTERVAL_MAX`] or more.
    long: usize,
}

impl Window {
    fn new() -> Window {
        Window { intervals: Vec::with_capacity(WINDOW), settle: SETTLE, long: 0 }
    }

    /// The mean of the intervals that count, once there are enough.
    fn add(&mut self, interval: Duration) -> Option<Duration> {
        if self.settle > 0 {
            self.settle -= 1;
            return None;
        }
        self.long += usize::from(interval >= INTERVAL_MAX);
        self.intervals.push(interval.min(INTERVAL_MAX));
        if self.intervals.len() < WINDOW {
            return None;
        }
        self.intervals.sort_unstable();
        let mean = self.intervals[..COUNTED].iter().sum::<Duration>() / COUNTED as u32;
        self.intervals.clear();
        self.long = 0;
        Some(mean)
    }
}

enum State {
    Resting { until: Instant },
    Measuring { window: Window },
    Trying { window: Window, free: Duration, core: usize, left: Vec<usize>, best: Option<Won> },
    Sitting { window: Window, won: Won, since: Instant, was_slow: bool },
}

#[derive(Clone, Copy)]
struct Won {
    core: usize,
    interval: Duration,
}

/// The state of a thread's seat. See the table above.
pub(super) struct Seat {
    state: State,
    rest: Duration,
    /// When the last requests came.
    last: Instant,
}

impl Seat {
    pub fn new(now: Instant) -> Seat {
        Seat { state: State::Resting { until: now }, rest: REST_MIN, last: now }
    }

    /// The core that it is confined to for good, and the interval measured there.
    pub fn core(&self) -> Option<(usize, Duration)> {
        match self.state {
            State::Sitting { won, .. } => Some((won.core, won.interval)),
            _ => None,
        }
    }

    /// Another client came: what was measured tells nothing about it.
    pub fn joined(&mut self, now: Instant) -> Option<Move> {
        self.rest = REST_MIN;
        self.go(State::Resting { until: now })
    }

    /// A batch of requests came at `now`. `cores`: where threads of the client are confined.
    pub fn executed(
        &mut self,
        requests: u32,
        now: Instant,
        cores: impl FnOnce() -> Vec<usize>,
    ) -> Option<Move> {
        let interval = now.saturating_duration_since(self.last) / requests.max(1);
        self.last = now;
        match &mut self.state {
            State::Resting { until } if now < *until => None,
            State::Resting { .. } => self.go(State::Measuring { window: Window::new() }),
            State::Measuring { window } => {
                let free = window.add(interval)?;
                match cores() {
                    // Thinks for longer than any wake-up takes, or may run anywhere.
                    cores if cores.is_empty() || free >= INTERVAL_MAX / 2 => self.give_up(now),
                    mut left => {
                        let core = left.remove(0);
                        let window = Window::new();
                        self.go(State::Trying { window, free, core, left, best: None })
                    }
                }
            }
            State::Trying { window, free, core, left, best } => {
                let measured = window.add(interval);
                if measured.is_none() && window.long < LONG_MAX {
                    return None;
                }
                if let Some(interval) = measured
                    && interval < best.map_or(*free * 4 / 5, |best| best.interval)
                {
                    *best = Some(Won { core: *core, interval });
                }
                let window = Window::new();
                let next = match (left.pop(), *best) {
                    (Some(core), best) => {
                        let left = std::mem::take(left);
                        State::Trying { window, free: *free, core, left, best }
                    }
                    (None, Some(won)) => {
                        State::Sitting { window, won, since: now, was_slow: false }
                    }
                    (None, None) => return self.give_up(now),
                };
                self.go(next)
            }
            State::Sitting { window, won, since, was_slow } => {
                let is_slow = window.add(interval)? > won.interval * 2;
                if is_slow && *was_slow {
                    return match now.saturating_duration_since(*since) >= SEAT_PROVEN {
                        true => self.rest_for(REST_MIN, now),
                        false => self.give_up(now),
                    };
                }
                *was_slow = is_slow;
                None
            }
        }
    }

    /// The thread could not move.
    pub fn failed(&mut self, now: Instant) {
        self.state = State::Resting { until: now + REST_MAX };
    }

    fn give_up(&mut self, now: Instant) -> Option<Move> {
        let longer = (self.rest * 2).min(REST_MAX);
        let moved = self.rest_for(self.rest, now);
        self.rest = longer;
        moved
    }

    fn rest_for(&mut self, rest: Duration, now: Instant) -> Option<Move> {
        self.rest = rest;
        self.go(State::Resting { until: now + rest })
    }

    /// The next state, and the move that it needs.
    fn go(&mut self, next: State) -> Option<Move> {
        let place = |state: &State| match state {
            State::Trying { core, .. } => Move::To(*core),
            State::Sitting { won, .. } => Move::To(won.core),
            State::Resting { .. } | State::Measuring { .. } => Move::Home,
        };
        let before = place(&self.state);
        self.state = next;
        let after = place(&self.state);
        (after != before).then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client of which every request takes `interval` where the thread is.
    struct Lab {
        seat: Seat,
        now: Instant,
        at: Move,
        cores: Vec<usize>,
        moves: Vec<Move>,
    }

    impl Lab {
        fn new(cores: &[usize]) -> Lab {
            let now = Instant::now();
            let seat = Seat::new(now);
            Lab { seat, now, at: Move::Home, cores: cores.to_vec(), moves: Vec::new() }
        }

        fn took(&mut self, moved: Option<Move>) {
            if let Some(moved) = moved {
                assert_ne!(moved, self.at, "a move that is none");
                self.at = moved;
                self.moves.push(moved);
            }
        }

        /// So many requests; how long one takes depends on where the thread is.
        fn serve(&mut self, requests: usize, us: impl Fn(Move) -> u64) -> Vec<Move> {
            for _ in 0..requests {
                self.now += Duration::from_micros(us(self.at));
                let cores = self.cores.clone();
                let moved = self.seat.executed(1, self.now, || cores);
                self.took(moved);
            }
            std::mem::take(&mut self.moves)
        }
    }

    /// One trial of one core, and a seat.
    const SEATED: usize = 2 * (WINDOW + SETTLE as usize) + 1;
    const SHARED: fn(Move) -> u64 = |at| if at == Move::To(3) { 9 } else { 25 };

    fn seated() -> Lab {
        let mut lab = Lab::new(&[3]);
        assert_eq!(lab.serve(SEATED, SHARED), [Move::To(3)]);
        assert_eq!(lab.seat.core(), Some((3, Duration::from_micros(9))));
        lab
    }

    #[test]
    fn the_core_on_which_requests_follow_faster_is_kept() {
        let mut lab = seated();
        assert_eq!(lab.serve(100_000, SHARED), []);
    }

    #[test]
    fn the_best_of_several_cores_wins_wherever_it_stands_in_the_row() {
        for best in 0..4 {
            let mut lab = Lab::new(&[0, 1, 2, 3]);
            let us = |at| match at {
                Move::To(core) if core == best => 5,
                Move::To(core) => 10 + core as u64,
                Move::Home => 25,
            };
            lab.serve(6 * WINDOW, us);
            assert_eq!(lab.seat.core().map(|(core, _)| core), Some(best));
            assert_eq!(lab.at, Move::To(best));
        }
    }

    #[test]
    fn a_gain_that_is_not_clear_is_none_and_trials_become_rare() {
        let mut lab = Lab::new(&[3]);
        let moves = lab.serve(1_000_000, |at| if at == Move::Home { 25 } else { 21 });
        assert!(moves.chunks(2).all(|pair| pair == [Move::To(3), Move::Home]), "{moves:?}");
        assert!((3..7).contains(&(moves.len() / 2)), "{} trials in 25 s", moves.len() / 2);
        assert_eq!(lab.seat.core(), None);
    }

    #[test]
    fn a_core_that_somebody_else_has_is_left_after_a_bounded_time() {
        let mut lab = Lab::new(&[3]);
        let before = lab.now;
        let us = |at| if at == Move::To(3) { 4000 } else { 25 };
        let moves = lab.serve(3 * WINDOW, us);
        assert_eq!(moves, [Move::To(3), Move::Home]);
        let free = Duration::from_micros(25) * 3 * WINDOW as u32;
        let taken = Duration::from_micros(4000) * (LONG_MAX + SETTLE as usize + 1) as u32;
        assert!(lab.now - before < free + taken);
    }

    #[test]
    fn clients_that_run_anywhere_or_think_for_long_are_not_followed() {
        assert_eq!(Lab::new(&[]).serve(100_000, SHARED), []);
        assert_eq!(Lab::new(&[3]).serve(10_000, |_| 400), []);
    }

    #[test]
    fn pauses_of_the_client_do_not_decide() {
        let mut lab = Lab::new(&[3]);
        for round in 0..SEATED {
            let pause = if round % 30 == 0 { 1_000_000 } else { 0 };
            lab.serve(1, |at| SHARED(at) + pause);
        }
        assert_eq!(lab.seat.core(), Some((3, Duration::from_micros(9))));
    }

    #[test]
    fn a_seat_that_got_slow_is_left_and_one_slow_window_is_forgiven() {
        let mut lab = seated();
        assert_eq!(lab.serve(WINDOW + SETTLE as usize, |_| 40), []);
        assert_eq!(lab.serve(WINDOW, SHARED), []);
        assert_eq!(lab.serve(2 * WINDOW, |_| 40), [Move::Home]);
        assert_eq!(lab.seat.core(), None);
        // Its rest over, the next trial is made.
        lab.now += REST_MIN;
        assert_eq!(lab.serve(SEATED + 1, SHARED), [Move::To(3)]);
    }

    #[test]
    fn seats_that_do_not_last_become_rare_and_a_proven_one_does_not() {
        let mut lab = seated();
        lab.serve(3 * WINDOW, |_| 40);
        assert_eq!(lab.seat.rest, REST_MIN * 2);
        let mut lab = seated();
        lab.now += SEAT_PROVEN;
        lab.serve(3 * WINDOW, |_| 40);
        assert_eq!(lab.seat.rest, REST_MIN);
    }

    #[test]
    fn of_a_batch_each_request_counts_its_part_of_the_time() {
        let mut lab = Lab::new(&[3]);
        while lab.seat.core().is_none() {
            let us = if lab.at == Move::Home { 160 } else { 96 };
            lab.now += Duration::from_micros(us);
            let moved = lab.seat.executed(32, lab.now, || vec![3]);
            lab.took(moved);
        }
        assert_eq!(lab.seat.core(), Some((3, Duration::from_micros(3))));
    }

    #[test]
    fn another_client_is_measured_anew_at_once() {
        let mut lab = seated();
        let moved = lab.seat.joined(lab.now);
        lab.took(moved);
        assert_eq!(std::mem::take(&mut lab.moves), [Move::Home]);
        lab.cores = vec![5];
        let us = |at| if at == Move::To(5) { 9 } else { 25 };
        assert_eq!(lab.serve(SEATED, us), [Move::To(5)]);
    }

    #[test]
    fn a_thread_that_may_not_move_tries_rarely() {
        let mut lab = Lab::new(&[3]);
        lab.serve(WINDOW + SETTLE as usize + 1, SHARED);
        assert_eq!(lab.at, Move::To(3));
        lab.seat.failed(lab.now);
        lab.at = Move::Home;
        assert_eq!(lab.serve(100_000, SHARED), []);
    }
}

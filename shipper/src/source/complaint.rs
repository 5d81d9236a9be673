//! A failure that repeats is said when it is new, and now and then.

use std::time::{Duration, Instant};

/// How often a failure that stays the same is said again.
pub(crate) const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Complaint {
    what: String,
    times: u64,
    said: Option<Instant>,
}

impl Complaint {
    /// Another attempt has failed, and one more follows.
    pub fn tell(&mut self, what: &str, now: Instant) {
        match self.say(what, now) {
            Some(1) => tracing::warn!("{what}; trying again"),
            Some(times) => tracing::warn!(times, "still: {what}"),
            None => {}
        }
    }

    /// How often it was seen, when it is to be said.
    fn say(&mut self, what: &str, now: Instant) -> Option<u64> {
        if self.what != what {
            *self = Complaint { what: what.to_owned(), ..Complaint::default() };
        }
        self.times += 1;
        let is_due = self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN_AFTER);
        is_due.then(|| {
            self.said = Some(now);
            self.times
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_said_once_and_again_after_a_minute() {
        let mut complaint = Complaint::default();
        let now = Instant::now();
        assert_eq!(complaint.say("a", now), Some(1));
        assert_eq!(complaint.say("a", now), None);
        assert_eq!(complaint.say("b", now), Some(1));
        assert_eq!(complaint.say("b", now + SAY_AGAIN_AFTER), Some(2));
    }
}

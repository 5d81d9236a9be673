//! Whether changes may pass: the proxy's half of a cutover, for one volume.
//!
//! ```text
//!         hold            seal             promote
//!   Open ------> Held ----------> Sealed ----------> Promoted
//!    ^  release,  |                 |
//!    +--deadline--+     unseal      |
//!    +------------------------------+
//! ```
//! A hold ends by itself: whoever asked for it may be dead. A seal does not: only
//! the receiver's durable decision counts from there on.

use crate::error::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Instant;

/// Names an attempt at a cutover.
pub type Attempt = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Changes wait, at most until then.
    Held {
        attempt: Attempt,
        until: Instant,
    },
    /// Changes wait for the receiver's decision, or are refused where the decision
    /// is not near: after a restart.
    Sealed {
        attempt: Attempt,
        refusal: Option<Arc<str>>,
    },
    /// The group lives elsewhere. Changes are refused, with the reason.
    Promoted {
        refusal: Arc<str>,
    },
}

/// What a change does at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage<'a> {
    Go,
    Wait,
    Refuse(&'a str),
}

impl Gate {
    pub fn passage(&self) -> Passage<'_> {
        match self {
            Gate::Open => Passage::Go,
            Gate::Held { .. } | Gate::Sealed { refusal: None, .. } => Passage::Wait,
            Gate::Sealed { refusal: Some(text), .. } | Gate::Promoted { refusal: text } => {
                Passage::Refuse(text)
            }
        }
    }

    /// When the gate changes by itself.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Gate::Held { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Lifts a hold that is over. True when it did.
    pub fn expire(&mut self, now: Instant) -> bool {
        let over = matches!(self, Gate::Held { until, .. } if *until <= now);
        if over {
            *self = Gate::Open;
        }
        over
    }

    /// Begins or prolongs a hold.
    pub fn hold(&mut self, attempt: Attempt, until: Instant) -> Result<()> {
        match self {
            Gate::Open => {}
            Gate::Held { attempt: holder, .. } if *holder == attempt => {}
            Gate::Held { attempt: holder, .. } => {
                return Err(busy(format!("attempt {holder} holds the group already")));
            }
            Gate::Sealed { attempt: holder, .. } => {
                return Err(busy(format!("the group is sealed by attempt {holder}")));
            }
            Gate::Promoted { refusal } => return Err(busy(refusal.to_string())),
        }
        *self = Gate::Held { attempt, until };
        Ok(())
    }

    /// Ends the hold of this attempt; of no consequence when it is over already.
    pub fn release(&mut self, attempt: Attempt) {
        if matches!(self, Gate::Held { attempt: holder, .. } if *holder == attempt) {
            *self = Gate::Open;
        }
    }

    /// Turns the hold of this attempt into a seal, if it is not over.
    pub fn seal(&mut self, attempt: Attempt, now: Instant) -> Result<()> {
        self.expire(now);
        match self {
            Gate::Held { attempt: holder, .. } if *holder == attempt => {
                *self = Gate::Sealed { attempt, refusal: None };
                Ok(())
            }
            Gate::Sealed { attempt: holder, .. } if *holder == attempt => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Lapsed,
                format!("the hold of attempt {attempt} is over: start the cutover again"),
            )),
        }
    }

    /// The attempt was aborted: hold or seal of it ends.
    pub fn unseal(&mut self, attempt: Attempt) {
        self.release(attempt);
        if matches!(self, Gate::Sealed { attempt: holder, .. } if *holder == attempt) {
            *self = Gate::Open;
        }
    }

    /// The receiver has taken over.
    pub fn promote(&mut self, refusal: Arc<str>) {
        *self = Gate::Promoted { refusal };
    }
}

fn busy(what: String) -> Error {
    Error::new(ErrorKind::Busy, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn later(from: Instant) -> Instant {
        from + Duration::from_secs(1)
    }

    #[test]
    fn a_hold_lifts_itself_at_its_deadline_and_not_before() {
        let now = Instant::now();
        let mut gate = Gate::Open;
        gate.hold(1, later(now)).unwrap();
        assert_eq!(gate.passage(), Passage::Wait);
        assert!(!gate.expire(now));
        assert_eq!(gate.deadline(), Some(later(now)));
        assert!(gate.expire(later(now)));
        assert_eq!(gate, Gate::Open);
    }

    #[test]
    fn a_seal_needs_a_hold_that_is_not_over() {
        let now = Instant::now();
        let mut gate = Gate::Open;
        assert_eq!(gate.seal(1, now).unwrap_err().kind(), ErrorKind::Lapsed);
        gate.hold(1, later(now)).unwrap();
        assert_eq!(gate.clone().seal(2, now).unwrap_err().kind(), ErrorKind::Lapsed);
        assert_eq!(gate.clone().seal(1, later(now)).unwrap_err().kind(), ErrorKind::Lapsed);
        gate.seal(1, now).unwrap();
        gate.seal(1, later(now)).unwrap();
        assert!(!gate.expire(later(now)));
        assert_eq!(gate.passage(), Passage::Wait);
    }

    #[test]
    fn only_its_own_attempt_ends_a_hold_or_a_seal() {
        let now = Instant::now();
        let mut gate = Gate::Open;
        gate.hold(1, later(now)).unwrap();
        assert_eq!(gate.hold(2, later(now)).unwrap_err().kind(), ErrorKind::Busy);
        gate.release(2);
        gate.unseal(2);
        assert!(matches!(gate, Gate::Held { .. }));
        gate.seal(1, now).unwrap();
        gate.release(1);
        gate.unseal(2);
        assert!(matches!(gate, Gate::Sealed { .. }));
        gate.unseal(1);
        assert_eq!(gate, Gate::Open);
    }

    #[test]
    fn a_promoted_group_refuses_with_its_sentence_for_good() {
        let now = Instant::now();
        let mut gate = Gate::Open;
        gate.promote("moved".into());
        assert_eq!(gate.passage(), Passage::Refuse("moved"));
        assert_eq!(gate.hold(1, later(now)).unwrap_err().kind(), ErrorKind::Busy);
        gate.unseal(1);
        gate.release(1);
        assert!(!gate.expire(later(now)));
        assert_eq!(gate.passage(), Passage::Refuse("moved"));
    }

    #[test]
    fn a_seal_found_after_a_restart_refuses() {
        let gate = Gate::Sealed { attempt: 1, refusal: Some("sealed".into()) };
        assert_eq!(gate.passage(), Passage::Refuse("sealed"));
    }
}

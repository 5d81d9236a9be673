//! The group as one: what a cutover and the shipper ask of all volumes together.
//!
//! Methods block the caller, never a volume's thread. A step that fails on one
//! volume is taken back on all.

use crate::engine::{Command, Mailbox, NewConnection};
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Attempt;
use crate::nbd::request::Terms;
use crossbeam::channel::{Sender, bounded};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use towline_block::sys::uring::Fd;
use towline_block::{MarkName, Seq, VolumeId, VolumeName};
use towline_journal::format::Counter;
use towline_journal::state::{Promoted, Seal};
use towline_journal::{Claim, Journal};

/// How long a volume's thread may take to answer what needs no I/O. It is busy with
/// one step of another request at most.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// One volume of the group.
pub(crate) struct Member {
    pub name: VolumeName,
    pub id: Option<VolumeId>,
    pub mailbox: Mailbox,
}

/// Handle of a group's volumes. Cheap to clone.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    members: Vec<Member>,
    journal: Option<Arc<Journal>>,
    /// Steps of cutovers come one after the other. What is kept is the last hold.
    steps: Mutex<Option<Hold>>,
}

#[derive(Clone, Copy)]
struct Hold {
    attempt: Attempt,
    until: Instant,
}

impl Group {
    pub(crate) fn new(members: Vec<Member>, journal: Option<Arc<Journal>>) -> Group {
        Group(Arc::new(Inner { members, journal, steps: Mutex::new(None) }))
    }

    /// Makes changes of all volumes wait, for `max` at most: then they go on by
    /// themselves. Returns once nothing is in flight on any volume, with the newest
    /// record there is.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another attempt or a promotion has the gate,
    /// [`ErrorKind::Timeout`] when a flush in flight did not end within `max`.
    /// Nothing is held then.
    pub fn hold(&self, attempt: Attempt, max: Duration) -> Result<Seq> {
        let mut steps = self.steps();
        let until = Instant::now() + max;
        let held = self.ask_all(until, |done| Command::Hold { attempt, until, done });
        if let Err(error) = held {
            let _ = self.open_hold(attempt);
            return Err(error);
        }
        *steps = Some(Hold { attempt, until });
        Ok(self.0.journal.as_ref().map_or(Seq::NONE, |journal| Seq(journal.get(Counter::Head))))
    }

    /// Names the point at which the group is now. What was acknowledged before is in it.
    pub fn mark(&self, name: &MarkName) -> Result<Seq> {
        // A seal comes before or behind it, never between.
        let _steps = self.steps();
        let Some(journal) = &self.0.journal else {
            return Err(Error::new(ErrorKind::InvalidInput, "the group has no journal"));
        };
        let marked = journal.mark(name);
        marked.map(Seq).map_err(|error| Error::new(ErrorKind::Busy, error.to_string()))
    }

    /// Ends the hold of this attempt; of no consequence when it is over already.
    pub fn release(&self, attempt: Attempt) -> Result<()> {
        let _steps = self.steps();
        self.open_hold(attempt)
    }

    /// Flushes every source and ends the history here, durably: changes wait from
    /// now on until [`Group::unseal`] or [`Group::commit`]. Repeating it for the same
    /// attempt answers the same.
    ///
    /// # Errors
    /// [`ErrorKind::Lapsed`] when the hold is over on any volume,
    /// [`ErrorKind::Timeout`] when the sources cannot be flushed before its deadline,
    /// [`ErrorKind::Storage`] when a source or the state cannot be written. The
    /// group goes on as before the hold then.
    pub fn seal(&self, attempt: Attempt) -> Result<Seal> {
        let steps = self.steps();
        let journal = self.0.journal.as_ref().ok_or_else(not_journaled)?;
        if let Some(seal) = journal.sealed().filter(|seal| seal.attempt == attempt) {
            return Ok(seal);
        }
        let hold = steps.filter(|hold| hold.attempt == attempt).ok_or_else(|| {
            let what = format!("attempt {attempt} holds nothing: hold the group first");
            Error::new(ErrorKind::Lapsed, what)
        })?;
        if Instant::now() >= hold.until {
            let what = format!("the hold of attempt {attempt} is over: start the cutover again");
            return Err(Error::new(ErrorKind::Lapsed, what));
        }
        let sealed =
            self.ask_all(hold.until, |done| Command::Seal { attempt, done }).and_then(|()| {
                journal.seal(attempt).map_err(|error| {
                    Error::caused(ErrorKind::Storage, "cannot store the seal of the group", error)
                })
            });
        if sealed.is_err() {
            let _ = self.open_seal(attempt);
        }
        sealed
    }

    /// The receiver has durably decided against this attempt: changes go on.
    pub fn unseal(&self, attempt: Attempt) -> Result<()> {
        let _steps = self.steps();
        if let Some(journal) = &self.0.journal {
            journal.unseal(attempt).map_err(|error| {
                Error::caused(ErrorKind::Storage, "cannot take back the seal of the group", error)
            })?;
        }
        self.open_seal(attempt)
    }

    /// The receiver has taken over: changes are refused from now on, for good.
    pub fn commit(&self, attempt: Attempt, promoted: Promoted) -> Result<()> {
        let _steps = self.steps();
        let refusal: Arc<str> = refusal_of(promoted.epoch, &promoted.exports).into();
        // First durable: a restart in between must not open what the target owns.
        if let Some(journal) = &self.0.journal {
            journal.commit(attempt, promoted).map_err(|error| {
                Error::caused(ErrorKind::Storage, "cannot store that the group was promoted", error)
            })?;
        }
        self.ask_all(answer_by(), |done| Command::Promote { refusal: refusal.clone(), done })
    }

    /// Dirty blocks of a volume for the shipper's walker, from a block on.
    pub fn claim(
        &self,
        volume: VolumeId,
        from_block: u64,
        blocks_max: u64,
        runs_max: u32,
    ) -> Result<Vec<Claim>> {
        let member = self.member(volume)?;
        let (done, answer) = bounded(1);
        member.mailbox.send(Command::Claim { from_block, blocks_max, runs_max, done })?;
        // No time limit: a claim that nobody waits for any more would be lost.
        answer.recv().map_err(|_| no_answer(member, false))?
    }

    /// A socket on which the volume answers reads as it does a client's: for the shipper,
    /// where it cannot be given the disk itself.
    pub(crate) fn reader(&self, volume: VolumeId, size_bytes: u64) -> Result<Fd> {
        let member = self.member(volume)?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| {
            Error::caused(ErrorKind::System, "cannot make a socket for the shipper", error)
        })?;
        let terms = Terms { size_bytes, read_only: true, structured: false, allocation: false };
        let new = NewConnection { fd: ours.into(), terms, permit: Box::new(()) };
        member.mailbox.send(Command::Connect(new))?;
        Ok(Arc::new(theirs.into()))
    }

    fn steps(&self) -> MutexGuard<'_, Option<Hold>> {
        self.0.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_hold(&self, attempt: Attempt) -> Result<()> {
        self.ask_all(answer_by(), |done| Command::Release { attempt, done })
    }

    fn open_seal(&self, attempt: Attempt) -> Result<()> {
        self.ask_all(answer_by(), |done| Command::Unseal { attempt, done })
    }

    fn member(&self, volume: VolumeId) -> Result<&Member> {
        self.0.members.iter().find(|member| member.id == Some(volume)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("the group has no volume {volume}"))
        })
    }

    /// Asks all volumes at once and waits for every answer, at most until then.
    fn ask_all(
        &self,
        until: Instant,
        command: impl Fn(Sender<Result<()>>) -> Command,
    ) -> Result<()> {
        let mut answers = Vec::with_capacity(self.0.members.len());
        for member in self.0.members.iter() {
            let (done, answer) = bounded(1);
            member.mailbox.send(command(done))?;
            answers.push((member, answer));
        }
        for (member, answer) in answers {
            answer
                .recv_deadline(until)
                .map_err(|error| no_answer(member, error.is_timeout()))??;
        }
        Ok(())
    }
}

fn answer_by() -> Instant {
    Instant::now() + ANSWER_WAIT
}

fn no_answer(member: &Member, in_time: bool) -> Error {
    match in_time {
        true => Error::new(
            ErrorKind::Timeout,
            format!("volume {} did not finish what is in flight in time", member.name),
        ),
        false => Error::new(ErrorKind::Gone, format!("volume {} is served no more", member.name)),
    }
}

fn not_journaled() -> Error {
    Error::new(ErrorKind::InvalidInput, "a group without a journal cannot be sealed")
}

/// What a client of a promoted group is told.
pub(crate) fn refusal_of(epoch: u32, exports: &[String]) -> String {
    let place = match exports {
        [] => "its new place".to_owned(),
        exports => exports.join(", "),
    };
    format!(
        "this group was cut over (epoch {epoch}) and is served at {place}: changes here are refused, \
         connect there"
    )
}

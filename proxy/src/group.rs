//! The group as one: what a cutover and the shipper ask of all volumes together.
//!
//! Methods block the caller, never a volume's thread. A step that fails on one
//! volume is taken back on all.

use crate::engine::{Command, Mailbox};
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Attempt;
use crossbeam::channel::{Sender, bounded};
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_block::{Seq, VolumeId, VolumeName};
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
pub struct Group {
    members: Arc<[Member]>,
    journal: Option<Arc<Journal>>,
}

impl Group {
    pub(crate) fn new(members: Vec<Member>, journal: Option<Arc<Journal>>) -> Group {
        Group { members: members.into(), journal }
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
        let until = Instant::now() + max;
        let held = self.ask_all(until, |done| Command::Hold { attempt, until, done });
        if let Err(error) = held {
            let _ = self.release(attempt);
            return Err(error);
        }
        Ok(self.journal.as_ref().map_or(Seq::NONE, |journal| Seq(journal.get(Counter::Head))))
    }

    /// Ends the hold of this attempt; of no consequence when it is over already.
    pub fn release(&self, attempt: Attempt) -> Result<()> {
        self.ask_all(answer_by(), |done| Command::Release { attempt, done })
    }

    /// Flushes every source and ends the history here, durably: changes wait from
    /// now on until [`Group::unseal`] or [`Group::commit`].
    ///
    /// # Errors
    /// [`ErrorKind::Lapsed`] when the hold is over on any volume,
    /// [`ErrorKind::Timeout`] when a source needs more than `max`,
    /// [`ErrorKind::Storage`] when a source or the state cannot be written. The
    /// group goes on as before the hold then.
    pub fn seal(&self, attempt: Attempt, max: Duration) -> Result<Seal> {
        let sealed = self
            .ask_all(Instant::now() + max, |done| Command::Seal { attempt, done })
            .and_then(|()| self.seal_journal(attempt));
        if sealed.is_err() {
            let _ = self.open(attempt);
        }
        sealed
    }

    fn seal_journal(&self, attempt: Attempt) -> Result<Seal> {
        let journal = self.journal.as_ref().ok_or_else(not_journaled)?;
        journal.seal(attempt).map_err(|error| {
            Error::caused(ErrorKind::Storage, "cannot store the seal of the group", error)
        })
    }

    /// The receiver has durably decided against this attempt: changes go on.
    pub fn unseal(&self, attempt: Attempt) -> Result<()> {
        if let Some(journal) = &self.journal {
            journal.unseal(attempt).map_err(|error| {
                Error::caused(ErrorKind::Storage, "cannot take back the seal of the group", error)
            })?;
        }
        self.open(attempt)
    }

    /// The receiver has taken over: changes are refused from now on, for good.
    pub fn commit(&self, attempt: Attempt, promoted: Promoted) -> Result<()> {
        let refusal: Arc<str> = refusal_of(promoted.epoch, &promoted.exports).into();
        self.ask_all(answer_by(), |done| Command::Promote { refusal: refusal.clone(), done })?;
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.commit(attempt, promoted).map_err(|error| {
            Error::caused(ErrorKind::Storage, "cannot store that the group was promoted", error)
        })
    }

    /// Dirty blocks of a volume for the shipper's walker, from block `from` on.
    pub fn claim(&self, volume: VolumeId, from: u64, blocks_max: u64) -> Result<Option<Claim>> {
        let member = self.member(volume)?;
        ask(member, |done| Command::Claim { from_block: from, blocks_max, done })
    }

    fn open(&self, attempt: Attempt) -> Result<()> {
        self.ask_all(answer_by(), |done| Command::Unseal { attempt, done })
    }

    fn member(&self, volume: VolumeId) -> Result<&Member> {
        self.members.iter().find(|member| member.id == Some(volume)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("the group has no volume {volume}"))
        })
    }

    /// Asks all volumes at once and waits for every answer, at most until then.
    fn ask_all(
        &self,
        until: Instant,
        command: impl Fn(Sender<Result<()>>) -> Command,
    ) -> Result<()> {
        let mut answers = Vec::with_capacity(self.members.len());
        for member in self.members.iter() {
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

fn ask<T>(member: &Member, command: impl FnOnce(Sender<Result<T>>) -> Command) -> Result<T> {
    let (done, answer) = bounded(1);
    member.mailbox.send(command(done))?;
    answer.recv_deadline(answer_by()).map_err(|error| no_answer(member, error.is_timeout()))?
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

//! One run: connections, threads, warm-up, the measured window and the sum.

use super::affinity::{self, Cpus};
use super::closed;
use super::open::{self, IN_FLIGHT_MAX, Pace};
use super::phase::{Phase, Stage};
use super::receiver::Receiver;
use super::sender::Sender;
use super::slots::Slots;
use super::tally::Tally;
use super::workload::{Aim, Dice, Workload};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd_client::{NbdUri, Stream, connect_plain};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Beyond the longest payload, so that contents differ.
const POOL_SPARE_BYTES: usize = 1 << 20;

/// How often the controller looks for an end asked from outside.
const STEP: Duration = Duration::from_millis(20);

/// What is run against one export.
#[derive(Clone, Debug)]
pub struct Plan {
    pub uri: NbdUri,
    pub workload: Workload,
    /// Bytes of the export that are used.
    pub span: Range<u64>,
    pub warm: Duration,
    pub measured: Duration,
    pub seed: u64,
    /// Where the client's threads run.
    pub cpus: Option<Cpus>,
}

/// The two ends of the measured window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Begin,
    End,
}

/// What the clients counted.
#[derive(Debug)]
pub struct Outcome {
    /// Length of the window.
    pub seconds: f64,
    pub tally: Tally,
}

/// Runs the plan. `edge` is called at both ends of the measured window, with the load
/// going on; `stop` asks for an early end.
///
/// # Errors
/// `InvalidInput` for a span or export that does not fit, what connecting can fail
/// with, an error reply, a lost connection, `TimedOut` when a reply takes half a
/// minute or `stop` said so.
pub fn run(plan: &Plan, mut edge: impl FnMut(Edge), stop: impl Fn() -> bool) -> Result<Outcome> {
    check(plan)?;
    let stage = Arc::new(Stage::new());
    let clients = (0..plan.workload.connections)
        .map(|number| Client::start(plan, number, &stage))
        .collect::<Result<Vec<_>>>();
    let clients = clients.inspect_err(|_| stage.enter(Phase::Over))?;
    let go_on = |time: Duration| {
        let began = Instant::now();
        while began.elapsed() < time {
            if stop() || stage.phase() == Phase::Over {
                return false;
            }
            thread::sleep(STEP.min(time.saturating_sub(began.elapsed())));
        }
        true
    };
    let mut whole = go_on(plan.warm);
    edge(Edge::Begin);
    let began = Instant::now();
    stage.enter(if whole { Phase::Measured } else { Phase::Over });
    whole = whole && go_on(plan.measured);
    let seconds = began.elapsed().as_secs_f64();
    edge(Edge::End);
    stage.enter(Phase::Over);
    let mut tally = Tally::default();
    for client in clients {
        tally.merge(&client.finish()?);
    }
    match whole {
        true => Ok(Outcome { seconds, tally }),
        false => Err(Error::new(ErrorKind::TimedOut, "stopped before the window's end")),
    }
}

fn check(plan: &Plan) -> Result<()> {
    let w = &plan.workload;
    let fits = plan.span.end.saturating_sub(plan.span.start) >= u64::from(w.request_bytes);
    if !fits || w.request_bytes == 0 || w.depth == 0 || w.connections == 0 {
        let what = format!("no request fits: {w:?} on {:?}", plan.span);
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    if w.flush_every.is_some() && w.rate_per_s.is_some() {
        return Err(Error::new(ErrorKind::InvalidInput, "an open loop does not flush"));
    }
    Ok(())
}

/// A connection's threads.
struct Client {
    threads: Vec<JoinHandle<Result<Tally>>>,
}

impl Client {
    fn start(plan: &Plan, number: usize, stage: &Arc<Stage>) -> Result<Client> {
        let (stream, export) = connect_plain(&plan.uri)?;
        if export.size_bytes < plan.span.end {
            let what = format!("the export has {} bytes only", export.size_bytes);
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        if plan.workload.flush_every.is_some() && !export.can_flush() {
            return Err(Error::new(ErrorKind::InvalidInput, "the server does not offer flush"));
        }
        match plan.workload.rate_per_s {
            None => Client::closed(plan, number, stage, stream),
            Some(rate) => Client::open(plan, number, stage, stream, rate),
        }
    }

    fn closed(plan: &Plan, number: usize, stage: &Arc<Stage>, stream: Stream) -> Result<Client> {
        let (mut sender, mut receiver, _) =
            halves(plan, number, stage, stream, plan.workload.depth)?;
        let aim = Aim::new(&plan.workload, plan.span.clone(), number as u64, plan.seed);
        let (workload, shared) = (plan.workload.clone(), Arc::clone(stage));
        let work = move || {
            closed::drive(&workload, aim, &shared, &mut sender, &mut receiver)?;
            sender.disconnect();
            Ok(receiver.tally)
        };
        Ok(Client { threads: vec![spawn(plan, stage, "load", work)?] })
    }

    fn open(
        plan: &Plan,
        number: usize,
        stage: &Arc<Stage>,
        stream: Stream,
        rate: f64,
    ) -> Result<Client> {
        let (mut sender, mut receiver, slots) = halves(plan, number, stage, stream, IN_FLIGHT_MAX)?;
        let aim = Aim::new(&plan.workload, plan.span.clone(), number as u64, plan.seed);
        let workload = plan.workload.clone();
        let (sending, shared) = (Arc::clone(stage), Arc::clone(&slots));
        let send = move || {
            let pace = Pace::new(sending.now_ns(), rate, workload.connections, number);
            let late = open::send(&workload, aim, pace, &sending, &shared, &mut sender)?;
            Ok(Tally::late_only(late))
        };
        let receiving = Arc::clone(stage);
        let receive = move || {
            open::receive(&receiving, &slots, &mut receiver)?;
            Ok(receiver.tally)
        };
        let threads =
            vec![spawn(plan, stage, "load-recv", receive)?, spawn(plan, stage, "load-send", send)?];
        Ok(Client { threads })
    }

    fn finish(self) -> Result<Tally> {
        let mut sum = Tally::default();
        for thread in self.threads {
            let broke = |_| Error::new(ErrorKind::Io, "a load thread panicked");
            sum.merge(&thread.join().map_err(broke)??);
        }
        Ok(sum)
    }
}

fn halves(
    plan: &Plan,
    number: usize,
    stage: &Arc<Stage>,
    stream: Stream,
    slots: usize,
) -> Result<(Sender, Receiver, Arc<Slots>)> {
    let slots = Arc::new(Slots::new(slots));
    let other =
        stream.try_clone().map_err(|e| Error::io(ErrorKind::Io, "cannot share a socket", e))?;
    let pool = pool(plan.workload.request_bytes as usize + POOL_SPARE_BYTES, plan.seed);
    let sender = Sender::new(stream, Arc::clone(&slots), pool, plan.seed ^ number as u64);
    Ok((sender, Receiver::new(other, Arc::clone(&slots), Arc::clone(stage)), slots))
}

fn pool(bytes: usize, seed: u64) -> Arc<[u8]> {
    let mut dice = Dice::new(seed);
    (0..bytes.div_ceil(8)).flat_map(|_| dice.roll().to_le_bytes()).collect()
}

/// A thread that ends the run for all when it fails.
fn spawn(
    plan: &Plan,
    stage: &Arc<Stage>,
    name: &str,
    work: impl FnOnce() -> Result<Tally> + Send + 'static,
) -> Result<JoinHandle<Result<Tally>>> {
    let (cpus, stage) = (plan.cpus.clone(), Arc::clone(stage));
    let pinned = move || {
        let result = cpus.as_ref().map_or(Ok(()), affinity::pin_own_thread).and_then(|()| work());
        result.inspect_err(|_| stage.enter(Phase::Over))
    };
    let fail = |e| Error::io(ErrorKind::Io, "cannot start a thread", e);
    thread::Builder::new().name(name.into()).spawn(pinned).map_err(fail)
}

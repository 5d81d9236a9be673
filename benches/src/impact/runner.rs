//! The run itself: rounds, servers in random order, cells, repeats of disturbed ones.

use super::child::start_spinners;
use super::machine::{self, Machine};
use super::placement::{Placement, Seats};
use super::plan::{Cell, ClientKind, Job, ServerKind, Settings};
use super::report::{
    CellReport, ImpactReport, RoundReport, ServerReport, SkippedReport, SourceReport,
    WorkloadReport,
};
use super::scratch::Scratch;
use super::servers::{self, Catching, Place, Running, UpstreamFailed};
use super::window::{Books, Target};
use super::{baseline, fio, gates, tools};
use crate::load::{self, Edge, Tally};
use anyhow::{Context, bail};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A disturbed cell is measured again so often; the cleanest counts.
const REPEATS_MAX: usize = 2;

/// What the estimate of the time a run takes is made of, in seconds; measured on a
/// small virtual machine.
const START_S: f64 = 0.5;
const REPLICATED_START_S: f64 = 2.0;
const CELL_S: f64 = 0.15;
const REPLICATED_CELL_S: f64 = 0.8;
const FILL_BYTES_PER_S: f64 = 6e8;
const BASELINE_BYTES_PER_S: f64 = 1.8e8;

/// Who looks on.
pub trait Watch {
    /// What happens now; `done_s` of `total_s` estimated seconds are behind.
    fn step(&mut self, what: &str, done_s: f64, total_s: f64);
    /// Something to know that is not an error.
    fn note(&mut self, text: &str);
    /// Whether the run shall end early, by an error.
    fn stopped(&self) -> bool;
}

/// What one server does in one placement.
pub(super) struct Visit {
    pub placement: Placement,
    pub seats: Seats,
    pub server: ServerKind,
    /// Indexes of cells.
    pub cells: Vec<usize>,
}

/// Seconds that measuring these cells takes, about.
pub fn estimate_s(settings: &Settings, cells: &[Cell]) -> f64 {
    let size = settings.size_bytes as f64;
    let mut visits = BTreeMap::new();
    for cell in cells {
        let replicates = cell.server.replicates();
        let extra = if replicates { REPLICATED_CELL_S } else { CELL_S };
        *visits.entry((cell.placement, cell.server)).or_insert(0.0) +=
            settings.seconds + settings.warm_seconds() + extra;
    }
    let start = |replicates| match replicates {
        true => REPLICATED_START_S + size / BASELINE_BYTES_PER_S,
        false => START_S,
    };
    let visit = |((_, server), cells): (&(Placement, ServerKind), &f64)| {
        size / FILL_BYTES_PER_S + start(server.replicates()) + cells
    };
    let round: f64 = visits.iter().map(visit).sum::<f64>() + baseline::estimate_s(settings, cells);
    round * settings.rounds as f64 + size / FILL_BYTES_PER_S
}

pub(super) struct Runner<'a> {
    pub scratch: &'a Scratch,
    pub settings: &'a Settings,
    pub watch: &'a mut dyn Watch,
    pub total_s: f64,
    pub done_s: f64,
    pub skipped: Vec<SkippedReport>,
    pub notes: Vec<String>,
    pub solo_baselines: Vec<f64>,
}

/// Measures the cells. Nothing that it started is left when it returns.
///
/// # Errors
/// A server of ours that does not start or breaks, a stop asked by `watch`, a disk
/// that cannot be written. A peer that fails is left out, with the reason.
pub fn run(
    scratch: &Scratch,
    settings: &Settings,
    cells: &[Cell],
    watch: &mut dyn Watch,
) -> anyhow::Result<ImpactReport> {
    let began = Instant::now();
    let total_s = estimate_s(settings, cells);
    let mut runner = Runner {
        scratch,
        settings,
        watch,
        total_s,
        done_s: 0.0,
        skipped: Vec::new(),
        notes: Vec::new(),
        solo_baselines: Vec::new(),
    };
    let mut visits = runner.visits(cells);
    let mut results: Vec<Vec<(RoundReport, Tally)>> = vec![Vec::new(); cells.len()];
    let mut baselines = Vec::new();
    let with_baseline = baseline::wanted(settings, cells);
    for round in 0..settings.rounds {
        let mut random = StdRng::seed_from_u64(settings.seed.wrapping_add(round as u64));
        visits.shuffle(&mut random);
        // Placements one after the other, so that what is compared stands close.
        visits.sort_by_key(|visit| visit.placement);
        let mut broken = Vec::new();
        for visit in &mut visits {
            visit.cells.shuffle(&mut random);
            let spent = Instant::now();
            match runner.visit(visit, cells, round, &mut results) {
                Ok(()) => {}
                Err(error) if runner.watch.stopped() || is_ours(visit.server, &error) => {
                    return Err(error);
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    for server in left_out_with(visit.server) {
                        runner.skip(server.name(), &reason);
                        broken.push(server);
                    }
                }
            }
            runner.done_s += spent.elapsed().as_secs_f64();
            runner.total_s = runner.total_s.max(runner.done_s);
        }
        visits.retain(|visit| !broken.contains(&visit.server));
        if with_baseline {
            baselines.push(baseline::round(&mut runner, round)?);
        }
    }
    scratch.clear()?;
    let mut reports = Vec::new();
    for (cell, rounds) in cells.iter().zip(results) {
        if rounds.is_empty() {
            continue;
        }
        let mut merged = Tally::default();
        rounds.iter().for_each(|(_, tally)| merged.merge(tally));
        let rounds = rounds.into_iter().map(|(round, _)| round).collect();
        reports.push(CellReport::of(cell, rounds, &merged));
    }
    Ok(report(runner, cells, reports, baselines, began.elapsed()))
}

/// Whether a failure is one of ours, which nobody shall overlook.
fn is_ours(server: ServerKind, error: &anyhow::Error) -> bool {
    server.peer().is_none() && !error.is::<UpstreamFailed>()
}

/// What is of no use without a server that failed: the two hops are compared with each
/// other alone.
fn left_out_with(server: ServerKind) -> Vec<ServerKind> {
    match server {
        ServerKind::TowlineUpstream | ServerKind::NbdkitHop => {
            vec![ServerKind::TowlineUpstream, ServerKind::NbdkitHop]
        }
        other => vec![other],
    }
}

fn report(
    runner: Runner<'_>,
    cells: &[Cell],
    reports: Vec<CellReport>,
    baselines: Vec<super::report::BaselineRound>,
    elapsed: Duration,
) -> ImpactReport {
    let (settings, scratch) = (runner.settings, runner.scratch);
    let mut servers: Vec<ServerKind> = reports.iter().map(|cell| cell.server).collect();
    servers.sort();
    servers.dedup();
    let mut workloads: Vec<WorkloadReport> = Vec::new();
    for cell in cells {
        let Job { name, says, .. } = cell.job;
        if !workloads.iter().any(|known| known.name == name) {
            workloads.push(WorkloadReport { name, says });
        }
    }
    let programs: Vec<&str> = servers
        .iter()
        .flat_map(|server| server.programs())
        .copied()
        .chain(cells.iter().any(|cell| cell.client == ClientKind::Fio).then_some("fio"))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    ImpactReport {
        kind: "impact",
        level: settings.choice.level,
        seed: settings.seed,
        rounds: settings.rounds,
        seconds: settings.seconds,
        warm_seconds: settings.warm_seconds(),
        elapsed_s: elapsed.as_secs_f64(),
        towline_version: env!("CARGO_PKG_VERSION"),
        debug_build: cfg!(debug_assertions),
        machine: Machine::look(&scratch.dir(), &programs),
        source: SourceReport {
            path: scratch.disk.display().to_string(),
            is_device: scratch.is_device,
            size_bytes: scratch.size_bytes,
            working_set_bytes: settings.working_set_bytes.min(scratch.size_bytes),
        },
        servers: servers.into_iter().map(|name| ServerReport { name, says: name.says() }).collect(),
        gates: gates::judge(&reports, settings.seed),
        baseline: baseline::report(baselines, &runner.solo_baselines, settings.seed),
        workloads,
        cells: reports,
        skipped: runner.skipped,
        notes: runner.notes,
    }
}

impl Runner<'_> {
    /// Cells by placement and server; those that cannot be measured here are skipped.
    fn visits(&mut self, cells: &[Cell]) -> Vec<Visit> {
        let mut visits: Vec<Visit> = Vec::new();
        for (index, cell) in cells.iter().enumerate() {
            let mut needed = cell.server.programs().to_vec();
            if cell.client == ClientKind::Fio {
                needed.push("fio");
            }
            match cell.placement {
                Placement::Unpinned => {}
                Placement::Awake => needed.extend(["taskset", "chrt"]),
                _ => needed.push("taskset"),
            }
            if let Some(missing) = needed.into_iter().find(|name| tools::find(name).is_none()) {
                let what = if cell.client == ClientKind::Fio && missing == "fio" {
                    "fio as client"
                } else {
                    cell.server.name()
                };
                self.skip(what, &format!("{missing} is not installed"));
                continue;
            }
            let Some(seats) = cell.placement.seats() else {
                self.skip(cell.placement.name(), "the machine has not enough processors");
                continue;
            };
            let same = |v: &Visit| v.placement == cell.placement && v.server == cell.server;
            match visits.iter_mut().find(|visit| same(visit)) {
                Some(visit) => visit.cells.push(index),
                None => visits.push(Visit {
                    placement: cell.placement,
                    seats,
                    server: cell.server,
                    cells: vec![index],
                }),
            }
        }
        if self.scratch.size_bytes > machine::memory_bytes() / 2 {
            self.note("the disk is larger than half of the memory: the page cache may not hold it");
        }
        visits
    }

    fn skip(&mut self, what: &str, reason: &str) {
        if !self.skipped.iter().any(|known| known.what == what && known.reason == reason) {
            self.watch.note(&format!("skipped: {what}: {reason}"));
            self.skipped.push(SkippedReport { what: what.into(), reason: reason.into() });
        }
    }

    fn note(&mut self, text: &str) {
        self.watch.note(text);
        self.notes.push(text.into());
    }

    pub(super) fn check_stop(&self) -> anyhow::Result<()> {
        match self.watch.stopped() {
            true => bail!("stopped"),
            false => Ok(()),
        }
    }

    /// Everything as the first server found it.
    pub(super) fn prepare(&mut self, what: &str) -> anyhow::Result<()> {
        self.check_stop()?;
        self.watch.step(what, self.done_s, self.total_s);
        self.scratch.clear()?;
        self.scratch.fill()
    }

    pub(super) fn place<'p>(&'p self, seats: &'p Seats) -> Place<'p> {
        Place {
            scratch: self.scratch,
            seats,
            towline: &self.settings.towline,
            idle_ring_bytes: self.settings.idle_ring_bytes,
        }
    }

    fn visit(
        &mut self,
        visit: &Visit,
        cells: &[Cell],
        round: usize,
        results: &mut [Vec<(RoundReport, Tally)>],
    ) -> anyhow::Result<()> {
        let rounds = self.settings.rounds;
        let what = format!("round {} of {rounds}: {}", round + 1, visit.server);
        self.prepare(&what)?;
        let log = self.scratch.at("spinners.log");
        let _spinners = start_spinners(&visit.seats.awake, &log)?;
        let running = servers::start(visit.server, &self.place(&visit.seats))
            .with_context(|| format!("cannot start {}", visit.server))?;
        let solo = running.replication.as_ref().and_then(|r| r.baseline_bytes_per_s);
        let comparable =
            visit.placement == Placement::Unpinned && visit.server != ServerKind::TowlineUpstream;
        self.solo_baselines.extend(solo.filter(|_| comparable));
        let mut done_s = self.done_s;
        for &index in &visit.cells {
            let began = Instant::now();
            self.check_stop()?;
            let cell = &cells[index];
            let text = format!("{what}, {} {}", cell.job.name, cell.placement.name());
            self.watch.step(&text, done_s, self.total_s);
            let measured = self.cell(cell, visit, &running, round);
            results[index].push(measured.with_context(|| cell.name())?);
            done_s += began.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Measures a cell, again when others disturbed it.
    fn cell(
        &mut self,
        cell: &Cell,
        visit: &Visit,
        running: &Running,
        round: usize,
    ) -> anyhow::Result<(RoundReport, Tally)> {
        let mut best: Option<(RoundReport, Tally)> = None;
        for _ in 0..=REPEATS_MAX {
            self.check_stop()?;
            self.scratch.settle();
            let mut behind = false;
            let mut steps = 0;
            if let Some(replication) = &running.replication {
                behind = replication.before_cell()? == Catching::Behind;
                steps = replication.status()?.ladder_steps;
            }
            let target = Target { job: &cell.job, seats: &visit.seats, running, round };
            let measured = match cell.client {
                ClientKind::Batching => self.batching(&target, |_| Ok(())),
                ClientKind::Fio => self.fio(&target),
            };
            if let Some(replication) = &running.replication {
                replication.after_cell();
            }
            let (mut report, tally) = measured?;
            report.behind = behind;
            if let Some(replication) = &running.replication {
                report.left_ring = replication.status()?.ladder_steps != steps;
            }
            let clean = report.clean;
            if best.as_ref().is_none_or(|(known, _)| report.others < known.others) {
                best = Some((report, tally));
            }
            if clean {
                break;
            }
        }
        best.context("no window was measured")
    }

    /// With our own client; `edge` may look at more at both ends of the window.
    pub(super) fn batching(
        &mut self,
        target: &Target<'_>,
        mut edge: impl FnMut(Edge) -> anyhow::Result<()>,
    ) -> anyhow::Result<(RoundReport, Tally)> {
        let plan = load::Plan {
            uri: target.running.uri.clone(),
            workload: target.job.workload.clone(),
            span: 0..self.span_bytes(target.job),
            warm: Duration::from_secs_f64(self.settings.warm_seconds()),
            measured: Duration::from_secs_f64(self.settings.seconds),
            seed: self.settings.seed.wrapping_add(target.round as u64),
            cpus: target.seats.client.clone(),
        };
        let (mut books, mut failed) = (Vec::new(), Ok(()));
        let looked = |which: Edge| {
            if failed.is_ok() {
                failed = edge(which);
            }
            books.push(Books::now(target.running));
        };
        let watch = &*self.watch;
        let outcome = load::run(&plan, looked, || watch.stopped())?;
        failed?;
        Ok(target.report(&outcome, &books[0], &books[1]))
    }

    fn fio(&mut self, target: &Target<'_>) -> anyhow::Result<(RoundReport, Tally)> {
        // What our client's warm-up does for it.
        let warm = self.settings.warm_seconds();
        let dir = self.scratch.dir();
        let run = |seconds| fio::Run {
            uri: &target.running.uri,
            job: target.job,
            span_bytes: self.span_bytes(target.job),
            seconds,
            seed: self.settings.seed.wrapping_add(target.round as u64),
            cpus: target.seats.client.as_ref(),
            dir: &dir,
        };
        let watch = &*self.watch;
        fio::run(&run(warm), || watch.stopped())?;
        let before = Books::now(target.running);
        let outcome = fio::run(&run(self.settings.seconds), || watch.stopped())?;
        let after = Books::now(target.running);
        Ok(target.report(&outcome, &before, &after))
    }

    fn span_bytes(&self, job: &Job) -> u64 {
        match job.whole_disk {
            true => self.scratch.size_bytes,
            false => self.settings.working_set_bytes.min(self.scratch.size_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::impact::plan::{Choice, Level, plan};

    #[test]
    fn levels_keep_the_time_that_they_promise() {
        for (level, minutes) in [(Level::Quick, 2.0), (Level::Default, 15.0)] {
            let choice = Choice { level, against: None, only: None };
            let cells = plan(&choice);
            let settings = Settings {
                choice,
                rounds: level.rounds(),
                seconds: level.seconds(),
                seed: 1,
                size_bytes: level.size_bytes(),
                working_set_bytes: level.size_bytes(),
                idle_ring_bytes: 1 << 30,
                towline: "towline".into(),
            };
            let seconds = estimate_s(&settings, &cells);
            assert!(seconds < minutes * 60.0, "{level:?}: {} cells, {seconds:.0} s", cells.len());
        }
    }

    #[test]
    fn only_failures_of_ours_end_a_run_and_hops_are_left_out_together() {
        let failed = || anyhow::anyhow!("no room");
        assert!(is_ours(ServerKind::TowlineUpstream, &failed()));
        assert!(is_ours(ServerKind::Towline, &failed().context("cannot start towline")));
        assert!(!is_ours(ServerKind::Nbdkit, &failed()));
        let upstream = failed().context(UpstreamFailed).context("cannot start towline-upstream");
        assert!(!is_ours(ServerKind::TowlineUpstream, &upstream));

        let hops = [ServerKind::TowlineUpstream, ServerKind::NbdkitHop];
        assert!(hops.into_iter().all(|server| left_out_with(server) == hops));
        assert_eq!(left_out_with(ServerKind::QemuNbd), [ServerKind::QemuNbd]);
    }
}

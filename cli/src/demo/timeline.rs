//! The demo's story, step by step: build, move, break things, cut over, judge.

use super::checks::{self, FsAtCut, Verdict};
use super::guests::{Done, Guests};
use super::image;
use super::lab::Lab;
use super::plan::{FS, FsRole, GROUP, Plan};
use super::sampler::Sampler;
use super::summary::{self, Checks, DemoReport, Kills, Restarts};
use crate::progress::Progress;
use crate::signals::Stop;
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use towline_block::size::format_size;
use towline_control::report::ReportOutcome;

/// The baseline of the demo's disks has ended by then on any machine.
const BASELINE_WAIT: Duration = Duration::from_secs(40);

/// How long the shipper may take to catch up after the last fault.
const DRAIN_WAIT: Duration = Duration::from_secs(20);

/// The guest goes on at the target by then: its kernel tries once a second.
const RESUME_WAIT: Duration = Duration::from_secs(15);

/// The group has caught up when the target is not older than this.
const LAG_MAX_S: f64 = 1.0;

/// As the story says.
const BLACK_HOLE: Duration = Duration::from_secs(3);

/// Cutovers asked for before the demo gives up; each may be aborted by a machine
/// that is busy with something else.
const CUTOVERS_MAX: u32 = 3;

/// Between two looks at anything.
const POLL: Duration = Duration::from_millis(50);

/// Stamped writes, and transactions, that the guest has to do at the target.
const WRITES_AT_TARGET: u64 = 200;
const COMMITS_AT_TARGET: u64 = 5;

/// What happens when, as shares of the workload's time.
const KILL_SHIP_AT: f64 = 0.10;
const KILL_RECEIVE_AT: f64 = 0.28;
const KILL_PROXY_AT: f64 = 0.46;
const RESET_AT: f64 = 0.62;
const BLACK_HOLE_AT: f64 = 0.70;

pub struct Settings {
    pub image: Option<PathBuf>,
    pub size_bytes: u64,
    pub workload: Duration,
}

/// The tale on stderr, with the time since the start.
struct Story {
    began: Instant,
}

impl Story {
    fn say(&self, text: impl AsRef<str>) {
        eprintln!("[{:5.1} s] {}", self.began.elapsed().as_secs_f64(), text.as_ref());
    }
}

/// Sleeps, unless somebody asks the demo to end.
fn pause(stop: &Stop, time: Duration) -> anyhow::Result<()> {
    match stop.wait_for(time) {
        Some(signal) => {
            bail!("{signal}: the demo was interrupted; everything it started has been ended")
        }
        None => Ok(()),
    }
}

/// Tells the whole story in `dir`, which is left as it is at the end.
pub fn run(settings: &Settings, dir: &Path, stop: &Stop) -> anyhow::Result<(DemoReport, String)> {
    let story = Story { began: Instant::now() };
    story.say(format!(
        "building two disks of {} in {}",
        format_size(settings.size_bytes),
        dir.display()
    ));
    let plan = Plan::build(dir, settings.image.as_deref(), settings.size_bytes)?;
    if plan.filled.files > 0 {
        story.say(format!(
            "ext4 with {} real files, {}",
            plan.filled.files,
            format_size(plan.filled.bytes)
        ));
    }
    story.say("starting proxy and receiver, and a guest that writes all the time");
    let mut lab = Lab::start(&plan)?;
    let (guests, role) = Guests::start(&plan, &lab)?;
    story.say(summary::note_on(&role));
    let baseline = run_baseline(&mut lab, &guests, stop, &story)?;
    let sampler = Sampler::start(plan.source_state(), GROUP.parse()?)?;
    let (kills, restart_ms) = run_faults(settings.workload, &mut lab, &guests, stop, &story)?;
    drain(&mut lab, &guests, stop, &story)?;
    let samples = sampler.finish();
    let moved = cut_over(&plan, &role, &mut lab, &guests, stop, &story)?;
    let written_bytes = guests.written_bytes();
    let done = guests.stop()?;
    let end = lab.status()?;
    lab.end()?;
    story.say("judging the disks");
    let at_cut = moved.fs_copy.as_deref().map(|copy| FsAtCut { copy, committed: moved.committed });
    let findings = checks::judge(&plan, &role, &done, at_cut.as_ref())?;
    let good = ![&findings.acked_on_target, &findings.identical_at_cut, &findings.fsck]
        .into_iter()
        .any(Verdict::is_failure)
        && done.pause.is_some();
    let report = DemoReport {
        verdict: if good { "pass" } else { "fail" },
        checks: Checks::of(&findings),
        acked_writes: done.acked_writes,
        lost_writes: findings.lost_writes,
        kills,
        net_breaks: 2,
        baseline_s: baseline.seconds,
        baseline_bytes_per_s: baseline.bytes as f64 / baseline.seconds,
        written_bytes,
        shipped_bytes: end.sent_bytes + end.resent_bytes,
        lag_s: samples.lag_s(),
        added_write_us: samples.added_write_us(),
        cutover_pause_ms: pause_ms(&done),
        verified_bytes: findings.verified_bytes,
        elapsed_s: story.began.elapsed().as_secs_f64(),
        committed_transactions: done.committed,
        restart_ms,
        resent_bytes: end.resent_bytes,
        notes: vec![
            summary::note_on(&role),
            match moved.forecast_pause_ms {
                Some(ms) => {
                    format!("pause: forecast {ms} ms, hold to decision {} ms", moved.pause_ms)
                }
                None => format!("pause: no forecast, hold to decision {} ms", moved.pause_ms),
            },
        ],
    };
    let text = summary::describe(&report, &findings);
    Ok((report, text))
}

fn pause_ms(done: &Done) -> Option<f64> {
    done.pause.map(|pause| pause.as_secs_f64() * 1e3)
}

struct Baseline {
    seconds: f64,
    bytes: u64,
}

fn run_baseline(
    lab: &mut Lab<'_>,
    guests: &Guests,
    stop: &Stop,
    story: &Story,
) -> anyhow::Result<Baseline> {
    story.say("starting the shipper: baseline while the guest writes");
    let began = Instant::now();
    lab.start_shipping()?;
    let mut progress = Progress::new("baseline");
    loop {
        let status = lab.status()?;
        progress.show(&status.baseline);
        if status.point_seq.is_some() && status.state == "live" {
            let seconds = began.elapsed().as_secs_f64();
            let bytes = status.baseline.total_bytes;
            drop(progress);
            story.say(format!(
                "baseline done: {} in {seconds:.1} s; the target has a point",
                format_size(bytes)
            ));
            return Ok(Baseline { seconds, bytes });
        }
        if began.elapsed() > BASELINE_WAIT {
            bail!(
                "no point {BASELINE_WAIT:?} after the start: state {}, {} of {} done{}",
                status.state,
                format_size(status.baseline.done_bytes),
                format_size(status.baseline.total_bytes),
                status.last_error.map(|e| format!(", last error: {e}")).unwrap_or_default()
            );
        }
        look_around(lab, guests)?;
        pause(stop, POLL)?;
    }
}

fn look_around(lab: &mut Lab<'_>, guests: &Guests) -> anyhow::Result<()> {
    lab.check_alive()?;
    guests.check()
}

fn run_faults(
    workload: Duration,
    lab: &mut Lab<'_>,
    guests: &Guests,
    stop: &Stop,
    story: &Story,
) -> anyhow::Result<(Kills, Restarts)> {
    let began = Instant::now();
    let until = |share: f64, lab: &mut Lab<'_>| -> anyhow::Result<()> {
        let at = began + workload.mul_f64(share);
        while let Some(left) = at.checked_duration_since(Instant::now()) {
            look_around(lab, guests)?;
            pause(stop, left.min(POLL * 4))?;
        }
        Ok(())
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut restart_ms = Restarts::default();
    until(KILL_SHIP_AT, lab)?;
    restart_ms.ship = ms(lab.ship()?.kill_and_restart()?);
    story.say(format!("kill -9 of the shipper; back after {:.0} ms", restart_ms.ship));
    until(KILL_RECEIVE_AT, lab)?;
    restart_ms.receive = ms(lab.receive.kill_and_restart()?);
    story.say(format!("kill -9 of the receiver; back after {:.0} ms", restart_ms.receive));
    until(KILL_PROXY_AT, lab)?;
    restart_ms.proxy = ms(lab.proxy.kill_and_restart()?);
    story.say(format!(
        "kill -9 of the proxy; the guest's disk is back after {:.0} ms",
        restart_ms.proxy
    ));
    until(RESET_AT, lab)?;
    lab.network.reset();
    story.say("network: every connection reset");
    until(BLACK_HOLE_AT, lab)?;
    lab.network.set_black_hole(true);
    story.say("network: a black hole for 3 s");
    pause(stop, BLACK_HOLE)?;
    lab.network.set_black_hole(false);
    story.say("network: back");
    until(1.0, lab)?;
    Ok((Kills { proxy: 1, ship: 1, receive: 1 }, restart_ms))
}

/// Waits until the target is close behind, the guest still writing.
fn drain(lab: &mut Lab<'_>, guests: &Guests, stop: &Stop, story: &Story) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let status = lab.status()?;
        if status.state == "live" && status.point_seq.is_some() && status.lag_s < LAG_MAX_S {
            story.say(format!("caught up: {} behind", format_size(status.lag_bytes)));
            return Ok(());
        }
        if began.elapsed() > DRAIN_WAIT {
            bail!(
                "the target did not catch up in {DRAIN_WAIT:?}: state {}, {} and {:.1} s behind{}",
                status.state,
                format_size(status.lag_bytes),
                status.lag_s,
                status.last_error.map(|e| format!(", last error: {e}")).unwrap_or_default()
            );
        }
        look_around(lab, guests)?;
        pause(stop, POLL)?;
    }
}

/// What is known of the cutover point.
struct Moved {
    fs_copy: Option<PathBuf>,
    committed: u64,
    forecast_pause_ms: Option<u64>,
    /// As the shipper measured it, from the hold to the decision.
    pause_ms: u64,
}

/// Moves the guest. The mounted volume's guest waits (its kernel tries again)
/// until a copy of the target as it was at the cut has been taken.
fn cut_over(
    plan: &Plan,
    role: &FsRole,
    lab: &mut Lab<'_>,
    guests: &Guests,
    stop: &Stop,
    story: &Story,
) -> anyhow::Result<Moved> {
    story.say("cutover, the guest still writing");
    let mut tries = 1;
    let report = loop {
        let report = lab.cutover()?;
        if report.outcome == ReportOutcome::Promoted {
            break report;
        }
        let reason = report.reason;
        ensure!(tries < CUTOVERS_MAX, "the cutover was aborted {tries} times, at last: {reason}");
        story.say(format!("aborted ({reason}); the guest goes on at the source; once more"));
        tries += 1;
        drain(lab, guests, stop, story)?;
    };
    story.say("promoted: the source refuses writes, the guest goes on at the target");
    ensure!(
        guests.stamped.wait_for_target(RESUME_WAIT),
        "the guest could not write at the target within {RESUME_WAIT:?}: {}",
        guests.stamped.progress().last_error.unwrap_or_default()
    );
    let mut fs_copy = None;
    let committed = guests.committed();
    if !matches!(role, FsRole::Stamped(_)) {
        let copy = plan.dir.join("scratch/fs-at-cut.raw");
        image::copy(&plan.find(FS)?.target, &copy).context("the copy at the cut")?;
        fs_copy = Some(copy);
    }
    lab.plug_cable_into_target();
    wait_for_work_at_target(guests, committed, stop)?;
    story.say("the guest has worked at the target for a while");
    Ok(Moved {
        fs_copy,
        committed,
        forecast_pause_ms: report.forecast_pause_ms,
        pause_ms: report.pause_ms,
    })
}

fn wait_for_work_at_target(guests: &Guests, committed: u64, stop: &Stop) -> anyhow::Result<()> {
    ensure!(
        guests.stamped.wait_for_acks(WRITES_AT_TARGET, RESUME_WAIT),
        "the guest stopped writing at the target: {}",
        guests.stamped.progress().last_error.unwrap_or_default()
    );
    let deadline = Instant::now() + RESUME_WAIT;
    while guests.mounted.is_some() && guests.committed() < committed + COMMITS_AT_TARGET {
        ensure!(Instant::now() < deadline, "the guest's database does not go on at the target");
        guests.check()?;
        pause(stop, POLL)?;
    }
    guests.check()
}

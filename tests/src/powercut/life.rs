//! One group, from its first start through its power cuts.

use super::judge;
use super::outcome::{Outcome, Recovery, Spent};
use super::plan::{Cut, Durability, Phase};
use super::site::{Site, View};
use super::target::Target;
use super::{hot, image};
use crate::binary::towline;
use crate::machine;
use crate::program::run;
use crate::volatile::{Flushes, VolatileDisk};
use crate::{PATIENCE, args};
use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_bench::stamp::{
    Guest, GuestVolume, History, Order, Pattern, Plan, STAMP_BYTES, VolumeHistory,
};

const GROUP: &str = "cut";
const VOLUMES: usize = 2;
/// Two extents of the activity map, the second a short one.
const VOLUME_BYTES: u64 = 20 << 20;
/// Where the client writes: within the first extent, so that the second can go cold.
const WRITTEN_BYTES: u64 = 12 << 20;
/// Where the second extent begins, which stays cold once it is.
const UNTOUCHED_FROM: u64 = 16 << 20;
/// Sources, state, and three segments of spill.
const DISK_BYTES: u64 = 320 << 20;
/// So that the first copy takes longer than a cut's delay.
const BASELINE_RATE: &str = "--rate 2M";
/// A first copy, a compare or a catch-up at an emulated processor's pace.
const WHOLE_WITHIN: Duration = Duration::from_secs(300);
/// Acknowledged before extents are waited for to go cold: every volume has its share.
const WARM_ACKS: u64 = 64;
/// Several rounds of what makes extents cold, and what lies between them on a busy machine.
const COOL_WITHIN: Duration = Duration::from_secs(120);

/// Between two looks at the activity map.
const COOL_INTERVAL: Duration = Duration::from_millis(500);

/// A group, its disks and its receiver, between the cuts.
pub struct Life {
    number: usize,
    dir: PathBuf,
    initrd: PathBuf,
    disk: VolatileDisk,
    target: Target,
    volumes: Vec<String>,
    order: Arc<Order>,
    /// What the sources hold, as the client knows it.
    history: History,
    /// Of the boots since the target was last seen to have everything, and that one.
    earlier: Vec<History>,
    /// The sources as the last cut left them.
    before: Vec<PathBuf>,
    hot_bytes: u64,
    had_point: bool,
    boots: u32,
}

/// A guest at work.
struct Boot {
    site: Site,
    caught_up: bool,
}

impl Life {
    /// Makes disks, certificates and the guest's image in `dir`; boots nothing.
    pub fn new(number: usize, dir: &Path, flushes: Flushes) -> Result<Life> {
        let order = Arc::<Order>::default();
        let volumes: Vec<String> = (0..VOLUMES).map(|n| format!("disk{n}")).collect();
        let files = dir.join("files");
        std::fs::create_dir_all(&files)?;
        let mut history = History::default();
        let mut before = Vec::new();
        for (id, volume) in volumes.iter().enumerate() {
            let source = files.join(format!("{volume}.img"));
            std::fs::File::create(&source)?.set_len(VOLUME_BYTES)?;
            let whole = VolumeHistory::prefilled(id as u32, volume, &source, &order)?;
            history.volumes.push(first_part(whole));
            before.push(source);
        }
        let image = dir.join("disk.img");
        image::make(&image, DISK_BYTES, &files)?;
        let pki = dir.join("pki");
        run(towline(), args!["pki", "init", &pki], PATIENCE).ok();
        run(towline(), args!["pki", "issue", &pki, "--receiver"], PATIENCE).ok();
        run(towline(), args!["pki", "issue", &pki, "--group", GROUP], PATIENCE).ok();
        Ok(Life {
            number,
            initrd: pack(dir, &pki)?,
            disk: VolatileDisk::serve(&image, &dir.join("disk.sock"), flushes)?,
            target: Target::new(&dir.join("target"), &pki, &volumes)?,
            dir: dir.to_owned(),
            volumes,
            order,
            history,
            earlier: Vec::new(),
            before,
            hot_bytes: VOLUMES as u64 * VOLUME_BYTES,
            had_point: false,
            boots: 0,
        })
    }

    /// Boots, recovers from the cut before (what that shows is added to `last`), lets the
    /// client write, cuts, and judges what is left.
    pub fn cut(&mut self, cut: &Cut, last: Option<&mut Outcome>) -> Result<Outcome> {
        let from = Instant::now();
        let mut boot = self.boot(cut, cut.phase.begins_whole(), last)?;
        let worked_from = Instant::now();
        let guest = self.client(cut, &boot.site)?;
        let worked = self.work(cut, &mut boot, &guest);
        let caught_up = boot.caught_up;
        boot.site.cut();
        let disk = self.disk.cut(&mut StdRng::seed_from_u64(cut.seed), cut.survival);
        let progress = guest.progress();
        let history = guest.stop();
        let view = worked?;
        let judged_from = Instant::now();

        let mut outcome = Outcome {
            life: self.number,
            cut: cut.clone(),
            state: view.state(),
            acked: progress.acked_writes,
            flushes: history.volumes.iter().map(|v| v.flushes.len() as u64).sum(),
            disk,
            unflushed_lost: 0,
            target: "not judged".into(),
            hot_bytes: 0,
            spent: Spent::default(),
            total_bytes: VOLUMES as u64 * VOLUME_BYTES,
            recovery: None,
            findings: Vec::new(),
        };
        if progress.io_errors + progress.bad_reads > 0 {
            outcome.findings.push(format!("the client saw errors: {progress:?}"));
        }
        self.judge(&mut outcome, caught_up, history)?;
        outcome.spent = Spent {
            boot_s: (worked_from - from).as_secs_f64(),
            work_s: (judged_from - worked_from).as_secs_f64(),
            judge_s: judged_from.elapsed().as_secs_f64(),
        };
        Ok(outcome)
    }

    /// Boots once more and recovers from the last cut.
    pub fn finish(&mut self, last: &mut Outcome) -> Result<()> {
        let cut = last.cut.clone();
        self.boot(&cut, true, Some(last)).map(drop)
    }

    /// The folder with disks, images and the guest's console.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the disk as it is after the last cut beside the rest of the evidence.
    pub fn keep_disk(&self) -> Result<()> {
        Ok(self.disk.copy_durable(&self.dir.join("disk-after.img"))?)
    }

    fn boot(&mut self, cut: &Cut, whole: bool, last: Option<&mut Outcome>) -> Result<Boot> {
        self.boots += 1;
        let place = self.dir.join(format!("boot{}", self.boots));
        std::fs::create_dir_all(&place)?;
        let from = Instant::now();
        let mut site = Site::boot(&self.initrd, self.disk.socket(), GROUP, &place)?;
        let mounted_s = from.elapsed().as_secs_f64();
        let spill = match (cut.phase, cut.durability) {
            (Phase::Map, Durability::Process) => "0",
            (Phase::Map, _) => "64M",
            _ => "192M",
        };
        let serving_s = site.start_proxy(cut, spill, &self.volumes)?.as_secs_f64();
        let view = site.status()?;
        site.verify_journal()?;
        self.target.start();
        let options = if cut.phase == Phase::Baseline && !whole { BASELINE_RATE } else { "" };
        site.start_ship(self.target.port, options)?;
        let mut recovery = Recovery {
            mounted_s,
            serving_s,
            map_bytes: view.number("map_set_bytes"),
            compare_bytes: view.number("map_suspect_bytes"),
            history_bytes: view.number("history_bytes"),
            ..Recovery::default()
        };
        let mut findings = Vec::new();
        if recovery.map_bytes > self.hot_bytes {
            let hot = self.hot_bytes;
            findings.push(format!("more to compare than the {hot} hot bytes: {}", view.0));
        }
        let mut boot = Boot { site, caught_up: false };
        if whole {
            let from = Instant::now();
            let view = self.catch_up(&mut boot, &mut findings)?;
            recovery.whole_s = Some(from.elapsed().as_secs_f64());
            recovery.sent_bytes = view.number("sent_bytes");
        }
        match last {
            Some(last) => {
                last.recovery = Some(recovery);
                last.findings.extend(findings);
                ensure!(last.findings.is_empty(), "what was found after the cut");
            }
            None => ensure!(findings.is_empty(), "before any cut: {}", findings.join("; ")),
        }
        Ok(boot)
    }

    /// Waits until the target has everything; then the source is as the cut left it (nobody
    /// wrote but recovery) and the target equals it.
    fn catch_up(&mut self, boot: &mut Boot, findings: &mut Vec<String>) -> Result<View> {
        let view = boot.site.wait_status(WHOLE_WITHIN, "whole", View::is_whole)?;
        self.target.wait_applied()?;
        let mut now = Vec::new();
        for volume in &self.volumes {
            let copy = self.dir.join(format!("recovered-{volume}.img"));
            image::read_export(&boot.site.uri(volume), VOLUME_BYTES, &copy)?;
            now.push(copy);
        }
        let what = "recovery wrote the source";
        findings.extend(judge::same(what, &self.before, &now)?);
        let what = "the target is not the source";
        findings.extend(judge::same(what, &now, &self.target.images())?);
        boot.caught_up = true;
        self.had_point = true;
        self.earlier.clear();
        Ok(view)
    }

    fn client(&self, cut: &Cut, site: &Site) -> Result<Guest> {
        let overflows = matches!(cut.phase, Phase::Spill | Phase::Map);
        let plan = Plan {
            seed: cut.seed,
            queue_depth: 8,
            rate_per_s: match cut.phase {
                Phase::Spill | Phase::Map => None,
                Phase::Cool => Some(30.0),
                // With pauses, in which the guest's kernel writes back what was not flushed.
                _ => Some(100.0),
            },
            pattern: Pattern::Zipf(0.6),
            large_share: if overflows { 0.8 } else { 0.2 },
            write_blocks_max: if overflows { 64 } else { 16 },
            zero_share: 0.05,
            fua_share: 0.01,
            read_share: 0.05,
            flush_every: cut.flush_every,
            reply_timeout: PATIENCE,
            reconnect_wait: Duration::from_millis(20),
        };
        let volumes = self.history.volumes.iter().map(|history| GuestVolume {
            history: history.clone(),
            source: site.uri(&history.name),
            target: None,
        });
        Ok(Guest::start(&plan, self.order.clone(), volumes.collect())?)
    }

    /// Up to the instant of the cut; gives the last status before it.
    fn work(&self, cut: &Cut, boot: &mut Boot, guest: &Guest) -> Result<View> {
        let site = &mut boot.site;
        if matches!(cut.phase, Phase::Spill | Phase::Map) {
            site.kill_ship()?;
            let key = if cut.phase == Phase::Map { "map_set_bytes" } else { "spill_used_bytes" };
            site.wait_status(PATIENCE, "overflowing", |view| view.number(key) > 0)?;
            if cut.ships_again {
                site.start_ship(self.target.port, "")?;
            }
        }
        if cut.phase == Phase::Baseline {
            site.wait_status(PATIENCE, "copying", |view| view.number("sent_bytes") > 0)?;
        }
        if cut.phase == Phase::Cool {
            // The first write of an extent that went cold while nobody wrote heats those behind
            // it, too: only under a client that writes does the untouched one stay cold.
            let goes_on = guest.wait_for_acks(WARM_ACKS, PATIENCE);
            ensure!(goes_on, "the client does not begin: {:?}", guest.progress());
            self.wait_cool(site)?;
        }
        let view = site.status()?;
        let goes_on = guest.wait_for_acks(cut.acks, PATIENCE);
        ensure!(goes_on, "the client's writes stand still: {:?}, {}", guest.progress(), view.0);
        // The instant of the cut is chance: this is no waiting for something.
        std::thread::sleep(cut.delay);
        Ok(view)
    }

    fn wait_cool(&self, site: &mut Site) -> Result<()> {
        let deadline = Instant::now() + COOL_WITHIN;
        let sizes = [VOLUME_BYTES; VOLUMES];
        while hot::hot_bytes(&site.activity_map()?, &sizes, UNTOUCHED_FROM)? > 0 {
            ensure!(Instant::now() < deadline, "no extent goes cold: {}", site.status()?.0);
            // A file's content: there is nothing to wait on.
            std::thread::sleep(COOL_INTERVAL);
        }
        // What is cold may be hot on disk for long: that costs a comparison, nothing else.
        site.sync()
    }

    fn judge(&mut self, outcome: &mut Outcome, caught_up: bool, history: History) -> Result<()> {
        let image = self.dir.join("disk-judged.img");
        self.disk.copy_durable(&image)?;
        let remains = judge::source(&image, &self.dir, GROUP, &history)?;
        outcome.findings.extend(remains.findings);
        outcome.unflushed_lost = remains.unflushed_lost;
        outcome.hot_bytes = remains.hot_bytes;
        let touched = VOLUMES as u64 * UNTOUCHED_FROM;
        if outcome.cut.phase == Phase::Cool && remains.hot_bytes > touched {
            outcome.findings.push("extents that had gone cold are hot after the cut".into());
        }
        if !outcome.findings.is_empty() {
            return Ok(());
        }
        self.hot_bytes = remains.hot_bytes;
        self.before = remains.sources;
        debug_assert!(!caught_up || self.earlier.is_empty(), "cleared when it caught up");
        self.earlier.push(history);
        let candidates: Vec<&History> = self.earlier.iter().rev().collect();
        let kill = outcome.cut.kills_receiver;
        let (state, findings) =
            judge::target(&mut self.target, kill, self.had_point, &candidates, &self.dir)?;
        outcome.target = state;
        outcome.findings.extend(findings);
        // What is left is what the next boot's client starts from.
        let last = self.earlier.last().context("just pushed")?;
        self.history = History {
            volumes: last
                .volumes
                .iter()
                .zip(&self.before)
                .map(|(volume, source)| volume.settled(source, &self.order))
                .collect::<towline_bench::Result<_>>()?,
        };
        Ok(())
    }
}

/// The part of a volume that the client writes and judges; the rest is only compared.
fn first_part(mut history: VolumeHistory) -> VolumeHistory {
    history.block_count = WRITTEN_BYTES / STAMP_BYTES as u64;
    history.ops.retain(|op| op.blocks().end <= history.block_count);
    history
}

/// The guest's image: the binary, without what only a debugger reads, and its certificates.
fn pack(dir: &Path, pki: &Path) -> Result<PathBuf> {
    let binary = dir.join("towline");
    run("strip", args!["-o", &binary, towline()], PATIENCE).ok();
    let initrd = dir.join("initrd");
    let (ca, certificate) = (pki.join("ca.pem"), pki.join(format!("group-{GROUP}.pem")));
    let key = pki.join(format!("group-{GROUP}.key"));
    let places = [format!("pki/group-{GROUP}.pem"), format!("pki/group-{GROUP}.key")];
    machine::pack(
        &initrd,
        &[
            (&binary, "bin/towline"),
            (&ca, "pki/ca.pem"),
            (&certificate, &places[0]),
            (&key, &places[1]),
        ],
    );
    Ok(initrd)
}

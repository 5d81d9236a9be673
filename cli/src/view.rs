//! What a state directory says about its groups: read from files only, so that it
//! works with every process dead and disturbs none that lives.

use crate::exit::unreachable;
use crate::report::{
    Baseline, DeviceStatus, DiskWritten, GroupStatus, InspectReport, LadderStep, NOT_KNOWN,
    Percentiles, ProcessStatus, Rate, Shipping, VolumeStatus,
};
use std::path::Path;
use towline_block::size::format_size;
use towline_block::{BLOCK_BYTES, GroupName};
use towline_journal::inspect::GroupView;
use towline_journal::progress::{Figure, Progress};
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::spill::{Rung, load_steps};
use towline_journal::state::GroupDir;
use towline_journal::{format::Counter, unix_now_ns};
use towline_shipper::batch::Keyring;
use towline_shipper::device::{Leg, Travel, travel};

/// A receiver's folder in its state directory; it holds a group's target side.
const RECEIVER_FOLDER: &str = "receive";

/// The folder of one group at its source.
///
/// # Errors
/// The group is not there (exit code 69), or several are and none is named.
pub fn group_dir(dir: &Path, group: Option<&GroupName>) -> anyhow::Result<GroupDir> {
    let mut found = source_dirs(dir)?;
    found.retain(|d| group.is_none_or(|group| is_of(d, group)));
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(unreachable(match group {
            Some(group) => format!(
                "there is no group {group} in {}: give the --state directory of its proxy",
                dir.display()
            ),
            None => {
                format!("there is no group in {}: give a group's state directory", dir.display())
            }
        })),
        count => Err(crate::exit::usage(format!(
            "{} holds {count} groups: give the folder of the one that is meant",
            dir.display()
        ))),
    }
}

/// All groups of a state directory, or the one named; none is no error.
pub fn groups(
    dir: &Path,
    group: Option<&GroupName>,
    keys: &Keyring,
) -> anyhow::Result<Vec<GroupStatus>> {
    let mut all = Vec::new();
    for found in source_dirs(dir)? {
        if group.is_none_or(|group| is_of(&found, group)) {
            all.push(source_status(&GroupView::open(&found)?, device(&found)?));
        }
    }
    for mut target in crate::target_view::all(dir, keys)? {
        // A receiver without a group may be the one that is waited for.
        if let Some(group) = group.filter(|_| target.group.is_empty()) {
            target.group = group.to_string();
        }
        if group.is_none_or(|group| target.group == group.as_str()) {
            all.push(target);
        }
    }
    Ok(all)
}

fn source_dirs(dir: &Path) -> anyhow::Result<Vec<GroupDir>> {
    let mut dirs = GroupDir::all(dir)?;
    dirs.retain(|d| d.path().file_name().is_none_or(|name| name != RECEIVER_FOLDER));
    Ok(dirs)
}

fn is_of(dir: &GroupDir, group: &GroupName) -> bool {
    dir.path().file_name().is_some_and(|name| name == group.as_str())
        || dir.load().is_ok_and(|state| state.is_some_and(|state| state.group == *group))
}

fn device(dir: &GroupDir) -> anyhow::Result<Option<DeviceStatus>> {
    let status = |travel: Travel| DeviceStatus {
        state: match travel.leg {
            Leg::Exporting => "exporting",
            Leg::Travelling => "travelling",
            Leg::Imported => "imported",
        },
        packs: travel.packs,
        bytes: travel.bytes,
    };
    Ok(travel(dir)?.map(status))
}

fn source_status(view: &GroupView, device: Option<DeviceStatus>) -> GroupStatus {
    let state = &view.state;
    let figure = |figure| view.progress.as_ref().map_or(0, |page| page.get(figure));
    let map_blocks = view.get(Counter::DirtyBlocks) + view.get(Counter::ClaimedBlocks);
    let map_set_bytes = map_blocks * BLOCK_BYTES;
    let ring_used_bytes = view.ring_used_bytes();
    let of_ring = |value| if view.has_ring() { value } else { NOT_KNOWN };
    GroupStatus {
        group: state.group.to_string(),
        role: "source",
        state: state_word(view).into(),
        epoch: state.epoch,
        incarnation: state.incarnation,
        head_seq: of_ring(view.get(Counter::Head)),
        done_seq: of_ring(view.get(Counter::Done)),
        durable_seq: of_ring(view.get(Counter::Acked)),
        acked_seq: of_ring(view.get(Counter::Acked)),
        point_seq: (figure(Figure::HasPoint) == 1).then(|| figure(Figure::PointSeq)),
        lag_bytes: of_ring(
            ring_used_bytes
                + view.get(Counter::SpillUsedBytes)
                + view.get(Counter::HistoryBytes)
                + map_set_bytes,
        ),
        lag_s: if view.has_ring() { lag_s(view, map_set_bytes) } else { f64::NAN },
        ring_bytes: view.ring_payload_bytes(),
        ring_used_bytes: of_ring(ring_used_bytes),
        spill_used_bytes: of_ring(view.get(Counter::SpillUsedBytes)),
        spill_bytes: view.get(Counter::SpillBytes),
        history_bytes: view.get(Counter::HistoryBytes),
        spill_written_bytes: view.get(Counter::SpillPayloadBytes),
        disk_written: disk_written(view),
        ladder_steps: view.get(Counter::LadderSteps),
        ladder: ladder(view),
        map_set_bytes: of_ring(map_set_bytes),
        map_suspect_bytes: view.get(Counter::SuspectBlocks) * BLOCK_BYTES,
        device,
        lacking_bytes: 0,
        key_needed: false,
        baseline: view.progress.as_ref().map_or_else(Baseline::default, baseline),
        resent_bytes: figure(Figure::ResentBytes),
        sent_bytes: figure(Figure::SentStreamBytes),
        shipping: Shipping {
            payload_bytes: figure(Figure::CutBytes),
            coalesced_bytes: figure(Figure::CoalescedBytes),
            stored_bytes: figure(Figure::StoredBytes),
            encode_s: figure(Figure::EncodeNs) as f64 / 1e9,
        },
        rate: view.progress.as_ref().map_or_else(Rate::default, rate),
        added_write_us: added(view, Counter::AddedWriteP50Ns, Counter::AddedWriteP99Ns),
        added_read_us: added(view, Counter::AddedReadP50Ns, Counter::AddedReadP99Ns),
        added_flush_us: added(view, Counter::AddedFlushP50Ns, Counter::AddedFlushP99Ns),
        volumes: volumes(view),
        processes: vec![
            ProcessStatus { process: "proxy", alive: view.proxy_runs() },
            ProcessStatus { process: "ship", alive: view.shipper_runs() },
        ],
        last_error: last_error(view),
    }
}

fn added(view: &GroupView, p50: Counter, p99: Counter) -> Percentiles {
    Percentiles { p50: micros(view.get(p50)), p99: micros(view.get(p99)) }
}

pub fn disk_written(view: &GroupView) -> DiskWritten {
    let (spill, payload) =
        (view.get(Counter::SpillWrittenBytes), view.get(Counter::SpillPayloadBytes));
    DiskWritten {
        payload_bytes: payload,
        spill_header_bytes: spill.saturating_sub(payload),
        spill_fill_bytes: view.get(Counter::SpillFilledBytes),
        activity_map_bytes: view.get(Counter::ActivityWrittenBytes),
        change_map_bytes: view.get(Counter::MapWrittenBytes),
        state_bytes: view.get(Counter::StateWrittenBytes),
    }
}

/// The ladder's last steps.
pub fn ladder(view: &GroupView) -> Vec<LadderStep> {
    load_steps(&view.dir.steps_path()).into_iter().map(LadderStep::from).collect()
}

/// The one word of `status` and `journal inspect`.
fn state_word(view: &GroupView) -> &'static str {
    let figure = |figure| view.progress.as_ref().map_or(0, |page| page.get(figure));
    if let Some(seal) = &view.state.seal {
        return if seal.promoted.is_some() { "promoted" } else { "sealed" };
    }
    if figure(Figure::CutoverRunning) == 1 {
        return "cutover";
    }
    if view.get(Counter::Whole) == 1 {
        let spills = Rung::from_code(view.get(Counter::Rung)) == Rung::Spill;
        return if spills { "spill" } else { "live" };
    }
    // A target that was met has the word: it may be another one than before.
    let was_met = figure(Figure::Sessions) > 0;
    let had_point = figure(Figure::HasPoint) == 1 || !was_met && view.get(Counter::HealedSeq) > 0;
    match (had_point, view.shipper_runs()) {
        (false, _) => "baseline",
        (true, true) => "resync",
        (true, false) => "map",
    }
}

/// The shipper's view of the baseline.
pub fn baseline(page: &Progress) -> Baseline {
    let eta = page.get(Figure::BaselineEtaS);
    let rate = page.get(Figure::BaselineBytesPerS);
    Baseline {
        done_bytes: page.get(Figure::BaselineDoneBytes),
        total_bytes: page.get(Figure::BaselineTotalBytes),
        rate_bytes_per_s: (rate > 0).then_some(rate as f64),
        eta_s: (eta != u64::MAX && rate > 0).then_some(eta as f64),
    }
}

/// What holds shipping back.
pub fn rate(page: &Progress) -> Rate {
    let limit = |figure| Some(page.get(figure)).filter(|limit| *limit > 0);
    Rate {
        bytes_per_s: limit(Figure::RateBytesPerS),
        ops_per_s: limit(Figure::RateOpsPerS),
        link_bytes_per_s: limit(Figure::LinkBytesPerS),
        link_ops_per_s: limit(Figure::LinkOpsPerS),
        why: page.rate_reason(),
    }
}

/// How old the oldest change is that the target lacks. Blocks in the map do not
/// tell their age; the shipper remembers it, and while it is dead time goes on.
fn lag_s(view: &GroupView, map_set_bytes: u64) -> f64 {
    let record_age = oldest_age_s(view).unwrap_or(0.0);
    if map_set_bytes == 0 {
        return record_age;
    }
    let Some(page) = &view.progress else { return record_age };
    let known = page.get(Figure::LagMs) as f64 / 1e3;
    let stale =
        if view.shipper_runs() { 0.0 } else { seconds_since(page.get(Figure::HeartbeatNs)) };
    record_age.max(known + stale)
}

fn oldest_age_s(view: &GroupView) -> Option<f64> {
    let spilled = view.get(Counter::SpillOldestNs);
    if spilled > 0 {
        return Some(seconds_since(spilled));
    }
    let mut pending = view.pending();
    let oldest = pending.next().filter(|_| view.has_ring())?;
    // On a live group the oldest may be gone by now: then the next one is close.
    let record = view.record(oldest).or_else(|| view.record(view.get(Counter::Acked) + 1))?;
    Some(seconds_since(record.unix_ns))
}

fn seconds_since(unix_ns: u64) -> f64 {
    match unix_ns {
        0 => 0.0,
        at => unix_now_ns().saturating_sub(at) as f64 / 1e9,
    }
}

fn micros(ns: u64) -> Option<f64> {
    (ns > 0).then_some(ns as f64 / 1e3)
}

fn volumes(view: &GroupView) -> Vec<VolumeStatus> {
    let volume = |v: &towline_journal::state::VolumeState| VolumeStatus {
        name: v.name.to_string(),
        size_bytes: v.size_bytes,
        exports: v.exports.clone(),
    };
    view.state.volumes.iter().map(volume).collect()
}

fn last_error(view: &GroupView) -> Option<String> {
    let shipper = view.progress.as_ref().and_then(Progress::error);
    let worse = shipper.or_else(|| {
        let error = view.ring_error.as_ref()?;
        Some(format!(
            "the ring is not usable ({error}): start `towline proxy`, which makes a new one; everything \
             is then compared with the target"
        ))
    });
    // A target that is away fills the spill: one does not hide the other.
    let errors: Vec<_> = worse.into_iter().chain(spill_fault(view)).collect();
    (!errors.is_empty()).then(|| errors.join("; also: "))
}

/// What is wrong with the spill, what that means, and what to do.
fn spill_fault(view: &GroupView) -> Option<String> {
    let fault = view.get(Counter::SpillFault);
    let means = "changes that the ring cannot hold go to the change map, and no point is made until \
                 the target has caught up";
    match (fault, &view.state.spill) {
        (0, _) => None,
        (2, _) => Some(format!(
            "the spill is full ({}): {means}; if that happens often, start the proxy with a larger \
             --spill",
            format_size(view.get(Counter::SpillBytes))
        )),
        (_, Some(device)) => Some(format!(
            "the spill's device {} cannot be used: {means}; the proxy's log says why; make it work \
             and, if it was missing, start the proxy again",
            device.path.display()
        )),
        (_, None) => Some(format!(
            "the spill in {} cannot be written: {means}; the proxy's log says why; make room on that \
             disk (it takes {} at a time) or repair it: the proxy tries again every second",
            view.dir.spill_path().display(),
            format_size(SEGMENT_BYTES)
        )),
    }
}

/// `towline journal inspect`.
pub fn inspect(view: &GroupView) -> InspectReport {
    let pending = view.pending();
    let of_ring = |value| view.has_ring().then_some(value);
    InspectReport {
        group: view.state.group.to_string(),
        epoch: view.state.epoch,
        incarnation: view.state.incarnation,
        head_seq: of_ring(view.get(Counter::Head)),
        done_seq: of_ring(view.get(Counter::Done)),
        durable_seq: of_ring(view.get(Counter::Acked)),
        acked_seq: of_ring(view.get(Counter::Acked)),
        state: state_word(view).into(),
        volumes: volumes(view),
        records: of_ring((pending.end() + 1).saturating_sub(*pending.start())),
        oldest_age_s: oldest_age_s(view),
        ring_file: view.state.ring.path.display().to_string(),
    }
}

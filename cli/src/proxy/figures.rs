//! The proxy's figures: for `towline status` in the ring's counters, for Prometheus
//! as samples.

use crate::metrics::Sample;
use anyhow::Context;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;
use towline_journal::format::Counter;
use towline_journal::{Journal, unix_now_ns};
use towline_proxy::VolumeFigures;
use towline_proxy::latency::{Added, Cores, Counters, Kind};

/// Fast enough for `status`, rare enough to cost nothing.
const EVERY: Duration = Duration::from_millis(500);

/// What `added_write_us` is about.
const WRITES: [Kind; 2] = [Kind::Write, Kind::Fua];

/// Writes figures into the ring until dropped.
pub struct Publisher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    pub fn start(journal: Arc<Journal>, volumes: Vec<VolumeFigures>) -> anyhow::Result<Publisher> {
        let (stop, stopped) = mpsc::channel::<()>();
        journal.publish(Counter::OwnerPid, u64::from(std::process::id()));
        let publish = move || {
            loop {
                publish(&journal, &volumes);
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("figures".into())
            .spawn(publish)
            .context("cannot start the thread of the figures")?;
        Ok(Publisher { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The group shows its worst volume: that is the one whose guest complains.
fn publish(journal: &Journal, volumes: &[VolumeFigures]) {
    journal.publish(Counter::HeartbeatNs, unix_now_ns());
    for (kinds, p50, p99) in [
        (&WRITES[..], Counter::AddedWriteP50Ns, Counter::AddedWriteP99Ns),
        (&[Kind::Read], Counter::AddedReadP50Ns, Counter::AddedReadP99Ns),
        (&[Kind::Flush, Kind::Fua], Counter::AddedFlushP50Ns, Counter::AddedFlushP99Ns),
    ] {
        let added: Vec<_> = volumes.iter().map(|volume| volume.shadow.last(kinds)).collect();
        let worst = |us: fn(&Added) -> f64| added.iter().map(us).fold(0.0, f64::max);
        journal.publish(p50, (worst(|added| added.p50_us) * 1e3) as u64);
        journal.publish(p99, (worst(|added| added.p99_us) * 1e3) as u64);
    }
}

/// What Prometheus gets.
pub fn samples(journal: &Journal, volumes: &[VolumeFigures]) -> Vec<Sample> {
    let mut samples = group_samples(journal);
    type Read = fn(&Counters) -> u64;
    let counters: [(&str, &str, Read); 10] = [
        ("towline_guest_reads", "Read requests.", |c| c.reads.get()),
        ("towline_guest_writes", "Write requests.", |c| c.writes.get()),
        ("towline_guest_flushes", "Flush requests.", |c| c.flushes.get()),
        ("towline_guest_read_bytes", "Bytes read.", |c| c.read_bytes.get()),
        ("towline_guest_written_bytes", "Bytes written.", |c| c.written_bytes.get()),
        ("towline_guest_zeroed_bytes", "Bytes zeroed or trimmed.", |c| c.zeroed_bytes.get()),
        ("towline_guest_errors", "Requests answered with an error.", |c| c.errors.get()),
        (
            "towline_undurable_answers",
            "Answers that went out before the journal was durable, against the policy.",
            |c| c.undurable.get(),
        ),
        ("towline_source_syncs", "Flushes of sources.", |c| c.syncs.get()),
        ("towline_upstream_losses", "Connections to an upstream NBD server that were lost.", |c| {
            c.upstream_losses.get()
        }),
    ];
    for (name, help, read) in counters {
        samples.extend(volumes.iter().map(|volume| {
            of_volume(Sample::counter(name, help, read(&volume.counters)), journal, volume)
        }));
    }
    samples.extend(volumes.iter().map(|volume| {
        let help = "Core time spent on looking for requests instead of sleeping.";
        let seconds = volume.counters.spin_ns.get() as f64 / 1e9;
        of_volume(Sample::gauge("towline_spin_seconds", help, seconds), journal, volume)
    }));
    samples.extend(core_samples(journal, volumes));
    let timed = |volume| added_samples(volume).map(move |s| of_volume(s, journal, volume));
    let mut added: Vec<Sample> = volumes.iter().flat_map(timed).collect();
    // Stable: those of one name come together, in their order.
    added.sort_by_key(|sample| sample.name);
    samples.extend(added);
    samples.extend(volumes.iter().map(|volume| {
        let open = volume.open_connections() as f64;
        let sample = Sample::gauge("towline_nbd_connections", "NBD connections open now.", open);
        of_volume(sample, journal, volume)
    }));
    samples
}

/// What the volumes' threads have of the machine's cores. Those of one name come together.
fn core_samples(journal: &Journal, volumes: &[VolumeFigures]) -> Vec<Sample> {
    type Read = fn(&Cores) -> Option<f64>;
    let gauges: [(&str, &str, Read); 5] = [
        ("towline_thread_cpu_seconds", "Core time of the volume's thread.", |cores| {
            cores.used().map(|(ran, _)| ran)
        }),
        (
            "towline_thread_wait_seconds",
            "Time in which the volume's thread had work and no core.",
            |cores| cores.used().map(|(_, waited)| waited),
        ),
        (
            "towline_seat_core",
            "Core that the volume's thread shares with its client; -1: the scheduler decides.",
            |cores| Some(cores.seat().map_or(-1.0, |core| core as f64)),
        ),
        (
            "towline_awake",
            "1 while the volume's thread keeps the processors from halting.",
            |cores| Some(f64::from(cores.is_awake())),
        ),
        (
            "towline_awake_seconds",
            "Time in which the volume's thread kept the processors from halting.",
            |cores| Some(cores.awake_ns.get() as f64 / 1e9),
        ),
    ];
    let samples = gauges.into_iter().flat_map(|(name, help, read)| {
        volumes.iter().filter_map(move |volume| {
            let value = read(&volume.counters.cores)?;
            Some(of_volume(Sample::gauge(name, help, value), journal, volume))
        })
    });
    samples.collect()
}

/// What was added to requests, by kind and size class.
fn added_samples(volume: &VolumeFigures) -> impl Iterator<Item = Sample> {
    let writes = volume.shadow.last(&WRITES);
    let of_writes = quantiles(
        "towline_added_write_seconds",
        "Time added to a write over the last second that had writes.",
        &writes,
    );
    let of_cells = volume.shadow.table().into_iter().flat_map(|(kind, size, last, total)| {
        let help = "Time added to a request over the last second that had some, by kind and size.";
        let mut samples = quantiles("towline_added_seconds", help, &last).to_vec();
        let help = "Requests whose added time was measured, by kind and size.";
        samples.push(Sample::counter("towline_timed_requests", help, total.count));
        let help = "Sum of the time added to requests since the start, by kind and size.";
        samples.push(Sample::gauge("towline_added_sum_seconds", help, total.sum_s));
        samples.into_iter().map(move |sample| sample.with("kind", kind.name()).with("size", size))
    });
    of_writes.into_iter().chain(of_cells)
}

fn quantiles(name: &'static str, help: &'static str, added: &Added) -> [Sample; 3] {
    [("0.5", added.p50_us), ("0.99", added.p99_us), ("0.999", added.p999_us)]
        .map(|(quantile, us)| Sample::gauge(name, help, us / 1e6).with("quantile", quantile))
}

fn of_volume(sample: Sample, journal: &Journal, volume: &VolumeFigures) -> Sample {
    sample.with("group", journal.group().to_string()).with("volume", volume.name.to_string())
}

fn group_samples(journal: &Journal) -> Vec<Sample> {
    let get = |counter| journal.get(counter);
    let block = towline_block::BLOCK_BYTES;
    let ring_used = get(Counter::PayloadHead).saturating_sub(get(Counter::PayloadTail));
    let samples = vec![
        Sample::counter(
            "towline_journaled_bytes",
            "Payload journaled since the ring was made.",
            get(Counter::JournaledBytes),
        ),
        Sample::counter(
            "towline_mapped_bytes",
            "Bytes that went to the change map instead.",
            get(Counter::MappedBytes),
        ),
        Sample::counter(
            "towline_breaks",
            "Times the group stopped being whole.",
            get(Counter::Breaks),
        ),
        Sample::gauge("towline_head_seq", "Last record number given.", get(Counter::Head) as f64),
        Sample::gauge(
            "towline_acked_seq",
            "Last record durable at the target.",
            get(Counter::Acked) as f64,
        ),
        Sample::gauge("towline_ring_used_bytes", "Payload the target lacks.", ring_used as f64),
        Sample::counter(
            "towline_spill_written_bytes",
            "Bytes written to the spill since the ring was made.",
            get(Counter::SpillWrittenBytes),
        ),
        Sample::counter(
            "towline_spill_payload_bytes",
            "Payload among the bytes written to the spill.",
            get(Counter::SpillPayloadBytes),
        ),
        Sample::counter(
            "towline_spill_filled_bytes",
            "Zeroes that segments of the spill were filled with, since the ring was made.",
            get(Counter::SpillFilledBytes),
        ),
        Sample::counter(
            "towline_activity_written_bytes",
            "Bytes written to the activity map since the ring was made.",
            get(Counter::ActivityWrittenBytes),
        ),
        Sample::counter(
            "towline_map_written_bytes",
            "Bytes of change maps saved to disk since the ring was made.",
            get(Counter::MapWrittenBytes),
        ),
        Sample::counter(
            "towline_state_written_bytes",
            "Bytes of state.json and ladder.json written since the ring was made.",
            get(Counter::StateWrittenBytes),
        ),
        Sample::counter(
            "towline_spill_syncs",
            "Times the spill was synced by itself, not by a source's flush.",
            get(Counter::SpillSyncs),
        ),
        Sample::gauge(
            "towline_spill_used_bytes",
            "Bytes of the spill that the target lacks.",
            get(Counter::SpillUsedBytes) as f64,
        ),
        Sample::gauge(
            "towline_spill_bytes",
            "Size that the spill may reach.",
            get(Counter::SpillBytes) as f64,
        ),
        Sample::gauge(
            "towline_history_bytes",
            "Bytes of the spill of a ring that was lost, which the target gets first.",
            get(Counter::HistoryBytes) as f64,
        ),
        Sample::gauge(
            "towline_spill_fault",
            "0 while the spill works, 1 while it cannot be written, 2 while it is full.",
            get(Counter::SpillFault) as f64,
        ),
        Sample::gauge(
            "towline_ladder",
            "Where changes go: 0 ring, 1 ring and spill, 2 change map.",
            get(Counter::Rung) as f64,
        ),
        Sample::counter(
            "towline_ladder_steps",
            "Steps between ring, spill and change map.",
            get(Counter::LadderSteps),
        ),
        Sample::gauge(
            "towline_map_dirty_bytes",
            "Blocks waiting in the change map.",
            (get(Counter::DirtyBlocks) * block) as f64,
        ),
        Sample::gauge(
            "towline_map_suspect_bytes",
            "Blocks that are compared with the target before they are sent.",
            (get(Counter::SuspectBlocks) * block) as f64,
        ),
        Sample::gauge(
            "towline_map_claimed_bytes",
            "Blocks on their way.",
            (get(Counter::ClaimedBlocks) * block) as f64,
        ),
        Sample::gauge(
            "towline_active_bytes",
            "Extents that a power loss now would compare.",
            journal.hot_bytes() as f64,
        ),
        Sample::gauge(
            "towline_whole",
            "1 while the journal holds every change.",
            get(Counter::Whole) as f64,
        ),
    ];
    samples.into_iter().map(|sample| sample.with("group", journal.group().to_string())).collect()
}

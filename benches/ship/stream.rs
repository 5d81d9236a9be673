//! Ready batches to a receiver over loopback: network, checks, staging with its fdatasync,
//! and applying to a file, until the last batch is durable and until it is applied.
//! Both sides are in this process: its CPU time is that of both.

use crate::content::{BATCH_BYTES, VOLUME_BYTES, blocks, chain, fill};
use std::sync::Arc;
use std::time::Instant;
use towline_block::{Disk, Epoch, GroupName, VolumeName};
use towline_shipper::batch::{Encoder, Keyring};
use towline_shipper::pki;
use towline_shipper::receiver::{Limits, Promote, ReceiveConfig, Receiver};
use towline_shipper::security::{BoxedConnection, Security, connect};
use towline_shipper::wire::{
    Ack, Hello, Message, PROTOCOL, VolumeSize, read_message, write_message,
};

/// 2 GiB of payload in all.
const BATCHES: u64 = 1024;
/// Sent and not durable: 32 MiB, as a shipper by default.
const WINDOW: u64 = 16;
/// The kernel counts in these: its USER_HZ.
const TICKS_PER_S: f64 = 100.0;

struct Nobody;

impl Promote for Nobody {
    fn promote(&self, _: &[(VolumeName, Arc<dyn Disk>)]) -> towline_shipper::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

pub fn plain() {
    let dir = tempfile::tempdir().expect("a folder");
    measure("plain", dir.path(), Security::InsecureLoopback);
}

pub fn tls() {
    let dir = tempfile::tempdir().expect("a folder");
    let pki = dir.path().join("pki");
    pki::init(&pki, false).expect("a CA");
    pki::issue_receiver(&pki, false).expect("a certificate");
    pki::issue_group(&pki, &group(), false).expect("a certificate");
    measure("TLS", dir.path(), Security::Pki(pki));
}

fn group() -> GroupName {
    "bench".parse().expect("a name")
}

fn measure(name: &str, dir: &std::path::Path, security: Security) {
    let volume: VolumeName = "disk".parse().expect("a name");
    let receiver = Receiver::start(ReceiveConfig {
        listen: Some("127.0.0.1:0".into()),
        from: None,
        state_dir: dir.join("state"),
        group: None,
        targets: vec![(volume.clone(), dir.join("disk.img"))],
        security: security.clone(),
        promote: Arc::new(Nobody),
        limits: Limits::default(),
        keys: Keyring::default(),
    })
    .expect("a receiver");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let address = receiver.address().expect("it listens").to_string();
    let found = runtime.block_on(async {
        let mut stream = connect(&security, &address, &group()).await.expect("it answers");
        let chain = chain();
        let hello = Hello {
            version: PROTOCOL,
            group: group(),
            group_uuid: chain.group,
            session: chain.session,
            epoch: Epoch(1),
            key: None,
            volumes: vec![VolumeSize { name: volume, size_bytes: VOLUME_BYTES }],
        };
        write_message(&mut stream, &Message::Hello(hello)).await.expect("it listens");
        let Some(Message::Welcome(_)) = read_message(&mut stream).await.expect("an answer") else {
            panic!("not welcome");
        };
        ship(stream).await
    });
    receiver.stop();
    for (what, seconds, cpu) in found {
        let bytes = BATCHES as f64 * BATCH_BYTES as f64;
        println!(
            "{:<40} {:>6.2} s {:>8.2} GB/s {:>8.2} GB/s a core of both sides",
            format!("{name}: cut, sent, {what}"),
            seconds,
            bytes / seconds / 1e9,
            bytes / cpu / 1e9
        );
    }
}

/// Encodes and sends with a window; seconds of clock and CPU to durable and to applied.
async fn ship(stream: BoxedConnection) -> [(&'static str, f64, f64); 2] {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let blocks = blocks();
    let mut encoder = Encoder::default();
    let mut chain = chain();
    let (began, cpu) = (Instant::now(), cpu_s());
    let mut durable = None;
    let mut ack = Ack::default();
    let mut next = 1;
    while ack.applied < BATCHES {
        while next <= BATCHES && next - ack.number <= WINDOW {
            let first = (next - 1) * blocks.len() as u64 + 1;
            let batch = fill(&blocks, first, 40_503, encoder.spare());
            let sealed = encoder.encode(batch, &chain, 1).expect("it encodes");
            chain.advance(&sealed);
            let message = Message::Batch(sealed.bytes);
            write_message(&mut writer, &message).await.expect("it listens");
            if let Message::Batch(memory) = message {
                encoder.recycle(memory);
            }
            next += 1;
        }
        match read_message(&mut reader).await.expect("an answer") {
            Some(Message::Ack(new)) => ack = new,
            Some(Message::KeepAlive) => {}
            other => panic!("expected ACK, got {other:?}"),
        }
        if ack.number == BATCHES && durable.is_none() {
            durable = Some((began.elapsed().as_secs_f64(), cpu_s() - cpu));
        }
    }
    let (seconds, cpu_durable) = durable.unwrap_or_default();
    [("durable", seconds, cpu_durable), ("applied", began.elapsed().as_secs_f64(), cpu_s() - cpu)]
}

/// User and system time of this process.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name.split(' ').skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_S
}

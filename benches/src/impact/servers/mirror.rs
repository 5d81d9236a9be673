//! QEMU's storage daemon with a live mirror in the guest's path.
//!
//! The target is nbdkit on a file beside the disk, as our receiver's is. Nothing is
//! copied first (`sync=none`): only what the guest writes is mirrored, as with ours
//! once the baseline is done. Unlike ours the target is not flushed.

use super::plain::{nbdkit_words, words};
use super::{Place, READY_WAIT, Running, wait_until_it_answers};
use crate::impact::child::Process;
use crate::impact::qmp::Qmp;
use crate::nbd_client::NbdUri;
use anyhow::Context;
use serde_json::json;
use std::fs::File;
use std::path::Path;

/// As small as the requests: 64 KiB, the default, sends 14 to 16 times what was
/// written at random, which would be no fair peer.
const GRANULARITY_BYTES: u64 = 4096;

pub(super) fn start(place: &Place<'_>, mode: &str) -> anyhow::Result<Running> {
    let scratch = place.scratch;
    let (socket, target_socket, monitor, target) = (
        scratch.at("nbd.sock"),
        scratch.at("target.sock"),
        scratch.at("qmp.sock"),
        scratch.at("target.raw"),
    );
    let file = File::create(&target).context("cannot make the mirror's target")?;
    file.set_len(scratch.size_bytes)?;
    let mut words = words![place.towline, "bench", "elsewhere"];
    words.extend(nbdkit_words(&target_socket, &target));
    let log = place.log("target");
    let mut nbdkit = Process::start("nbdkit", &words, place.seats.side.as_ref(), &log)?;
    wait_until_it_answers(&mut nbdkit, &NbdUri::unix(&target_socket, ""))?;

    let source = json!({
        "driver": "file", "node-name": "source", "filename": scratch.disk,
        "aio": "io_uring", "cache": {"direct": false},
    });
    let (driver, size) = ("raw", scratch.size_bytes);
    let source = json!({"driver": driver, "node-name": "disk", "size": size, "file": source});
    let mirror_target = json!({
        "driver": "nbd", "node-name": "target", "export": "",
        "server": {"type": "unix", "path": target_socket},
    });
    let export = json!({
        "type": "nbd", "id": "export", "node-name": "disk", "writable": true, "name": "disk0",
    });
    let path = option_value(&monitor);
    let chardev = format!("socket,id=monitor,server=on,wait=off,path={path}");
    let serve = format!("addr.type=unix,addr.path={},max-connections=8", option_value(&socket));
    let words = words![
        "qemu-storage-daemon",
        "--chardev",
        chardev,
        "--monitor",
        "chardev=monitor",
        "--blockdev",
        source.to_string(),
        "--blockdev",
        mirror_target.to_string(),
        "--nbd-server",
        serve,
        "--export",
        export.to_string(),
    ];
    let log = place.log("qsd");
    let mut qsd = Process::start("qemu-storage-daemon", &words, place.seats.server.as_ref(), &log)?;
    let uri = NbdUri::unix(&socket, "disk0");
    wait_until_it_answers(&mut qsd, &uri)?;
    let mut qmp = Qmp::connect(&monitor)?;
    qmp.execute(
        "blockdev-mirror",
        json!({
            "job-id": "mirror", "device": "disk", "target": "target", "sync": "none",
            "copy-mode": mode, "granularity": GRANULARITY_BYTES,
        }),
    )?;
    qsd.wait_until("its mirror is ready", READY_WAIT, || {
        let jobs = qmp.execute("query-jobs", json!({}))?;
        Ok(jobs[0]["status"] == "ready")
    })?;
    let mut running = Running::new(uri);
    running.server_pids.push(qsd.pid());
    running.side_pids.push(nbdkit.pid());
    running.processes.extend([qsd, nbdkit]);
    Ok(running)
}

/// A path inside an option, where commas are doubled.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

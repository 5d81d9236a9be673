//! The receiver of a life: on the host, whose own power stays.

use crate::binary::named;
use crate::relay::free_port;
use crate::{Daemon, PATIENCE, args, run};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STATUS_INTERVAL: Duration = Duration::from_millis(50);

/// Its state, its disks, and the process while it runs.
pub struct Target {
    dir: PathBuf,
    pki: PathBuf,
    pub port: u16,
    volumes: Vec<String>,
    process: Option<Daemon>,
}

impl Target {
    pub fn new(dir: &Path, pki: &Path, volumes: &[String]) -> Result<Target> {
        std::fs::create_dir_all(dir)?;
        Ok(Target {
            dir: dir.to_owned(),
            pki: pki.to_owned(),
            port: free_port(),
            volumes: volumes.to_vec(),
            process: None,
        })
    }

    pub fn images(&self) -> Vec<PathBuf> {
        images(&self.dir, &self.volumes)
    }

    pub fn start(&mut self) {
        if self.process.is_none() {
            self.process = Some(Daemon::ready(&self.args(&self.dir, self.port)));
        }
    }

    fn args(&self, dir: &Path, port: u16) -> Vec<OsString> {
        let mut nbd = OsString::from("unix:");
        nbd.push(dir.join("nbd"));
        let mut all = args!["receive", "--listen", format!("127.0.0.1:{port}")];
        all.extend(args!["--state", dir.join("state"), "--nbd", nbd, "--pki", &self.pki]);
        for (volume, image) in self.volumes.iter().zip(images(dir, &self.volumes)) {
            all.extend(args!["--target", named(volume, &image)]);
        }
        all
    }

    /// Ends it, brings it up alone so that it makes of its disks what it can, and ends that.
    /// Gives its status: `null` before a group was bound.
    pub fn settle(&mut self, kill: bool) -> Result<Value> {
        match self.process.take() {
            Some(process) if kill => process.kill(),
            Some(process) => end(process)?,
            None => {}
        }
        end(Daemon::ready(&self.args(&self.dir, self.port)))?;
        status(&self.dir)
    }

    /// Waits until all that is durable here is applied to the disks.
    pub fn wait_applied(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = status(&self.dir)?;
            if status["lag_bytes"] == 0 && status["done_seq"] == status["durable_seq"] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the receiver does not apply: {status}");
            // A status is a file's content: there is nothing to wait on.
            std::thread::sleep(STATUS_INTERVAL);
        }
    }

    /// Rolls a copy of the disks back to the last point, as a forced takeover would: the
    /// decision is written into the copy's state and the receiver's recovery carries it out.
    /// Settled first. Gives the images of the copy, in `dir`.
    pub fn rehearse_rollback(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir)?;
        run("cp", args!["-a", "--sparse=always", self.dir.join("state"), dir], PATIENCE).ok();
        let copies = images(dir, &self.volumes);
        for (image, copy) in self.images().iter().zip(&copies) {
            run("cp", args!["--sparse=always", image, copy], PATIENCE).ok();
        }
        let file = dir.join("state/receive/state.json");
        let mut state: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        for (volume, copy) in copies.iter().enumerate() {
            state["volumes"][volume]["path"] = json!(copy);
        }
        let position = state["applied"]["point"]["position"].clone();
        ensure!(!position.is_null(), "there is no point in {state}");
        let epoch = state["epoch"].as_u64().context("no epoch")? + 1;
        state["promoted"] = json!({
            "attempt": "rehearsal", "epoch": epoch, "position": position, "rollback": "pending",
        });
        std::fs::write(&file, serde_json::to_vec(&state)?)?;
        end(Daemon::ready(&self.args(dir, free_port())))?;
        let after: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        ensure!(after["promoted"]["rollback"] == "done", "not rolled back: {after}");
        Ok(copies)
    }
}

fn images(dir: &Path, volumes: &[String]) -> Vec<PathBuf> {
    volumes.iter().map(|volume| dir.join(format!("target-{volume}.img"))).collect()
}

fn end(process: Daemon) -> Result<()> {
    let status = process.terminate();
    ensure!(status.success(), "the receiver ended with {status} on SIGTERM");
    Ok(())
}

fn status(dir: &Path) -> Result<Value> {
    let args = args!["status", "--state", dir.join("state"), "--json"];
    let finished = run(crate::towline(), args, PATIENCE);
    if finished.code() == 69 {
        return Ok(Value::Null);
    }
    Ok(finished.exits(0).json()["groups"][0].clone())
}

//! The guest's inside: file system, proxy and shipper.

use super::plan::Cut;
use crate::PATIENCE;
use crate::machine::{HOST_FROM_GUEST, Machine};
use crate::relay::free_port;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use towline_bench::nbd_client::{Client, NbdUri, Options};

/// Where the proxy serves inside the guest.
const GUEST_NBD_PORT: u16 = 10809;
/// Small, so that an overflow is soon reached.
const RING: &str = "4M";
const WINDOW: &str = "2M";
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two looks at the status.
const STATUS_INTERVAL: Duration = Duration::from_millis(300);
/// A status costs the emulated processor as much as many writes: between two of them so many
/// times what the last one took, so that what is waited for has the processor.
const STATUS_REST: u32 = 4;

/// A booted guest with its disk mounted.
pub struct Site {
    machine: Machine,
    group: String,
    port: u16,
    ship_pid: Option<u32>,
}

/// What `towline status` says, as far as it is asked for here.
#[derive(Clone, Debug)]
pub struct View(pub Value);

impl View {
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(0)
    }

    pub fn state(&self) -> String {
        self.0["state"].as_str().unwrap_or("unknown").to_owned()
    }

    /// The target has everything.
    pub fn is_whole(&self) -> bool {
        self.state() == "live"
            && self.number("map_set_bytes") == 0
            && self.number("acked_seq") >= self.number("head_seq")
    }
}

impl Site {
    pub fn boot(initrd: &Path, disk: &Path, group: &str, dir: &Path) -> Result<Site> {
        let port = free_port();
        let disk = format!("nbd:unix:{}", disk.display());
        let mut machine =
            Machine::boot(initrd, &[disk], &[(port, GUEST_NBD_PORT)], &dir.join("guest"))?;
        machine.must("mount -t ext4 /dev/vda /mnt && mkdir -p /mnt/state")?;
        // Dirty pages soon reach the disk's cache, so that a cut finds something there.
        for (knob, hundredths) in [("dirty_writeback", 1), ("dirty_expire", 1)] {
            machine.must(&format!("echo {hundredths} >/proc/sys/vm/{knob}_centisecs"))?;
        }
        Ok(Site { machine, group: group.to_owned(), port, ship_pid: None })
    }

    /// Starts the proxy and waits for its first answer; says how long that took.
    pub fn start_proxy(&mut self, cut: &Cut, spill: &str, volumes: &[String]) -> Result<Duration> {
        let sources: String =
            volumes.iter().map(|name| format!(" --source {name}=/mnt/{name}.img")).collect();
        let line = format!(
            "towline proxy --group {} --state /mnt/state{sources} --nbd 0.0.0.0:{GUEST_NBD_PORT} \
             --ring {RING} --spill {spill} --durability {} --cool-every {}s",
            self.group,
            cut.durability.name(),
            cut.cool_every.as_secs()
        );
        let from = Instant::now();
        self.start(&line)?;
        loop {
            // The emulated network accepts before the proxy listens: only an answer counts.
            let options = Options { timeout: Duration::from_secs(2), ..Options::default() };
            match Client::connect(&self.uri(&volumes[0]), options) {
                Ok(client) => {
                    client.disconnect()?;
                    return Ok(from.elapsed());
                }
                Err(error) => {
                    let alive = self.machine.run("pidof towline")?.status == 0;
                    ensure!(alive, "the proxy has ended: {}", self.machine.last_words());
                    ensure!(from.elapsed() < PATIENCE, "the proxy does not serve: {error}");
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// `options` are added to the command line.
    pub fn start_ship(&mut self, port: u16, options: &str) -> Result<()> {
        let pid = self.start(&format!(
            "towline ship --nice 0 --group {} --state /mnt/state --to {HOST_FROM_GUEST}:{port} --pki /pki \
             --window {WINDOW} {options}",
            self.group
        ))?;
        self.ship_pid = Some(pid);
        Ok(())
    }

    pub fn kill_ship(&mut self) -> Result<()> {
        let pid = self.ship_pid.take().context("no shipper runs")?;
        self.machine.must(&format!("kill -9 {pid}")).map(drop)
    }

    /// Starts a daemon, which speaks on the guest's console; gives its process id.
    fn start(&mut self, line: &str) -> Result<u32> {
        let said = self.machine.must(&format!("{line} </dev/null >/dev/ttyS0 2>&1 & echo $!"))?;
        said.trim().parse().with_context(|| format!("no process id in {said:?}"))
    }

    pub fn uri(&self, volume: &str) -> NbdUri {
        NbdUri::tcp("127.0.0.1", self.port, volume)
    }

    pub fn status(&mut self) -> Result<View> {
        let line = format!("towline status {} --state /mnt/state --json", self.group);
        let text = self.machine.must(&line)?;
        let report: Value =
            serde_json::from_str(&text).with_context(|| format!("no status: {text}"))?;
        Ok(View(report["groups"][0].clone()))
    }

    /// Asks for the status until it is as wanted.
    pub fn wait_status(
        &mut self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&View) -> bool,
    ) -> Result<View> {
        let deadline = Instant::now() + timeout;
        loop {
            let from = Instant::now();
            let view = self.status()?;
            let rest = from.elapsed() * STATUS_REST;
            if wanted(&view) {
                return Ok(view);
            }
            ensure!(
                Instant::now() < deadline,
                "not {what} after {} s: {}; {}",
                timeout.as_secs(),
                view.0,
                self.machine.last_words()
            );
            // A status is a file's content: there is nothing to wait on.
            std::thread::sleep(rest.max(STATUS_INTERVAL));
        }
    }

    /// Every record that the target lacks is sound, in its place and in order.
    pub fn verify_journal(&mut self) -> Result<()> {
        self.machine.must(&format!("towline journal verify /mnt/state/{}", self.group)).map(drop)
    }

    /// The activity map as it stands in the guest's page cache.
    pub fn activity_map(&mut self) -> Result<Vec<u8>> {
        let hex = self.machine.must(&format!("xxd -p /mnt/state/{}/activity.map", self.group))?;
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| {
            let text = String::from_utf8_lossy(pair).into_owned();
            u8::from_str_radix(&text, 16).context("no hexadecimal digits")
        };
        digits.chunks_exact(2).map(byte).collect()
    }

    /// Makes the guest's files durable.
    pub fn sync(&mut self) -> Result<()> {
        self.machine.must("sync").map(drop)
    }

    pub fn cut(self) {
        self.machine.cut();
    }
}

//! A real guest: `scripts/guest` boots it, commands run in it over its control port, and
//! its power can be cut.

use crate::PATIENCE;
use crate::program::run;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The host's loopback, as the guest's emulated network shows it.
pub const HOST_FROM_GUEST: &str = "10.0.2.2";

const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// Between an answer's text and the command's exit status.
const STATUS_MARK: u8 = 0x1e;

/// A running guest. Its power is cut when it is dropped.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    control: UnixStream,
    console: PathBuf,
}

/// What a command in the guest printed (both streams), and its exit status.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub text: String,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest")
}

/// Why no guest can be booted here, if so.
pub fn unavailable() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!("the guest is built for x86_64, this is {}", std::env::consts::ARCH));
    }
    let there = Command::new(script()).arg("is-ready").status();
    let ready = there.is_ok_and(|status| status.success());
    (!ready).then(|| "there is no guest kit: run scripts/setup".to_owned())
}

/// Makes an initramfs of the base and `files`, each `(path, place in the guest)`.
pub fn pack(out: &Path, files: &[(&Path, &str)]) {
    let mut args: Vec<OsString> = vec!["pack".into(), out.into()];
    for (path, place) in files {
        let mut entry = path.as_os_str().to_owned();
        entry.push(":");
        entry.push(place);
        args.push(entry);
    }
    run(script(), args, PATIENCE).ok();
}

impl Machine {
    /// Boots a guest with these disks (as `scripts/guest` takes them) and ports forwarded
    /// `(host, guest)`; its files are named after `name`, which is short: sockets' paths are.
    pub fn boot(
        initrd: &Path,
        disks: &[String],
        forwards: &[(u16, u16)],
        name: &Path,
    ) -> Result<Machine> {
        let (socket, console) = (name.with_extension("control"), name.with_extension("console"));
        // Of an earlier boot.
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(script());
        command.arg("boot").arg("--initrd").arg(initrd).arg("--control").arg(&socket);
        for disk in disks {
            command.arg("--disk").arg(disk);
        }
        for (host, guest) in forwards {
            command.arg("--forward").arg(format!("{host}:{guest}"));
        }
        let log = File::create(&console)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start scripts/guest")?;
        let mut starting = Starting { child: Some(child) };
        let control = starting.connect(&socket, &console)?;
        let child = starting.child.take().context("the emulator is gone")?;
        let mut machine = Machine { child, control, console };
        let greeting = machine.answer_until(|bytes| bytes.ends_with(b"READY\n"));
        greeting.with_context(|| format!("the guest did not boot; {}", machine.last_words()))?;
        Ok(machine)
    }

    /// Runs a line of shell in the guest.
    pub fn run(&mut self, line: &str) -> Result<Answer> {
        ensure!(!line.contains('\n'), "one line at a time: {line:?}");
        self.control.write_all(format!("{line}\n").as_bytes())?;
        let ends = |bytes: &[u8]| {
            bytes.ends_with(b"\n") && bytes.iter().rev().take(8).any(|byte| *byte == STATUS_MARK)
        };
        let bytes = self
            .answer_until(ends)
            .with_context(|| format!("no answer to `{line}`; {}", self.last_words()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (text, status) = text.rsplit_once(char::from(STATUS_MARK)).context("no status")?;
        Ok(Answer { status: status.trim().parse()?, text: text.to_owned() })
    }

    /// As [`Machine::run`], for what must succeed; gives what it printed.
    pub fn must(&mut self, line: &str) -> Result<String> {
        let answer = self.run(line)?;
        ensure!(answer.status == 0, "`{line}` in the guest: {} {}", answer.status, answer.text);
        Ok(answer.text)
    }

    /// SIGKILL of the emulator; returns when it is gone.
    pub fn cut(mut self) {
        self.end();
    }

    fn answer_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while !enough(&bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "it took more than {} s", PATIENCE.as_secs());
            self.control.set_read_timeout(Some(left))?;
            match self.control.read(&mut piece) {
                Ok(0) => bail!("the guest is gone"),
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                // A stopped and continued test is no fault of the guest.
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(bytes)
    }

    /// The end of what the guest's console showed.
    pub fn last_words(&self) -> String {
        let said = std::fs::read(&self.console).unwrap_or_default();
        let from = said.len().saturating_sub(2000);
        format!("its console said last:\n{}", String::from_utf8_lossy(&said[from..]))
    }

    fn end(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// An emulator that is not yet a machine; killed if it does not become one.
struct Starting {
    child: Option<Child>,
}

impl Starting {
    fn connect(&mut self, socket: &Path, console: &Path) -> Result<UnixStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(stream);
            }
            let child = self.child.as_mut().context("there is no emulator")?;
            if let Some(status) = child.try_wait()? {
                let said = std::fs::read_to_string(console).unwrap_or_default();
                bail!("the emulator ended with {status}: {said}");
            }
            ensure!(Instant::now() < deadline, "the emulator does not open {}", socket.display());
            // A socket that appears: there is nothing to wait on.
            std::thread::sleep(CONNECT_INTERVAL);
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

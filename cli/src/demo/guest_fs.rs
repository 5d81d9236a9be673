//! A file system of the guest, really mounted:
//! NBD -> `nbdkit --filter=retry nbd` -> nbdfuse (a file) -> loop device -> ext4.
//!
//! nbdkit's retry filter connects again after a lost server or an error reply, so
//! the mounted file system lives through a killed proxy and through the cutover.
//! Promises: whatever was set up is taken down again, in order, on every way out.

use super::tools;
use anyhow::{Context, bail};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// nbdfuse has connected and shows its file by then.
const APPEAR_WAIT: Duration = Duration::from_secs(15);

/// Seconds (and tries, one a second) after which the guest gives up a lost disk:
/// as patient as the SCSI layer of a guest is by default.
const RETRIES: u32 = 60;

/// Times an unmount is tried while somebody still looks at the mount.
const UNMOUNT_TRIES: u32 = 20;

/// The file that nbdfuse shows, on a loop device.
pub struct LoopDisk {
    fuse: Child,
    fuse_dir: PathBuf,
    device: Option<PathBuf>,
}

/// A mounted file system on a [`LoopDisk`].
pub struct GuestFs {
    mount: PathBuf,
    mounted: bool,
    disk: LoopDisk,
}

/// Whether this machine can mount an NBD export, found out by doing it with an
/// empty disk in memory.
///
/// # Errors
/// The reason why not, for the summary.
pub fn probe(scratch: &Path) -> anyhow::Result<()> {
    for tool in ["nbdfuse", "nbdkit", "losetup", "mount", "umount", "mke2fs", "e2fsck"] {
        if tools::find(tool).is_none() {
            bail!("{tool} is not installed");
        }
    }
    LoopDisk::attach(&scratch.join("probe"), &["memory", "16M"]).map(drop)
}

impl LoopDisk {
    /// Serves nbdkit's `plugin` as a loop device; `dir` is made for it.
    fn attach(dir: &Path, plugin: &[&str]) -> anyhow::Result<LoopDisk> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join("disk");
        let nbdkit = tools::find("nbdkit").context("nbdkit is not installed")?;
        let retries = format!("retries={RETRIES}");
        let fuse = tools::command("nbdfuse")?
            .arg(&file)
            .arg("--command")
            .arg(nbdkit)
            .args(["-s", "--exit-with-parent", "--filter=retry"])
            .args(plugin)
            .args([retries.as_str(), "retry-delay=1", "retry-exponential=no"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of a Ctrl-C, so that the unmounting comes first.
            .process_group(0)
            .spawn()
            .context("cannot start nbdfuse")?;
        let mut disk = LoopDisk { fuse, fuse_dir: dir.to_owned(), device: None };
        let deadline = Instant::now() + APPEAR_WAIT;
        while !file.exists() {
            if let Some(status) = disk.fuse.try_wait()? {
                bail!(
                    "nbdfuse ended with {status}: FUSE is not usable here, or the disk not reachable"
                );
            }
            if Instant::now() >= deadline {
                bail!("nbdfuse shows no disk after {APPEAR_WAIT:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let device = tools::run("losetup", &["--find", "--show", &file.to_string_lossy()])?;
        disk.device = Some(PathBuf::from(device));
        Ok(disk)
    }

    /// Detaches in order, after everything was written; says what went wrong.
    fn detach(&mut self) -> anyhow::Result<()> {
        if let Some(device) = self.device.take() {
            tools::run("losetup", &["--detach", &device.to_string_lossy()])?;
        }
        unmount(&self.fuse_dir)?;
        self.fuse.wait().context("nbdfuse cannot be awaited")?;
        Ok(())
    }
}

impl Drop for LoopDisk {
    /// After [`LoopDisk::detach`] there is nothing left to do; else the disk is
    /// taken away by force: its readers and writers get errors and let go.
    fn drop(&mut self) {
        if matches!(self.fuse.try_wait(), Ok(Some(_))) && self.device.is_none() {
            return;
        }
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
        if let Some(device) = self.device.take() {
            let _ = tools::run("losetup", &["--detach", &device.to_string_lossy()]);
        }
        let _ = tools::run("umount", &["-l", &self.fuse_dir.to_string_lossy()]);
    }
}

impl GuestFs {
    /// Mounts the export `export` at `address` under `dir`.
    pub fn mount(dir: &Path, address: SocketAddr, export: &str) -> anyhow::Result<GuestFs> {
        let uri = format!("uri=nbd://{address}/{export}");
        let disk = LoopDisk::attach(&dir.join("disk"), &["nbd", &uri])?;
        let mount = dir.join("mnt");
        std::fs::create_dir_all(&mount)?;
        let device = disk.device.clone().context("a disk without its loop device")?;
        let mut guest = GuestFs { mount, mounted: false, disk };
        tools::run("mount", &[&device, &guest.mount])?;
        guest.mounted = true;
        Ok(guest)
    }

    pub fn root(&self) -> &Path {
        &self.mount
    }

    /// Bytes that the guest's kernel has written to the disk so far.
    pub fn written_bytes(&self) -> u64 {
        let name = self.disk.device.as_ref().and_then(|device| device.file_name());
        let stat = name.map(|name| Path::new("/sys/block").join(name).join("stat"));
        let text = stat.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        // The seventh figure counts sectors of 512 bytes.
        text.split_whitespace().nth(6).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 512
    }

    /// Syncs, unmounts and detaches, in order.
    pub fn unmount(mut self) -> anyhow::Result<()> {
        unmount(&self.mount)?;
        self.mounted = false;
        self.disk.detach()
    }
}

impl Drop for GuestFs {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        // With the disk gone, what the kernel still waits for fails at once and
        // the unmount cannot hang.
        let _ = self.disk.fuse.kill();
        let _ = self.disk.fuse.wait();
        let _ = tools::run("umount", &["-l", &self.mount.to_string_lossy()]);
    }
}

/// Mounts a copy of a disk for a look inside; unmounts on the way out. The copy is
/// changed: the file system replays its journal, as after a crash.
pub fn look_inside<T>(
    copy: &Path,
    mount: &Path,
    look: impl FnOnce(&Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    std::fs::create_dir_all(mount)?;
    let (copy, at) = (copy.to_string_lossy(), mount.to_string_lossy());
    tools::run("mount", &["-o", "loop", &copy, &at])?;
    let seen = look(mount);
    let unmounted = unmount(mount);
    let seen = seen?;
    unmounted.map(|()| seen)
}

fn unmount(mount: &Path) -> anyhow::Result<()> {
    let path = mount.to_string_lossy();
    let mut tries = 1;
    loop {
        match tools::run("umount", &[&*path]) {
            Ok(_) => return Ok(()),
            Err(error) if tries == UNMOUNT_TRIES => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
        tries += 1;
    }
}

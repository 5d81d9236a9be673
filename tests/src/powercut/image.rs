//! Looking into the guest's file system from outside, without mounting it.

use crate::PATIENCE;
use crate::program::{Finished, debian_command, run_command};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_block::is_zero;

/// One read of an export.
const PIECE_BYTES: u64 = 1 << 20;

/// Makes an ext4 of `size_bytes` that holds what lies in `dir`.
pub fn make(image: &Path, size_bytes: u64, dir: &Path) -> Result<()> {
    File::create(image)?.set_len(size_bytes)?;
    let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0", "-d"];
    let args = args.iter().map(OsStr::new);
    tool("mke2fs", args.chain([dir.as_os_str(), image.as_os_str()])).ok();
    Ok(())
}

/// Replays the file system's own journal, as mounting would; then says what is wrong with
/// it, if anything is.
pub fn replay(image: &Path) -> Result<Option<String>> {
    let image = image.as_os_str();
    let only = ["-y", "-E", "journal_only"].map(OsStr::new);
    let replayed = tool("e2fsck", only.into_iter().chain([image]));
    if replayed.code() > 1 {
        return Ok(Some(format!("the file system's journal cannot be replayed: {replayed}")));
    }
    // Reads only: a check that repairs would hide what was lost.
    let checked = tool("e2fsck", ["-f".as_ref(), "-n".as_ref(), image]);
    Ok((checked.code() != 0).then(|| format!("the file system is damaged: {checked}")))
}

/// Copies a file out of the file system; false when it is not there.
pub fn copy_out(image: &Path, path: &str, to: &Path) -> Result<bool> {
    let command = format!("dump {path} {}", to.to_str().context("a path of odd bytes")?);
    let _ = std::fs::remove_file(to);
    let finished = tool("debugfs", ["-R".as_ref(), command.as_ref(), image.as_os_str()]);
    if !to.exists() {
        return Ok(false);
    }
    if finished.stderr.contains("rror") {
        bail!("{finished}");
    }
    Ok(!finished.stderr.contains("not found"))
}

/// Reads a whole export into a sparse file.
pub fn read_export(uri: &NbdUri, size_bytes: u64, to: &Path) -> Result<()> {
    let mut client = Client::connect(uri, Options::default())?;
    let file = File::create(to)?;
    file.set_len(size_bytes)?;
    let mut offset = 0;
    while offset < size_bytes {
        let len = PIECE_BYTES.min(size_bytes - offset);
        let bytes = client.read(offset, len as usize)?;
        if !is_zero(&bytes) {
            file.write_all_at(&bytes, offset)?;
        }
        offset += len;
    }
    client.disconnect()?;
    Ok(())
}

/// One of e2fsprogs, which others than root lack in their path.
fn tool<'a>(name: &str, args: impl IntoIterator<Item = &'a OsStr>) -> Finished {
    let mut command = debian_command(name);
    command.args(args);
    run_command(command, PATIENCE)
}

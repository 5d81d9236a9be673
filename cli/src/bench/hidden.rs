//! Parts of a measurement that have to be processes of their own.

use crate::config::{self, Latency};
use crate::daemon::Daemon;
use crate::exit::Exit;
use crate::ship::NICE_DEFAULT;
use anyhow::Context;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use towline_block::sys::give_way;
use towline_block::{Access, FileDisk};
use towline_proxy::{ExportConfig, ListenAddr, Server, StartGate};

/// A server before this one may still be ending.
const OWNER_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    #[arg(value_parser = config::listen_arg)]
    address: ListenAddr,
    file: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    latency: Latency,
}

/// The proxy's own server, engine and policies, without a journal.
pub fn serve(args: ServeArgs) -> anyhow::Result<Exit> {
    let daemon = Daemon::prepare("serve")?;
    let disk = Arc::new(FileDisk::open(&args.file, Access::Own { wait: OWNER_WAIT })?);
    let export = ExportConfig { name: "disk0".parse()?, disk, journaled: None };
    let server =
        Server::start_with(vec![export], &[args.address], &StartGate::Open, args.latency.into())?;
    daemon.ready(&format!("{} without a journal", args.file.display()));
    daemon.wait();
    server.stop().context("the last writes may not be durable")?;
    Ok(Exit::Ok)
}

#[derive(Debug, clap::Args)]
pub struct ElsewhereArgs {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// As nice as the shipper.
pub fn elsewhere(args: ElsewhereArgs) -> anyhow::Result<Exit> {
    give_way(NICE_DEFAULT.into())?;
    let [program, words @ ..] = args.words.as_slice() else { anyhow::bail!("no program") };
    let error = Command::new(program).args(words).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

pub fn spin() -> anyhow::Result<Exit> {
    let over = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&over);
    std::thread::spawn(move || {
        // Its owner is gone when this returns, whatever it returns.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end.store(true, Ordering::Relaxed);
    });
    while !over.load(Ordering::Relaxed) {
        // Without a pause instruction: it would let the hypervisor think of a lock.
    }
    Ok(Exit::Ok)
}

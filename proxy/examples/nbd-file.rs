//! Serves raw files over NBD without a journal: the control that the journal's cost
//! is measured against, and a server to try clients on.
//!
//! `nbd-file ADDRESS NAME=PATH...`, PATH as `direct:PATH` past the page cache, where ADDRESS is `unix:PATH` or `HOST:PORT`.
//! Ends when its standard input does.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use towline_block::{Access, Cache, FileDisk};
use towline_proxy::{ExportConfig, Server, StartGate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("usage: nbd-file ADDRESS NAME=PATH...")?.parse()?;
    let mut exports = Vec::new();
    for arg in args {
        let (name, path) = arg.split_once('=').ok_or("give each file as NAME=PATH")?;
        let access = Access::Own { wait: Duration::from_secs(1) };
        let (path, cache) = match path.strip_prefix("direct:") {
            Some(path) => (path, Cache::Direct),
            None => (path, Cache::Page),
        };
        let disk = Arc::new(FileDisk::open_cached(path.as_ref(), access, cache)?);
        exports.push(ExportConfig { name: name.parse()?, disk, journaled: None });
    }
    let server = Server::start(exports, &[address], &StartGate::Open)?;
    eprintln!("ready on {}", server.addresses().join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for volume in server.figures() {
        eprintln!("{} {:?} {:?}", volume.name, volume.counters, volume.shadow.table());
    }
    server.stop()?;
    Ok(())
}

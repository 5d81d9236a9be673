//! A server over fresh disks in a folder of its own.

use super::client::{Client, PATIENCE};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use towline_block::{Access, Cache, FileDisk, NbdUri, Upstream, VolumeId};
use towline_journal::{AttachPolicy, Journal, Options, Source, SpillOptions, unix_now_ns};
use towline_proxy::{ExportConfig, Journaled, ListenAddr, Server, StartGate};

pub const MIB: u64 = 1 << 20;

pub struct Rig {
    pub dir: TempDir,
    pub server: Server,
    pub journal: Option<Arc<Journal>>,
}

impl Rig {
    /// Disks `disk0`, `disk1`, ... of these sizes, without a journal.
    pub fn plain(sizes: &[u64]) -> Rig {
        Rig::start(sizes, false, |_| StartGate::Open)
    }

    pub fn journaled(sizes: &[u64]) -> Rig {
        Rig::start(sizes, true, |_| StartGate::Open)
    }

    /// Disks past the page cache, journaled.
    pub fn direct(sizes: &[u64]) -> Rig {
        let dir = TempDir::new().unwrap();
        Rig::start_cached(dir, sizes, true, Cache::Direct, SpillOptions::OFF, |_| StartGate::Open)
    }

    fn start(sizes: &[u64], journaled: bool, gate: impl Fn(Option<&Journal>) -> StartGate) -> Rig {
        let dir = TempDir::new().unwrap();
        Rig::start_in(dir, sizes, journaled, gate)
    }

    pub fn start_in(
        dir: TempDir,
        sizes: &[u64],
        journaled: bool,
        gate: impl Fn(Option<&Journal>) -> StartGate,
    ) -> Rig {
        Rig::start_with(dir, sizes, journaled, SpillOptions::OFF, gate)
    }

    /// With a spill.
    pub fn start_with(
        dir: TempDir,
        sizes: &[u64],
        journaled: bool,
        spill: SpillOptions,
        gate: impl Fn(Option<&Journal>) -> StartGate,
    ) -> Rig {
        Rig::start_cached(dir, sizes, journaled, Cache::Page, spill, gate)
    }

    fn start_cached(
        dir: TempDir,
        sizes: &[u64],
        journaled: bool,
        cache: Cache,
        spill: SpillOptions,
        gate: impl Fn(Option<&Journal>) -> StartGate,
    ) -> Rig {
        let access = Access::Own { wait: PATIENCE };
        let sources: Vec<Source> = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| {
                let path = dir.path().join(format!("disk{index}.img"));
                Source {
                    name: format!("disk{index}").parse().unwrap(),
                    disk: {
                        drop(FileDisk::open_or_create(&path, *size, access).unwrap());
                        Arc::new(FileDisk::open_cached(&path, access, cache).unwrap())
                    },
                }
            })
            .collect();
        Rig::serve(dir, sources, journaled, spill, gate)
    }

    /// Over the exports of other servers, journaled.
    pub fn over(uris: &[NbdUri]) -> Rig {
        let source = |(index, uri): (usize, &NbdUri)| Source {
            name: format!("disk{index}").parse().unwrap(),
            disk: Arc::new(Upstream::open(uri.clone()).unwrap()),
        };
        let sources = uris.iter().enumerate().map(source).collect();
        let dir = TempDir::new().unwrap();
        Rig::serve(dir, sources, true, SpillOptions::OFF, |_| StartGate::Open)
    }

    fn serve(
        dir: TempDir,
        sources: Vec<Source>,
        journaled: bool,
        spill: SpillOptions,
        gate: impl Fn(Option<&Journal>) -> StartGate,
    ) -> Rig {
        let journal = journaled.then(|| {
            let (journal, _) = Journal::open(Options {
                group: "g".parse().unwrap(),
                state_dir: dir.path().to_owned(),
                ring_dir: dir.path().to_owned(),
                ring_bytes: Some(8 * MIB),
                sources: sources.clone(),
                spill,
                attach: AttachPolicy::Auto,
                cool_every: towline_journal::activity::COOL_EVERY,
                clock: unix_now_ns,
            })
            .unwrap();
            journal
        });
        let exports = sources
            .into_iter()
            .enumerate()
            .map(|(index, Source { name, disk })| ExportConfig {
                name,
                disk,
                journaled: journal
                    .clone()
                    .map(|journal| Journaled { journal, id: VolumeId(index as u16) }),
            })
            .collect();
        let gate = gate(journal.as_deref());
        let address = ListenAddr::Unix(dir.path().join("nbd.sock"));
        let server = Server::start(exports, &[address], &gate).unwrap();
        Rig { dir, server, journal }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn simple(&self) -> Client {
        Client::simple(&self.socket(), "")
    }

    pub fn structured(&self) -> Client {
        Client::structured(&self.socket(), "")
    }

    /// The server still serves: what every test of bad input ends with.
    pub fn assert_serving(&self) {
        let mut client = self.simple();
        assert_eq!(client.write(0, 512, b"still here"), 0);
        assert_eq!(client.read(512, 10).unwrap(), b"still here");
    }

    pub fn open_connections(&self) -> usize {
        self.server.figures().iter().map(|volume| volume.open_connections()).sum()
    }

    /// Waits for what another thread brings about.
    pub fn until(&self, what: &str, mut condition: impl FnMut(&Rig) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

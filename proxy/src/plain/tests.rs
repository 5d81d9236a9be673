//! A memory disk behind the server, and our own client.

use super::*;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use towline_block::NbdUri;
use towline_block::sys::uring::Window;
use towline_block::upstream::{Ask, Client as NbdClient, Connection};

const SIZE: u64 = 4 << 20;

#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicU64,
}

impl PlainDisk for Memory {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> towline_block::Result<()> {
        buf.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> towline_block::Result<()> {
        if bytes == [0xee; 512] {
            return Err(towline_block::Error::new(towline_block::ErrorKind::NoSpace, "full"));
        }
        self.bytes.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&self, extent: Extent) -> towline_block::Result<()> {
        self.bytes.lock().unwrap()[extent.offset as usize..extent.end() as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> towline_block::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn serve(dir: &std::path::Path) -> (PlainServer, Vec<Arc<Memory>>) {
    let memory =
        || Arc::new(Memory { bytes: Mutex::new(vec![0; SIZE as usize]), ..Memory::default() });
    let disks = vec![memory(), memory()];
    let named = disks.iter().enumerate().map(|(index, disk)| {
        let disk: Arc<dyn PlainDisk> = disk.clone();
        (format!("disk{index}").parse().unwrap(), disk)
    });
    let address = ListenAddr::Unix(dir.join("s"));
    let server = PlainServer::start(named.collect(), &[address]).unwrap();
    (server, disks)
}

fn connect(server: &PlainServer, index: usize) -> NbdClient {
    let uri: NbdUri = server.uris()[index].parse().unwrap();
    NbdClient::new(Connection::open(&uri).unwrap()).unwrap()
}

fn write(offset: u64, data: &[u8]) -> Ask {
    Ask::Write { offset, window: Window::new(data.to_vec(), 0, data.len()), fua: false }
}

#[test]
fn two_clients_of_two_exports_read_write_zero_and_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (server, disks) = serve(dir.path());
    let (mut first, mut second) = (connect(&server, 0), connect(&server, 1));
    let big: Vec<u8> = (0..3 << 20).map(|at| (at % 251) as u8).collect();
    let zero = Ask::Zero { extent: Extent::new(512, 2 << 20), keep_allocated: true, fua: true };
    for asks in [vec![write(0, &big)], vec![zero], vec![write(1024, &[5; 512]), Ask::Flush]] {
        assert!(first.ask(asks).unwrap().iter().all(|ended| ended.result.is_ok()));
    }
    let mut expected = big;
    expected[512..512 + (2 << 20)].fill(0);
    expected[1024..1536].fill(5);
    let mut seen = vec![0; expected.len()];
    first.read_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    assert_eq!(disks[0].flushes.load(Ordering::SeqCst), 2, "FUA and the flush");
    second.read_at(&mut seen, 0).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0), "the other disk");
}

#[test]
fn a_failure_of_the_disk_is_the_requests_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _disks) = serve(dir.path());
    let mut client = connect(&server, 0);
    let ended = client.ask(vec![write(0, &[0xee; 512]), write(512, &[1; 512])]).unwrap();
    let errors: Vec<_> = ended
        .iter()
        .map(|ended| ended.result.as_ref().err().and_then(io::Error::raw_os_error))
        .collect();
    assert_eq!(errors, [Some(libc::ENOSPC), None]);
}

#[test]
fn garbage_and_hung_up_clients_end_alone_and_a_stop_ends_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _disks) = serve(dir.path());
    let mut good = connect(&server, 0);
    let mut bad = UnixStream::connect(dir.path().join("s")).unwrap();
    bad.write_all(&[0xff; 64]).unwrap();
    drop(connect(&server, 0));
    good.read_at(&mut [0; 512], 0).unwrap();
    drop(server);
    assert!(good.read_at(&mut [0; 512], 0).is_err());
    assert!(!dir.path().join("s").exists());
}

//! Well-formed requests for what is not there.

use crate::{DISK_BYTES, assert_serves, served};
use towline_bench::nbd_client::{Client, Options, Request};

const EINVAL: u32 = libc::EINVAL as u32;
const ENOSPC: u32 = libc::ENOSPC as u32;

#[test]
fn reads_and_writes_past_the_end_are_refused_with_their_errors() {
    let mut rig = served();
    for structured in [true, false] {
        let options = Options { structured, ..Options::default() };
        let mut client = Client::connect(&rig.source_uri("disk0"), options).unwrap();
        for offset in [DISK_BYTES - 256, DISK_BYTES, DISK_BYTES + 4096, u64::MAX - 100, 1 << 63] {
            let read = client.read(offset, 512).unwrap_err();
            assert_eq!(read.errno(), Some(EINVAL), "read at {offset}: {read}");
            let write = client.write(offset, &[1; 512]).unwrap_err();
            let errno = write.errno();
            assert!(errno == Some(ENOSPC) || errno == Some(EINVAL), "write at {offset}: {write}");
            let zero = Request::WriteZeroes { offset, len: 512, fua: false, no_hole: false };
            let trim = Request::Trim { offset, len: 512, fua: false };
            for request in [zero, trim] {
                let error = client.roundtrip(request).unwrap_err();
                let errno = error.errno();
                assert!(errno == Some(ENOSPC) || errno == Some(EINVAL), "{offset}: {error}");
            }
        }
        // What reaches up to the end is fine.
        client.write(DISK_BYTES - 512, &[9; 512]).unwrap();
        assert_eq!(client.read(DISK_BYTES - 512, 512).unwrap(), vec![9; 512]);
    }
    assert_serves(&mut rig);
}

#[test]
fn a_refused_write_leaves_no_part_behind() {
    let mut rig = served();
    let mut client = rig.client("disk0");
    client.write(DISK_BYTES - 256, &[5; 512]).unwrap_err();
    assert_eq!(client.read(DISK_BYTES - 256, 256).unwrap(), vec![0; 256]);
    drop(client);
    assert_serves(&mut rig);
}

#[test]
fn requests_of_no_length_harm_nothing() {
    let mut rig = served();
    let mut client = rig.client("disk0");
    // The protocol leaves the answer open; there must be one.
    for request in [
        Request::Read { offset: 0, buf: Vec::new() },
        Request::Write { offset: 0, data: &[], fua: true },
        Request::Trim { offset: 0, len: 0, fua: false },
        Request::WriteZeroes { offset: 0, len: 0, fua: false, no_hole: true },
    ] {
        client.submit(request).unwrap();
        drop(client.complete().unwrap());
    }
    drop(client);
    assert_serves(&mut rig);
}

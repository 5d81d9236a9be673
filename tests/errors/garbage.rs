//! Clients that do not speak NBD, and ones that stop in the middle.

use crate::{assert_serves, served};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use towline_tests::{PATIENCE, Rig};

fn connect(rig: &Rig) -> UnixStream {
    let stream = UnixStream::connect(rig.path("proxy.nbd")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until the server ends the connection (or resets it).
fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the server neither answered nor ended the connection: {e}"),
    }
    all
}

/// Ends our half; a server that still writes meets a broken pipe, as it must bear.
fn finish_writing(stream: &UnixStream) {
    // Ended by the server already is as good.
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// Greeting, client flags (fixed newstyle, no zeroes), GO for the default export.
fn enter_transmission(rig: &Rig) -> UnixStream {
    let mut stream = connect(rig);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    let body = [0u8; 6];
    stream
        .write_all(&[b"IHAVEOPT", &7u32.to_be_bytes()[..], &6u32.to_be_bytes(), &body].concat())
        .unwrap();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let kind = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        let len = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).unwrap();
        match kind {
            1 => return stream,
            3 => {}
            other => panic!("GO was answered with {other:#x}"),
        }
    }
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

#[test]
fn a_garbage_handshake_ends_that_connection_only() {
    let mut rig = served();
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        vec![0; 4096],
        [&3u32.to_be_bytes()[..], b"NOTANOPT", &[0xff; 64]].concat(),
    ] {
        let mut stream = connect(&rig);
        // The server may have ended the connection before all is sent.
        let _ = stream.write_all(&garbage);
        finish_writing(&stream);
        read_to_end(&mut stream);
        assert_serves(&mut rig);
    }
}

#[test]
fn an_option_that_claims_four_gigabytes_is_not_waited_for() {
    let mut rig = served();
    let mut stream = connect(&rig);
    let claim = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes(), &[0xff; 4]].concat();
    stream.write_all(&claim).unwrap();
    read_to_end(&mut stream);
    assert_serves(&mut rig);
}

#[test]
fn an_unknown_option_is_answered_and_the_handshake_goes_on() {
    let rig = served();
    let mut stream = connect(&rig);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    let option = [b"IHAVEOPT", &0x7777u32.to_be_bytes()[..], &4u32.to_be_bytes(), b"what"].concat();
    for _ in 0..2 {
        stream.write_all(&option).unwrap();
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let unsupported = (1u32 << 31) | 1;
        assert_eq!(header[12..16], unsupported.to_be_bytes());
        let len = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
        stream.read_exact(&mut vec![0; len as usize]).unwrap();
    }
}

#[test]
fn a_truncated_write_changes_nothing() {
    let mut rig = served();
    rig.client("disk0").write(0, &[0x11; 8192]).unwrap();
    for sent in [0usize, 1, 4095] {
        let mut stream = enter_transmission(&rig);
        let mut bytes = request(1, 1, 0, 4096);
        bytes.extend_from_slice(&vec![0xee; sent]);
        stream.write_all(&bytes).unwrap();
        finish_writing(&stream);
        assert_eq!(read_to_end(&mut stream), b"", "half a write was answered");
    }
    let mut stream = enter_transmission(&rig);
    stream.write_all(&request(1, 1, 0, 4096)[..20]).unwrap();
    finish_writing(&stream);
    read_to_end(&mut stream);
    assert!(rig.client("disk0").read(0, 8192).unwrap() == [0x11; 8192]);
    assert_serves(&mut rig);
}

#[test]
fn a_request_with_a_wrong_magic_ends_that_connection_only() {
    let mut rig = served();
    let mut stream = enter_transmission(&rig);
    let mut bytes = request(0, 1, 0, 512);
    bytes[0] ^= 0xff;
    stream.write_all(&bytes).unwrap();
    finish_writing(&stream);
    read_to_end(&mut stream);
    assert_serves(&mut rig);
}

#[test]
fn an_unknown_command_is_an_error_reply() {
    let mut rig = served();
    let mut stream = enter_transmission(&rig);
    stream.write_all(&request(0x7777, 42, 0, 0)).unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
    assert_eq!(reply[4..8], (libc::EINVAL as u32).to_be_bytes());
    assert_eq!(reply[8..], 42u64.to_be_bytes());
    assert_serves(&mut rig);
}

#[test]
fn an_oversize_payload_is_refused_without_being_stored() {
    let mut rig = served();
    for len in [(32 << 20) + 1, u32::MAX] {
        let mut stream = enter_transmission(&rig);
        stream.write_all(&request(1, 7, 0, len)).unwrap();
        // Either an error reply, or the end: nobody has to read 4 GiB to say no.
        finish_writing(&stream);
        let answer = read_to_end(&mut stream);
        if !answer.is_empty() {
            assert_eq!(answer[..4], 0x6744_6698u32.to_be_bytes(), "len {len}");
            assert_ne!(answer[4..8], [0; 4], "a write of {len} bytes was acknowledged");
        }
        assert_serves(&mut rig);
    }
    assert_eq!(rig.client("disk0").read(0, 4096).unwrap(), vec![0; 4096]);
}

#[test]
fn an_oversize_read_is_an_error_reply() {
    let mut rig = served();
    let mut stream = enter_transmission(&rig);
    stream.write_all(&request(0, 9, 0, u32::MAX)).unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_ne!(reply[4..8], [0; 4], "4 GiB of a disk of 16 MiB");
    assert_serves(&mut rig);
}

#[test]
fn clients_that_vanish_with_requests_in_flight_harm_nobody() {
    let mut rig = served();
    for _ in 0..20 {
        let mut stream = enter_transmission(&rig);
        let requests: Vec<u8> = (0..64).flat_map(|n| request(0, n, 0, 1 << 20)).collect();
        stream.write_all(&requests).unwrap();
        drop(stream);
    }
    assert_serves(&mut rig);
}

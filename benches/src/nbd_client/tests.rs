use super::*;
use crate::memory_server::MemoryServer;
use std::collections::HashMap;

const SIZE: usize = 8 << 20;

fn serve(structured: bool) -> (tempfile::TempDir, MemoryServer) {
    let dir = tempfile::tempdir().unwrap();
    let server = MemoryServer::start(&dir.path().join("nbd.sock"), SIZE, structured);
    (dir, server)
}

fn connect(server: &MemoryServer) -> Client {
    Client::connect(&server.uri, Options::default()).unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

#[test]
fn what_was_written_is_read_back_with_simple_and_structured_replies() {
    for structured in [false, true] {
        let (_dir, server) = serve(structured);
        let mut client = connect(&server);
        assert_eq!(client.is_structured(), structured);
        assert_eq!(client.export().size_bytes, SIZE as u64);
        assert!(client.export().can_fua() && client.export().can_write_zeroes());
        let data = pattern(1_234_567, 1);
        client.write(4321, &data).unwrap();
        client.flush().unwrap();
        assert_eq!(client.read(4321, data.len()).unwrap(), data);
        assert_eq!(client.read(0, 4321).unwrap(), vec![0; 4321]);
        let zero = Request::WriteZeroes { offset: 5000, len: 700_000, fua: true, no_hole: true };
        client.roundtrip(zero).unwrap();
        assert_eq!(client.read(5000, 700_000).unwrap(), vec![0; 700_000]);
        assert_eq!(client.read(705_000, 100).unwrap(), data[705_000 - 4321..][..100]);
        client.disconnect().unwrap();
    }
}

#[test]
fn an_error_reply_carries_its_number_and_text_and_the_connection_goes_on() {
    for structured in [false, true] {
        let (_dir, server) = serve(structured);
        let mut client = connect(&server);
        let error = client.read(SIZE as u64 - 10, 20).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL as u32));
        assert_eq!(error.to_string().contains("outside the disk"), structured, "{error}");
        assert_eq!(client.write(SIZE as u64, &[1]).unwrap_err().errno(), Some(22));
        client.write(0, b"still here").unwrap();
        assert_eq!(client.read(0, 10).unwrap(), b"still here");
    }
}

#[test]
fn an_unknown_export_is_refused_with_the_servers_words() {
    let (_dir, server) = serve(true);
    let uri = NbdUri { export: "other".into(), ..server.uri.clone() };
    let error = Client::connect(&uri, Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("only disk0 is here"), "{error}");
}

#[test]
fn nobody_at_the_address_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let uri = NbdUri::unix(dir.path().join("none"), "");
    let error = Client::connect(&uri, Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("none"), "{error}");
}

/// The server blocks on its replies while the client still has megabytes to send:
/// without reading meanwhile, both would wait for ever.
#[test]
fn large_reads_and_writes_in_one_pipeline_do_not_deadlock() {
    for structured in [false, true] {
        let (_dir, server) = serve(structured);
        let mut client = connect(&server);
        let data = pattern(1 << 20, 9);
        let mut reads = HashMap::new();
        for round in 0..24u64 {
            let offset = (round % 4) << 20;
            client.push(Request::Write { offset, data: &data, fua: false }).unwrap();
            let buf = vec![0xff; 1 << 20];
            reads.insert(client.push(Request::Read { offset, buf }).unwrap(), round);
        }
        let mut completions = 0;
        while client.in_flight() > 0 {
            let completion = client.complete().unwrap();
            completions += 1;
            if reads.remove(&completion.cookie).is_some() {
                assert!(completion.result.unwrap() == data);
            } else {
                assert_eq!(completion.result, Ok(Vec::new()));
            }
        }
        assert_eq!((completions, reads.len()), (48, 0));
    }
}

#[test]
fn a_lost_connection_is_said_and_takes_no_more_requests() {
    let (_dir, server) = serve(true);
    let mut client = connect(&server);
    server.faults.hang_up_every.store(3, std::sync::atomic::Ordering::SeqCst);
    client.write(0, &[1]).unwrap();
    client.write(0, &[2]).unwrap();
    let error = client.write(0, &[3]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::InvalidInput, "one is in flight");
    let error = client.push(Request::Flush).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

#[test]
fn waiting_a_while_for_nothing_leaves_the_connection_good() {
    let (_dir, server) = serve(true);
    let mut client = connect(&server);
    server.faults.hold.store(true, std::sync::atomic::Ordering::SeqCst);
    client.submit(Request::Write { offset: 0, data: b"x", fua: true }).unwrap();
    assert!(client.complete_within(Duration::from_millis(20)).unwrap().is_none());
    server.faults.hold.store(false, std::sync::atomic::Ordering::SeqCst);
    client.complete().unwrap().result.unwrap();
    assert_eq!(client.read(0, 1).unwrap(), b"x");
}

#[test]
fn a_server_that_speaks_another_protocol_is_a_protocol_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = Client::connect(&NbdUri::unix(&path, ""), Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    server.join().unwrap();
}

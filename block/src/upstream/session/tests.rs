//! Each row of the table of replies, and whatever else a server may send.

use super::*;
use crate::upstream::proto::chunk;
use proptest::prelude::*;

fn terms(structured: bool) -> Terms {
    Terms {
        size_bytes: 1 << 20,
        align: 1,
        payload_bytes_max: 1 << 16,
        structured,
        read_only: false,
        can_flush: true,
        can_fua: true,
        can_zero: true,
        multi_conn: true,
    }
}

fn window(len: usize) -> Window {
    Window::new(vec![0xEE; len], 0, len)
}

/// With a read of 8 bytes at 100 as request 3, a write of 4 as 4 and a flush as 5.
fn asked(structured: bool) -> Session {
    let mut session = Session::new(terms(structured));
    session.ask(3, Ask::Read { offset: 100, window: window(8) });
    session.ask(4, Ask::Write { offset: 0, window: window(4), fua: true });
    session.ask(5, Ask::Flush);
    session
}

fn simple(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x6744_6698u32.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(data);
    bytes
}

fn chunk(cookie: u64, flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), bytes].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

fn failure(error: u32, text: &[u8]) -> Vec<u8> {
    [&error.to_be_bytes()[..], &(text.len() as u16).to_be_bytes(), text].concat()
}

/// The answers, whole and byte by byte alike.
fn feed(structured: bool, bytes: &[u8]) -> std::result::Result<Vec<Ended>, Violation> {
    let mut whole = Vec::new();
    let result = asked(structured).feed(bytes, &mut whole);
    let (mut session, mut single) = (asked(structured), Vec::new());
    let by_byte = bytes.iter().try_for_each(|byte| session.feed(&[*byte], &mut single));
    assert_eq!(result, by_byte);
    let told = |ended: &[Ended]| format!("{ended:?}");
    assert_eq!(told(&whole), told(&single));
    result.map(|()| whole)
}

fn read_bytes(ended: &Ended) -> &[u8] {
    match &ended.ask {
        Ask::Read { window, .. } => &window.buf,
        other => panic!("{other:?} is no read"),
    }
}

#[test]
fn requests_have_the_protocols_bytes() {
    let bytes = asked(true).take_unsent();
    assert_eq!(bytes.len(), 3 * 28 + 4);
    let head = [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    assert_eq!(bytes[..16], head);
    assert_eq!(bytes[16..28], [0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 8]);
    // FUA, WRITE.
    assert_eq!(bytes[32..36], [0, 1, 0, 1]);
    assert_eq!(bytes[56..60], [0xEE; 4]);
}

#[test]
fn simple_replies_answer_in_any_order() {
    let bytes = [simple(5, 0, &[]), simple(3, 0, b"datadata"), simple(4, 28, &[])].concat();
    let ended = feed(false, &bytes).unwrap();
    assert_eq!(ended.iter().map(|e| e.id).collect::<Vec<_>>(), [5, 3, 4]);
    assert_eq!(*ended[1].result.as_ref().unwrap(), 8);
    assert_eq!(read_bytes(&ended[1]), b"datadata");
    assert_eq!(ended[2].result.as_ref().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn structured_data_and_holes_may_come_in_any_order_with_others_between() {
    let bytes = [
        chunk(3, 0, chunk::OFFSET_DATA, &data(106, b"yz")),
        chunk(4, 1, chunk::NONE, &[]),
        chunk(3, 0, chunk::OFFSET_HOLE, &hole(102, 4)),
        simple(5, 0, &[]),
        chunk(3, 1, chunk::OFFSET_DATA, &data(100, b"ab")),
    ]
    .concat();
    let ended = feed(true, &bytes).unwrap();
    assert_eq!(ended.iter().map(|e| e.id).collect::<Vec<_>>(), [4, 5, 3]);
    assert_eq!(read_bytes(&ended[2]), b"ab\0\0\0\0yz");
}

#[test]
fn an_error_chunk_fails_its_request_also_after_data_and_of_an_unknown_kind() {
    for kind in [chunk::ERROR, chunk::ERROR_BIT + 99] {
        let bytes = [
            chunk(3, 0, chunk::OFFSET_DATA, &data(100, b"abcd")),
            chunk(3, 0, kind, &failure(5, b"bad sector")),
            chunk(3, 1, chunk::NONE, &[]),
        ]
        .concat();
        let ended = feed(true, &bytes).unwrap();
        assert_eq!(ended[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}

#[test]
fn what_breaks_the_protocol_is_a_violation() {
    let offset_data = |offset, bytes: &[u8]| chunk(3, 1, chunk::OFFSET_DATA, &data(offset, bytes));
    let rows: Vec<(bool, Vec<u8>)> = vec![
        (false, b"HTTP/1.1 400 Bad Request\r\n".to_vec()),
        (false, chunk(4, 1, chunk::NONE, &[])),
        (true, simple(3, 0, b"datadata")),
        (true, simple(77, 0, &[])),
        (true, simple(u64::MAX, 0, &[])),
        (true, [simple(4, 0, &[]), simple(4, 0, &[])].concat()),
        (true, chunk(4, 0, chunk::NONE, &[])),
        (true, chunk(4, 1, chunk::NONE, &[0])),
        (true, chunk(4, 1, chunk::OFFSET_DATA, &data(0, b"data"))),
        (true, chunk(5, 1, chunk::OFFSET_HOLE, &hole(0, 4))),
        (true, chunk(3, 1, chunk::NONE, &[])),
        (true, offset_data(100, b"short")),
        (true, offset_data(99, b"datadata")),
        (true, offset_data(101, b"datadata")),
        (true, offset_data(100, b"")),
        (true, offset_data(u64::MAX, b"datadata")),
        (true, chunk(3, 0, chunk::OFFSET_HOLE, &hole(100, 0))),
        (true, chunk(3, 0, chunk::OFFSET_HOLE, &hole(100, u32::MAX))),
        (
            true,
            [
                chunk(3, 0, chunk::OFFSET_DATA, &data(100, b"abcd")),
                chunk(3, 0, chunk::OFFSET_HOLE, &hole(103, 2)),
            ]
            .concat(),
        ),
        (true, chunk(3, 1, chunk::BLOCK_STATUS, &[0; 12])),
        (true, chunk(3, 1, chunk::ERROR, &[0; 5])),
        (true, chunk(3, 1, chunk::ERROR, &[0; 5000])),
        (true, simple(4, 108, &[])),
    ];
    for (structured, bytes) in rows {
        assert!(feed(structured, &bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn what_was_not_answered_comes_back_when_the_connection_is_lost() {
    let mut session = asked(true);
    let mut ended = Vec::new();
    let begun = chunk(3, 0, chunk::OFFSET_DATA, &data(100, b"abcd"));
    session.feed(&[simple(5, 0, &[]), begun].concat(), &mut ended).unwrap();
    // Also what broke the protocol.
    assert!(session.feed(&chunk(3, 1, chunk::NONE, &[]), &mut ended).is_err());
    let lost = session.lost();
    assert_eq!(lost.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(lost.iter().map(|(_, ask)| ask.is_change()).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn more_than_the_largest_payload_is_asked_for_in_part() {
    let mut session = Session::new(terms(false));
    session.ask(0, Ask::Write { offset: 0, window: window(100_000), fua: false });
    assert_eq!(session.take_unsent().len(), 28 + (1 << 16));
    let mut ended = Vec::new();
    session.feed(&simple(0, 0, &[]), &mut ended).unwrap();
    assert_eq!(*ended[0].result.as_ref().unwrap(), 1 << 16);
}

proptest! {
    /// Replies damaged anywhere, or nothing but noise: no panic, and what is answered was
    /// asked for.
    #[test]
    fn any_bytes_leave_a_sound_session(
        structured: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        noise in prop::collection::vec(any::<u8>(), 0..64),
        is_noise: bool,
    ) {
        let mut bytes = [
            chunk(3, 0, chunk::OFFSET_DATA, &data(100, b"abcd")),
            chunk(3, 0, chunk::OFFSET_HOLE, &hole(104, 4)),
            chunk(3, 1, chunk::ERROR, &failure(5, b"text")),
            simple(5, 0, &[]),
            simple(4, 0, &[]),
        ].concat();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.extend(&noise);
        let bytes = if is_noise { noise } else { bytes };
        if let Ok(ended) = feed(structured, &bytes) {
            prop_assert!(ended.iter().all(|answer| (3..=5).contains(&answer.id)));
        }
    }
}

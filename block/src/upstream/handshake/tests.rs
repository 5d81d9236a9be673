//! Scripted servers: bytes in, bytes out.

use super::*;
use crate::upstream::proto::option_reply as reply;
use proptest::prelude::*;
use std::io::Cursor;

/// Answers from a script and takes everything.
struct Script {
    answers: Cursor<Vec<u8>>,
    sent: Vec<u8>,
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.answers.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.sent.extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn haggle(answers: &[u8]) -> (Result<Terms>, Vec<u8>) {
    let mut script = Script { answers: Cursor::new(answers.to_vec()), sent: Vec::new() };
    let uri = "nbd://h/disk".parse().unwrap();
    let result = Haggler { stream: &mut script, uri: &uri }.negotiate();
    (result, script.sent)
}

fn greeting() -> Vec<u8> {
    [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 3]].concat()
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn sizes(least: u32, most: u32) -> Vec<u8> {
    [&[0, 3][..], &least.to_be_bytes(), &4096u32.to_be_bytes(), &most.to_be_bytes()].concat()
}

fn good() -> Vec<u8> {
    [
        greeting(),
        answer(option::STRUCTURED_REPLY, reply::ACK, &[]),
        answer(option::GO, reply::INFO, &export(1 << 20, 0b1_0110_1101)),
        answer(option::GO, reply::INFO, &sizes(512, 64 << 20)),
        answer(option::GO, reply::INFO, &[0, 77, 1, 2, 3]),
        answer(option::GO, reply::ACK, &[]),
    ]
    .concat()
}

#[test]
fn a_handshake_tells_the_exports_terms() {
    let (terms, sent) = haggle(&good());
    let expected = Terms {
        size_bytes: 1 << 20,
        align: 512,
        payload_bytes_max: 32 << 20,
        structured: true,
        read_only: false,
        can_flush: true,
        can_fua: true,
        can_zero: true,
        multi_conn: true,
    };
    assert_eq!(terms.unwrap(), expected);
    let go =
        [b"IHAVEOPT".as_slice(), &[0, 0, 0, 7, 0, 0, 0, 12, 0, 0, 0, 4], b"disk", &[0, 1, 0, 3]]
            .concat();
    assert_eq!(sent, [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 8, 0, 0, 0, 0], &go].concat());
}

#[test]
fn a_server_without_structured_replies_or_sizes_is_taken() {
    let bytes = [
        greeting(),
        answer(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"no"),
        answer(option::GO, reply::INFO, &export(100, 0b101)),
        answer(option::GO, reply::ACK, &[]),
    ]
    .concat();
    let terms = haggle(&bytes).0.unwrap();
    assert_eq!((terms.align, terms.payload_bytes_max), (1, 32 << 20));
    assert!(terms.can_flush && !terms.structured && !terms.can_zero);
}

#[test]
fn refusals_and_nonsense_are_errors_that_say_so() {
    let after_greeting = |rest: &[Vec<u8>]| {
        let ack = answer(option::STRUCTURED_REPLY, reply::ACK, &[]);
        [vec![greeting(), ack], rest.to_vec()].concat().concat()
    };
    let go = |kind, data: &[u8]| answer(option::GO, kind, data);
    let rows = [
        (b"SSH-2.0-OpenSSH_9.6 and so on".to_vec(), "no NBD server"),
        ([b"NBDMAGICIHAVEOPT".as_slice(), &[0, 0]].concat(), "fixed newstyle"),
        (after_greeting(&[go(reply::ERR_UNKNOWN, b"what\x1b[2J")]), "no such export (\"what[2J\")"),
        (after_greeting(&[go(reply::ERR_TLS_REQD, &[])]), "TLS"),
        (after_greeting(&[go(reply::ACK, &[])]), "breaks the protocol"),
        (after_greeting(&[go(reply::SERVER, &[])]), "breaks the protocol"),
        (after_greeting(&[go(reply::INFO, &[0])]), "breaks the protocol"),
        (after_greeting(&[go(reply::INFO, &[0, 0, 1])]), "breaks the protocol"),
        (after_greeting(&[answer(option::LIST, reply::ACK, &[])]), "breaks the protocol"),
        (after_greeting(&[go(reply::INFO, &vec![0; 20_000])]), "breaks the protocol"),
        (after_greeting(&vec![go(reply::INFO, &[0, 9]); 100]), "breaks the protocol"),
        (
            after_greeting(&[go(reply::INFO, &export(u64::MAX, 5)), go(reply::ACK, &[])]),
            "breaks the protocol",
        ),
        (
            after_greeting(&[
                go(reply::INFO, &export(4096, 5)),
                go(reply::INFO, &sizes(3, 9)),
                go(reply::ACK, &[]),
            ]),
            "breaks the protocol",
        ),
    ];
    for (bytes, says) in rows {
        let error = haggle(&bytes).0.unwrap_err();
        assert!(error.to_string().contains(says), "{error} instead of {says}");
        assert_eq!(error.kind(), ErrorKind::Open, "{error}");
    }
}

#[test]
fn a_handshake_cut_anywhere_is_an_unreachable_server() {
    let bytes = good();
    for len in 0..bytes.len() {
        assert_eq!(haggle(&bytes[..len]).0.unwrap_err().kind(), ErrorKind::Unreachable, "{len}");
    }
}

proptest! {
    #[test]
    fn any_damage_ends_in_terms_that_hold_or_an_error(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = good();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(terms) = haggle(&bytes).0 {
            prop_assert!(terms.align.is_power_of_two());
            prop_assert!(terms.payload_bytes_max >= terms.align);
            prop_assert_eq!(terms.payload_bytes_max % terms.align, 0);
        }
    }
}

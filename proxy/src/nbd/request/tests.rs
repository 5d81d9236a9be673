use super::*;
use proptest::prelude::*;

const SIZE: u64 = 1 << 30;
const TERMS: Terms =
    Terms { size_bytes: SIZE, read_only: false, structured: true, allocation: true };

fn raw(command: u16, flags: u16, offset: u64, length: u32) -> RawRequest {
    RawRequest { flags, command, cookie: 1, offset, length }
}

fn error_of(command: u16, flags: u16, offset: u64, length: u32) -> Errno {
    validate(&raw(command, flags, offset, length), &TERMS).unwrap_err().error
}

fn encode(request: &RawRequest) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(request.flags.to_be_bytes());
    bytes.extend(request.command.to_be_bytes());
    bytes.extend(request.cookie.to_be_bytes());
    bytes.extend(request.offset.to_be_bytes());
    bytes.extend(request.length.to_be_bytes());
    bytes
}

#[test]
fn a_write_past_the_end_is_no_space_and_a_read_is_invalid() {
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
        if length <= PAYLOAD_BYTES_MAX {
            assert_eq!(error_of(command::WRITE, 0, offset, length), Errno::NoSpace);
        }
        assert_eq!(error_of(command::WRITE_ZEROES, 0, offset, length), Errno::NoSpace);
        assert_eq!(error_of(command::READ, 0, offset, length), Errno::Inval);
        assert_eq!(error_of(command::TRIM, 0, offset, length), Errno::Inval);
        assert_eq!(error_of(command::BLOCK_STATUS, 0, offset, length), Errno::Inval);
    }
}

#[test]
fn only_documented_flags_are_taken() {
    for bit in 0..16 {
        let flag = 1 << bit;
        let taken = |command| validate(&raw(command, flag, 0, 512), &TERMS).is_ok();
        assert_eq!(taken(command::READ), flag == command_flag::FUA || flag == command_flag::DF);
        assert_eq!(taken(command::WRITE), flag == command_flag::FUA);
        assert_eq!(taken(command::TRIM), flag == command_flag::FUA);
        let zero = flag == command_flag::FUA || flag == command_flag::NO_HOLE;
        assert_eq!(taken(command::WRITE_ZEROES), zero);
        let status = flag == command_flag::FUA || flag == command_flag::REQ_ONE;
        assert_eq!(taken(command::BLOCK_STATUS), status);
    }
}

#[test]
fn df_needs_structured_replies() {
    let plain = Terms { structured: false, allocation: false, ..TERMS };
    let request = raw(command::READ, command_flag::DF, 0, 512);
    assert_eq!(validate(&request, &plain).unwrap_err().error, Errno::Inval);
    let status = raw(command::BLOCK_STATUS, 0, 0, 512);
    assert_eq!(validate(&status, &plain).unwrap_err().error, Errno::Inval);
}

#[test]
fn a_payload_of_32_mib_is_taken_and_one_byte_more_is_not() {
    for command in [command::READ, command::WRITE] {
        validate(&raw(command, 0, 0, PAYLOAD_BYTES_MAX), &TERMS).unwrap();
        assert_eq!(error_of(command, 0, 0, PAYLOAD_BYTES_MAX + 1), Errno::Inval);
    }
    validate(&raw(command::TRIM, 0, 0, SIZE as u32), &TERMS).unwrap();
}

#[test]
fn unknown_commands_are_invalid_and_carry_no_payload() {
    for command in [5, 8, 9, 1000, u16::MAX] {
        assert_eq!(error_of(command, 0, 0, 512), Errno::Inval);
        assert_eq!(raw(command, 0, 0, 512).total_bytes(), REQUEST_FRAME_BYTES);
    }
}

#[test]
fn a_read_only_export_refuses_changes_as_not_permitted() {
    let terms = Terms { read_only: true, ..TERMS };
    for command in [command::WRITE, command::WRITE_ZEROES, command::TRIM] {
        let refusal = validate(&raw(command, 0, 0, 512), &terms).unwrap_err();
        assert_eq!(refusal.error, Errno::Perm);
    }
    validate(&raw(command::FLUSH, 0, 0, 0), &terms).unwrap();
}

#[test]
fn byte_granularity_is_served() {
    let request = validate(&raw(command::WRITE, 0, 7, 3), &TERMS).unwrap();
    assert_eq!(request, Request::Write { extent: Extent::new(7, 3), fua: false });
}

#[test]
fn a_wrong_magic_is_told_from_its_first_wrong_byte() {
    assert_eq!(RawRequest::parse(&[]), Ok(None));
    assert_eq!(RawRequest::parse(&[0x25, 0x60]), Ok(None));
    assert_eq!(RawRequest::parse(&[0x25, 0x61]), Err(BadMagic));
    assert_eq!(RawRequest::parse(b"GET / HTTP/1.1"), Err(BadMagic));
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut framed = REQUEST_MAGIC.to_be_bytes().to_vec();
        framed.extend(&bytes);
        for bytes in [&bytes, &framed] {
            if let Ok(Some(raw)) = RawRequest::parse(bytes) {
                let _ = validate(&raw, &TERMS);
            }
        }
    }

    #[test]
    fn what_is_valid_lies_inside_the_export(
        command in 0u16..10, flags in 0u16..32, offset in any::<u64>(), length in any::<u32>(),
        near in any::<bool>(),
    ) {
        let offset = if near { offset % (SIZE + 4) } else { offset };
        let request = raw(command, flags, offset, length);
        prop_assert_eq!(RawRequest::parse(&encode(&request)), Ok(Some(request)));
        match validate(&request, &TERMS) {
            Ok(Request::Read { extent } | Request::Write { extent, .. }) => {
                prop_assert!(extent.within(SIZE));
                prop_assert!(extent.len <= u64::from(PAYLOAD_BYTES_MAX));
            }
            Ok(Request::Zero { extent, .. } | Request::Trim { extent, .. }
                | Request::Status { extent, .. }) => prop_assert!(extent.within(SIZE)),
            Ok(Request::Flush | Request::Disconnect) | Err(_) => {}
        }
    }
}

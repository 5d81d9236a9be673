use super::*;

const UUID: [u8; 16] = [1; 16];
const BYTES: u64 = DEVICE_SEGMENTS_OFFSET + 2 * SEGMENT_BYTES + 12_288;

fn blank() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    (dir, path)
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_blank_device_is_taken_and_known_again() {
    let (_dir, path) = blank();
    let mut device = Device::own(&path).unwrap();
    assert_eq!((device.segments(), &device.holder), (2, &Holder::Blank));
    device.check(None, false).unwrap();
    let id = device.claim(UUID, "erp", 7).unwrap();
    assert_eq!(device.id_of(&UUID), Some(id));
    drop(device);
    let again = Device::own(&path).unwrap();
    assert_eq!(again.id_of(&UUID), Some(id));
    again.check(Some(&UUID), false).unwrap();
    assert_eq!(again.id_of(&[2; 16]), None);
}

#[test]
fn a_device_with_one_owner_has_no_second() {
    let (_dir, path) = blank();
    let first = Device::own(&path).unwrap();
    assert_eq!(Device::own(&path).unwrap_err().kind(), ErrorKind::Busy);
    Device::view(&path).unwrap();
    drop(first);
    Device::own(&path).unwrap();
}

#[test]
fn a_device_that_holds_anything_at_either_end_is_refused_untouched_unless_told() {
    for at in [0, 1024, 65_536, BLANK_BYTES - 1, BYTES - BLANK_BYTES, BYTES - 4096, BYTES - 1] {
        let (_dir, path) = blank();
        patch(&path, at, &[1]);
        let before = if at == 1024 { std::fs::read(&path).unwrap() } else { Vec::new() };
        let mut device = Device::own(&path).unwrap();
        let error = device.check(None, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{at}");
        assert!(error.to_string().contains("--spill-overwrite"), "{error}");
        if at == 1024 {
            assert!(std::fs::read(&path).unwrap() == before, "not a byte was touched");
        }
        device.check(None, true).unwrap();
        device.claim(UUID, "erp", 7).unwrap();
        assert!(Device::view(&path).unwrap().id_of(&UUID).is_some());
    }
}

#[test]
fn another_group_s_device_is_refused_by_name_and_a_newer_one_whatever_is_said() {
    let (_dir, path) = blank();
    Device::own(&path).unwrap().claim([9; 16], "web", 7).unwrap();
    let device = Device::own(&path).unwrap();
    let error = device.check(Some(&UUID), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("group web"), "{error}");
    device.check(Some(&UUID), true).unwrap();
    drop(device);
    patch(&path, 8, &[2]);
    let device = Device::own(&path).unwrap();
    for overwrite in [false, true] {
        let error = device.check(Some(&[9; 16]), overwrite).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Newer);
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_found() {
    let page = header(UUID, Hex16([3; 16]), "erp", 5);
    assert!(matches!(parse(page.as_bytes()), Some(Holder::Group { .. })));
    for bit in 0..PAGE * 8 {
        let mut bytes = page.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = parse(&bytes);
        assert!(matches!(found, None | Some(Holder::Newer)), "bit {bit}: {found:?}");
    }
}

#[test]
fn what_has_no_room_for_a_segment_is_refused() {
    let (_dir, path) = blank();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(DEVICE_SEGMENTS_OFFSET + SEGMENT_BYTES - 1).unwrap();
    assert_eq!(Device::own(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// Its checksum is of all the rest.
#[test]
fn the_documents_example_is_what_is_written() {
    let page = header(UUID, Hex16([3; 16]), "g", 1);
    let crc: String = page.crc.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let document = include_str!("../../../../docs/formats/spill.md");
    let line = format!("0fe0  {0} {0} {0} {1}{crc}\n", "0".repeat(16), "0".repeat(8));
    assert!(document.contains(&line), "the document lacks {line}");
}

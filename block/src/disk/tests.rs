use super::*;

const OWN: Access = Access::Own { wait: Duration::from_millis(20) };

fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    (dir, path)
}

#[test]
fn one_owner_at_a_time() {
    let (_dir, path) = image(1 << 20);
    let first = FileDisk::open(&path, OWN).unwrap();
    assert_eq!(FileDisk::open(&path, OWN).unwrap_err().kind(), ErrorKind::Busy);
    FileDisk::open(&path, Access::Read).unwrap();
    drop(first);
    FileDisk::open(&path, OWN).unwrap();
}

#[test]
fn nothing_is_read_or_written_past_the_end() {
    let (_dir, path) = image(1000);
    let disk = FileDisk::open(&path, OWN).unwrap();
    disk.write_at(&[7; 10], 990).unwrap();
    assert_eq!(disk.write_at(&[7; 11], 990).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(
        disk.zero(Extent::new(u64::MAX, 2), false).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let mut buf = [0; 10];
    disk.read_at(&mut buf, 990).unwrap();
    assert_eq!(buf, [7; 10]);
}

#[test]
fn large_writes_past_the_page_cache_and_small_ones_through_it_see_each_other() {
    use crate::buffer::{AlignedBuf, DIRECT_ALIGN};
    // The tail is no whole sector: it goes the other way.
    let size = 4 * DIRECT_ALIGN as u64 + 10;
    let (_dir, path) = image(size);
    let disk = FileDisk::open(&path, OWN).unwrap();
    let mut buf = AlignedBuf::new(3 * DIRECT_ALIGN + 10);
    buf.as_mut_slice().fill(1);
    let mut expected = vec![0; size as usize];
    let read = |disk: &FileDisk| {
        let mut now = vec![0xff; size as usize];
        disk.read_at(&mut now, 0).unwrap();
        now
    };
    for round in 0..3u8 {
        disk.write_at(&[7 + round; 100], 5000).unwrap();
        expected[5000..5100].fill(7 + round);
        assert_eq!(read(&disk), expected);
        disk.write_passing(buf.as_slice(), DIRECT_ALIGN as u64).unwrap();
        expected[DIRECT_ALIGN..].fill(1);
        assert_eq!(read(&disk), expected);
        // Neither address nor offset is aligned.
        disk.write_passing(&buf.as_slice()[1..9], 4097).unwrap();
        disk.write_at(&[round; 9], 4095).unwrap();
        expected[4095..4104].fill(round);
        assert_eq!(read(&disk), expected);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
    let past = disk.write_passing(buf.as_slice(), 2 * DIRECT_ALIGN as u64).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::InvalidInput);
}

#[test]
fn zeroed_ranges_read_zero_and_their_edges_stay() {
    for keep_allocated in [false, true] {
        let (_dir, path) = image(256 * 1024);
        let disk = FileDisk::open(&path, OWN).unwrap();
        disk.write_at(&vec![0xaa; 256 * 1024], 0).unwrap();
        disk.zero(Extent::new(100, 100_000), keep_allocated).unwrap();
        assert!(reads_zero(&disk, Extent::new(100, 100_000)).unwrap());
        let mut edge = [0; 1];
        disk.read_at(&mut edge, 99).unwrap();
        assert_eq!(edge, [0xaa]);
        disk.read_at(&mut edge, 100_100).unwrap();
        assert_eq!(edge, [0xaa]);
    }
}

#[test]
fn runs_tell_holes_from_data() {
    let (_dir, path) = image(1 << 20);
    let disk = FileDisk::open(&path, OWN).unwrap();
    disk.write_at(&[1; 65536], 512 * 1024).unwrap();
    assert_eq!(disk.run_at(0).unwrap(), Run { is_data: false, end: 512 * 1024 });
    assert_eq!(disk.run_at(512 * 1024).unwrap(), Run { is_data: true, end: 576 * 1024 });
    assert_eq!(disk.run_at(600 * 1024).unwrap(), Run { is_data: false, end: 1 << 20 });
    assert_eq!(disk.run_at(1 << 20).unwrap(), Run { is_data: false, end: 1 << 20 });
}

#[test]
fn a_target_of_another_size_is_refused_and_named() {
    let (_dir, path) = image(4096);
    let error = FileDisk::open_or_create(&path, 8192, OWN).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("disk.raw has 4096 bytes, but 8192"), "{error}");
}

#[test]
fn a_directory_is_not_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(FileDisk::open(dir.path(), Access::Read).unwrap_err().kind(), ErrorKind::Open);
}

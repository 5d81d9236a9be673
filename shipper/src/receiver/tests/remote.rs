//! Targets behind an NBD server that dies between any two requests.

use super::crash::Lab;
use super::export::{Death, Exports, FLAGS, Offer};
use super::history::{History, SIZES, Volumes, check, random};
use crate::error::{ErrorKind, Result};
use crate::receiver::medium::Target;
use crate::receiver::recovery::Store;
use crate::receiver::remote::Remote;
use crate::receiver::target::TargetDisk;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use towline_block::Extent;
use towline_block::upstream::proto::transmission_flag;

fn path(exports: &Exports, index: usize) -> PathBuf {
    exports.uri(index).to_string().into()
}

fn create(lab: &Lab, exports: &Exports) -> Store {
    let open = |index: usize| {
        let disk = TargetDisk::open_or_create(&path(exports, index), SIZES[index]).unwrap();
        Target::new(format!("disk{index}").parse().unwrap(), disk, lab.medium.clone())
    };
    lab.create_on((0..2).map(open).collect())
}

fn durable(exports: &Exports) -> Volumes {
    [0, 1].map(|index| exports.durable(index))
}

/// Everything staged is applied; a failed step is one that recorded nothing. Answers how many failed.
fn redo(store: &mut Store) -> usize {
    let mut failed = 0;
    loop {
        let before = store.books.get().applied;
        match store.apply.step() {
            Ok(None) => return failed,
            Ok(Some(_)) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
                assert_eq!(store.books.get().applied, before, "{error}");
                failed += 1;
                assert!(failed < 10, "{error}");
            }
        }
    }
}

/// Applies a history batch by batch; what was recorded is durable at the server. `kills`: the
/// receiver dies as well, whenever the server did. Answers how many steps failed.
fn apply_all(lab: &Lab, exports: &Exports, history: &History, kills: bool) -> usize {
    let mut failures = 0;
    let mut store = create(lab, exports);
    for sealed in &history.batches {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
        store.staging.sync().unwrap();
        if kills && store.apply.step().is_err() {
            failures += 1;
            drop(store);
            store = retry(|| {
                super::super::recovery::open(
                    &lab.layout,
                    &lab.medium,
                    &lab.limits,
                    &crate::batch::Keyring::default(),
                )
            })
            .unwrap();
        }
        failures += redo(&mut store);
        assert_eq!(store.apply.applied().number, sealed.number);
        check(history, &durable(exports), sealed.number).unwrap();
    }
    let point = store.apply.applied().point.unwrap().number;
    retry(|| store.apply.marks.roll_back(point, &store.apply.targets));
    check(history, &durable(exports), point).unwrap();
    failures
}

fn retry<T>(mut step: impl FnMut() -> Result<T>) -> T {
    (0..10).find_map(|_| step().ok()).expect("the server is back")
}

fn history() -> History {
    History::scenario(17)
}

/// What a run without a death asks the server.
fn requests(history: &History) -> u64 {
    let lab = Lab::new();
    let exports = Exports::serve(lab.dir.path(), &SIZES, Offer::default());
    assert_eq!(apply_all(&lab, &exports, history, false), 0);
    exports.requests()
}

fn dies_everywhere(kills: bool) {
    let history = history();
    let count = requests(&history);
    assert!(count > 50, "{count} requests");
    let (mut noticed, mut unnoticed) = (0, 0);
    for number in 0..count {
        // With two kills at a time, every other death.
        let deaths = [Death::Before(number), Death::After(number)];
        let wanted = if kills { &deaths[number as usize % 2..][..1] } else { &deaths[..] };
        for death in wanted.iter().copied() {
            let lab = Lab::new();
            let exports = Exports::serve(lab.dir.path(), &SIZES, Offer::default());
            exports.dies(death, number + 7);
            match apply_all(&lab, &exports, &history, kills) {
                0 => unnoticed += 1,
                _ => noticed += 1,
            }
            assert_eq!(exports.deaths_left(), 0, "{death:?} came");
        }
    }
    assert!(noticed > 0, "a death in the middle of a group fails its step");
    assert!(unnoticed > 0, "a death between two groups is nobody's failure");
}

#[test]
fn a_server_that_dies_between_any_two_requests_costs_nothing_that_was_recorded() {
    dies_everywhere(false);
}

#[test]
fn a_server_and_a_receiver_that_die_together_cost_nothing_that_was_recorded() {
    dies_everywhere(true);
}

fn remote(dir: &Path, size: u64, offer: Offer) -> (Exports, Remote) {
    let exports = Exports::serve(dir, &[size], offer);
    let remote = Remote::open(exports.uri(0)).unwrap();
    (exports, remote)
}

#[test]
fn what_was_written_and_not_flushed_is_called_durable_by_no_later_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (exports, remote) = remote(dir.path(), 1 << 20, Offer::default());
    remote.write_at(&[1; 512], 0).unwrap();
    let mut seen = [0; 512];
    remote.read_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [1; 512], "a read comes after the writes before it");
    exports.kill(0);
    for _ in 0..3 {
        assert!(remote.flush().is_err());
        assert!(remote.write_at(&[1; 512], 4096).is_err());
        assert!(remote.read_at(&mut seen, 0).is_err());
    }
    remote.start_over();
    remote.write_at(&[2; 512], 0).unwrap();
    remote.flush().unwrap();
    assert_eq!(exports.durable(0)[..512], [2; 512]);
}

#[test]
fn a_server_that_is_late_with_a_change_of_before_writes_over_nothing_newer() {
    const COUNT: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let (exports, remote) = remote(dir.path(), 1 << 20, Offer::default());
    let write = |byte: u8| {
        (0..COUNT).try_for_each(|n| remote.write_at(&[byte; 512], n * 4096))?;
        remote.flush()
    };
    exports.fail_and_hold();
    assert!(write(1).is_err());
    remote.start_over();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            exports.release();
        });
        write(1).unwrap();
        write(2).unwrap();
        held.join().unwrap();
    });
    // All that was ever asked is done: of three rounds of changes, and of two flushes.
    while exports.requests() < 3 * COUNT + 2 {
        std::thread::yield_now();
    }
    remote.flush().unwrap();
    let durable = exports.durable(0);
    assert!((0..COUNT as usize).all(|n| durable[n * 4096..][..512] == [2; 512]));
}

/// Writes by `write` to a server that stands still; once it goes on, what is written again is there.
fn stands_still(write: impl Fn(&Remote, u8) -> Result<()>) {
    let dir = tempfile::tempdir().unwrap();
    let (exports, remote) = remote(dir.path(), 4 << 20, Offer::default());
    let remote = remote.with_patience(Duration::from_millis(50));
    exports.hold();
    assert!(write(&remote, 1).is_err());
    for _ in 0..2 {
        remote.start_over();
        let error = write(&remote, 1).unwrap_err().to_string();
        assert!(error.contains("has answered none of"), "{error}");
    }
    exports.release();
    remote.start_over();
    write(&remote, 2).unwrap();
    let seen = exports.durable(0);
    let written = (0..seen.len()).filter(|at| seen[*at] != 0).map(|at| seen[at]);
    assert!(written.clone().count() > 0 && written.into_iter().all(|byte| byte == 2));
}

#[test]
fn a_server_that_answers_nothing_is_waited_for_and_nothing_is_written_beside_it() {
    stands_still(|remote, byte| {
        (0..8).try_for_each(|n| remote.write_at(&[byte; 512], n * 4096))?;
        remote.flush()
    });
}

#[test]
fn a_server_that_takes_nothing_more_is_waited_for_and_asked_on_a_new_connection() {
    stands_still(|remote, byte| {
        (0..4).try_for_each(|n| remote.write_at(&[byte; 1 << 20], n << 20))?;
        remote.flush()
    });
}

#[test]
fn a_server_that_was_restarted_after_a_flush_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let (exports, remote) = remote(dir.path(), 1 << 20, Offer::default());
    remote.write_at(&[1; 512], 0).unwrap();
    remote.flush().unwrap();
    exports.kill(0);
    let mut seen = [0; 512];
    remote.read_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [1; 512]);
    exports.kill(0);
    remote.flush().unwrap();
    exports.kill(5);
    assert!(remote.read_at(&mut seen, 0).is_err(), "it is away");
}

#[test]
fn another_image_behind_the_same_uri_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (exports, remote) = remote(dir.path(), 1 << 20, Offer::default());
    remote.flush().unwrap();
    exports.kill(0);
    exports.resize(0, 2 << 20);
    let error = remote.read_at(&mut [0; 512], 0).unwrap_err().to_string();
    assert!(error.contains("has 2097152 bytes now, and had 1048576"), "{error}");
}

#[test]
fn exports_that_cannot_be_targets_are_refused_with_what_to_do() {
    for (flags, align, size, said) in [
        (FLAGS | transmission_flag::READ_ONLY, 1, 1 << 20, "so that it may be written"),
        (transmission_flag::HAS_FLAGS, 1, 1 << 20, "it cannot flush"),
        (FLAGS, 65536, 1 << 20, "smaller block size"),
        (FLAGS, 4096, (1 << 20) + 512, "no multiple"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let offer = Offer { flags, align, ..Offer::default() };
        let exports = Exports::serve(dir.path(), &[size], offer);
        let error = TargetDisk::open(&path(&exports, 0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let exports = Exports::serve(dir.path(), &[1 << 20], Offer::default());
    let error = TargetDisk::open_or_create(&path(&exports, 0), 2 << 20).unwrap_err().to_string();
    assert!(error.contains("has 1048576 bytes, but 2097152 are needed"), "{error}");
}

#[test]
fn changes_of_any_place_and_length_come_out_right_whatever_the_server_offers() {
    const SIZE: u64 = 256 << 10;
    let offers = [
        (1, 1 << 20, true),
        (1, 4096, false),
        (512, 8192, true),
        (4096, 4096, false),
        (4096, 1 << 20, true),
    ];
    for (align, payload_bytes_max, zeroes) in offers {
        for at_once in [1, 16] {
            let dir = tempfile::tempdir().unwrap();
            let flag = if zeroes { transmission_flag::SEND_WRITE_ZEROES } else { 0 };
            let offer = Offer { flags: FLAGS | flag, align, payload_bytes_max, at_once };
            let (exports, remote) = remote(dir.path(), SIZE, offer);
            let (mut model, mut die) = (vec![0; SIZE as usize], u64::from(align) + 3);
            for round in 0..200u64 {
                let most = if random(&mut die).is_multiple_of(4) { 20_000 } else { 600 };
                let len = random(&mut die) % most;
                let offset = random(&mut die) % (SIZE - len);
                let range = offset as usize..(offset + len) as usize;
                let data: Vec<u8> = (0..len).map(|_| random(&mut die) as u8).collect();
                match random(&mut die) % 8 {
                    0 | 1 => {
                        remote.zero(Extent::new(offset, len), round % 2 == 0).unwrap();
                        model[range].fill(0);
                    }
                    2 => {
                        remote.flush().unwrap();
                        assert!(exports.durable(0) == model, "{offer:?}");
                    }
                    3 | 4 => {
                        let parts: Vec<_> = data.chunks(1 + data.len() / 3).collect();
                        remote.write_run(&parts, offset).unwrap();
                        model[range].copy_from_slice(&data);
                    }
                    _ => {
                        remote.write_at(&data, offset).unwrap();
                        model[range].copy_from_slice(&data);
                    }
                }
            }
            let mut seen = vec![0; 5000];
            remote.read_at(&mut seen, 1234).unwrap();
            assert!(seen == model[1234..6234], "{offer:?}");
            remote.flush().unwrap();
            assert!(exports.durable(0) == model, "{offer:?}");
            for past in
                [remote.write_at(&[1; 2], SIZE - 1), remote.write_run(&[&[1], &[1]], SIZE - 1)]
            {
                assert_eq!(past.unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        }
    }
}

#[test]
fn the_connection_is_handed_over_when_somebody_else_serves_the_export() {
    let dir = tempfile::tempdir().unwrap();
    let (exports, remote) = remote(dir.path(), 1 << 20, Offer::default());
    remote.write_at(&[7; 512], 0).unwrap();
    remote.flush().unwrap();
    exports.hang_up(u64::MAX);
    let served = TargetDisk::Remote(Arc::new(remote)).served();
    let mut seen = [0; 512];
    served.read_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [7; 512]);
}

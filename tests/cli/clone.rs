//! `towline target clone`: the target at a mark as disks, while replication goes on.

use std::path::PathBuf;
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_bench::stamp::{Guest, Plan};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, args};

/// All of it is read many times.
const DISK_BYTES: u64 = 4 << 20;
/// Looks at a clone while the guest goes on.
const ROUNDS: usize = 5;

/// No faster than the target: status would never say live.
fn paced() -> Plan {
    Plan { rate_per_s: Some(500.0), ..Plan::default() }
}

struct Cloned {
    daemon: Daemon,
    socket: PathBuf,
}

impl Cloned {
    #[track_caller]
    fn start(rig: &Rig, name: &str, at: &str) -> Cloned {
        let socket = rig.path(name);
        let state = rig.path("target-state");
        let address = format!("unix:{}", socket.display());
        let all = args!["target", "clone", "--state", state, "--at", at, "--nbd", address];
        Cloned { daemon: Daemon::ready(&all), socket }
    }

    #[track_caller]
    fn client(&self, volume: &str) -> Client {
        Client::connect(&NbdUri::unix(&self.socket, volume), Options::default()).unwrap()
    }

    /// All of a volume.
    #[track_caller]
    fn content(&self, volume: &str) -> Vec<u8> {
        let mut client = self.client(volume);
        let piece = 1 << 20;
        let pieces =
            (0..DISK_BYTES / piece).map(|at| client.read(at * piece, piece as usize).unwrap());
        pieces.collect::<Vec<_>>().concat()
    }

    #[track_caller]
    fn assert_content(&self, rig: &Rig, images: &[Vec<u8>]) {
        for (volume, image) in rig.volumes.iter().zip(images) {
            let content = self.content(volume);
            let at = content.iter().zip(image).position(|(a, b)| a != b);
            assert_eq!(at, None, "{volume} differs from what it was at the mark");
        }
    }
}

/// The source's images while the guest rests and everything is at the target.
#[track_caller]
fn images_at_rest(rig: &Rig, guest: &Guest) -> Vec<Vec<u8>> {
    guest.hold();
    rig.wait_drained();
    rig.volumes.iter().map(|volume| std::fs::read(rig.source(volume)).unwrap()).collect()
}

fn overlays(rig: &Rig) -> usize {
    let clones = rig.path("target-state").join("receive").join("clones");
    std::fs::read_dir(clones).map_or(0, Iterator::count)
}

#[test]
fn clones_show_their_mark_and_their_own_writes_while_the_guest_overwrites_everything() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&paced(), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(200, PATIENCE));
    let mut images = images_at_rest(&rig, &guest);
    rig.mark("m");
    guest.go_on();

    let first = Cloned::start(&rig, "first.nbd", "m");
    let second = Cloned::start(&rig, "second.nbd", "m");
    for _ in 0..ROUNDS {
        first.assert_content(&rig, &images);
        assert!(guest.wait_for_acks(300, PATIENCE), "{:?}", guest.progress());
    }
    let mut writer = first.client("disk1");
    writer.write(12_345, &[7; 100_000]).unwrap();
    writer.flush().unwrap();
    second.assert_content(&rig, &images);
    let original = images.clone();
    images[1][12_345..112_345].fill(7);
    assert!(guest.wait_for_acks(300, PATIENCE), "{:?}", guest.progress());
    first.assert_content(&rig, &images);

    assert_eq!(overlays(&rig), 2);
    first.daemon.kill();
    second.assert_content(&rig, &original);
    // What the killed one left is removed by the next.
    let third = Cloned::start(&rig, "third.nbd", "m");
    assert_eq!(overlays(&rig), 2);
    third.assert_content(&rig, &original);
    assert!(third.daemon.terminate().success());
    assert_eq!(overlays(&rig), 1);

    rig.kill(Process::Receive);
    second.assert_content(&rig, &original);
    rig.start_receive();
    assert!(guest.wait_for_acks(300, PATIENCE), "{:?}", guest.progress());
    second.assert_content(&rig, &original);
    let history = guest.stop();
    rig.wait_drained();
    rig.terminate(Process::Receive);
    let back = args!["target", "rewind", "--state", rig.path("target-state"), "--to", "m"];
    let refused = rig.towline(back).exits(1);
    assert!(refused.stderr.contains("clone"), "{refused}");
    assert!(second.daemon.terminate().success());
    assert_eq!(overlays(&rig), 0);
    rig.start_receive();
    rig.assert_ends_equal(&history);
}

#[test]
fn a_clone_of_the_present_point_needs_no_mark_whether_a_receiver_runs_or_not() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&paced(), prefilled);
    rig.wait_live();
    let images = images_at_rest(&rig, &guest);
    let first = Cloned::start(&rig, "first.nbd", "now");
    guest.go_on();
    assert!(guest.wait_for_acks(500, PATIENCE), "{:?}", guest.progress());
    first.assert_content(&rig, &images);
    let later = images_at_rest(&rig, &guest);
    rig.terminate(Process::Receive);
    let second = Cloned::start(&rig, "second.nbd", "now");
    rig.start_receive();
    guest.go_on();
    assert!(guest.wait_for_acks(500, PATIENCE), "{:?}", guest.progress());
    first.assert_content(&rig, &images);
    second.assert_content(&rig, &later);
    let history = guest.stop();
    drop((first, second));
    rig.assert_ends_equal(&history);
}

#[test]
fn a_clone_ends_when_the_target_takes_over_and_is_refused_afterwards() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    let mut clone = Cloned::start(&rig, "clone.nbd", "now");
    let base = args!["cutover", &rig.group, "--state", rig.state(), "--max-pause", "20s"];
    rig.towline(base).ok();
    let status = clone.daemon.wait_for_end();
    assert_eq!(status.code(), Some(1), "{}", clone.daemon);
    assert!(clone.daemon.said().contains("taken over"), "{}", clone.daemon);
    let state = rig.path("target-state");
    let again = args!["target", "clone", "--state", state, "--nbd", "unix:/nowhere/s"];
    let refused = rig.towline(again).exits(64);
    assert!(refused.stderr.contains("has taken over"), "{refused}");
}

#[test]
fn there_is_nothing_to_clone_before_the_baseline_is_done() {
    let rig = Rig::new(1, DISK_BYTES);
    let state = rig.path("target-state");
    std::fs::create_dir_all(&state).unwrap();
    let all = args!["target", "clone", "--state", state, "--nbd", "unix:/nowhere/s"];
    let refused = rig.towline(all).exits(69);
    assert!(refused.stderr.contains("no group was ever received"), "{refused}");
}

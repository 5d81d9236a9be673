//! The link as a shipper uses it.

use super::rig::{MIB, Rig};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use towline_block::{BLOCK_BYTES, VolumeId};
use towline_journal::link::{LINK_VERSION, Link, Reply, Request};
use towline_journal::{Durable, RingReader};
use towline_proxy::LinkServer;

const NOTHING: Durable = Durable { epoch: 0, incarnation: 0, seq: 0, claims: 0 };

fn serve(rig: &Rig) -> LinkServer {
    let path = rig.dir.path().join("proxy.sock");
    LinkServer::start(&path, rig.server.group(), rig.journal.clone().unwrap()).unwrap()
}

fn connect(rig: &Rig) -> Link {
    let link = Link::connect(&rig.dir.path().join("proxy.sock")).unwrap();
    link.set_timeout(Some(super::client::PATIENCE)).unwrap();
    link
}

fn attach(link: &mut Link) -> (Reply, Vec<File>) {
    let (reply, fds) =
        link.call(&Request::Attach { version: LINK_VERSION, target: NOTHING }).unwrap();
    (reply, fds.into_iter().map(File::from).collect())
}

fn ask(link: &mut Link, request: Request) -> Reply {
    link.call(&request).unwrap().0
}

#[test]
fn a_session_gets_the_ring_and_a_reader_of_each_volume() {
    let rig = Rig::journaled(&[MIB, 2 * MIB]);
    let _link = serve(&rig);
    let mut other = super::client::Client::simple(&rig.socket(), "disk1");
    assert_eq!(other.write(1, 0, &[7; 4096]), 0);
    let mut link = connect(&rig);
    let (reply, files) = attach(&mut link);
    let Reply::Attached { group, seal, .. } = reply else { panic!("{reply:?}") };
    assert_eq!((group.as_str(), seal), ("g", None));
    assert_eq!(files.len(), 3);
    assert_eq!(RingReader::open(&files[0]).unwrap().volume_count(), 2);
    let disk = towline_block::FileDisk::open(
        &rig.dir.path().join("disk1.img"),
        towline_block::Access::Read,
    );
    let identity = disk.unwrap().identity().unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(files[2].metadata().unwrap().ino(), identity.inode);
    assert!(files[2].write_at(b"x", 0).is_err(), "read only");
}

#[test]
fn all_blocks_can_be_claimed_acknowledged_and_healed() {
    let rig = Rig::journaled(&[MIB, MIB]);
    let _server = serve(&rig);
    let mut link = connect(&rig);
    attach(&mut link);
    assert_eq!(ask(&mut link, Request::Heal), Reply::Healed(None));
    let (mut last, mut blocks) = (0, 0);
    for volume in [VolumeId(0), VolumeId(1)] {
        let claim = Request::Claim { volume, from_block: 0, blocks_max: 5, runs_max: None };
        while let Reply::Claimed(Some(claim)) = ask(&mut link, claim.clone()) {
            (last, blocks) = (claim.id, blocks + claim.blocks);
        }
    }
    assert_eq!(blocks, 2 * MIB / BLOCK_BYTES);
    let head = rig.journal.as_ref().unwrap().get(towline_journal::format::Counter::Head);
    assert_eq!(ask(&mut link, Request::Ack { seq: head, claims: last }), Reply::Ok);
    assert!(matches!(ask(&mut link, Request::Heal), Reply::Healed(Some(_))));
    let Reply::Resynced { claims_upto, .. } =
        ask(&mut link, Request::Resync { reason: "test".into() })
    else {
        panic!("not resynced")
    };
    assert_eq!(claims_upto, last);
    let again =
        Request::Claim { volume: VolumeId(0), from_block: 0, blocks_max: 5, runs_max: None };
    assert!(matches!(ask(&mut link, again), Reply::Claimed(Some(_))));
}

#[test]
fn a_new_session_ends_the_former_one() {
    let rig = Rig::journaled(&[MIB]);
    let _server = serve(&rig);
    let claim =
        Request::Claim { volume: VolumeId(0), from_block: 0, blocks_max: 5, runs_max: None };
    let (mut first, mut second) = (connect(&rig), connect(&rig));
    assert!(matches!(ask(&mut first, claim.clone()), Reply::Refused(_)));
    attach(&mut first);
    let Reply::Claimed(Some(taken)) = ask(&mut first, claim.clone()) else { panic!() };
    let (reply, _) = attach(&mut second);
    let Reply::Attached { attached, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(attached.reverted_bytes, taken.blocks * BLOCK_BYTES);
    first.call(&claim).unwrap_err();
    assert!(matches!(ask(&mut second, claim), Reply::Claimed(Some(_))));
}

#[test]
fn a_cutover_goes_over_the_link() {
    let rig = Rig::journaled(&[MIB, MIB]);
    let _server = serve(&rig);
    let mut link = connect(&rig);
    attach(&mut link);
    assert!(matches!(ask(&mut link, Request::Seal { attempt: 1 }), Reply::Refused(_)));
    let hold = Request::Hold { attempt: 1, max_ms: 600_000 };
    assert!(matches!(ask(&mut link, hold.clone()), Reply::Held { .. }));
    assert_eq!(ask(&mut link, Request::Release { attempt: 1 }), Reply::Ok);
    rig.assert_serving();
    ask(&mut link, hold);
    let sealed = ask(&mut link, Request::Seal { attempt: 1 });
    assert!(matches!(sealed, Reply::Sealed { .. }));
    assert_eq!(ask(&mut link, Request::Seal { attempt: 1 }), sealed);
    assert_eq!(ask(&mut link, Request::Unseal { attempt: 1 }), Reply::Ok);
    rig.assert_serving();
    ask(&mut link, Request::Hold { attempt: 2, max_ms: 600_000 });
    ask(&mut link, Request::Seal { attempt: 2 });
    let commit = Request::Commit { attempt: 2, epoch: 2, exports: vec!["nbd://t".into()] };
    assert_eq!(ask(&mut link, commit.clone()), Reply::Ok);
    assert_eq!(ask(&mut link, commit), Reply::Ok);
    assert!(matches!(ask(&mut link, Request::Unseal { attempt: 2 }), Reply::Refused(_)));
    assert_eq!(rig.simple().write(0, 0, b"x"), 108);
}

#[test]
fn garbage_and_wrong_versions_on_the_link_cost_one_connection() {
    let rig = Rig::journaled(&[MIB]);
    let server = serve(&rig);
    let mut link = connect(&rig);
    link.socket().write_all(b"not json\n").unwrap();
    assert!(link.receive::<Reply>().unwrap().is_none());
    let mut link = connect(&rig);
    let old = Request::Attach { version: LINK_VERSION + 1, target: NOTHING };
    let Reply::Refused(text) = ask(&mut link, old) else { panic!() };
    assert!(text.contains("same release"), "{text}");
    assert!(matches!(attach(&mut link).0, Reply::Attached { .. }));
    drop(server);
    assert!(link.receive::<Reply>().unwrap().is_none());
    assert!(!rig.dir.path().join("proxy.sock").exists());
}

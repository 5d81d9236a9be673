//! The chain's table of docs/formats/batch.md, row by row.

use crate::batch::{BatchBuilder, BatchView, Chain, Control, Sealed};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use crate::receiver::stream::{Point, Stream};
use crate::wire::RefusalCode;
use towline_block::{Epoch, Incarnation, Position, Seq};

const GROUP: GroupUuid = GroupUuid([1; 16]);

fn at(epoch: u32, incarnation: u32, seq: u64) -> Position {
    Position::new(Epoch(epoch), Incarnation(incarnation), Seq(seq))
}

/// The target stands at 2.3.10, claims up to 5, whole.
fn here() -> Stream {
    let position = at(2, 3, 10);
    Stream {
        number: 7,
        hash: BatchHash([8; 32]),
        position,
        claims_upto: 5,
        stream_bytes: 900,
        whole: true,
        point: Some(Point { number: 7, position }),
        sealed: None,
    }
}

fn seal(stream: &Stream, batch: BatchBuilder) -> Sealed {
    let chain = Chain {
        group: GROUP,
        session: SessionId([2; 16]),
        number: stream.number,
        hash: stream.hash,
        stream_bytes: stream.stream_bytes,
    };
    batch.encode(&chain, 0)
}

fn follow(stream: &Stream, batch: BatchBuilder) -> Result<Stream, RefusalCode> {
    let sealed = seal(stream, batch);
    let view = BatchView::parse(&sealed.bytes).unwrap();
    stream.follow(GROUP, &view).map_err(|refusal| refusal.code)
}

/// Records from `first`, with these controls.
fn records(first: Position, claims: u64, controls: &[Control]) -> BatchBuilder {
    let mut batch = BatchBuilder::records(first, claims);
    let mut seq = first.seq;
    for control in controls {
        batch.control(seq, *control, b"").unwrap();
        seq = seq.next();
    }
    batch.pass(first.seq);
    batch
}

fn blocks(at: Position, claims: u64) -> BatchBuilder {
    BatchBuilder::blocks(at, 6, claims)
}

#[test]
fn only_what_follows_the_position_is_admitted() {
    use Control::{Break, Resync};
    use RefusalCode::{OldEpoch, OutOfOrder};
    let (order, old) = (Some(OutOfOrder), Some(OldEpoch));
    let rows: [(&str, BatchBuilder, Option<RefusalCode>); 19] = [
        ("records that continue", records(at(2, 3, 11), 5, &[]), None),
        ("a record again", records(at(2, 3, 10), 5, &[]), order),
        ("a record left out", records(at(2, 3, 12), 5, &[]), order),
        ("a leap that says so", records(at(2, 3, 99), 5, &[Resync]), None),
        ("a leap by another record", records(at(2, 3, 99), 5, &[Break]), order),
        ("a leap back", records(at(2, 3, 10), 5, &[Resync]), order),
        ("a new incarnation from 1", records(at(2, 4, 1), 0, &[]), None),
        ("a new incarnation from 2", records(at(2, 4, 2), 0, &[]), order),
        ("a new incarnation that says so", records(at(2, 4, 2), 0, &[Resync]), None),
        ("an older incarnation", records(at(2, 2, 1), 5, &[Resync]), order),
        ("a new epoch, incarnation lower", records(at(3, 1, 1), 0, &[]), None),
        ("an older epoch", records(at(1, 9, 1), 5, &[Resync]), old),
        ("blocks here", blocks(at(2, 3, 10), 5), None),
        ("blocks before records they need", blocks(at(2, 3, 11), 5), order),
        ("blocks too late", blocks(at(2, 3, 9), 5), order),
        ("blocks at a new incarnation's start", blocks(at(2, 4, 0), 0), None),
        ("blocks inside a new incarnation", blocks(at(2, 4, 1), 0), order),
        ("claims that fall", records(at(2, 3, 11), 4, &[]), order),
        ("claims that rise", blocks(at(2, 3, 10), 6), None),
    ];
    for (what, batch, refused) in rows {
        assert_eq!(follow(&here(), batch).err(), refused, "{what}");
    }
}

#[test]
fn a_target_without_position_takes_the_chain_up_anywhere() {
    let lost = here().lost();
    assert_eq!((lost.number, lost.stream_bytes, lost.point), (7, 900, None));
    for batch in [records(at(2, 9, 77), 50, &[]), blocks(at(5, 1, 3), 6)] {
        let after = follow(&lost, batch).unwrap();
        assert!(!after.whole && after.point.is_none());
    }
    let stranger = Stream { number: 8, ..here() };
    let sealed = seal(&here(), records(at(2, 3, 11), 5, &[]));
    let view = BatchView::parse(&sealed.bytes).unwrap();
    assert_eq!(stranger.follow(GROUP, &view).unwrap_err().code, RefusalCode::OutOfOrder);
}

#[test]
fn the_end_of_a_batch_decides_whether_it_is_a_point() {
    use Control::{Break, Heal, Resync, Seal};
    let next = at(2, 3, 11);
    let after = |controls: &[Control]| follow(&here(), records(next, 5, controls)).unwrap();
    let number = |stream: &Stream| stream.point.map(|point| point.number);
    assert_eq!((after(&[]).whole, number(&after(&[]))), (true, Some(8)));
    for broken in [after(&[Break]), after(&[Resync]), after(&[Heal, Break])] {
        assert_eq!((broken.whole, number(&broken)), (false, Some(7)));
        let still = follow(&broken, blocks(broken.position, 6)).unwrap();
        assert_eq!((still.whole, number(&still)), (false, Some(7)));
    }
    let healed = after(&[Break, Heal]);
    assert_eq!((healed.whole, number(&healed)), (true, Some(8)));
    assert_eq!(after(&[Seal]).sealed, Some(next));
    assert_eq!(after(&[Seal, Break]).sealed, None, "a seal is the last record");
    let sealed = after(&[Seal]);
    assert_eq!(follow(&sealed, records(at(2, 3, 12), 5, &[])).unwrap().sealed, None);
}

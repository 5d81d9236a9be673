//! What a PROMOTE leads to, for every state of the target.

use crate::receiver::promote::{Plan, plan};
use crate::receiver::stream::{Point, Stream};
use crate::wire::Promote;
use towline_block::{Epoch, Incarnation, Position, Seq};

fn at(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

fn stream(number: u64, whole: bool, sealed: bool) -> Stream {
    let position = at(number * 10);
    Stream {
        number,
        position,
        whole,
        point: Some(Point { number: 1, position: at(10) }),
        sealed: sealed.then_some(position),
        ..Stream::default()
    }
}

#[test]
fn every_state_of_the_target_has_one_answer() {
    let undo = Some(at(10));
    // (asked, allow_rollback, durable, applied, undo, stalled) -> plan; none: not ready
    type Row = ((u64, bool, Stream, u64, Option<Position>, bool), Option<Plan>);
    let rows: [Row; 14] = [
        ((30, false, stream(3, true, true), 3, None, false), Some(Plan::TakeOver(at(30)))),
        ((30, true, stream(3, true, true), 3, None, false), Some(Plan::TakeOver(at(30)))),
        ((30, false, stream(3, true, true), 2, None, false), Some(Plan::Wait)),
        ((30, false, stream(3, true, true), 2, None, true), Some(Plan::Wait)),
        ((20, false, stream(3, true, true), 3, None, false), None),
        ((30, false, stream(3, true, false), 3, None, false), None),
        ((30, false, stream(3, false, true), 3, undo, false), None),
        ((30, true, stream(3, false, true), 2, undo, false), Some(Plan::Wait)),
        ((30, true, stream(3, false, true), 3, undo, false), Some(Plan::RollBack(at(10)))),
        ((30, true, stream(3, false, true), 2, undo, true), Some(Plan::RollBack(at(10)))),
        ((30, true, stream(3, false, true), 3, None, false), None),
        ((30, true, stream(3, false, true), 2, None, true), None),
        ((99, true, stream(3, true, false), 3, None, false), Some(Plan::TakeOver(at(30)))),
        ((99, true, stream(3, true, false), 2, None, true), None),
    ];
    for ((asked, allow_rollback, durable, applied, undo, stalled), expected) in rows {
        let request = Promote { attempt: "a".into(), position: at(asked), allow_rollback };
        let applied = stream(applied, durable.whole, false);
        let planned = plan(&request, &durable, &applied, undo, stalled);
        let what = format!("{request:?} {durable:?} {} {undo:?} {stalled}", applied.number);
        match expected {
            Some(expected) => assert_eq!(planned, expected, "{what}"),
            None => assert!(matches!(planned, Plan::NotReady(_)), "{what}: {planned:?}"),
        }
    }
}

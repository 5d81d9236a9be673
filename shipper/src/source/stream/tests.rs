use super::*;
use crate::batch::BatchBuilder;
use crate::batch::Chain;
use crate::ids::GroupUuid;
use crate::source::Link;
use crate::source::throttle::Throttle;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId};
use towline_control::rate::Plan;

struct Lab {
    _dir: tempfile::TempDir,
    stream: Stream,
    chain: Chain,
    seq: u64,
}

fn position(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

fn welcome(number: u64, hash: BatchHash, stream_bytes: u64) -> Welcome {
    Welcome {
        version: 1,
        batch_format: 2,
        number,
        hash,
        position: position(number),
        claims_upto: 0,
        stream_bytes,
        point: None,
        broken: true,
        lacks: 0,
        join: None,
        promoted: None,
    }
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let progress = Arc::new(Progress::open(&dir.path().join("p")).unwrap());
        let own = Throttle::new(Plan::default(), dir.path().join("throttle.json"));
        let pace = Pace::new(own, Link::new(Plan::default(), dir.path()));
        let stream = Stream::new(Some(1 << 20), progress, pace);
        let chain = Chain {
            group: GroupUuid([1; 16]),
            session: stream.session(),
            number: 0,
            hash: BatchHash::NONE,
            stream_bytes: 0,
        };
        Lab { _dir: dir, stream, chain, seq: 0 }
    }

    /// A connected stream with `count` batches in the window, all sent.
    fn fed(count: usize) -> (Lab, Vec<Arc<Sealed>>) {
        let mut lab = Lab::new();
        lab.stream.welcome(welcome(0, BatchHash::NONE, 0));
        assert!(lab.stream.establish(&lab.chain));
        for _ in 0..count {
            lab.push();
        }
        let sent = lab.send_all();
        assert_eq!(sent.len(), count);
        (lab, sent)
    }

    fn push(&mut self) {
        self.seq += 1;
        let mut batch = BatchBuilder::records(position(self.seq), 0);
        let extent = Extent::new(0, 4096);
        batch.zero(Seq(self.seq), VolumeId(0), extent, false).unwrap();
        let sealed = batch.encode(&self.chain, 0);
        self.chain.advance(&sealed);
        self.stream.push(sealed);
    }

    fn send_all(&self) -> Vec<Arc<Sealed>> {
        std::iter::from_fn(|| match self.stream.next() {
            Some(Next::Batch(sealed)) => {
                self.stream.progress().set(Figure::SentStreamBytes, sealed.stream_bytes);
                Some(sealed)
            }
            Some(Next::Message(_)) | None => None,
        })
        .collect()
    }

    fn resent(&self) -> u64 {
        self.stream.progress().get(Figure::ResentBytes)
    }
}

#[test]
fn a_new_connection_resends_exactly_what_the_target_lacks() {
    let (lab, sent) = Lab::fed(4);
    lab.stream.lost();
    lab.stream.welcome(welcome(2, sent[1].hash, sent[1].stream_bytes));
    assert!(lab.stream.established());
    let again: Vec<u64> = lab.send_all().iter().map(|sealed| sealed.number).collect();
    assert_eq!(again, [3, 4]);
    assert_eq!(lab.resent(), sent[3].stream_bytes - sent[1].stream_bytes);
}

#[test]
fn a_target_that_stands_elsewhere_ends_the_stream() {
    for (number, hash) in
        [(2, BatchHash([9; 32])), (7, BatchHash([9; 32])), (0, BatchHash([1; 32]))]
    {
        let (lab, _) = Lab::fed(4);
        lab.stream.lost();
        lab.stream.welcome(welcome(number, hash, 0));
        assert!(!lab.stream.established());
        assert!(lab.stream.is_drained(), "what was in the window is not sent to a stranger");
        assert!(!lab.stream.establish(&lab.chain), "nor is the old chain continued");
    }
}

#[test]
fn acknowledgements_free_the_window_and_never_go_back() {
    let (mut lab, sent) = Lab::fed(3);
    let ack = |number: u64| Ack { number, stream_bytes: number * 100, ..Ack::default() };
    lab.stream.acked(ack(2));
    lab.stream.acked(ack(1));
    assert_eq!(lab.stream.ack().number, 2);
    assert!(!lab.stream.is_drained());
    lab.push();
    assert_eq!(lab.send_all().len(), 1, "only the new one is sent");
    lab.stream.lost();
    lab.stream.welcome(welcome(2, sent[1].hash, 0));
    assert_eq!(lab.send_all().len(), 2);
    lab.stream.acked(ack(4));
    assert!(lab.stream.is_drained());
}

#[test]
fn a_window_is_full_at_its_limit() {
    let mut lab = Lab::fed(0).0;
    let mut pushed = 0;
    while lab.stream.has_room() {
        lab.push();
        pushed += 1;
        assert!(pushed < 100_000, "the window has a limit");
    }
    lab.stream.acked(Ack { number: 1, ..Ack::default() });
    assert!(lab.stream.has_room());
}

#[test]
fn messages_follow_all_batches_and_die_with_their_connection() {
    let (mut lab, sent) = Lab::fed(1);
    lab.push();
    lab.stream.say(Message::KeepAlive);
    assert!(matches!(lab.stream.next(), Some(Next::Batch(_))));
    assert!(matches!(lab.stream.next(), Some(Next::Message(Message::KeepAlive))));
    lab.stream.say(Message::KeepAlive);
    lab.stream.lost();
    lab.stream.welcome(welcome(1, sent[0].hash, 0));
    assert!(matches!(lab.stream.next(), Some(Next::Batch(_))));
    assert!(lab.stream.next().is_none());
}

#[test]
fn a_shipper_started_again_counts_what_was_on_its_way() {
    let lab = Lab::new();
    lab.stream.progress().set(Figure::SentStreamBytes, 5000);
    lab.stream.welcome(welcome(3, BatchHash([3; 32]), 4200));
    assert_eq!(lab.resent(), 800);
}

#[test]
fn what_is_handed_over_is_not_kept_and_no_stream_begins_before_it_is_durable() {
    let (mut lab, sent) = Lab::fed(3);
    lab.stream.handed(2);
    assert!(!lab.stream.is_drained(), "the third is still to be handed over");
    lab.stream.handed(3);
    assert!(lab.stream.is_drained() && lab.stream.fill() == 0.0);
    assert_eq!(lab.stream.ack().number, 0, "nothing is durable");
    assert!(lab.stream.beginning().is_none(), "the drain has to wait for the pack");
    let ack = Ack { number: 3, position: position(3), ..Ack::default() };
    lab.stream.closed(ack, sent[2].hash);
    let begins = lab.stream.beginning().unwrap();
    assert_eq!((begins.number, begins.hash, begins.position), (3, sent[2].hash, position(3)));
    assert!(lab.stream.establish(&lab.chain));
    // Lost before it was durable: all of it is cut anew.
    lab.push();
    let lost = lab.send_all();
    lab.stream.handed(lost[0].number);
    lab.stream.lost();
    assert!(lab.stream.beginning().is_none());
    lab.stream.rewind(welcome(3, sent[2].hash, sent[2].stream_bytes));
    assert!(!lab.stream.established());
    assert_eq!(lab.stream.beginning().unwrap().number, 3);
}

#[test]
fn a_target_stalls_from_when_it_has_what_it_does_not_apply() {
    let (lab, sent) = Lab::fed(3);
    let ack = |number: u64, applied: u64| {
        let sealed = &sent[number as usize - 1];
        let (position, stream_bytes) = (position(number), sealed.stream_bytes);
        lab.stream.acked(Ack { number, applied, position, stream_bytes, ..Ack::default() });
        std::thread::sleep(Duration::from_millis(20));
        lab.stream.stalled_for()
    };
    assert_eq!(ack(1, 1), Duration::ZERO);
    let first = ack(2, 1);
    assert!(first >= Duration::from_millis(20), "{first:?}");
    assert!(ack(3, 1) > first, "more that is durable is no progress");
    let (before, moved) = (lab.stream.stalled_for(), ack(3, 2));
    assert!(moved < before, "something was applied: {moved:?}, {before:?}");
    assert_eq!(ack(3, 3), Duration::ZERO);
    lab.stream.lost();
    assert_eq!(lab.stream.stalled_for(), Duration::ZERO);
}

#[test]
fn what_is_applied_is_told_by_its_record_and_not_before() {
    let (lab, sent) = Lab::fed(4);
    let applied = |number: u64, applied: u64| {
        let (position, stream_bytes) = (position(number), sent[number as usize - 1].stream_bytes);
        lab.stream.acked(Ack { number, applied, position, stream_bytes, ..Ack::default() });
        let of = [Figure::AppliedIncarnation, Figure::AppliedSeq];
        of.map(|figure| lab.stream.progress().get(figure))
    };
    let incarnation = u64::from(position(0).incarnation.0);
    assert_eq!(applied(2, 0), [0, 0]);
    assert_eq!(applied(3, 2), [incarnation, 2]);
    assert_eq!(applied(4, 2), [incarnation, 2]);
    assert_eq!(applied(4, 4), [incarnation, 4]);
    // Another process, which knows no batch's place but the last durable one's.
    let again = Lab::new();
    again.stream.welcome(Welcome { position: position(9), ..welcome(9, BatchHash::NONE, 0) });
    assert_eq!(again.stream.progress().get(Figure::AppliedSeq), 0);
    again.stream.acked(Ack { number: 9, applied: 9, position: position(9), ..Ack::default() });
    assert_eq!(again.stream.progress().get(Figure::AppliedSeq), 9);
}

#[test]
fn a_store_that_has_what_was_shipped_before_stalls_nothing() {
    let lab = Lab::new();
    let stream = lab.stream.into_store();
    let welcome = Welcome { position: position(9), ..welcome(9, BatchHash::NONE, 0) };
    stream.welcome(welcome.clone());
    assert_eq!(stream.stalled_for(), Duration::ZERO);
    assert_eq!(stream.progress().get(Figure::AppliedSeq), 9);
    // A receiver that has more than it applied does.
    let lab = Lab::new();
    lab.stream.welcome(welcome);
    assert!(lab.stream.stalled_for() > Duration::ZERO);
}

#[test]
fn the_shortest_round_trip_outlives_a_slow_one() {
    let (lab, sent) = Lab::fed(2);
    let ack = |number: u64| {
        let sealed = &sent[number as usize - 1];
        let (position, stream_bytes) = (position(number), sealed.stream_bytes);
        lab.stream.acked(Ack { number, position, stream_bytes, ..Ack::default() });
        lab.stream.least_round_trip().unwrap()
    };
    let first = ack(1);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ack(2), first);
    assert!(lab.stream.round_trip().unwrap() > first);
}

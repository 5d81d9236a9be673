//! Which target has an export already, as the source and an import see it.

use super::*;
use crate::wire::{PROTOCOL, Welcome};
use towline_journal::GroupDir;

fn welcome(stream: &Stream) -> Welcome {
    Welcome {
        version: PROTOCOL,
        batch_format: crate::batch::VERSION,
        number: stream.number,
        hash: stream.hash,
        position: stream.position,
        claims_upto: stream.claims_upto,
        stream_bytes: stream.stream_bytes,
        point: None,
        broken: false,
        lacks: 0,
        join: None,
        promoted: None,
    }
}

/// Where a target may stand that has this export, and where one may that has not.
fn stands(end: &Stream) -> [(&'static str, Stream, bool); 6] {
    let position = |seq| Position { seq: Seq(seq), ..end.position };
    let (seq, number) = (end.position.seq.0, end.number);
    let stand = |number, position| Stream { number, position, ..end.clone() };
    [
        ("at its end", end.clone(), true),
        ("at its end, nobody knows what it lacks", stand(number, position(0)), true),
        ("went on behind it", stand(number + 3, position(seq + 5)), true),
        ("before it", stand(number - 1, position(seq)), false),
        ("another chain, with more batches", stand(number + 9, position(seq - 1)), false),
        (
            "another chain, with as many",
            Stream { hash: BatchHash([7; 32]), ..stand(number, position(seq)) },
            false,
        ),
    ]
}

#[test]
fn shipping_waits_for_a_target_that_has_not_the_export_whatever_its_batches_number() {
    let world = World::new(7, 1);
    for (what, stream, has) in stands(&world.manifest.after()) {
        let dir = GroupDir::of(&world.there().join(what), &world.manifest.group);
        let local = shelf::local(&dir);
        std::fs::create_dir_all(local.dir()).unwrap();
        std::fs::write(local.manifest(), world.manifest.encode(None).unwrap()).unwrap();
        let checked = check_travelling(&dir, &welcome(&stream));
        assert_eq!(
            checked.as_ref().err().map(|error| error.kind()),
            (!has).then_some(ErrorKind::Unreachable),
            "{what}"
        );
        let leg = if has { Leg::Imported } else { Leg::Travelling };
        assert_eq!(travel(&dir).unwrap().unwrap().leg, leg, "{what}");
    }
}

#[test]
fn an_import_of_what_a_target_has_is_done_already_and_of_another_is_refused() {
    let world = World::new(7, 1);
    assert!(!world.import(&world.devices).unwrap().already);
    let state = world.state();
    for (what, applied, has) in stands(&world.manifest.after()) {
        let state = State { applied: applied.clone(), ..state.clone() };
        std::fs::write(world.layout().state, serde_json::to_vec(&state).unwrap()).unwrap();
        match world.import(&world.devices) {
            Ok(again) => {
                assert!(has && again.already && again.missing.is_empty(), "{what}");
                assert_eq!(again.stands.unwrap().after, applied, "{what}");
            }
            Err(error) => {
                assert!(!has, "{what}: {error}");
                assert_eq!(error.kind(), ErrorKind::Refused, "{what}: {error}");
            }
        }
        assert_eq!(world.state(), state, "{what}");
    }
}

#[test]
fn no_receiver_begins_during_an_import_but_behind_its_end() {
    let world = World::new(8, 1);
    let layout = world.layout();
    world.import(&world.devices).unwrap();
    let ended = world.state();
    // One that ran before the import, and had nothing.
    let bound = State { applied: Stream::default(), ..ended.clone() };
    std::fs::write(&layout.state, serde_json::to_vec(&bound).unwrap()).unwrap();
    std::fs::remove_file(world.pack(PACKS)).unwrap();
    let part = world.import(&world.devices).unwrap();
    assert_eq!((part.missing, part.stands.is_none()), (vec![PACKS], true));
    let refused = crate::receiver::import::check_none_under_way(&layout).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    // Killed at its end, before the ledger was removed.
    std::fs::write(&layout.state, serde_json::to_vec(&ended).unwrap()).unwrap();
    crate::receiver::import::check_none_under_way(&layout).unwrap();
    let again = world.import(&world.devices).unwrap();
    assert!(again.already && again.stands.is_some(), "{again:?}");
    assert_eq!(again.missing, Vec::<usize>::new());
    assert!(!layout.device.exists());
}

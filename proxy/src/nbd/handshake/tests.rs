use super::super::option_data::Fields;
use super::*;
use crate::nbd::proto::OPTION_REPLY_MAGIC;
use proptest::prelude::*;

fn exports() -> Arc<[Export]> {
    let export = |name: &str, read_only| Export {
        name: name.to_owned(),
        description: format!("about {name}"),
        size_bytes: 0x0102_0304,
        read_only,
    };
    [export("disk0", false), export("disk1", true)].into()
}

fn negotiation() -> Negotiation {
    Negotiation::new(exports(), [0, 0, 0, 3]).unwrap()
}

/// Replies as (type, payload), checked to be well formed and to name the option.
fn run(negotiation: &mut Negotiation, option: u32, data: &[u8]) -> (Next, Vec<(u32, Vec<u8>)>) {
    let mut out = Vec::new();
    let head = OptionHead { option, length: data.len() as u32 };
    let next = negotiation.option(&head, data, &mut out).unwrap();
    (next, decode(option, &out))
}

fn decode(option: u32, out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut fields = Fields(out);
    let mut replies = Vec::new();
    while !fields.0.is_empty() {
        assert_eq!(fields.bytes(8).unwrap(), OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(fields.u32().unwrap(), option);
        let kind = fields.u32().unwrap();
        let length = fields.u32().unwrap() as usize;
        replies.push((kind, fields.bytes(length).unwrap().to_vec()));
    }
    replies
}

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

#[test]
fn the_greeting_is_these_bytes() {
    assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn unknown_client_flags_are_dropped() {
    assert!(Negotiation::new(exports(), [0, 0, 0, 4]).is_err());
    assert!(Negotiation::new(exports(), [0x80, 0, 0, 3]).is_err());
}

#[test]
fn export_name_is_answered_with_and_without_zeroes() {
    for (flags, len) in [(1, 134), (3, 10)] {
        let mut negotiation = Negotiation::new(exports(), [0, 0, 0, flags]).unwrap();
        let mut out = Vec::new();
        let head = OptionHead { option: option::EXPORT_NAME, length: 5 };
        let next = negotiation.option(&head, b"disk1", &mut out).unwrap();
        assert!(matches!(next, Next::Enter(agreed) if agreed.export == 1));
        assert_eq!(out.len(), len);
        assert_eq!(&out[..8], [0, 0, 0, 0, 1, 2, 3, 4]);
        assert!(out[10..].iter().all(|byte| *byte == 0));
    }
    let head = OptionHead { option: option::EXPORT_NAME, length: 4 };
    assert!(negotiation().option(&head, b"none", &mut Vec::new()).is_err());
}

#[test]
fn go_enters_the_default_export_with_what_was_asked_for() {
    let data = go("", &[info::BLOCK_SIZE, info::NAME, 77, info::DESCRIPTION]);
    let (next, replies) = run(&mut negotiation(), option::GO, &data);
    let Next::Enter(agreed) = next else { panic!("{next:?}") };
    assert_eq!(agreed.export, 0);
    assert!(!agreed.terms.structured && !agreed.terms.allocation);
    assert_eq!(kinds(&replies), [3, 3, 3, 3, 1]);
    assert_eq!(replies[0].1[..2], [0, 0]);
    assert_eq!(replies[1].1, b"\x00\x01disk0");
    assert_eq!(replies[2].1, b"\x00\x02about disk0");
    assert_eq!(replies[3].1, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
}

#[test]
fn info_tells_the_same_and_haggling_goes_on() {
    let mut negotiation = negotiation();
    let data = go("disk1", &[info::BLOCK_SIZE]);
    let (next, told) = run(&mut negotiation, option::INFO, &data);
    assert_eq!(next, Next::Option);
    let (next, again) = run(&mut negotiation, option::GO, &data);
    assert!(matches!(next, Next::Enter(_)));
    assert_eq!(told, again);
}

#[test]
fn malformed_go_is_invalid_and_haggling_goes_on() {
    let mut long = go("disk0", &[]);
    long.push(0);
    let mut nul = go("disk0", &[]);
    nul[4] = 0;
    for data in [&[][..], &[0, 0, 0, 9, b'x'], &[0xff; 6], &long, &nul] {
        let (next, replies) = run(&mut negotiation(), option::GO, data);
        assert_eq!((next, kinds(&replies)), (Next::Option, vec![option_reply::ERR_INVALID]));
    }
    let (next, replies) = run(&mut negotiation(), option::GO, &go("none", &[]));
    assert_eq!((next, kinds(&replies)), (Next::Option, vec![option_reply::ERR_UNKNOWN]));
}

#[test]
fn list_names_every_export() {
    let (_, replies) = run(&mut negotiation(), option::LIST, &[]);
    assert_eq!(kinds(&replies), [2, 2, 1]);
    assert_eq!(replies[1].1, b"\x00\x00\x00\x05disk1about disk1");
}

#[test]
fn options_without_data_refuse_data() {
    for option in [option::LIST, option::STRUCTURED_REPLY, option::STARTTLS] {
        let (next, replies) = run(&mut negotiation(), option, b"x");
        assert_eq!((next, kinds(&replies)), (Next::Option, vec![option_reply::ERR_INVALID]));
    }
}

#[test]
fn unknown_options_and_tls_are_unsupported_and_haggling_goes_on() {
    for option in [0, 4, option::STARTTLS, 11, 12, u32::MAX] {
        let (next, replies) = run(&mut negotiation(), option, &[]);
        assert_eq!((next, kinds(&replies)), (Next::Option, vec![option_reply::ERR_UNSUP]));
    }
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    let (next, replies) = run(&mut negotiation(), option::ABORT, b"because");
    assert_eq!((next, kinds(&replies)), (Next::Close, vec![1]));
}

#[test]
fn contexts_need_structured_replies() {
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let (_, replies) = run(&mut negotiation(), option, &queries("", &["base:allocation"]));
        assert_eq!(kinds(&replies), [option_reply::ERR_INVALID]);
    }
}

fn enter(negotiation: &mut Negotiation, name: &str) -> Terms {
    match run(negotiation, option::GO, &go(name, &[])).0 {
        Next::Enter(agreed) => agreed.terms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_selected_context_holds_for_its_export_alone() {
    let mut negotiation = negotiation();
    run(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    let set = queries("disk1", &["x-other:thing", "base:allocation", "base:allocation"]);
    let (_, replies) = run(&mut negotiation, option::SET_META_CONTEXT, &set);
    assert_eq!(kinds(&replies), [4, 1]);
    assert_eq!(replies[0].1, b"\x00\x00\x00\x01base:allocation");
    assert!(enter(&mut negotiation, "disk1").allocation);
    assert!(!enter(&mut negotiation, "disk0").allocation);
}

#[test]
fn a_failed_selection_clears_the_former_one() {
    let mut negotiation = negotiation();
    run(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    for bad in [&b"bad"[..], &queries("none", &[]), &queries("disk0", &[])] {
        run(&mut negotiation, option::SET_META_CONTEXT, &queries("", &["base:allocation"]));
        assert!(enter(&mut negotiation, "").allocation);
        run(&mut negotiation, option::SET_META_CONTEXT, bad);
        assert!(!enter(&mut negotiation, "").allocation);
    }
}

#[test]
fn the_wildcard_lists_but_does_not_select() {
    let mut negotiation = negotiation();
    run(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    for (asked, kinds_listed) in
        [(&["base:"][..], &[4, 1][..]), (&[], &[4, 1]), (&["base:dirty", "qemu:"], &[1])]
    {
        let (_, replies) = run(&mut negotiation, option::LIST_META_CONTEXT, &queries("", asked));
        assert_eq!(kinds(&replies), kinds_listed);
    }
    let (_, replies) = run(&mut negotiation, option::SET_META_CONTEXT, &queries("", &["base:"]));
    assert_eq!(kinds(&replies), [1]);
}

#[test]
fn lengths_have_bounds() {
    let mut frame = OPTION_MAGIC.to_be_bytes().to_vec();
    frame.extend(option::GO.to_be_bytes());
    frame.extend((OPTION_BYTES_MAX + 1).to_be_bytes());
    let head = OptionHead::parse(&frame.clone().try_into().unwrap()).unwrap();
    assert!(head.is_too_big());
    let mut out = Vec::new();
    assert_eq!(negotiation().too_big(&head, &mut out), Ok(Next::Option));
    assert_eq!(kinds(&decode(option::GO, &out)), [option_reply::ERR_TOO_BIG]);
    frame[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    OptionHead::parse(&frame.clone().try_into().unwrap()).unwrap_err();
    frame[0] = b'X';
    OptionHead::parse(&frame.try_into().unwrap()).unwrap_err();
}

#[test]
fn an_entry_can_be_taken_back() {
    let mut negotiation = negotiation();
    let data = go("", &[]);
    let head = OptionHead { option: option::GO, length: data.len() as u32 };
    let mut out = Vec::new();
    negotiation.option(&head, &data, &mut out).unwrap();
    let next = negotiation.refuse_entry(&head, option_reply::ERR_POLICY, "full", &mut out);
    assert_eq!(next, Ok(Next::Option));
    assert_eq!(decode(option::GO, &out), [(option_reply::ERR_POLICY, b"full".to_vec())]);
}

proptest! {
    #[test]
    fn any_option_gets_well_formed_replies(
        options in proptest::collection::vec(
            (0u32..14, proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..80)), 1..8),
    ) {
        let mut negotiation = negotiation();
        for (option, data) in options {
            let mut out = Vec::new();
            let head = OptionHead { option, length: data.len() as u32 };
            if negotiation.option(&head, &data, &mut out).is_ok() && option != 1 {
                let last = decode(option, &out).last().unwrap().0;
                prop_assert!(last == option_reply::ACK || last > 1 << 31);
            }
        }
    }
}

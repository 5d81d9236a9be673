//! What each fuzz target does with its bytes. Every reader of bytes that another
//! process, host or a damaged disk may have written has its entry here; none may
//! panic, loop without end or hand out what it did not check.
//!
//! `tests/fuzz` includes this file and replays the corpus in every test run.

mod ring;
mod seal;
mod spill;

pub use ring::ring_open;
pub use spill::spill_segment;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use towline_block::Extent;
use towline_journal::link::{self, Link};
use towline_journal::{GroupState, activity, inspect};
use towline_proxy::nbd::handshake::{Export, Negotiation, Next, OptionHead};
use towline_proxy::nbd::request::{RawRequest, Request, Terms, validate};
use towline_shipper::batch::{Batch, BatchView, GroupKey, KeyId, Keyring, encoded_len};
use towline_shipper::device::{Manifest, PackMap, Trust};
use towline_shipper::receiver::marks;
use towline_shipper::wire::read_frame;
use towline_shipper::{Digest, GroupUuid};

fn exports() -> Arc<[Export]> {
    let export = |name: &str, read_only| Export {
        name: name.to_owned(),
        description: "a volume".to_owned(),
        size_bytes: 1 << 30,
        read_only,
    };
    [export("disk0", false), export("", true)].into()
}

/// A client's bytes from the greeting on.
pub fn nbd_handshake(data: &[u8]) {
    let Some((flags, mut rest)) = data.split_first_chunk::<4>() else { return };
    let Ok(mut negotiation) = Negotiation::new(exports(), *flags) else { return };
    let mut out = Vec::new();
    while let Some((head, body)) = rest.split_first_chunk() {
        let Ok(head) = OptionHead::parse(head) else { return };
        let Some((body, after)) = body.split_at_checked(head.length as usize) else { return };
        rest = after;
        out.clear();
        let next = if head.is_too_big() {
            negotiation.too_big(&head, &mut out)
        } else {
            negotiation.option(&head, body, &mut out)
        };
        match next {
            Ok(Next::Option) => assert!(!out.is_empty(), "every option is answered"),
            Ok(Next::Enter(agreed)) => {
                assert!(agreed.export < 2);
                return;
            }
            Ok(Next::Close) | Err(_) => return,
        }
    }
}

/// A client's bytes in transmission. The first byte says what was negotiated.
pub fn nbd_request(data: &[u8]) {
    let Some((terms, mut rest)) = data.split_first() else { return };
    let terms = Terms {
        size_bytes: 1 << 20,
        read_only: terms & 1 != 0,
        structured: terms & 2 != 0,
        allocation: terms & 4 != 0,
    };
    while let Ok(Some(raw)) = RawRequest::parse(rest) {
        if let Ok(request) = validate(&raw, &terms) {
            let (extent, writes) = match request {
                Request::Read { extent } | Request::Status { extent, .. } => (extent, false),
                Request::Write { extent, .. }
                | Request::Zero { extent, .. }
                | Request::Trim { extent, .. } => (extent, true),
                Request::Flush | Request::Disconnect => (Extent::new(0, 0), false),
            };
            assert!(extent.within(terms.size_bytes), "{request:?} reaches outside");
            assert!(!(writes && terms.read_only), "{request:?} on a read-only export");
        }
        match rest.get(raw.total_bytes()..) {
            Some(after) => rest = after,
            None => return,
        }
    }
}

/// The key that sealed batches of the corpus are sealed with.
pub fn key() -> GroupKey {
    GroupKey::new(KeyId([7; 16]), [9; 32]).expect("an id that is not zero")
}

fn keys() -> Keyring {
    let mut keys = Keyring::default();
    keys.add(key());
    keys
}

/// A batch as it came over the network or out of staging; with its checksums, so
/// that the checks behind them are reached, when the first byte is odd.
pub fn batch(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if repair & 1 == 1 {
        seal::batch(&mut bytes);
    }
    let announced = encoded_len(&bytes);
    let in_place = BatchView::parse(&bytes).is_ok();
    let opened = Batch::open(bytes.clone(), &keys());
    assert!(!in_place || opened.is_ok(), "what can be read in place can be opened");
    let Ok(opened) = opened else { return };
    let view = opened.view();
    assert_eq!(announced.ok(), Some(bytes.len()));
    let _ = (view.first_seq(), view.position(), view.claims_upto(), view.claim_id());
    let mut touched = 0u64;
    for entry in view.ops() {
        touched += entry.op.range().map_or(0, |(_, extent)| extent.len);
    }
    assert!(touched <= u64::from(u32::MAX) * view.ops().count() as u64);
}

/// Frames as a peer sends them.
pub fn wire_frame(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if repair & 1 == 1 {
        seal::frame(&mut bytes);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut reader = bytes.as_slice();
        while let Ok(Some((kind, body))) = read_frame(&mut reader).await {
            assert!(body.len() <= kind.body_bytes_max());
        }
    });
}

/// The change map of an orderly stop; checksums as with [`batch`].
pub fn saved_map(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if repair & 1 == 1 {
        seal::saved_map(&mut bytes);
    }
    if let Ok(words) = inspect::saved_map(&bytes) {
        assert!(words.iter().map(Vec::len).sum::<usize>() * 8 <= bytes.len());
    }
}

/// The map of hot extents; checksums as with [`batch`].
pub fn activity_map(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if repair & 1 == 1 {
        seal::activity_map(&mut bytes);
    }
    // Of one and of three words: the second volume needs more than one bit a word.
    let sizes = [1 << 20, 130 * activity::EXTENT_BYTES];
    if let Ok(words) = inspect::activity_map(&bytes, [2; 16], 1, &sizes) {
        assert_eq!(words.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3]);
    }
}

/// A mark's file at the target; checksums as with [`batch`].
pub fn mark_file(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if repair & 1 == 1 {
        seal::mark_file(&mut bytes);
    }
    let dir = ring::memory();
    let path = dir.path().join("00000000000000000001.mark");
    std::fs::write(&path, &bytes).expect("room");
    if let Ok(Some(mark)) = marks::check_file(&path, GroupUuid([2; 16]), &[1 << 20, 1 << 30]) {
        let _ = format!("{mark:?}");
    }
    assert_eq!(std::fs::read(&path).expect("still there"), bytes, "a check writes nothing");
}

pub fn state_json(data: &[u8]) {
    let Ok(state) = GroupState::parse(Path::new("state.json"), data) else { return };
    let text = state.to_json();
    let again = GroupState::parse(Path::new("state.json"), &text).expect("what was written");
    assert_eq!(state, again);
}

/// Both sides of the link, up to the first error.
pub fn link_line(data: &[u8]) {
    // What fits the socket's buffer needs no second thread.
    let data = &data[..data.len().min(100_000)];
    let open = || {
        let (mut writer, reader) = UnixStream::pair().expect("a socket pair");
        writer.set_nonblocking(true).expect("a socket");
        let _ = std::io::Write::write_all(&mut writer, data);
        Link::new(reader)
    };
    let mut link = open();
    while let Ok(Some((request, _))) = link.receive::<link::Request>() {
        let _ = format!("{request:?}");
    }
    let mut link = open();
    while let Ok(Some((reply, _))) = link.receive::<link::Reply>() {
        let _ = format!("{reply:?}");
    }
}

/// What lies on a transport device: a manifest or, when the first byte is odd, a map under
/// the hash that it has.
pub fn device(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    if which & 1 == 1 {
        let sizes = [1 << 30, 300 << 10];
        let Ok(map) = PackMap::decode(bytes, Digest::of(bytes), &sizes) else { return };
        assert!(map.touched.iter().chain(&map.covered).all(|run| run.is_within(&sizes)));
        assert!(map.encode() == bytes, "a map says one thing in one way");
        return;
    }
    let Ok(manifest) = Manifest::decode(bytes, &Trust::Unsigned) else { return };
    assert_eq!(manifest.after().stream_bytes, manifest.bytes());
    assert!(manifest.sizes().iter().all(|size| *size > 0));
}

//! Compaction under a crash at every operation, beside others and beside a shipper.

use super::*;
use crate::batch::{Batch, GroupKey, Keyring, Op};
use crate::store::{Base, BaseReader, Compacted, Compaction, compact};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use towline_block::Extent;

const DISK: usize = 64 << 10;
const SESSION: SessionId = SessionId([1; 16]);
/// Batches are created a second apart, from the first second on.
const SECOND: u64 = 1_000_000_000;

fn plan(now: u64, history: u64, grace: u64) -> Compaction {
    Compaction {
        keys: Keyring::default(),
        history: Duration::from_secs(history),
        grace: Duration::from_secs(grace),
        drop_marks: Vec::new(),
        now_unix_ns: now * SECOND,
    }
}

/// What batch `number` does: overlapping writes, a zero now and then, a mark at some, HEAL
/// with the third.
fn filled(stream: &Stream, encoder: &mut Encoder, marks: &[(u64, &str)]) -> Sealed {
    let number = stream.number + 1;
    let chain = Chain {
        group: GROUP,
        session: SESSION,
        number: stream.number,
        hash: stream.hash,
        stream_bytes: stream.stream_bytes,
    };
    let mut seq = stream.position.seq.next();
    let at = Position::new(Epoch(1), Incarnation(1), seq);
    let mut batch = BatchBuilder::records(at, stream.claims_upto);
    for step in 0..3 {
        let offset = (number * 5 + step * 11) % 24 * 1024 + step * 512;
        let bytes = [number as u8 + 1; 3000];
        batch.write(seq, VolumeId(0), offset, &bytes, crc32c(&bytes)).unwrap();
        seq = seq.next();
    }
    if number.is_multiple_of(4) {
        let extent = Extent::new(number % 7 * 2048, 4096);
        batch.zero(seq, VolumeId(0), extent, false).unwrap();
        seq = seq.next();
    }
    if number == 3 {
        batch.control(seq, Control::Heal, &[]).unwrap();
        seq = seq.next();
    }
    if let Some((_, name)) = marks.iter().find(|(at, _)| *at == number) {
        batch.mark(seq, name.as_bytes()).unwrap();
    }
    encoder.encode(batch, &chain, number * SECOND).unwrap()
}

/// A store of one batch an object, with what its disk was after each batch.
struct Kept {
    shelf: Arc<Shelf>,
    writer: Writer,
    encoder: Encoder,
    /// By batch; the first is before any.
    disks: Vec<Vec<u8>>,
}

impl Kept {
    async fn of(batches: u64, key: Option<GroupKey>, marks: &[(u64, &str)]) -> Kept {
        let shelf = Arc::new(Shelf::default());
        let bucket: Arc<dyn Bucket> = shelf.clone();
        let writer = Writer::take_over(&bucket, &group(SESSION)).await.unwrap();
        let encoder = Encoder::new(crate::batch::Method::None, key);
        let mut kept = Kept { shelf, writer, encoder, disks: vec![vec![0; DISK]] };
        kept.write(&bucket, batches, marks).await;
        kept
    }

    fn bucket(&self) -> Arc<dyn Bucket> {
        self.shelf.clone()
    }

    async fn write(&mut self, bucket: &Arc<dyn Bucket>, batches: u64, marks: &[(u64, &str)]) {
        for _ in 0..batches {
            let sealed = filled(self.writer.after(), &mut self.encoder, marks);
            let mut disk = self.disks.last().unwrap().clone();
            let mut keys = Keyring::default();
            keys.add(key());
            apply(&mut disk, &Batch::open(sealed.bytes.clone(), &keys).unwrap());
            self.disks.push(disk);
            self.writer.push(&sealed);
            put(&**bucket, &self.writer.make().unwrap()).await.unwrap();
        }
    }

    fn copy(&self) -> Arc<Shelf> {
        let objects = self.shelf.objects.lock().unwrap().clone();
        Arc::new(Shelf { objects: Mutex::new(objects), ..Shelf::default() })
    }
}

fn key() -> GroupKey {
    GroupKey::of_secret([5; 32]).unwrap()
}

fn apply(disk: &mut [u8], batch: &Batch) {
    for entry in batch.view().ops() {
        match entry.op {
            Op::Write { offset, payload, .. } => {
                disk[offset as usize..][..payload.len()].copy_from_slice(payload);
            }
            op => {
                if let Some((_, extent)) = op.touches() {
                    disk[extent.offset as usize..extent.end() as usize].fill(0);
                }
            }
        }
    }
}

/// What a new target gets: the disk after each batch that it passes, by number, and marks.
async fn hydrate(
    bucket: &Arc<dyn Bucket>,
    keys: &Keyring,
) -> crate::Result<(BTreeMap<u64, Vec<u8>>, Vec<String>)> {
    let mut disk = vec![0; DISK];
    let (mut stream, mut passed, mut marks) = (Stream::default(), BTreeMap::new(), Vec::new());
    if let Some(base) = Base::newest(&**bucket, GROUP).await? {
        stream = base.after.clone();
        let mut reader = BaseReader::new(bucket.clone(), base, vec![1 << 20]);
        while let Some(batches) = reader.next(keys).await? {
            batches.iter().for_each(|batch| apply(&mut disk, batch));
        }
    }
    passed.insert(stream.number, disk.clone());
    for bytes in read_all(bucket, stream.number + 1).await? {
        let batch = Batch::open(bytes.to_vec(), keys)?;
        stream = stream.follow(GROUP, &batch.view()).expect("the chain goes on behind the base");
        apply(&mut disk, &batch);
        passed.insert(stream.number, disk.clone());
        for entry in batch.view().ops() {
            if let Op::Mark { label } = entry.op {
                marks.push(String::from_utf8(label.to_vec()).unwrap());
            }
        }
    }
    Ok((passed, marks))
}

/// Everything that was acknowledged comes back, and each batch that is still passed on its own
/// leaves what it left before.
async fn check(bucket: &Arc<dyn Bucket>, disks: &[Vec<u8>], keys: &Keyring, what: &str) -> u64 {
    let (passed, _) = hydrate(bucket, keys).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    let last = disks.len() as u64 - 1;
    assert_eq!(passed.keys().next_back(), Some(&last), "{what}: not all came back");
    for (number, disk) in &passed {
        assert!(*disk == disks[*number as usize], "{what}: batch {number} is another");
    }
    *passed.keys().next().unwrap()
}

async fn compacted(bucket: &Arc<dyn Bucket>, plan: &Compaction) -> crate::Result<Compacted> {
    compact(bucket, &group(SESSION), plan).await
}

#[tokio::test]
async fn a_base_and_what_follows_it_are_what_the_whole_stream_was() {
    let mut kept = Kept::of(40, None, &[]).await;
    let (bucket, keys) = (kept.bucket(), Keyring::default());
    let before = bytes_of(&kept.shelf);
    let report = compacted(&bucket, &plan(40, 10, 0)).await.unwrap();
    assert_eq!(report.made.as_ref().unwrap().after.number, 30);
    assert_eq!(report.folded, 30);
    assert!(bytes_of(&kept.shelf) < before * 2 / 3, "{before} -> {}", bytes_of(&kept.shelf));
    assert_eq!(check(&bucket, &kept.disks, &keys, "first").await, 30);

    kept.write(&bucket, 20, &[]).await;
    let mut successor = Writer::take_over(&bucket, &group(SessionId([2; 16]))).await.unwrap();
    assert_eq!(successor.after().number, 60, "a takeover finds the end");
    let report = compacted(&bucket, &plan(60, 0, 0)).await.unwrap();
    assert_eq!((report.made.as_ref().unwrap().generation, report.folded), (2, 30));
    assert!(report.removed_parts > 0, "the base before is given back");
    assert_eq!(check(&bucket, &kept.disks, &keys, "second").await, 60);

    write(&bucket, &mut successor, SessionId([2; 16])).await;
    let mut third = Writer::take_over(&bucket, &group(SessionId([3; 16]))).await.unwrap();
    assert_eq!(third.after().number, 61, "a takeover behind folded objects");
    write(&bucket, &mut third, SessionId([3; 16])).await;
    assert_eq!(read_all(&bucket, 61).await.unwrap().len(), 2);
    let again = compacted(&bucket, &plan(60, 60, 0)).await.unwrap();
    assert_eq!(again, Compacted::default(), "nothing is old enough");
}

fn bytes_of(shelf: &Shelf) -> usize {
    shelf.objects.lock().unwrap().values().map(Bytes::len).sum()
}

#[tokio::test]
async fn marks_stay_until_they_are_dropped_or_hold_up_what_is_older() {
    let kept = Kept::of(40, None, &[(12, "before-upgrade"), (25, "friday")]).await;
    let (bucket, keys) = (kept.bucket(), Keyring::default());
    let report = compacted(&bucket, &plan(40, 10, 0)).await.unwrap();
    assert_eq!(report.made.unwrap().after.number, 11);
    assert_eq!(report.held_by.as_deref(), Some("before-upgrade"));
    check(&bucket, &kept.disks, &keys, "held").await;
    let (passed, marks) = hydrate(&bucket, &keys).await.unwrap();
    assert_eq!(marks, ["before-upgrade", "friday"]);
    assert!(passed.contains_key(&12) && passed.contains_key(&25));

    let mut dropping = plan(40, 10, 0);
    dropping.drop_marks = vec!["before-upgrade".into()];
    let report = compacted(&bucket, &dropping).await.unwrap();
    assert_eq!(report.made.unwrap().after.number, 24);
    assert_eq!(hydrate(&bucket, &keys).await.unwrap().1, ["friday"]);
    check(&bucket, &kept.disks, &keys, "dropped").await;
}

#[tokio::test]
async fn a_target_half_written_from_one_base_is_made_whole_by_the_next() {
    let mut kept = Kept::of(20, None, &[]).await;
    let bucket = kept.bucket();
    compacted(&bucket, &plan(20, 5, 99)).await.unwrap();
    let base = Base::newest(&*bucket, GROUP).await.unwrap().unwrap();
    let mut disk = vec![0; DISK];
    let mut reader = BaseReader::new(bucket.clone(), base, vec![1 << 20]);
    while let Some(batches) = reader.next(&Keyring::default()).await.unwrap() {
        batches.iter().for_each(|batch| apply(&mut disk, batch));
    }
    kept.write(&bucket, 20, &[]).await;
    compacted(&bucket, &plan(40, 5, 0)).await.unwrap();
    let base = Base::newest(&*bucket, GROUP).await.unwrap().unwrap();
    assert_eq!((base.generation, base.after.number), (2, 35));
    let mut reader = BaseReader::new(bucket.clone(), base, vec![1 << 20]);
    while let Some(batches) = reader.next(&Keyring::default()).await.unwrap() {
        batches.iter().for_each(|batch| apply(&mut disk, batch));
    }
    assert!(disk == kept.disks[35]);
}

#[tokio::test]
async fn a_broken_stream_is_folded_up_to_its_last_point() {
    let kept = Kept::of(2, None, &[]).await;
    let report = compacted(&kept.bucket(), &plan(40, 0, 0)).await.unwrap();
    assert_eq!(report, Compacted::default(), "there is no point before HEAL");
}

#[tokio::test]
async fn what_a_base_replaces_stays_for_its_grace() {
    let kept = Kept::of(20, None, &[]).await;
    let bucket = kept.bucket();
    let mut slow = Reader::open(bucket.clone(), GROUP, 1).await.unwrap();
    let report = compacted(&bucket, &plan(100, 0, 50)).await.unwrap();
    assert_eq!((report.folded, report.freed_bytes), (0, 0));
    assert!(matches!(slow.next().await.unwrap(), Found::Batches(_)), "who reads goes on");
    let report = compacted(&bucket, &plan(151, 0, 50)).await.unwrap();
    assert_eq!(report.folded, 20);
    let error = slow.next().await.unwrap_err();
    assert!(error.to_string().contains("folded into the store's base"), "{error}");
}

#[tokio::test]
async fn a_sealed_store_has_a_sealed_base_and_needs_the_key() {
    let kept = Kept::of(20, Some(key()), &[]).await;
    let bucket = kept.bucket();
    let error = compacted(&bucket, &plan(20, 0, 0)).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotAuthorised, "{error}");
    let mut with_key = plan(20, 0, 0);
    with_key.keys.add(key());
    assert_eq!(compacted(&bucket, &with_key).await.unwrap().folded, 20);
    let error = hydrate(&bucket, &Keyring::default()).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotAuthorised, "{error}");
    check(&bucket, &kept.disks, &with_key.keys, "sealed").await;
    let plain = Kept::of(20, None, &[]).await;
    let error = compacted(&plain.bucket(), &with_key).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotAuthorised, "{error}");
}

#[tokio::test]
async fn nothing_is_given_back_for_a_base_that_is_damaged_and_nothing_damaged_is_folded() {
    let kept = Kept::of(20, None, &[]).await;
    let bucket = kept.bucket();
    compacted(&bucket, &plan(20, 0, 50)).await.unwrap();
    let part = crate::store::names::part(1, 1, 1);
    let sound = kept.shelf.get(&part, None).unwrap();
    for at in [20, sound.len() / 2, sound.len() - 1] {
        let mut bad = sound.to_vec();
        bad[at] ^= 1;
        kept.shelf.objects.lock().unwrap().insert(part.clone(), bad.into());
        let error = compacted(&bucket, &plan(90, 60, 0)).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Damaged, "{error}");
        assert_eq!(read_all(&bucket, 1).await.unwrap().len(), 20, "byte {at}: all is there");
    }
    let kept = Kept::of(20, None, &[]).await;
    let name = crate::store::names::object(1, 7);
    let mut bad = kept.shelf.get(&name, None).unwrap().to_vec();
    *bad.last_mut().unwrap() ^= 1;
    kept.shelf.objects.lock().unwrap().insert(name, bad.into());
    let error = compacted(&kept.bucket(), &plan(20, 0, 0)).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Damaged, "{error}");
    assert_eq!(Base::newest(&*kept.bucket(), GROUP).await.unwrap(), None);
}

/// What happens at one of the operations of a compaction.
enum Event {
    /// It dies before the operation, or right after it.
    Dies { done: bool },
    /// Another compaction runs from beginning to end.
    Other,
    /// A shipper that began before finds its end now: takes over with what it saw.
    Ships,
}

/// A store of which operation `at`, counted over reads and changes, is special.
struct Trap {
    shelf: Arc<Shelf>,
    event: Event,
    at: usize,
    seen: AtomicUsize,
    plan: Compaction,
}

impl Trap {
    /// Whether it dies after this operation.
    fn step(&self) -> crate::Result<bool> {
        let died = || Err(crate::Error::new(crate::ErrorKind::Unreachable, "died"));
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        match self.event {
            Event::Dies { .. } if seen > self.at => died(),
            Event::Dies { done } if seen == self.at => {
                if done {
                    Ok(true)
                } else {
                    died()
                }
            }
            Event::Other | Event::Ships if seen == self.at => {
                // All that it waits for is there at once.
                std::thread::scope(|scope| scope.spawn(|| self.meanwhile()).join()).unwrap();
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn meanwhile(&self) {
        let bucket: Arc<dyn Bucket> = self.shelf.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            if matches!(self.event, Event::Other) {
                compact(&bucket, &group(SESSION), &self.plan).await.unwrap();
                return;
            }
            let own = group(SessionId([9; 16]));
            let mut writer = Writer::take_over(&bucket, &own).await.unwrap();
            write(&bucket, &mut writer, SessionId([9; 16])).await;
        });
    }

    async fn around<T>(&self, done: Answer<'_, T>) -> crate::Result<T> {
        let dies = self.step()?;
        let answer = done.await;
        match dies {
            true => Err(crate::Error::new(crate::ErrorKind::Unreachable, "died")),
            false => answer,
        }
    }
}

impl Bucket for Trap {
    fn create<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, Created> {
        Box::pin(self.around(self.shelf.create(name, bytes)))
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        first: Option<u64>,
        max: u64,
    ) -> Answer<'a, Option<Bytes>> {
        Box::pin(self.around(self.shelf.read(name, first, max)))
    }

    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(self.around(self.shelf.replace(name, bytes)))
    }

    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(self.around(self.shelf.remove(name)))
    }
}

/// Runs the second compaction of a store with `event` at operation `at`; the store and the
/// disks, and whether the operation was reached.
async fn trapped(kept: &Kept, event: Event, at: usize) -> (Arc<Shelf>, bool, bool) {
    let shelf = kept.copy();
    let plan = plan(30, 5, 0);
    let (seen, plan_of_other) = (AtomicUsize::new(0), plan.clone());
    let trap = Arc::new(Trap { shelf: shelf.clone(), event, at, seen, plan: plan_of_other });
    let bucket: Arc<dyn Bucket> = trap.clone();
    let ended = compacted(&bucket, &plan).await;
    if let Err(error) = &ended {
        assert!(
            matches!(
                error.kind(),
                crate::ErrorKind::Unreachable | crate::ErrorKind::Busy | crate::ErrorKind::Damaged
            ),
            "{error}"
        );
    }
    (shelf, trap.seen.load(Ordering::Relaxed) > at, ended.is_ok())
}

/// A store with a base, another attempt's leavings, and more behind the base.
async fn compacted_once() -> Kept {
    let mut kept = Kept::of(15, None, &[]).await;
    let bucket = kept.bucket();
    compacted(&bucket, &plan(15, 5, 0)).await.unwrap();
    kept.write(&bucket, 15, &[(28, "kept")]).await;
    for at in 0.. {
        let (shelf, ..) = trapped(&kept, Event::Dies { done: false }, at).await;
        if shelf.get(&crate::store::names::part(2, 1, 1), None).is_some() {
            assert_eq!(Base::generations(&*shelf).await.unwrap(), 1, "it died before");
            kept.shelf = shelf;
            return kept;
        }
    }
    unreachable!("a part is put some time")
}

#[tokio::test]
async fn a_crash_at_every_operation_leaves_all_that_was_acknowledged() {
    let kept = compacted_once().await;
    let keys = Keyring::default();
    let mut operations = 0;
    for at in 0.. {
        let mut was_reached = false;
        for done in [false, true] {
            let what = format!("died at {at}, done: {done}");
            let (shelf, reached, _) = trapped(&kept, Event::Dies { done }, at).await;
            let bucket: Arc<dyn Bucket> = shelf.clone();
            was_reached |= reached;
            let base = check(&bucket, &kept.disks, &keys, &what).await;
            assert!(base == 10 || base == 25, "{what}: a base at {base}");
            let report = compacted(&bucket, &plan(30, 5, 0)).await;
            report.unwrap_or_else(|e| panic!("{what}, once more: {e}"));
            assert_eq!(check(&bucket, &kept.disks, &keys, &what).await, 25);
            assert_eq!(hydrate(&bucket, &keys).await.unwrap().1, ["kept"]);
            let parts = shelf.objects.lock().unwrap();
            let parts =
                parts.keys().filter(|name| name.starts_with("bases/") && name.ends_with("s"));
            assert_eq!(parts.count(), 1, "{what}: parts of nothing are left");
        }
        operations = at;
        if !was_reached {
            break;
        }
    }
    assert!(operations > 100, "only {operations} operations");
}

#[tokio::test]
async fn two_compactions_at_once_do_no_harm() {
    let kept = compacted_once().await;
    let keys = Keyring::default();
    let mut both_ended = 0;
    for at in 0.. {
        let (shelf, reached, is_ok) = trapped(&kept, Event::Other, at).await;
        let bucket: Arc<dyn Bucket> = shelf.clone();
        both_ended += u32::from(is_ok);
        let what = format!("another one at {at}");
        assert_eq!(check(&bucket, &kept.disks, &keys, &what).await, 25);
        compacted(&bucket, &plan(30, 5, 0)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(check(&bucket, &kept.disks, &keys, &what).await, 25);
        if !reached {
            break;
        }
    }
    assert!(both_ended > 10, "{both_ended}: one always fails");
}

#[tokio::test]
async fn a_shipper_that_takes_over_at_any_operation_goes_on_and_disturbs_nothing() {
    let kept = compacted_once().await;
    for at in 0.. {
        let (shelf, reached, _) = trapped(&kept, Event::Ships, at).await;
        let bucket: Arc<dyn Bucket> = shelf.clone();
        let (passed, _) = hydrate(&bucket, &Keyring::default()).await.unwrap();
        let last = if reached { 31 } else { 30 };
        assert_eq!(passed.keys().next_back(), Some(&last), "a takeover at {at}");
        assert!(passed[&30] == kept.disks[30]);
        if !reached {
            break;
        }
    }
}

#[tokio::test]
async fn a_shipper_that_looked_before_finds_no_free_place_where_there_was_one_taken() {
    let mut kept = Kept::of(20, None, &[]).await;
    let bucket = kept.bucket();
    // It made object 21 and stalls; its place is taken, the session ends, all is folded.
    let mut stalled = Writer::take_over(&bucket, &group(SessionId([2; 16]))).await.unwrap();
    stalled.push(&filled(stalled.after(), &mut Encoder::default(), &[]));
    let late = stalled.make().unwrap();
    kept.writer = Writer::take_over(&bucket, &group(SessionId([3; 16]))).await.unwrap();
    kept.write(&bucket, 5, &[]).await;
    let last = {
        kept.writer.push(&filled(kept.writer.after(), &mut Encoder::default(), &[]));
        let made = kept.writer.make().unwrap();
        put(&*bucket, &made).await.unwrap();
        made
    };
    let taken: Vec<String> = kept.shelf.objects.lock().unwrap().keys().cloned().collect();
    assert_eq!(compacted(&bucket, &plan(99, 0, 0)).await.unwrap().folded, 26);
    for name in &taken {
        assert!(kept.shelf.get(name, None).is_some(), "{name} is free: an END could be put there");
    }
    let error = put(&*bucket, &late).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Refused, "{error}");
    put(&*bucket, &last).await.expect("whose answer was lost is still ours once it is folded");
}

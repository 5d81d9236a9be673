//! The store under shippers that die, live on beside their successors and write late.

mod compact;
mod damage;
mod world;

use super::bucket::{Answer, Bucket, Created};
use super::writer::{Made, Writer, put};
use super::{Found, GroupFile, Reader};
use crate::batch::{BatchBuilder, Chain, Control, Encoder, Sealed};
use crate::ids::{GroupUuid, SessionId};
use crate::receiver::Stream;
use crate::wire::VolumeSize;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c};

pub(super) const GROUP: GroupUuid = GroupUuid([7; 16]);

pub(super) fn group(session: SessionId) -> GroupFile {
    GroupFile {
        version: 1,
        group: "erp".parse().unwrap(),
        group_uuid: GROUP,
        epoch: Epoch(1),
        volumes: vec![VolumeSize { name: "disk0".parse().unwrap(), size_bytes: 1 << 20 }],
        session,
    }
}

/// The batch of records that follows `after`: a write, and now and then a control record.
pub(super) fn batch(after: &Stream, session: SessionId, control: Option<Control>) -> Sealed {
    let chain = Chain {
        group: GROUP,
        session,
        number: after.number,
        hash: after.hash,
        stream_bytes: after.stream_bytes,
    };
    let seq = after.position.seq.next();
    let mut batch =
        BatchBuilder::records(Position::new(Epoch(1), Incarnation(1), seq), after.claims_upto);
    let content = format!("batch {} of {session}", after.number + 1);
    let crc = crc32c(content.as_bytes());
    batch.write(seq, VolumeId(0), 4096, content.as_bytes(), crc).unwrap();
    if let Some(control) = control {
        batch.control(seq.next(), control, &[]).unwrap();
    }
    Encoder::default().encode(batch, &chain, 1).unwrap()
}

/// Objects in memory.
#[derive(Default)]
pub(super) struct Shelf {
    pub objects: Mutex<BTreeMap<String, Bytes>>,
    /// Answers that get lost: the next creations happen, and say that they failed.
    pub lost_answers: Mutex<u32>,
}

impl Shelf {
    pub fn put_if_absent(&self, name: &str, bytes: Bytes) -> Created {
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(name) {
            return Created::Exists;
        }
        objects.insert(name.to_owned(), bytes);
        Created::Yes
    }

    pub fn get(&self, name: &str, first: Option<u64>) -> Option<Bytes> {
        let object = self.objects.lock().unwrap().get(name)?.clone();
        let len = first.map_or(object.len(), |first| object.len().min(first as usize));
        Some(object.slice(..len))
    }
}

impl Bucket for Shelf {
    fn create<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, Created> {
        Box::pin(async move {
            let created = self.put_if_absent(name, bytes);
            let mut lost = self.lost_answers.lock().unwrap();
            if *lost == 0 {
                return Ok(created);
            }
            *lost -= 1;
            Err(crate::Error::new(crate::ErrorKind::Unreachable, "the answer was lost"))
        })
    }

    fn read<'a>(&'a self, name: &'a str, first: Option<u64>, _: u64) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.get(name, first)) })
    }

    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            self.objects.lock().unwrap().insert(name.to_owned(), bytes);
            Ok(())
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.objects.lock().unwrap().remove(name);
            Ok(())
        })
    }
}

/// A store of `objects` objects of one batch each, and who wrote them.
pub(super) async fn written(objects: u64) -> (Arc<Shelf>, Arc<dyn Bucket>, Writer) {
    let shelf = Arc::new(Shelf::default());
    let bucket: Arc<dyn Bucket> = shelf.clone();
    let mut writer = Writer::take_over(&bucket, &group(SessionId([1; 16]))).await.unwrap();
    for _ in 0..objects {
        write(&bucket, &mut writer, SessionId([1; 16])).await;
    }
    (shelf, bucket, writer)
}

pub(super) async fn write(
    bucket: &Arc<dyn Bucket>,
    writer: &mut Writer,
    session: SessionId,
) -> Made {
    writer.push(&batch(writer.after(), session, None));
    let made = writer.make().unwrap();
    put(&**bucket, &made).await.unwrap();
    made
}

/// Everything from batch `number` on, each checked to follow the one before.
pub(super) async fn read_all(bucket: &Arc<dyn Bucket>, number: u64) -> crate::Result<Vec<Bytes>> {
    let mut reader = Reader::open(bucket.clone(), GROUP, number).await?;
    let mut all = Vec::new();
    while let Found::Batches(batches) = reader.next().await? {
        all.extend(batches);
    }
    Ok(all)
}

#[tokio::test]
async fn a_reader_begins_at_any_batch() {
    let (_, bucket, mut writer) = written(5).await;
    for n in 0..3_u8 {
        let session = SessionId([10 + n; 16]);
        writer = Writer::take_over(&bucket, &group(session)).await.unwrap();
        for _ in 0..n {
            for _ in 0..3 {
                writer.push(&batch(writer.after(), session, None));
            }
            put(&*bucket, &writer.make().unwrap()).await.unwrap();
        }
    }
    let all = read_all(&bucket, 1).await.unwrap();
    assert_eq!(all.len() as u64, writer.after().number);
    for number in 1..=all.len() + 1 {
        assert_eq!(read_all(&bucket, number as u64).await.unwrap(), all[number - 1..]);
    }
}

#[tokio::test]
async fn an_object_whose_answer_was_lost_is_put_once_and_counts() {
    let (shelf, bucket, mut writer) = written(2).await;
    writer.push(&batch(writer.after(), SessionId([1; 16]), None));
    let made = writer.make().unwrap();
    *shelf.lost_answers.lock().unwrap() = 1;
    assert_eq!(put(&*bucket, &made).await.unwrap_err().kind(), crate::ErrorKind::Unreachable);
    put(&*bucket, &made).await.expect("the same object is there: it is ours");
    assert_eq!(read_all(&bucket, 1).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_takeover_whose_answer_was_lost_is_not_taken_for_another_shippers() {
    let (shelf, bucket, _) = written(2).await;
    *shelf.lost_answers.lock().unwrap() = 1;
    let own = group(SessionId([2; 16]));
    assert!(Writer::take_over(&bucket, &own).await.is_err());
    let writer = Writer::take_over(&bucket, &own).await.unwrap();
    // The first attempt's session 2 has no object and was ended in its turn.
    assert_eq!((writer.session(), writer.after().number), (3, 2));
}

#[tokio::test]
async fn the_shipper_that_was_taken_over_hears_it_at_its_next_object() {
    let (_, bucket, mut old) = written(2).await;
    let mut new = Writer::take_over(&bucket, &group(SessionId([2; 16]))).await.unwrap();
    old.push(&batch(old.after(), SessionId([1; 16]), None));
    let error = put(&*bucket, &old.make().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Refused, "{error}");
    write(&bucket, &mut new, SessionId([2; 16])).await;
    assert_eq!(read_all(&bucket, 1).await.unwrap().len(), 3);
}

#[tokio::test]
async fn another_group_other_volumes_and_an_older_epoch_are_refused() {
    let (_, bucket, mut writer) = written(1).await;
    let mut other = group(SessionId([2; 16]));
    other.group_uuid = GroupUuid([8; 16]);
    let mut resized = group(SessionId([2; 16]));
    resized.volumes[0].size_bytes *= 2;
    for own in [other, resized] {
        let error = Writer::take_over(&bucket, &own).await.err().unwrap();
        // Somebody can put that right: it is tried again.
        assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{error}");
    }
    let mut batch = BatchBuilder::records(Position::new(Epoch(3), Incarnation(1), Seq(1)), 0);
    batch.barrier(Seq(1)).unwrap();
    let after = writer.after().clone();
    let chain = Chain {
        group: GROUP,
        session: SessionId([1; 16]),
        number: after.number,
        hash: after.hash,
        stream_bytes: after.stream_bytes,
    };
    writer.push(&batch.encode(&chain, 1));
    put(&*bucket, &writer.make().unwrap()).await.unwrap();
    let error = Writer::take_over(&bucket, &group(SessionId([2; 16]))).await.err().unwrap();
    assert_eq!(error.kind(), crate::ErrorKind::Refused, "{error}");
}

#[test]
fn the_stream_after_an_own_batch_is_what_reading_it_says() {
    let controls = [
        None,
        Some(Control::Heal),
        None,
        Some(Control::Break),
        None,
        Some(Control::Resync),
        Some(Control::Heal),
        Some(Control::Seal),
        None,
    ];
    let mut stream = Stream::default();
    for control in controls {
        let sealed = batch(&stream, SessionId([1; 16]), control);
        let opened =
            crate::batch::Batch::open(sealed.bytes.clone(), &crate::batch::Keyring::default());
        let read = stream.follow(GROUP, &opened.unwrap().view()).unwrap();
        assert_eq!(stream.then(&sealed), read, "{control:?}");
        stream = read;
    }
}

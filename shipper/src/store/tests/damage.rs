//! Objects that are damaged, gone, misplaced or hostile.

use super::*;
use crate::ErrorKind;
use crate::store::reader::LOOK_FOR_HOLES_AT;
use crate::store::{OBJECT_HEADER_BYTES, ObjectHeader, names};

async fn read_error(bucket: &Arc<dyn Bucket>) -> crate::Error {
    read_all(bucket, 1).await.expect_err("it is damaged")
}

#[tokio::test]
async fn every_flipped_bit_of_a_header_is_found() {
    let (shelf, ..) = written(1).await;
    let object = shelf.get(&names::object(1, 1), None).unwrap();
    assert!(ObjectHeader::read(&object, GROUP, 1, 1).is_ok());
    for bit in 0..OBJECT_HEADER_BYTES * 8 {
        let mut flipped = object.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = ObjectHeader::read(&flipped, GROUP, 1, 1).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Damaged | ErrorKind::TooNew),
            "bit {bit}: {error}"
        );
    }
    for len in 0..OBJECT_HEADER_BYTES {
        assert!(ObjectHeader::read(&object[..len], GROUP, 1, 1).is_err());
    }
}

#[tokio::test]
async fn an_object_at_another_place_or_of_another_group_is_not_used() {
    let (shelf, bucket, _) = written(3).await;
    let object = shelf.get(&names::object(1, 2), None).unwrap();
    assert!(ObjectHeader::read(&object, GroupUuid([8; 16]), 1, 2).is_err());
    shelf.objects.lock().unwrap().insert(names::object(1, 3), object);
    let error = read_error(&bucket).await;
    assert!(error.to_string().contains("belongs at another place"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_cut_off_or_longer_is_damaged_and_nothing_of_it_is_used() {
    let (shelf, bucket, _) = written(2).await;
    let name = names::object(1, 2);
    let object = shelf.get(&name, None).unwrap();
    for bytes in [object.slice(..object.len() - 1), [&object[..], b"x"].concat().into()] {
        shelf.objects.lock().unwrap().insert(name.clone(), bytes);
        let error = read_error(&bucket).await;
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        let error = Writer::take_over(&bucket, &group(SessionId([2; 16]))).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }
}

#[tokio::test]
async fn nothing_is_built_upon_a_last_batch_that_is_not_what_its_header_says() {
    let (shelf, bucket, _) = written(2).await;
    let name = names::object(1, 2);
    let mut object = shelf.get(&name, None).unwrap().to_vec();
    let at = object.len() - 40;
    object[at] ^= 1;
    shelf.objects.lock().unwrap().insert(name, object.into());
    let error = Writer::take_over(&bucket, &group(SessionId([2; 16]))).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

#[tokio::test]
async fn an_object_that_was_removed_is_missed() {
    let (shelf, bucket, _) = written(40).await;
    let all = read_all(&bucket, 1).await.unwrap();
    shelf.objects.lock().unwrap().remove(&names::object(1, 5));
    let error = read_error(&bucket).await;
    assert!(error.to_string().contains("is missing"), "{error}");
    assert_eq!(read_all(&bucket, 6).await.unwrap(), all[5..], "what is behind it is not lost");
}

#[tokio::test]
async fn a_group_file_with_a_path_for_a_name_is_refused() {
    let (shelf, bucket, _) = written(1).await;
    let text = String::from_utf8(shelf.get(names::GROUP, None).unwrap().to_vec()).unwrap();
    for (from, to) in [
        ("\"disk0\"", "\"../../etc/passwd\""),
        ("\"disk0\"", "\"/dev/sda\""),
        ("\"erp\"", "\"../erp\""),
        ("\"erp\"", "\"other\""),
        ("\"version\": 1", "\"version\": 9"),
        ("{", ""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        shelf.objects.lock().unwrap().insert(names::GROUP.into(), changed.into());
        let error = GroupFile::load(&*bucket, &"erp".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::TooNew), "{error}");
    }
}

#[tokio::test]
async fn an_object_that_stays_away_though_later_ones_are_there_is_named() {
    let (shelf, bucket, _) = written(4).await;
    let name = names::object(1, 2);
    let away = shelf.objects.lock().unwrap().remove(&name).unwrap();
    let mut reader = Reader::open(bucket.clone(), GROUP, 1).await.unwrap();
    assert!(matches!(reader.next().await.unwrap(), Found::Batches(_)));
    for _ in 0..=LOOK_FOR_HOLES_AT {
        assert_eq!(reader.hole(), None, "it may be on its way");
        assert_eq!(reader.next().await.unwrap(), Found::Nothing);
    }
    assert_eq!(reader.hole(), Some(name.as_str()));
    shelf.objects.lock().unwrap().insert(name, away);
    assert!(matches!(reader.next().await.unwrap(), Found::Batches(_)));
    assert_eq!(reader.hole(), None);
}

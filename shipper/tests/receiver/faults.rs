//! The receiver's own disks fail: the shipper hears why, nothing acknowledged is
//! lost, and it goes on by itself when there is room again.

use crate::lab::{Lab, Sender};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use towline_shipper::batch::Control;
use towline_shipper::receiver::medium::{Event, Medium, Observe};
use towline_shipper::receiver::{Receiver, ReceiverStatus};
use towline_shipper::wire::RefusalCode;

/// Fails what is written or synced below a path, while told to.
#[derive(Default)]
pub struct Faults(Mutex<Option<(PathBuf, i32)>>);

impl Faults {
    pub fn set(&self, path: PathBuf, errno: i32) {
        *self.0.lock().unwrap() = Some((path, errno));
    }

    pub fn clear(&self) {
        *self.0.lock().unwrap() = None;
    }
}

impl Observe for Faults {
    fn event(&self, event: Event<'_>) -> std::io::Result<()> {
        let (Event::Write { file, .. } | Event::Sync { file }) = event else { return Ok(()) };
        match &*self.0.lock().unwrap() {
            Some((path, errno)) if file.starts_with(path) => {
                Err(std::io::Error::from_raw_os_error(*errno))
            }
            _ => Ok(()),
        }
    }
}

pub fn start_faulty(lab: &Lab) -> (Receiver, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let medium = Medium::observed(faults.clone());
    (Receiver::start_on(lab.config(), medium).unwrap(), faults)
}

#[tokio::test]
async fn a_full_staging_disk_ends_the_session_with_a_sentence_and_loses_nothing() {
    for (errno, code) in [(28, RefusalCode::NoSpace), (5, RefusalCode::Storage)] {
        let lab = Lab::new();
        let (receiver, faults) = start_faulty(&lab);
        let mut sender = Sender::connect(&lab, &receiver).await;
        sender.ship(&[(0, 0, b"before")], &[Control::Heal]).await;
        sender.applied(1).await;
        faults.set(lab.state_dir().join("receive/stage"), errno);
        sender.ship(&[(0, 0, b"during")], &[]).await;
        let refusal = sender.refused().await;
        assert_eq!(refusal.code, code);
        assert!(refusal.message.contains("receive/stage/"), "{}", refusal.message);
        faults.clear();
        let mut again = Sender::connect(&lab, &receiver).await;
        assert_eq!(again.welcome.number, 1);
        again.ship(&[(0, 0, b"after!")], &[]).await;
        again.applied(2).await;
        drop(again);
        receiver.stop();
        let receiver = lab.start();
        assert_eq!(Sender::connect(&lab, &receiver).await.welcome.number, 2);
        assert_eq!(&lab.contents(0)[..6], b"after!");
    }
}

#[tokio::test]
async fn a_failing_target_stops_applying_only_and_goes_on_by_itself() {
    let lab = Lab::new();
    let (receiver, faults) = start_faulty(&lab);
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[], &[Control::Heal]).await;
    sender.applied(1).await;
    faults.set(lab.target(1), 5);
    sender.ship(&[(0, 0, b"both"), (1, 0, b"both")], &[]).await;
    sender.ship(&[(0, 0, b"next")], &[]).await;
    assert_eq!(sender.acked(3).await.applied, 1);
    let said =
        || ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap().state.last_error;
    while said().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(said().unwrap().contains("disk1.img"), "{:?}", said());
    faults.clear();
    sender.applied(3).await;
    assert_eq!((&lab.contents(0)[..4], &lab.contents(1)[..4]), (&b"next"[..], &b"both"[..]));
    assert_eq!(said(), None);
}

#[tokio::test]
async fn a_decision_that_cannot_be_made_durable_is_none() {
    let lab = Lab::new();
    let (receiver, faults) = start_faulty(&lab);
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"data")], &[Control::Heal, Control::Seal]).await;
    sender.applied(1).await;
    faults.set(lab.state_dir().join("receive/state.tmp"), 28);
    sender.send(&crate::takeover::promote("a-1", crate::lab::at(3), false)).await;
    assert_eq!(sender.refused().await.code, RefusalCode::NoSpace);
    faults.clear();
    let again = Sender::connect(&lab, &receiver).await;
    assert_eq!(again.welcome.promoted, None);
    assert!(lab.served.volumes.lock().unwrap().is_empty());
}

/// A disk that is full as long as marks lie on it.
struct FullOfMarks(PathBuf);

fn bytes_in(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().map_or(0, |meta| meta.len())).sum()
}

impl Observe for FullOfMarks {
    fn event(&self, event: Event<'_>) -> std::io::Result<()> {
        let Event::Write { file, .. } = event else { return Ok(()) };
        match file.starts_with(self.0.join("stage")) && bytes_in(&self.0.join("marks")) > 64 << 10 {
            true => Err(std::io::Error::from_raw_os_error(28)),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn marks_let_go_of_their_room_where_staging_has_none() {
    let mut lab = Lab::new();
    lab.limits.marks.every = Some(std::time::Duration::from_nanos(1));
    let medium = Medium::observed(Arc::new(FullOfMarks(lab.state_dir().join("receive"))));
    let receiver = Receiver::start_on(lab.config(), medium).unwrap();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"before")], &[Control::Heal]).await;
    sender.applied(1).await;
    // The mark behind it keeps what this one overwrites.
    sender.ship(&[(0, 0, &[1; 128 << 10])], &[]).await;
    sender.applied(2).await;
    assert!(bytes_in(&lab.state_dir().join("receive/marks")) > 64 << 10);
    sender.ship(&[(0, 0, b"during")], &[]).await;
    assert_eq!(sender.refused().await.code, RefusalCode::NoSpace);
    let mut again = Sender::connect(&lab, &receiver).await;
    assert_eq!(again.welcome.number, 2);
    again.ship(&[(0, 0, b"after!")], &[]).await;
    again.applied(3).await;
    assert_eq!(&lab.contents(0)[..6], b"after!");
    receiver.stop();
}

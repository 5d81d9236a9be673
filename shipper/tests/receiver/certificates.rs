//! Only the right certificate writes a group.

use crate::lab::{Lab, Sender, group, hello};
use std::os::unix::fs::PermissionsExt;
use towline_shipper::ErrorKind;
use towline_shipper::pki;
use towline_shipper::security::{Security, connect};
use towline_shipper::wire::{Message, RefusalCode, read_message, write_message};

fn lab_with_pki() -> Lab {
    let mut lab = Lab::new();
    let dir = lab.path().join("pki");
    pki::init(&dir, false).unwrap();
    pki::issue_receiver(&dir, false).unwrap();
    pki::issue_group(&dir, &group("erp"), false).unwrap();
    lab.security = Security::Pki(dir);
    lab
}

#[tokio::test]
async fn the_groups_certificate_ships_over_tls() {
    let lab = lab_with_pki();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, &[5; 1 << 20])], &[]).await;
    sender.applied(1).await;
    assert_eq!(lab.contents(0), vec![5; 1 << 20]);
    receiver.stop();
}

#[tokio::test]
async fn the_right_ca_is_not_yet_the_right_to_write_another_group() {
    let lab = lab_with_pki();
    let Security::Pki(dir) = &lab.security else { panic!() };
    pki::issue_group(dir, &group("crm"), false).unwrap();
    let receiver = lab.start();
    let address = receiver.address().unwrap().to_string();
    let stream = connect(&lab.security, &address, &group("crm")).await.unwrap();
    let refusal = Sender::introduce(stream, hello()).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::NotAuthorised);
    assert!(refusal.message.contains("erp.group.towline.internal"), "{}", refusal.message);
    drop(Sender::connect(&lab, &receiver).await);
    receiver.stop();
}

#[tokio::test]
async fn another_cas_certificate_is_refused_on_both_sides() {
    let lab = lab_with_pki();
    let other = lab_with_pki();
    let receiver = lab.start();
    let address = receiver.address().unwrap().to_string();
    let error = connect(&other.security, &address, &group("erp")).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");

    // A shipper that trusts the receiver's CA but shows another CA's certificate.
    let (Security::Pki(ours), Security::Pki(theirs)) = (&lab.security, &other.security) else {
        panic!()
    };
    std::fs::copy(pki::ca_files(ours).certificate, pki::ca_files(theirs).certificate).unwrap();
    let heard = async {
        let mut stream = connect(&other.security, &address, &group("erp")).await?;
        write_message(&mut stream, &Message::Hello(hello())).await?;
        read_message(&mut stream).await
    };
    assert!(!matches!(heard.await, Ok(Some(_))), "nobody is welcomed without a certificate");
    receiver.stop();
}

#[tokio::test]
async fn a_groups_certificate_is_no_receivers() {
    let lab = lab_with_pki();
    let Security::Pki(dir) = &lab.security else { panic!() };
    let (false_one, real) = (pki::group_files(dir, &group("erp")), pki::receiver_files(dir));
    std::fs::copy(false_one.certificate, real.certificate).unwrap();
    std::fs::copy(false_one.key, real.key).unwrap();
    let receiver = lab.start();
    let address = receiver.address().unwrap().to_string();
    let error = connect(&lab.security, &address, &group("erp")).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");
    receiver.stop();
}

#[test]
fn keys_are_private_and_nothing_is_overwritten_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let missing = pki::issue_receiver(dir.path(), false).unwrap_err();
    assert!(missing.to_string().contains("pki init"), "{missing}");
    let ca = pki::init(dir.path(), false).unwrap();
    let before = std::fs::read(&ca.key).unwrap();
    assert_eq!(std::fs::metadata(&ca.key).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = pki::init(dir.path(), false).unwrap_err();
    assert!(refused.to_string().contains("--force"), "{refused}");
    assert_eq!(std::fs::read(&ca.key).unwrap(), before);
    pki::issue_receiver(dir.path(), false).unwrap();
    assert!(pki::issue_receiver(dir.path(), false).is_err());
    pki::issue_receiver(dir.path(), true).unwrap();
    pki::init(dir.path(), true).unwrap();
    assert_ne!(std::fs::read(&ca.key).unwrap(), before);
}

#[tokio::test]
async fn insecure_shippers_speak_to_loopback_only() {
    let error = connect(&Security::InsecureLoopback, "192.0.2.1:9", &group("erp")).await.err();
    assert_eq!(error.unwrap().kind(), ErrorKind::NotAuthorised);
}

//! Only the right certificate writes a group.

use crate::lab::{Lab, Sender, group, hello};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    date_time_ymd,
};
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

/// Replaces a certificate by one of the same CA and names that has ended.
fn expire(
    dir: &std::path::Path,
    files: &pki::Files,
    dns_name: &str,
    usage: ExtendedKeyUsagePurpose,
) {
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(pki::ca_files(dir).key).unwrap());
    let mut ca = CertificateParams::default();
    ca.distinguished_name = DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "Towline CA");
    let issuer = Issuer::new(ca, ca_key.unwrap());
    let mut params = CertificateParams::new(vec![dns_name.to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(&files.certificate, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
}

/// What a shipper gets to hear after HELLO, if anything.
async fn welcomed(lab: &Lab, address: &str) -> bool {
    let heard = async {
        let mut stream = connect(&lab.security, address, &group("erp")).await?;
        write_message(&mut stream, &Message::Hello(hello())).await?;
        read_message(&mut stream).await
    };
    matches!(heard.await, Ok(Some(Message::Welcome(_))))
}

#[tokio::test]
async fn a_certificate_that_has_ended_opens_nothing_on_either_side() {
    let lab = lab_with_pki();
    let Security::Pki(dir) = &lab.security else { panic!() };
    let receiver = lab.start();
    let address = receiver.address().unwrap().to_string();
    assert!(welcomed(&lab, &address).await);
    let (files, name) = (pki::group_files(dir, &group("erp")), pki::group_dns_name(&group("erp")));
    expire(dir, &files, &name, ExtendedKeyUsagePurpose::ClientAuth);
    assert!(!welcomed(&lab, &address).await, "the shipper's has ended");
    receiver.stop();

    let lab = lab_with_pki();
    let Security::Pki(dir) = &lab.security else { panic!() };
    let files = pki::receiver_files(dir);
    expire(dir, &files, pki::RECEIVER_NAME, ExtendedKeyUsagePurpose::ServerAuth);
    let receiver = lab.start();
    let error =
        connect(&lab.security, &receiver.address().unwrap().to_string(), &group("erp")).await.err();
    assert_eq!(error.unwrap().kind(), ErrorKind::NotAuthorised, "the receiver's has ended");
    receiver.stop();
}

#[tokio::test]
async fn a_receivers_certificate_is_no_shippers() {
    let lab = lab_with_pki();
    let Security::Pki(dir) = &lab.security else { panic!() };
    let receiver = lab.start();
    let address = receiver.address().unwrap().to_string();
    let (real, stolen) = (pki::receiver_files(dir), pki::group_files(dir, &group("erp")));
    std::fs::copy(real.certificate, stolen.certificate).unwrap();
    std::fs::copy(real.key, stolen.key).unwrap();
    assert!(!welcomed(&lab, &address).await);
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

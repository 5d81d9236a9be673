//! Certificates: a private CA in a directory, one certificate for the receiver
//! and one for each group's shipper.
//!
//! A group's certificate carries the DNS name `<group>.group.towline.internal`;
//! that name, not the CA's signature alone, is the right to write the group.

use crate::error::{Error, ErrorKind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use towline_block::GroupName;

/// The name every receiver's certificate carries.
pub const RECEIVER_NAME: &str = "receiver.towline.internal";

/// The name that gives the right to write `group`.
pub fn group_dns_name(group: &GroupName) -> String {
    format!("{group}.group.towline.internal")
}

/// Where a certificate and its key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub fn ca_files(dir: &Path) -> Files {
    files(dir, "ca")
}

pub fn receiver_files(dir: &Path) -> Files {
    files(dir, "receiver")
}

pub fn group_files(dir: &Path, group: &GroupName) -> Files {
    files(dir, &format!("group-{group}"))
}

fn files(dir: &Path, stem: &str) -> Files {
    Files { certificate: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")) }
}

/// Creates a CA in `dir`.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when there is one already and not `force`.
pub fn init(dir: &Path, force: bool) -> Result<Files> {
    fs::create_dir_all(dir)
        .map_err(|e| Error::storage(format!("cannot create {}", dir.display()), e))?;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = ca_params().self_signed(&key).map_err(failed)?;
    let files = ca_files(dir);
    write(&files, &certificate.pem(), &key, force)?;
    Ok(files)
}

/// Issues the receiver's certificate from the CA in `dir`.
pub fn issue_receiver(dir: &Path, force: bool) -> Result<Files> {
    let names = vec![RECEIVER_NAME.to_owned()];
    issue(dir, "receiver", names, ExtendedKeyUsagePurpose::ServerAuth, receiver_files(dir), force)
}

/// Issues the certificate that may write `group` from the CA in `dir`.
pub fn issue_group(dir: &Path, group: &GroupName, force: bool) -> Result<Files> {
    let names = vec![group_dns_name(group)];
    let files = group_files(dir, group);
    issue(dir, group.as_str(), names, ExtendedKeyUsagePurpose::ClientAuth, files, force)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Towline CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn issue(
    dir: &Path,
    name: &str,
    dns_names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    files: Files,
    force: bool,
) -> Result<Files> {
    let ca = ca_files(dir);
    let pem = fs::read_to_string(&ca.key).map_err(|e| {
        let what = format!("no CA key at {}: run `towline pki init` there first", ca.key.display());
        Error::caused(ErrorKind::InvalidInput, what, e)
    })?;
    let ca_key = KeyPair::from_pem(&pem).map_err(|e| {
        let what = format!("{} is not a private key", ca.key.display());
        Error::caused(ErrorKind::InvalidInput, what, e)
    })?;
    let issuer = Issuer::new(ca_params(), ca_key);
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(dns_names).map_err(failed)?;
    params.distinguished_name = common_name(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    write(&files, &certificate.pem(), &key, force)?;
    Ok(files)
}

fn failed(error: rcgen::Error) -> Error {
    Error::caused(ErrorKind::InvalidInput, "cannot make a certificate", error)
}

/// The key goes first: a certificate without a key is of no use to anybody.
fn write(files: &Files, certificate: &str, key: &KeyPair, force: bool) -> Result<()> {
    if !force {
        for path in [&files.key, &files.certificate] {
            if path.exists() {
                let what = format!(
                    "{} exists and is not overwritten: certificates already issued would stop \
                     working; say --force if that is meant",
                    path.display()
                );
                return Err(Error::new(ErrorKind::InvalidInput, what));
            }
        }
    }
    write_new(&files.key, key.serialize_pem().as_bytes(), 0o600)?;
    write_new(&files.certificate, certificate.as_bytes(), 0o644)
}

/// Puts `bytes` where only the owner may read them, replacing what is there.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    write_new(path, bytes, 0o600)
}

/// Writes beside and renames over, so that no moment shows half a key or wrong rights.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let write = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => dir,
            None => Path::new("."),
        })?
        .sync_all()
    };
    write().map_err(|e| Error::storage(format!("cannot write {}", path.display()), e))
}

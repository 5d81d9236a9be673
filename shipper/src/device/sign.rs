//! Who signed a manifest: the group's own certificate, whose key is the right to write the
//! group over the network, too.

use crate::error::{Error, ErrorKind, Result};
use crate::pki;
use crate::security;
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use towline_block::GroupName;

/// What is signed begins with this, so that no signature made for another end fits.
const PURPOSE: &[u8] = b"towline device manifest 1\n";
/// Schemes that a manifest is signed with, best first.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
];
/// Certificates from the group's to the CA.
const CHAIN_MAX: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Of TLS 1.3, by its number.
    scheme: u16,
    /// DER in hexadecimal, the group's first.
    certificates: Vec<String>,
    /// In hexadecimal.
    signature: String,
}

/// Signs manifests of one group.
#[derive(Debug)]
pub struct ManifestSigner {
    signer: Box<dyn rustls::sign::Signer>,
    certificates: Vec<String>,
}

impl ManifestSigner {
    /// By the group's certificate and key in a folder of `towline pki`.
    pub fn load(dir: &Path, group: &GroupName) -> Result<ManifestSigner> {
        let (chain, key) = security::load(&pki::group_files(dir, group))?;
        let unusable = |e| {
            let what = format!("the key of group {group} in {} cannot sign", dir.display());
            Error::caused(ErrorKind::InvalidInput, what, e)
        };
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(unusable)?;
        let signer = key.choose_scheme(&SCHEMES).ok_or_else(|| {
            unusable(rustls::Error::General("no scheme that fits the key is known".into()))
        })?;
        let certificates = chain.iter().map(|certificate| to_hex(certificate)).collect();
        Ok(ManifestSigner { signer, certificates })
    }

    pub(crate) fn sign(&self, line: &[u8]) -> Result<Signature> {
        let signature = self.signer.sign(&[PURPOSE, line].concat()).map_err(|e| {
            Error::caused(ErrorKind::InvalidInput, "the manifest cannot be signed", e)
        })?;
        Ok(Signature {
            scheme: self.signer.scheme().into(),
            certificates: self.certificates.clone(),
            signature: to_hex(&signature),
        })
    }
}

/// Whose manifests are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those signed by a certificate of this folder's CA that names the group.
    Pki(PathBuf),
    /// All: whoever had the devices in hand may have written them.
    Unsigned,
}

impl Trust {
    /// # Errors
    /// [`ErrorKind::NotAuthorised`].
    pub(crate) fn check(
        &self,
        group: &GroupName,
        line: &[u8],
        signature: Option<&Signature>,
    ) -> Result<()> {
        let Trust::Pki(dir) = self else { return Ok(()) };
        let denied = |what: String| Error::new(ErrorKind::NotAuthorised, what);
        let Some(signature) = signature else {
            return Err(denied(format!(
                "the manifest of group {group} is not signed: export with --pki DIR, or say \
                 --unsigned if whoever had the device is trusted"
            )));
        };
        signature.verify(dir, group, line).map_err(|why| {
            denied(format!(
                "the manifest of group {group} is not signed by who may write the group: {why}"
            ))
        })
    }
}

impl Signature {
    fn verify(
        &self,
        dir: &Path,
        group: &GroupName,
        line: &[u8],
    ) -> std::result::Result<(), String> {
        let text = |e: webpki::Error| e.to_string();
        if self.certificates.len() > CHAIN_MAX {
            return Err("too many certificates".into());
        }
        let chain: Vec<CertificateDer<'_>> = self
            .certificates
            .iter()
            .map(|certificate| from_hex(certificate).map(CertificateDer::from))
            .collect::<Option<_>>()
            .ok_or("a certificate is no hexadecimal")?;
        let (leaf, intermediates) = chain.split_first().ok_or("no certificate")?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(text)?;
        let algorithms = security::provider().signature_verification_algorithms;
        let roots = security::roots(dir).map_err(|e| e.to_string())?;
        leaf.verify_for_usage(
            algorithms.all,
            &roots.roots,
            intermediates,
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(text)?;
        let name = pki::group_dns_name(group);
        let name = ServerName::try_from(name.as_str()).map_err(|e| e.to_string())?;
        leaf.verify_is_valid_for_subject_name(&name).map_err(text)?;
        let scheme = SignatureScheme::from(self.scheme);
        let known = SCHEMES.contains(&scheme);
        let mapped = algorithms.mapping.iter().find(|(of, _)| known && *of == scheme);
        let (_, candidates) = mapped.ok_or("its scheme is not known")?;
        let signature = from_hex(&self.signature).ok_or("the signature is no hexadecimal")?;
        let signed = [PURPOSE, line].concat();
        let fits = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
            leaf.verify_signature(*algorithm, &signed, &signature).is_ok()
        };
        match candidates.iter().any(fits) {
            true => Ok(()),
            false => Err("the signature does not fit".into()),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

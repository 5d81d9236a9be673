//! Who may speak to whom: mutual TLS 1.3 on a private CA, or nothing at all on
//! loopback.
//!
//! The receiver proves `receiver.towline.internal`; the shipper proves that it may
//! write a group. A certificate of the right CA is not yet that right:
//! [`Peer::authorise`] must be asked for the group of the HELLO.

use crate::error::{Error, ErrorKind, Result};
use crate::pki::{self, Files};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use towline_block::GroupName;
use towline_block::sys::socket;

/// How the two sides know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Mutual TLS with the CA and certificates in this directory.
    Pki(PathBuf),
    /// No protection; any address outside loopback is refused on both sides.
    InsecureLoopback,
}

/// A connection, whatever protects it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

pub type BoxedConnection = Box<dyn Connection>;

/// Name, connection and handshake. A path that drops packets answers nothing.
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// One attempt of it. At 3 seconds the kernel has tried twice.
const DIAL_MAX: Duration = Duration::from_secs(3);

/// After a silence the next packet is sent again within this time.
const RETRANSMISSION_MAX: Duration = Duration::from_secs(1);

/// So much of a connection's stream waits in the kernel. The rest of a batch waits here, and
/// the next one goes by another connection while this one's packets are lost.
const UNSENT_BYTES_MAX: u32 = 1 << 20;

/// Connects to a receiver and proves the right to write `group`.
pub async fn connect(
    security: &Security,
    address: &str,
    group: &GroupName,
) -> Result<BoxedConnection> {
    let connected = timeout(CONNECT_TIME_MAX, reach(security, address, group)).await;
    connected.unwrap_or_else(|_| {
        let what = format!("the receiver at {address} does not answer");
        Err(Error::new(ErrorKind::Unreachable, what))
    })
}

async fn reach(security: &Security, address: &str, group: &GroupName) -> Result<BoxedConnection> {
    let tls = match security {
        Security::Pki(dir) => Some(client_config(dir, group)?),
        Security::InsecureLoopback => None,
    };
    let unreachable = |e| {
        let what = format!("cannot reach the receiver at {address}");
        Error::caused(ErrorKind::Unreachable, what, e)
    };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host(address).await.map_err(unreachable)?.collect();
    if tls.is_none() {
        addresses.iter().try_for_each(|address| check_loopback(*address))?;
    }
    let tcp = dial(&addresses).await.map_err(unreachable)?;
    let Some(config) = tls else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(pki::RECEIVER_NAME)
        .map_err(|e| Error::caused(ErrorKind::InvalidInput, "the receiver's name", e))?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
    let stream = stream.map_err(|e| {
        let kind = handshake_kind(&e);
        let what = match kind {
            _ if is_of_another_time(&e) => format!(
                "the certificate of the receiver at {address} is expired or not yet valid: issue it anew \
                 and restart the receiver, or set this host's clock"
            ),
            ErrorKind::NotAuthorised => format!(
                "{address} is no receiver of this CA: check that both sides' certificates were issued \
                 from the same directory"
            ),
            _ => format!("the receiver at {address} ended the connection in the handshake"),
        };
        Error::caused(kind, what, e)
    })?;
    Ok(Box::new(stream))
}

/// Connects to the first of the addresses that answers, again and again while none says
/// anything: the kernel's own attempts are 1, 2, 4 seconds apart, and a link that comes back
/// between two is not to be waited for.
async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        for &address in addresses {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            tune(socket.as_fd());
            match timeout(DIAL_MAX, socket.connect(address)).await {
                Ok(Ok(tcp)) => {
                    tcp.set_nodelay(true)?;
                    return Ok(tcp);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        if last.kind() != io::ErrorKind::TimedOut {
            return Err(last);
        }
    }
}

/// What a stream over a long path asks of TCP. Older kernels know only some of it.
fn tune(tcp: BorrowedFd<'_>) {
    let _ = socket::cap_retransmission(tcp, RETRANSMISSION_MAX);
    let _ = socket::limit_unsent(tcp, UNSENT_BYTES_MAX);
}

/// Only a certificate's failure is final; a broken connection is tried again.
fn handshake_kind(error: &std::io::Error) -> ErrorKind {
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    if is_tls { ErrorKind::NotAuthorised } else { ErrorKind::Unreachable }
}

/// The other side's certificate is expired or not yet valid.
fn is_of_another_time(error: &io::Error) -> bool {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = tls else { return false };
    matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

/// The receiving side: what it needs to accept connections, loaded once.
#[derive(Clone)]
pub struct Acceptor {
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Acceptor {
    pub fn new(security: &Security) -> Result<Acceptor> {
        let tls = match security {
            Security::Pki(dir) => Some(server_config(dir)?.into()),
            Security::InsecureLoopback => None,
        };
        Ok(Acceptor { tls })
    }

    /// Whether this side may listen on `address`.
    pub fn check_listen(&self, address: SocketAddr) -> Result<()> {
        if self.tls.is_some() { Ok(()) } else { check_loopback(address) }
    }

    /// The handshake, on a connection that was just accepted.
    pub async fn accept(&self, tcp: TcpStream) -> Result<Peer> {
        let broken = |e| Error::caused(ErrorKind::Unreachable, "a new connection broke", e);
        let address = tcp.peer_addr().map_err(broken)?;
        tcp.set_nodelay(true).map_err(broken)?;
        tune(tcp.as_fd());
        let Some(acceptor) = &self.tls else {
            check_loopback(address)?;
            return Ok(Peer { connection: Box::new(tcp), address, certificate: None });
        };
        let stream = acceptor.accept(tcp).await.map_err(|e| {
            Error::caused(handshake_kind(&e), format!("{address} did not prove who it is"), e)
        })?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(|chain| chain.first()).cloned();
        let Some(certificate) = certificate else {
            let what = format!("{address} has shown no certificate");
            return Err(Error::new(ErrorKind::NotAuthorised, what));
        };
        let certificate = Some(certificate.into_owned());
        Ok(Peer { connection: Box::new(stream), address, certificate })
    }
}

/// A connected shipper: known to the CA, not yet authorised for a group.
pub struct Peer {
    pub connection: BoxedConnection,
    pub address: SocketAddr,
    certificate: Option<CertificateDer<'static>>,
}

impl Peer {
    /// Whether this peer may write `group`.
    ///
    /// # Errors
    /// [`ErrorKind::NotAuthorised`].
    pub fn authorise(&self, group: &GroupName) -> Result<()> {
        let Some(certificate) = &self.certificate else { return Ok(()) };
        let name = pki::group_dns_name(group);
        let denied = || {
            let what = format!(
                "the certificate of {} does not name {name}: issue one with `towline pki issue DIR \
                 --group {group}`",
                self.address
            );
            Error::new(ErrorKind::NotAuthorised, what)
        };
        let leaf = webpki::EndEntityCert::try_from(certificate).map_err(|_| denied())?;
        let server_name = ServerName::try_from(name.as_str()).map_err(|_| denied())?;
        leaf.verify_is_valid_for_subject_name(&server_name).map_err(|_| denied())
    }
}

fn check_loopback(address: SocketAddr) -> Result<()> {
    if address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let what = format!(
        "{address} is not a loopback address: --insecure-loopback is for one machine only; use \
         --pki DIR (see `towline pki init`)"
    );
    Err(Error::new(ErrorKind::NotAuthorised, what))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_config(dir: &Path, group: &GroupName) -> Result<Arc<ClientConfig>> {
    let (chain, key) = load(&pki::group_files(dir, group))?;
    let bad = |e| Error::caused(ErrorKind::InvalidInput, bad_pki(dir), e);
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_root_certificates(roots(dir)?)
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    Ok(Arc::new(config))
}

fn server_config(dir: &Path) -> Result<Arc<ServerConfig>> {
    let (chain, key) = load(&pki::receiver_files(dir))?;
    let bad = |e| Error::caused(ErrorKind::InvalidInput, bad_pki(dir), e);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(dir)?), provider())
        .build()
        .map_err(|e| Error::caused(ErrorKind::InvalidInput, bad_pki(dir), e))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(bad)?;
    Ok(Arc::new(config))
}

fn bad_pki(dir: &Path) -> String {
    format!("the certificates in {} are not usable", dir.display())
}

pub(crate) fn roots(dir: &Path) -> Result<RootCertStore> {
    let path = pki::ca_files(dir).certificate;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|e| Error::caused(ErrorKind::InvalidInput, bad_pki(dir), e))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unusable = |e| Error::caused(ErrorKind::InvalidInput, missing(path), e);
    let chain: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(unusable)?.collect();
    match chain.map_err(unusable)? {
        chain if chain.is_empty() => Err(Error::new(ErrorKind::InvalidInput, missing(path))),
        chain => Ok(chain),
    }
}

pub(crate) fn load(
    files: &Files,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|e| Error::caused(ErrorKind::InvalidInput, missing(&files.key), e))?;
    Ok((certificates(&files.certificate)?, key))
}

fn missing(path: &Path) -> String {
    format!(
        "{} is missing or not in PEM form: make it with `towline pki init` and `towline pki issue`",
        path.display()
    )
}

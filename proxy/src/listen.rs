//! Where the server listens: addresses as people write them, and sockets bound to
//! them.

use crate::error::{Error, ErrorKind, Result};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Who may connect to a unix socket: the user that runs the server.
const SOCKET_MODE: u32 = 0o600;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Suffix of a socket until it is ready, so that it is never open to others.
const UNREADY_SUFFIX: &str = ".new";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    Unix(PathBuf),
    /// `HOST:PORT`; port 0 takes a free one.
    Tcp(String),
}

impl std::str::FromStr for ListenAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<ListenAddr> {
        let bad = || {
            let what = format!("{text:?} is no address to listen on: give unix:PATH or HOST:PORT");
            Error::new(ErrorKind::InvalidInput, what)
        };
        match text.strip_prefix("unix:") {
            Some("") => Err(bad()),
            Some(path) => Ok(ListenAddr::Unix(path.into())),
            None => {
                let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
                port.parse::<u16>().map_err(|_| bad())?;
                let is_bare_ipv6 = host.contains(':') && !host.starts_with('[');
                if host.is_empty() || is_bare_ipv6 {
                    return Err(bad());
                }
                Ok(ListenAddr::Tcp(text.to_owned()))
            }
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddr::Tcp(address) => f.write_str(address),
        }
    }
}

/// A listening socket, not blocking, and its address with the real port.
pub enum Bound {
    Unix { listener: UnixListener, path: SocketFile },
    Tcp { listener: TcpListener, address: String },
}

impl Bound {
    pub fn address(&self) -> String {
        match self {
            Bound::Unix { path, .. } => {
                // As a client in another folder needs it.
                let whole = std::path::absolute(&path.path);
                format!("unix:{}", whole.as_deref().unwrap_or(&path.path).display())
            }
            Bound::Tcp { address, .. } => address.clone(),
        }
    }
}

/// The file of a listening unix socket; removed with this, if it is still ours.
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn is_ours(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Addresses that are ours, at which nobody is served yet: who connects is refused as where nobody
/// listens, and nobody else can take them.
pub struct Reserved(Vec<Reservation>);

struct Reservation {
    address: ListenAddr,
    socket: Socket,
    /// Of a unix socket.
    file: Option<SocketFile>,
}

impl Reserved {
    /// Takes all of them. The file of a unix socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when somebody has one already.
    pub fn new(addresses: &[ListenAddr]) -> Result<Reserved> {
        addresses.iter().map(reserve).collect::<Result<_>>().map(Reserved)
    }

    /// Clients may connect from now on.
    pub(crate) fn listen(self) -> Result<Vec<Bound>> {
        self.0.into_iter().map(Reservation::listen).collect()
    }
}

/// Binds and listens.
///
/// # Errors
/// As [`Reserved::new`].
pub fn bind(address: &ListenAddr) -> Result<Bound> {
    reserve(address)?.listen()
}

fn reserve(address: &ListenAddr) -> Result<Reservation> {
    let (socket, file) = match address {
        ListenAddr::Tcp(text) => (bind_tcp(text).map_err(failed(address))?, None),
        ListenAddr::Unix(path) => {
            refuse_live(path)?;
            let (socket, file) = bind_unix(path).map_err(failed(address))?;
            (socket, Some(file))
        }
    };
    Ok(Reservation { address: address.clone(), socket, file })
}

fn failed(address: &ListenAddr) -> impl Fn(io::Error) -> Error {
    move |error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => ErrorKind::InUse,
            _ => ErrorKind::System,
        };
        Error::caused(kind, format!("cannot listen on {address}"), error)
    }
}

impl Reservation {
    fn listen(self) -> Result<Bound> {
        let Reservation { address, socket, file } = self;
        // Connections that are left behind when we end shall not keep our successor out.
        let reuse = if file.is_none() { socket.set_reuse_address(true) } else { Ok(()) };
        reuse.and_then(|()| socket.listen(BACKLOG)).map_err(failed(&address))?;
        socket.set_nonblocking(true).map_err(failed(&address))?;
        match file {
            Some(path) if !path.is_ours() => {
                let what =
                    format!("{address} was taken by somebody else meanwhile: end them first");
                Err(Error::new(ErrorKind::InUse, what))
            }
            Some(path) => Ok(Bound::Unix { listener: socket.into(), path }),
            None => {
                let listener = TcpListener::from(socket);
                let address = listener.local_addr().map_err(failed(&address))?.to_string();
                Ok(Bound::Tcp { listener, address })
            }
        }
    }
}

/// The first of the host's addresses that can be had.
fn bind_tcp(text: &str) -> io::Result<Socket> {
    let bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // For a moment: what former connections left behind does not count, but as long as
        // nobody listens, whoever says the same could share the port with us.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.set_reuse_address(false)?;
        Ok(socket)
    };
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the host has no address");
    for address in text.to_socket_addrs()? {
        match bind(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn refuse_live(path: &Path) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        let what = format!("{} exists and is no socket: remove it or take another", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    if UnixStream::connect(path).is_ok() {
        let what = format!("somebody listens on {} already: end them first", path.display());
        return Err(Error::new(ErrorKind::InUse, what));
    }
    Ok(())
}

/// Bound under another name, closed to others, then moved to its place at once.
fn bind_unix(path: &Path) -> io::Result<(Socket, SocketFile)> {
    let mut unready = path.as_os_str().to_owned();
    unready.push(UNREADY_SUFFIX);
    let unready = PathBuf::from(unready);
    match std::fs::remove_file(&unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&unready)?)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    let inode = std::fs::symlink_metadata(&unready)?.ino();
    std::fs::rename(&unready, path)?;
    Ok((socket, SocketFile { path: path.to_owned(), inode }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let unix: ListenAddr = "unix:/run/x.sock".parse().unwrap();
        assert_eq!(unix, ListenAddr::Unix("/run/x.sock".into()));
        for good in ["127.0.0.1:0", "localhost:10809", "[::1]:10809"] {
            assert_eq!(good.parse::<ListenAddr>().unwrap().to_string(), good);
        }
        for bad in ["", "unix:", "localhost", ":10809", "::1:10809", "h:65536", "h:x"] {
            let error = bad.parse::<ListenAddr>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = ListenAddr::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let bound = bind(&address).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        assert_eq!(bind(&address).err().unwrap().kind(), ErrorKind::InUse);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
        std::fs::write(&path, b"mine").unwrap();
        assert_eq!(bind(&address).err().unwrap().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_tcp_port_in_use_is_refused() {
        let Bound::Tcp { listener: _listener, address } =
            bind(&"127.0.0.1:0".parse().unwrap()).unwrap()
        else {
            panic!("not TCP");
        };
        assert_eq!(bind(&ListenAddr::Tcp(address)).err().unwrap().kind(), ErrorKind::InUse);
    }

    #[test]
    fn a_reserved_address_is_nobody_elses_and_refuses_clients_until_it_is_listened_on() {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let path = dir.path().join("s");
        let addresses = [ListenAddr::Tcp(free.clone()), ListenAddr::Unix(path.clone())];
        let reserved = Reserved::new(&addresses).unwrap();
        // As most servers bind: by the standard library, which says SO_REUSEADDR.
        assert_eq!(TcpListener::bind(&free).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(bind(&addresses[0]).err().unwrap().kind(), ErrorKind::InUse);
        let refused = io::ErrorKind::ConnectionRefused;
        assert_eq!(std::net::TcpStream::connect(&free).unwrap_err().kind(), refused);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), refused);
        let bound = reserved.listen().unwrap();
        std::net::TcpStream::connect(&free).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        // The connection of before is left behind, and keeps nobody out.
        drop(bind(&addresses[0]).unwrap());
    }

    #[test]
    fn a_reserved_socket_whose_file_was_replaced_is_not_listened_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = ListenAddr::Unix(path.clone());
        let reserved = Reserved::new(std::slice::from_ref(&address)).unwrap();
        let _other = bind(&address).unwrap();
        assert_eq!(reserved.listen().err().unwrap().kind(), ErrorKind::InUse);
        UnixStream::connect(&path).unwrap();
    }
}

//! Where the server listens: addresses as people write them, and sockets bound to
//! them.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Who may connect to a unix socket: the user that runs the server.
const SOCKET_MODE: u32 = 0o600;
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
            Bound::Unix { path, .. } => format!("unix:{}", path.path.display()),
            Bound::Tcp { address, .. } => address.clone(),
        }
    }
}

/// The file of a listening unix socket; removed with this, if it is still ours.
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds. The file of a unix socket that nobody serves any more is replaced.
///
/// # Errors
/// [`ErrorKind::InUse`] when somebody listens there already.
pub fn bind(address: &ListenAddr) -> Result<Bound> {
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => ErrorKind::InUse,
            _ => ErrorKind::System,
        };
        Error::caused(kind, format!("cannot listen on {address}"), error)
    };
    match address {
        ListenAddr::Tcp(text) => {
            let listener = TcpListener::bind(text).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?.to_string();
            Ok(Bound::Tcp { listener, address })
        }
        ListenAddr::Unix(path) => {
            refuse_live(path)?;
            let (listener, path) = bind_unix(path).map_err(failed)?;
            Ok(Bound::Unix { listener, path })
        }
    }
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
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let mut unready = path.as_os_str().to_owned();
    unready.push(UNREADY_SUFFIX);
    let unready = PathBuf::from(unready);
    match std::fs::remove_file(&unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unready)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    listener.set_nonblocking(true)?;
    let inode = std::fs::symlink_metadata(&unready)?.ino();
    std::fs::rename(&unready, path)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
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
}

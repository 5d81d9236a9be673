//! temp
use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    Unix(PathBuf),
    Tcp(SocketAddr),
}
impl FromStr for ListenAddr {
    type Err = String;
    fn from_str(t: &str) -> Result<Self, String> {
        match t.strip_prefix("unix:") {
            Some(p) => Ok(Self::Unix(p.into())),
            None => t.parse().map(Self::Tcp).map_err(|e| format!("{e}")),
        }
    }
}
impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

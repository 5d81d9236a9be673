//! `[NAME=]PATH|URI`: a volume's name and the disk behind it.

use serde::Deserialize;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::str::FromStr;
use towline_block::{NbdUri, VolumeName};

/// What an unnamed disk is called.
const UNNAMED: &str = "disk0";

/// A source or a target.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Table")]
pub struct Disk {
    pub name: VolumeName,
    /// Of an upstream server, its URI.
    pub path: PathBuf,
    pub upstream: Option<NbdUri>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: Option<String>,
    path: String,
}

impl Disk {
    fn new(name: &str, path: &str) -> Result<Disk, String> {
        let upstream = match NbdUri::is_meant_by(path) {
            true => Some(path.parse::<NbdUri>().map_err(|e| e.to_string())?),
            false => None,
        };
        if upstream.is_none() && path.contains("://") {
            return Err(format!(
                "{path} is not usable as a disk: give a raw image file, a block device or an NBD URI"
            ));
        }
        if path.is_empty() {
            return Err(format!("disk {name} has no path: write {name}=PATH"));
        }
        let name = name.parse::<VolumeName>().map_err(|e| e.to_string())?;
        let path =
            upstream.as_ref().map_or_else(|| PathBuf::from(path), |uri| uri.to_string().into());
        Ok(Disk { name, path, upstream })
    }

    /// Whether both names lead to one file, device or export.
    pub fn is_at_place_of(&self, other: &Disk) -> bool {
        if self.upstream.is_some() || other.upstream.is_some() {
            return self.path == other.path;
        }
        match (std::fs::metadata(&self.path), std::fs::metadata(&other.path)) {
            (Ok(one), Ok(other)) if one.file_type().is_block_device() => {
                other.file_type().is_block_device() && one.rdev() == other.rdev()
            }
            (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
            _ => std::path::absolute(&self.path).ok() == std::path::absolute(&other.path).ok(),
        }
    }
}

impl FromStr for Disk {
    type Err = String;

    /// A path may contain `=` itself: only what could be a file's path (it has a
    /// `/` or a `.` before the `=`) is taken as an unnamed path.
    fn from_str(text: &str) -> Result<Disk, String> {
        match text.split_once('=') {
            _ if NbdUri::is_meant_by(text) => Disk::new(UNNAMED, text),
            Some((name, path)) if !name.contains(['/', '.']) => Disk::new(name, path),
            _ => Disk::new(UNNAMED, text),
        }
    }
}

impl TryFrom<Table> for Disk {
    type Error = String;
    fn try_from(table: Table) -> Result<Disk, String> {
        Disk::new(table.name.as_deref().unwrap_or(UNNAMED), &table.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_disk_is_disk0() {
        let disk: Disk = "/images/a.raw".parse().unwrap();
        assert_eq!((disk.name.as_str(), disk.path.to_str()), ("disk0", Some("/images/a.raw")));
        let disk: Disk = "./odd=name.raw".parse().unwrap();
        assert_eq!(disk.name.as_str(), "disk0");
    }

    #[test]
    fn a_name_stands_before_the_first_equals_sign() {
        let disk: Disk = "system=/images/a=b.raw".parse().unwrap();
        assert_eq!((disk.name.as_str(), disk.path.to_str()), ("system", Some("/images/a=b.raw")));
        assert!("Bad_Name=/x".parse::<Disk>().unwrap_err().contains("Bad_Name"));
        assert!("a=".parse::<Disk>().is_err());
        assert!("a=iscsi://host/x".parse::<Disk>().unwrap_err().contains("raw image"));
    }

    #[test]
    fn two_names_of_one_place_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let is_one = |one: &str, other: &str| {
            let disk = |text: &str| text.parse::<Disk>().unwrap();
            disk(one).is_at_place_of(&disk(other))
        };
        assert!(is_one(&path("not-there"), &path("./not-there")));
        assert!(!is_one(&path("a"), &path("b")));
        std::fs::write(path("a"), b"").unwrap();
        std::fs::write(path("b"), b"").unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        std::fs::hard_link(path("a"), path("hard")).unwrap();
        assert!(is_one(&path("a"), &path("link")) && is_one(&path("hard"), &path("a")));
        assert!(!is_one(&path("a"), &path("b")));
        assert!(is_one("nbd://h/x", "nbd://h:10809/x") && !is_one("nbd://h/x", "nbd://h/y"));
    }

    #[test]
    fn an_upstream_server_is_named_by_its_uri() {
        let disk: Disk = "a=nbd://host/x".parse().unwrap();
        assert_eq!(disk.path.to_str(), Some("nbd://host:10809/x"));
        assert!(disk.upstream.is_some());
        let disk: Disk = "nbd+unix:///d?socket=/run/s".parse().unwrap();
        assert_eq!(disk.name.as_str(), "disk0");
        assert!("a=nbds://host/x".parse::<Disk>().unwrap_err().contains("TLS"));
    }
}

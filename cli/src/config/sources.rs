//! `[NAME=]PATH`: a volume's name and the disk behind it.

use serde::Deserialize;
use std::path::PathBuf;
use std::str::FromStr;
use towline_block::VolumeName;

/// What an unnamed disk is called.
const UNNAMED: &str = "disk0";

/// A source or a target.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Table")]
pub struct Disk {
    pub name: VolumeName,
    pub path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: Option<String>,
    path: String,
}

impl Disk {
    fn new(name: &str, path: &str) -> Result<Disk, String> {
        if path.contains("://") || path.starts_with("nbd:") || path.starts_with("nbd+") {
            return Err(format!(
                "{path} is not usable: this version takes raw image files and block devices as disks"
            ));
        }
        if path.is_empty() {
            return Err(format!("disk {name} has no path: write {name}=PATH"));
        }
        let name = name.parse::<VolumeName>().map_err(|e| e.to_string())?;
        Ok(Disk { name, path: PathBuf::from(path) })
    }
}

impl FromStr for Disk {
    type Err = String;

    /// A path may contain `=` itself: only what could be a file's path (it has a
    /// `/` or a `.` before the `=`) is taken as an unnamed path.
    fn from_str(text: &str) -> Result<Disk, String> {
        match text.split_once('=') {
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
        assert!("a=nbd://host/x".parse::<Disk>().unwrap_err().contains("raw image"));
    }
}

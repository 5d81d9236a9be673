//! Names of groups and volumes. They become file names, NBD export names and
//! DNS labels in certificates, so the alphabet is the intersection of the three.

use crate::error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A DNS label's limit (RFC 1035, 2.3.4).
pub const NAME_BYTES_MAX: usize = 63;

fn check(kind: &'static str, name: &str) -> Result<(), Error> {
    let ok = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if ok {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "{kind} name {name:?} is not usable: take 1 to {NAME_BYTES_MAX} of a-z, 0-9 and '-', \
             with no '-' at either end"
        ),
    ))
}

macro_rules! name_type {
    ($type:ident, $kind:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = Error;
            fn from_str(name: &str) -> Result<$type, Error> {
                check($kind, name)?;
                Ok($type(name.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(name: String) -> Result<$type, Error> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(GroupName, "group", "Name of a group: the unit that migrates together.");
name_type!(MarkName, "mark", "Name of a mark: a point that can be gone back to.");
name_type!(VolumeName, "volume", "Name of a volume in its group; also its NBD export name.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_the_alphabet() {
        for good in ["a", "erp-2", "0", &"x".repeat(63)] {
            good.parse::<GroupName>().unwrap();
        }
        for bad in ["", "A", "a_b", "../x", "-a", "a-", "a/b", "a b", &"x".repeat(64)] {
            bad.parse::<GroupName>().unwrap_err();
        }
    }
}

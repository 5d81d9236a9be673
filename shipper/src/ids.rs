//! Names of fixed size: who a group, a session and a batch are. Written as
//! lower-case hexadecimal wherever people or JSON see them.

use serde::{Deserialize, Serialize};
use std::fmt;

pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let wrong = || format!("{text:?} is not {} hexadecimal digits", 2 * N);
    if text.len() != 2 * N {
        return Err(wrong());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit =
            |at: usize| pair.get(at).and_then(|c| char::from(*c).to_digit(16)).ok_or_else(wrong);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Ok(out)
}

macro_rules! hex_id {
    ($type:ident, $bytes:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(pub [u8; $bytes]);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<$type, String> {
                parse_hex(text).map($type)
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.to_string()
            }
        }
    };
}

hex_id!(GroupUuid, 16, "Tells two groups of the same name apart; chosen once, by the proxy.");
hex_id!(SessionId, 16, "One run of a shipper against one target; random.");
hex_id!(KeyId, 16, "Names a group key, so that keys can follow one another; not secret.");
hex_id!(SetId, 16, "One export of a group onto transport devices; random.");
hex_id!(Digest, 32, "BLAKE3-256 of the bytes of a file that another one names.");
hex_id!(BatchHash, 32, "What a batch is known by in the chain. All zero: before the first batch.");

impl BatchHash {
    /// What the first batch of a target names as its predecessor.
    pub const NONE: BatchHash = BatchHash([0; 32]);
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl SetId {
    pub fn random() -> SetId {
        SetId(rand::random())
    }
}

impl SessionId {
    pub fn random() -> SessionId {
        SessionId(rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_written() {
        let id = GroupUuid(std::array::from_fn(|i| i as u8 * 17));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("0011".parse::<GroupUuid>().is_err());
        assert!("zz112233445566778899aabbccddeeff".parse::<GroupUuid>().is_err());
        assert!("é".repeat(16).parse::<GroupUuid>().is_err());
    }
}

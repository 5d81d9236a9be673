//! Data of handshake options: fields out of hostile bytes.

use super::proto::STRING_BYTES_MAX;

/// Takes fields from the front of hostile bytes.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// A length and so many bytes of a string as the protocol defines it.
    fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        let string = self.bytes(len)?;
        let fine =
            len <= STRING_BYTES_MAX && !string.contains(&0) && std::str::from_utf8(string).is_ok();
        fine.then_some(string)
    }
}

/// Name and wanted information types of INFO and GO.
pub(super) fn parse_info(data: &[u8]) -> Option<(&[u8], impl Iterator<Item = u16> + Clone)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = usize::from(fields.u16()?);
    let (wanted, rest) = fields.0.as_chunks::<2>();
    if wanted.len() != count || !rest.is_empty() {
        return None;
    }
    Some((name, wanted.iter().map(|kind| u16::from_be_bytes(*kind))))
}

/// Data of the context options.
pub(super) struct Queries<'a> {
    pub export: &'a [u8],
    pub queries: Vec<&'a [u8]>,
}

pub(super) fn parse_queries(data: &[u8]) -> Option<Queries<'_>> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        // Every query takes at least four bytes, so the data bounds the loop.
        queries.push(fields.string()?);
    }
    fields.0.is_empty().then_some(Queries { export: name, queries })
}

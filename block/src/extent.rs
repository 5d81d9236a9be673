//! A byte range of one volume.

/// `len` bytes from `offset`. Construction does not check volume bounds; use
/// [`Extent::within`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
}

impl Extent {
    pub const fn new(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    /// First byte after the range. Saturates, so that hostile input cannot wrap.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether the range lies inside a volume of `size` bytes, without overflow.
    pub const fn within(self, size: u64) -> bool {
        match self.offset.checked_add(self.len) {
            Some(end) => end <= size,
            None => false,
        }
    }

    /// Two empty ranges, or ranges that only touch, do not overlap.
    pub const fn overlaps(self, other: Extent) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// The range in consecutive pieces of at most `piece_bytes`.
    pub fn pieces(self, piece_bytes: u64) -> impl Iterator<Item = Extent> {
        assert!(piece_bytes > 0, "a piece has at least one byte");
        let count = self.len.div_ceil(piece_bytes);
        (0..count).map(move |i| {
            let offset = self.offset + i * piece_bytes;
            Extent::new(offset, piece_bytes.min(self.end() - offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_do_not_wrap() {
        assert!(!Extent::new(u64::MAX, 2).within(u64::MAX));
        assert!(Extent::new(0, 10).within(10));
        assert!(!Extent::new(1, 10).within(10));
        assert!(Extent::new(10, 0).within(10));
    }

    #[test]
    fn touching_ranges_do_not_overlap() {
        assert!(!Extent::new(0, 4).overlaps(Extent::new(4, 4)));
        assert!(Extent::new(0, 5).overlaps(Extent::new(4, 4)));
        assert!(!Extent::new(2, 0).overlaps(Extent::new(2, 0)));
    }

    #[test]
    fn pieces_cover_the_range_once() {
        let pieces: Vec<_> = Extent::new(3, 10).pieces(4).collect();
        assert_eq!(pieces, [Extent::new(3, 4), Extent::new(7, 4), Extent::new(11, 2)]);
        assert_eq!(Extent::new(3, 0).pieces(4).count(), 0);
    }
}

//! Names of objects: the only place that makes them. None is ever taken from a store.

/// Who the group is.
pub(crate) const GROUP: &str = "group.json";

/// Place `index` of a session, both from 1.
pub(crate) fn object(session: u32, index: u32) -> String {
    format!("{session:08}/{index:010}.batches")
}

/// What makes a generation of the base one, from 1.
pub(crate) fn base(generation: u32) -> String {
    format!("bases/{generation:08}.json")
}

/// Part `part` of an attempt to make a generation of the base, all from 1.
pub(crate) fn part(generation: u32, attempt: u32, part: u32) -> String {
    format!("bases/{generation:08}/{attempt:04}/{part:010}.batches")
}

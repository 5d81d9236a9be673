//! Names of objects: the only place that makes them. None is ever taken from a store.

/// Who the group is.
pub(crate) const GROUP: &str = "group.json";

/// Place `index` of a session, both from 1.
pub(crate) fn object(session: u32, index: u32) -> String {
    format!("{session:08}/{index:010}.batches")
}

//! Cutovers.
